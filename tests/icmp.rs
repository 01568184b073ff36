//! Echo ("ping") from the guest to the world, and back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use guest::{Icmp, Scene, Wire, dhcpv6::GUEST_LL, fragment::parts, pattern};
use lab::{
    Host, LONG, QUIET, Translator, World, uninterrupted,
    world::{GATEWAY4, INTERNET4, INTERNET6, POD4, POD6},
};

/// Pairs of the guest's address and one of the internet's.
const PAIRS: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(POD4), IpAddr::V4(INTERNET4)),
    (IpAddr::V6(POD6), IpAddr::V6(INTERNET6)),
];

fn expect_reply(wire: &Wire) -> Icmp {
    wire.expect("echo reply", |frame| {
        Icmp::of_frame(frame).filter(Icmp::is_echo_reply)
    })
}

/// Sends a request and expects the reply that belongs to it.
fn assert_echo(wire: &Wire, request: &Icmp) {
    wire.send(&request.frame());
    let reply = expect_reply(wire);
    assert_eq!((reply.src, reply.dst), (request.dst, request.src));
    assert_eq!(
        (reply.code, reply.word),
        (0, request.word),
        "identifier and sequence number"
    );
    assert_eq!(reply.body, request.body);
}

/// I01, I04, I05, I06: every identifier and sequence number is good, and so is every checksum.
#[test]
fn echoes_come_back_with_their_numbers_in_both_families() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (src, dst) in PAIRS {
        for (ident, seq) in [(1, 1), (0, 0), (65_535, 65_535), (0, 65_535), (4711, 0)] {
            assert_echo(
                &scene.wire,
                &Icmp::echo_request(src, dst, ident, seq, b"abcdefgh"),
            );
        }
    }
}

#[test]
fn echoes_of_any_size_come_back() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (src, dst) in PAIRS {
        for len in [0_usize, 1, 56, 1400, 8000] {
            let request = Icmp::echo_request(src, dst, 7, 1, &pattern(0, len));
            for frame in parts(&request.ip(), len as u32, 65_520) {
                scene.wire.send(&frame);
            }
            let reply = expect_reply(&scene.wire);
            assert_eq!((reply.word, reply.body), (request.word, request.body));
        }
    }
}

/// I08.
#[test]
fn echoes_side_by_side_do_not_mix() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (src, dst) in PAIRS {
        let requests: Vec<_> = (0..40_u16)
            .map(|n| Icmp::echo_request(src, dst, n % 8, n / 8, &n.to_be_bytes()))
            .collect();
        for request in &requests {
            scene.wire.send(&request.frame());
        }
        let mut replies: Vec<_> = requests.iter().map(|_| expect_reply(&scene.wire)).collect();
        replies.sort_by_key(|reply| reply.body.clone());
        for (request, reply) in requests.iter().zip(&replies) {
            assert_eq!((reply.word, &reply.body), (request.word, &request.body));
        }
    }
}

/// I03: identifiers are the kernel's, so that guests do not take them from each other.
#[test]
fn two_guests_may_use_the_same_identifier() {
    let Some(scene) = Scene::new(&[]) else { return };
    let other = Translator::start(&scene.world.pod, &[]);
    let wires = [&scene.wire, &Wire::new(other.connect())];
    for (src, dst) in PAIRS {
        let requests = [b"one", b"two"].map(|text| Icmp::echo_request(src, dst, 4711, 1, text));
        for (wire, request) in wires.iter().zip(&requests) {
            wire.send(&request.frame());
        }
        for (wire, request) in wires.iter().zip(&requests) {
            let reply = expect_reply(wire);
            assert_eq!((reply.word, &reply.body), (request.word, &request.body));
        }
    }
}

/// I07: a link-local address is reached over the template interface.
#[test]
fn a_link_local_neighbour_answers() {
    const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
    let Some(scene) = Scene::new(&[]) else { return };
    scene
        .world
        .outside
        .ip(&format!("addr add {NEIGHBOUR}/64 dev pod0 nodad"));
    let request = Icmp::echo_request(GUEST_LL.into(), NEIGHBOUR.into(), 7, 1, b"hello");
    assert_echo(&scene.wire, &request);
}

/// A socket that hears echo requests to `host`, whose kernel is silent from now on.
fn responder(host: &Host, v4: bool) -> Socket {
    let (domain, protocol, silence) = if v4 {
        (Domain::IPV4, Protocol::ICMPV4, "ipv4/icmp_echo_ignore_all")
    } else {
        (Domain::IPV6, Protocol::ICMPV6, "ipv6/icmp/echo_ignore_all")
    };
    host.sysctl(silence, "1");
    let socket = host.run(|| Socket::new(domain, Type::RAW, Some(protocol)));
    let socket = socket.expect("a raw socket");
    socket.set_read_timeout(Some(LONG)).expect("timeout");
    socket
}

/// Sends a request and expects word that it gets nowhere, which quotes it.
fn ask_in_vain(wire: &Wire, request: &Icmp) -> Icmp {
    wire.send(&request.frame());
    let error = wire.expect("ICMP error", |frame| {
        Icmp::of_frame(frame).filter(Icmp::is_unreachable)
    });
    guest::frame::assert_quotes(&error, &request.ip().packet());
    error
}

#[test]
fn a_host_without_a_route_says_so() {
    let Some(scene) = Scene::new(&[]) else { return };
    scene.world.pod.ip("route del default\nroute del ::/0");
    for (src, dst) in PAIRS {
        let request = Icmp::echo_request(src, dst, 7, 1, b"hello");
        let error = ask_in_vain(&scene.wire, &request);
        assert_eq!((error.code, error.dst), (0, src));
    }
}

