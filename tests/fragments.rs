//! Packets in parts, from the guest and to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{collections::HashSet, net::SocketAddr, os::fd::AsFd};

use guest::{
    Icmp, Scene, Udp, Wire, both,
    fragment::{Joiner, part, parts, raw_part},
    frame::Ip,
    guest_addr, pattern,
};
use lab::{
    QUIET, Translator, World,
    servers::{UdpEcho, udp_socket},
    uninterrupted,
    world::{INTERNET4, INTERNET6},
};
use passt_rs::sys::{Iovecs, Part, msg};

/// Waits for the datagram from `src`, whole or in parts; also the largest packet it came in.
fn expect(scene: &Scene, src: SocketAddr) -> (Vec<u8>, usize) {
    let mut joiner = Joiner::default();
    let payload = scene.wire.expect("datagram", |frame| {
        let whole = joiner.add(frame)?;
        let datagram = Udp::of_frame(&whole)?;
        (datagram.src == src).then_some(datagram.payload)
    });
    (payload, joiner.largest)
}

/// The datagram and its packet.
fn datagram(server: SocketAddr, len: usize) -> Ip {
    Udp::new(guest_addr(server, 50_000), server, &pattern(0, len)).ip()
}

/// Requests as of NFS over UDP, answers as of DNS, and the largest there is: at the MTU of an Ethernet.
#[test]
fn large_datagrams_pass_a_link_of_1500_both_ways() {
    for (mtu, lengths) in [
        ("1500", &[1472_usize, 1473, 4096, 8192, 32_768, 65_507][..]),
        ("65520", &[65_507]),
        ("1280", &[1300, 65_507]),
        ("576", &[4096]),
    ] {
        let Some(scene) = Scene::new(&["--mtu", mtu]) else {
            return;
        };
        let mtu: usize = mtu.parse().unwrap();
        for addr in both(INTERNET4, INTERNET6, 7) {
            // IPv6 knows no link of less than 1280.
            if addr.is_ipv6() && mtu < 1280 {
                continue;
            }
            let server = UdpEcho::start(&scene.world.outside, addr);
            for &len in lengths {
                for frame in parts(&datagram(addr, len), len as u32, mtu) {
                    scene.wire.send(&frame);
                }
                let (payload, largest) = expect(&scene, server.addr());
                assert!(payload == pattern(0, len), "{len} octets at {mtu}");
                assert!(largest <= mtu, "{largest} octets at {mtu}");
            }
        }
    }
}

/// Parts of two packets may have had one identification (RFC 4963): what a receiver would have dropped is not sent.
#[test]
fn a_whole_whose_checksum_is_wrong_is_dropped() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        let right = datagram(addr, 4096);
        let mut wrong = datagram(addr, 4096);
        wrong.payload[3000] ^= 1;
        for (id, ip) in [(1, &wrong), (2, &right)] {
            for frame in parts(ip, id, 1500) {
                scene.wire.send(&frame);
            }
        }
        let mut got = [0; 5000];
        let len = uninterrupted(|| server.recv(&mut got)).unwrap();
        assert!(got[..len] == pattern(0, 4096));
    }
}

/// What is behind a datagram in its packet, as options of UDP are (RFC 9868), is no part of it, nor of its checksum (RFC 768).
#[test]
fn a_datagram_that_ends_before_its_packet_does_is_carried_whole_and_in_parts() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        for (id, len) in [(1, 400), (2, 4096)] {
            let mut ip = datagram(addr, len);
            ip.payload.extend([1; 8]);
            for frame in parts(&ip, id, 1500) {
                scene.wire.send(&frame);
            }
            let mut got = [0; 5000];
            let received = uninterrupted(|| server.recv(&mut got)).unwrap();
            assert!(got[..received] == pattern(0, len), "{len} octets");
        }
    }
}

/// The kernel hands over what a peer sent by one call (UDP_SEGMENT) as one: each of it is cut for itself.
#[test]
fn datagrams_that_arrive_as_one_are_cut_one_by_one() {
    let Some(scene) = Scene::new(&["--mtu", "1280"]) else {
        return;
    };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        scene.wire.send(&Udp::new(local, addr, b"hello").frame());
        let (_, client) = uninterrupted(|| server.recv_from(&mut [0; 16])).unwrap();
        server.connect(client).unwrap();
        let datagrams: Vec<_> = (0..20).map(|n| pattern(n, 1400)).collect();
        let octets = datagrams.concat();
        let mut iovecs = Iovecs::new();
        let mut gather = iovecs.gather();
        assert!(gather.push(&octets));
        let whole = Part {
            start: 0,
            end: 1,
            segment: Some(1400),
        };
        msg::send_many(server.as_fd(), &gather, &[whole]).unwrap();
        for (n, datagram) in datagrams.iter().enumerate() {
            assert!(expect(&scene, addr).0 == *datagram, "datagram {n} changed");
        }
    }
}

