//! Connections that wait: for the guest, for the host, for room on the link. Waiting costs nothing, and nothing is forgotten.

use std::{collections::HashSet, io::Write, net::Shutdown, thread, time::Duration};

use crate::{
    guest::{
        Peer, Scene, Tcp, both,
        frame::{FIN, RST},
        guest_addr, pattern,
    },
    lab::{
        LONG, QUIET,
        servers::{accept, reset, tcp_listener},
        world::{INTERNET4, INTERNET6},
    },
};

/// Regressions T46, T47, T48 and T54: a socket with something to read whose guest has shut its window, one that has ended
/// behind that, one whose octets are all sent and not acknowledged, and one that is half closed.
#[test]
fn connections_that_wait_cost_nothing() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut waiting = Vec::new();
        for n in 0..40 {
            let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000 + n), remote);
            let mut server = accept(&listener);
            if n % 4 < 2 {
                peer.window = 0;
                peer.ack();
            }
            if n % 4 < 3 {
                server.write_all(&pattern(0, 50_000)).unwrap();
            }
            if n % 4 != 2 {
                server.shutdown(Shutdown::Write).unwrap();
            }
            waiting.push((peer, server));
        }
        thread::sleep(QUIET);
        // Probes and repetitions, of forty connections.
        let little = Duration::from_millis(200);
        scene.translator.assert_idle(little, "for nothing");
        for (mut peer, _) in waiting {
            peer.rst();
        }
    }
}

/// Regressions T27 and T38: a link without room is no reason to leave a connection half dead.
#[test]
fn resets_and_ends_wait_for_room_on_the_link() {
    const EACH: u16 = 300;
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let connect = |port| {
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, port), remote);
        peer.send_data(b"here");
        (peer, accept(&listener))
    };
    let fillers: Vec<_> = (0..60).map(|n| connect(1000 + n)).collect();
    let resets: Vec<_> = (0..EACH).map(|n| connect(10_000 + n)).collect();
    let ends: Vec<_> = (0..EACH).map(|n| connect(20_000 + n)).collect();
    // More than link and translator hold, and nobody reads.
    for (_, server) in &fillers {
        let _ = (&*server).write_all(&pattern(0, 60_000));
    }
    thread::sleep(QUIET);
    for (_, server) in resets {
        reset(server);
    }
    for (_, server) in &ends {
        server.shutdown(Shutdown::Write).unwrap();
    }
    thread::sleep(QUIET);
    let (mut reset, mut ended) = (HashSet::new(), HashSet::new());
    while reset.len() + ended.len() < 2 * usize::from(EACH) {
        let frame = scene.wire.recv(LONG).expect("resets and ends of all");
        let Some(segment) = Tcp::of_frame(&frame) else {
            continue;
        };
        let port = segment.dst.port();
        if segment.has(RST) {
            assert!((10_000..10_000 + EACH).contains(&port), "{port}");
            reset.insert(port);
        } else if segment.has(FIN) {
            assert!((20_000..20_000 + EACH).contains(&port), "{port}");
            ended.insert(port);
        }
    }
    for (mut peer, _) in fillers.into_iter().chain(ends) {
        peer.rst();
    }
    scene.translator.expect_fd_count(idle);
}
