//! On a kernel without anything newer than the oldest we serve: each probe answered with no, the fallback carries the bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    io::{self, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
    time::Duration,
};

use guest::{Guest, both, pattern};
use lab::{
    World,
    servers::{TcpServer, accept, tcp_listener},
    world::{INTERNET4, INTERNET6},
};
use passt_rs::{
    config::{Config, resolve},
    daemon::{Ending, Entrance, Reactor},
    host::{facts, socket::Features},
    net::Span,
    relay::{Limits, Relay},
};
use socket2::SockRef;

/// Octets echoed by a connection: more than a socket's buffer holds.
const BULK: usize = 2 << 20;

/// The program in this network, with nothing of newer kernels.
fn start(world: &World, link: UnixStream) -> JoinHandle<io::Result<Ending>> {
    world.pod.run(|| {
        let net = resolve(&Config::default(), &facts::read().expect("facts"))
            .expect("a network")
            .net;
        let limits = Limits {
            flows: 100,
            spill: 1 << 20,
            udp: Span::secs(30),
            udp_stream: Span::secs(120),
        };
        let relay = Relay::new(net, Features::none(), limits);
        thread::spawn(move || {
            let entrance = Entrance::Connected(link.into());
            Reactor::new(relay, entrance, None, true, None)
                .expect("a reactor")
                .run()
        })
    })
}

/// The guest leaves, and so does the program.
fn leave(guest: Guest, reactor: JoinHandle<io::Result<Ending>>) {
    drop(guest);
    assert_eq!(
        reactor.join().expect("no panic").expect("no error"),
        Ending::ClientLeft
    );
}

/// Regression T61: the families are probed apart.
#[test]
fn without_a_peek_offset_streams_arrive_whole() {
    let Some(world) = World::pod() else { return };
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let reactor = start(&world, theirs);
    let servers = both(INTERNET4, INTERNET6, 7).map(|addr| TcpServer::echo(&world.outside, addr));
    let mut guest = Guest::online(ours, 65_520);
    for server in &servers {
        let connection = guest.connect(server.addr());
        guest.echo(connection, BULK);
        guest.close(connection);
    }
    guest.run_for(Duration::from_millis(50));
    leave(guest, reactor);
}

/// Reads stop at the mark: what follows it may not be taken for the end that stands behind.
#[test]
fn without_a_peek_offset_a_stream_with_urgent_data_arrives_to_its_end() {
    let Some(world) = World::pod() else { return };
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let reactor = start(&world, theirs);
    let mut guest = Guest::online(ours, 65_520);
    for addr in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&world.outside, addr);
        let connection = guest.connect(addr);
        let mut server = accept(&listener);
        let octets = pattern(0, 13);
        server.write_all(&octets[..6]).expect("room");
        SockRef::from(&server)
            .send_out_of_band(&octets[6..7])
            .expect("room");
        server.write_all(&octets[7..]).expect("room");
        server.shutdown(Shutdown::Write).expect("a connection");
        guest.download(connection, 13);
        guest.expect_eof(connection);
        guest.close(connection);
    }
    leave(guest, reactor);
}
