//! ICMP errors of the guest about what came from outside: they end the flow, and are counted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod kernel_guest;
mod lab;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use nix::sys::signal::Signal;

use guest::{
    Icmp, Peer, Scene, Tcp, Udp, Wire, both,
    frame::{Ip, SYN},
    guest_addr, pattern,
};
use kernel_guest::KernelGuest;
use lab::{
    Host, LONG, QUIET, Translator, World,
    servers::{accept, tcp_listener, udp_socket},
    uninterrupted,
    world::{INTERNET4, INTERNET6, POD4, POD6},
};

/// Type and codes of destination unreachable that say "port", "prohibited" and, of IPv4, "fragmentation needed".
const PORT: (u8, u8) = (3, 4);
const PROHIBITED: (u8, u8) = (13, 1);

/// The guest's error about a packet it got; codes are those of each family.
fn refuse(wire: &Wire, packet: &Ip, (code4, code6): (u8, u8)) {
    let v4 = packet.src.is_ipv4();
    let quote = packet.packet();
    let quote = &quote[..quote.len().min(if v4 { 28 } else { 200 })];
    let kind = if v4 { 3 } else { 1 };
    let mut error = Icmp::new(packet.dst, packet.src, kind, 0, quote);
    error.code = if v4 { code4 } else { code6 };
    wire.send(&error.frame());
}

fn connect(host: &Host, to: SocketAddr) -> TcpStream {
    let stream = host.run(|| TcpStream::connect(to)).expect("connect");
    stream.set_read_timeout(Some(LONG)).expect("timeout");
    stream
}

/// The guest says where it is; the flows that takes stay.
fn introduce(wire: &Wire) {
    for addr in both(INTERNET4, INTERNET6, 9) {
        wire.send(&Udp::new(guest_addr(addr, 9), addr, b"hello").frame());
        wire.expect("ICMP error", |frame| {
            Icmp::of_frame(frame).filter(Icmp::is_unreachable)
        });
    }
}

/// The guest's SYN of a connection from outside, as a packet.
fn expect_syn(wire: &Wire, to: SocketAddr) -> Ip {
    wire.expect("SYN", |frame| {
        Tcp::of_frame(frame).filter(|s| s.dst == to && s.has(SYN))?;
        Ip::of_frame(frame)
    })
}

/// How many errors of the guest have been counted.
fn counted(scene: &Scene) -> u64 {
    let before = scene.translator.log().matches("Frames from guest").count();
    scene.translator.signal(Signal::SIGUSR1);
    let mut log = String::new();
    assert!(lab::wait_until(LONG, || {
        log = scene.translator.log();
        log.matches("Frames from guest").count() > before
            && log
                .rsplit("Frames from guest")
                .next()
                .unwrap()
                .contains("Dropped")
    }));
    let last = log.rsplit("Frames from guest").next().unwrap();
    last.lines()
        .find_map(|line| line.trim().strip_prefix("ICMP error from the guest: "))
        .map_or(0, |count| count.parse().unwrap())
}

#[test]
fn a_connection_the_guest_calls_unreachable_is_reset_at_once() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    introduce(&scene.wire);
    let idle = scene.translator.idle_fd_count();
    for codes in [PORT, PROHIBITED] {
        for to in both(POD4, POD6, 80) {
            let mut client = connect(&scene.world.outside, to);
            refuse(&scene.wire, &expect_syn(&scene.wire, to), codes);
            let error = uninterrupted(|| client.read(&mut [0])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
    assert!(lab::wait_until(LONG, || counted(&scene) == 4));
    scene.translator.expect_fd_count(idle);
}

/// An error about another segment, or one that only says something about the size, ends nothing; nor does any error about a
/// connection that is established (RFC 1122, section 4.2.3.9; RFC 5927).
#[test]
fn a_connection_rides_out_errors_that_are_not_about_its_syn() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    introduce(&scene.wire);
    for to in both(POD4, POD6, 80) {
        let mut client = connect(&scene.world.outside, to);
        let syn = expect_syn(&scene.wire, to);
        let mut other = syn.clone();
        other.payload[4] ^= 0x55;
        refuse(&scene.wire, &other, PORT);
        if to.is_ipv4() {
            refuse(&scene.wire, &syn, (4, 0));
        }
        let segment = Tcp::of_frame(&syn.frame()).unwrap();
        let mut peer = Peer::answer(&scene.wire, &segment);
        refuse(&scene.wire, &syn, PORT);
        peer.send_data(b"still here");
        let mut heard = [0; 10];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still here");
    }
}

/// A peer of a forwarded port begins anew: the guest may have a server there now.
#[test]
fn a_datagram_flow_from_outside_ends_with_the_guests_error() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    introduce(&scene.wire);
    let idle = scene.translator.idle_fd_count();
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        let client = udp_socket(&scene.world.outside, from);
        for text in [b"one", b"two"] {
            client.send_to(text, to).unwrap();
            let packet = scene.wire.expect("datagram", |frame| {
                Udp::of_frame(frame).filter(|udp| udp.dst == to && udp.payload == text)?;
                Ip::of_frame(frame)
            });
            refuse(&scene.wire, &packet, PORT);
            scene.translator.expect_fd_count(idle);
        }
    }
    assert_eq!(counted(&scene), 4);
}

