//! What a connection carries: everything, once, in order.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use socket2::SockRef;

use crate::{
    BULK,
    guest::{
        Guest, Peer, Scene, Tcp, assert_pattern, both,
        frame::{ACK, FIN, PSH, RST, URG},
        guest_addr, pattern,
    },
    lab::{
        LONG, QUIET, Translator, World,
        servers::{TcpServer, accept, tcp_listener},
        world::{INTERNET4, INTERNET6},
    },
};

/// Longer than any timer that could resend something in between.
const SECONDS: Duration = Duration::from_millis(2500);

/// Regression T75.
#[test]
fn bulk_comes_back_as_it_was_in_both_families_and_at_several_mtus() {
    let Some(world) = World::pod() else { return };
    let servers = both(INTERNET4, INTERNET6, 7).map(|addr| TcpServer::echo(&world.outside, addr));
    for mtu in [65_520, 9000, 1500] {
        let translator = Translator::start(&world.pod, &["--mtu", &mtu.to_string()]);
        let mut guest = Guest::online(translator.connect(), mtu);
        for server in &servers {
            let connection = guest.connect(server.addr());
            guest.echo(connection, BULK);
            guest.close(connection);
        }
    }
}

/// Regression T36.
#[test]
fn downloads_arrive_whole_and_once() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect_with(&scene.wire, guest_addr(remote, 40_000), remote, Some(6));
        let mut server = accept(&listener);
        let sending = thread::spawn(move || server.write_all(&pattern(0, BULK)).unwrap());
        assert_pattern(0, &peer.read(BULK));
        sending.join().unwrap();
        assert_eq!(
            peer.repeated, 0,
            "segments were sent twice although none was lost"
        );
        peer.expect("FIN", |s| s.has(FIN));
    }
}

/// Regression T71.
#[test]
fn uploads_arrive_whole_and_need_nothing_sent_twice() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect_with(&scene.wire, guest_addr(remote, 40_000), remote, Some(6));
        let mut server = accept(&listener);
        let reading = thread::spawn(move || {
            let mut got = vec![0; BULK];
            server.read_exact(&mut got).unwrap();
            assert_pattern(0, &got);
        });
        assert_eq!(peer.upload(0, BULK, LONG), (BULK, BULK));
        reading.join().unwrap();
        peer.rst();
    }
}

/// Regressions T05, T06 and T09: the window closes instead of lying, and opens without being asked.
#[test]
fn a_slow_reader_on_the_host_closes_and_opens_the_window_and_nothing_is_lost() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect_with(&scene.wire, guest_addr(remote, 40_000), remote, Some(6));
        let mut server = accept(&listener);
        let total = 64 << 20;
        let (acked, sent) = peer.upload(0, total, Duration::from_secs(1));
        assert!(acked < total, "no host buffers 64 MiB unasked");
        assert_eq!(acked, sent, "what was inside the window was not taken");
        let reading = thread::spawn(move || {
            let mut got = vec![0; acked + BULK];
            server.read_exact(&mut got).unwrap();
            assert_pattern(0, &got);
        });
        // No probe is sent: the update must come by itself.
        assert_eq!(peer.upload(acked, BULK, LONG), (BULK, BULK));
        reading.join().unwrap();
        peer.rst();
    }
}

/// X12: one octet, and not before the persist timer.
#[test]
fn a_closed_window_of_the_guest_is_probed_with_one_octet_at_most() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect_with(&scene.wire, guest_addr(remote, 40_000), remote, Some(7));
    let mut server = accept(&listener);
    peer.announce(0, &mut server);
    server.write_all(&pattern(0, 5000)).unwrap();
    while let Some(probe) = peer.recv_within(SECONDS) {
        assert!(probe.payload.len() <= 1, "{} octets", probe.payload.len());
        if probe.seq != peer.rcv_nxt {
            break;
        }
        peer.ack();
        if !probe.payload.is_empty() {
            break;
        }
    }
    peer.window = 0xffff;
    peer.ack();
    assert_pattern(0, &peer.read(5000));
}

/// T20, T57: the window shrinks over data in flight.
#[test]
fn a_window_that_shrinks_to_nothing_loses_nothing() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET6, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    let total = 300_000;
    server.write_all(&pattern(0, total)).unwrap();
    let mut got = peer.read(10_000);
    peer.window = 0;
    peer.ack();
    while peer.recv_within(QUIET).is_some() {}
    peer.window = 0xffff;
    peer.ack();
    got.extend(peer.read(total - got.len()));
    assert_pattern(0, &got);
}

#[test]
fn a_lost_segment_is_sent_again() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    let total = 200_000;
    server.write_all(&pattern(0, total)).unwrap();
    let mut got = peer.read(20_000);
    let lost = peer.recv();
    assert!(!lost.payload.is_empty());
    // Everything behind the hole is dropped as by a simple receiver, and acknowledged as a duplicate.
    got.extend(peer.read(total - got.len()));
    assert_pattern(0, &got);
}

