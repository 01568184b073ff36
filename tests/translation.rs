//! Which address the guest says, and which one the host is asked for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use guest::{Peer, Scene, Udp, Wire, dhcpv6::GUEST_LL, frame::SYN, guest_addr};
use lab::{
    Host, QUIET, Setup, Translator, World,
    servers::{TcpServer, UdpEcho, udp_socket},
    uninterrupted,
    world::{GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, POD4, POD6},
};

/// A server that says `name` and whom it sees, and closes.
fn named(host: &Host, addr: impl Into<SocketAddr>, name: &'static str) -> TcpServer {
    TcpServer::start(host, addr, move |mut stream| {
        let peer = stream.peer_addr().unwrap().ip();
        write!(stream, "{name} {peer}").unwrap();
    })
}

/// What the server that answers at `remote` says.
fn hear(wire: &Wire, local: SocketAddr, remote: SocketAddr) -> String {
    let mut peer = Peer::connect(wire, local, remote);
    let said = peer.read_to_end();
    peer.fin();
    peer.expect_acked();
    String::from_utf8(said).unwrap()
}

/// The guest's link-local address reaches the router's.
fn link_local(port: u16) -> SocketAddr {
    (GUEST_LL, port).into()
}

#[test]
fn the_gateway_is_the_hosts_loopback() {
    let Some(scene) = Scene::new(&[]) else { return };
    let _servers = [
        named(&scene.world.pod, (Ipv4Addr::LOCALHOST, 80), "loopback"),
        named(&scene.world.pod, (Ipv6Addr::LOCALHOST, 80), "loopback"),
        named(&scene.world.outside, (GATEWAY4, 80), "outside"),
    ];
    let remote = (GATEWAY4, 80).into();
    let said = hear(&scene.wire, guest_addr(remote, 1000), remote);
    assert_eq!(said, "loopback 127.0.0.1");
    let said = hear(&scene.wire, link_local(1001), (GATEWAY6, 80).into());
    assert_eq!(said, "loopback ::1");
}

#[test]
fn the_gateways_datagrams_are_the_hosts_loopbacks() {
    let Some(scene) = Scene::new(&[]) else { return };
    let server = UdpEcho::start(&scene.world.pod, (Ipv4Addr::LOCALHOST, 9000));
    let remote = (GATEWAY4, 9000).into();
    let local = guest_addr(remote, 5060);
    scene.wire.send(&Udp::new(local, remote, b"hello").frame());
    let reply = scene.wire.expect("datagram", Udp::of_frame);
    assert_eq!(reply, Udp::new(remote, local, b"hello"));
    assert!(server.clients()[0].ip().is_loopback());
}

#[test]
fn without_the_mapping_the_gateway_is_the_gateway() {
    let Some(scene) = Scene::new(&["--no-map-gw"]) else {
        return;
    };
    let _servers = [
        named(&scene.world.pod, (Ipv4Addr::LOCALHOST, 80), "loopback"),
        named(&scene.world.outside, (GATEWAY4, 80), "outside"),
    ];
    let remote = (GATEWAY4, 80).into();
    let said = hear(&scene.wire, guest_addr(remote, 1000), remote);
    assert_eq!(said, "outside 10.233.70.50");
}

#[test]
fn another_address_can_be_the_hosts_loopback() {
    let Some(scene) = Scene::new(&[
        "--map-host-loopback",
        "192.0.2.7",
        "--map-host-loopback",
        "2001:db8:7::7",
    ]) else {
        return;
    };
    let _servers = [
        named(&scene.world.pod, (Ipv4Addr::LOCALHOST, 80), "loopback"),
        named(&scene.world.pod, (Ipv6Addr::LOCALHOST, 80), "loopback"),
        named(&scene.world.outside, (GATEWAY4, 80), "outside"),
    ];
    for (remote, want) in [
        ("192.0.2.7:80", "loopback 127.0.0.1"),
        ("[2001:db8:7::7]:80", "loopback ::1"),
        ("10.233.70.1:80", "outside 10.233.70.50"),
    ] {
        let remote = remote.parse().unwrap();
        assert_eq!(hear(&scene.wire, guest_addr(remote, 1000), remote), want);
    }
}

