//! Segments that are lost, come early or come twice, and the options that tell of it.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
};

use crate::{
    guest::{
        Peer, Scene, Tcp, assert_pattern, both,
        frame::{ACK, FIN, PSH, SYN},
        guest_addr, pattern,
        tcp::syn_options,
    },
    lab::{
        LONG, QUIET,
        servers::{accept, tcp_listener},
        uninterrupted, wait_until,
        world::{INTERNET4, INTERNET6},
    },
};

/// Kinds of options.
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// A SYN's options: MSS 1400, window scale 0, SACK permitted.
fn with_sack() -> Vec<u8> {
    let mut options = syn_options(1400, Some(0));
    options.extend([1, 1, SACK_PERMITTED, 2]);
    options
}

fn stamps(value: u32, echo: u32) -> Vec<u8> {
    let mut options = vec![1, 1, TIMESTAMPS, 10];
    options.extend(value.to_be_bytes());
    options.extend(echo.to_be_bytes());
    options
}

fn blocks(ranges: &[(u32, u32)]) -> Vec<u8> {
    let mut options = vec![1, 1, SACK, 2 + 8 * u8::try_from(ranges.len()).unwrap()];
    for (start, end) in ranges {
        options.extend(start.to_be_bytes());
        options.extend(end.to_be_bytes());
    }
    options
}

/// Octets of a SACK option as pairs.
fn told(segment: &Tcp) -> Vec<(u32, u32)> {
    let number = |octets: &[u8]| u32::from_be_bytes(octets.try_into().unwrap());
    segment.option(SACK).map_or(Vec::new(), |list| {
        let pairs = list.chunks(8);
        pairs
            .map(|pair| (number(&pair[..4]), number(&pair[4..])))
            .collect()
    })
}

/// Connects with these options; returns the SYN,ACK too.
fn connect<'w>(scene: &'w Scene, remote: SocketAddr, options: Vec<u8>) -> (Peer<'w>, Tcp) {
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 0xffff_f000);
    let syn = Tcp {
        options,
        ..peer.segment(SYN, &[])
    };
    scene.wire.send(&syn.frame());
    peer.snd_nxt = peer.snd_nxt.wrapping_add(1);
    let answer = peer.recv();
    assert!(answer.has(SYN | ACK));
    peer.rcv_nxt = answer.seq.wrapping_add(1);
    (peer, answer)
}

/// RFC 2018; regressions T12 and T13: one segment is missing, and nothing else has to come again.
#[test]
fn what_comes_behind_a_gap_is_kept_and_told_of() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let (mut peer, answer) = connect(&scene, remote, with_sack());
        assert!(answer.option(SACK_PERMITTED).is_some());
        peer.ack();
        let mut server = accept(&listener);
        let data = pattern(0, 5000);
        let first = peer.snd_nxt;
        let at = |n: u32| first.wrapping_add(n * 1000);
        let segments: Vec<Tcp> = (0..5)
            .map(|n| Tcp {
                seq: at(n),
                ..peer.segment(ACK | PSH, &data[n as usize * 1000..][..1000])
            })
            .collect();
        for (sent, told_then) in [
            (1, vec![(at(1), at(2))]),
            (3, vec![(at(3), at(4)), (at(1), at(2))]),
            (2, vec![(at(1), at(4))]),
        ] {
            scene.wire.send(&segments[sent].frame());
            let duplicate = peer.recv();
            assert_eq!((duplicate.ack, told(&duplicate)), (first, told_then));
        }
        scene.wire.send(&segments[0].frame());
        let filled = peer.recv();
        assert_eq!((filled.ack, told(&filled)), (at(4), vec![]));
        scene.wire.send(&segments[4].frame());
        peer.snd_nxt = at(5);
        peer.expect_acked();
        let mut got = vec![0; 5000];
        server.read_exact(&mut got).unwrap();
        assert_eq!(got, data);
        peer.rst();
    }
}

/// RFC 2883, section 4.1.
#[test]
fn what_comes_twice_is_told_of_once() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let _listener = tcp_listener(&scene.world.outside, remote);
    let (mut peer, _) = connect(&scene, remote, with_sack());
    let segment = peer.segment(ACK | PSH, &pattern(0, 1000));
    let first = peer.snd_nxt;
    let end = first.wrapping_add(1000);
    scene.wire.send(&segment.frame());
    peer.snd_nxt = end;
    assert_eq!(told(&peer.expect_acked()), []);
    scene.wire.send(&segment.frame());
    assert_eq!(told(&peer.expect_acked()), [(first, end)]);
    peer.send_data(&pattern(1000, 10));
    assert_eq!(told(&peer.expect_acked()), []);
}

#[test]
fn a_fin_before_its_data_is_kept_too() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET6, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    let data = pattern(0, 2000);
    let mut last = peer.segment(ACK | PSH | FIN, &data[1000..]);
    last.seq = last.seq.wrapping_add(1000);
    scene.wire.send(&last.frame());
    peer.send(ACK | PSH, &data[..1000]);
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got, data);
    peer.snd_nxt = peer.snd_nxt.wrapping_add(1001);
    peer.expect_acked();
}

