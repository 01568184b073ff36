//! Network namespaces without names: a [`Host`] is a descriptor, and closures run "on" it in a thread that enters it.

use std::{
    fs,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    panic,
    process::{self, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; sockets made on it stay on it, wherever they are used.
#[derive(Debug)]
pub struct Host {
    netns: OwnedFd,
}

impl Host {
    /// A new namespace with nothing but loopback, which is up. Duplicate address detection is off.
    pub fn new() -> io::Result<Self> {
        let host = thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    let netns = fs::File::open("/proc/thread-self/ns/net")?.into();
                    Ok::<_, io::Error>(Self { netns })
                })
                .join()
                .expect("no panic")
        })?;
        for conf in ["all", "default"] {
            host.sysctl(&format!("ipv6/conf/{conf}/accept_dad"), "0");
            host.sysctl(&format!("ipv6/conf/{conf}/accept_ra"), "0");
        }
        host.ip("link set lo up");
        Ok(host)
    }

    /// The same host once more.
    pub fn again(&self) -> Self {
        let netns = self.netns.try_clone().expect("dup");
        Self { netns }
    }

    /// Runs `work` in a thread that is on this host; a panic in it goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.netns, CloneFlags::CLONE_NEWNET).expect("setns");
                    work()
                })
                .join()
        });
        done.unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    /// Runs the lines as commands of ip(8); the test fails if one fails.
    pub fn ip(&self, lines: &str) {
        let output = self.run(|| {
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("ip(8)");
            let mut stdin = ip.stdin.take().expect("piped");
            stdin.write_all(lines.as_bytes()).expect("ip(8) reads");
            stdin.write_all(b"\n").expect("ip(8) reads");
            drop(stdin);
            ip.wait_with_output().expect("ip(8)")
        });
        assert!(
            output.status.success(),
            "ip: {}\n{lines}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Lays a wire from device `name` here to device `there` on `other`; both are up.
    pub fn wire(&self, name: &str, other: &Self, there: &str) {
        let path = other.path();
        self.ip(&format!(
            "link add {name} type veth peer name {there} netns {path}
             link set {name} up"
        ));
        other.ip(&format!("link set {there} up"));
    }

    /// Loads a ruleset of nft(8); the test fails if it is refused.
    pub fn nft(&self, rules: &str) {
        self.command("nft", &[rules]);
    }

    /// Forwards packets between its devices from now on.
    pub fn forward(&self) {
        for family in ["ipv4", "ipv6"] {
            self.sysctl(&format!("{family}/conf/all/forwarding"), "1");
        }
    }

    /// Opens every port to everybody, as clusters do for their pods.
    pub fn allow_low_ports(&self) {
        self.sysctl("ipv4/ip_unprivileged_port_start", "0");
    }

    /// Runs a command to its end and returns what it wrote to stdout.
    pub fn command(&self, program: &str, args: &[&str]) -> String {
        let output = self.run(|| Command::new(program).args(args).output().expect(program));
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets a variable below `/proc/sys/net`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value))
            .unwrap_or_else(|e| panic!("{path} = {value}: {e}"));
    }

    /// Opens ping sockets to everybody: all groups, or the only one that a user namespace knows.
    pub fn allow_ping(&self) {
        const RANGE: &str = "/proc/sys/net/ipv4/ping_group_range";
        self.run(|| fs::write(RANGE, "0 2147483647").or_else(|_| fs::write(RANGE, "0 0")))
            .expect(RANGE);
    }

    /// A path of this namespace that `ip … netns PATH` understands, while `self` lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.netns.as_raw_fd())
    }

    /// Lines of `/proc/net/NAME` as seen on this host.
    pub fn proc_net(&self, name: &str) -> Vec<String> {
        let path = format!("/proc/thread-self/net/{name}");
        let text = self.run(|| fs::read_to_string(path)).expect(name);
        text.lines().map(str::to_owned).collect()
    }

    /// One of the [`counters`](Self::counters).
    pub fn counter(&self, table: &str, protocol: &str, name: &str) -> u64 {
        let counters = self.counters(table, protocol);
        let (_, value) = counters.iter().find(|(n, _)| n == name).expect(name);
        value.parse().expect("a number")
    }

    /// The counters that /proc/net/`table` has in two rows, of names and of values, behind `protocol` (proc_net(5)).
    pub fn counters(&self, table: &str, protocol: &str) -> Vec<(String, String)> {
        let table = self.proc_net(table);
        let mut rows = table.iter().filter(|line| line.starts_with(protocol));
        let (names, values) = rows.next().zip(rows.next()).expect("two rows each");
        let columns = names.split(' ').zip(values.split(' ')).skip(1);
        columns.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
    }
}
