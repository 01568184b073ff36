//! Multicast and broadcast between the guest and others on the host's network.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../kernel_guest/mod.rs"]
mod kernel_guest;
#[path = "../lab/mod.rs"]
mod lab;

mod services;
mod sources;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    time::Duration,
};

use guest::{Icmp, Scene, Udp, Wire, frame::Ip, guest_addr, pattern};
use kernel_guest::KernelGuest;
use lab::{
    Host, LONG, QUIET, Translator, World,
    servers::{UdpEcho, once_free},
    uninterrupted, wait_until,
    world::INTERNET4,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const MDNS4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const SSDP4: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const SSDP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);

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
                once_free(|| socket.bind(&any));
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
                once_free(|| socket.bind(&any));
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
    let mut bytes = vec![0; 1 << 16];
    let done = wait_until(LONG, || {
        say();
        while let Ok((len, sender)) = uninterrupted(|| by.recv_from(&mut bytes)) {
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
        if let Ok((len, from)) = uninterrupted(|| socket.recv_from(&mut bytes)) {
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
            wait_until(LONG, || {
                matches!(uninterrupted(|| outside.recv_from(&mut bytes)), Ok((6, _)))
            });
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

/// A message of the guest's about a group: IGMP or MLD of any version, as a frame.
fn report(group: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut payload = message.to_vec();
    match group {
        IpAddr::V4(group) => {
            payload.extend(group.octets());
            let sum = !smoltcp::wire::checksum::data(&payload);
            payload[2..4].copy_from_slice(&sum.to_be_bytes());
            Ip {
                src: guest_addr((group, 1), 0).ip(),
                dst: Ipv4Addr::new(224, 0, 0, 22).into(),
                protocol: 2,
                ttl: 1,
                payload,
            }
            .frame()
        }
        IpAddr::V6(group) => {
            payload.extend(group.octets());
            let to = "ff02::16".parse().unwrap();
            let from = guest::dhcpv6::GUEST_LL.into();
            let &[kind, code, _, _, a, b, c, d] = payload.first_chunk().unwrap();
            let word = u32::from_be_bytes([a, b, c, d]);
            let message = Icmp::new(from, to, kind, word, &payload[8..]);
            Icmp { code, ..message }.frame()
        }
    }
}

/// The guest hears of groups it has joined, and only while it is in them, whatever version of IGMP or MLD it speaks.
#[test]
fn only_groups_that_were_joined_are_heard() {
    let Some(scene) = Scene::new(&[]) else { return };
    let [ssdp4, ssdp6] = [IpAddr::from(SSDP4), SSDP6.into()];
    let v3 = |kind| vec![0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
    let mld2 = |kind| vec![143, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
    for (group, join, leave) in [
        (ssdp4, vec![0x12, 0, 0, 0], vec![0x17, 0, 0, 0]),
        (ssdp4, vec![0x16, 0, 0, 0], vec![0x17, 0, 0, 0]),
        (ssdp4, v3(4), v3(3)),
        (
            ssdp6,
            vec![131, 0, 0, 0, 0, 0, 0, 0],
            vec![132, 0, 0, 0, 0, 0, 0, 0],
        ),
        (ssdp6, mld2(4), mld2(3)),
        (ssdp6, mld2(2), mld2(3)),
    ] {
        let outside = member(&scene.world.outside, "pod0", group, 1900);
        let there = to(&scene.world.outside, "pod0", group, 1900);
        let notify = || drop(outside.send_to(b"NOTIFY", there));
        let of_group = |frame: &[u8]| {
            Udp::of_frame(frame)
                .filter(|udp| udp.dst == (group, 1900).into())
                .map(|udp| (udp, frame[..6].to_vec(), Ip::of_frame(frame).unwrap().ttl))
        };
        notify();
        scene.wire.never(QUIET, "a datagram of a group", of_group);
        let idle = scene.translator.idle_fd_count();
        scene.wire.send(&report(group, &join));
        // One for each of the ports that are heard.
        assert!(wait_until(LONG, || scene.translator.fd_count() == idle + 4));
        notify();
        let (udp, mac, ttl) = scene.wire.expect("NOTIFY", of_group);
        assert_eq!((udp.payload, udp.src.port()), (b"NOTIFY".to_vec(), 1900));
        let want = match group {
            IpAddr::V4(_) => vec![1, 0, 0x5e, 0x7f, 0xff, 0xfa],
            IpAddr::V6(_) => vec![0x33, 0x33, 0, 0, 0, 0xc],
        };
        assert_eq!((mac, ttl), (want, 255));
        scene.wire.send(&report(group, &leave));
        assert!(wait_until(LONG, || scene.translator.fd_count() == idle));
        notify();
        scene.wire.never(QUIET, "a datagram of a group", of_group);
    }
}

/// Which ports of a group are heard: those listed, those forwarded, where the forward leads, and those the guest uses.
#[test]
fn the_ports_of_a_group_are_those_listed_forwarded_and_used() {
    let args = ["--multicast-ports", "7001,7002", "-u", "7003:7103"];
    let Some(scene) = Scene::new(&args) else {
        return;
    };
    scene.wire.send(&report(SSDP4.into(), &[0x16, 0, 0, 0]));
    let used = Udp::new(
        "10.233.70.50:7004".parse().unwrap(),
        (SSDP4, 7005).into(),
        b"hello",
    );
    scene.wire.send(&used.frame());
    let outside = member(&scene.world.outside, "pod0", SSDP4.into(), 9);
    for (port, heard) in [
        (7001, Some(7001)),
        (7002, Some(7002)),
        (7003, Some(7103)),
        (7004, Some(7004)),
        (7005, Some(7005)),
        (1900, None),
    ] {
        let patience = if heard.is_some() { LONG } else { QUIET };
        let words = format!("NOTIFY {port}");
        let mut seen = None;
        wait_until(patience, || {
            outside.send_to(words.as_bytes(), (SSDP4, port)).unwrap();
            let frame = scene.wire.recv(Duration::from_millis(50));
            let said = frame.as_deref().and_then(Udp::of_frame);
            // Something said to the port before may come late.
            seen = said
                .filter(|udp| udp.payload == words.as_bytes())
                .map(|udp| udp.dst);
            seen.is_some()
        });
        assert_eq!(seen, heard.map(|port| (SSDP4, port).into()), "{port}");
    }
}

/// Every port a guest sends from may be heard of every group it is in: that must not add up.
#[test]
fn a_guest_that_uses_many_groups_and_ports_is_bounded() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    for last in 0..100 {
        let group = Ipv4Addr::new(239, 1, 1, last).into();
        scene.wire.send(&report(group, &[0x16, 0, 0, 0]));
    }
    for port in 2000..2300 {
        let local = guest_addr((SSDP4, 1900), port);
        scene
            .wire
            .send(&Udp::new(local, (SSDP4, 1900).into(), b"M-SEARCH").frame());
    }
    let server = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    let local = guest_addr(server.addr(), 5000);
    scene
        .wire
        .send(&Udp::new(local, server.addr(), b"hello").frame());
    scene.wire.expect("echo", |frame| {
        Udp::of_frame(frame).filter(|udp| udp.payload == b"hello")
    });
    assert!(scene.translator.fd_count() <= idle + 128 + 64 + 1);
    for last in 0..100 {
        let group = Ipv4Addr::new(239, 1, 1, last).into();
        scene.wire.send(&report(group, &[0x17, 0, 0, 0]));
    }
    assert!(wait_until(LONG, || scene.translator.fd_count() <= idle + 64 + 1));
    scene.translator.assert_alive();
}

/// A program of the host that shares the group, the port and the address with the guest is heard all the same, and hears the
/// guest; the guest alone does not hear itself.
#[test]
fn the_host_and_its_guest_hear_each_other_at_the_same_port() {
    let Some((world, guest, _translator)) = furnish(&[]) else {
        return;
    };
    for group in [IpAddr::from(MDNS4), MDNS6.into()] {
        let inside = member(guest.host(), "eth0", group, 5353);
        let responder = member(&world.pod, "eth0", group, 5353);
        match group {
            IpAddr::V4(_) => responder.set_multicast_loop_v4(true).unwrap(),
            IpAddr::V6(_) => responder.set_multicast_loop_v6(true).unwrap(),
        }
        let outward = to(guest.host(), "eth0", group, 5353);
        let inward = to(&world.pod, "eth0", group, 5353);
        heard(
            || drop(inside.send_to(b"who?", outward)),
            &responder,
            b"who?",
        );
        heard(|| drop(responder.send_to(b"me!", inward)), &inside, b"me!");
        assert_silent(&inside, b"who?");
    }
}

/// Two guests of one host, each with a translator, are members like any other: what one says the other hears once, whatever
/// ports both use, and it goes round no circle.
#[test]
fn two_guests_of_one_host_hear_each_other_once() {
    let Some((world, one, _translator)) = furnish(&[]) else {
        return;
    };
    let other = Translator::start(&world.pod, &[]);
    let Some(other) = KernelGuest::plug(&other, 1500).map(|guest| (guest, other)) else {
        return;
    };
    other.0.number();
    for group in [IpAddr::from(MDNS4), MDNS6.into()] {
        let [first, second] = [&one, &other.0].map(|guest| {
            let socket = member(guest.host(), "eth0", group, 5353);
            (socket, to(guest.host(), "eth0", group, 5353))
        });
        let outside = member(&world.outside, "pod0", group, 5353);
        // The same from the same port of the host within a second would be taken for an echo.
        for ((says, there), hears, text) in [
            (&first, &second.0, &b"from one"[..]),
            (&second, &first.0, b"from the other"),
        ] {
            heard(|| drop(says.send_to(text, *there)), hears, text);
            // Both are members now.
            const WHAT: [&[u8]; 3] = [b"1", b"22", b"333"];
            for what in WHAT {
                says.send_to(&[text, what].concat(), *there).unwrap();
            }
            for socket in [hears, &outside] {
                let mut octets = [0; 64];
                let mut came = Vec::new();
                let mut reads = || {
                    while let Ok((len, _)) = uninterrupted(|| socket.recv_from(&mut octets)) {
                        let what = octets[..len].strip_prefix(text).unwrap_or_default();
                        came.extend((!what.is_empty()).then(|| what.to_vec()));
                    }
                    came.len()
                };
                assert!(wait_until(LONG, || reads() >= WHAT.len()));
                assert!(!wait_until(QUIET, || reads() > WHAT.len()));
                assert_eq!(came, WHAT);
            }
            assert_silent(says, &[text, WHAT[0]].concat());
        }
    }
}

#[test]
fn empty_and_large_datagrams_pass_a_group() {
    let Some((world, guest, _translator)) = furnish(&["--mtu", "1500"]) else {
        return;
    };
    for group in [IpAddr::from(SSDP4), SSDP6.into()] {
        let inside = member(guest.host(), "eth0", group, 1900);
        let outside = member(&world.outside, "pod0", group, 1900);
        let outward = to(guest.host(), "eth0", group, 1900);
        let inward = to(&world.outside, "pod0", group, 1900);
        for len in [0, 1, 1472, 1473, 20_000] {
            let what = pattern(0, len);
            heard(|| drop(inside.send_to(&what, outward)), &outside, &what);
            heard(|| drop(outside.send_to(&what, inward)), &inside, &what);
        }
    }
}

/// A guest that was here before the wire was cut, or that knows nothing of it, says by itself nothing of its groups.
#[test]
fn a_guest_that_comes_back_is_asked_for_its_groups() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let hello = Udp::new(
        guest_addr((INTERNET4, 9), 5000),
        (INTERNET4, 9).into(),
        b"hello",
    )
    .frame();
    let is_query = |frame: &[u8]| (frame[12..14] == [8, 0] && frame[23] == 2).then_some(());
    let wire = Wire::new(translator.connect());
    wire.send(&hello);
    wire.never(5 * QUIET, "a query to one that was in no group", is_query);
    let idle = translator.idle_fd_count();
    wire.send(&report(SSDP4.into(), &[0x16, 0, 0, 0]));
    assert!(wait_until(LONG, || translator.fd_count() > idle));
    drop(wire);
    let wire = Wire::new(translator.connect());
    wire.send(&hello);
    wire.expect("query for IPv4 groups", |frame| {
        let ip = frame
            .get(14..)
            .filter(|_| frame[12..14] == [8, 0] && frame[23] == 2)?;
        assert_eq!(frame[..6], [1, 0, 0x5e, 0, 0, 1]);
        assert_eq!(
            (ip[0], ip[8], &ip[16..24]),
            (0x46, 1, &[224, 0, 0, 1, 0x94, 4, 0, 0][..])
        );
        let data = smoltcp::wire::checksum::data;
        assert_eq!((data(&ip[..24]), data(&ip[24..36])), (0xffff, 0xffff));
        (ip[24] == 0x11).then_some(())
    });
    wire.expect("query for IPv6 groups", |frame| {
        let ip = frame
            .get(14..)
            .filter(|_| frame[12..14] == [0x86, 0xdd] && frame[20] == 0)?;
        (ip.get(48) == Some(&130) && ip[7] == 1).then_some(())
    });
}

/// The same with a kernel for a guest, which gives the answers.
#[test]
fn a_kernel_that_comes_back_hears_its_groups_again() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let Some(mut guest) = KernelGuest::plug(&translator, 1500) else {
        return;
    };
    guest.number();
    let groups = [IpAddr::from(SSDP4), SSDP6.into()];
    let pairs = groups.map(|group| {
        let inside = member(guest.host(), "eth0", group, 1900);
        (inside, member(&world.outside, "pod0", group, 1900))
    });
    for round in [&b"first"[..], b"second"] {
        for (group, (inside, outside)) in groups.into_iter().zip(&pairs) {
            let inward = to(&world.outside, "pod0", group, 1900);
            heard(|| drop(outside.send_to(round, inward)), inside, round);
        }
        guest.replug(&translator);
        // Any frame shows that it is there.
        let talk = guest
            .host()
            .run(|| UdpSocket::bind("10.233.70.50:0").unwrap());
        talk.send_to(b"hello", (INTERNET4, 9)).unwrap();
    }
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