/// Whoever goes on sending to a guest that has closed hears what it would hear from a host.
#[test]
fn a_peer_of_a_closed_port_of_the_guest_hears_that_it_is_unreachable() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 7) {
        let server = udp_socket(&scene.world.outside, remote);
        let local = guest_addr(remote, 50_000);
        scene
            .wire
            .send(&Udp::new(local, remote, b"question").frame());
        let (_, from) = uninterrupted(|| server.recv_from(&mut [0; 20])).unwrap();
        server.connect(from).unwrap();
        server.send(b"answer").unwrap();
        let packet = scene.wire.expect("answer", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst == local)?;
            Ip::of_frame(frame)
        });
        refuse(&scene.wire, &packet, PORT);
        let told = || {
            let _ = server.send(b"again");
            let error = server.take_error().unwrap();
            error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        assert!(lab::wait_until(LONG, told), "{remote}");
    }
}

/// A guest that is a router, as hosts of containers are, says what its link takes: its machines' connections go on.
#[test]
fn segments_too_large_for_a_link_behind_the_guest_come_again_in_smaller_ones() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 7) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        let mut server = accept(&listener);
        let data = pattern(3, 20_000);
        server.write_all(&data).unwrap();
        let large = scene.wire.expect("segment", |frame| {
            peer.mine(frame).filter(|segment| segment.len() > 1300)?;
            Ip::of_frame(frame)
        });
        let (kind, code, mtu, headers) = match remote {
            SocketAddr::V4(_) => (3, 4, 1200, 40),
            SocketAddr::V6(_) => (2, 0, 1300, 60),
        };
        let quote = &large.packet()[..headers];
        // Of what was never sent, and of one that says nothing: as if somebody had guessed.
        let mut never = quote.to_vec();
        never[headers - 16] ^= 0x55;
        for (quote, mtu) in [(&never[..], mtu), (quote, 9000), (quote, mtu)] {
            let mut error = Icmp::new(large.dst, large.src, kind, mtu, quote);
            error.code = code;
            scene.wire.send(&error.frame());
        }
        peer.expect("smaller segment", |segment| {
            segment.seq == peer.rcv_nxt && segment.payload.len() == mtu as usize - headers
        });
        // Nothing larger comes any more.
        let limit = mtu as usize - headers;
        peer.ack();
        let mut got = Vec::new();
        while got.len() < data.len() {
            let segment = peer.recv();
            assert!(segment.payload.len() <= limit, "{}", segment.payload.len());
            peer.take(&segment, &mut got);
            peer.ack();
        }
        assert!(got == data);
    }
    assert!(lab::wait_until(LONG, || counted(&scene) == 6));
}

/// Errors about nothing, cut short, or about echo replies are counted, and that is all.
#[test]
fn errors_about_nothing_we_know_are_harmless() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let mut sent = 0;
    for remote in both(INTERNET4, INTERNET6, 7) {
        let local = guest_addr(remote, 50_000);
        let v4 = remote.is_ipv4();
        let packet = Udp::new(remote, local, b"never sent").ip().packet();
        let kinds: &[u8] = if v4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        for &kind in kinds {
            for len in 0..packet.len() {
                let error = Icmp::new(local.ip(), remote.ip(), kind, 0, &packet[..len]);
                scene.wire.send(&error.frame());
                sent += 1;
            }
        }
    }
    assert!(lab::wait_until(LONG, || counted(&scene) == sent));
    scene.wire.never(QUIET, "ICMP error", |frame| {
        Icmp::of_frame(frame).filter(Icmp::is_unreachable)
    });
    scene.translator.assert_alive();
}

/// As firewalls of guests refuse by default.
#[test]
fn a_linux_guest_that_rejects_is_heard_by_the_peer() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &["-t", "80", "-u", "5000"]);
    let Some(guest) = KernelGuest::plug(&translator, 1500) else {
        return;
    };
    guest.number();
    guest.host().allow_ping();
    guest.host().nft(
        "table inet filter {
            chain input {
                type filter hook input priority 0;
                tcp dport 80 reject
                udp dport 5000 reject
            }
        }",
    );
    for (to, far) in both(POD4, POD6, 80)
        .into_iter()
        .zip([IpAddr::from(INTERNET4), INTERNET6.into()])
    {
        lab::traffic::ping(guest.host(), far);
        // The reset may come before connect(2) has returned.
        let connected = world.outside.run(|| TcpStream::connect(to));
        let error = connected.and_then(|mut stream| {
            stream.set_read_timeout(Some(LONG))?;
            uninterrupted(|| stream.read(&mut [0]))
        });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{to}");
    }
}
