//! The link as QEMU's stream back-end uses it: frames behind their lengths on a UNIX socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs,
    io::{self, Write},
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Duration,
};

use guest::{
    Peer, Scene, Udp, Wire, assert_pattern,
    frame::{ETHERTYPE_IPV4, OUR_MAC, ethernet},
    guest_addr, pattern,
    wire::framed,
};
use lab::{
    LONG, QUIET, Setup, Translator, World,
    servers::{TcpServer, UdpEcho},
    world::INTERNET4,
};

/// A number asked of an echo server, as an octet sequence on the link.
fn question(number: u32) -> Vec<u8> {
    let remote = (INTERNET4, 7).into();
    framed(&Udp::new(guest_addr(remote, 5000), remote, &number.to_be_bytes()).frame())
}

/// The number that comes back.
fn expect_answer(wire: &Wire) -> u32 {
    let udp = wire.expect("echo", Udp::of_frame);
    u32::from_be_bytes(*udp.payload.first_chunk().unwrap())
}

/// A translator, an echo server it can reach, and the world they are in.
fn stage(args: &[&str]) -> Option<(Translator, UdpEcho, World)> {
    let world = World::pod()?;
    let server = UdpEcho::start(&world.outside, (INTERNET4, 7));
    Some((Translator::start(&world.pod, args), server, world))
}

fn assert_works(wire: &Wire) {
    wire.send_raw(&question(4711));
    assert_eq!(expect_answer(wire), 4711);
}

/// V12.
#[test]
fn frames_may_be_split_and_joined_anywhere() {
    let Some((translator, _server, _world)) = stage(&[]) else {
        return;
    };
    let wire = Wire::new(translator.connect());
    for byte in question(1) {
        wire.send_raw(&[byte]);
    }
    assert_eq!(expect_answer(&wire), 1);
    wire.send_raw(&[question(2), question(3)].concat());
    assert_eq!((expect_answer(&wire), expect_answer(&wire)), (2, 3));
    let all: Vec<u8> = (100..200).flat_map(question).collect();
    let mut rest = &all[..];
    for size in (1..).map(|n| n * 37 % 101 + 1) {
        let (part, later) = rest.split_at(size.min(rest.len()));
        wire.send_raw(part);
        rest = later;
        if rest.is_empty() {
            break;
        }
        // Now and then the other side gets to read what it has.
        if size % 10 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    for number in 100..200 {
        assert_eq!(expect_answer(&wire), number);
    }
}

#[test]
fn frames_from_14_to_69632_octets_are_read() {
    let Some((mut translator, _server, _world)) = stage(&["--mtu", "1500"]) else {
        return;
    };
    let wire = Wire::new(translator.connect());
    for len in [14, 15, 60, 65_549, 69_632] {
        let mut frame = ethernet(OUR_MAC, 0x88b5, &[]);
        frame.resize(len, 0);
        wire.send(&frame);
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        wire.send(&frame);
        assert_works(&wire);
    }
    translator.assert_alive();
}

/// V14: and nothing else goes wrong: the next client is served.
#[test]
fn other_lengths_close_the_connection_and_the_next_client_is_served() {
    let Some((mut translator, _server, _world)) = stage(&[]) else {
        return;
    };
    for len in [0, 1, 13, 69_633, 0x8000_0000, u32::MAX] {
        let wire = Wire::new(translator.connect());
        assert_works(&wire);
        wire.send_raw(&len.to_be_bytes());
        // Should nobody act on the length alone, nor does the frame itself help.
        let _ = (&mut wire.stream()).write(&[0; 13]);
        assert!(wire.closes(LONG), "length {len}");
    }
    let wire = Wire::new(translator.connect());
    assert_works(&wire);
    translator.assert_alive();
}

#[test]
fn a_second_client_is_told_goodbye() {
    let Some((translator, _server, _world)) = stage(&[]) else {
        return;
    };
    let first = Wire::new(translator.connect());
    assert_works(&first);
    for _ in 0..3 {
        let second = Wire::new(translator.connect());
        assert!(second.closes(LONG));
        assert_works(&first);
    }
}

#[test]
fn clients_come_and_go() {
    let Some((mut translator, _server, _world)) = stage(&[]) else {
        return;
    };
    let idle = translator.idle_fd_count();
    for n in 0..50 {
        let wire = Wire::new(translator.connect());
        match n % 3 {
            0 => assert_works(&wire),
            1 => wire.send_raw(&question(1)[..20]),
            _ => {}
        }
        drop(wire);
        // Who comes before the last one has left is told goodbye.
        translator.expect_fd_count(idle);
    }
    let wire = Wire::new(translator.connect());
    assert_works(&wire);
    translator.assert_alive();
}

#[test]
fn one_off_ends_when_its_client_leaves() {
    let Some((mut translator, _server, _world)) = stage(&["--one-off"]) else {
        return;
    };
    let wire = Wire::new(translator.connect());
    assert_works(&wire);
    drop(wire);
    assert_eq!(translator.wait(LONG), 0);
}

#[test]
fn an_inherited_socket_is_the_only_client() {
    let Some(world) = World::pod() else { return };
    let _server = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut translator = Setup::new(&[]).fd(theirs).start(&world.pod);
    let wire = Wire::new(ours);
    assert_works(&wire);
    drop(wire);
    assert_eq!(translator.wait(LONG), 0);
}

#[test]
fn the_first_free_path_is_taken() {
    let Some(world) = World::pod() else { return };
    let _server = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let setup = Setup::new(&[]).private_tmp();
    let path = |n| setup.dir().join(format!("passt_{n}.socket"));
    // The first is in use, the second is what a killed process left.
    let live = UnixListener::bind(path(1)).unwrap();
    drop(UnixListener::bind(path(2)).unwrap());
    assert!(path(2).exists());
    let translator = setup.start_at(&world.pod, Some("/tmp/passt_2.socket".into()));
    assert!(translator.dir().join("passt_1.socket").exists());
    assert!(!translator.dir().join("passt_3.socket").exists());
    assert_works(&Wire::new(translator.connect()));
    // Who serves the first saw nobody come.
    live.set_nonblocking(true).unwrap();
    let nobody = live.accept().unwrap_err();
    assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_stale_socket_is_replaced() {
    let Some(world) = World::pod() else { return };
    let _server = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let setup = Setup::new(&[]);
    drop(UnixListener::bind(setup.dir().join("passt.sock")).unwrap());
    let translator = setup.start(&world.pod);
    assert_works(&Wire::new(translator.connect()));
}

#[test]
fn a_socket_in_use_is_refused() {
    let Some((mut translator, _server, world)) = stage(&[]) else {
        return;
    };
    let path = translator.socket().to_str().unwrap().to_owned();
    let (status, _, stderr) = Setup::new(&["--socket", &path]).run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1));
    assert!(
        stderr.contains(&path) && stderr.contains("in use"),
        "{stderr}"
    );
    assert!(fs::exists(&path).unwrap());
    translator.assert_alive();
    assert_works(&Wire::new(translator.connect()));
}