#[test]
fn repeated_segments_are_taken_once() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let data = pattern(0, 3000);
    let whole = peer.segment(ACK | PSH, &data[..1000]);
    let mut overlapping = peer.segment(ACK | PSH, &data[500..1500]);
    overlapping.seq = overlapping.seq.wrapping_add(500);
    let mut rest = peer.segment(ACK | PSH, &data[1500..]);
    rest.seq = rest.seq.wrapping_add(1500);
    for segment in [&whole, &whole, &overlapping, &whole, &rest, &rest] {
        scene.wire.send(&segment.frame());
    }
    peer.snd_nxt = peer.snd_nxt.wrapping_add(3000);
    assert_eq!(peer.read(3000), data);
    peer.expect_quiet(QUIET, "more data", |s| !s.payload.is_empty());
}

#[test]
fn segments_out_of_order_are_put_in_order() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let data = pattern(0, 5000);
    let segments: Vec<Tcp> = data
        .chunks(1000)
        .map(|chunk| {
            let segment = peer.segment(ACK | PSH, chunk);
            peer.snd_nxt = peer.snd_nxt.wrapping_add(1000);
            segment
        })
        .collect();
    for at in [1, 4, 3, 0, 2] {
        scene.wire.send(&segments[at].frame());
    }
    // A sender repeats what is not acknowledged; here it may have to, once a second.
    let mut got = Vec::new();
    while got.len() < 5000 {
        match peer.recv_within(Duration::from_secs(1)) {
            Some(segment) => {
                assert!(!segment.has(RST));
                peer.take(&segment, &mut got);
                peer.ack();
            }
            None => segments.iter().for_each(|s| scene.wire.send(&s.frame())),
        }
    }
    assert_eq!(got, data);
}

/// Frames of guests that leave segmentation and checksums to the card, as libkrun's do.
#[test]
fn large_segments_with_partial_checksums_are_taken_whatever_the_mtu() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for remote in both(INTERNET4, INTERNET6, 7) {
        let _server = TcpServer::echo(&scene.world.outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        // Less than the window of a connection that has only begun, which depends on the host's congestion control.
        let data = pattern(0, 30_000);
        let mut ip = peer.segment(ACK | PSH, &data).ip();
        ip.payload[16..18].copy_from_slice(&[0xbe, 0xef]);
        scene.wire.send(&ip.frame());
        peer.snd_nxt = peer.snd_nxt.wrapping_add(30_000);
        assert_eq!(peer.read(30_000), data);
        peer.close();
    }
}

/// P04, T45: small messages in both directions, one waiting for the other.
#[test]
fn small_messages_do_not_wait_for_each_other() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    for n in 0..500_u32 {
        peer.send(ACK | PSH, &n.to_be_bytes());
        assert_eq!(peer.read(4), n.to_be_bytes());
    }
}

/// One segment, not two, as long as answers come soon.
#[test]
fn an_answer_brings_the_acknowledgement_of_its_question() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut together = 0;
    for n in 0..500_u32 {
        peer.send(ACK | PSH, &n.to_be_bytes());
        // If we stood still, the answer before may come again.
        let next = || {
            peer.expect("what is new", |s| {
                s.payload.is_empty() || s.seq == peer.rcv_nxt
            })
        };
        let mut got = next();
        if got.payload.is_empty() {
            got = next();
        } else {
            together += 1;
        }
        assert_eq!(
            (&got.payload[..], got.ack),
            (&n.to_be_bytes()[..], peer.snd_nxt)
        );
        peer.rcv_nxt = peer.rcv_nxt.wrapping_add(4);
    }
    // A busy machine answers late now and then.
    assert!(together >= 20, "{together} of 500");
}

#[test]
fn a_question_that_nobody_answers_is_acknowledged() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    for n in 0..20_u32 {
        peer.send(ACK | PSH, &n.to_be_bytes());
        let got = peer.recv();
        assert_eq!((got.payload.len(), got.ack), (0, peer.snd_nxt));
        let mut octets = [0; 4];
        server.read_exact(&mut octets).unwrap();
        assert_eq!(octets, n.to_be_bytes());
    }
    // The end is no different.
    peer.send(FIN | ACK, &[]);
    assert_eq!(peer.recv().ack, peer.snd_nxt);
}

/// Urgent octets come where they stand in the stream, both ways; the mark is not reproduced (RFC 6093).
#[test]
fn urgent_octets_arrive_in_the_stream() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    for _ in 0..50 {
        server.write_all(b"before").unwrap();
        SockRef::from(&server).send_out_of_band(b"!").unwrap();
        server.write_all(b"behind").unwrap();
        assert_eq!(peer.read(13), b"before!behind");
    }
    peer.send(ACK | PSH | URG, b"urgent");
    peer.send_data(b"and not");
    let mut got = [0; 13];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"urgentand not");
}
