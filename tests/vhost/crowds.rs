//! Several queue pairs, and many flows at a time by one of them: the others have their part and their turn.

use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::signal::Signal;

use crate::{
    Scene,
    guest::{
        Icmp, Tcp, Udp,
        frame::{ACK, PSH, SYN},
        guest_addr,
    },
    lab::{
        LONG,
        front_end::{Driver, LINUX, RX, TX, cut},
        servers::udp_socket,
        uninterrupted,
        world::INTERNET4,
    },
    queues::{Connection, HEADER, scene, segments},
};

/// Whoever fills the table by one queue pair leaves the others their part of it.
#[test]
fn a_flood_of_flows_by_one_pair_leaves_room_for_others() {
    const FILES: u32 = 256;
    let Some(world) = crate::World::pod() else {
        return;
    };
    let translator = crate::Setup::new(&["--vhost-user", "--mtu", "1500", "--queues", "2"])
        .limit_files(FILES)
        .start(&world.pod);
    let scene = Scene { translator, world };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let remote = SocketAddr::from((INTERNET4, 9));
    let server = udp_socket(&scene.world.outside, remote);
    for (pair, port) in [(0, 10_000), (1, 20_000)] {
        // More than there may be; each is there by the time its datagram is.
        for n in 0..FILES as u16 {
            let udp = Udp::new(guest_addr(remote, port + n), remote, b"flood");
            guest.transmit_by(pair, &HEADER, &udp.frame(), 1);
            assert_eq!(uninterrupted(|| server.recv(&mut [0; 9])).unwrap(), 5);
        }
        // A few of the other's, which has had none so far, or lost none to the flood.
        let mut flows: Vec<_> = (0..8)
            .map(|n| {
                let remote = SocketAddr::new(remote.ip(), 100 + 100 * pair as u16 + n);
                Connection::new(&scene, &mut guest, 1 - pair, remote, 2 * port + n)
            })
            .collect();
        for flow in &mut flows {
            flow.send(&mut guest, 1 - pair, 100);
            // By the other pair, where it shares a slot with one of its flows.
            flow.arrive(&mut guest, 0);
        }
    }
}

/// Beginnings of flows have their turn a few at a time on each queue pair, and none is lost.
#[test]
fn segments_of_a_connection_pass_those_that_begin_others() {
    const SYNS: usize = 60;
    let Some(scene) = scene("2") else { return };
    scene.world.pod.ip("route add prohibit 192.0.2.0/24");
    // Each is refused at once, by the host itself.
    let refused = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
    let mut guest = scene.guest(Driver::twice(LINUX));
    for pair in [1, 0] {
        let remote = (INTERNET4, 7 + pair as u16).into();
        let mut flow = Connection::new(&scene, &mut guest, pair, remote, 40_000);
        scene.translator.stand_still();
        for n in 0..SYNS {
            let from = guest_addr(refused, (10_000 + 1000 * pair + n) as u16);
            let syn = Tcp::new(from, refused, SYN);
            guest.post_by(pair, &HEADER, &syn.frame(), 1);
        }
        (flow.next.flags, flow.next.payload) = (ACK | PSH, b"hello".to_vec());
        guest.post_by(pair, &HEADER, &flow.next.frame(), 1);
        scene.translator.signal(Signal::SIGCONT);
        let (mut refusals, mut before) = (0, None);
        while refusals < SYNS || before.is_none() {
            let arrival = guest.receive(LONG).expect("more");
            let acked = flow.next.seq.wrapping_add(5);
            if segments(&arrival, flow.port)
                .iter()
                .any(|tcp| tcp.ack == acked)
            {
                before.get_or_insert(refusals);
            }
            let icmp = Icmp::of_frame(&arrival.frame);
            refusals += usize::from(icmp.is_some_and(|icmp| icmp.is_unreachable()));
        }
        let before = before.unwrap();
        assert!(before < 45, "{before} of {SYNS} came first");
        while guest.collect(TX + 2 * pair).is_some() {}
    }
}

/// What begins a flow waits, and what follows it behind it, also several datagrams in one.
#[test]
fn datagrams_of_flows_that_wait_to_begin_keep_their_order() {
    const FLOWS: u16 = 48;
    const TWICE: u16 = 12;
    for pair in [0, 1] {
        let Some(scene) = scene(if pair == 0 { "1" } else { "2" }) else {
            return;
        };
        let drivers = [Driver::new(LINUX), Driver::twice(LINUX)];
        let mut guest = scene.guest(drivers[pair]);
        let remote = SocketAddr::from((INTERNET4, 7));
        let server = udp_socket(&scene.world.outside, remote);
        let datagram =
            |n: u16, payload: &[u8]| Udp::new(guest_addr(remote, 10_000 + n), remote, payload);
        scene.translator.stand_still();
        for n in 0..FLOWS {
            guest.post_by(pair, &HEADER, &datagram(n, &[0]).frame(), 1);
        }
        for n in FLOWS - TWICE..FLOWS {
            let mut frame = datagram(n, &[1, 2]).frame();
            let mut header = cut::leave_checksum(&mut frame);
            header[1] = 5;
            header[2..4].copy_from_slice(&42_u16.to_le_bytes());
            header[4..6].copy_from_slice(&1_u16.to_le_bytes());
            guest.post_by(pair, &header, &frame, 1);
        }
        scene.translator.signal(Signal::SIGCONT);
        let mut next = [0; FLOWS as usize];
        for _ in 0..FLOWS + 2 * TWICE {
            let mut octets = [0; 9];
            let (len, from) = uninterrupted(|| server.recv_from(&mut octets)).unwrap();
            let next = &mut next[usize::from(from.port() - 10_000)];
            assert_eq!((len, octets[0]), (1, *next), "{from}");
            *next += 1;
        }
    }
}

/// Beginnings that wait go on by the first pair when theirs is disabled.
#[test]
fn flows_that_wait_to_begin_do_so_when_their_queue_pair_is_disabled() {
    const FLOWS: u16 = 60;
    let Some(scene) = scene("2") else { return };
    let idle = scene.translator.idle_fd_count();
    let remote = SocketAddr::from((INTERNET4, 7));
    let server = udp_socket(&scene.world.outside, remote);
    for _ in 0..5 {
        let mut guest = scene.guest(Driver::twice(LINUX));
        scene.translator.stand_still();
        for n in 0..FLOWS {
            let udp = Udp::new(guest_addr(remote, 10_000 + n), remote, &n.to_be_bytes());
            guest.post_by(1, &HEADER, &udp.frame(), 1);
        }
        scene.translator.signal(Signal::SIGCONT);
        // The device has taken all of them, and few of the flows have begun.
        let mut left = FLOWS;
        while left > 0 {
            match guest.collect(TX + 2) {
                Some(_) => left -= 1,
                None => std::thread::yield_now(),
            }
        }
        guest.enable(RX + 2..TX + 3, false);
        let mut seen = [false; FLOWS as usize];
        for _ in 0..FLOWS {
            let mut octets = [0; 9];
            assert_eq!(uninterrupted(|| server.recv(&mut octets)).unwrap(), 2);
            let n = u16::from_be_bytes([octets[0], octets[1]]);
            assert!(!std::mem::replace(&mut seen[usize::from(n)], true));
        }
        // Whatever was counted on is free again: the second pair has flows as before.
        guest.enable(RX + 2..TX + 3, true);
        let mut flow = Connection::new(&scene, &mut guest, 1, (INTERNET4, 8).into(), 40_000);
        flow.send(&mut guest, 1, 100);
        flow.arrive(&mut guest, 0);
        drop(guest);
        scene.translator.expect_fd_count(idle);
    }
}
