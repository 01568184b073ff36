//! Start-up under the conditions that callers make: closed descriptors, other users, leftovers, a system log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use guest::{Udp, Wire, guest_addr};
use lab::{
    LONG, Setup, Translator, World,
    janitor::{self, TempDir},
    servers::UdpEcho,
    translator::binary,
    wait_until,
    world::INTERNET4,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

/// A shell script that does something before it becomes the binary, whose name it writes PASST.
fn wrapper(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("wrapper");
    let script = script.replace("PASST", binary().to_str().unwrap());
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

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

    fn expect_gone(&self) {
        let stat = || fs::read_to_string(format!("/proc/{}/stat", self.pid));
        let gone = || stat().map_or(true, |stat| stat.contains(") Z "));
        assert!(wait_until(LONG, gone));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL);
        janitor::gone(self.pid);
    }
}

/// Regressions C06 and T88, and consumers' row 23: sockets must not land on the numbers of standard descriptors.
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
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
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

/// Regressions C48, S02 and S08; consumers' row 24.
#[test]
fn what_takes_roots_rights_is_open_before_they_are_given_up() {
    let Some(world) = World::pod() else { return };
    if !Uid::current().is_root()
        || !fs::read_to_string("/proc/self/uid_map")
            .unwrap()
            .contains("4294967295")
    {
        println!("skipped: needs the machine's root");
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
            let len = log.recv(&mut datagram).expect("a message");
            said.push(String::from_utf8_lossy(&datagram[..len]).into_owned());
        }
        said
    });
    let daemon = Daemon::start(&world, &script, &[]);
    let client = UnixStream::connect(daemon.socket()).unwrap();
    let said = reading.join().expect("the system log");
    assert!(
        said.iter()
            .all(|line| line.starts_with("<30>passt: ") || line.starts_with("<28>passt: "))
    );
    drop(client);
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
