//! The real libvirt as caller: a session daemon with its own folders, as virt-launcher runs it, starts a QEMU machine (TCG,
//! Debian's kernel, busybox) with our binary as the `passt` in its PATH.

use std::{
    env, fs,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::lab::{
    Host, LONG, World,
    janitor::{self, TempDir},
    traffic::expect_refusal,
    translator::{RESOLV_CONF, binary},
    wait_until,
    world::{INTERNET4, POD4},
};

/// virt-launcher's user, who need not exist on this machine.
const UID: u32 = 107;

/// A machine without hardware acceleration boots in a few seconds; QEMU comes back to a new translator after five.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the ports of the interface below come to.
const TCP_PORTS: &str = "22,18080:8080,18100-18110:8100-8110,~18105";

/// Where the guest listens; of these 8105 is behind an excluded port.
const SERVED: &str = "22 53 8080 8100 8105 8110";

#[test]
fn a_machine_of_libvirts_is_online_and_its_ports_are_forwarded() {
    let Some(lab) = Lab::new() else { return };
    lab.create("");
    let argv = lab.translator().1;
    let run = lab
        .dir
        .path()
        .join("run/libvirt/qemu/run/passt/1-guest-net0");
    let run = run.display();
    let log = lab.dir.path().join("passt.log");
    assert_eq!(
        argv.join(" "),
        format!(
            "passt --one-off --socket {run}.socket --pid {run}-passt.pid --interface eth0 --log-file {} \
             --tcp-ports {TCP_PORTS} --tcp-ports 127.0.0.1/15353:53",
            log.display()
        )
    );
    lab.expect_console("guest: leased 10.233.70.50/24");
    lab.expect_console("guest: internet answers");
    lab.expect_forwarded();
    for excluded in [18_105, 18_099, 18_111, 8080] {
        expect_refusal(&lab.world.outside, (POD4, excluded));
    }
    // Only for the host itself.
    lab.expect_port(&lab.world.pod, Ipv4Addr::LOCALHOST, 15_353, 53);
    expect_refusal(&lab.world.outside, (POD4, 15_353));
    lab.destroy();
}

/// KubeVirt's way from 1.6 on.
#[test]
fn a_machine_that_shares_its_memory_is_online_and_its_ports_are_forwarded() {
    let Some(lab) = Lab::with("vhostuser") else {
        return;
    };
    lab.create("");
    let argv = lab.translator().1.join(" ");
    assert!(
        argv.starts_with("passt --vhost-user --one-off --socket "),
        "{argv}"
    );
    lab.expect_console("guest: leased 10.233.70.50/24");
    lab.expect_console("guest: internet answers");
    lab.expect_forwarded();
    lab.destroy();
}

#[test]
#[ignore = "takes longer than ten seconds"]
fn libvirt_starts_a_killed_translator_anew_and_the_guest_stays_online() {
    for kind in ["user", "vhostuser"] {
        survives_a_kill(kind);
    }
}

fn survives_a_kill(kind: &'static str) {
    let Some(lab) = Lab::with(kind) else { return };
    if !lab.reconnects() {
        println!("skipped: this QEMU does not reconnect");
        return;
    }
    lab.create("");
    lab.expect_console("guest: internet answers");
    lab.expect_forwarded();
    let (pid, argv) = lab.translator();
    kill(pid, Signal::SIGKILL).expect("kill");
    let anew = wait_until(PATIENCE, || {
        lab.translators()
            .iter()
            .any(|(other, args)| *other != pid && *args == argv)
    });
    assert!(anew, "{:?}\n{}", lab.translators(), lab.log());
    // QEMU and the guest are the same; both ways work again.
    lab.expect_forwarded();
    let before = lab.console().lines().count();
    let answers = || {
        let console = lab.console();
        let mut since = console.lines().skip(before);
        since.any(|line| line.ends_with("internet answers"))
    };
    assert!(wait_until(PATIENCE, answers), "{}", lab.console());
    assert_eq!(lab.console().matches("guest: leased").count(), 1);
    lab.destroy();
}

#[test]
fn addresses_of_its_own_reach_the_guest() {
    let Some(lab) = Lab::new() else { return };
    lab.create("<ip family='ipv4' address='10.0.2.2' prefix='24'/><ip family='ipv6' address='fd10:0:2::2'/>");
    let argv = lab.translator().1.join(" ");
    let own = "--address 10.0.2.2 --netmask 24 --address fd10:0:2::2";
    assert!(argv.contains(own), "{argv}");
    lab.expect_console("guest: leased 10.0.2.2/24");
    lab.expect_console("guest: internet answers");
    lab.expect_forwarded();
    lab.destroy();
}

/// What it says on stderr is all that users see.
#[test]
fn a_port_that_is_taken_fails_the_start_with_a_reason() {
    let Some(lab) = Lab::new() else { return };
    let _taken = super::lab::servers::tcp_listener(&lab.world.pod, (POD4, 18_080));
    let output = lab.virsh(&["create", &lab.domain("")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "started");
    assert!(said.contains("18080"), "{said}");
    assert!(said.contains("Address already in use"), "{said}");
    lab.assert_nothing_left();
}

/// A session daemon in the pod.
struct Lab {
    daemon: Child,
    dir: TempDir,
    world: World,
    /// Of the interface: `user`, a stream of frames, or `vhostuser`.
    kind: &'static str,
}

impl Lab {
    /// `None`, with a word about it, where libvirt or a part of the guest is missing.
    fn new() -> Option<Self> {
        Self::with("user")
    }

    /// The same, with an interface of this type.
    fn with(kind: &'static str) -> Option<Self> {
        let world = World::pod()?;
        world.pod.allow_low_ports();
        let dir = TempDir::new();
        if let Some(reason) = furnish(dir.path()) {
            println!("skipped: {reason}");
            return None;
        }
        let mut command = Command::new("unshare");
        // All that libvirt starts ends with the room.
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", ROOM])
            .arg(dir.path())
            .args(libvirt_user(dir.path()))
            .arg("libvirtd")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let daemon = world.pod.run(|| command.spawn().expect("unshare(1)"));
        janitor::watch_pid(daemon.id());
        let mut lab = Self {
            daemon,
            dir,
            world,
            kind,
        };
        let up = wait_until(LONG, || {
            lab.socket().exists() && lab.virsh(&["version"]).status.success()
                || lab.daemon.try_wait().is_ok_and(|ended| ended.is_some())
        });
        assert!(up && lab.socket().exists(), "{}", lab.log());
        Some(lab)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/libvirt/libvirt-sock")
    }

    /// What libvirt and the translator have logged.
    fn log(&self) -> String {
        let text = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        text("libvirtd.log") + &text("passt.log")
    }

    /// Runs virsh(1) as the daemon's user.
    fn virsh(&self, args: &[&str]) -> Output {
        let uri = format!("qemu+unix:///session?socket={}", self.socket().display());
        let words = libvirt_user(self.dir.path());
        Command::new(&words[0])
            .args(&words[1..])
            .args(["virsh", "-c", &uri])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("virsh(1)")
    }

    /// Whether this QEMU's `-netdev stream` can reconnect: from 8.0 on.
    fn reconnects(&self) -> bool {
        let version = self.virsh(&["version"]).stdout;
        let version = String::from_utf8_lossy(&version).into_owned();
        let line = version
            .lines()
            .find(|line| line.contains("Running hypervisor"));
        let major = line.and_then(|line| line.split("QEMU ").nth(1)?.split('.').next());
        major
            .and_then(|n| n.parse::<u32>().ok())
            .expect("a version")
            >= 8
    }

    /// Writes the domain, with `ip` in its interface, and tells where.
    fn domain(&self, ip: &str) -> String {
        let dir = self.dir.path().display();
        let kind = self.kind;
        let memory = if kind == "vhostuser" {
            "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
        } else {
            ""
        };
        let xml = format!(
            "<domain type='qemu'>
               <name>guest</name>
               <memory unit='MiB'>192</memory>
               {memory}
               <os>
                 <type arch='x86_64' machine='pc'>hvm</type>
                 <kernel>{dir}/kernel</kernel>
                 <initrd>{dir}/initramfs</initrd>
                 <cmdline>console=ttyS0 quiet panic=-1 internet={INTERNET4} ports=\"{SERVED}\"</cmdline>
               </os>
               <cpu mode='maximum'/>
               <devices>
                 <serial type='file'><source path='{dir}/console'/></serial>
                 <memballoon model='none'/>
                 <interface type='{kind}'>
                   <source dev='eth0'/>
                   <mac address='52:54:00:12:34:56'/>
                   <model type='virtio'/>
                   <backend type='passt' logFile='{dir}/passt.log'/>
                   {ip}
                   <portForward proto='tcp'>
                     <range start='22'/>
                     <range start='18080' to='8080'/>
                     <range start='18100' end='18110' to='8100'/>
                     <range start='18105' exclude='yes'/>
                   </portForward>
                   <portForward proto='tcp' address='127.0.0.1'>
                     <range start='15353' to='53'/>
                   </portForward>
                 </interface>
               </devices>
             </domain>"
        );
        let path = self.dir.path().join("domain.xml");
        fs::write(&path, xml).expect("domain.xml");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn create(&self, ip: &str) {
        let output = self.virsh(&["create", &self.domain(ip)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", self.log());
    }

    /// Takes the plug, which must leave neither process nor file.
    fn destroy(&self) {
        let output = self.virsh(&["destroy", "guest"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        self.assert_nothing_left();
        // That the machine cannot look up its own name is no affair of ours.
        for line in self.log().lines().filter(|l| !l.contains("virGetHostname")) {
            assert!(!line.contains("warning :"), "{line}");
        }
    }

    fn assert_nothing_left(&self) {
        let gone = wait_until(LONG, || self.translators().is_empty());
        assert!(gone, "{:?}", self.translators());
        let folder = self.dir.path().join("run/libvirt/qemu/run/passt");
        let files = || -> Vec<_> { fs::read_dir(&folder).expect("passt").collect() };
        // This libvirt leaves socket and PID file of this type behind, whoever made them.
        let left = || self.kind == "user" && !files().is_empty();
        assert!(wait_until(LONG, || !left()), "{:?}", files());
    }

    fn console(&self) -> String {
        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }

    fn expect_console(&self, text: &str) {
        let said = wait_until(PATIENCE, || self.console().contains(text));
        assert!(said, "{text:?}\n{}\n{}", self.console(), self.log());
    }

    /// Every forwarded port leads to its server in the guest, from outside.
    fn expect_forwarded(&self) {
        for (port, served) in [(22, 22), (18_080, 8080), (18_100, 8100), (18_110, 8110)] {
            self.expect_port(&self.world.outside, POD4, port, served);
        }
    }

    fn expect_port(&self, from: &Host, addr: Ipv4Addr, port: u16, served: u16) {
        let mut last = Ok(String::new());
        let served = format!("guest port {served}\n");
        let right = wait_until(PATIENCE, || {
            last = hear(from, (addr, port).into());
            last.as_ref().is_ok_and(|said| *said == served)
        });
        assert!(
            right,
            "{addr}:{port}: {last:?}\n{}\n{}",
            self.console(),
            self.log()
        );
    }

    /// The one translator: its process and its command line.
    fn translator(&self) -> (Pid, Vec<String>) {
        let mut all = self.translators();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Processes whose program is `passt` and whose socket is ours.
    fn translators(&self) -> Vec<(Pid, Vec<String>)> {
        let ours = self.dir.path().to_str().expect("UTF-8");
        let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
            let path = entry.ok()?.path();
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            let text = fs::read_to_string(path.join("cmdline")).ok()?;
            let argv: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
            let named = Path::new(argv.first()?).file_name()? == "passt";
            (named && text.contains(ours)).then_some((Pid::from_raw(pid), argv))
        });
        processes.collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Its child, the room's first process, goes with it, and all others with that.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        janitor::gone(self.daemon.id());
        if thread::panicking() {
            eprintln!("--- libvirt's log\n{}", self.log());
        }
    }
}

/// What the server at `remote` says.
fn hear(host: &Host, remote: SocketAddr) -> io::Result<String> {
    let pause = Duration::from_secs(5);
    let mut stream = host.run(|| TcpStream::connect_timeout(&remote, pause))?;
    stream.set_read_timeout(Some(pause))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Fills the folder with all that daemon and guest need; otherwise says what is missing.
fn furnish(dir: &Path) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    for tool in [
        "libvirtd",
        "virsh",
        "qemu-system-x86_64",
        "setpriv",
        "busybox",
        "cpio",
    ] {
        if !env::split_paths(&path).any(|folder| folder.join(tool).exists()) {
            return Some(format!("{tool} is not installed"));
        }
    }
    let version = Command::new("libvirtd")
        .arg("--version")
        .env("PATH", &path)
        .output();
    let version = String::from_utf8_lossy(&version.expect("libvirtd").stdout).into_owned();
    if version.contains(" 9.0.") {
        return Some(
            "this libvirt is older than 9.1, which first let passt go to the background".into(),
        );
    }
    if !Command::new("setpriv")
        .args(user())
        .arg("true")
        .status()
        .is_ok_and(|s| s.success())
    {
        return Some(format!("cannot become user {UID}"));
    }
    let Ok(kernel) = Command::new(root.join("contrib/demo/kernel")).output() else {
        return Some("bash is not installed".into());
    };
    let kernel = String::from_utf8_lossy(&kernel.stdout).into_owned();
    let Some((image, modules)) = kernel.trim().split_once('\n') else {
        return Some("no guest kernel (contrib/setup.sh unpacks one)".into());
    };
    fs::copy(image, dir.join("kernel")).expect("kernel");
    let made = Command::new(root.join("contrib/demo/image"))
        .env("INIT", root.join("tests/labs/libvirt-init"))
        .args([modules, dir.join("initramfs").to_str().expect("UTF-8")])
        .status()
        .expect("contrib/demo/image");
    assert!(made.success(), "contrib/demo/image");

    for folder in ["home", "run", "bin", "config/libvirt"] {
        fs::create_dir_all(dir.join(folder)).expect(folder);
    }
    fs::copy(binary(), dir.join("bin/passt")).expect("copy the binary");
    let log = dir.join("libvirtd.log");
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).expect(name);
    // Without a log daemon of its own.
    write("config/libvirt/qemu.conf", "stdio_handler = \"file\"\n");
    write(
        "config/libvirt/libvirtd.conf",
        &format!("log_outputs = \"3:file:{}\"\n", log.display()),
    );
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    write("passwd", &format!("{users}virt:x:{UID}:{UID}::/:/bin/sh\n"));
    let groups = fs::read_to_string("/etc/group").expect("/etc/group");
    write("group", &format!("{groups}virt:x:{UID}:\n"));
    write("resolv.conf", RESOLV_CONF);
    for name in ["kernel", "initramfs"] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644)).expect(name);
    }
    for name in ["", "home", "run", "config", "config/libvirt"] {
        chown(dir.join(name), Some(UID), Some(UID)).expect("chown");
    }
    None
}

/// Options of setpriv(1).
fn user() -> [String; 5] {
    let id = UID.to_string();
    ["--reuid", &id, "--regid", &id, "--clear-groups"].map(str::to_owned)
}

/// How a command line begins whose program runs as libvirt's user, with our folders and our binary.
fn libvirt_user(dir: &Path) -> Vec<String> {
    let dir = dir.display();
    let mut words = vec!["setpriv".to_owned()];
    words.extend(user());
    words.extend(["env", "-i"].map(str::to_owned));
    words.extend([
        format!("PATH={dir}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        format!("HOME={dir}/home"),
        format!("XDG_RUNTIME_DIR={dir}/run"),
        format!("XDG_CONFIG_HOME={dir}/config"),
        format!("XDG_CACHE_HOME={dir}/home/cache"),
    ]);
    words
}

/// Makes user and group known, the pod's resolver too, and runs the daemon: $0 is our folder, the rest its command line. The shell
/// stays: it is the room's first process, which reaps orphans, and a change of user would part it from its parent's death.
const ROOM: &str = r#"
PATH=$PATH:/usr/sbin:/sbin
mount --bind "$0/passwd" /etc/passwd || exit
mount --bind "$0/group" /etc/group || exit
mount --bind "$0/resolv.conf" /etc/resolv.conf || exit
"$@" &
wait
"#;
