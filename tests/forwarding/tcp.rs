//! Connections from outside.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    guest::{
        Guest, Peer, Scene, Tcp, Wire, assert_pattern, both,
        frame::{ACK, RST, SYN},
        pattern,
    },
    lab::{
        Host, LONG, Setup, Translator, World,
        servers::reset,
        uninterrupted, wait_until,
        world::{GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, POD4, POD6},
    },
};

/// Connects from `host`; reads end.
pub fn connect(host: &Host, to: SocketAddr) -> TcpStream {
    let stream = host.run(|| TcpStream::connect(to)).expect("connect");
    stream.set_read_timeout(Some(LONG)).expect("timeout");
    stream
}

/// Connects from this very address.
fn connect_from(host: &Host, from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = host
        .run(|| {
            let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(from))?;
            socket.connect(&SockAddr::from(to)).map(|()| socket)
        })
        .expect("connect");
    socket.set_read_timeout(Some(LONG)).expect("timeout");
    socket.into()
}

/// Lets the guest say where it is, in both families.
pub fn introduce(guest: &mut Guest) {
    let socket = guest.udp(9);
    for addr in both(INTERNET4, INTERNET6, 9) {
        guest.send_to(socket, addr, b"hello");
        guest.run_for(Duration::from_millis(50));
    }
}

#[test]
fn a_peer_outside_reaches_a_server_of_the_guest_under_its_own_address() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &["-t", "2022:22"]);
    let mut guest = Guest::online(translator.connect(), 65_520);
    introduce(&mut guest);
    for addr in both(POD4, POD6, 2022) {
        let server = guest.listen(22);
        let mut client = connect(&world.outside, addr);
        let seen = guest.accept(server);
        assert_eq!(seen, client.local_addr().unwrap());
        // A megabyte each way, then both ends close.
        let sent = pattern(0, 1 << 20);
        let copy = client.try_clone().unwrap();
        let writing = std::thread::spawn({
            let (mut copy, sent) = (copy, sent.clone());
            move || copy.write_all(&sent)
        });
        guest.download(server, 1 << 20);
        writing.join().unwrap().unwrap();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            client.read_to_end(&mut got).map(|_| got)
        });
        guest.send(server, &sent);
        guest.shutdown(server);
        guest.until("reader", |_| reading.is_finished());
        assert_pattern(0, &reading.join().unwrap().unwrap());
        guest.close(server);
    }
}

/// Consumers: Envoy connects from 127.0.0.6, probes from the pod's own address.
#[test]
fn peers_on_the_host_itself_appear_from_addresses_the_guest_can_answer() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &["-t", "80"]);
    let mut guest = Guest::online(translator.connect(), 1500);
    introduce(&mut guest);
    let (loopback4, loopback6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let cases: [(IpAddr, IpAddr, IpAddr); 5] = [
        (loopback4.into(), loopback4.into(), GATEWAY4.into()),
        (
            Ipv4Addr::new(127, 0, 0, 6).into(),
            loopback4.into(),
            GATEWAY4.into(),
        ),
        (POD4.into(), POD4.into(), GATEWAY4.into()),
        (loopback6.into(), loopback6.into(), GATEWAY6.into()),
        (POD6.into(), POD6.into(), GATEWAY6.into()),
    ];
    for (from, to, seen) in cases {
        let server = guest.listen(80);
        let mut client = connect_from(&world.pod, (from, 0).into(), (to, 80).into());
        let peer = guest.accept(server);
        assert_eq!(peer.ip(), seen, "{from} to {to}");
        guest.send(server, b"hello");
        let mut got = [0; 5];
        client.read_exact(&mut got).unwrap();
        drop(client);
        guest.close(server);
    }
}

#[test]
fn peers_that_look_the_same_to_the_guest_are_told_apart_by_their_port() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &["-t", "80"]);
    let mut guest = Guest::online(translator.connect(), 1500);
    introduce(&mut guest);
    let mut clients = Vec::new();
    for last in 1..=3 {
        let server = guest.listen(80);
        let from = (Ipv4Addr::new(127, 0, 0, last), 5000).into();
        let client = connect_from(&world.pod, from, (Ipv4Addr::LOCALHOST, 80).into());
        let seen = guest.accept(server);
        assert_eq!(seen.ip(), GATEWAY4);
        clients.push((client, server, seen.port(), last));
    }
    assert_eq!(clients[0].2, 5000);
    for (client, server, _, last) in &mut clients {
        guest.send(*server, &[*last]);
        let mut got = [0];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, [*last]);
    }
}

/// Regressions T26 and T38.
#[test]
fn a_guest_that_refuses_resets_the_peer_and_leaves_nothing() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    crate::discovery::announce(&scene.wire);
    let mut client = connect(&scene.world.outside, (POD4, 80).into());
    let syn = Peer::expect_syn(&scene.wire, 80);
    let mut refusal = Peer::new(&scene.wire, syn.dst, syn.src, 0).segment(RST | ACK, &[]);
    refusal.ack = syn.seq.wrapping_add(1);
    scene.wire.send(&refusal.frame());
    assert_eq!(
        uninterrupted(|| client.read(&mut [0])).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    scene.translator.expect_fd_count(idle);
}