/// RFC 8985: the guest says what it holds, and only the rest is sent again, at once.
#[test]
fn only_the_holes_are_sent_again() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let (mut peer, _) = connect(&scene, remote, with_sack());
        peer.ack();
        let mut server = accept(&listener);
        server.write_all(&pattern(0, 28_000)).unwrap();
        // Twenty segments, or more where the host's octets came in pieces; the second and the fifth are lost.
        let first = peer.rcv_nxt;
        let mut edges = vec![0];
        while *edges.last().unwrap() < 28_000 {
            let segment = peer.recv();
            let at = edges.last().unwrap();
            assert_eq!(segment.seq, first.wrapping_add(*at));
            edges.push(at + segment.payload.len() as u32);
            // T44: whoever waits for more need not, at the end.
            assert!(segment.has(PSH) || edges.last() != Some(&28_000));
        }
        let at = |n: usize| first.wrapping_add(edges[n]);
        let end = edges.len() - 1;
        peer.rcv_nxt = at(1);
        let ack = Tcp {
            options: blocks(&[(at(5), at(end)), (at(2), at(4))]),
            ..peer.segment(ACK, &[])
        };
        scene.wire.send(&ack.frame());
        for hole in [1, 4] {
            // A busy machine may have taken so long that the end was probed.
            let again = peer.expect("hole", |s| s.seq != at(end - 1));
            let len = (edges[hole + 1] - edges[hole]) as usize;
            assert_eq!((again.seq, again.payload.len()), (at(hole), len));
            assert_pattern(u64::from(edges[hole]), &again.payload);
        }
        peer.rcv_nxt = at(end);
        peer.ack();
        server.write_all(&pattern(28_000, 1000)).unwrap();
        let next = peer.expect("data", |s| s.seq != at(end - 1));
        assert_eq!(next.seq, at(end));
        assert_pattern(28_000, &next.payload);
        peer.rst();
    }
}

/// RFC 8985, section 7: the end of what was sent is lost, and nothing follows that could tell.
#[test]
fn a_lost_tail_is_sent_again() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let (mut peer, _) = connect(&scene, remote, with_sack());
    peer.ack();
    let mut server = accept(&listener);
    server.write_all(&pattern(0, 7000)).unwrap();
    let mut got = peer.read(2800);
    // The rest is lost: the last segment alone comes first.
    let first = peer.rcv_nxt;
    let last = first.wrapping_add(2800);
    let again = peer.expect("the tail again", |s| s.seq == last);
    assert_eq!(again.payload.len(), 1400);
    let again = peer.expect("the tail again", |s| s.seq == last);
    let ack = Tcp {
        options: blocks(&[(last, last.wrapping_add(again.payload.len() as u32))]),
        ..peer.segment(ACK, &[])
    };
    scene.wire.send(&ack.frame());
    got.extend(peer.read(4200));
    assert_pattern(0, &got);
}

/// RFC 7323, section 3 and 5.
#[test]
fn timestamps_are_echoed_and_old_ones_are_not_believed() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut options = syn_options(1400, Some(0));
    options.extend(stamps(1_000_000, 0));
    let (mut peer, answer) = connect(&scene, remote, options);
    let echo = |segment: &Tcp| segment.option(TIMESTAMPS).map(|list| list[4..].to_vec());
    let echoes = |value: u32| Some(value.to_be_bytes().to_vec());
    assert_eq!(echo(&answer), echoes(1_000_000));
    let stamped = |peer: &Peer<'_>, value, payload: &[u8]| Tcp {
        options: stamps(value, 0),
        ..peer.segment(ACK | PSH, payload)
    };
    scene
        .wire
        .send(&stamped(&peer, 1_000_005, b"hello").frame());
    peer.snd_nxt = peer.snd_nxt.wrapping_add(5);
    assert_eq!(echo(&peer.expect_acked()), echoes(1_000_005));
    let mut server = accept(&listener);
    // From the past (PAWS): acknowledged and dropped.
    scene.wire.send(&stamped(&peer, 999_999, b"wrong").frame());
    assert_eq!(echo(&peer.expect_acked()), echoes(1_000_005));
    scene.wire.send(&stamped(&peer, 1_000_006, b" you").frame());
    peer.snd_nxt = peer.snd_nxt.wrapping_add(4);
    peer.expect_acked();
    let mut got = [0; 9];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello you");
    // The option's room comes out of the segment.
    server.write_all(&pattern(0, 5000)).unwrap();
    let data = peer.recv();
    assert_eq!(echo(&data), echoes(1_000_006));
    assert_eq!(data.payload.len(), 1388);
}

/// Regression T35; RFC 9293, section 3.8.4: answered, and the host's kernel asks its peer in turn.
#[test]
fn a_keepalive_of_the_guest_is_answered_and_passed_on() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote: SocketAddr = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    let asks = || {
        let rows = scene.world.pod.proc_net("tcp");
        let row = rows.iter().find(|row| row.contains(":0009 01 "));
        // The sixth column: 02 is the keepalive timer (proc(5)).
        row.is_some_and(|row| {
            row.split_whitespace()
                .nth(5)
                .is_some_and(|timer| timer.starts_with("02:"))
        })
    };
    assert!(!asks());
    for octets in [&b""[..], b"x"] {
        let mut question = peer.segment(ACK, octets);
        question.seq = question.seq.wrapping_sub(1);
        scene.wire.send(&question.frame());
        let answer = peer.recv();
        assert_eq!((answer.ack, answer.payload.len()), (peer.snd_nxt, 0));
    }
    assert!(wait_until(LONG, asks));
    server.set_read_timeout(Some(QUIET)).unwrap();
    let error = uninterrupted(|| server.read(&mut [0])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}
