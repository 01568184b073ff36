//! Whole guests behind the link: their streams and datagrams arrive, whatever the driver can do.

use crate::{
    Scene,
    guest::{Guest, both},
    lab::{
        front_end::{
            CSUM, Driver, EVENT_IDX, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, IPXE, LINUX, MRG_RXBUF,
            VERSION_1, bridge,
        },
        servers::TcpServer,
        world::{INTERNET4, INTERNET6},
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
