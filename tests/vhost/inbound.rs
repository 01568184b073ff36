//! Connections from outside to a guest with several queue pairs.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::{
    Scene, arp_request,
    guest::{
        Tcp, Udp, assert_pattern,
        frame::{ACK, ETHERTYPE_ARP, OUR_MAC, PSH, SYN, ethernet, of_type},
        pattern,
    },
    is_arp_reply,
    lab::{
        front_end::{Driver, LINUX},
        uninterrupted,
        world::{INTERNET4, POD4},
    },
    queues::{Connection, HEADER, segments},
};

const ARGS: &[&str] = &["--mtu", "1500", "--queues", "2", "-t", "8080"];

#[test]
fn connections_from_outside_are_answered_by_either_queue() {
    let Some(scene) = Scene::new(ARGS) else {
        return;
    };
    let mut guest = scene.guest(Driver::twice(LINUX));
    guest.transmit_by(1, &HEADER, &arp_request(), 1);
    guest.expect("ARP reply", is_arp_reply);
    let addr = SocketAddr::from((POD4, 8080));
    let outside = &scene.world.outside;
    let mut server = outside.run(|| TcpStream::connect(addr).unwrap());
    let syn = guest.expect("SYN", |arrival| {
        segments(arrival, 8080).into_iter().find(|tcp| tcp.has(SYN))
    });
    let mut next = Tcp::new(syn.dst, syn.src, SYN | ACK);
    (next.seq, next.ack) = (5000, syn.seq.wrapping_add(1));
    guest.transmit_by(1, &HEADER, &next.frame(), 1);
    (next.seq, next.flags) = (5001, ACK | PSH);
    next.payload = pattern(0, 1000);
    guest.transmit_by(1, &HEADER, &next.frame(), 1);
    let mut got = vec![0; 1000];
    server.read_exact(&mut got).unwrap();
    assert_pattern(0, &got);
}

/// Each thread has connections from outside in turn, whichever accepts them; the guest may answer by another queue.
#[test]
fn connections_from_outside_come_by_both_queues() {
    const COUNT: usize = 8;
    let Some(scene) = Scene::new(ARGS) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    let mut guest = scene.guest(Driver::twice(LINUX));
    guest.transmit_by(1, &HEADER, &arp_request(), 1);
    guest.expect("ARP reply", is_arp_reply);
    let addr = SocketAddr::from((POD4, 8080));
    let mut by = [0; 2];
    let mut flows = Vec::new();
    for n in 0..COUNT {
        let server = scene
            .world
            .outside
            .run(|| TcpStream::connect(addr).unwrap());
        let peer = server.local_addr().unwrap().port();
        let (syn, pair) = guest.expect("SYN", |arrival| {
            let mut all = segments(arrival, 8080).into_iter();
            let syn = all.find(|tcp| tcp.has(SYN) && tcp.src.port() == peer);
            syn.map(|syn| (syn, arrival.pair))
        });
        by[pair] += 1;
        let mut next = Tcp::new(syn.dst, syn.src, SYN | ACK);
        (next.seq, next.ack) = (5000, syn.seq.wrapping_add(1));
        guest.transmit_by(n / 2 % 2, &HEADER, &next.frame(), 1);
        (next.seq, next.flags) = (5001, ACK);
        guest.transmit_by(n / 2 % 2, &HEADER, &next.frame(), 1);
        let port = peer;
        let flow = Connection {
            next,
            server,
            port,
            sent: 0,
        };
        flows.push((pair, flow));
    }
    assert!(by.iter().all(|&count| count > COUNT / 4), "{by:?}");
    for (n, (pair, flow)) in flows.iter_mut().enumerate() {
        flow.send(&mut guest, n % 2, 1000);
        let mut got = vec![0; 1000];
        flow.server.read_exact(&mut got).unwrap();
        assert_pattern(0, &got);
        flow.server.write_all(b"answer").unwrap();
        guest.expect("answer", |arrival| {
            let mut all = segments(arrival, 8080).into_iter();
            let of_flow = |tcp: &Tcp| tcp.src.port() == flow.port && tcp.payload == b"answer";
            let pair = *pair;
            all.find(of_flow).map(|_| assert_eq!(arrival.pair, pair))
        });
    }
    drop(guest);
    // The peers hear of it, and nothing is left.
    for (_, flow) in &mut flows {
        assert!(uninterrupted(|| flow.server.read(&mut [0])).is_err());
    }
    scene.translator.expect_fd_count(idle);
}

/// What a guest at this MAC address says when it is asked for.
fn answer(frame: &[u8], mac: [u8; 6]) -> Option<Vec<u8>> {
    let arp = of_type(frame, ETHERTYPE_ARP)?;
    let (asker, sender, target) = (&arp[8..14], &arp[14..18], &arp[24..28]);
    let body = [&arp[..7], &[2], &mac, target, asker, sender].concat();
    let mut reply = ethernet(OUR_MAC, ETHERTYPE_ARP, &body);
    reply[6..12].copy_from_slice(&mac);
    Some(reply)
}

/// A guest that has changed its MAC address answers by the queue it is asked by.
#[test]
fn each_thread_learns_where_a_guest_is_that_did_not_answer() {
    const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x57];
    let Some(scene) = Scene::new(ARGS) else {
        return;
    };
    let mut guest = scene.guest(Driver::twice(LINUX));
    guest.transmit_by(1, &HEADER, &arp_request(), 1);
    guest.expect("ARP reply", is_arp_reply);
    let connect = || TcpStream::connect(SocketAddr::from((POD4, 8080))).unwrap();
    let _servers = [(); 4].map(|()| scene.world.outside.run(connect));
    let mut found = [false; 2];
    for _ in 0..20 {
        let (pair, reply) = guest.expect("question", |arrival| {
            let reply = answer(&arrival.frame, MAC);
            (reply.is_some() || arrival.frame[..6] == MAC).then_some((arrival.pair, reply))
        });
        match reply {
            Some(reply) => guest.transmit_by(pair, &HEADER, &reply, 1),
            None => found[pair] = true,
        }
        if found == [true; 2] {
            return;
        }
    }
    panic!("only {found:?}");
}

/// However soon it was after another word of the guest.
#[test]
fn what_a_thread_has_heard_last_of_the_guest_the_others_hear_though_it_sleeps_then() {
    let Some(scene) = Scene::new(ARGS) else {
        return;
    };
    let mut guest = scene.guest(Driver::twice(LINUX));
    guest.transmit_by(1, &HEADER, &arp_request(), 1);
    guest.expect("ARP reply", is_arp_reply);
    let nobody = SocketAddr::from((INTERNET4, 9));
    let connect = || TcpStream::connect(SocketAddr::from((POD4, 8080))).unwrap();
    for host in (100..140).step_by(2) {
        let addrs = [host, host + 1].map(|host| Ipv4Addr::new(10, 233, 70, host));
        for addr in addrs {
            let datagram = Udp::new((addr, 1000).into(), nobody, b"news");
            guest.transmit_by(1, &HEADER, &datagram.frame(), 1);
        }
        thread::sleep(Duration::from_millis(20));
        let peer = scene.world.outside.run(connect);
        let from = peer.local_addr().unwrap();
        let syn = guest.expect("SYN", |arrival| {
            let mut all = segments(arrival, 8080).into_iter();
            all.find(|tcp| tcp.has(SYN) && tcp.src == from)
        });
        assert_eq!(syn.dst.ip(), addrs[1]);
    }
}
