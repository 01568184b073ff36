//! On a kernel without anything newer than the oldest we serve: each probe answered with no, the fallback carries the bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{os::unix::net::UnixStream, thread, time::Duration};

use guest::{Guest, both};
use lab::{
    World,
    servers::TcpServer,
    world::{INTERNET4, INTERNET6},
};
use passt_rs::{
    config::{Config, resolve},
    daemon::{Ending, Entrance, Reactor},
    host::{facts, socket::Features},
    net::Span,
    relay::{Limits, Relay},
};

/// Octets echoed by a connection: more than a socket's buffer holds.
const BULK: usize = 2 << 20;

/// Regression T61: the families are probed apart.
#[test]
fn without_a_peek_offset_streams_arrive_whole() {
    let Some(world) = World::pod() else { return };
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let reactor = world.pod.run(|| {
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
            let entrance = Entrance::Connected(theirs.into());
            Reactor::new(relay, entrance, None, true, None)
                .expect("a reactor")
                .run()
        })
    });
    let servers = both(INTERNET4, INTERNET6, 7).map(|addr| TcpServer::echo(&world.outside, addr));
    let mut guest = Guest::online(ours, 65_520);
    for server in &servers {
        let connection = guest.connect(server.addr());
        guest.echo(connection, BULK);
        guest.close(connection);
    }
    guest.run_for(Duration::from_millis(50));
    drop(guest);
    assert_eq!(
        reactor.join().expect("no panic").expect("no error"),
        Ending::ClientLeft
    );
}
