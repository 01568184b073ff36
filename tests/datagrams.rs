//! What a datagram's headers say, how many flows there may be, and errors that must not come twice.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::signal::Signal;

use guest::{
    Icmp, Scene, Udp, Wire, both, fragment::part, frame::Ip, guest_addr, pattern, wire::framed,
};
use lab::{
    LONG, QUIET, Setup, World,
    servers::{UdpEcho, udp_socket},
    uninterrupted, wait_until,
    world::{INTERNET4, INTERNET6, POD4, POD6},
};
use passt_rs::sys::{
    Iovecs, Marks,
    msg::{self, RECEIVE_MANY, Received},
    sockopt,
};

/// The next datagram with its marks.
fn receive(socket: &UdpSocket) -> (Vec<u8>, Marks) {
    socket.set_nonblocking(true).unwrap();
    let mut memory = vec![0; 2048];
    let mut found = None;
    let came = wait_until(LONG, || {
        let mut iovecs = Iovecs::new();
        let mut scatter = iovecs.scatter();
        assert!(scatter.push(&mut memory));
        let mut received = [Received::default(); RECEIVE_MANY];
        if msg::receive_many(socket.as_fd(), &mut scatter, &mut received).is_ok() {
            found = Some(received[0]);
        }
        found.is_some()
    });
    assert!(came, "no datagram came");
    let Received { len, marks } = found.unwrap();
    (memory[..len].to_vec(), marks)
}

/// A packet with another type of service, or traffic class, as a frame.
fn with_tos(ip: &Ip, tos: u8) -> Vec<u8> {
    let mut frame = ip.frame();
    if ip.src.is_ipv4() {
        frame[15] = tos;
        frame[24..26].fill(0);
        let sum = !smoltcp::wire::checksum::data(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[14] |= tos >> 4;
        frame[15] |= tos << 4;
    }
    frame
}

fn tos_of(frame: &[u8]) -> u8 {
    if frame[12..14] == [8, 0] {
        frame[15]
    } else {
        frame[14] << 4 | frame[15] >> 4
    }
}

/// U15: time to live, and congestion notification with it, from datagram to datagram of one flow.
#[test]
fn ttl_and_type_of_service_pass_both_ways() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        let v6 = addr.is_ipv6();
        sockopt::set_receive_marks(server.as_fd(), v6).unwrap();
        let local = guest_addr(addr, 50_000);
        for (ttl, tos) in [(64, 0), (7, 0xb9), (255, 3), (1, 0x48)] {
            let ip = Ip {
                ttl,
                ..Udp::new(local, addr, b"there").ip()
            };
            scene.wire.send(&with_tos(&ip, tos));
            let (payload, marks) = receive(&server);
            assert_eq!(payload, b"there");
            assert_eq!((marks.ttl, marks.tos), (Some(ttl), Some(tos)), "{addr}");
            sockopt::set_ttl(server.as_fd(), v6, ttl).unwrap();
            sockopt::set_tos(server.as_fd(), v6, tos).unwrap();
            server.send_to(b"back", local).unwrap();
            let seen = scene.wire.expect("datagram", |frame| {
                Udp::of_frame(frame)?;
                Some((Ip::of_frame(frame)?.ttl, tos_of(frame)))
            });
            assert_eq!(seen, (ttl, tos), "{addr}");
        }
    }
}

#[test]
fn echoes_keep_ttl_and_type_of_service() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 0) {
        let local = guest_addr(remote, 0);
        let request = Icmp::echo_request(local.ip(), remote.ip(), 7, 1, b"hello").ip();
        scene.wire.send(&with_tos(&request, 0x28));
        let (ttl, tos) = scene.wire.expect("echo reply", |frame| {
            Icmp::of_frame(frame).filter(Icmp::is_echo_reply)?;
            Some((Ip::of_frame(frame)?.ttl, tos_of(frame)))
        });
        // Who answers repeats the type of service and has a time to live of its own.
        assert_eq!((ttl, tos), (64, 0x28), "{remote}");
    }
}

