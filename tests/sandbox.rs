//! What a running translator may no longer do, and what it does where the system will not let it be shut in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use guest::{Guest, Udp, Wire, guest_addr};
use lab::{
    LONG, Setup, Translator, World, janitor,
    programs::wrapper,
    servers::{TcpServer, UdpEcho},
    wait_until,
    world::INTERNET4,
};
use nix::{errno::Errno, unistd::Uid};

fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

fn namespace(pid: u32, name: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    link.to_str().unwrap().to_owned()
}

fn assert_shut_in(pid: u32) {
    let none = "0000000000000000";
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, field), none, "{field}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    for name in ["user", "mnt", "ipc", "uts"] {
        assert_ne!(
            namespace(pid, name),
            namespace(std::process::id(), name),
            "{name}"
        );
    }
    let root = format!("/proc/{pid}/root/");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,"), "{mounts}");
}

/// A datagram and its echo, and a megabyte each way.
fn assert_works(world: &World, translator: &Translator) {
    let udp = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let tcp = TcpServer::echo(&world.outside, (INTERNET4, 7));
    let wire = Wire::new(translator.connect());
    let local = guest_addr(udp.addr(), 5000);
    wire.send(&Udp::new(local, udp.addr(), b"hello").frame());
    wire.expect("echo", Udp::of_frame);
    drop(wire);
    let mut guest = Guest::online(translator.connect(), 65_520);
    let connection = guest.connect(tcp.addr());
    guest.echo(connection, 1 << 20);
}

/// Regressions S08, S09, S14 and X15.
#[test]
fn a_running_translator_owns_nothing_but_its_descriptors_and_still_works() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &[]);
    translator.expect_log("You can now start qemu");
    let pid = translator.pid();
    assert_shut_in(pid);
    if Uid::current().is_root() && status(std::process::id(), "CapEff") != status(pid, "CapEff") {
        assert_eq!(status(pid, "Groups"), "");
    }
    // In the foreground its number is the caller's.
    assert_eq!(namespace(pid, "pid"), namespace(std::process::id(), "pid"));
    // Not dumpable: its own user may not look at its memory.
    let owner = fs::metadata(format!("/proc/{pid}/mem")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
    assert_works(&world, &translator);
    translator.assert_alive();
    assert!(!translator.log().contains("continuing without"));
    // Regression S06.
    assert_eq!(translator.stop(), 0);
}

/// The PID namespace is the daemon's, its PID file names it as the caller sees it.
#[test]
fn a_daemon_has_a_pid_namespace_too() {
    let Some(world) = World::pod() else { return };
    let dir = janitor::TempDir::new();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (socket, pid_file, log) = (path("sock"), path("pid"), path("log"));
    let setup = Setup::new(&["-s", &socket, "-P", &pid_file, "-l", &log]).background();
    let (status_, _, stderr) = setup.run_to_end(&world.pod);
    assert_eq!(status_.code(), Some(0), "{stderr}");
    let pid: u32 = fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    janitor::watch_pid(pid);
    assert_shut_in(pid);
    assert_ne!(namespace(pid, "pid"), namespace(std::process::id(), "pid"));
    assert_eq!(status(pid, "NSpid"), format!("{pid}\t1"));
    assert_eq!(status(pid, "Name"), "passt");
    let header = fs::read_to_string(&log).unwrap();
    let header = header.lines().next().unwrap();
    assert!(header.ends_with(&format!("({pid})")), "{header}");
    // Regression S06: the first process of a namespace hears no signal it does not ask for.
    let number = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(number, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(wait_until(LONG, || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    }));
    janitor::gone(pid);
}

/// The log file is known by its descriptor alone once the file system is gone. Regression S11.
#[test]
fn a_full_log_file_is_cut_from_inside_the_sandbox() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&["--trace", "--log-size", "40960"]);
    let log = setup.dir().join("log");
    let setup = setup.arg("-l").arg(log.to_str().unwrap());
    let mut translator = setup.start(&world.pod);
    let server = TcpServer::echo(&world.outside, (INTERNET4, 7));
    let wire = Wire::new(translator.connect());
    // Frames of nonsense are worth a line each.
    let cut = || {
        for _ in 0..100 {
            wire.send(&[0xff; 20]);
        }
        fs::read_to_string(&log).is_ok_and(|text| text.contains("log truncated at"))
    };
    assert!(wait_until(LONG, cut), "{}", translator.log());
    drop(wire);
    let mut guest = Guest::online(translator.connect(), 65_520);
    let connection = guest.connect(server.addr());
    guest.echo(connection, 1 << 16);
    translator.assert_alive();
    let meta = fs::metadata(&log).unwrap();
    assert!(meta.len() <= 40_960);
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}

/// A shell script that becomes the binary in a world with fewer rights.
fn confined(dir: &Path, script: &str) -> Setup {
    Setup::new(&[]).binary(wrapper(dir, script))
}

