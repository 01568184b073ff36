//! Multicast and broadcast between the guest and others on the host's network.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod kernel_guest;
mod lab;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    time::Duration,
};

use guest::{Scene, Udp, frame::Ip, guest_addr};
use kernel_guest::KernelGuest;
use lab::{Host, LONG, QUIET, Translator, World, wait_until};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const MDNS4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const SSDP4: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);

/// A socket bound to this port that is in a group, on the device of this name.
fn member(host: &Host, device: &str, group: IpAddr, port: u16) -> UdpSocket {
    host.run(|| {
        let domain = Domain::for_address((group, port).into());
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        let index = nix::net::if_::if_nametoindex(device).unwrap();
        match group {
            IpAddr::V4(group) => {
                let any = SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
                socket.bind(&any).unwrap();
                let through = socket2::InterfaceIndexOrAddress::Index(index);
                socket.join_multicast_v4_n(&group, &through).unwrap();
                socket.set_multicast_ttl_v4(255).unwrap();
                // Its own messages do not come back: what comes is from others.
                socket.set_multicast_loop_v4(false).unwrap();
                socket.bind_device(Some(device.as_bytes())).unwrap();
            }
            IpAddr::V6(group) => {
                let any = SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
                socket.set_only_v6(true).unwrap();
                socket.bind(&any).unwrap();
                socket.join_multicast_v6(&group, index).unwrap();
                socket.set_multicast_if_v6(index).unwrap();
                socket.set_multicast_hops_v6(255).unwrap();
                socket.set_multicast_loop_v6(false).unwrap();
            }
        }
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        socket.into()
    })
}

fn to(host: &Host, device: &str, group: IpAddr, port: u16) -> SocketAddr {
    match group {
        IpAddr::V4(_) => (group, port).into(),
        IpAddr::V6(group) => {
            let index = host.run(|| nix::net::if_::if_nametoindex(device).unwrap());
            SocketAddrV6::new(group, port, 0, index).into()
        }
    }
}

/// Says something again and again until the other has heard it, and returns from whom.
fn heard(say: impl Fn(), by: &UdpSocket, what: &[u8]) -> SocketAddr {
    let mut from = None;
    let mut bytes = [0; 2048];
    let done = wait_until(LONG, || {
        say();
        while let Ok((len, sender)) = by.recv_from(&mut bytes) {
            if &bytes[..len] == what {
                from = Some(sender);
                return true;
            }
        }
        false
    });
    assert!(done, "{} was not heard", String::from_utf8_lossy(what));
    from.unwrap()
}

/// Nothing of this comes any more.
fn assert_silent(socket: &UdpSocket, unwanted: &[u8]) {
    let mut bytes = [0; 2048];
    let deadline = std::time::Instant::now() + QUIET;
    while std::time::Instant::now() < deadline {
        if let Ok((len, from)) = socket.recv_from(&mut bytes) {
            assert_ne!(&bytes[..len], unwanted, "from {from}");
        }
    }
}

fn furnish(args: &[&str]) -> Option<(World, KernelGuest, Translator)> {
    let world = World::pod()?;
    let translator = Translator::start(&world.pod, args);
    let guest = KernelGuest::plug(&translator, 1500)?;
    guest.number();
    Some((world, guest, translator))
}

/// Two machines find each other as with mDNS: each hears what the other says to the group, and may answer it directly.
#[test]
fn a_guest_and_another_machine_find_each_other_in_a_group() {
    // The other machine is the gateway, whose address would stand for the host.
    let Some((world, guest, mut translator)) = furnish(&["--no-map-gw"]) else {
        return;
    };
    for group in [IpAddr::from(MDNS4), MDNS6.into()] {
        let inside = member(guest.host(), "eth0", group, 5353);
        let outside = member(&world.outside, "pod0", group, 5353);
        let outward = to(guest.host(), "eth0", group, 5353);
        let inward = to(&world.outside, "pod0", group, 5353);
        let from = heard(|| drop(inside.send_to(b"who?", outward)), &outside, b"who?");
        assert_eq!(from.port(), 5353, "the guest's own port");
        let from = heard(|| drop(outside.send_to(b"me!", inward)), &inside, b"me!");
        assert_eq!(from.port(), 5353);
        // Directly, as to a question with the unicast bit.
        let asker = outside.try_clone().unwrap();
        let (_, back) = {
            let mut bytes = [0; 64];
            drop(inside.send_to(b"again?", outward));
            wait_until(LONG, || matches!(outside.recv_from(&mut bytes), Ok((6, _))));
            (bytes, from)
        };
        let direct = heard(|| drop(inside.send_to(b"direct", back)), &asker, b"direct");
        heard(|| drop(asker.send_to(b"reply", direct)), &inside, b"reply");
        assert_silent(&inside, b"who?");
    }
    translator.assert_alive();
}