#[test]
fn another_address_can_be_the_host_at_the_guests_address() {
    let Some(scene) = Scene::new(&[
        "--map-guest-addr",
        "192.0.2.8",
        "--map-guest-addr",
        "2001:db8:8::8",
    ]) else {
        return;
    };
    let _servers = [
        named(&scene.world.pod, (POD4, 80), "pod"),
        named(&scene.world.pod, (POD6, 80), "pod"),
    ];
    for (remote, want) in [
        ("192.0.2.8:80", "pod 10.233.70.50"),
        ("[2001:db8:8::8]:80", "pod fd10:233:70::50"),
    ] {
        let remote = remote.parse().unwrap();
        assert_eq!(hear(&scene.wire, guest_addr(remote, 1000), remote), want);
    }
}

/// Asks by UDP at `remote`; the answer must come from there.
fn resolve(wire: &Wire, remote: SocketAddr) -> bool {
    let local = guest_addr(remote, 5353);
    wire.send(&Udp::new(local, remote, b"question").frame());
    let deadline = std::time::Instant::now() + Duration::from_secs(2);
    while let Some(left) = deadline.checked_duration_since(std::time::Instant::now()) {
        let Some(frame) = wire.recv(left) else { break };
        if Udp::of_frame(&frame).is_some_and(|udp| udp == Udp::new(remote, local, b"question")) {
            return true;
        }
    }
    false
}

#[test]
fn a_resolver_of_the_host_answers_at_the_forwarding_address() {
    let Some(scene) = Scene::new(&[
        "--dns-forward",
        "192.0.2.53",
        "--dns-host",
        "198.51.100.1",
        "--dns-forward",
        "2001:db8:53::53",
        "--dns-host",
        "2001:db8:51::1",
    ]) else {
        return;
    };
    let outside = &scene.world.outside;
    let _resolvers = [
        UdpEcho::start(outside, (INTERNET4, 53)),
        UdpEcho::start(outside, (INTERNET6, 53)),
        UdpEcho::start(outside, (INTERNET4, 5353)),
    ];
    let _over_tcp = [
        named(outside, (INTERNET4, 53), "resolver"),
        named(outside, (INTERNET4, 853), "resolver over TLS"),
    ];
    assert!(resolve(&scene.wire, "192.0.2.53:53".parse().unwrap()));
    assert!(resolve(
        &scene.wire,
        "[2001:db8:53::53]:53".parse().unwrap()
    ));
    for (port, want) in [
        (53, "resolver 10.233.70.50"),
        (853, "resolver over TLS 10.233.70.50"),
    ] {
        let remote = SocketAddr::new("192.0.2.53".parse().unwrap(), port);
        assert_eq!(hear(&scene.wire, guest_addr(remote, 1000), remote), want);
    }
    // The resolver itself can be asked as well (U23), and no other port is forwarded.
    assert!(resolve(&scene.wire, (INTERNET4, 53).into()));
    assert!(!resolve(&scene.wire, "192.0.2.53:5353".parse().unwrap()));
}

/// C46: systemd-resolved's address means nothing to the guest; the gateway stands for it.
#[test]
fn a_resolver_on_the_hosts_loopback_answers_at_the_gateway() {
    let Some(world) = World::pod() else { return };
    let _resolver = UdpEcho::start(&world.pod, (Ipv4Addr::new(127, 0, 0, 53), 53));
    let translator = Setup::new(&[])
        .resolv_conf("nameserver 127.0.0.53\n")
        .start(&world.pod);
    let wire = Wire::new(translator.connect());
    wire.send(&guest::dhcp::Dhcp::new(guest::dhcp::DISCOVER).frame());
    let (_, offer) = wire.expect("DHCP offer", guest::dhcp::Dhcp::of_frame);
    assert_eq!(offer.option(6), Some(&GATEWAY4.octets()[..]));
    assert!(resolve(&wire, (GATEWAY4, 53).into()));
}

