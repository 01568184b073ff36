//! Queues that the front-end disables or stops, while the guest has flows and goes on.

use std::{
    io::Read,
    net::{SocketAddr, UdpSocket},
};

use nix::sys::signal::Signal;

use crate::{
    arp_request, assert_works,
    guest::{Udp, both, guest_addr, pattern},
    is_arp_reply,
    lab::{
        front_end::{Driver, LINUX, RX, TX},
        servers::udp_socket,
        uninterrupted,
        world::{INTERNET4, INTERNET6, POD4},
    },
    queues::{Connection, HEADER, RX1, TX1, scene},
};

#[test]
fn flows_go_on_when_their_queue_pair_is_disabled() {
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let data = pattern(7, 20_000);
    for (round, remote) in both(INTERNET4, INTERNET6, 7).into_iter().enumerate() {
        // What those of the round before still have to say is not to be taken for theirs.
        let port = 40_000 + round as u16;
        let mut flow = Connection::new(&scene, &mut guest, 1, remote, port);
        flow.send(&mut guest, 1, 1000);
        assert_eq!(flow.arrive(&mut guest, 0), 1);
        let server = udp_socket(&scene.world.outside, remote);
        let udp = Udp::new(guest_addr(remote, 41_000), remote, b"first");
        guest.transmit_by(1, &HEADER, &udp.frame(), 1);
        let (_, from) = uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap();
        // As `ethtool -L eth0 combined 1` has it.
        guest.enable(RX1..TX1 + 1, false);
        flow.send(&mut guest, 0, 1000);
        assert_eq!(flow.arrive(&mut guest, 1000), 0);
        assert_eq!(flow.fetch(&mut guest, 0, &data), 0);
        server.send_to(b"answer", from).unwrap();
        guest.expect("datagram", |arrival| {
            let udp = Udp::of_frame(&arrival.frame)?;
            (udp.payload == b"answer").then_some(())
        });
        guest.transmit_by(0, &HEADER, &udp.frame(), 1);
        assert_eq!(
            uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap(),
            (5, from)
        );
        // And back: what is new can be anywhere, what there was stays.
        guest.enable(RX1..TX1 + 1, true);
        flow.send(&mut guest, 1, 1000);
        assert_eq!(flow.arrive(&mut guest, 2000), 0);
        let remote = SocketAddr::new(remote.ip(), 100 + round as u16);
        let mut flow = Connection::new(&scene, &mut guest, 1, remote, port + 2000);
        assert_eq!(flow.fetch(&mut guest, 1, &data), 1);
    }
}

#[test]
fn queues_that_were_stopped_start_again_and_flows_with_them() {
    let Some(mut scene) = scene("2") else { return };
    let idle = scene.translator.idle_fd_count();
    for _ in 0..3 {
        let mut guest = scene.guest(Driver::twice(LINUX));
        let mut flow = Connection::new(&scene, &mut guest, 1, (INTERNET4, 7).into(), 40_000);
        flow.send(&mut guest, 1, 1000);
        flow.arrive(&mut guest, 0);
        // A reboot: firmware comes first, and has one pair.
        guest.stop_rings();
        guest.reset_driver();
        guest.share_memory();
        guest.start_rings(0, 0);
        guest.enable(RX1..TX1 + 1, false);
        assert_works(&mut guest);
        guest.enable(RX1..TX1 + 1, true);
        guest.transmit_by(1, &HEADER, &arp_request(), 1);
        guest.expect("ARP reply", is_arp_reply);
        flow.send(&mut guest, 1, 1000);
        flow.arrive(&mut guest, 1000);
        drop(guest);
        // The peer hears of it, and nothing is left.
        assert!(uninterrupted(|| flow.server.read(&mut [0])).is_err());
        scene.translator.expect_fd_count(idle);
    }
    scene.translator.assert_alive();
}

/// A datagram that says which one it is.
fn datagram(server: &UdpSocket, number: u8) -> Vec<u8> {
    let remote = server.local_addr().unwrap();
    Udp::new((POD4, 41_000).into(), remote, &[number]).frame()
}

fn assert_next(server: &UdpSocket, number: u8) {
    let mut octets = [0; 9];
    let len = uninterrupted(|| server.recv(&mut octets)).unwrap();
    assert_eq!(octets[..len], [number]);
}

/// QEMU's docs/interop/vhost-user.rst, "Ring states": a driver that gets its buffers back is not kept from sending the same
/// again by another queue.
#[test]
fn frames_by_a_disabled_queue_are_taken_and_go_nowhere() {
    let Some(scene) = scene("2") else { return };
    let server = udp_socket(&scene.world.outside, (INTERNET4, 7));
    let mut guest = scene.guest(Driver::twice(LINUX));
    guest.transmit_by(1, &HEADER, &datagram(&server, 0), 1);
    assert_next(&server, 0);
    guest.enable(RX1..TX1 + 1, false);
    guest.transmit_by(1, &HEADER, &datagram(&server, 1), 1);
    guest.enable(RX1..TX1 + 1, true);
    guest.transmit_by(1, &HEADER, &datagram(&server, 2), 1);
    assert_next(&server, 2);
    scene.translator.signal(Signal::SIGUSR1);
    scene.translator.expect_log("switched off: 1");
}

/// Nothing that was under way when a front-end pauses its guest is lost.
#[test]
fn frames_wait_while_all_queues_are_disabled() {
    let Some(scene) = scene("2") else { return };
    let server = udp_socket(&scene.world.outside, (INTERNET4, 7));
    let mut guest = scene.guest(Driver::twice(LINUX));
    assert_works(&mut guest);
    guest.enable(RX..TX1 + 1, false);
    for pair in [0, 1] {
        guest.post_by(pair, &HEADER, &datagram(&server, pair as u8), 1);
    }
    guest.enable(RX..TX + 1, true);
    assert_next(&server, 0);
    guest.enable(RX1..TX1 + 1, true);
    assert_next(&server, 1);
}

/// A front-end that enables last: after a pause, or as it connects anew.
#[test]
fn frames_that_wait_when_a_queue_starts_are_carried_once_it_is_enabled() {
    let Some(scene) = scene("2") else { return };
    let server = udp_socket(&scene.world.outside, (INTERNET4, 7));
    let mut guest = scene.guest(Driver::twice(LINUX));
    for number in 0..3 {
        guest.transmit(&HEADER, &datagram(&server, number), 1);
        assert_next(&server, number);
        if number > 0 {
            guest.enable(RX..TX1 + 1, false);
        }
        let [rx, tx] = guest.stop_rings();
        if number > 1 {
            guest.enable(RX..TX1 + 1, false);
        }
        guest.post(&HEADER, &datagram(&server, 10 + number), 1);
        guest.start_rings(rx, tx);
        assert_next(&server, 10 + number);
        while guest.collect(TX).is_some() {}
    }
}
