//! UDP from the guest to the world, and back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use guest::{
    Guest, Icmp, Scene, Udp, both,
    fragment::parts,
    frame::{Ip, assert_quotes},
    guest_addr, neighbour_of, pattern,
};
use lab::{
    QUIET, Translator, World,
    servers::{UdpEcho, udp_socket},
    uninterrupted, wait_until,
    world::{GATEWAY4, INTERNET4, INTERNET6, PROHIBITED4, PROHIBITED6, UNREACHABLE4, UNREACHABLE6},
};

/// Waits for the datagram from `src` to `dst` and returns what it carries.
fn expect(scene: &Scene, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let datagram = scene.wire.expect("datagram", |frame| {
        Udp::of_frame(frame).filter(|udp| (udp.src, udp.dst) == (src, dst))
    });
    datagram.payload
}

/// Sends a datagram and expects it back.
fn assert_echo(scene: &Scene, local: SocketAddr, server: SocketAddr, payload: &[u8]) {
    scene.wire.send(&Udp::new(local, server, payload).frame());
    assert_eq!(expect(scene, server, local), payload);
}

/// Regression U29: an empty one too.
#[test]
fn datagrams_of_any_length_come_back_in_both_families() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        // 60,000 octets are fragments on the way, which is the host's affair.
        for len in [1_usize, 0, 2, 999, 1472, 9000, 60_000] {
            let datagram = Udp::new(local, server.addr(), &pattern(0, len)).ip();
            for frame in parts(&datagram, len as u32, 65_520) {
                scene.wire.send(&frame);
            }
            assert_eq!(expect(&scene, server.addr(), local), pattern(0, len));
        }
    }
}

#[test]
fn a_whole_stack_talks_udp() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let mut guest = Guest::online(translator.connect(), 65_520);
    let socket = guest.udp(5353);
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&world.outside, addr);
        guest.send_to(socket, server.addr(), &pattern(0, 1400));
        assert_eq!(guest.recv_from(socket), (pattern(0, 1400), server.addr()));
    }
}

#[test]
fn the_source_port_is_kept() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        assert_echo(&scene, guest_addr(addr, 5060), server.addr(), b"hello");
        assert_eq!(server.clients(), [guest_addr(addr, 5060)]);
    }
}

/// Old NTP and NFS clients ask from ports that are not ours to take: any other will do.
#[test]
fn a_port_that_cannot_be_had_is_replaced() {
    let Some(scene) = Scene::new(&[]) else { return };
    let server = UdpEcho::start(&scene.world.outside, (INTERNET4, 123));
    let _taken = udp_socket(&scene.world.pod, (Ipv4Addr::UNSPECIFIED, 5060));
    for port in [123, 5060] {
        let local = guest_addr(server.addr(), port);
        assert_echo(&scene, local, server.addr(), b"what time is it?");
    }
}

#[test]
fn one_port_talks_to_many_and_many_ports_to_one() {
    let Some(scene) = Scene::new(&[]) else { return };
    let servers: Vec<_> = (7000..7010)
        .map(|port| UdpEcho::start(&scene.world.outside, (INTERNET4, port)))
        .collect();
    for (n, server) in servers.iter().enumerate() {
        let local = guest_addr(server.addr(), 5060);
        assert_echo(&scene, local, server.addr(), &pattern(n as u64, 100));
    }
    for port in 20_000..20_100 {
        let local = guest_addr(servers[0].addr(), port);
        assert_echo(&scene, local, servers[0].addr(), &port.to_be_bytes());
    }
}

/// A guest that moves from one address to another and back, or two behind one link: the host has one port for both.
#[test]
fn two_addresses_that_ask_one_server_from_one_port_have_their_own_answers() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        let first = guest_addr(addr, 5000);
        let second = neighbour_of(first);
        for (n, local) in [first, second, first, first, second]
            .into_iter()
            .enumerate()
        {
            let question = Udp::new(local, addr, &[n as u8]);
            scene.wire.send(&question.frame());
            let answer = scene.wire.expect("answer", Udp::of_frame);
            assert_eq!(answer, Udp::new(addr, local, &[n as u8]), "round {n}");
        }
        let clients = server.clients();
        assert_eq!(clients[0], first);
        assert_ne!(clients[1].port(), 5000);
        assert_eq!(clients[2..], [clients[0], clients[0], clients[1]]);
    }
}