/// Regression U09. A table that is full has room for the next flow all the same: the one idle for longest goes.
#[test]
fn the_flow_idle_for_longest_makes_room() {
    let Some(world) = World::pod() else { return };
    let _taken = udp_socket(&world.pod, (Ipv4Addr::UNSPECIFIED, 5060));
    let mut translator = Setup::new(&[]).limit_files(100).start(&world.pod);
    let wire = Wire::new(translator.connect());
    let addr: SocketAddr = (INTERNET4, 7).into();
    let server = UdpEcho::start(&world.outside, addr);
    let echo = |port: u16, payload: &[u8]| {
        let local = guest_addr(addr, port);
        wire.send(&Udp::new(local, addr, payload).frame());
        wire.expect("answer", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst == local && udp.payload == payload)
        });
    };
    for round in 0..3_u16 {
        for port in 20_000..20_200 {
            echo(port, &[round.to_be_bytes(), port.to_be_bytes()].concat());
            // One that is always in use stays: its peer sees one port, which the kernel chose.
            echo(5060, &port.to_be_bytes());
        }
    }
    let busy = server.clients();
    let ports: HashSet<_> = busy.iter().map(SocketAddr::port).collect();
    let stayed = ports
        .iter()
        .filter(|port| !(20_000..20_200).contains(*port));
    assert_eq!(stayed.count(), 1, "the flow in use was ended");
    assert!(translator.fd_count() <= 100);
    translator.assert_alive();
}

/// Datagrams that stand in a row and have one size leave as one message: borders, order and a shorter last one are kept, and
/// so are empty ones among them.
#[test]
fn a_row_of_equal_datagrams_keeps_its_borders() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        let lengths = [
            vec![1200; 40],
            vec![300, 0, 0, 1, 1, 1],
            vec![1452; 30],
            vec![9],
        ]
        .concat();
        let mut burst = Vec::new();
        for (n, &len) in lengths.iter().enumerate() {
            burst.extend(framed(
                &Udp::new(local, addr, &pattern(n as u64, len)).frame(),
            ));
        }
        scene.wire.send_raw(&burst);
        let mut bytes = [0; 2048];
        for (n, &len) in lengths.iter().enumerate() {
            let got = uninterrupted(|| server.recv(&mut bytes)).unwrap();
            assert_eq!(bytes[..got], pattern(n as u64, len), "datagram {n}");
        }
    }
}

/// Regressions U19 and U20: an error is told once, and costs nothing afterwards.
#[test]
fn an_error_is_consumed() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 81) {
        let local = guest_addr(remote, 50_000);
        scene.wire.send(&Udp::new(local, remote, b"hello").frame());
        scene.wire.expect("ICMP error", |frame| {
            Icmp::of_frame(frame).filter(Icmp::is_unreachable)
        });
    }
    let before = scene.translator.cpu();
    scene.wire.never(QUIET, "another error", |frame| {
        Icmp::of_frame(frame).filter(Icmp::is_unreachable)
    });
    let used = scene.translator.cpu().saturating_sub(before);
    assert!(
        used < Duration::from_millis(100),
        "{used:?} of processor time"
    );
}

/// Which datagram of several an error is about: its length, and what it starts with.
#[test]
fn an_error_quotes_the_datagram_it_is_about() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 81) {
        let local = guest_addr(remote, 50_000);
        let packets: Vec<_> = [700, 100, 400]
            .iter()
            .zip(1..)
            .map(|(&len, n)| Ip {
                ttl: 60 + n,
                ..Udp::new(local, remote, &vec![n; len]).ip()
            })
            .collect();
        let burst: Vec<u8> = packets.iter().flat_map(|ip| framed(&ip.frame())).collect();
        scene.wire.send_raw(&burst);
        let error = scene.wire.expect("ICMP error", |frame| {
            Icmp::of_frame(frame).filter(|icmp| icmp.is_unreachable() && icmp.dst == local.ip())
        });
        let header = if remote.is_ipv4() { 20 } else { 40 };
        let about = packets
            .iter()
            .find(|ip| ip.payload[8] == error.body[header + 8])
            .expect("one of them");
        guest::frame::assert_quotes(&error, &about.packet());
        let ttl = error.body[if remote.is_ipv4() { 8 } else { 7 }];
        assert_eq!(ttl, about.ttl);
    }
}

