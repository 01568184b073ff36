//! What a datagram's headers say, how many flows there may be, and errors that must not come twice.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use guest::{Icmp, Scene, Udp, Wire, both, frame::Ip, guest_addr, pattern, wire::framed};
use lab::{
    LONG, QUIET, Setup, World,
    servers::{UdpEcho, udp_socket},
    wait_until,
    world::{INTERNET4, INTERNET6},
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
            let got = server.recv(&mut bytes).unwrap();
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