/// Regression U26.
#[test]
fn a_burst_arrives_in_order_and_none_is_lost() {
    let Some(scene) = Scene::new(&[]) else { return };
    let addr = (INTERNET4, 9).into();
    let server = udp_socket(&scene.world.outside, addr);
    let local = guest_addr(addr, 50_000);
    // Lengths as they come, and a stretch of equal ones, which may leave as one.
    let lengths = (0..60).map(|n| if n % 20 < 10 { 800 } else { n * 13 });
    let mut burst = Vec::new();
    for (n, len) in lengths.clone().enumerate() {
        let datagram = Udp::new(local, addr, &pattern(n as u64, len)).frame();
        burst.extend(guest::wire::framed(&datagram));
    }
    scene.wire.send_raw(&burst);
    let mut bytes = vec![0; 1 << 16];
    for (n, len) in lengths.enumerate() {
        let (got, from) = uninterrupted(|| server.recv_from(&mut bytes)).unwrap();
        assert_eq!(bytes[..got], pattern(n as u64, len), "datagram {n}");
        server.send_to(&bytes[..got], from).unwrap();
    }
    for n in 0..60 {
        let len = if n % 20 < 10 { 800 } else { n * 13 };
        assert_eq!(
            expect(&scene, addr, local),
            pattern(n as u64, len),
            "datagram {n}"
        );
    }
}

/// What the guest left undone for its card to do.
#[test]
fn a_partial_checksum_is_no_reason_to_drop() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        let mut ip = Udp::new(local, server.addr(), b"hello").ip();
        ip.payload[6..8].copy_from_slice(&[0xbe, 0xef]);
        scene.wire.send(&ip.frame());
        assert_eq!(expect(&scene, server.addr(), local), b"hello");
    }
}

/// X13: the quote is what the guest sent, and no octet more.
#[test]
fn a_closed_port_is_an_icmp_error_with_an_exact_quote() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (remote, code) in both(INTERNET4, INTERNET6, 81).into_iter().zip([3, 4]) {
        for len in [0, 1, 100, 1000] {
            let local = guest_addr(remote, 50_000);
            let datagram = Udp::new(local, remote, &pattern(0, len)).ip();
            scene.wire.send(&datagram.frame());
            let error = scene.wire.expect("ICMP error", |frame| {
                Icmp::of_frame(frame).filter(Icmp::is_unreachable)
            });
            assert_eq!((error.src, error.dst), (remote.ip(), local.ip()));
            assert_eq!((error.code, error.word), (code, 0));
            assert_quotes(&error, &datagram.packet());
        }
    }
}

/// The host itself under two of the names that it has for the guest.
const MAPPED: [&str; 4] = [
    "--map-guest-addr",
    "192.0.2.8",
    "--map-guest-addr",
    "2001:db8:8::8",
];

/// Addresses behind which the host answers from where it is asked.
fn hosts_own() -> [IpAddr; 4] {
    ["10.233.70.1", "fe80::1", "192.0.2.8", "2001:db8:8::8"].map(|addr| addr.parse().unwrap())
}

/// Both ends of the host's socket would be one: what is sent there would come back to it (RFC 1122, section 4.1.3.1).
#[test]
fn nobody_answers_at_a_port_of_the_hosts_that_the_guest_asks_from_the_same_number() {
    let Some(scene) = Scene::new(&MAPPED) else {
        return;
    };
    for (n, addr) in (0..).zip(hosts_own()) {
        let remote = SocketAddr::new(addr, 9100 + n);
        let local = guest_addr(remote, remote.port());
        for _ in 0..2 {
            let datagram = Udp::new(local, remote, b"anybody?").ip();
            scene.wire.send(&datagram.frame());
            let error = scene.wire.expect("ICMP error", |frame| {
                assert_eq!(Udp::of_frame(frame), None);
                Icmp::of_frame(frame).filter(Icmp::is_unreachable)
            });
            assert_eq!((error.src, error.dst), (remote.ip(), local.ip()));
            assert_quotes(&error, &datagram.packet());
        }
    }
}