/// The identification of an IPv4 packet that may be cut on its way; `None` if it must not be, as then it has none.
fn number(frame: &[u8]) -> Option<u16> {
    let id = u16::from_be_bytes([frame[18], frame[19]]);
    let whole = frame[20] == 0x40;
    assert!(!whole || id == 0, "a number of what stays whole: {id}");
    (!whole).then_some(id)
}

/// Numbers of the next datagrams from `src`, of so many octets.
fn numbers(scene: &Scene, src: SocketAddr, lengths: &[usize]) -> Vec<Option<u16>> {
    let next = |len: &usize| {
        let (id, payload) = scene.wire.expect("datagram", |frame| {
            let datagram = Udp::of_frame(frame).filter(|datagram| datagram.src == src)?;
            Some((number(frame), datagram.payload))
        });
        assert!(payload == pattern(0, *len), "{len} octets");
        id
    };
    lengths.iter().map(next).collect()
}

fn all_differ(numbers: &[Option<u16>]) -> bool {
    let set: HashSet<_> = numbers.iter().flatten().collect();
    set.len() == numbers.len()
}

/// RFC 6864, section 4: the guest may have to pass it on by a link of 1500, and whether its sender forbade that we cannot know.
#[test]
fn answers_larger_than_usual_links_take_may_be_cut_on_their_way() {
    let Some(scene) = Scene::new(&[]) else { return };
    let addr = (INTERNET4, 9).into();
    let server = udp_socket(&scene.world.outside, addr);
    let local = guest_addr(addr, 50_000);
    scene.wire.send(&Udp::new(local, addr, b"hello").frame());
    let (_, client) = uninterrupted(|| server.recv_from(&mut [0; 16])).unwrap();
    let lengths = [0, 1000, 1472, 1473, 3000, 3000, 65_000];
    for len in lengths {
        server.send_to(&pattern(0, len), client).unwrap();
    }
    let ids = numbers(&scene, addr, &lengths);
    assert_eq!(ids[..3], [None; 3]);
    assert!(all_differ(&ids[3..]), "{ids:?}");
}

#[test]
fn parts_come_in_any_order_and_mixed_with_others() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        let [one, other] = [4000, 5000].map(|len| datagram(addr, len));
        let (mut one, other) = (parts(&one, 1, 1500), parts(&other, 2, 1500));
        one.reverse();
        for frame in one.iter().zip(&other).flat_map(|(a, b)| [a, b]) {
            scene.wire.send(frame);
        }
        for frame in &other[one.len()..] {
            scene.wire.send(frame);
        }
        assert_eq!(expect(&scene, server.addr()).0.len(), 4000);
        assert_eq!(expect(&scene, server.addr()).0.len(), 5000);
    }
}

/// RFC 5722, section 4: nothing of such a packet is delivered. One that comes twice does no harm.
#[test]
fn overlapping_parts_end_a_packet_and_repeated_ones_do_not() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        let ip = datagram(addr, 2000);
        let whole = ip.payload.len();
        scene.wire.send(&part(&ip, 1, 0, 1000, true));
        scene.wire.send(&part(&ip, 1, 992, whole - 992, false));
        scene.wire.send(&part(&ip, 1, 1000, whole - 1000, false));
        scene.wire.never(QUIET, "a datagram", Udp::of_frame);
        assert_eq!(server.clients(), []);
        for frame in parts(&ip, 2, 1500) {
            if frame.len() > 1000 {
                scene.wire.send(&frame);
            }
            scene.wire.send(&frame);
        }
        assert_eq!(expect(&scene, server.addr()).0, pattern(0, 2000));
    }
    scene.translator.assert_alive();
}

/// RFC 6946: a fragment header with all of the packet behind it.
#[test]
fn an_atomic_fragment_is_a_packet() {
    let Some(scene) = Scene::new(&[]) else { return };
    let addr = (INTERNET6, 7).into();
    let server = UdpEcho::start(&scene.world.outside, addr);
    let ip = datagram(addr, 100);
    // Of another packet with the same identification there is a part already.
    scene.wire.send(&raw_part(&ip, 9, 0, &[0; 64], true));
    scene.wire.send(&part(&ip, 9, 0, ip.payload.len(), false));
    assert_eq!(expect(&scene, server.addr()).0, pattern(0, 100));
}

/// V20. Echoes and TCP too.
#[test]
fn a_fragmented_segment_reaches_its_connection() {
    use guest::{Peer, frame::ACK};
    use lab::servers::TcpServer;
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = TcpServer::echo(&scene.world.outside, addr);
        let mut peer = Peer::connect(&scene.wire, guest_addr(addr, 40_000), server.addr());
        let segment = peer.segment(ACK, &pattern(0, 3000));
        for frame in parts(&segment.ip(), 3, 1500) {
            scene.wire.send(&frame);
        }
        peer.snd_nxt = peer.snd_nxt.wrapping_add(3000);
        assert_eq!(peer.read(3000), pattern(0, 3000));
    }
}