/// It was there when the flow began.
#[test]
fn a_host_that_loses_its_route_says_so() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (src, dst) in PAIRS {
        assert_echo(&scene.wire, &Icmp::echo_request(src, dst, 7, 1, b"hello"));
    }
    scene.world.pod.ip("route del default\nroute del ::/0");
    for (src, dst) in PAIRS {
        let request = Icmp::echo_request(src, dst, 7, 2, b"hello");
        let error = ask_in_vain(&scene.wire, &request);
        assert_eq!(error.dst, src);
    }
}

/// Answers the next echo request, and then once more.
fn answer_twice(mut socket: &Socket, to: IpAddr) {
    let (request, reply, header) = if to.is_ipv4() {
        (8, 0, 20)
    } else {
        (128, 129, 0)
    };
    let mut bytes = [0; 2048];
    loop {
        let len = uninterrupted(|| socket.read(&mut bytes)).expect("a request");
        let message = &mut bytes[header..len];
        if message[0] != request {
            continue;
        }
        message[0] = reply;
        if to.is_ipv4() {
            // The sum of the rest; IPv6's is the kernel's to write.
            let sum = u16::from_be_bytes([message[2], message[3]]);
            let (sum, carry) = sum.overflowing_add(0x0800);
            message[2..4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
        }
        let to = SockAddr::from(SocketAddr::new(to, 0));
        for _ in 0..2 {
            socket.send_to(message, &to).expect("a reply");
        }
        return;
    }
}

/// Who is answered twice, as by two machines with one address, is to know.
#[test]
fn duplicate_replies_are_seen_as_such() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (src, dst) in PAIRS {
        let socket = responder(&scene.world.outside, dst.is_ipv4());
        let request = Icmp::echo_request(src, dst, 7, 1, b"hello");
        scene.wire.send(&request.frame());
        answer_twice(&socket, src);
        for _ in 0..2 {
            let reply = expect_reply(&scene.wire);
            assert_eq!((reply.word, &reply.body), (request.word, &request.body));
        }
    }
}

#[test]
fn the_hosts_loopback_answers_at_the_gateways_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    // Only the pod itself can answer when the wire is cut.
    scene.world.outside.ip("link set pod0 down");
    assert_echo(
        &scene.wire,
        &Icmp::echo_request(POD4.into(), GATEWAY4.into(), 7, 1, b"hello"),
    );
}

#[test]
fn a_wrong_checksum_is_dropped() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (src, dst) in PAIRS {
        let mut ip = Icmp::echo_request(src, dst, 7, 1, b"hello").ip();
        ip.payload[2] ^= 0x55;
        scene.wire.send(&ip.frame());
    }
    scene.wire.never(QUIET, "echo reply", |frame| {
        Icmp::of_frame(frame).filter(Icmp::is_echo_reply)
    });
}

/// I02: neither what comes from the guest, nor for a ping socket, which takes replies only.
#[test]
fn what_is_not_a_request_is_dropped() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    for (src, dst) in PAIRS {
        for kind in [0, 3, 5, 11, 13, 129, 1, 2, 200] {
            scene
                .wire
                .send(&Icmp::new(src, dst, kind, 0x0007_0001, b"hello").frame());
        }
        let mut coded = Icmp::echo_request(src, dst, 7, 1, b"hello");
        coded.code = 1;
        scene.wire.send(&coded.frame());
    }
    thread::sleep(QUIET);
    assert!(scene.translator.fd_count() <= idle + 2);
    scene.translator.assert_alive();
}

/// The host may forbid it: then the operator is told what to set, once.
#[test]
fn a_host_that_forbids_echo_is_named_once_and_nothing_breaks() {
    const SYSCTL: &str = "ping_group_range";
    let Some(world) = World::pod_without_ping() else {
        return;
    };
    let mut translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    for seq in 0..3 {
        for (src, dst) in PAIRS {
            wire.send(&Icmp::echo_request(src, dst, 7, seq, b"hello").frame());
        }
        thread::sleep(Duration::from_millis(50));
    }
    translator.expect_log(SYSCTL);
    thread::sleep(QUIET);
    assert_eq!(
        translator.log().matches(SYSCTL).count(),
        1,
        "{}",
        translator.log()
    );
    translator.assert_alive();
}

/// What the host refuses for one peer's sake says nothing of ping as such.
#[test]
fn a_peer_that_may_not_be_pinged_is_no_word_for_the_operator() {
    let Some(scene) = Scene::new(&[]) else {
        return;
    };
    let there = Ipv4Addr::new(203, 0, 113, 7);
    scene.world.pod.ip("route add prohibit 203.0.113.7/32");
    let echo = Icmp::echo_request(POD4.into(), there.into(), 7, 1, b"hello").frame();
    scene.wire.send(&echo);
    let prohibited = |frame: &[u8]| Icmp::of_frame(frame).filter(|icmp| icmp.kind == 3);
    assert_eq!(scene.wire.expect("unreachable", prohibited).code, 13);
    assert!(!scene.translator.log().contains("ping_group_range"));
}

#[test]
fn no_icmp_is_silence() {
    let Some(scene) = Scene::new(&["--no-icmp"]) else {
        return;
    };
    for (src, dst) in PAIRS {
        scene
            .wire
            .send(&Icmp::echo_request(src, dst, 7, 1, b"hello").frame());
    }
    scene.wire.never(QUIET, "echo reply", |frame| {
        Icmp::of_frame(frame).filter(Icmp::is_echo_reply)
    });
}