/// No user namespaces at all, as on Talos, and no capabilities to go on without.
const NO_NAMESPACES: &str = "exec unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && \
    exec setpriv --bounding-set=-all --inh-caps=-all PASST \"$@\"' sh \"$@\"";

/// Whether this machine lets us build the confined world.
fn can_confine() -> bool {
    let script = NO_NAMESPACES.replace("PASST", "true");
    let status = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .status();
    let can = status.is_ok_and(|status| status.success());
    if !can {
        println!("skipped: cannot build a world without user namespaces");
    }
    can
}

/// Regression S16.
#[test]
fn layers_that_are_forbidden_are_left_out_with_a_word_each() {
    let Some(world) = World::pod() else { return };
    if !can_confine() {
        return;
    }
    let dir = janitor::TempDir::new();
    let mut translator = confined(dir.path(), NO_NAMESPACES).start(&world.pod);
    translator.expect_log("You can now start qemu");
    let log = translator.log();
    for layer in [
        "Couldn't create user namespace: ",
        "Couldn't create mount, IPC and UTS namespaces: ",
    ] {
        assert_eq!(log.matches(layer).count(), 1, "{log}");
    }
    assert_eq!(log.matches("continuing without").count(), 2, "{log}");
    let pid = translator.pid();
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    assert_works(&world, &translator);
    assert_eq!(translator.stop(), 0);
}

/// A privileged container without user namespaces still hides the file system.
#[test]
fn without_a_user_namespace_capabilities_still_buy_the_other_layers() {
    let Some(world) = World::pod() else { return };
    if !can_confine() {
        return;
    }
    let dir = janitor::TempDir::new();
    let script = "exec unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && \
        exec PASST \"$@\"' sh \"$@\"";
    let mut translator = confined(dir.path(), script).start(&world.pod);
    translator.expect_log("You can now start qemu");
    let log = translator.log();
    assert_eq!(log.matches("continuing without").count(), 1, "{log}");
    let pid = translator.pid();
    assert_eq!(
        fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(),
        0
    );
    // Nothing but the right to low ports is kept, bit 10.
    for field in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(status(pid, field), "0000000000000400", "{field}");
    }
    assert_works(&world, &translator);
    assert_eq!(translator.stop(), 0);
}

/// A way to forbid a layer: a call, perhaps with one argument, and what it fails with.
type Ban = (i64, Option<(u8, u64)>, Errno);

const NEW_USER: (u8, u64) = (0, libc::CLONE_NEWUSER as u64);
const NEW_PID: (u8, u64) = (0, libc::CLONE_NEWPID as u64);
const NEW_SPACES: (u8, u64) = (
    0,
    (libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64,
);

/// The layers, how each can be forbidden, and how that is told.
const BANS: &[(Ban, &str, &str)] = &[
    (
        (libc::SYS_unshare, Some(NEW_USER), Errno::EPERM),
        "user namespace",
        "Couldn't create user namespace: Operation not permitted",
    ),
    (
        (libc::SYS_unshare, Some(NEW_PID), Errno::EPERM),
        "PID namespace",
        "Couldn't create PID namespace: Operation not permitted",
    ),
    (
        (libc::SYS_unshare, Some(NEW_SPACES), Errno::EPERM),
        "mount, IPC and UTS namespaces",
        "Couldn't create mount, IPC and UTS namespaces: Operation not permitted",
    ),
    // As AppArmor has it.
    (
        (libc::SYS_mount, None, Errno::EACCES),
        "empty root",
        "Couldn't leave the file system: Permission denied",
    ),
    (
        (libc::SYS_capset, None, Errno::EPERM),
        "dropped capabilities",
        "Couldn't drop capabilities: ",
    ),
    (
        (libc::SYS_prctl, Some((0, 4)), Errno::EPERM),
        "no core dumps",
        "Couldn't forbid core dumps: Operation not permitted",
    ),
    (
        (libc::SYS_landlock_restrict_self, None, Errno::EPERM),
        "Landlock",
        "Couldn't confine with Landlock: ",
    ),
    (
        (libc::SYS_seccomp, None, Errno::EINVAL),
        "seccomp filter",
        "Couldn't load seccomp filter: ",
    ),
];

/// Whether the kernel, and not only the ban, has a say about Landlock here.
fn landlocked(world: &World) -> bool {
    let (_, stdout, _) = Setup::new(&["--print-sandbox"]).run_to_end(&world.pod);
    stdout.contains("Landlock: ok\n")
}

#[test]
fn each_forbidden_layer_is_left_out_with_one_warning_that_names_it() {
    let Some(world) = World::pod() else { return };
    let landlocked = landlocked(&world);
    for &((call, argument, error), name, warning) in BANS {
        if name == "Landlock" && !landlocked {
            continue;
        }
        let dir = janitor::TempDir::new();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (socket, pid_file) = (path("sock"), path("pid"));
        let setup = Setup::new(&["-s", &socket, "-P", &pid_file]).background();
        let setup = setup.forbid(call, argument, error);
        let (exit, _, stderr) = setup.run_to_end(&world.pod);
        assert_eq!(exit.code(), Some(0), "{name}: {stderr}");
        let pid = fs::read_to_string(&pid_file).unwrap();
        let pid: u32 = pid.trim().parse().unwrap();
        janitor::watch_pid(pid);
        assert_eq!(stderr.matches(warning).count(), 1, "{name}: {stderr}");
        let left_out = stderr.matches("continuing without").count();
        assert_eq!(left_out, 1, "{name}: {stderr}");
        if name == "user namespace" {
            // Nothing but the right to low ports is kept, bit 10.
            for field in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(status(pid, field), "0000000000000400", "{field}");
            }
        }
        let wire = Wire::new(UnixStream::connect(&socket).unwrap());
        let udp = UdpEcho::start(&world.outside, (INTERNET4, 7));
        wire.send(&Udp::new(guest_addr(udp.addr(), 5000), udp.addr(), b"hello").frame());
        wire.expect("echo", Udp::of_frame);
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        janitor::gone(pid.as_raw().cast_unsigned());
    }
}