/// What a hostile guest can do with them: memory stays bounded, others are served.
#[test]
fn a_flood_of_parts_without_an_end_hurts_nobody() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        let ip = datagram(addr, 60_000);
        for id in 0..3000 {
            let at = (id as usize % 40) * 1480;
            scene.wire.send(&part(&ip, id, at, 1480, true));
        }
        for (at, len, more) in [(65_528, 800, false), (65_528, 0, false), (0, 13, true)] {
            scene.wire.send(&raw_part(&ip, 7, at, &vec![1; len], more));
        }
        for frame in parts(&datagram(addr, 9000), 77_777, 1500) {
            scene.wire.send(&frame);
        }
        assert_eq!(expect(&scene, server.addr()).0, pattern(0, 9000));
    }
    assert!(scene.translator.rss() < 24 * 1024);
    scene.translator.assert_alive();
}

#[test]
fn large_echoes_pass_a_link_of_1500_both_ways() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for remote in both(INTERNET4, INTERNET6, 0) {
        let local = guest_addr(remote, 0);
        let request = Icmp::echo_request(local.ip(), remote.ip(), 7, 1, &pattern(0, 8000));
        for frame in parts(&request.ip(), 5, 1500) {
            scene.wire.send(&frame);
        }
        let mut joiner = Joiner::default();
        let reply = scene.wire.expect("echo reply", |frame| {
            Icmp::of_frame(&joiner.add(frame)?).filter(Icmp::is_echo_reply)
        });
        assert_eq!((reply.word, reply.body), (request.word, request.body));
        assert!(joiner.largest <= 1500);
    }
}

/// The same for echoes.
#[test]
fn echoes_larger_than_usual_links_take_may_be_cut_on_their_way() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = SocketAddr::from((INTERNET4, 0));
    let local = guest_addr(remote, 0);
    let ids = [1000, 3000, 3000].map(|len| {
        let request = Icmp::echo_request(local.ip(), remote.ip(), 7, 1, &pattern(0, len));
        for frame in parts(&request.ip(), 5, 1500) {
            scene.wire.send(&frame);
        }
        scene.wire.expect("echo reply", |frame| {
            Icmp::of_frame(frame).filter(Icmp::is_echo_reply)?;
            Some(number(frame))
        })
    });
    assert_eq!(ids[0], None);
    assert!(all_differ(&ids[1..]), "{ids:?}");
}

/// What is too large for the host's path and must not be fragmented is told with the MTU that would do.
#[test]
fn a_whole_datagram_above_the_path_mtu_is_too_big() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 7) {
        let (kind, code, local) = if remote.is_ipv4() {
            (3, 4, guest_addr(remote, 50_000))
        } else {
            (2, 0, guest_addr(remote, 50_000))
        };
        let echo = Icmp::echo_request(local.ip(), remote.ip(), 7, 1, &pattern(0, 3000)).ip();
        for packet in [datagram(remote, 3000), echo] {
            scene.wire.send(&packet.frame());
            let error = scene.wire.expect("ICMP error", Icmp::of_frame);
            assert_eq!((error.kind, error.code, error.word), (kind, code, 1500));
            guest::frame::assert_quotes(&error, &packet.packet());
        }
    }
}

/// A packet some of which never comes is given up, as by any host, after the host's own time; who sent the first part is told,
/// with that part quoted, others are not (RFC 792; RFC 4443, section 3.3).
#[test]
fn a_packet_that_is_never_whole_is_told_of_after_the_hosts_time() {
    let Some(world) = World::pod() else { return };
    world.pod.sysctl("ipv4/ipfrag_time", "1");
    world.pod.sysctl("ipv6/ip6frag_time", "1");
    let translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    for remote in both(INTERNET4, INTERNET6, 7) {
        let kind = if remote.is_ipv4() { 11 } else { 3 };
        let time_exceeded = |frame: &[u8]| Icmp::of_frame(frame).filter(|icmp| icmp.kind == kind);
        let frames = parts(&datagram(remote, 4000), 7, 1500);
        wire.send(&frames[0]);
        let error = wire.expect("time exceeded", time_exceeded);
        assert_eq!((error.code, error.dst), (1, guest_addr(remote, 0).ip()));
        assert_eq!(error.body[..8], frames[0][14..22], "the part is quoted");
        let middle = frames.last().unwrap();
        wire.send(middle);
        wire.never(
            5 * QUIET,
            "time exceeded without a first part",
            time_exceeded,
        );
    }
}
