//! Whole guests behind the link: their streams and datagrams arrive, whatever the driver can do.

use std::net::{Ipv4Addr, UdpSocket};

use crate::{
    Scene,
    guest::{Guest, Udp, both, pattern},
    lab::{
        LONG,
        front_end::{
            CSUM, Driver, EVENT_IDX, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, IPXE, LINUX, MRG_RXBUF,
            VERSION_1, bridge,
        },
        servers::TcpServer,
        uninterrupted,
        world::{INTERNET4, INTERNET6, POD4},
    },
};

/// Octets of a stream.
const BULK: usize = 2 << 20;

fn exchange(scene: &Scene, driver: Driver, mtu: usize) {
    let servers = both(INTERNET4, INTERNET6, 7);
    let servers = servers.map(|addr| TcpServer::echo(&scene.world.outside, addr));
    let mut guest = Guest::online(bridge(scene.translator.connect(), driver), mtu);
    for server in &servers {
        let connection = guest.connect(server.addr());
        guest.echo(connection, BULK);
        guest.close(connection);
    }
}

#[test]
fn streams_arrive_whole_whatever_the_driver_can_do() {
    for features in [
        LINUX,
        LINUX & !GUEST_TSO4 & !GUEST_TSO6,
        IPXE,
        LINUX & !MRG_RXBUF,
        LINUX & !EVENT_IDX,
        VERSION_1 | MRG_RXBUF,
        VERSION_1 | CSUM | GUEST_CSUM,
        0,
    ] {
        let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
            return;
        };
        exchange(&scene, Driver::new(features), 1500);
    }
}

#[test]
fn large_frames_span_buffers_of_any_size() {
    for (buffer, pieces, mtu) in [(1536, 1, 65_520), (4096, 2, 65_520), (512, 1, 9000)] {
        let Some(scene) = Scene::new(&["--mtu", &mtu.to_string()]) else {
            return;
        };
        let mut driver = Driver::new(LINUX);
        (driver.buffer, driver.pieces, driver.buffers) = (buffer, pieces, 256 / pieces as u16);
        exchange(&scene, driver, mtu);
    }
}

#[test]
fn a_datagram_to_a_group_stays_one_however_it_lies_in_memory() {
    let group = Ipv4Addr::new(239, 255, 255, 250);
    let Some(scene) = Scene::new(&[]) else { return };
    let member = scene.world.pod.run(|| {
        let socket = UdpSocket::bind((group, 5555)).unwrap();
        socket.join_multicast_v4(&group, &POD4).unwrap();
        socket
    });
    member.set_read_timeout(Some(LONG)).unwrap();
    let mut guest = scene.guest(Driver::new(LINUX));
    let header = vec![0; guest.driver.header()];
    for pieces in 1..=4 {
        let payload = pattern(pieces, 1400);
        let frame = Udp::new((POD4, 50_000).into(), (group, 5555).into(), &payload).frame();
        guest.transmit(&header, &frame, pieces as usize);
        let mut octets = [0; 2000];
        let len = uninterrupted(|| member.recv(&mut octets)).unwrap();
        assert!(octets[..len] == payload, "{len} octets of {pieces} pieces");
    }
}
