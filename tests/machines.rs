//! Several machines behind the link, each with a MAC address of its own: a bridge in the guest, or macvlan.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use guest::{
    Peer, Scene, Tcp, Udp, Wire, both,
    frame::{GUEST_MAC, OTHER_MAC, ethernet},
    guest_addr, neighbour_of,
};
use lab::{
    servers::{accept, tcp_listener, udp_socket},
    world::{INTERNET4, INTERNET6},
};

/// Where the next segment with payload for this address goes.
fn expect_data(wire: &Wire, to: SocketAddr) -> [u8; 6] {
    wire.expect("data", |frame| {
        Tcp::of_frame(frame).filter(|s| s.dst == to && !s.payload.is_empty())?;
        frame.first_chunk().copied()
    })
}

fn expect_datagram(wire: &Wire, to: SocketAddr) -> [u8; 6] {
    wire.expect("datagram", |frame| {
        Udp::of_frame(frame).filter(|udp| udp.dst == to)?;
        frame.first_chunk().copied()
    })
}

/// RFC 826; RFC 4861, section 7.2.
#[test]
fn a_connections_segments_go_to_the_machine_that_has_its_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 80) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let local = guest_addr(remote, 1000);
        let machines = [(local, GUEST_MAC), (neighbour_of(local), OTHER_MAC)];
        let mut streams = machines.map(|(local, mac)| {
            scene.wire.speak_as(mac);
            Peer::connect(&scene.wire, local, remote);
            accept(&listener)
        });
        for ((local, mac), stream) in machines.into_iter().zip(&mut streams) {
            stream.write_all(b"hello").unwrap();
            assert_eq!(expect_data(&scene.wire, local), mac, "{local}");
        }
    }
}

#[test]
fn a_datagram_goes_to_the_machine_that_has_its_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 53) {
        let server = udp_socket(&scene.world.outside, remote);
        let local = guest_addr(remote, 5060);
        let machines = [(local, GUEST_MAC), (neighbour_of(local), OTHER_MAC)];
        let clients = machines.map(|(local, mac)| {
            scene.wire.speak_as(mac);
            scene
                .wire
                .send(&Udp::new(local, remote, b"question").frame());
            server.recv_from(&mut [0; 100]).unwrap().1
        });
        for ((local, mac), client) in machines.into_iter().zip(clients) {
            // The second is in parts.
            for len in [100, 3000] {
                server.send_to(&vec![7; len], client).unwrap();
                assert_eq!(expect_datagram(&scene.wire, local), mac, "{local}");
            }
        }
    }
}

/// What it says goes no further (a VLAN of its own, VRRP), but it is there.
#[test]
fn a_machine_whose_frames_are_not_carried_is_heard() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = SocketAddr::from((INTERNET4, 80));
    let listener = tcp_listener(&scene.world.outside, remote);
    let local = guest_addr(remote, 1000);
    let [own, mut shared] = [local, neighbour_of(local)].map(|local| {
        let peer = Peer::connect(&scene.wire, local, remote);
        (peer, accept(&listener))
    });
    scene.wire.speak_as(OTHER_MAC);
    shared.0.ack();
    scene.wire.speak_as(GUEST_MAC);
    scene
        .wire
        .send(&ethernet([1, 0, 0x5e, 0, 0, 18], 0x8100, &[0; 46]));
    scene.wire.speak_as(OTHER_MAC);
    shared.0.send_data(b"hello");
    shared.1.read_exact(&mut [0; 5]).unwrap();
    (&own.1).write_all(b"hello").unwrap();
    assert_eq!(expect_data(&scene.wire, own.0.local), GUEST_MAC);
}

/// `ip link set address`: what is silent is where the rest of the guest is now.
#[test]
fn a_guest_with_another_mac_address_has_all_its_addresses_there() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remotes = both(INTERNET4, INTERNET6, 80);
    let mut peers = remotes.map(|remote| {
        let listener = tcp_listener(&scene.world.outside, remote);
        let peer = Peer::connect(&scene.wire, guest_addr(remote, 1000), remote);
        (peer, accept(&listener))
    });
    scene.wire.speak_as(OTHER_MAC);
    peers[0].0.send_data(b"hello");
    peers[0].1.read_exact(&mut [0; 5]).unwrap();
    for (peer, stream) in peers.iter_mut().rev() {
        stream.write_all(b"hello").unwrap();
        assert_eq!(expect_data(&scene.wire, peer.local), OTHER_MAC);
    }
}
