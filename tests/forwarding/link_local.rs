//! Peers on the link that have no address but their link-local one.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
};

use nix::net::if_::if_nametoindex;

use crate::{
    guest::{Peer, Scene, Udp},
    lab::{Host, LONG, uninterrupted, wait_until},
};

/// The link-local address of the pod's device, once it may be used.
fn link_local(pod: &Host) -> Ipv6Addr {
    let mut found = None;
    let settled = wait_until(LONG, || {
        let shown = pod.command(
            "ip",
            &["-o", "-6", "addr", "show", "dev", "eth0", "scope", "link"],
        );
        let mut words = shown.split_whitespace();
        let addr = words.find(|word| word.starts_with("fe80:"));
        found = addr.and_then(|addr| addr.split('/').next()?.parse().ok());
        found.is_some() && !shown.contains("tentative")
    });
    assert!(settled, "no link-local address");
    found.unwrap()
}

/// Regression C59: answers go back by the interface that was asked at.
#[test]
fn peers_at_link_local_addresses_are_served_by_tcp_and_udp() {
    let Some(scene) = Scene::new(&["-t", "2222", "-u", "2222"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let addr = link_local(&scene.world.pod);
    let outside = &scene.world.outside;
    let scope = outside.run(|| if_nametoindex("pod0").unwrap());
    let to = SocketAddr::V6(SocketAddrV6::new(addr, 2222, 0, scope));
    let mut stream = outside.run(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut peer = Peer::accept(&scene.wire, 2222);
    stream.write_all(b"hello").unwrap();
    assert_eq!(peer.read(5), b"hello");
    peer.send_data(b"world");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"world");
    let client = outside.run(|| UdpSocket::bind("[::]:0")).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    for _ in 0..2 {
        client.send_to(b"question", to).unwrap();
        let datagram = scene.wire.expect("datagram", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst.port() == 2222)
        });
        let answer = Udp::new(datagram.dst, datagram.src, b"answer");
        scene.wire.send(&answer.frame());
        let mut got = [0; 16];
        let (len, from) = uninterrupted(|| client.recv_from(&mut got)).unwrap();
        assert_eq!((&got[..len], from), (&b"answer"[..], to));
    }
}