/// A client that came and left would have ended it.
#[test]
fn whoever_finds_a_socket_in_use_is_no_client_of_it() {
    let Some((mut translator, _server, world)) = stage(&["--one-off"]) else {
        return;
    };
    let path = translator.socket().to_str().unwrap().to_owned();
    let (status, _, stderr) = Setup::new(&["--socket", &path]).run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1), "{stderr}");
    let wire = Wire::new(translator.connect());
    assert_works(&wire);
    drop(wire);
    assert_eq!(translator.wait(LONG), 0);
}

/// A server with `len` octets to give.
fn source(scene: &Scene, len: usize) -> TcpServer {
    TcpServer::start(&scene.world.outside, (INTERNET4, 9), move |mut stream| {
        let _ = stream.write_all(&pattern(0, len));
    })
}

/// A client of it whose window is never the limit.
fn download<'w>(scene: &'w Scene, source: &TcpServer) -> Peer<'w> {
    let local = guest_addr(source.addr(), 40_000);
    Peer::connect_with(&scene.wire, local, source.addr(), Some(8))
}

/// T66, U31: a frame that was begun is finished, whatever comes between, and what does not fit waits in the kernel.
#[test]
fn a_guest_that_pauses_finds_every_frame_whole() {
    const LEN: usize = 16 << 20;
    let Some(scene) = Scene::new(&[]) else { return };
    let source = source(&scene, LEN);
    let mut peer = download(&scene, &source);
    for pause in [QUIET, Duration::from_millis(10), QUIET] {
        thread::sleep(pause);
        assert!(!peer.read(LEN / 8).is_empty());
    }
    let got = peer.read(LEN - 3 * (LEN / 8));
    assert_pattern(3 * (LEN as u64 / 8), &got);
}

#[test]
fn a_guest_that_reads_octet_by_octet_finds_every_frame_whole() {
    const LEN: usize = 400_000;
    let Some(scene) = Scene::new(&[]) else { return };
    let source = source(&scene, LEN);
    let mut peer = download(&scene, &source);
    scene.wire.set_read_size(1);
    let got = peer.read(LEN / 4);
    scene.wire.set_read_size(97);
    let more = peer.read(LEN - LEN / 4);
    assert_pattern(0, &[got, more].concat());
}

/// Regression T46: while the guest does not read, the process must neither spin nor stop listening to it.
#[test]
fn a_guest_that_does_not_read_costs_nothing() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let source = source(&scene, 64 << 20);
    let _peer = download(&scene, &source);
    thread::sleep(QUIET);
    let little = Duration::from_millis(500);
    let when = "while nothing can move";
    scene.translator.assert_idle(little, when);
    // Its own frames are still read: many times more than the socket holds.
    scene.wire.stream().set_write_timeout(Some(LONG)).unwrap();
    let frames = question(1).repeat(50_000);
    let sent = (&mut scene.wire.stream()).write_all(&frames);
    assert!(
        !matches!(&sent, Err(e) if e.kind() == io::ErrorKind::WouldBlock),
        "stuck"
    );
    scene.translator.assert_alive();
}