/// U18. What the guest asks a group is answered by whom it does not know.
#[test]
fn an_answer_to_a_question_to_a_group_comes_back_from_anyone() {
    let Some((world, guest, _translator)) = furnish(&[]) else {
        return;
    };
    let outside = member(&world.outside, "pod0", SSDP4.into(), 1900);
    let inside = guest.host().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:41900").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        socket
    });
    let ask = || drop(inside.send_to(b"M-SEARCH", (SSDP4, 1900)));
    let from = heard(ask, &outside, b"M-SEARCH");
    assert_eq!(from, "10.233.70.50:41900".parse().unwrap());
    // From another port than was asked, as devices do.
    let device = world
        .outside
        .run(|| UdpSocket::bind("10.233.70.1:50123").unwrap());
    let answered = heard(|| drop(device.send_to(b"200 OK", from)), &inside, b"200 OK");
    assert_eq!(answered, "10.233.70.1:50123".parse().unwrap());
}

#[test]
fn a_broadcast_of_the_guest_reaches_the_network() {
    let Some((world, guest, _translator)) = furnish(&[]) else {
        return;
    };
    let outside = world
        .outside
        .run(|| UdpSocket::bind("0.0.0.0:9999").unwrap());
    outside
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let inside = guest
        .host()
        .run(|| UdpSocket::bind("0.0.0.0:41000").unwrap());
    inside.set_broadcast(true).unwrap();
    inside
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    for all in ["10.233.70.255:9999", "255.255.255.255:9999"] {
        let say = || drop(inside.send_to(all.as_bytes(), all));
        let from = heard(say, &outside, all.as_bytes());
        heard(|| drop(outside.send_to(b"here", from)), &inside, b"here");
    }
}

/// The guest hears of groups it has joined, and only while it is in them.
#[test]
fn only_groups_that_were_joined_are_heard() {
    let Some(scene) = Scene::new(&[]) else { return };
    let outside = member(&scene.world.outside, "pod0", SSDP4.into(), 1900);
    let report = |kind: u8| {
        let mut payload = vec![0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
        payload.extend(SSDP4.octets());
        let sum = !smoltcp::wire::checksum::data(&payload);
        payload[2..4].copy_from_slice(&sum.to_be_bytes());
        let src = guest_addr((SSDP4, 1), 0).ip();
        let dst = Ipv4Addr::new(224, 0, 0, 22).into();
        let (protocol, ttl) = (2, 1);
        scene.wire.send(
            &Ip {
                src,
                dst,
                protocol,
                ttl,
                payload,
            }
            .frame(),
        );
    };
    let notify = || drop(outside.send_to(b"NOTIFY", (SSDP4, 1900)));
    let of_group = |frame: &[u8]| {
        Udp::of_frame(frame)
            .filter(|udp| udp.dst == (SSDP4, 1900).into())
            .map(|udp| (udp, frame[..6].to_vec(), frame[22]))
    };
    notify();
    scene.wire.never(QUIET, "a datagram of a group", of_group);
    let idle = scene.translator.fd_count();
    report(4);
    assert!(wait_until(LONG, || scene.translator.fd_count() > idle));
    notify();
    let (udp, mac, ttl) = scene.wire.expect("NOTIFY", of_group);
    assert_eq!((udp.payload, udp.src.port()), (b"NOTIFY".to_vec(), 1900));
    assert_eq!((mac, ttl), (vec![1, 0, 0x5e, 0x7f, 0xff, 0xfa], 255));
    report(3);
    assert!(wait_until(LONG, || scene.translator.fd_count() == idle));
    notify();
    scene.wire.never(QUIET, "a datagram of a group", of_group);
}

/// The link's own groups carry more than the finding of services (routing protocols, VRRP): that stays where it is.
#[test]
fn what_is_for_the_link_alone_stays_there_and_all_can_be_switched_off() {
    for (args, group, port) in [
        (&[][..], Ipv4Addr::new(224, 0, 0, 9), 520),
        (&["--no-multicast"], SSDP4, 1900),
    ] {
        let Some(scene) = Scene::new(args) else {
            return;
        };
        let outside = member(&scene.world.outside, "pod0", group.into(), port);
        let local = guest_addr((group, port), 41_000);
        scene
            .wire
            .send(&Udp::new(local, (group, port).into(), b"hello").frame());
        assert_silent(&outside, b"hello");
    }
}
