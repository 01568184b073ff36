//! `passt-repair` with real connections, seen from passt's end of its socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use lab::{Host, LONG, QUIET, janitor, programs::copy_program, uninterrupted, wait_until};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt::TcpRepair},
    },
    unistd::{Pid, Uid},
};
use passt_rs::sys::repair::send_with;
use socket2::{Domain, SockAddr, Socket, Type};

/// A folder with a socket in it, where passt would listen.
struct Passt {
    folder: PathBuf,
    listener: UnixListener,
}

impl Passt {
    fn new(name: &str) -> Self {
        let folder = folder(name);
        let listener = UnixListener::bind(folder.join("vm.socket.repair")).unwrap();
        Self { folder, listener }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("vm.socket.repair")
    }

    fn accept(&self) -> UnixStream {
        self.listener.set_nonblocking(true).unwrap();
        let mut client = None;
        assert!(wait_until(LONG, || {
            client = self.listener.accept().ok();
            client.is_some()
        }));
        let (client, _) = client.unwrap();
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("passt-repair-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    folder
}

fn start(args: &[&str]) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_passt-repair"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    janitor::watch_pid(child.id());
    child
}

/// Exit code and what was said to standard error.
fn end(mut child: Child) -> (i32, String) {
    assert!(wait_until(LONG, || child.try_wait().unwrap().is_some()));
    janitor::gone(child.id());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (
        status.code().expect("no signal"),
        String::from_utf8(stderr).unwrap(),
    )
}

fn run(args: &[&str]) -> (i32, String) {
    end(start(args))
}

/// Connections of this host to itself; both ends of each.
fn connections(count: usize) -> Vec<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (0..count)
        .flat_map(|_| {
            let client = TcpStream::connect(address).unwrap();
            [client, listener.accept().unwrap().0]
        })
        .collect()
}

fn raw(sockets: &[TcpStream]) -> Vec<RawFd> {
    sockets.iter().map(AsRawFd::as_raw_fd).collect()
}

