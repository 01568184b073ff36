//! How the process starts and ends, what it leaves behind, and what a guest leaves behind in it: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use guest::{Guest, Peer, Udp, Wire, both, guest_addr};
use lab::{
    LONG, Setup, Translator, World, janitor,
    programs::wrapper,
    servers::{TcpServer, UdpEcho, accept, tcp_listener},
    wait_until,
    world::{BLACKHOLE4, INTERNET4, INTERNET6},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

#[test]
fn sigterm_and_sigquit_end_it_with_success() {
    let Some(world) = World::pod() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let mut translator = Translator::start(&world.pod, &[]);
        let _guest = translator.connect();
        // It listens before it is ready for signals.
        translator.idle_fd_count();
        translator.signal(signal);
        assert_eq!(translator.wait(LONG), 0, "{signal}");
    }
}

#[test]
fn a_closed_pipe_does_not_end_it() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &[]);
    translator.signal(Signal::SIGPIPE);
    assert!(!wait_until(Duration::from_millis(200), || translator.has_ended()));
}

/// A machine that is killed in the middle of everything.
#[test]
fn a_killed_guest_leaves_nothing_behind_and_the_next_one_works() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &[]);
    let idle = translator.idle_fd_count();
    for _ in 0..2 {
        let mut servers = Vec::new();
        let wire = Wire::new(translator.connect());
        for remote in both(INTERNET4, INTERNET6, 9) {
            let listener = tcp_listener(&world.outside, remote);
            let _echo = UdpEcho::start(&world.outside, remote);
            for port in 20_000..20_020 {
                let local = guest_addr(remote, port);
                let mut peer = Peer::connect(&wire, local, remote);
                peer.send_data(b"hello");
                peer.expect_acked();
                servers.push(accept(&listener));
                wire.send(&Udp::new(local, remote, b"hello").frame());
                wire.expect("echo", Udp::of_frame);
            }
        }
        // Some that have not come far.
        for port in 20_000..20_010 {
            let mut peer = Peer::new(
                &wire,
                guest_addr((BLACKHOLE4, 9), port),
                (BLACKHOLE4, 9).into(),
                1,
            );
            peer.send(guest::frame::SYN, &[]);
        }
        let busy = || translator.fd_count() >= idle + 80;
        assert!(
            wait_until(LONG, busy),
            "{} descriptors",
            translator.fd_count()
        );
        drop(wire);
        for mut server in servers {
            let mut said = Vec::new();
            match server.read_to_end(&mut said) {
                Ok(_) => {}
                Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
            }
            assert_eq!(said, b"hello");
        }
        translator.expect_fd_count(idle);
        let left = |name| world.pod.proc_net(name).len();
        let gone = wait_until(LONG, || left("udp") + left("udp6") == 2);
        assert!(gone, "{:?}", world.pod.proc_net("udp"));
    }
    let server = TcpServer::echo(&world.outside, (INTERNET4, 7));
    let mut guest = Guest::online(translator.connect(), 65_520);
    let connection = guest.connect(server.addr());
    guest.echo(connection, 1 << 20);
    translator.assert_alive();
}

#[test]
fn the_pid_file_names_the_process() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[]);
    let path = setup.dir().join("pid");
    // C45: longer than any process number.
    fs::write(&path, "123456789012345678901234567890\n").unwrap();
    let setup = setup.arg("--pid").arg(path.to_str().unwrap());
    let translator = setup.start(&world.pod);
    let pid = format!("{}\n", translator.pid());
    let written = || fs::read_to_string(&path).unwrap() == pid;
    assert!(wait_until(LONG, written), "{:?}", fs::read_to_string(&path));
}

