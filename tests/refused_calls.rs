//! System calls put into the mouth of a running process, as an intruder would: those that are not listed end it, paths lead
//! nowhere. The tracer's rights make this possible; the process itself has none.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    process::Command,
};

use lab::{
    LONG, Setup, Translator, World,
    janitor::{self, TempDir},
    translator::binary,
    wait_until,
};
use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

type Call = (&'static str, i64, [i64; 4]);

/// What became of a call.
#[derive(Debug, PartialEq)]
enum Outcome {
    Killed,
    Returned(i64),
}

/// A process that is not our child, stopped where it waits for events.
struct Seized {
    pid: Pid,
    ended: bool,
}

impl Seized {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.cast_signed());
        ptrace::attach(pid).unwrap();
        let seized = Self { pid, ended: false };
        assert!(matches!(seized.wait(), WaitStatus::Stopped(..)));
        seized
    }

    fn wait(&self) -> WaitStatus {
        waitpid(self.pid, Some(WaitPidFlag::__WALL)).unwrap()
    }

    /// Has it make a call, by the instruction that it waits in.
    fn call(&mut self, number: i64, arguments: [i64; 4]) -> Outcome {
        let before = ptrace::getregs(self.pid).unwrap();
        let [first, second, third, fourth] = arguments.map(i64::cast_unsigned);
        let mut registers = before;
        registers.rip -= 2;
        registers.rax = number.cast_unsigned();
        // Not in a call, so that none is begun again.
        registers.orig_rax = u64::MAX;
        (registers.rdi, registers.rsi) = (first, second);
        (registers.rdx, registers.r10) = (third, fourth);
        (registers.r8, registers.r9) = (u64::MAX, 0);
        ptrace::setregs(self.pid, registers).unwrap();
        for _ in ["before it", "after it"] {
            ptrace::syscall(self.pid, None).unwrap();
            assert!(matches!(self.wait(), WaitStatus::Stopped(..)));
        }
        let after = ptrace::getregs(self.pid).unwrap();
        if after.rax == registers.rax {
            // Rolled back, and the signal comes next.
            ptrace::cont(self.pid, None).unwrap();
            let end = self.wait();
            assert!(matches!(end, WaitStatus::Signaled(_, Signal::SIGSYS, _)));
            self.ended = true;
            return Outcome::Killed;
        }
        ptrace::setregs(self.pid, before).unwrap();
        Outcome::Returned(after.rax.cast_signed())
    }

    /// Puts a name where its stack is free. Returns where that is.
    fn write(&self, text: &str) -> i64 {
        let free = ptrace::getregs(self.pid).unwrap().rsp - 4096;
        let memory = format!("/proc/{}/mem", self.pid);
        let memory = OpenOptions::new().write(true).open(memory).unwrap();
        memory.write_all_at(text.as_bytes(), free).unwrap();
        memory.write_all_at(&[0], free + text.len() as u64).unwrap();
        free.cast_signed()
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, Some(WaitPidFlag::__WALL));
        }
        janitor::gone(self.pid.as_raw().cast_unsigned());
    }
}

/// A daemon that has gone to rest, with its folder.
fn daemon(world: &World) -> (Seized, TempDir) {
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (socket, pid_file) = (path("sock"), path("pid"));
    let setup = Setup::new(&["-s", &socket, "-P", &pid_file]).background();
    let (status, _, stderr) = setup.run_to_end(&world.pod);
    assert_eq!(status.code(), Some(0), "{stderr}");
    let pid = fs::read_to_string(&pid_file).unwrap();
    let pid = pid.trim().parse().unwrap();
    janitor::watch_pid(pid);
    at_rest(pid);
    (Seized::new(pid), dir)
}