/// The same where there are no more descriptors, long before the table is full: nobody's first datagram is lost over it.
#[test]
fn the_flow_idle_for_longest_gives_its_descriptor() {
    let Some(world) = World::pod() else { return };
    let mut translator = Setup::new(&[]).limit_files(40).start(&world.pod);
    let wire = Wire::new(translator.connect());
    let addr: SocketAddr = (INTERNET4, 7).into();
    let _server = UdpEcho::start(&world.outside, addr);
    for port in 20_000..20_200 {
        let local = guest_addr(addr, port);
        wire.send(&Udp::new(local, addr, b"once").frame());
        wire.expect("answer", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst == local)
        });
    }
    assert!(translator.fd_count() <= 40);
    translator.assert_alive();
}

/// What the kernel hands over as one message (UDP_GRO) is told apart again: borders, order and a shorter last one are kept.
#[test]
fn datagrams_sent_as_one_arrive_one_by_one() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        scene.wire.send(&Udp::new(local, addr, b"go").frame());
        let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 8])).unwrap();
        server.connect(peer).unwrap();
        for (size, len) in [
            (1200, 1200 * 40),
            (1400, 1400 * 20 + 9),
            (100, 100 * 50 + 1),
        ] {
            nix::sys::socket::setsockopt(&server, nix::sys::socket::sockopt::UdpGsoSegment, &size)
                .unwrap();
            server.send(&pattern(0, len)).unwrap();
            let size = usize::try_from(size).unwrap();
            for start in (0..len).step_by(size) {
                let payload = scene.wire.expect("datagram", |frame| {
                    Udp::of_frame(frame).map(|udp| udp.payload)
                });
                let want = size.min(len - start);
                assert!(
                    payload == pattern(start as u64, want),
                    "{want} octets at {start}"
                );
            }
        }
    }
}

/// Sends datagrams, numbered by their other octets, while the translator stands still. Returns how many reach the guest with
/// no pause longer than `patience`: the first ones. Those of another round, which the first octet tells, may come late.
fn arrive_late(
    scene: &Scene,
    server: &UdpSocket,
    (round, count): (u8, u8),
    patience: Duration,
) -> u8 {
    let datagram = |number| [&[round][..], &[number; 999]].concat();
    scene.translator.stand_still();
    for number in 0..count {
        server.send(&datagram(number)).unwrap();
    }
    scene.translator.signal(Signal::SIGCONT);
    let mut arrived = 0;
    while arrived < count
        && let Some(frame) = scene.wire.recv(patience)
    {
        let came = Udp::of_frame(&frame).map(|udp| udp.payload);
        if let Some(came) = came.filter(|came| came[0] == round) {
            assert!(came == datagram(arrived), "not {arrived}");
            arrived += 1;
        }
    }
    arrived
}

/// What comes while we wait for a processor is kept for us: once a flow's socket was found crowded it holds more than is usual,
/// which is fewer than a hundred datagrams.
#[test]
fn a_crowded_socket_gets_more_room() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        scene.wire.send(&Udp::new(local, addr, b"go").frame());
        let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 8])).unwrap();
        server.connect(peer).unwrap();
        let mut round = 0_u8;
        // A flow that is new takes one by one, and is not found crowded.
        let whole = wait_until(LONG, || {
            round += 2;
            let few = arrive_late(&scene, &server, (round, 80), LONG);
            assert_eq!(few, 80, "{addr}");
            arrive_late(&scene, &server, (round + 1, 160), QUIET) == 160
        });
        assert!(whole, "{addr}");
    }
}

