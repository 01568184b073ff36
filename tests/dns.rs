//! `--dns-forward` and `--dns-host`: an address of the guest's network behind which the host's resolver answers, for DNS and
//! DNS over TLS or QUIC, by UDP and TCP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use guest::{Icmp, Peer, Scene, Udp, Wire, frame::SYN, guest_addr};
use lab::{
    Host, QUIET, Setup, World,
    servers::{TcpServer, UdpEcho},
    world::{INTERNET4, INTERNET6},
};

/// Nobody has these.
const FORWARD4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
const FORWARD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x53, 0, 0, 0, 0, 0x53);

const FORWARD: [&str; 4] = [
    "--dns-forward",
    "192.0.2.53",
    "--dns-forward",
    "2001:db8:53::53",
];

/// Forwarding addresses, and where the resolvers behind them are.
const OUTSIDE: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(FORWARD4), IpAddr::V4(INTERNET4)),
    (IpAddr::V6(FORWARD6), IpAddr::V6(INTERNET6)),
];

/// DNS (RFC 1035), DNS over TLS (RFC 7858) and over QUIC (RFC 9250).
const PORTS: [u16; 2] = [53, 853];

/// A resolver at both ports, by UDP and TCP; by TCP it says where it is.
fn resolver(host: &Host, addr: IpAddr) -> (Vec<UdpEcho>, Vec<TcpServer>) {
    let tcp = |port| {
        TcpServer::start(host, (addr, port), |mut stream| {
            let own = stream.local_addr().unwrap();
            write!(stream, "{own}").unwrap();
        })
    };
    let udp = |port| UdpEcho::start(host, (addr, port));
    (PORTS.map(udp).into(), PORTS.map(tcp).into())
}

/// Asks by UDP; the answer must come from there.
fn assert_answers(wire: &Wire, remote: SocketAddr) {
    let local = guest_addr(remote, 5353);
    wire.send(&Udp::new(local, remote, b"question").frame());
    let answer = wire.expect("answer", Udp::of_frame);
    assert_eq!(answer, Udp::new(remote, local, b"question"));
}

/// Where the server behind `remote` says that it is.
fn whereabouts(wire: &Wire, remote: SocketAddr) -> String {
    let mut peer = Peer::connect(wire, guest_addr(remote, 1000), remote);
    let said = peer.read_to_end();
    peer.fin();
    peer.expect_acked();
    String::from_utf8(said).unwrap()
}

fn assert_forwarded(wire: &Wire, pairs: &[(IpAddr, IpAddr)]) {
    for &(forward, host) in pairs {
        for port in PORTS {
            let remote = (forward, port).into();
            assert_answers(wire, remote);
            let there = SocketAddr::new(host, port).to_string();
            assert_eq!(whereabouts(wire, remote), there);
        }
    }
}

/// One socket of a resolver asks both, which are one to the host.
#[test]
fn each_answer_comes_from_the_address_that_was_asked() {
    let host = INTERNET4.to_string();
    let host6 = INTERNET6.to_string();
    let args = [&FORWARD[..], &["--dns-host", &host, "--dns-host", &host6]].concat();
    let Some(scene) = Scene::new(&args) else {
        return;
    };
    for (forward, host) in OUTSIDE {
        let _resolver = UdpEcho::start(&scene.world.outside, (host, 53));
        for addr in [forward, host, forward, host, forward] {
            assert_answers(&scene.wire, (addr, 53).into());
        }
    }
}

/// Regression U21.
#[test]
fn the_forwarding_address_is_the_resolver_asked_for_by_udp_and_tcp_at_both_ports() {
    let options = ["--dns-host", "198.51.100.1", "--dns-host", "2001:db8:51::1"];
    let Some(scene) = Scene::new(&[&FORWARD[..], &options].concat()) else {
        return;
    };
    let _resolvers = OUTSIDE.map(|(_, addr)| resolver(&scene.world.outside, addr));
    assert_forwarded(&scene.wire, &OUTSIDE);
    // It can be asked under its own name too, and answers under that (U23).
    for (_, addr) in OUTSIDE {
        assert_answers(&scene.wire, (addr, 53).into());
    }
}