/// Waits until a process waits for events.
fn at_rest(pid: u32) {
    let calls = [libc::SYS_epoll_wait, libc::SYS_poll];
    let waits = || {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let number = call.split(' ').next().and_then(|first| first.parse().ok());
        number.is_some_and(|number: i64| calls.contains(&number))
    };
    assert!(wait_until(LONG, waits), "process {pid} never rests");
}

const IN: i64 = libc::AF_INET as i64;
const STREAM: i64 = libc::SOCK_STREAM as i64;

/// What an intruder would want, and nobody may have.
const KILLED: &[Call] = &[
    ("execve", libc::SYS_execve, [0; 4]),
    ("execveat", libc::SYS_execveat, [0; 4]),
    ("fork", libc::SYS_fork, [0; 4]),
    ("vfork", libc::SYS_vfork, [0; 4]),
    ("clone", libc::SYS_clone, [libc::SIGCHLD as i64, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 4]),
    ("ptrace", libc::SYS_ptrace, [0; 4]),
    (
        "reading of others",
        libc::SYS_process_vm_readv,
        [1, 0, 0, 0],
    ),
    ("executable memory", libc::SYS_mmap, [0, 4096, 5, 0x22]),
    (
        "memory made executable",
        libc::SYS_mprotect,
        [0, 4096, 7, 0],
    ),
    ("a file in memory", libc::SYS_memfd_create, [0; 4]),
    ("a UNIX socket", libc::SYS_socket, [1, STREAM, 0, 0]),
    ("a packet socket", libc::SYS_socket, [17, 3, 0, 0]),
    ("a VM socket", libc::SYS_socket, [40, STREAM, 0, 0]),
    ("a cipher socket", libc::SYS_socket, [38, 5, 0, 0]),
    ("a raw socket", libc::SYS_socket, [IN, 3, 1, 0]),
    ("SCTP", libc::SYS_socket, [IN, STREAM, 132, 0]),
    ("multipath TCP", libc::SYS_socket, [IN, STREAM, 262, 0]),
    ("netfilter", libc::SYS_socket, [16, 3, 12, 0]),
    ("a pair of sockets", libc::SYS_socketpair, [1, STREAM, 0, 0]),
    ("ioctl", libc::SYS_ioctl, [0, libc::TIOCSTI as i64, 0, 0]),
    (
        "a lease",
        libc::SYS_fcntl,
        [0, libc::F_SETLEASE as i64, 0, 0],
    ),
    (
        "being dumpable",
        libc::SYS_prctl,
        [libc::PR_SET_DUMPABLE as i64, 1, 0, 0],
    ),
    ("capabilities", libc::SYS_capset, [0; 4]),
    ("another user", libc::SYS_setuid, [0; 4]),
    ("another namespace", libc::SYS_setns, [0; 4]),
    ("a new namespace", libc::SYS_unshare, [0x1000_0000, 0, 0, 0]),
    ("mount", libc::SYS_mount, [0; 4]),
    ("umount", libc::SYS_umount2, [0; 4]),
    ("chroot", libc::SYS_chroot, [0; 4]),
    ("signals for others", libc::SYS_kill, [1, 0, 0, 0]),
    ("removal of files", libc::SYS_unlink, [0; 4]),
    ("renaming", libc::SYS_rename, [0; 4]),
    ("links", libc::SYS_symlink, [0; 4]),
    ("bpf", libc::SYS_bpf, [0; 4]),
    ("io_uring", libc::SYS_io_uring_setup, [8, 0, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [0; 4]),
    ("keys", libc::SYS_keyctl, [0; 4]),
    ("performance counters", libc::SYS_perf_event_open, [0; 4]),
    ("the x32 way in", 0x4000_0000 | libc::SYS_getpid, [0; 4]),
];

#[test]
fn what_an_intruder_would_call_ends_the_process_that_serves() {
    let Some(world) = World::pod() else { return };
    for &(name, number, arguments) in KILLED {
        let (mut seized, _dir) = daemon(&world);
        assert_eq!(seized.call(number, arguments), Outcome::Killed, "{name}");
    }
}

#[test]
fn paths_lead_nowhere_for_the_process_that_serves() {
    let Some(world) = World::pod() else { return };
    let (mut seized, _dir) = daemon(&world);
    let root = seized.write("/");
    let here = i64::from(libc::AT_FDCWD);
    let missing = Outcome::Returned(-(Errno::ENOENT as i64));
    for (number, arguments) in [
        (libc::SYS_open, [root, 0, 0, 0]),
        (libc::SYS_openat, [here, root, 0, 0]),
        (libc::SYS_stat, [root, root, 0, 0]),
        (libc::SYS_statx, [here, root, 0, 0]),
        (libc::SYS_access, [root, 0, 0, 0]),
        (libc::SYS_readlink, [root, root, 1, 0]),
    ] {
        assert_eq!(seized.call(number, arguments), missing, "{number}");
    }
}

/// That the calls of the other tests are refused for what they are, and not for how they are made.
#[test]
fn what_is_listed_can_be_called() {
    let Some(world) = World::pod() else { return };
    let (mut seized, _dir) = daemon(&world);
    assert_eq!(seized.call(libc::SYS_getpid, [0; 4]), Outcome::Returned(1));
    for arguments in [
        [IN, STREAM, 0, 0],
        [libc::AF_INET6.into(), 2, 17, 0],
        [libc::AF_NETLINK.into(), 3, 0, 0],
    ] {
        let Outcome::Returned(fd) = seized.call(libc::SYS_socket, arguments) else {
            panic!("killed for {arguments:?}");
        };
        assert!(fd > 2, "{arguments:?}: {fd}");
    }
    let mapped = seized.call(libc::SYS_mmap, [0, 4096, 3, 0x22]);
    assert!(matches!(mapped, Outcome::Returned(1..)), "{mapped:?}");
}

/// Landlock is in the way of what the filter allows.
#[test]
fn the_watcher_reads_its_folders_and_does_nothing_else() {
    let Some(world) = World::pod() else { return };
    let watcher = || {
        let translator = Translator::start(&world.pod, &[]);
        let children = format!("/proc/{0}/task/{0}/children", translator.pid());
        let children = fs::read_to_string(children).unwrap();
        let pid = children.trim().parse().unwrap();
        at_rest(pid);
        (translator, Seized::new(pid))
    };
    let (_translator, mut seized) = watcher();
    let here = i64::from(libc::AT_FDCWD);
    let mut open = |path: &str| {
        let path = seized.write(path);
        seized.call(libc::SYS_openat, [here, path, 0, 0])
    };
    assert!(matches!(open("/etc/resolv.conf"), Outcome::Returned(3..)));
    let reached = ["/", "/proc/self/status", "/usr/bin/env"].map(&mut open);
    let sandbox = Command::new(binary()).arg("--print-sandbox").output();
    let sandbox = String::from_utf8(sandbox.unwrap().stdout).unwrap();
    if sandbox.contains("Landlock: ok") {
        let refused = [(); 3].map(|()| Outcome::Returned(-(Errno::EACCES as i64)));
        assert_eq!(reached, refused);
    } else {
        println!("not looked at: {sandbox}");
    }
    for change in [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC] {
        let (_translator, mut seized) = watcher();
        let path = seized.write("/etc/resolv.conf");
        let made = seized.call(libc::SYS_openat, [here, path, change.into(), 0]);
        assert_eq!(made, Outcome::Killed, "{change:#x}");
    }
    let internet = ("a socket", libc::SYS_socket, [IN, STREAM, 0, 0]);
    let connect = ("a connection", libc::SYS_connect, [0; 4]);
    for &(name, number, arguments) in KILLED.iter().chain([&internet, &connect]) {
        let (_translator, mut seized) = watcher();
        assert_eq!(seized.call(number, arguments), Outcome::Killed, "{name}");
    }
}
