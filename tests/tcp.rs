//! TCP from the guest to the world, and back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use guest::{Guest, Peer, Wire};
use lab::{
    Translator, World,
    servers::TcpServer,
    world::{INTERNET4, INTERNET6, POD4, POD6},
};

const MIB: usize = 1 << 20;

#[test]
fn echo_reaches_the_world_in_both_families() {
    let Some(world) = World::pod() else { return };
    let servers = [
        TcpServer::echo(&world.outside, (INTERNET4, 7)),
        TcpServer::echo(&world.outside, (INTERNET6, 7)),
    ];
    let translator = Translator::start(&world.pod, &[]);
    let mut guest = Guest::online(translator.connect(), 65_520);
    for server in &servers {
        let connection = guest.connect(server.addr());
        guest.echo(connection, 8 * MIB);
        guest.close(connection);
    }
}

#[test]
fn a_scripted_peer_connects_and_closes() {
    let Some(world) = World::pod() else { return };
    let servers = [
        (POD4.into(), TcpServer::echo(&world.outside, (INTERNET4, 7))),
        (POD6.into(), TcpServer::echo(&world.outside, (INTERNET6, 7))),
    ];
    let translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    for (addr, server) in &servers {
        let local = std::net::SocketAddr::new(*addr, 40_000);
        let mut peer = Peer::connect(&wire, local, server.addr());
        let data = guest::pattern(0, 10_000);
        peer.send_data(&data);
        assert_eq!(peer.read(10_000), data);
        peer.close();
    }
}
