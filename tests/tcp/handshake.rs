//! How connections begin.

use std::{
    io::{ErrorKind, Write},
    time::{Duration, Instant},
};

use crate::{
    guest::{
        Guest, Peer, Scene, Tcp, both,
        frame::{ACK, FIN, RST, SYN},
        guest_addr, pattern,
        tcp::syn_options,
    },
    lab::{
        LONG, QUIET, Translator, World,
        servers::{TcpServer, accept, tcp_listener},
        wait_until,
        world::{INTERNET4, INTERNET6},
    },
};

#[test]
fn connections_open_and_close_in_both_families() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    for remote in both(INTERNET4, INTERNET6, 7) {
        let _server = TcpServer::echo(&scene.world.outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        let data = pattern(0, 10_000);
        peer.send_data(&data);
        assert_eq!(peer.read(10_000), data);
        peer.close();
    }
    scene.translator.expect_fd_count(idle);
}

#[test]
fn the_mss_fits_the_mtu_and_the_window_is_not_scaled_in_the_handshake() {
    for (mtu, mss) in [("1500", [1460, 1440]), ("1400", [1360, 1340])] {
        let Some(scene) = Scene::new(&["--mtu", mtu]) else {
            return;
        };
        for (remote, mss) in both(INTERNET4, INTERNET6, 7).into_iter().zip(mss) {
            let _server = TcpServer::echo(&scene.world.outside, remote);
            let peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
            let syn = Tcp {
                options: syn_options(1400, Some(7)),
                ..peer.segment(SYN, &[])
            };
            scene.wire.send(&syn.frame());
            let answer = peer.recv();
            assert!(answer.has(SYN | ACK));
            assert_eq!(answer.option(2), Some(&u16::to_be_bytes(mss)[..]));
            assert!(answer.window > 0);
        }
    }
}

#[test]
fn window_scaling_is_used_if_both_sides_want_it() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    // What may be in flight to us with a window field of 3,000.
    for (port, scale, least, most) in [
        (1, None, 1, 3000),
        (2, Some(0), 1, 3000),
        (3, Some(4), 3001, 48_000),
    ] {
        let local = guest_addr(remote, port);
        let mut peer = Peer::connect_with(&scene.wire, local, remote, scale);
        let mut server = accept(&listener);
        peer.announce(3000, &mut server);
        server.write_all(&pattern(0, 200_000)).unwrap();
        let mut flight = 0;
        let patience = |flight| if flight < least { LONG } else { QUIET };
        while let Some(segment) = peer.recv_within(patience(flight)) {
            let end = segment.seq.wrapping_sub(peer.rcv_nxt) + segment.len();
            flight = flight.max(end);
        }
        assert!(
            flight >= least && flight <= most,
            "{scale:?}: {flight} octets in flight"
        );
        peer.rst();
    }
}

/// X04: not a bare SYN, nor with another sequence number.
#[test]
fn an_unanswered_syn_ack_is_repeated_as_it_was() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
    peer.send(SYN, &[]);
    let first = peer.recv();
    let second = peer.recv();
    for answer in [&first, &second] {
        assert!(answer.has(SYN | ACK), "{answer:?}");
        assert_eq!(answer.ack, 8);
    }
    assert_eq!(first.seq, second.seq);
    peer.rcv_nxt = first.seq.wrapping_add(1);
    peer.send(ACK, b"hello");
    assert_eq!(peer.read(5), b"hello");
}

#[test]
fn a_repeated_syn_opens_no_second_connection() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
    let syn = peer.segment(SYN, &[]).frame();
    scene.wire.send(&syn);
    scene.wire.send(&syn);
    peer.snd_nxt = 8;
    let answer = peer.recv();
    peer.rcv_nxt = answer.seq.wrapping_add(1);
    peer.ack();
    let _first = accept(&listener);
    listener.set_nonblocking(true).unwrap();
    peer.expect_quiet(QUIET, "reset", |s| s.has(RST));
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// X08: a machine that was reset and uses a port again learns of the old connection.
#[test]
fn a_syn_on_an_open_connection_gets_a_challenge_ack() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let again = Tcp {
        seq: peer.snd_nxt.wrapping_add(1 << 30),
        ..peer.segment(SYN, &[])
    };
    scene.wire.send(&again.frame());
    let challenge = peer.recv();
    assert_eq!(
        (challenge.flags & (SYN | ACK | RST), challenge.ack),
        (ACK, peer.snd_nxt)
    );
    peer.send_data(b"still there");
    assert_eq!(peer.read(11), b"still there");
}

/// T83: what the host says before the guest has acknowledged the SYN.
#[test]
fn a_banner_waits_for_the_end_of_the_handshake() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET6, 25).into();
    let _server = TcpServer::start(&scene.world.outside, remote, |mut stream| {
        stream.write_all(b"220 ready").unwrap();
        std::thread::sleep(LONG);
    });
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
    peer.send(SYN, &[]);
    let answer = peer.recv();
    peer.rcv_nxt = answer.seq.wrapping_add(1);
    peer.expect_quiet(QUIET, "data", |s| !s.payload.is_empty());
    peer.ack();
    assert_eq!(peer.read(9), b"220 ready");
}

/// X10.
#[test]
fn impossible_flags_open_nothing() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    listener.set_nonblocking(true).unwrap();
    for (port, flags) in [
        (1, SYN | FIN),
        (2, SYN | RST),
        (3, SYN | RST | ACK),
        (4, 0),
        (5, FIN),
    ] {
        let peer = Peer::new(&scene.wire, guest_addr(remote, port), remote, 7);
        scene.wire.send(&peer.segment(flags, &[]).frame());
        let answer = peer.recv_within(QUIET);
        assert!(!answer.is_some_and(|s| s.has(SYN)), "flags {flags:#x}");
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// Text of a SYN is not lost, as it is not acknowledged.
#[test]
fn a_syn_may_carry_data() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
    peer.send(SYN, b"hello");
    let answer = peer.recv();
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, 8));
    peer.rcv_nxt = answer.seq.wrapping_add(1);
    peer.snd_nxt = 8;
    peer.send(ACK, b"hello");
    assert_eq!(peer.read(5), b"hello");
}

