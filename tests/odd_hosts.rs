//! Hosts, and wishes of callers, that are not as most are.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::net::{Ipv4Addr, SocketAddr};

use guest::{
    Icmp, Peer, Scene, Tcp, Udp, Wire,
    frame::{ACK, ETHERTYPE_ARP, GUEST_MAC, OUR_MAC, RST, SYN, ethernet, of_type},
    guest_addr,
};
use lab::{
    Setup, Translator, World,
    servers::{TcpServer, UdpEcho, udp_socket},
    uninterrupted,
    world::{INTERNET4, INTERNET6},
};

/// Regression C33: a tunnel has no link address to take a template from; ours is locally administered.
#[test]
fn a_host_behind_a_tunnel_has_a_guest_with_an_address_of_the_links_kind() {
    let Some(world) = World::bare() else { return };
    world.pod.ip("tuntap add dev tun0 mode tun
         link set tun0 up
         addr add 10.1.1.2/24 dev tun0
         route add default via 10.1.1.1 dev tun0");
    let translator = Translator::start(&world.pod, &[]);
    translator.expect_log("Template interface: tun0 (IPv4)");
    let wire = Wire::new(translator.connect());
    let (us, router) = (Ipv4Addr::new(10, 1, 1, 2), Ipv4Addr::new(10, 1, 1, 1));
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend(GUEST_MAC);
    request.extend(us.octets());
    request.extend([0; 6]);
    request.extend(router.octets());
    wire.send(&ethernet([0xff; 6], ETHERTYPE_ARP, &request));
    let mac = wire.expect("ARP reply", |frame| {
        let packet = of_type(frame, ETHERTYPE_ARP)?;
        (packet[7] == 2).then(|| packet[8..14].to_vec())
    });
    assert_eq!(mac, OUR_MAC);
    assert_eq!(mac[0] & 3, 2, "locally administered, of one station");
}

/// As systemd.link(5) gives them. The kernel takes any name for the interface.
#[test]
fn an_interface_answers_to_its_alternative_names() {
    let Some(world) = World::pod() else { return };
    world.pod.ip("link property add dev eth0 altname enp0s3");
    let args = ["-i", "enp0s3", "--outbound-if4", "enp0s3"];
    let translator = Translator::start(&world.pod, &args);
    translator.expect_log("Template interface: eth0 (IPv4), eth0 (IPv6)");
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let wire = Wire::new(translator.connect());
    let local = guest_addr(echo.addr(), 5000);
    wire.send(&Udp::new(local, echo.addr(), b"hello").frame());
    wire.expect("echo", Udp::of_frame);
    let log = translator.log();
    assert!(!log.contains("No interface"), "{log}");
}

/// Where nothing is short, nobody makes way: neither for want of an address, nor of a port that one destination has left.
#[test]
fn flows_stay_where_others_find_no_address_or_port_of_the_host() {
    let Some(scene) = Scene::new(&[]) else { return };
    let (pod, outside) = (&scene.world.pod, &scene.world.outside);
    let server = udp_socket(outside, (INTERNET4, 7));
    let remote = server.local_addr().unwrap();
    let local = guest_addr(remote, 5000);
    scene.wire.send(&Udp::new(local, remote, b"hello").frame());
    let (_, from) = uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap();
    pod.sysctl("ipv4/ip_local_port_range", "61000 61000");
    let _echo = TcpServer::echo(outside, (INTERNET4, 7));
    let _open = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_001), remote, 7);
    peer.send(SYN, &[]);
    assert_eq!(peer.recv().flags, RST | ACK);
    pod.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let remote6 = SocketAddr::from((INTERNET6, 7));
    for port in 40_002..40_010 {
        let syn = Tcp::new(guest_addr(remote6, port), remote6, SYN);
        scene.wire.send(&syn.frame());
        scene.wire.expect("unreachable", |frame| {
            Icmp::of_frame(frame).filter(|icmp| icmp.kind == 1)
        });
    }
    server.send_to(b"late", from).unwrap();
    let late = scene.wire.expect("datagram", Udp::of_frame);
    assert_eq!(late.payload, b"late");
    let said = scene.translator.log().matches("Cannot open").count();
    assert_eq!(said, 1, "{}", scene.translator.log());
}

/// Regression C15: less than IPv4 asks for is warned of, and served.
#[test]
fn a_link_mtu_below_what_ip_asks_for_is_warned_of_and_carries_what_fits() {
    let Some(scene) = Scene::new(&["--mtu", "60"]) else {
        return;
    };
    scene
        .translator
        .expect_log("MTU 60 is too small for IPv4 (minimum 68)");
    let echo = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    let local = guest_addr(echo.addr(), 5000);
    scene
        .wire
        .send(&Udp::new(local, echo.addr(), b"tiny").frame());
    let answer = scene.wire.expect("echo", Udp::of_frame);
    assert_eq!(answer.payload, b"tiny");
}

/// Regression C23: somebody who names a path waits for it in vain if we go on without.
#[test]
fn a_socket_path_that_cannot_be_bound_is_the_end() {
    let Some(world) = World::pod() else { return };
    let (status, _, stderr) = Setup::new(&["-s", "/nonexistent/socket"])
        .background()
        .run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1));
    let last = stderr.lines().last().unwrap();
    assert!(
        last.starts_with("Failed to bind UNIX domain socket"),
        "{last}"
    );
}