/// A forwarded port is there for the guest as for others, whatever port it asks from.
#[test]
fn the_guest_reaches_itself_by_a_forwarded_port_from_the_same_number() {
    let args = [&MAPPED[..], &["-u", "9100:6053"]].concat();
    let Some(scene) = Scene::new(&args) else {
        return;
    };
    for addr in hosts_own() {
        let remote = SocketAddr::new(addr, 9100);
        let local = guest_addr(remote, 9100);
        let server = guest_addr(remote, 6053);
        let hello = Udp::new(local, remote, b"hello").frame();
        // It shows where it is by that.
        let came = scene.wire.ask("datagram", &hello, Udp::of_frame);
        assert_eq!((came.dst, &came.payload[..]), (server, &b"hello"[..]));
        scene
            .wire
            .send(&Udp::new(server, came.src, b"answer").frame());
        let answer = scene.wire.expect("answer", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.payload == b"answer")
        });
        assert_eq!((answer.src, answer.dst), (remote, local));
    }
}

#[test]
fn errors_of_routers_are_told_as_they_are() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (remote, code) in [
        (SocketAddr::from((UNREACHABLE4, 53)), 1),
        ((UNREACHABLE6, 53).into(), 0),
        ((PROHIBITED4, 53).into(), 13),
        ((PROHIBITED6, 53).into(), 1),
    ] {
        let local = guest_addr(remote, 50_000);
        let datagram = Udp::new(local, remote, b"question").ip();
        scene.wire.send(&datagram.frame());
        let error = scene.wire.expect("ICMP error", |frame| {
            Icmp::of_frame(frame).filter(Icmp::is_unreachable)
        });
        assert_eq!(error.code, code, "{remote}");
        assert_eq!(error.dst, local.ip());
        if remote.is_ipv4() {
            assert_eq!(error.src, GATEWAY4);
        }
        assert_quotes(&error, &datagram.packet());
    }
}

/// T56, U02, U07: ends nobody can have.
#[test]
fn impossible_endpoints_are_dropped() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    let server = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    for (local, remote) in [
        ("10.233.70.50:0", "198.51.100.1:7"),
        ("10.233.70.50:5", "198.51.100.1:0"),
        ("224.0.0.1:5", "198.51.100.1:7"),
        ("255.255.255.255:5", "198.51.100.1:7"),
        ("10.233.70.50:5", "0.0.0.0:7"),
        ("[fd10:233:70::50]:0", "[2001:db8:51::1]:7"),
        ("[fd10:233:70::50]:5", "[::]:7"),
        ("[ff02::1]:5", "[2001:db8:51::1]:7"),
    ] {
        let [local, remote] = [local, remote].map(|a| a.parse::<SocketAddr>().unwrap());
        scene.wire.send(&Udp::new(local, remote, b"hello").frame());
    }
    scene.wire.never(QUIET, "a datagram", Udp::of_frame);
    assert_eq!(server.clients(), []);
    assert!(scene.translator.fd_count() <= idle);
    scene.translator.assert_alive();
}

#[test]
fn lengths_that_do_not_fit_are_dropped() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let server = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    let local = guest_addr(server.addr(), 50_000);
    let good = Udp::new(local, server.addr(), b"hello").ip();
    for len in [0_u16, 7, 14, 0xffff] {
        let mut bad = good.clone();
        bad.payload[4..6].copy_from_slice(&len.to_be_bytes());
        scene.wire.send(&bad.frame());
    }
    let short = Ip {
        payload: good.payload[..7].to_vec(),
        ..good.clone()
    };
    scene.wire.send(&short.frame());
    scene.wire.never(QUIET, "a datagram", Udp::of_frame);
    assert_eq!(server.clients(), []);
    scene.translator.assert_alive();
    scene.wire.send(&good.frame());
    assert_eq!(expect(&scene, server.addr(), local), b"hello");
}

