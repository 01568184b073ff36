//! Start-up under the conditions that callers make: closed descriptors, other users, leftovers, a system log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use guest::{Udp, Wire, guest_addr};
use lab::{
    LONG, Setup, Translator, World,
    janitor::{self, TempDir},
    programs::{copy_program, wrapper},
    servers::UdpEcho,
    translator::binary,
    uninterrupted, wait_until,
    world::INTERNET4,
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

fn assert_works(world: &World, socket: &Path) {
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let wire = Wire::new(UnixStream::connect(socket).unwrap());
    wire.send(&Udp::new(guest_addr(echo.addr(), 5000), echo.addr(), b"hello").frame());
    wire.expect("echo", Udp::of_frame);
}

/// A daemon started by a caller who waited for it, killed on drop.
struct Daemon {
    dir: TempDir,
    pid: u32,
}

impl Daemon {
    fn start(world: &World, script: &str, args: &[&str]) -> Self {
        let dir = TempDir::new();
        let pid = Self::start_in(world, dir.path(), script, args);
        Self { dir, pid }
    }

    fn start_in(world: &World, dir: &Path, script: &str, args: &[&str]) -> u32 {
        let setup = Setup::new(args).binary(wrapper(dir, script)).background();
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let setup = ["-s", &path("sock"), "-P", &path("pid")]
            .iter()
            .fold(setup, |setup, arg| setup.arg(arg));
        let (status, _, stderr) = setup.run_to_end(&world.pod);
        assert_eq!(status.code(), Some(0), "{stderr}");
        let pid = fs::read_to_string(dir.join("pid")).unwrap();
        let pid = pid.trim().parse().unwrap();
        janitor::watch_pid(pid);
        pid
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid.cast_signed()), signal).unwrap();
    }

    fn is_gone(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.map_or(true, |stat| stat.contains(") Z "))
    }

    fn expect_gone(&self) {
        assert!(wait_until(LONG, || self.is_gone()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL);
        // Until then it has its ports.
        wait_until(LONG, || self.is_gone());
        janitor::gone(self.pid);
    }
}

/// Regressions C06 and T88: sockets must not land on the numbers of standard descriptors.
#[test]
fn it_starts_with_standard_descriptors_closed_and_inherited_ones_open() {
    let Some(world) = World::pod() else { return };
    let script = "exec PASST \"$@\" 8</dev/zero 9</dev/zero <&- >&- 2>&-";
    let daemon = Daemon::start(&world, script, &[]);
    assert_works(&world, &daemon.socket());
    // By device: names end where the sandbox begins.
    let device = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.rdev());
    let open = PathBuf::from(format!("/proc/{}/fd", daemon.pid));
    for number in ["0", "1", "2"] {
        assert_eq!(device(&open.join(number)), device(Path::new("/dev/null")));
    }
    // Regression C26.
    for entry in fs::read_dir(&open).unwrap() {
        assert_ne!(
            device(&entry.unwrap().path()),
            device(Path::new("/dev/zero"))
        );
    }
    daemon.signal(Signal::SIGTERM);
    daemon.expect_gone();
}

/// What libvirt does after a crash: the same command line, with everything still lying around.
#[test]
fn an_identical_restart_after_a_kill_takes_over_what_was_left() {
    let Some(world) = World::pod() else { return };
    let mut daemon = Daemon::start(&world, "exec PASST \"$@\"", &[]);
    assert_works(&world, &daemon.socket());
    assert_eq!(names(daemon.dir.path()), ["pid", "sock", "wrapper"]);
    daemon.signal(Signal::SIGKILL);
    daemon.expect_gone();
    janitor::gone(daemon.pid);
    let first = daemon.pid;
    daemon.pid = Daemon::start_in(&world, daemon.dir.path(), "exec PASST \"$@\"", &[]);
    assert_ne!(daemon.pid, first);
    assert_works(&world, &daemon.socket());
    assert_eq!(names(daemon.dir.path()), ["pid", "sock", "wrapper"]);
}

/// Regressions C48, S02 and S08.
#[test]
fn what_takes_roots_rights_is_open_before_they_are_given_up() {
    let Some(world) = World::pod() else { return };
    if !is_machines_root() {
        return;
    }
    let script = "d=$(dirname \"$0\"); mkdir $d/private && chmod 700 $d/private && \
        exec PASST -p $d/private/pcap -l $d/private/log \"$@\"";
    let daemon = Daemon::start(&world, script, &["--runas", "4242:4243"]);
    assert_works(&world, &daemon.socket());
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
    assert!(status.contains("Uid:\t4242\t4242\t4242\t4242"), "{status}");
    assert!(status.contains("Gid:\t4243\t4243\t4243\t4243"), "{status}");
    assert!(status.contains("Groups:\t \n"), "{status}");
    for name in ["log", "pcap"] {
        let meta = fs::metadata(daemon.dir.path().join("private").join(name)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600), "{name}");
        assert!(meta.len() > 0, "{name}");
    }
}

