//! Which source addresses a guest may use: any a host can have, or only those it was given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    guest::{
        Icmp, Ip, Peer, Scene, Tcp, Udp,
        dhcpv6::GUEST_LL,
        fragment::parts,
        frame::{ETHERTYPE_ARP, GUEST_MAC, SYN, ethernet},
        guest_addr,
        tcp::syn_options,
    },
    lab::{
        LONG,
        servers::{TcpServer, UdpEcho, udp_socket},
        uninterrupted,
        world::{GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, POD4, POD6},
    },
};

/// A frame of each kind that would open a flow.
fn attempts(src: IpAddr) -> Vec<Vec<u8>> {
    let dst: IpAddr = if src.is_ipv4() {
        INTERNET4.into()
    } else {
        INTERNET6.into()
    };
    let (from, to) = (SocketAddr::new(src, 4000), SocketAddr::new(dst, 7));
    let syn = Tcp {
        options: syn_options(1400, None),
        ..Tcp::new(from, to, SYN)
    };
    let large = Udp::new(from, to, &[1; 3000]);
    let mut frames = vec![
        syn.frame(),
        Udp::new(from, to, b"whose?").frame(),
        Icmp::echo_request(src, dst, 7, 1, b"whose?").frame(),
    ];
    frames.extend(parts(&large.ip(), 77, 1500));
    frames
}

/// Regressions U02, T79 and V21.
#[test]
fn sources_that_nobody_can_have_open_no_flow() {
    let Some(scene) = Scene::new(&[]) else { return };
    let _tcp = TcpServer::echo(&scene.world.outside, (INTERNET4, 7));
    let udp = [
        UdpEcho::start(&scene.world.outside, (INTERNET4, 7)),
        UdpEcho::start(&scene.world.outside, (INTERNET6, 7)),
    ];
    let idle = scene.translator.idle_fd_count();
    let nobody: [IpAddr; 11] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 3, 2, 1).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::BROADCAST.into(),
        Ipv4Addr::new(224, 0, 0, 5).into(),
        Ipv4Addr::new(10, 233, 70, 255).into(),
        GATEWAY4.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        GATEWAY6.into(),
    ];
    for src in nobody {
        for frame in attempts(src) {
            scene.wire.send(&frame);
        }
    }
    // All before it has been looked at when this one is answered.
    assert_answered(&scene, POD4.into());
    assert_answered(&scene, POD6.into());
    assert_eq!(udp.map(|server| server.clients().len()), [1, 1]);
    // The two flows above.
    scene.translator.expect_fd_count(idle + 2);
}

#[test]
fn a_guest_that_routes_may_have_addresses_of_its_own() {
    let Some(scene) = Scene::new(&[]) else { return };
    let _echo = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    let _echo6 = UdpEcho::start(&scene.world.outside, (INTERNET6, 7));
    for src in ["10.66.1.2", "192.0.2.9", "fd99::7", "2001:db8:77::1"] {
        assert_answered(&scene, src.parse().unwrap());
    }
}

#[test]
fn a_guest_held_to_its_addresses_has_no_others() {
    let Some(scene) = Scene::new(&["--strict-source"]) else {
        return;
    };
    let tcp = TcpServer::echo(&scene.world.outside, (INTERNET4, 7));
    let udp = [
        UdpEcho::start(&scene.world.outside, (INTERNET4, 7)),
        UdpEcho::start(&scene.world.outside, (INTERNET6, 7)),
    ];
    for src in [
        "10.66.1.2",
        "10.233.70.51",
        "169.254.7.7",
        "fd99::7",
        "fd10:233:71::50",
    ] {
        for frame in attempts(src.parse().unwrap()) {
            scene.wire.send(&frame);
        }
    }
    assert_answered(&scene, POD4.into());
    assert_answered(&scene, POD6.into());
    // What it makes of the prefix that is advertised to it.
    assert_answered(&scene, "fd10:233:70:0:5054:ff:fe12:3456".parse().unwrap());
    assert_eq!(udp.map(|server| server.clients().len()), [1, 2]);
    let mut peer = Peer::connect(&scene.wire, guest_addr(tcp.addr(), 4100), tcp.addr());
    peer.send_data(b"mine");
    assert_eq!(peer.read(4), b"mine");
    // The link-local address is its own making.
    let local = udp_socket(&scene.world.pod, (Ipv6Addr::LOCALHOST, 9001));
    let hello = Udp::new((GUEST_LL, 4200).into(), (GATEWAY6, 9001).into(), b"hello");
    scene.wire.send(&hello.frame());
    assert_eq!(uninterrupted(|| local.recv(&mut [0; 16])).unwrap(), 5);
}

/// Frames that lie about who has an address do not lead what comes from outside astray.
#[test]
fn a_guest_held_to_its_addresses_is_not_looked_for_at_others() {
    let Some(scene) = Scene::new(&["--strict-source", "-t", "2222"]) else {
        return;
    };
    for addr in [POD4, Ipv4Addr::new(10, 66, 1, 2)] {
        scene.wire.send(&announcement(addr));
    }
    let lie = Udp::new(
        (Ipv4Addr::new(10, 66, 1, 2), 1).into(),
        (INTERNET4, 9).into(),
        b"x",
    );
    scene.wire.send(&lie.frame());
    let _client = scene.world.outside.run(|| {
        let target = SocketAddr::from((POD4, 2222));
        std::net::TcpStream::connect_timeout(&target, LONG).unwrap()
    });
    let syn = Peer::expect_syn(&scene.wire, 2222);
    assert_eq!(syn.dst.ip(), IpAddr::from(POD4));
}

/// An announcement by ARP (RFC 5227, section 3).
fn announcement(addr: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend_from_slice(&GUEST_MAC);
    arp.extend_from_slice(&addr.octets());
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&addr.octets());
    ethernet([0xff; 6], ETHERTYPE_ARP, &arp)
}

/// A datagram from `src` is carried, and its echo comes back.
fn assert_answered(scene: &Scene, src: IpAddr) {
    let dst: IpAddr = if src.is_ipv4() {
        INTERNET4.into()
    } else {
        INTERNET6.into()
    };
    let hello = Udp::new((src, 4500).into(), (dst, 7).into(), b"mine");
    scene.wire.send(&hello.frame());
    let reply = scene.wire.expect("echo", |frame| {
        Ip::of_frame(frame).filter(|ip| ip.protocol == 17)?;
        Udp::of_frame(frame)
    });
    assert_eq!(reply, Udp::new(hello.dst, hello.src, b"mine"), "{src}");
}
