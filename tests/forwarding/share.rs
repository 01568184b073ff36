//! What peers take of the flow table leaves room: for the guest's own flows, and for other peers.

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    guest::{Peer, Tcp, Udp, Wire, frame::SYN, guest_addr},
    lab::{
        Host, LONG, Setup, Translator, World,
        servers::{accept, reset, tcp_listener, udp_socket},
        uninterrupted, wait_until,
        world::{INTERNET4, INTERNET6, POD4},
    },
};

/// Descriptors of the translator, and so its flows.
const FILES: u32 = 300;

/// Another peer's address.
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

const PORT: u16 = 2222;

fn lay(option: &str) -> Option<(World, Translator, Wire)> {
    let world = World::pod()?;
    world.outside.ip("addr add 198.51.100.2/24 dev lo");
    let translator = Setup::new(&[option, "2222"])
        .limit_files(FILES)
        .start(&world.pod);
    let wire = Wire::new(translator.connect());
    crate::discovery::announce(&wire);
    Some((world, translator, wire))
}

/// A connection to the guest, which takes it; `None` if it was reset instead.
fn knock(host: &Host, wire: &Wire, from: Ipv4Addr) -> Option<TcpStream> {
    let socket = host.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SockAddr::from(SocketAddr::from((from, 0))))?;
        let to = SocketAddr::from((POD4, PORT));
        socket.connect(&SockAddr::from(to)).map(|()| socket)
    });
    let stream = match socket {
        Ok(socket) => TcpStream::from(socket),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            return None;
        }
    };
    stream.set_nonblocking(true).unwrap();
    let local = stream.local_addr().unwrap();
    let mut taken = None;
    let decided = wait_until(LONG, || {
        if let Some(frame) = wire.recv(Duration::from_millis(1)) {
            let syn = Tcp::of_frame(&frame).filter(|s| s.src == local && s.has(SYN));
            if let Some(syn) = syn {
                Peer::answer(wire, &syn);
                taken = Some(true);
            }
        }
        match uninterrupted(|| stream.peek(&mut [0])) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => taken = Some(false),
            _ => {}
        }
        taken.is_some()
    });
    assert!(decided, "neither taken nor reset");
    taken.filter(|&taken| taken).map(|_| stream)
}

/// Connections of one peer until one is refused.
fn take_all(host: &Host, wire: &Wire, from: Ipv4Addr) -> Vec<TcpStream> {
    let all: Vec<_> = (0..FILES).map_while(|_| knock(host, wire, from)).collect();
    assert!(all.len() < FILES as usize, "all of {FILES} were taken");
    all
}

#[test]
fn connections_from_outside_leave_room_for_the_guest_and_for_other_peers() {
    let Some((world, translator, wire)) = lay("-t") else {
        return;
    };
    let hog = take_all(&world.outside, &wire, INTERNET4);
    let mut others = take_all(&world.outside, &wire, OTHER);
    println!("one peer: {}, another: {}", hog.len(), others.len());
    assert!(hog.len() >= 100, "{} connections of one peer", hog.len());
    assert!(others.len() >= 10, "{} of another", others.len());
    // The guest's own.
    let remote = SocketAddr::from((INTERNET4, 9));
    let listener = tcp_listener(&world.outside, remote);
    for port in 5000..5020 {
        let mut peer = Peer::connect(&wire, guest_addr(remote, port), remote);
        peer.send_data(b"hello");
        let mut got = [0; 5];
        accept(&listener).read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
    translator.expect_log("Peers have ");
    assert_eq!(translator.log().matches("Peers have ").count(), 1);
    translator.signal(nix::sys::signal::Signal::SIGUSR1);
    translator.expect_log("\n    share of peers used up: 2");
    // Room that was made is given away again.
    reset(others.pop().unwrap());
    let again = || knock(&world.outside, &wire, OTHER);
    let mut taken = None;
    assert!(wait_until(LONG, || {
        taken = again();
        taken.is_some()
    }));
}

/// Who comes last is served, at the cost of those of the same peer that were idle for longest; nobody else pays.
#[test]
fn datagrams_from_ever_new_ports_cost_the_guest_no_flow_of_its_own() {
    let Some((world, translator, wire)) = lay("-u") else {
        return;
    };
    let server = udp_socket(&world.outside, (INTERNET6, 7));
    let local = guest_addr(server.local_addr().unwrap(), 5000);
    wire.send(&Udp::new(local, server.local_addr().unwrap(), b"question").frame());
    let (_, asked) = uninterrupted(|| server.recv_from(&mut [0; 16])).unwrap();
    let early = client(&world.outside, OTHER);
    exchange(&wire, &early);
    for _ in 0..2 * FILES {
        exchange(&wire, &client(&world.outside, INTERNET4));
    }
    // A late answer finds its way, and the other peer's client is still known by its own socket.
    server.send_to(b"answer", asked).unwrap();
    let answer = wire.expect("a late answer", |frame| {
        Udp::of_frame(frame).filter(|datagram| datagram.dst == local)
    });
    assert_eq!(answer.payload, b"answer");
    let from = early.local_addr().unwrap();
    wire.send(&Udp::new((POD4, PORT).into(), from, b"late").frame());
    let mut got = [0; 16];
    let (len, from) = uninterrupted(|| early.recv_from(&mut got)).unwrap();
    assert_eq!((&got[..len], from), (&b"late"[..], (POD4, PORT).into()));
    assert!(translator.fd_count() <= FILES as usize);
}

fn client(host: &Host, from: impl Into<IpAddr>) -> UdpSocket {
    udp_socket(host, (from.into(), 0))
}

/// A datagram to the guest, which it gets.
fn exchange(wire: &Wire, client: &UdpSocket) {
    client.send_to(b"hello", (POD4, PORT)).unwrap();
    let from = client.local_addr().unwrap();
    wire.expect("datagram", |frame| {
        Udp::of_frame(frame).filter(|datagram| datagram.src == from)
    });
}