#[test]
fn any_missing_layer_ends_the_start_where_all_are_required() {
    let Some(world) = World::pod() else { return };
    let landlocked = landlocked(&world);
    for &((call, argument, error), name, warning) in BANS {
        if name == "Landlock" && !landlocked {
            continue;
        }
        let setup = Setup::new(&["--require-sandbox"]).background();
        let socket = setup.dir().join("sock");
        let mut setup = setup
            .arg("-s")
            .arg(socket.to_str().unwrap())
            .forbid(call, argument, error);
        let (status, _, stderr) = setup.run(&world.pod);
        assert_eq!(status.code(), Some(1), "{name}: {stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with(warning), "{name}: {stderr}");
    }
    if landlocked {
        let mut translator = Translator::start(&world.pod, &["--require-sandbox"]);
        assert_works(&world, &translator);
        translator.assert_alive();
    }
}

/// An older kernel is not worth a warning at every start, but is not what was required either.
#[test]
fn a_kernel_without_landlock_is_no_reason_for_a_warning() {
    let Some(world) = World::pod() else { return };
    let without = |args: &[&str]| {
        Setup::new(args).forbid(libc::SYS_landlock_create_ruleset, None, Errno::ENOSYS)
    };
    let mut translator = without(&[]).start(&world.pod);
    translator.expect_log("You can now start qemu");
    assert!(!translator.log().contains("Landlock"));
    assert_works(&world, &translator);
    translator.assert_alive();
    let (status, _, stderr) = without(&["--require-sandbox"]).run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert_eq!(last, "Couldn't confine with Landlock: not in this kernel");
}

#[test]
fn what_the_sandbox_would_be_is_printed_a_layer_a_line() {
    let Some(world) = World::pod() else { return };
    for &((call, argument, error), name, warning) in BANS {
        let setup = Setup::new(&["--print-sandbox"]).background();
        let (status, stdout, stderr) = setup.forbid(call, argument, error).run_to_end(&world.pod);
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{stdout}");
        let layer = |name: &str| {
            let lines = stdout.lines();
            let state = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            state.collect::<Vec<_>>()
        };
        let (_, why) = warning.split_once(": ").unwrap();
        let [state] = layer(name)[..] else {
            panic!("{stdout}");
        };
        assert!(state.starts_with(&format!("missing, {why}")), "{stdout}");
        for (_, other, _) in BANS {
            assert_eq!(layer(other).len(), 1, "{stdout}");
        }
        assert_eq!(layer("system calls allowed").len(), 1, "{stdout}");
    }
    // In the foreground threads may be wanted, which a PID namespace forbids.
    let (_, stdout, _) = Setup::new(&["--print-sandbox"]).run_to_end(&world.pod);
    assert!(
        stdout.contains("PID namespace: missing, not in the foreground\n"),
        "{stdout}"
    );
}

/// Regression S01: the root of an initramfs cannot be exchanged, which the kernel says with this error.
#[test]
fn a_root_that_cannot_be_exchanged_is_left_by_another_way() {
    let Some(world) = World::pod() else { return };
    let mut translator =
        Setup::new(&["--require-sandbox"]).forbid(libc::SYS_pivot_root, None, Errno::EINVAL);
    if !landlocked(&world) {
        translator = Setup::new(&[]).forbid(libc::SYS_pivot_root, None, Errno::EINVAL);
    }
    let mut translator = translator.start(&world.pod);
    translator.expect_log("You can now start qemu");
    assert_shut_in(translator.pid());
    assert_works(&world, &translator);
    assert!(!translator.log().contains("continuing without"));
    assert_eq!(translator.stop(), 0);
}
