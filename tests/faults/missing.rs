//! Files, daemons and disks that are missing, full or in the way.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

use crate::{
    guest::{Peer, Udp, Wire, guest_addr},
    lab::{
        Setup, Translator, World,
        servers::{TcpServer, UdpEcho},
        uninterrupted,
        world::INTERNET4,
    },
};

/// Flows opened and closed: each is worth some lines of a log that tells all, which are more than a pipe takes.
const MANY: u16 = 3000;

/// Mounts an empty file system of so many octets.
fn mount_empty(at: &Path, size: &str) {
    let options = format!("mode=777,size={size}");
    let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
    mount(kind, at, kind, flags, Some(options.as_str())).expect("tmpfs");
}

fn bind(from: &Path, to: &Path) {
    let (nothing, flags) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC);
    mount(Some(from), to, nothing, flags, nothing).expect("bind mount");
}

/// Lets the process make many flows and many messages, and sees that all of them work.
fn exercise(world: &World, translator: &mut Translator) {
    let tcp = TcpServer::echo(&world.outside, (INTERNET4, 7));
    let udp = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let wire = Wire::new(translator.connect());
    let mut first = Peer::connect(&wire, guest_addr(tcp.addr(), 999), tcp.addr());
    for port in 2000..2000 + MANY {
        let hello = Udp::new(guest_addr(udp.addr(), port), udp.addr(), b"hello");
        wire.send(&hello.frame());
        wire.expect("echo", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst == hello.src)
        });
    }
    first.send_data(b"still there");
    assert_eq!(first.read(11), b"still there");
    translator.assert_alive();
}

#[test]
fn a_log_file_on_a_full_disk_loses_lines_and_nothing_else() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&["--trace"]);
    let small = setup.dir().join("small");
    fs::create_dir(&small).unwrap();
    let file = small.join("log");
    let setup = setup.arg("--log-file").arg(file.to_str().unwrap());
    let mut translator = setup
        .prepare(move || mount_empty(&small, "16k"))
        .start(&world.pod);
    exercise(&world, &mut translator);
    assert_eq!(translator.stop(), 0);
}

#[test]
fn a_capture_on_a_full_disk_ends_with_one_word() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[]);
    let small = setup.dir().join("small");
    fs::create_dir(&small).unwrap();
    let file = small.join("pcap");
    let setup = setup.arg("--pcap").arg(file.to_str().unwrap());
    let mut translator = setup
        .prepare(move || mount_empty(&small, "16k"))
        .start(&world.pod);
    exercise(&world, &mut translator);
    let log = translator.log();
    assert_eq!(log.matches("Capture ends here").count(), 1, "{log}");
}

/// A `/dev` with nothing but `/dev/null` and what is in `dir`.
fn own_devices(dir: PathBuf) -> impl FnOnce() + Send {
    fs::write(dir.join("null"), "").unwrap();
    move || {
        bind(Path::new("/dev/null"), &dir.join("null"));
        bind(&dir, Path::new("/dev"));
    }
}

#[test]
fn a_system_log_that_is_absent_is_none() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[]);
    let dev = setup.dir().join("dev");
    fs::create_dir(&dev).unwrap();
    let mut translator = setup.prepare(own_devices(dev)).start(&world.pod);
    exercise(&world, &mut translator);
    assert_eq!(translator.stop(), 0);
}

/// Its socket's queue is full after some messages.
#[test]
fn a_system_log_that_reads_nothing_loses_lines_and_nothing_else() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&[]);
    let dev = setup.dir().join("dev");
    fs::create_dir(&dev).unwrap();
    let daemon = UnixDatagram::bind(dev.join("log")).unwrap();
    fs::set_permissions(dev.join("log"), fs::Permissions::from_mode(0o666)).unwrap();
    let mut translator = setup.prepare(own_devices(dev)).start(&world.pod);
    for _ in 0..30 {
        translator.flows();
    }
    exercise(&world, &mut translator);
    daemon.set_nonblocking(true).unwrap();
    let mut message = [0; 1024];
    let len = uninterrupted(|| daemon.recv(&mut message)).unwrap();
    let first = String::from_utf8_lossy(&message[..len]).into_owned();
    assert!(first.contains("passt: "), "{first}");
}

#[test]
fn without_proc_it_starts_and_serves() {
    let Some(world) = World::pod() else { return };
    let mut translator = Setup::new(&["-t", "2222"])
        .prepare(|| mount_empty(Path::new("/proc"), "16k"))
        .start(&world.pod);
    exercise(&world, &mut translator);
    assert_eq!(translator.stop(), 0);
}

/// Whoever started it holds the other end of its standard error, and has better things to do.
#[test]
fn a_standard_error_that_nobody_reads_loses_lines_and_nothing_else() {
    let Some(world) = World::pod() else { return };
    let mut translator = Setup::new(&["--trace"]).unheard().start(&world.pod);
    exercise(&world, &mut translator);
    assert_eq!(translator.stop(), 0);
}