/// A row that the kernel will not cut (the route's MTU is smaller than it was) leaves one by one, from then on.
#[test]
fn rows_that_the_kernel_refuses_leave_one_by_one() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        let local = guest_addr(addr, 50_000);
        let route = if addr.is_ipv4() {
            "route replace default via 10.233.70.1 dev eth0"
        } else {
            "route replace default via fe80::1 dev eth0"
        };
        let mut bytes = [0; 2048];
        for (round, mtu) in ["mtu lock 1500", "mtu lock 1300", "mtu lock 1300"]
            .iter()
            .enumerate()
        {
            scene.world.pod.ip(&format!("{route} {mtu}"));
            // Such as may be fragmented: what is too large then is the kernel's to cut in another way.
            let row: Vec<u8> = (0..30)
                .flat_map(|n| {
                    let ip = Udp::new(local, addr, &pattern(n, 1400)).ip();
                    framed(&part(&ip, n as u32, 0, ip.payload.len(), false))
                })
                .collect();
            scene.wire.send_raw(&row);
            for n in 0..30 {
                let got = uninterrupted(|| server.recv(&mut bytes)).unwrap();
                assert!(
                    bytes[..got] == pattern(n, 1400),
                    "datagram {n} in round {round}"
                );
            }
        }
    }
}

/// Regressions U03, U25 and U28. A question is remembered for as long as the host's connection tracking remembers it, a
/// stream for longer, by whichever side keeps it up; after that the next datagram begins anew.
#[test]
fn flows_live_as_long_as_the_hosts_connection_tracking_says() {
    let Some(world) = World::pod() else { return };
    let timeouts = ["udp_timeout", "udp_timeout_stream"]
        .map(|name| format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    let set = world
        .pod
        .run(|| fs::write(&timeouts[0], "2").is_ok() && fs::write(&timeouts[1], "4").is_ok());
    if !set {
        println!("skipped: no connection tracking here");
        return;
    }
    let translator = Setup::new(&[]).start(&world.pod);
    let wire = Wire::new(translator.connect());
    let idle = translator.idle_fd_count();
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&world.outside, addr);
        let local = guest_addr(addr, 50_000);
        let mut bytes = [0; 8];
        let say = |what: &[u8]| wire.send(&Udp::new(local, addr, what).frame());
        say(b"once");
        uninterrupted(|| server.recv_from(&mut bytes)).unwrap();
        assert!(
            wait_until(LONG, || translator.fd_count() == idle),
            "a question"
        );
        // A stream: to and fro, then for a while from one side only.
        say(b"to");
        let (_, peer) = uninterrupted(|| server.recv_from(&mut bytes)).unwrap();
        say(b"to");
        uninterrupted(|| server.recv_from(&mut bytes)).unwrap();
        for n in 0..12_u8 {
            server.send_to(&[n], peer).unwrap();
            let payload = wire.expect("datagram", |frame| {
                Udp::of_frame(frame).map(|udp| udp.payload)
            });
            assert_eq!(payload, [n]);
            assert!(translator.fd_count() > idle, "it is kept up");
            std::thread::sleep(Duration::from_millis(500));
        }
        assert!(
            wait_until(LONG, || translator.fd_count() == idle),
            "a stream"
        );
        say(b"anew");
        let (len, _) = uninterrupted(|| server.recv_from(&mut bytes)).unwrap();
        assert_eq!(&bytes[..len], b"anew");
        assert!(wait_until(LONG, || translator.fd_count() == idle));
    }
}

/// Of the first datagram of a client too, which comes by the port that is forwarded.
#[test]
fn ttl_and_type_of_service_of_clients_reach_the_guest() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        let client = udp_socket(&scene.world.outside, from);
        // The guest is known by what it says.
        scene
            .wire
            .send(&Udp::new(to, (from.ip(), 9).into(), b"here").frame());
        sockopt::set_ttl(client.as_fd(), from.is_ipv6(), 77).unwrap();
        sockopt::set_tos(client.as_fd(), from.is_ipv6(), 0xb8).unwrap();
        for _ in 0..2 {
            client.send_to(b"hello", to).unwrap();
            let seen = scene.wire.expect("datagram", |frame| {
                Udp::of_frame(frame)?;
                Some((Ip::of_frame(frame)?.ttl, tos_of(frame)))
            });
            assert_eq!(seen, (77, 0xb8), "{to}");
        }
    }
}
