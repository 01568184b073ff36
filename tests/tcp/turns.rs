//! Whose turn it is when much is asked at once.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
};

use crate::{
    guest::{
        Icmp, Peer, Scene, Tcp,
        frame::{ACK, PSH, SYN},
        guest_addr,
    },
    lab::{LONG, servers::tcp_listener, world::INTERNET4},
};

/// Beginnings of flows have their turn a few at a time, and none is lost.
#[test]
fn segments_of_a_connection_pass_those_that_begin_others() {
    const SYNS: usize = 3000;
    let Some(scene) = Scene::new(&[]) else { return };
    scene.world.pod.ip("route add prohibit 192.0.2.0/24");
    let remote = SocketAddr::from((INTERNET4, 9));
    let _listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 5000), remote);
    // Each is refused at once, by the host itself.
    let refused = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
    let syns = (0..SYNS).map(|n| Tcp::new(guest_addr(refused, 10_000 + n as u16), refused, SYN));
    let data = peer.segment(ACK | PSH, b"hello");
    peer.snd_nxt = peer.snd_nxt.wrapping_add(data.len());
    let mut burst = Vec::new();
    for frame in syns.chain([data]).map(|segment| segment.frame()) {
        burst.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        burst.extend_from_slice(&frame);
    }
    let (mut refusals, mut before) = (0, None);
    std::thread::scope(|scope| {
        let mut stream = scene.wire.stream().try_clone().unwrap();
        scope.spawn(move || stream.write_all(&burst).unwrap());
        while refusals < SYNS || before.is_none() {
            let frame = scene.wire.recv(LONG).expect("more");
            let acked = peer.mine(&frame).is_some_and(|s| s.ack == peer.snd_nxt);
            if acked {
                before.get_or_insert(refusals);
            }
            refusals += usize::from(Icmp::of_frame(&frame).is_some_and(|i| i.is_unreachable()));
        }
    });
    let before = before.unwrap();
    println!("{before} of {SYNS} came first");
    assert!(before < 300, "{before} of {SYNS} came first");
}