/// The parent returns when a client may connect, and lets go of its output (libvirt reads it to the end).
#[test]
fn it_goes_to_the_background_when_it_is_ready() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[]).background();
    let dir = janitor::TempDir::new();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let setup = ["--socket", &path("sock"), "--pid", &path("pid")]
        .iter()
        .fold(setup, |setup, arg| setup.arg(arg));
    let (status, _, stderr) = setup.run_to_end(&world.pod);
    assert_eq!(status.code(), Some(0), "{stderr}");
    let pid: u32 = fs::read_to_string(path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    janitor::watch_pid(pid);
    let mode = fs::metadata(path("pid")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let server = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let wire = Wire::new(std::os::unix::net::UnixStream::connect(path("sock")).unwrap());
    let local = guest_addr(server.addr(), 5000);
    wire.send(&Udp::new(local, server.addr(), b"hello").frame());
    wire.expect("echo", Udp::of_frame);
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
    assert!(wire.closes(LONG));
    assert!(wait_until(LONG, || has_ended(pid)));
    janitor::gone(pid);
}

/// Whoever started it may want to unmount it; in a mount namespace of its own it has left it anyway.
#[test]
fn the_folder_it_was_started_from_is_free_where_there_are_no_namespaces() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[])
        .background()
        .forbid(libc::SYS_unshare, None, Errno::EPERM);
    let at = |name: &str| setup.dir().join(name).to_str().unwrap().to_owned();
    let (socket, pid) = (at("sock"), at("pid"));
    let mut setup = setup.arg("--socket").arg(&socket).arg("--pid").arg(&pid);
    let (status, _, stderr) = setup.run(&world.pod);
    assert_eq!(status.code(), Some(0), "{stderr}");
    let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    janitor::watch_pid(pid);
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(folder, Path::new("/"), "{stderr}");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
    assert!(wait_until(LONG, || has_ended(pid)));
    janitor::gone(pid);
}

/// Who was told to stop does not say that all went well, nor leave anybody serving.
#[test]
fn a_start_that_is_stopped_on_its_way_to_the_background_fails_and_leaves_nothing() {
    let Some(world) = World::pod() else { return };
    for (stop, may_kill) in [
        (Signal::SIGTERM, true),
        (Signal::SIGQUIT, true),
        (Signal::SIGINT, true),
        (Signal::SIGHUP, true),
        (Signal::SIGTERM, false),
        (Signal::SIGINT, false),
    ] {
        let setup = Setup::new(&[]);
        // Our own caller may ignore some.
        let script = "exec env --default-signal PASST \"$@\"";
        let heeding = wrapper(setup.dir(), script);
        let mut setup = setup.binary(heeding);
        if !may_kill {
            // As policies of SELinux have it.
            setup = setup.forbid(
                libc::SYS_kill,
                Some((1, Signal::SIGKILL as u64)),
                Errno::EACCES,
            );
        }
        let mut start = HeldUp::new(&world, setup);
        start.launcher.signal(stop);
        if !may_kill {
            start.go_on();
        }
        assert_eq!(start.launcher.wait(LONG), -(stop as i32));
        start.expect_nothing_left();
    }
}

/// Nobody but the new process can notice.
#[test]
fn a_start_that_is_killed_on_its_way_to_the_background_leaves_nothing() {
    let Some(world) = World::pod() else { return };
    let mut start = HeldUp::new(&world, Setup::new(&[]));
    start.launcher.signal(Signal::SIGKILL);
    assert_eq!(start.launcher.wait(LONG), -(Signal::SIGKILL as i32));
    start.go_on();
    start.expect_nothing_left();
}

/// As nohup(1) and shells do it.
#[test]
fn a_start_whose_caller_ignores_a_signal_goes_on_to_the_background() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[]);
    let ignoring = wrapper(setup.dir(), "trap '' INT HUP; exec PASST \"$@\"");
    let mut start = HeldUp::new(&world, setup.binary(ignoring));
    start.launcher.signal(Signal::SIGINT);
    start.launcher.signal(Signal::SIGHUP);
    start.go_on();
    assert_eq!(start.launcher.wait(LONG), 0);
    let alive = |pid: &&u32| !has_ended(**pid);
    assert_eq!(start.children.iter().filter(alive).count(), 2);
    for pid in &start.children {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
    start.expect_ended();
}

/// A start on its way to the background: the new process's number goes to a FIFO, and waits there for who reads.
struct HeldUp {
    launcher: Translator,
    full: File,
    /// The new process, and the one that watches resolv.conf.
    children: Vec<u32>,
}

impl HeldUp {
    fn new(world: &World, setup: Setup) -> Self {
        let pid = setup.dir().join("pid");
        let full = full_fifo(&pid);
        let setup = setup.background().arg("--pid").arg(pid.to_str().unwrap());
        let launcher = setup.try_start(&world.pod);
        let forked = wait_until(LONG, || children(launcher.pid()).len() == 2);
        let children = children(launcher.pid());
        assert!(forked, "{children:?}");
        children.iter().copied().for_each(janitor::watch_pid);
        Self {
            launcher,
            full,
            children,
        }
    }

    fn go_on(&mut self) {
        let _ = self.full.read(&mut [0; 8_192]).unwrap();
    }

    fn expect_ended(&self) {
        let ended = || self.children.iter().copied().all(has_ended);
        assert!(wait_until(LONG, ended));
        self.children.iter().copied().for_each(janitor::gone);
    }