/// The answer to a command; `None` if the connection ended instead.
fn order(passt: &UnixStream, command: i8, sockets: &[RawFd]) -> Option<i8> {
    send_with(passt.as_fd(), command.cast_unsigned(), sockets).unwrap();
    let mut answer = [0; 2];
    match uninterrupted(|| (&mut &*passt).read(&mut answer)) {
        Ok(1) => Some(answer[0].cast_signed()),
        Ok(0) => None,
        Ok(_) => panic!("more than one octet"),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

fn in_repair(socket: &TcpStream) -> bool {
    getsockopt(socket, TcpRepair).unwrap() != 0
}

fn root() -> bool {
    let root = Uid::current().is_root() && Host::new().is_ok();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Regressions M09 and M10.
#[test]
fn up_to_253_sockets_are_set_by_one_command_and_answered_once() {
    if !root() {
        return;
    }
    let passt = Passt::new("order");
    let helper = start(&[passt.path().to_str().unwrap()]);
    let client = passt.accept();
    let ends = connections(127);
    for (command, repair) in [(1, true), (0, false), (1, true), (-1, false)] {
        assert_eq!(order(&client, command, &raw(&ends[..253])), Some(command));
        assert!(ends[..253].iter().all(|end| in_repair(end) == repair));
        assert!(!in_repair(&ends[253]), "nobody asked for that");
    }
    // They still talk.
    (&ends[0]).write_all(b"x").unwrap();
    let mut octet = [0];
    (&ends[1]).read_exact(&mut octet).unwrap();
    drop(client);
    assert_eq!(end(helper), (0, String::new()));
}

#[test]
fn what_makes_no_sense_ends_the_connection() {
    if !root() {
        return;
    }
    let file = fs::File::open("/dev/null").unwrap();
    let sockets = connections(1);
    let bad: [(i8, Vec<RawFd>, &str); 3] = [
        (5, raw(&sockets), "Unsupported command 0x05\n"),
        (1, Vec::new(), "Command without sockets\n"),
        (
            1,
            vec![sockets[0].as_raw_fd(), file.as_raw_fd()],
            "Setting TCP_REPAIR to 1 on socket: Socket operation on non-socket\n",
        ),
    ];
    for (command, list, words) in bad {
        let passt = Passt::new("nonsense");
        let helper = start(&[passt.path().to_str().unwrap()]);
        let client = passt.accept();
        assert_eq!(order(&client, command, &list), None);
        assert_eq!(end(helper), (1, words.to_owned()));
    }
}

/// Regression M11.
#[test]
fn a_socket_that_appears_in_a_folder_is_found() {
    if !root() {
        return;
    }
    let folder = folder("appear");
    // Left behind by somebody who is gone; another thing by that name; another name.
    drop(UnixListener::bind(folder.join("old.socket.repair")).unwrap());
    fs::write(folder.join("file.repair"), "").unwrap();
    let _other = UnixListener::bind(folder.join("vm.socket")).unwrap();
    let mut helper = start(&[folder.to_str().unwrap()]);
    thread::sleep(QUIET);
    assert!(helper.try_wait().unwrap().is_none());
    for n in 0..100 {
        fs::write(folder.join(format!("noise{n}.repair")), "").unwrap();
    }
    let listener = UnixListener::bind(folder.join("vm.socket.repair")).unwrap();
    let passt = Passt {
        folder: folder.clone(),
        listener,
    };
    let client = passt.accept();
    let ends = connections(1);
    assert_eq!(order(&client, 1, &raw(&ends)), Some(1));
    drop(client);
    assert_eq!(end(helper), (0, String::new()));
    // One that is there already is not waited for.
    let helper = start(&[folder.to_str().unwrap()]);
    drop(passt.accept());
    assert_eq!(end(helper), (0, String::new()));
}

/// The kernel keeps so many events of a folder for whoever does not read them, and then none.
#[test]
fn a_socket_that_appears_among_too_many_events_is_found() {
    if !root() {
        return;
    }
    let folder = folder("overflow");
    let helper = start(&[folder.to_str().unwrap()]);
    thread::sleep(QUIET);
    let signal = |signal| kill(Pid::from_raw(helper.id().cast_signed()), signal).unwrap();
    signal(Signal::SIGSTOP);
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let (one, other) = (folder.join("one"), folder.join("other"));
    fs::write(&one, "").unwrap();
    for _ in 0..=most.trim().parse::<u32>().unwrap() / 2 {
        fs::rename(&one, &other).unwrap();
        fs::rename(&other, &one).unwrap();
    }
    let listener = UnixListener::bind(folder.join("vm.socket.repair")).unwrap();
    signal(Signal::SIGCONT);
    let passt = Passt { folder, listener };
    drop(passt.accept());
    assert_eq!(end(helper), (0, String::new()));
}

/// Its owner was between bind(2) and listen(2) when we looked; another was left behind.
#[test]
fn a_socket_in_a_folder_may_be_listened_at_later() {
    if !root() {
        return;
    }
    for late in [100, 1500] {
        let folder = folder("later");
        drop(UnixListener::bind(folder.join("old.socket.repair")).unwrap());
        let early = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let path = folder.join("vm.socket.repair");
        early.bind(&SockAddr::unix(path).unwrap()).unwrap();
        let helper = start(&[folder.to_str().unwrap()]);
        thread::sleep(Duration::from_millis(late));
        early.listen(1).unwrap();
        let passt = Passt {
            folder,
            listener: OwnedFd::from(early).into(),
        };
        drop(passt.accept());
        assert_eq!(end(helper), (0, String::new()));
    }
}

#[test]
fn errors_are_one_line_and_have_upstreams_exit_codes() {
    let name = env!("CARGO_BIN_EXE_passt-repair");
    let usage = (2, format!("Usage: {name} PATH\n"));
    assert_eq!(run(&[]), usage);
    assert_eq!(run(&["a", "b"]), usage);
    let missing = "Can't stat /nonexistent: No such file or directory\n";
    assert_eq!(run(&["/nonexistent"]), (1, missing.to_owned()));
    let file = (2, "/etc/passwd is not a socket\n".to_owned());
    assert_eq!(run(&["/etc/passwd"]), file);
    assert_eq!(run(&["--help"]), (0, String::new()));
    let stale = folder("stale");
    let path = stale.join("s.repair");
    drop(UnixListener::bind(&path).unwrap());
    let (code, line) = run(&[path.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(line.ends_with("s.repair: Connection refused\n"), "{line}");
    fs::remove_dir_all(stale).unwrap();
}

#[test]
fn a_helper_without_the_right_says_so() {
    if !root() {
        return;
    }
    let passt = Passt::new("right");
    fs::set_permissions(
        passt.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    // Where it lies not everybody can look.
    let copy = passt.folder.join("helper");
    copy_program(env!("CARGO_BIN_EXE_passt-repair").as_ref(), &copy);
    let helper = Command::new(copy)
        .arg(passt.path())
        .uid(65_534)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let client = passt.accept();
    assert_eq!(order(&client, 1, &raw(&connections(1))), None);
    let lines = "CAP_NET_ADMIN is missing: connections cannot be put into repair mode\n\
                 Setting TCP_REPAIR to 1 on socket: Operation not permitted\n";
    assert_eq!(end(helper), (1, lines.to_owned()));
}

#[test]
fn a_helper_at_work_has_one_capability_and_no_files() {
    if !root() {
        return;
    }
    let passt = Passt::new("sandbox");
    let helper = start(&[passt.path().to_str().unwrap()]);
    let client = passt.accept();
    assert_eq!(order(&client, 1, &raw(&connections(1))), Some(1));
    let status = fs::read_to_string(format!("/proc/{}/status", helper.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    assert_eq!(field("CapEff:"), "0000000000001000");
    assert_eq!(field("CapPrm:"), "0000000000001000");
    assert_eq!(field("CapInh:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    drop(client);
    assert_eq!(end(helper), (0, String::new()));
}