/// Regression C49. The socket of the system log is out of reach by the time it is used.
#[test]
fn a_daemon_speaks_to_the_system_log() {
    let Some(world) = World::pod() else { return };
    let dir = TempDir::new();
    let log = UnixDatagram::bind(dir.path().join("log")).unwrap();
    fs::set_permissions(dir.path().join("log"), fs::Permissions::from_mode(0o666)).unwrap();
    log.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Only this mount namespace has that /dev.
    let script = format!(
        "mount -t tmpfs none /mnt && touch /mnt/null /mnt/log && \
         mount --bind /dev/null /mnt/null && mount --bind {}/log /mnt/log && \
         mount --rbind /mnt /dev && exec PASST \"$@\"",
        dir.path().display()
    );
    // Read from the start on: of what nobody reads the kernel keeps ten messages (net.unix.max_dgram_qlen).
    let reading = thread::spawn(move || {
        let mut datagram = [0; 2048];
        let mut said: Vec<String> = Vec::new();
        while !said.iter().any(|line| line.contains("accepted connection")) {
            let len = uninterrupted(|| log.recv(&mut datagram)).expect("a message");
            said.push(String::from_utf8_lossy(&datagram[..len]).into_owned());
        }
        said
    });
    let daemon = Daemon::start(&world, &script, &[]);
    // What was said while the queue was full is lost, so that it is said again.
    while !reading.is_finished() {
        drop(UnixStream::connect(daemon.socket()).unwrap());
        thread::sleep(Duration::from_millis(20));
    }
    let said = reading.join().expect("the system log");
    assert!(
        said.iter()
            .all(|line| line.starts_with("<30>passt: ") || line.starts_with("<28>passt: "))
    );
}

/// Regression C50: the reason is on standard error, and last, whatever the log is.
#[test]
fn a_failed_start_says_why_on_standard_error() {
    let Some(world) = World::pod() else { return };
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let live = Translator::start(&world.pod, &[]);
    let socket = live.socket().to_str().unwrap();
    let (status, stdout, stderr) = Setup::new(&["-l", &path("log"), "-s", socket])
        .background()
        .run_to_end(&world.pod);
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""));
    let last = stderr.lines().last().unwrap();
    assert_eq!(last, format!("Socket path {socket} already in use"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Nobody who waits for the end of the start finds standard error empty.
#[test]
fn a_start_that_fails_in_the_background_has_said_why_when_it_ends() {
    let Some(world) = World::pod() else { return };
    let dir = TempDir::new();
    let (socket, stderr) = (dir.path().join("sock"), dir.path().join("stderr"));
    for _ in 0..50 {
        let mut command = Command::new(binary());
        command.arg("-s").arg(&socket).args(["-P", "/dev/full"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&stderr).unwrap());
        let status = world.pod.run(|| command.status()).unwrap();
        let said = fs::read_to_string(&stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{said}");
        let last = said.lines().last();
        let why = "Couldn't write PID file: No space left on device";
        assert_eq!(last, Some(why), "{said}");
    }
}

/// It was not asked for.
#[test]
fn a_socket_path_that_has_no_room_for_the_helpers_is_served_without() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&["--vhost-user"]);
    let folder = setup.dir().as_os_str().len() + 1;
    let path = setup.dir().join("x".repeat(105 - folder));
    let mut translator = setup.start_at(&world.pod, Some(path));
    translator.expect_log("passt-repair");
    translator.expect_log("has no room for .repair");
    translator.assert_alive();
}

/// Names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What fails only after the fork, and in the sandbox, still leaves nothing but the reason; whoever made a file keeps it.
#[test]
fn a_start_that_fails_late_leaves_no_files() {
    let Some(world) = World::pod() else { return };
    let (user_namespace, filter) = (libc::SYS_unshare, libc::SYS_seccomp);
    for (call, why) in [
        (user_namespace, "Couldn't create user namespace"),
        (filter, "Couldn't load seccomp filter"),
    ] {
        for kept in ["", "pid"] {
            let dir = TempDir::new();
            let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
            if !kept.is_empty() {
                fs::write(path(kept), "").unwrap();
            }
            let (socket, pid, log, pcap) = (path("sock"), path("pid"), path("log"), path("pcap"));
            let args = ["-s", &socket, "-P", &pid, "-l", &log, "-p", &pcap];
            let (status, _, stderr) = Setup::new(&args)
                .arg("--require-sandbox")
                .arg("--runas=0:0")
                .forbid(call, None, Errno::EPERM)
                .background()
                .run_to_end(&world.pod);
            assert_eq!(status.code(), Some(1), "{stderr}");
            let last = stderr.lines().last().unwrap();
            assert!(last.starts_with(why), "{stderr}");
            assert_eq!(names(dir.path()).join(" "), kept, "{why}");
        }
    }
}

/// There is no log yet when the kernel is asked to tell.
#[test]
fn a_warning_from_before_the_log_is_not_lost() {
    let Some(world) = World::pod() else { return };
    // Only netlink's addresses have 12 octets.
    let dir = TempDir::new();
    let log = dir.path().join("log");
    let mut translator = Setup::new(&["-l", log.to_str().unwrap()])
        .forbid(libc::SYS_bind, Some((2, 12)), Errno::EPERM)
        .start(&world.pod);
    let warning = "Changes of the network will not be noticed: Operation not permitted\n";
    translator.expect_log(warning);
    let kept = || fs::read_to_string(&log).is_ok_and(|text| text.contains(warning));
    assert!(wait_until(LONG, kept));
    assert_works(&world, translator.socket());
    translator.assert_alive();
}

/// A log daemon that makes its socket anew cannot be found again from within the sandbox; that must not hurt anybody.
#[test]
fn a_daemon_outlives_the_system_log() {
    let Some(world) = World::pod() else { return };
    let dir = TempDir::new();
    let path = dir.path().join("log");
    let log = UnixDatagram::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let script = format!(
        "mount -t tmpfs none /mnt && touch /mnt/null && \
         mount --bind /dev/null /mnt/null && ln -s {}/log /mnt/log && \
         mount --rbind /mnt /dev && exec PASST \"$@\"",
        dir.path().display()
    );
    let daemon = Daemon::start(&world, &script, &[]);
    assert!(uninterrupted(|| log.recv(&mut [0; 2048])).is_ok());
    drop(log);
    fs::remove_file(&path).unwrap();
    let _again = UnixDatagram::bind(&path).unwrap();
    for _ in 0..3 {
        assert_works(&world, &daemon.socket());
    }
    daemon.signal(Signal::SIGTERM);
    daemon.expect_gone();
}

/// Whether we are root of all there is, and can become any user.
fn is_machines_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let is = Uid::current().is_root() && map.contains("4294967295");
    if !is {
        println!("skipped: needs the machine's root");
    }
    is
}