/// V19: Ethernet frames are padded; what is behind the packet is no part of it.
#[test]
fn padding_is_cut_off() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 7) {
        let server = UdpEcho::start(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        let mut frame = Udp::new(local, server.addr(), b"hi").frame();
        frame.extend_from_slice(&[0xaa; 30]);
        scene.wire.send(&frame);
        assert_eq!(expect(&scene, server.addr(), local), b"hi");
    }
}

/// What the host sends before anything was read from the flow, and what comes when the guest has long been silent.
#[test]
fn several_replies_to_one_request_arrive() {
    let Some(scene) = Scene::new(&[]) else { return };
    let addr = (INTERNET6, 9).into();
    let server = udp_socket(&scene.world.outside, addr);
    let local = guest_addr(addr, 50_000);
    scene
        .wire
        .send(&Udp::new(local, addr, b"subscribe").frame());
    let mut bytes = [0; 99];
    let (_, from) = uninterrupted(|| server.recv_from(&mut bytes)).unwrap();
    for n in 0..50_u8 {
        server.send_to(&vec![n; usize::from(n)], from).unwrap();
    }
    for n in 0..50_u8 {
        assert_eq!(expect(&scene, addr, local), vec![n; usize::from(n)]);
    }
}

/// RFC 1350, section 4: the port that is asked never answers. A client may ask for its next file from the same port.
#[test]
fn a_tftp_server_is_heard_that_answers_from_a_port_of_its_own() {
    let Some(scene) = Scene::new(&[]) else { return };
    let outside = &scene.world.outside;
    let places = both(INTERNET4, INTERNET6, 69).map(|server| (server, server, outside));
    let on_host = ((GATEWAY4, 69).into(), (Ipv4Addr::LOCALHOST, 69).into());
    let places = places.into_iter();
    for (seen, server, host) in places.chain([(on_host.0, on_host.1, &scene.world.pod)]) {
        let asked = udp_socket(host, server);
        let local = guest_addr(seen, 2070);
        let mut bytes = [0; 99];
        for _ in 0..3 {
            scene.wire.send(&Udp::new(local, seen, b"read").frame());
            let (_, client) = uninterrupted(|| asked.recv_from(&mut bytes)).unwrap();
            let transfer = udp_socket(host, (server.ip(), 0));
            let port = transfer.local_addr().unwrap().port();
            let seen = SocketAddr::new(seen.ip(), port);
            for block in [b"block 1", b"block 2"] {
                transfer.send_to(block, client).unwrap();
            }
            for block in [b"block 1", b"block 2"] {
                assert_eq!(expect(&scene, seen, local), block);
            }
            scene.wire.send(&Udp::new(local, seen, b"ACK").frame());
            let (len, from) = uninterrupted(|| transfer.recv_from(&mut bytes)).unwrap();
            assert_eq!((&bytes[..len], from), (&b"ACK"[..], client));
            transfer.send_to(b"block 3", client).unwrap();
            assert_eq!(expect(&scene, seen, local), b"block 3");
        }
    }
}

#[test]
fn nobody_else_answers_for_a_tftp_server() {
    let Some(scene) = Scene::new(&[]) else { return };
    let server = (INTERNET4, 69).into();
    let asked = udp_socket(&scene.world.outside, server);
    let local = guest_addr(server, 2070);
    scene.wire.send(&Udp::new(local, server, b"read").frame());
    let mut bytes = [0; 99];
    let (_, client) = uninterrupted(|| asked.recv_from(&mut bytes)).unwrap();
    let other = udp_socket(&scene.world.outside, (GATEWAY4, 0));
    other.send_to(b"of another", client).unwrap();
    asked.send_to(b"of the server", client).unwrap();
    let first = scene.wire.expect("datagram", Udp::of_frame);
    assert_eq!(
        (first.src, &first.payload[..]),
        (server, &b"of the server"[..])
    );
}

#[test]
fn no_udp_is_silence() {
    let Some(scene) = Scene::new(&["--no-udp"]) else {
        return;
    };
    let server = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    let local = guest_addr(server.addr(), 50_000);
    scene
        .wire
        .send(&Udp::new(local, server.addr(), b"hello").frame());
    assert!(!wait_until(QUIET, || !server.clients().is_empty()));
}