#[test]
fn without_a_resolver_asked_for_it_is_the_first_of_the_hosts_configuration() {
    let Some(world) = World::pod() else { return };
    let _resolvers = OUTSIDE.map(|(_, addr)| resolver(&world.outside, addr));
    let translator = Setup::new(&FORWARD)
        .resolv_conf(
            "nameserver 198.51.100.1\nnameserver 2001:db8:51::1\nnameserver 198.51.100.2\n",
        )
        .start(&world.pod);
    assert_forwarded(&Wire::new(translator.connect()), &OUTSIDE);
}

/// Regression U30: what comes from the host's loopback comes from the address that was asked.
#[test]
fn a_resolver_on_the_hosts_loopback_answers_under_the_forwarding_address() {
    const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
    let Some(world) = World::pod() else { return };
    world.pod.allow_low_ports();
    let loopback = Ipv6Addr::LOCALHOST.into();
    let _resolvers = [STUB, loopback].map(|addr| resolver(&world.pod, addr));
    let translator = Setup::new(&FORWARD)
        .resolv_conf("nameserver 127.0.0.53\nnameserver ::1\n")
        .start(&world.pod);
    let wire = Wire::new(translator.connect());
    assert_forwarded(
        &wire,
        &[(FORWARD4.into(), STUB), (FORWARD6.into(), loopback)],
    );
}

/// A resolver that is down is seen to be: its port is unreachable, its connections are refused.
#[test]
fn a_resolver_that_is_down_is_refused_under_the_forwarding_address() {
    let options = ["--dns-host", "198.51.100.1", "--dns-host", "2001:db8:51::1"];
    let Some(scene) = Scene::new(&[&FORWARD[..], &options].concat()) else {
        return;
    };
    for (forward, _) in OUTSIDE {
        for port in PORTS {
            let remote = SocketAddr::new(forward, port);
            let question = Udp::new(guest_addr(remote, 5353), remote, b"question");
            scene.wire.send(&question.frame());
            let error = scene.wire.expect("ICMP error", |frame| {
                Icmp::of_frame(frame).filter(Icmp::is_unreachable)
            });
            assert_eq!(error.src, forward);
            guest::frame::assert_quotes(&error, &question.ip().packet());
            let mut peer = Peer::new(&scene.wire, guest_addr(remote, 1000), remote, 7);
            peer.send(SYN, &[]);
            peer.expect_reset();
        }
    }
}

/// Whatever else is asked of that address goes to that address.
#[test]
fn no_other_port_and_no_echo_is_forwarded() {
    let options = ["--dns-host", "198.51.100.1", "--dns-host", "2001:db8:51::1"];
    let Some(scene) = Scene::new(&[&FORWARD[..], &options].concat()) else {
        return;
    };
    let outside = &scene.world.outside;
    for (forward, host) in OUTSIDE {
        let _server = UdpEcho::start(outside, (host, 5353));
        let _tcp = TcpServer::echo(outside, (host, 5353));
        let remote = SocketAddr::new(forward, 5353);
        let local = guest_addr(remote, 5353);
        scene
            .wire
            .send(&Udp::new(local, remote, b"question").frame());
        let ping = Icmp::echo_request(local.ip(), forward, 7, 1, b"hello");
        scene.wire.send(&ping.frame());
        let peer = Peer::new(&scene.wire, local, remote, 7);
        scene.wire.send(&peer.segment(SYN, &[]).frame());
        scene.wire.never(QUIET, "an answer", |frame| {
            let echo = Icmp::of_frame(frame).is_some_and(|icmp| icmp.is_echo_reply());
            let open = guest::Tcp::of_frame(frame).is_some_and(|segment| segment.has(SYN));
            (echo || open || Udp::of_frame(frame).is_some()).then_some(())
        });
    }
}