/// Regression S10, and X01: the capability counts where the port is bound, before the user namespace.
#[test]
fn the_right_to_low_ports_is_used_before_it_is_lost() {
    let Some(world) = World::pod() else { return };
    if !is_machines_root() {
        return;
    }
    let plain = "setpriv --reuid 4242 --regid 4242 --clear-groups";
    let own = "d=$(dirname \"$0\"); chown 4242 \"$d\"";
    for script in [
        format!(
            "{own}; exec {plain} --inh-caps +net_bind_service --ambient-caps +net_bind_service PASST \"$@\""
        ),
        format!(
            "{own}; cp PASST $d/passt && setcap cap_net_bind_service=ep $d/passt && exec {plain} $d/passt \"$@\""
        ),
    ] {
        let daemon = Daemon::start(&world, &script, &["-t", "22", "-u", "53"]);
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
        let tcp = |line: &String| line.contains(":0016 ");
        assert!(world.pod.proc_net("tcp6").iter().any(tcp), "{script}");
        drop(daemon);
    }
    let dir = TempDir::new();
    let script = wrapper(dir.path(), &format!("exec {plain} PASST \"$@\""));
    let (status, _, stderr) = Setup::new(&["-t", "22", "-s", "/nowhere"])
        .binary(script)
        .background()
        .run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1));
    let last = stderr.lines().last().unwrap();
    for remedy in [
        "Failed to bind port 22",
        "CAP_NET_BIND_SERVICE",
        "ip_unprivileged_port_start",
    ] {
        assert!(last.contains(remedy), "{last}");
    }
}

/// Regression S15: a socket that we may not ask whether anybody answers counts as left behind.
#[test]
fn a_socket_without_rights_to_it_is_replaced() {
    let Some(world) = World::pod() else { return };
    if !is_machines_root() {
        return;
    }
    let script = "d=$(dirname \"$0\"); chown -R 4242 \"$d\" && chmod 0 \"$d/sock\" && \
        exec setpriv --reuid 4242 --regid 4242 --clear-groups PASST \"$@\"";
    let dir = TempDir::new();
    drop(UnixListener::bind(dir.path().join("sock")).unwrap());
    let pid = Daemon::start_in(&world, dir.path(), script, &[]);
    let daemon = Daemon { dir, pid };
    assert_works(&world, &daemon.socket());
}