/// V21: loopback and unspecified addresses do not leave a machine.
#[test]
fn loopback_and_unspecified_addresses_are_dropped() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    let server = UdpEcho::start(&scene.world.pod, (Ipv4Addr::UNSPECIFIED, 9000));
    let server6 = UdpEcho::start(&scene.world.pod, (Ipv6Addr::UNSPECIFIED, 9001));
    let _tcp = named(&scene.world.pod, (Ipv4Addr::UNSPECIFIED, 9000), "pod");
    let v4 = |a: [u8; 4]| IpAddr::from(a);
    for (src, dst, port) in [
        (v4([10, 233, 70, 50]), v4([127, 0, 0, 1]), 9000),
        (v4([10, 233, 70, 50]), v4([127, 9, 9, 9]), 9000),
        (v4([10, 233, 70, 50]), v4([0, 0, 0, 0]), 9000),
        (v4([127, 0, 0, 1]), v4([10, 233, 70, 1]), 9000),
        (v4([127, 0, 0, 1]), v4([127, 0, 0, 1]), 9000),
        (POD6.into(), Ipv6Addr::LOCALHOST.into(), 9001),
        (POD6.into(), Ipv6Addr::UNSPECIFIED.into(), 9001),
        (Ipv6Addr::LOCALHOST.into(), GATEWAY6.into(), 9001),
        (POD6.into(), "::ffff:127.0.0.1".parse().unwrap(), 9001),
    ] {
        let (local, remote) = (SocketAddr::new(src, 5000), SocketAddr::new(dst, port));
        scene.wire.send(&Udp::new(local, remote, b"hello").frame());
        let peer = Peer::new(&scene.wire, local, remote, 7);
        scene.wire.send(&peer.segment(SYN, &[]).frame());
    }
    scene.wire.never(QUIET, "an answer", |frame| {
        guest::Tcp::of_frame(frame).filter(|s| s.has(SYN))
    });
    assert_eq!((server.clients(), server6.clients()), (vec![], vec![]));
    assert!(scene.translator.fd_count() <= idle);
    scene.translator.assert_alive();
}

#[test]
fn outbound_addresses_can_be_chosen() {
    let Some(world) = World::pod() else { return };
    world
        .pod
        .ip("addr add 10.233.70.60/24 dev eth0\naddr add fd10:233:70::60/64 dev eth0 nodad");
    let translator =
        Translator::start(&world.pod, &["-o", "10.233.70.60", "-o", "fd10:233:70::60"]);
    let wire = Wire::new(translator.connect());
    let _servers = [
        named(&world.outside, (INTERNET4, 80), "internet"),
        named(&world.outside, (INTERNET6, 80), "internet"),
    ];
    for (remote, want) in [
        (SocketAddr::from((INTERNET4, 80)), "internet 10.233.70.60"),
        ((INTERNET6, 80).into(), "internet fd10:233:70::60"),
    ] {
        assert_eq!(hear(&wire, guest_addr(remote, 1000), remote), want);
    }
}

/// A machine without any network: the guest has one address, and its gateway is the host's loopback.
#[test]
fn a_host_without_interfaces_serves_its_loopback() {
    let Some(world) = World::pod() else { return };
    world.pod.ip("link del eth0");
    let translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    let _server = named(&world.pod, (Ipv4Addr::LOCALHOST, 80), "loopback");
    wire.send(&guest::dhcp::Dhcp::new(guest::dhcp::DISCOVER).frame());
    let (_, offer) = wire.expect("DHCP offer", guest::dhcp::Dhcp::of_frame);
    assert!(offer.yiaddr.is_link_local(), "{}", offer.yiaddr);
    let router = *offer.option(3).unwrap().first_chunk::<4>().unwrap();
    let local = (offer.yiaddr, 1000).into();
    assert_eq!(
        hear(&wire, local, (router, 80).into()),
        "loopback 127.0.0.1"
    );
}

/// Somebody on the host's network must see the host, whatever the guest calls itself.
#[test]
fn another_guest_address_is_not_seen_outside() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &["-a", "192.0.2.10", "-n", "24"]);
    let wire = Wire::new(translator.connect());
    let server = udp_socket(&world.outside, (INTERNET4, 7));
    let (local, remote) = (
        (Ipv4Addr::new(192, 0, 2, 10), 5060).into(),
        (INTERNET4, 7).into(),
    );
    wire.send(&Udp::new(local, remote, b"hello").frame());
    let (len, from) = uninterrupted(|| server.recv_from(&mut [0; 99])).unwrap();
    assert_eq!((len, from), (5, (POD4, 5060).into()));
    server.send_to(b"welcome", from).unwrap();
    let reply = wire.expect("datagram", Udp::of_frame);
    assert_eq!(reply, Udp::new(remote, local, b"welcome"));
}
