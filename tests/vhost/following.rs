//! A guest's scheduler moves programs from one processor to another, and with them their frames from one queue pair to another:
//! flows follow them.

use std::{
    io::{self, Read},
    net::{Shutdown, SocketAddr},
    thread,
};

use crate::{
    Scene,
    guest::{
        Icmp, Udp, assert_pattern, both,
        frame::{FIN, GUEST_MAC},
        guest_addr, pattern,
    },
    lab::{
        LONG,
        front_end::{Driver, FrontEnd, LINUX},
        servers::udp_socket,
        uninterrupted, wait_until,
        world::{INTERNET4, INTERNET6},
    },
    queues::{Connection, HEADER, segments},
};

/// More frames than it takes in a row.
const ROW: usize = 80;

/// Rows that are sent at the most until a flow has followed: not each finds it at rest, and there is a pause between two.
const ROWS: usize = 100;

fn scene() -> Option<Scene> {
    Scene::new(&["--mtu", "1500", "--queues", "2", "--debug"])
}

/// How often a flow of this port has gone to this queue pair.
fn moves(scene: &Scene, port: u16, to: usize) -> usize {
    let log = scene.translator.log();
    let of_flow = format!(":{port} -> ");
    let goes = format!(" follows its frames from queue pair {} to {to}", 1 - to);
    let told = |line: &&str| line.contains(&of_flow) && line.contains(&goes);
    log.lines().filter(told).count()
}

/// Repeats rows of frames until the flow has followed.
fn row_until_there(scene: &Scene, port: u16, to: usize, mut row: impl FnMut()) {
    let before = moves(scene, port, to);
    let there = (0..ROWS).any(|_| {
        row();
        moves(scene, port, to) > before
    });
    assert!(there, "{}", scene.translator.log());
}

/// Octets arrive there from `from` on, and are acknowledged, all to the guest's own address: a thread that a flow has come to
/// knows it though it had no frame of the guest's before.
fn arrive(flow: &mut Connection, guest: &mut FrontEnd, from: u64) -> usize {
    let mut got = vec![0; (flow.sent - from) as usize];
    flow.server.read_exact(&mut got).unwrap();
    assert_pattern(from, &got);
    guest.expect("acknowledgement", |arrival| {
        assert_eq!(arrival.frame[..6], GUEST_MAC, "by {}", arrival.pair);
        let all = segments(arrival, flow.port);
        let done = all.iter().any(|tcp| tcp.ack == flow.next.seq);
        done.then_some(arrival.pair)
    })
}

#[test]
fn a_connection_follows_its_frames_to_another_queue_pair() {
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let data = pattern(7, 30_000);
    for (at, remote) in both(INTERNET4, INTERNET6, 7).into_iter().enumerate() {
        let port = 40_000 + at as u16;
        let mut flow = Connection::new(&scene, &mut guest, 0, remote, port);
        for pair in [1, 0, 1] {
            row_until_there(&scene, port, pair, || {
                let from = flow.sent;
                for _ in 0..ROW {
                    flow.send(&mut guest, pair, 100);
                }
                arrive(&mut flow, &mut guest, from);
            });
            let from = flow.sent;
            flow.send(&mut guest, pair, 1000);
            assert_eq!(arrive(&mut flow, &mut guest, from), pair);
            assert_eq!(flow.fetch(&mut guest, pair, &data), pair);
        }
        // It ends as any other does.
        flow.server.shutdown(Shutdown::Write).unwrap();
        guest.expect("FIN", |arrival| {
            let all = segments(arrival, port);
            all.iter().any(|tcp| tcp.has(FIN)).then_some(())
        });
    }
}

/// A socket whose first buffer is smaller than the guest's largest segment has blocks set aside all the time.
#[test]
fn a_connection_follows_its_frames_whatever_is_set_aside_for_it() {
    let Some(scene) = Scene::new(&["--queues", "2", "--debug"]) else {
        return;
    };
    scene
        .world
        .pod
        .sysctl("ipv4/tcp_congestion_control", "reno");
    let mut guest = scene.guest(Driver::twice(LINUX));
    let mut flow = Connection::new(&scene, &mut guest, 0, (INTERNET4, 7).into(), 40_000);
    for pair in [1, 0] {
        row_until_there(&scene, 40_000, pair, || {
            let from = flow.sent;
            for _ in 0..ROW {
                flow.send(&mut guest, pair, 1);
            }
            arrive(&mut flow, &mut guest, from);
        });
    }
}