/// Regression S07: nothing is started anew, so nothing has to be found again.
#[test]
fn a_bare_name_is_found_in_the_path() {
    let Some(world) = World::pod() else { return };
    let script = "d=$(dirname \"$0\"); ln -s PASST \"$d/passt\"; cd /; \
        PATH=\"$d:$PATH\"; export PATH; exec passt \"$@\"";
    let daemon = Daemon::start(&world, script, &[]);
    assert_works(&world, &daemon.socket());
    let name = fs::read_to_string(format!("/proc/{}/comm", daemon.pid)).unwrap();
    assert_eq!(name, "passt\n");
}

/// Numbers that nobody opened are soon those of our own descriptors, and must not be taken for the caller's.
#[test]
fn a_descriptor_that_is_not_there_is_an_error() {
    let Some(world) = World::pod() else { return };
    for fd in ["3", "4", "5", "6", "9", "77"] {
        let setup = Setup::new(&["--fd", fd]).background();
        let (status, stdout, stderr) = setup.run_to_end(&world.pod);
        assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "{fd}");
        let why = "Could not move --fd descriptor: Bad file descriptor\n";
        assert_eq!(stderr, why, "{fd}");
    }
}

/// As in a container whose root has no capabilities: it has nothing to give up.
#[test]
fn a_root_that_cannot_become_nobody_stays() {
    let Some(world) = World::pod() else { return };
    if !is_machines_root() {
        return;
    }
    let plain = "exec setpriv --bounding-set=-all --inh-caps=-all PASST \"$@\"";
    let daemon = Daemon::start(&world, plain, &[]);
    assert_works(&world, &daemon.socket());
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
    for field in ["CapEff:\t0000000000000000", "Seccomp:\t2"] {
        assert!(status.contains(field), "{status}");
    }
    drop(daemon);
    // Another user was asked for, not just thought better.
    let dir = TempDir::new();
    let (status, _, stderr) = Setup::new(&["--runas", "4242", "-s", "/nowhere/socket"])
        .binary(wrapper(dir.path(), plain))
        .background()
        .run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1), "{stderr}");
}

/// What a caller ignores is inherited, and would never be heard of.
#[test]
fn signals_that_the_caller_ignores_still_end_it() {
    let Some(world) = World::pod() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let script = "trap '' TERM QUIT; exec PASST \"$@\"";
        let daemon = Daemon::start(&world, script, &[]);
        daemon.signal(signal);
        daemon.expect_gone();
    }
}

#[test]
fn want_of_a_second_process_costs_the_news_of_resolvers_only() {
    let Some(world) = World::pod() else { return };
    if !is_machines_root() {
        return;
    }
    // Not a user of any other test: processes are counted by user.
    let script = "chown -R 4251 \"$(dirname \"$0\")\" \"$(dirname \"$3\")\"; \
        exec setpriv --reuid 4251 --regid 4251 --clear-groups sh -c 'ulimit -p 0; exec \"${0%/*}/passt\" \"$@\"' \"$0\" \"$@\"";
    let dir = TempDir::new();
    // Not every user may look into the folder it was built in.
    copy_program(binary().as_ref(), &dir.path().join("passt"));
    let mut translator = Setup::new(&[])
        .binary(wrapper(dir.path(), script))
        .start(&world.pod);
    translator.expect_log(
        "Changes of the resolver configuration will not be noticed: Resource temporarily unavailable",
    );
    assert_works(&world, translator.socket());
    translator.assert_alive();
}

#[test]
fn a_log_that_may_not_grow_is_no_reason_to_end() {
    let Some(world) = World::pod() else { return };
    let dir = TempDir::new();
    let log = dir.path().join("log");
    let mut translator = Setup::new(&["-l", log.to_str().unwrap()])
        .binary(wrapper(dir.path(), "ulimit -f 0; exec PASST \"$@\""))
        .start(&world.pod);
    assert_works(&world, translator.socket());
    translator.assert_alive();
    assert_eq!(fs::metadata(&log).unwrap().len(), 0);
}

#[test]
fn where_no_port_can_be_forwarded_that_is_said() {
    let Some(world) = World::pod() else { return };
    let mut translator = Setup::new(&["-t", "all", "-u", "all"])
        .limit_files(100)
        .start(&world.pod);
    translator.expect_log("No ports are forwarded: Too many open files\n");
    assert_works(&world, translator.socket());
    translator.assert_alive();
}

#[test]
fn the_way_to_the_background_needs_dev_null_and_says_so() {
    let Some(world) = World::pod() else { return };
    let dir = TempDir::new();
    let socket = dir.path().join("sock");
    let script = "mount -t tmpfs none /dev && exec PASST \"$@\"";
    let (status, _, stderr) = Setup::new(&["-s", socket.to_str().unwrap()])
        .binary(wrapper(dir.path(), script))
        .background()
        .run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    let why = "Failed to go to the background: No such file or directory";
    assert_eq!(last, why);
    assert!(!socket.exists());
}
