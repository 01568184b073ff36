//! Datagrams of others that come while a flow's socket is on its way: between bind(2) and connect(2) it hears everybody.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    guest::Guest,
    lab::{
        Host, LONG,
        nodes::{PEER, SERVICE},
        uninterrupted,
    },
    scene::Scene,
    supervisor::Faults,
};

/// The target's own addresses, from which strangers call.
const OWN: [&str; 2] = ["192.0.2.8", "2001:db8:7::8"];

/// How often they do.
const CALLS: u32 = 10;

fn socket(host: &Host, addr: &str) -> UdpSocket {
    let addr: IpAddr = addr.parse().unwrap();
    let socket = host.run(|| UdpSocket::bind((addr, 0)).unwrap());
    socket.set_nonblocking(true).unwrap();
    socket
}

/// The next that comes to a socket while the guest runs, whose stack may ask for a neighbour first.
fn hear(guest: &mut Guest, socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let deadline = Instant::now() + LONG;
    let mut octets = [0; 16];
    loop {
        match uninterrupted(|| socket.recv_from(&mut octets)) {
            Ok((len, from)) => return (octets[..len].to_vec(), from),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        guest.run_for(Duration::from_millis(5));
    }
}

/// A flow of the guest's from a forwarded port moves; strangers call at that port at each connect(2) of the target's, and
/// have flows of their own, both ways, as has the peer.
#[test]
fn strangers_that_call_while_a_flow_arrives_have_flows_of_their_own() {
    let mut faults = None;
    let scene = Scene::with(&[], |setup| {
        let (held, setup) = Faults::around(setup, &[libc::SYS_connect]);
        faults = Some(held);
        setup
    });
    let (Some(mut scene), Some(faults)) = (scene, faults) else {
        return;
    };
    let ours = scene.guest.udp(8080);
    let peers = PEER.map(|addr| socket(&scene.nodes.peer, addr));
    for peer in &peers {
        let remote = peer.local_addr().unwrap();
        scene.guest.send_to(ours, remote, b"before");
        let (_, from) = hear(&mut scene.guest, peer);
        assert_eq!(from.port(), 8080, "the guest's own");
    }
    let (tell, told) = mpsc::channel();
    let host = scene.nodes.target.again();
    let mut left = CALLS;
    faults.set(move |_| {
        // Flows of strangers connect as well.
        left = left.checked_sub(1)?;
        for (own, to) in OWN.iter().zip(SERVICE) {
            let stranger = socket(&host, own);
            let name = stranger.local_addr().unwrap().to_string();
            let to = SocketAddr::new(to.parse().unwrap(), 8080);
            stranger.send_to(name.as_bytes(), to).unwrap();
            tell.send(stranger).unwrap();
        }
        None
    });
    scene.hand_over();
    faults.clear();
    scene.target.expect_log("and 2 UDP flows");
    let mut strangers: HashMap<SocketAddr, UdpSocket> = told
        .try_iter()
        .map(|stranger| (stranger.local_addr().unwrap(), stranger))
        .collect();
    assert!(strangers.len() >= 2 * PEER.len(), "{strangers:?}");
    for peer in &peers {
        let addr = SERVICE[usize::from(peer.local_addr().unwrap().is_ipv6())];
        let to = SocketAddr::new(addr.parse().unwrap(), 8080);
        peer.send_to(b"peer", to).unwrap();
    }
    let mut missing = peers.len();
    while !strangers.is_empty() || missing > 0 {
        let (what, from) = scene.guest.recv_from(ours);
        let to_peer = peers.iter().find(|peer| peer.local_addr().unwrap() == from);
        let caller = match to_peer {
            Some(peer) => {
                assert_eq!(what, b"peer");
                missing -= 1;
                peer.try_clone().unwrap()
            }
            None => {
                assert_eq!(what, from.to_string().as_bytes(), "from {from}");
                strangers.remove(&from).expect("once")
            }
        };
        scene.guest.send_to(ours, from, b"answer");
        let host: IpAddr = SERVICE[usize::from(from.is_ipv6())].parse().unwrap();
        let want = (b"answer".to_vec(), (host, 8080).into());
        assert_eq!(hear(&mut scene.guest, &caller), want, "{from}");
    }
}
