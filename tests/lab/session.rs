//! A session daemon of the real libvirt with its own folders, as virt-launcher runs it, with our binary as the `passt` in its PATH.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use nix::unistd::Pid;

use super::{
    Host, LONG, PATIENCE,
    janitor::{self, TempDir},
    translator::{RESOLV_CONF, binary},
    wait_until,
};

/// virt-launcher's user, who need not exist on this machine.
const UID: u32 = 107;

/// Where each daemon, and all that it starts, finds its folder.
pub const HERE: &str = "/mnt";

/// A daemon on a host, in a room of its own.
#[derive(Debug)]
pub struct Session {
    daemon: Child,
    dir: TempDir,
}

impl Session {
    /// For machines whose first program is `init`. `None`, with a word about it, where libvirt or a part of the guest is
    /// missing.
    pub fn start(host: &Host, init: &str) -> Option<Self> {
        let dir = TempDir::new();
        if let Some(reason) = furnish(dir.path(), init) {
            println!("skipped: {reason}");
            return None;
        }
        let mut command = Command::new("unshare");
        // All that libvirt starts ends with the room.
        command
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "sh", "-c", ROOM])
            .arg(dir.path())
            .args(libvirt_user(dir.path()))
            .arg("libvirtd")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let daemon = host.run(|| command.spawn().expect("unshare(1)"));
        janitor::watch_pid(daemon.id());
        let mut session = Self { daemon, dir };
        let up = wait_until(LONG, || {
            session.socket().exists() && session.virsh(&["version"]).status.success()
                || session.daemon.try_wait().is_ok_and(|ended| ended.is_some())
        });
        assert!(up && session.socket().exists(), "{}", session.log());
        Some(session)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("run/libvirt/libvirt-sock")
    }

    /// How libvirt calls it.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///session?socket={}", self.socket().display())
    }

    /// Where sockets of translators lie.
    pub fn passt_folder(&self) -> PathBuf {
        self.dir().join("run/libvirt/qemu/run/passt")
    }

    /// What libvirt and the translator have logged.
    pub fn log(&self) -> String {
        let text = |name| fs::read_to_string(self.dir().join(name)).unwrap_or_default();
        text("libvirtd.log") + &text("passt.log")
    }

    /// Runs virsh(1) as the daemon's user.
    pub fn virsh(&self, args: &[&str]) -> Output {
        let words = libvirt_user(self.dir());
        Command::new(&words[0])
            .args(&words[1..])
            .args(["virsh", "-c", &self.uri()])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("virsh(1)")
    }

    /// The same for what must not fail.
    pub fn order(&self, args: &[&str]) {
        let output = self.virsh(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}\n{}", self.log());
    }

    /// Writes a domain, and tells where.
    pub fn write(&self, xml: &str) -> String {
        let path = self.dir().join("domain.xml");
        fs::write(&path, xml).expect("domain.xml");
        path.to_str().expect("UTF-8").to_owned()
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.dir().join("console")).unwrap_or_default()
    }

    pub fn expect_console(&self, text: &str) {
        let said = wait_until(PATIENCE, || self.console().contains(text));
        assert!(said, "{text:?}\n{}\n{}", self.console(), self.log());
    }

    pub fn expect_log(&self, text: &str) {
        let said = wait_until(PATIENCE, || self.log().contains(text));
        assert!(said, "{text:?}\n{}", self.log());
    }

    /// The one translator: its process and its command line.
    pub fn translator(&self) -> (Pid, Vec<String>) {
        let mut all = self.translators();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Processes whose program is `passt` and whose socket is ours.
    pub fn translators(&self) -> Vec<(Pid, Vec<String>)> {
        let ours = self.dir().to_str().expect("UTF-8");
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

impl Drop for Session {
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

/// Fills the folder with all that daemon and guest need; otherwise says what is missing.
fn furnish(dir: &Path, init: &str) -> Option<String> {
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
        .env("INIT", root.join(init))
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
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("uuid");
    // Without a log daemon of its own.
    write("config/libvirt/qemu.conf", "stdio_handler = \"file\"\n");
    write(
        "config/libvirt/libvirtd.conf",
        &format!(
            "log_outputs = \"3:file:{}\"\nhost_uuid = \"{}\"\n",
            log.display(),
            uuid.trim()
        ),
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

/// Makes user, group and the pod's resolver known, names the host and runs the daemon: $0 is our folder, the rest its command
/// line. The shell stays: it is the room's first process, which reaps orphans. A change of user would part it from its
/// parent's death.
const ROOM: &str = r#"
PATH=$PATH:/usr/sbin:/sbin
mount --bind "$0/passwd" /etc/passwd || exit
mount --bind "$0/group" /etc/group || exit
mount --bind "$0/resolv.conf" /etc/resolv.conf || exit
mount --bind "$0" /mnt || exit
echo "${0##*/}" >/proc/sys/kernel/hostname || exit
"$@" &
wait
"#;