/// The kernel does the waiting of TIME-WAIT, with a port of its own: the guest's may be used at once.
#[test]
fn a_port_is_free_again_when_its_connection_has_closed() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    for remote in both(INTERNET4, INTERNET6, 7) {
        let _server = TcpServer::echo(&scene.world.outside, remote);
        for _ in 0..20 {
            let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
            peer.send_data(b"again");
            assert_eq!(peer.read(5), b"again");
            peer.close();
        }
    }
    scene.translator.expect_fd_count(idle);
}

/// Regression T77; RFC 9293, section 3.4.1: of one connection's ports, the numbers follow a clock of four microseconds; of
/// others', nobody can tell.
#[test]
fn initial_sequence_numbers_follow_a_clock() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let number = |port| {
        let peer = Peer::connect(&scene.wire, guest_addr(remote, port), remote);
        let number = peer.rcv_nxt;
        peer.close();
        number
    };
    let began = Instant::now();
    let first = number(40_000);
    let other = number(40_001);
    std::thread::sleep(Duration::from_millis(20));
    let passed = number(40_000).wrapping_sub(first);
    assert!(passed >= 5000, "{passed} in 20 ms");
    assert!(u128::from(passed) * 4 <= began.elapsed().as_micros());
    assert!(other.wrapping_sub(first) > 1 << 20, "{first} {other}");
}

/// RFC 7323, section 5.4: a guest that still remembers a connection of the same ports (RFC 6191) hears of no earlier time; of
/// others' clocks, nobody can tell.
#[test]
fn timestamps_of_the_same_ports_only_grow() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let shown = |port| {
        let mut peer = Peer::new(&scene.wire, guest_addr(remote, port), remote, 7);
        let stamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
        let syn = Tcp {
            options: [&syn_options(1400, Some(0))[..], &stamps].concat(),
            ..peer.segment(SYN, &[])
        };
        scene.wire.send(&syn.frame());
        let answer = peer.expect("SYN,ACK", |segment| segment.has(SYN | ACK));
        peer.snd_nxt = answer.ack;
        peer.rst();
        let value = answer.option(8).expect("timestamps");
        u32::from_be_bytes(value[..4].try_into().unwrap())
    };
    for port in 40_000..40_004 {
        let began = Instant::now();
        let (first, other) = (shown(port), shown(port + 100));
        std::thread::sleep(Duration::from_millis(20));
        let passed = shown(port).wrapping_sub(first);
        assert!(passed >= 20, "{passed} in 20 ms");
        assert!(u128::from(passed) <= began.elapsed().as_millis() + 1);
        assert!(other.abs_diff(first) > 1 << 10, "{first} {other}");
    }
}

/// Regression T80: some stacks take segments with another flow label for those of another flow.
#[test]
fn the_flow_label_is_the_same_in_all_segments_of_a_connection() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET6, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
    let mut labels = Vec::new();
    for (flags, payload) in [(SYN, &b""[..]), (ACK, b"hello"), (ACK | FIN, b"")] {
        peer.send(flags, payload);
        for _ in 0..2 {
            let frame = scene.wire.expect("segment", |frame| {
                let segment = peer.mine(frame)?;
                peer.rcv_nxt = segment.seq.wrapping_add(segment.len());
                Some(frame.to_vec())
            });
            labels.push(u32::from_be_bytes([
                0,
                frame[15] & 15,
                frame[16],
                frame[17],
            ]));
            if flags == SYN {
                break;
            }
        }
    }
    assert!(labels.len() == 5 && labels[0] != 0, "{labels:?}");
    assert!(labels.iter().all(|label| *label == labels[0]), "{labels:?}");
}

/// Regression T58: a host where every address may be bound is no host that has every address.
#[test]
fn a_host_that_binds_any_address_connects_all_the_same() {
    let Some(scene) = Scene::new(&[]) else { return };
    for family in ["ipv4", "ipv6"] {
        scene
            .world
            .pod
            .sysctl(&format!("{family}/ip_nonlocal_bind"), "1");
    }
    for remote in both(INTERNET4, INTERNET6, 7) {
        let _server = TcpServer::echo(&scene.world.outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        peer.send_data(b"hello");
        assert_eq!(peer.read(5), b"hello");
        peer.close();
    }
}

#[test]
fn two_hundred_connections_at_once() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let servers = both(INTERNET4, INTERNET6, 7).map(|addr| TcpServer::echo(&world.outside, addr));
    let mut guest = Guest::online(translator.connect(), 65_520);
    guest.run_for(QUIET);
    let idle = translator.idle_fd_count();
    let connections: Vec<_> = (0..200)
        .map(|n| guest.start_connect(servers[n % 2].addr()))
        .collect();
    for &connection in &connections {
        guest.finish_connect(connection);
    }
    for &connection in &connections {
        guest
            .tcp(connection)
            .send_slice(&pattern(0, 50_000))
            .unwrap();
    }
    for &connection in &connections {
        guest.download(connection, 50_000);
    }
    for &connection in &connections {
        guest.shutdown(connection);
    }
    for &connection in &connections {
        guest.expect_eof(connection);
    }
    let gone = wait_until(LONG, || {
        guest.run_for(Duration::from_millis(5));
        translator.fd_count() <= idle
    });
    assert!(gone, "{} descriptors, idle {idle}", translator.fd_count());
}