#[test]
fn datagrams_and_pings_keep_their_socket_when_they_follow() {
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for (at, remote) in both(INTERNET4, INTERNET6, 7).into_iter().enumerate() {
        let port = 41_000 + at as u16;
        let server = udp_socket(&scene.world.outside, remote);
        let mut sent = 0_u64;
        let mut seen = Vec::new();
        let mut send = |guest: &mut FrontEnd, pair, count| {
            for n in sent..sent + count as u64 {
                let udp = Udp::new(guest_addr(remote, port), remote, &n.to_be_bytes());
                guest.transmit_by(pair, &HEADER, &udp.frame(), 1);
                let mut octets = [0; 9];
                let (len, from) = uninterrupted(|| server.recv_from(&mut octets)).unwrap();
                assert_eq!((len, &octets[..8]), (8, &n.to_be_bytes()[..]));
                seen.push(from);
            }
            sent += count as u64;
        };
        send(&mut guest, 0, 1);
        for pair in [1, 0] {
            row_until_there(&scene, port, pair, || send(&mut guest, pair, ROW));
            send(&mut guest, pair, 1);
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "more than one socket");
        server.send_to(b"answer", seen[0]).unwrap();
        guest.expect("answer", |arrival| {
            let udp = Udp::of_frame(&arrival.frame)?;
            (udp.payload == b"answer").then_some(())
        });
        let ident = 4000 + at as u16;
        let mut seq = 0;
        let mut ping = |guest: &mut FrontEnd, pair| {
            seq += 1;
            let local = guest_addr(remote, 0).ip();
            let icmp = Icmp::echo_request(local, remote.ip(), ident, seq, b"ping");
            guest.transmit_by(pair, &HEADER, &icmp.frame(), 1);
            guest.expect("echo reply", |arrival| {
                let icmp = Icmp::of_frame(&arrival.frame)?;
                let word = u32::from(ident) << 16 | u32::from(seq);
                (icmp.word == word).then_some(())
            });
        };
        ping(&mut guest, 0);
        row_until_there(&scene, ident, 1, || {
            (0..ROW).for_each(|_| ping(&mut guest, 1));
        });
        ping(&mut guest, 1);
    }
}

#[test]
fn a_connection_that_alternates_between_queue_pairs_stays() {
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let mut flow = Connection::new(&scene, &mut guest, 0, (INTERNET4, 7).into(), 40_000);
    for round in 0..40 {
        let from = flow.sent;
        for n in 0..60 {
            // Its own now and then, never the other's for long.
            flow.send(&mut guest, usize::from(n % 30 != round % 30), 100);
        }
        assert_eq!(flow.arrive(&mut guest, from), 0);
    }
    assert_eq!(moves(&scene, 40_000, 1), 0);
}

/// Takes what has come for these connections, each of which is to hear what it has said; the octets each has heard.
fn take(guest: &mut FrontEnd, flows: &mut [Connection], heard: &mut [u64]) {
    while let Some(arrival) = guest.try_receive() {
        for (flow, heard) in flows.iter_mut().zip(heard.iter_mut()) {
            for segment in segments(&arrival, flow.port) {
                // Two queues have no order between them: what comes too early comes again.
                if segment.seq == flow.next.ack {
                    assert_pattern(*heard, &segment.payload);
                    let len = segment.payload.len();
                    *heard += len as u64;
                    flow.next.ack = flow.next.ack.wrapping_add(len as u32);
                }
            }
        }
    }
}

/// Both streams of several connections go on while each of them goes to and fro.
#[test]
fn streams_stay_whole_while_connections_follow_to_and_fro() {
    const FLOWS: usize = 4;
    const ROUNDS: usize = 10;
    const MOST: u64 = 20_000;
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let port = |n: usize| 40_000 + n as u16;
    let mut flows: Vec<Connection> = (0..FLOWS)
        .map(|n| {
            let remote = SocketAddr::from((INTERNET4, 7 + n as u16));
            Connection::new(&scene, &mut guest, n % 2, remote, port(n))
        })
        .collect();
    let servers: Vec<_> = flows
        .iter()
        .map(|flow| {
            (
                flow.server.try_clone().unwrap(),
                flow.server.try_clone().unwrap(),
            )
        })
        .map(|(mut from, mut to)| thread::spawn(move || io::copy(&mut from, &mut to).is_ok()))
        .collect();
    let mut heard = [0; FLOWS];
    for round in 1..=ROUNDS {
        let pair = |n: usize| (n + round) % 2;
        let gone = |n: usize| moves(&scene, port(n), pair(n));
        let before: Vec<usize> = (0..FLOWS).map(gone).collect();
        let all_gone = (0..ROWS).any(|_| {
            for at in 0..FLOWS * ROW {
                let n = at % FLOWS;
                flows[n].send(&mut guest, pair(n), 300);
                take(&mut guest, &mut flows, &mut heard);
                // No more than there is a window for.
                let taken = wait_until(LONG, || {
                    let waits = flows[n].sent - heard[n] > MOST;
                    if waits {
                        guest.transmit_by(pair(n), &HEADER, &flows[n].next.frame(), 1);
                        take(&mut guest, &mut flows, &mut heard);
                    }
                    !waits
                });
                assert!(taken, "round {round}");
            }
            (0..FLOWS).all(|n| gone(n) > before[n])
        });
        assert!(all_gone, "round {round}\n{}", scene.translator.log());
    }
    let whole = |heard: &[u64], flows: &[Connection]| {
        let mut all = heard.iter().zip(flows);
        all.all(|(heard, flow)| *heard == flow.sent)
    };
    assert!(wait_until(LONG, || {
        for (n, flow) in flows.iter().enumerate() {
            guest.transmit_by(n % 2, &HEADER, &flow.next.frame(), 1);
        }
        take(&mut guest, &mut flows, &mut heard);
        whole(&heard, &flows)
    }));
    drop(guest);
    // Each hears that the guest is gone.
    for server in servers {
        assert!(!server.join().unwrap());
    }
}
