//! Where the system has no more to give.

use std::{io, os::unix::net::UnixStream};

use passt_rs::{
    config::{Config, resolve},
    host::{facts, socket::Features},
    link::{Inbox, Outbox},
    net::{Now, Span},
    relay::{Limits, Relay, Request},
};

use crate::{
    guest::{
        Peer, Scene, Wire, both,
        frame::{ACK, RST, SYN},
        guest_addr,
    },
    lab::{
        World,
        servers::TcpServer,
        world::{BLACKHOLE4, BLACKHOLE6, INTERNET4, INTERNET6, POD4, POD6},
    },
};

/// A socket the kernel will not watch would never be heard of again: its connection is refused, and nothing of it is left.
#[test]
fn a_connection_whose_socket_cannot_be_watched_is_reset_and_leaves_nothing() {
    let Some(world) = World::pod() else { return };
    world.pod.run(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let wire = Wire::new(theirs);
        let net = resolve(&Config::default(), &facts::read().unwrap());
        let limits = Limits {
            flows: 16,
            spill: 1 << 20,
            udp: Span::secs(30),
            udp_stream: Span::secs(120),
        };
        let mut relay = Relay::new(net.unwrap().net, Features::probe(), limits);
        let (mut inbox, mut outbox) = (Inbox::new(), Outbox::new());
        outbox.attach(Some(ours.try_clone().unwrap().into()));
        inbox.attach(Some(ours.into()));
        for remote in both(BLACKHOLE4, BLACKHOLE6, 80) {
            let mut peer = Peer::new(&wire, guest_addr(remote, 40_000), remote, 7);
            // As often as there are places, and once more.
            for _ in 0..17 {
                peer.snd_nxt = 7;
                peer.send(SYN, &[]);
                inbox.receive();
                // Each has a turn of its own.
                relay.expire(&mut outbox, Now(1), Now(1));
                relay.from_guest(&inbox, &mut outbox, Now(1));
                let watched = relay
                    .requests()
                    .drain(..)
                    .find_map(|request| match request {
                        Request::Watch(_, id) => Some(id),
                        _ => None,
                    });
                let error = io::Error::from_raw_os_error(libc::ENOSPC);
                relay.unwatched(watched.unwrap(), &error, &mut outbox);
                outbox.flush();
                let answer = peer.recv();
                assert_eq!((answer.flags, answer.ack), (RST | ACK, 8));
                let closed = relay.requests().drain(..);
                assert_eq!(closed.filter(|r| matches!(r, Request::Close(_))).count(), 1);
            }
        }
    });
}

/// The host has no port left for another connection to the same server: the guest hears so at once, the log once.
#[test]
fn want_of_ports_is_a_reset_and_one_warning() {
    let Some(scene) = Scene::new(&[]) else { return };
    scene
        .world
        .pod
        .sysctl("ipv4/ip_local_port_range", "61000 61003");
    for remote in both(INTERNET4, INTERNET6, 7) {
        let _server = TcpServer::echo(&scene.world.outside, remote);
        let mut open: Vec<_> = (0..4)
            .map(|n| Peer::connect(&scene.wire, guest_addr(remote, 40_000 + n), remote))
            .collect();
        for n in 4..20 {
            let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000 + n), remote, 7);
            peer.send(SYN, &[]);
            let answer = peer.recv();
            assert_eq!((answer.flags, answer.ack), (RST | ACK, 8));
        }
        for peer in &mut open {
            peer.send_data(b"still there");
            assert_eq!(peer.read(11), b"still there");
            peer.rst();
        }
    }
    scene.translator.expect_log("Cannot open more sockets");
    let said = scene
        .translator
        .log()
        .matches("Cannot open more sockets")
        .count();
    assert_eq!(said, 1, "{}", scene.translator.log());
}

/// As many connections to each server as there are ports, whoever's address they leave from.
#[test]
fn a_port_serves_towards_every_server_with_an_address_of_ones_own_too() {
    let outbound = ["-o", &POD4.to_string(), "-o", &POD6.to_string()];
    let Some(scene) = Scene::new(&outbound) else {
        return;
    };
    scene
        .world
        .pod
        .sysctl("ipv4/ip_local_port_range", "61000 61003");
    let servers: Vec<_> = [7, 8]
        .into_iter()
        .flat_map(|port| both(INTERNET4, INTERNET6, port))
        .map(|remote| TcpServer::echo(&scene.world.outside, remote))
        .collect();
    let mut open: Vec<_> = servers
        .iter()
        .flat_map(|server| (0..4).map(move |n| (server.addr(), 40_000 + n)))
        .map(|(remote, port)| Peer::connect(&scene.wire, guest_addr(remote, port), remote))
        .collect();
    for peer in &mut open {
        peer.send_data(b"here");
        assert_eq!(peer.read(4), b"here");
        peer.rst();
    }
}