/// Regressions X04 and T87: the same SYN, without ACK.
#[test]
fn a_syn_that_is_not_answered_is_repeated_as_it_was() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let mut client = connect(&scene.world.outside, (POD4, 80).into());
    let first = Peer::expect_syn(&scene.wire, 80);
    let second = Peer::expect_syn(&scene.wire, 80);
    // But for its timestamp.
    let same = |syn: &Tcp| Tcp {
        options: syn.option(2).unwrap().to_vec(),
        ..syn.clone()
    };
    assert_eq!(same(&first), same(&second));
    assert_eq!(first.option(2).map(<[u8]>::len), Some(2));
    let mut peer = Peer::answer(&scene.wire, &second);
    peer.send_data(b"welcome");
    peer.expect_acked();
    let mut got = [0; 7];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"welcome");
}

/// Regressions T53 and T83: what the peer sends before the guest has answered arrives, and so does its end.
#[test]
fn what_a_peer_says_before_the_handshake_is_kept() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let mut client = connect(&scene.world.outside, (POD4, 80).into());
    client.write_all(b"early").unwrap();
    drop(client);
    let mut peer = Peer::accept(&scene.wire, 80);
    assert_eq!(peer.read_to_end(), b"early");
}

#[test]
fn a_peer_that_leaves_before_the_handshake_is_reset_to_the_guest() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    crate::discovery::announce(&scene.wire);
    let client = connect(&scene.world.outside, (POD4, 80).into());
    let syn = Peer::expect_syn(&scene.wire, 80);
    reset(client);
    let mut peer = Peer::new(&scene.wire, syn.dst, syn.src, 0);
    peer.rcv_nxt = syn.seq.wrapping_add(1);
    let rst = peer.expect("reset", |s| s.has(RST));
    assert_eq!(rst.seq, peer.rcv_nxt);
    scene.translator.expect_fd_count(idle);
}

/// RFC 9293, section 3.5: both sides ask at the same time, from and to the same ports.
#[test]
fn syns_that_cross_open_one_connection() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    for repeats in [true, false] {
        let mut client = connect(&scene.world.outside, (POD4, 80).into());
        let theirs = Peer::expect_syn(&scene.wire, 80);
        let mut peer = Peer::new(&scene.wire, theirs.dst, theirs.src, 0x7fff_fff0);
        peer.send(SYN, &[]);
        peer.rcv_nxt = theirs.seq.wrapping_add(1);
        let answer = peer.expect("SYN,ACK", |s| s.has(SYN | ACK));
        assert_eq!((answer.seq, answer.ack), (theirs.seq, peer.snd_nxt));
        if repeats {
            let again = Tcp {
                seq: peer.snd_nxt.wrapping_sub(1),
                ..peer.segment(SYN | ACK, &[])
            };
            scene.wire.send(&again.frame());
            peer.expect_acked();
        }
        peer.send_data(b"hello");
        let mut got = [0; 5];
        client.read_exact(&mut got).unwrap();
        client.write_all(b"world").unwrap();
        assert_eq!((&got, &peer.read(5)[..]), (b"hello", &b"world"[..]));
        peer.rst();
    }
}

/// Regressions T26 and T90: the table has as many places as there are descriptors for them.
#[test]
fn connections_that_find_no_place_are_reset_and_warned_of_once() {
    let Some(world) = World::pod() else { return };
    let translator = Setup::new(&["-t", "80"]).limit_files(120).start(&world.pod);
    let wire = Wire::new(translator.connect());
    crate::discovery::announce(&wire);
    let clients: Vec<_> = (0..100)
        .map(|_| connect(&world.outside, (POD4, 80).into()))
        .collect();
    let refused = || {
        let resets = clients.iter().filter(|client| {
            client.set_nonblocking(true).unwrap();
            // A reset is told once, then there is nothing any more.
            let error = uninterrupted(|| client.peek(&mut [0]))
                .err()
                .map(|error| error.kind());
            error != Some(ErrorKind::WouldBlock)
        });
        resets.count()
    };
    assert!(wait_until(LONG, || refused() > 30), "{}", refused());
    let said = translator.log().matches("Peers have ").count();
    assert_eq!(said, 1, "{}", translator.log());
    // Those that have one are still being offered to the guest; the oldest made way.
    let last = clients.last().unwrap().local_addr().unwrap().port();
    let syn = wire.expect("SYN", |frame| {
        Tcp::of_frame(frame).filter(|syn| syn.has(SYN) && syn.src.port() == last)
    });
    let _peer = Peer::answer(&wire, &syn);
}