    fn expect_nothing_left(&self) {
        self.expect_ended();
        assert!(!self.launcher.socket().exists());
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let list = list.split_whitespace();
    list.map(|pid| pid.parse().unwrap()).collect()
}

/// As a shell would have it: the start waits for who reads, or for a signal.
#[test]
fn a_start_that_waits_for_the_reader_of_a_fifo_can_be_stopped() {
    let Some(world) = World::pod() else { return };
    for option in ["--pid", "--pcap"] {
        let start = || {
            let setup = Setup::new(&[]);
            let path = setup.dir().join("fifo");
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
            let setup = setup.arg(option).arg(path.to_str().unwrap());
            (setup.start(&world.pod), path)
        };
        let (mut translator, _) = start();
        translator.signal(Signal::SIGTERM);
        assert_eq!(translator.wait(LONG), -(Signal::SIGTERM as i32), "{option}");
        assert!(!translator.socket().exists(), "{option}");
        let (mut translator, path) = start();
        let mut reader = File::open(path).unwrap();
        assert!(reader.read(&mut [0; 4]).unwrap() > 0, "{option}");
        translator.idle_fd_count();
        assert_eq!(translator.stop(), 0);
    }
}

/// As the first process of a container, which signals that it does not wait for do not end (pid_namespaces(7)).
#[test]
fn a_first_process_that_waits_for_the_reader_of_a_fifo_can_be_stopped() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[]);
    let path = setup.dir().join("fifo");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let first = wrapper(setup.dir(), "exec unshare --pid --fork PASST \"$@\"");
    let setup = setup.binary(first).arg("--pid").arg(path.to_str().unwrap());
    let mut outside = setup.start(&world.pod);
    let first = children(outside.pid())[0];
    janitor::watch_pid(first);
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(outside.wait(LONG), 128 + Signal::SIGTERM as i32);
    janitor::gone(first);
    assert!(!outside.socket().exists());
}

/// A FIFO that somebody holds open and nobody reads.
fn full_fifo(path: &Path) -> File {
    mkfifo(path, Mode::S_IRWXU | Mode::S_IRWXO).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    let mut open = File::options();
    open.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let mut fifo = open.open(path).unwrap();
    while fifo.write(&[0; 4096]).is_ok() {}
    fifo
}

/// Nobody may be there to reap what was orphaned.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn a_bad_option_is_one_line_and_creates_nothing() {
    let Some(world) = World::pod() else { return };
    let mut wrong = Vec::new();
    for (bad, want) in [
        (&["--mtu", "lots"][..], "Invalid MTU: lots"),
        (&["--mtu", "70000"], "too large"),
        (&["-a", "10.1.1"], "10.1.1"),
        (&["-a", "127.0.0.1"], "127.0.0.1"),
        (&["-n", "33"], "33"),
        (&["-g", "nowhere"], "Invalid gateway address: nowhere"),
        (&["-M", "9a:55"], "Invalid MAC address: 9a:55"),
        (&["-M", "01:00:5e:00:00:01"], "01:00:5e:00:00:01"),
        (&["-i", "nosuch0"], "nosuch0"),
        (&["-D", "here"], "here"),
        (&["--dns-forward", "127.0.0.1"], "127.0.0.1"),
        (&["--map-host-loopback", "x"], "x"),
        (&["-H", &"x".repeat(254)], "Invalid hostname"),
        (&["--fd", "foo"], "foo"),
        (&["extra"], "extra"),
    ] {
        let setup = Setup::new(bad);
        let dir = janitor::TempDir::new();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let options = ["-s", &path("s"), "-P", &path("p"), "-p", &path("c")];
        let setup = options.iter().fold(setup, |setup, arg| setup.arg(arg));
        let (status, stdout, stderr) = setup.run_to_end(&world.pod);
        let lines = stderr.lines();
        let lines = lines.filter(|line| !line.starts_with("Started as root"));
        let created: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        if status.code() != Some(1)
            || !stdout.is_empty()
            || !stderr.contains(want)
            || lines.count() != 1
            || !created.is_empty()
        {
            wrong.push(format!("{bad:?}: {status}, {created:?}, {stdout}{stderr}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What Podman looks for.
#[test]
fn an_unknown_option_is_named() {
    let Some(world) = World::pod() else { return };
    let (status, _, stderr) = Setup::new(&["--frobnicate"]).run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1));
    assert!(
        stderr.contains("unrecognized option '--frobnicate'"),
        "{stderr}"
    );
}
