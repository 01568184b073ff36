//! Guests whose state was taken, but who stay: their migration failed at its very end.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use etherparse::{Icmpv4Header, Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader::Port};
use smoltcp::{
    iface::SocketHandle,
    socket::{icmp, tcp},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    guest::pattern,
    lab::{
        Host, LONG, QUIET,
        nodes::{PEER, SERVICE},
        uninterrupted, wait_until,
    },
    scene::{Scene, exchange, limit},
};

/// Octets that a peer says at once.
const PIECE: usize = 20_000;

/// Connections, in each family, of a peer that goes on to talk, one that ends its stream and one that resets.
struct Tcp {
    talks: (SocketHandle, TcpStream),
    ends: (SocketHandle, TcpStream),
    resets: (SocketHandle, Option<TcpStream>),
}

/// UDP sockets of the guest and of the peer, and where the peer sees the guest's.
struct Udp {
    ours: SocketHandle,
    theirs: UdpSocket,
    from: SocketAddr,
}

fn udp(scene: &mut Scene, port: u16, addr: &str) -> Udp {
    let addr: IpAddr = addr.parse().unwrap();
    let theirs = scene.nodes.peer.run(|| UdpSocket::bind((addr, 0)).unwrap());
    theirs.set_read_timeout(Some(LONG)).unwrap();
    let ours = scene.guest.udp(port);
    scene
        .guest
        .send_to(ours, theirs.local_addr().unwrap(), b"before");
    let mut octets = [0; 16];
    theirs.set_nonblocking(true).unwrap();
    let mut got = None;
    // The stack may ask for the router first.
    assert!(wait_until(LONG, || {
        scene.guest.run_for(Duration::from_millis(10));
        got = uninterrupted(|| theirs.recv_from(&mut octets)).ok();
        got.is_some()
    }));
    theirs.set_nonblocking(false).unwrap();
    let (_, from) = got.unwrap();
    Udp { ours, theirs, from }
}

/// Has a host say that nobody listens where these datagrams went (RFC 792).
fn unreachable(host: &Host, from: SocketAddr, to: SocketAddr) {
    let (IpAddr::V4(source), IpAddr::V4(dest)) = (from.ip(), to.ip()) else {
        panic!("IPv4")
    };
    let mut quote = Vec::new();
    PacketBuilder::ipv4(source.octets(), dest.octets(), 64)
        .udp(from.port(), to.port())
        .write(&mut quote, b"before")
        .unwrap();
    let header = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(Port), &quote);
    let mut message = header.to_bytes().to_vec();
    message.extend(quote);
    let socket = host
        .run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)))
        .unwrap();
    let there = SocketAddr::from((source, 0));
    socket.send_to(&message, &there.into()).unwrap();
}

#[test]
fn nothing_that_happens_while_a_guest_is_about_to_stay_is_lost() {
    for helped in [false, true] {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let listeners = scene.listeners();
        let mut tcp = listeners.each_ref().map(|listener| {
            let (talks, ends) = (scene.connect(listener), scene.connect(listener));
            let (resets, theirs) = scene.connect(listener);
            SockRef::from(&theirs)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            let resets = (resets, Some(theirs));
            Tcp {
                talks,
                ends,
                resets,
            }
        });
        let udp = [5000, 5001].map(|port| udp(&mut scene, port, PEER[usize::from(port) - 5000]));
        let refused = self::udp(&mut scene, 5002, PEER[0]);
        let errors = scene.guest.udp_errors(5002);
        let inbound = scene.guest.listen(8080);
        let words = pattern(0, PIECE);

        let helper = helped.then(|| scene.helper());
        let mut caller = None;
        scene.stay_while(|nodes| {
            for Tcp {
                talks,
                ends,
                resets,
            } in &mut tcp
            {
                (&talks.1).write_all(&words).unwrap();
                (&ends.1).write_all(&words).unwrap();
                ends.1.shutdown(Shutdown::Write).unwrap();
                resets.1 = None;
            }
            for Udp { theirs, from, .. } in &udp {
                theirs.send_to(b"late", from).unwrap();
            }
            let to = refused.theirs.local_addr().unwrap();
            unreachable(&nodes.peer, refused.from, to);
            let service: Ipv4Addr = SERVICE[0].parse().unwrap();
            caller = Some(
                nodes
                    .peer
                    .run(|| TcpStream::connect((service, 8080)).unwrap()),
            );
            thread::sleep(QUIET);
        });

        for Tcp {
            talks,
            ends,
            resets,
        } in &tcp
        {
            scene.guest.download(talks.0, PIECE);
            scene.guest.download(ends.0, PIECE);
            scene.guest.expect_eof(ends.0);
            let reset = resets.0;
            scene.guest.until("reset", |sockets| {
                sockets.get::<tcp::Socket<'_>>(reset).state() == tcp::State::Closed
            });
            exchange(&mut scene.guest, talks.0, &talks.1);
        }
        for Udp { ours, theirs, .. } in &udp {
            let remote = theirs.local_addr().unwrap();
            assert_eq!(scene.guest.recv_from(*ours), (b"late".to_vec(), remote));
        }
        scene.guest.until("ICMP error", |sockets| {
            sockets.get::<icmp::Socket<'_>>(errors).can_recv()
        });
        let caller = caller.unwrap();
        limit(&caller);
        scene.guest.accept(inbound);
        exchange(&mut scene.guest, inbound, &caller);
        if let Some(helper) = helper {
            assert_eq!(helper.end(), Some(0));
        }
    }
}

/// Nobody was there who could have moved its connections: nothing was done to them.
#[test]
fn connections_of_a_guest_that_stays_need_no_helper() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let listeners = scene.listeners();
    let all = listeners.each_ref().map(|listener| scene.connect(listener));
    for _ in 0..2 {
        for (handle, theirs) in &all {
            // On their way when it begins to leave.
            (&*theirs).write_all(&pattern(0, PIECE)).unwrap();
            scene.guest.tcp(*handle).send_slice(b"on its way").unwrap();
        }
        scene.stay_while(|_| thread::sleep(QUIET));
        scene
            .source
            .expect_log("its 2 connections cannot: no passt-repair is connected");
        for (handle, theirs) in &all {
            scene.guest.download(*handle, PIECE);
            let mut octets = [0; 10];
            (&*theirs).read_exact(&mut octets).unwrap();
            assert_eq!(&octets, b"on its way");
            exchange(&mut scene.guest, *handle, theirs);
        }
    }
}

/// Frames that were lost while it stood still are sent again, though the time for that came when nothing could be sent.
#[test]
fn what_a_guest_that_stays_did_not_hear_is_sent_again() {
    for helped in [false, true] {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let listeners = scene.listeners();
        let all = listeners.each_ref().map(|listener| scene.connect(listener));
        let _helper = helped.then(|| scene.helper());
        scene.halt();
        for (_, theirs) in &all {
            (&*theirs).write_all(&pattern(0, PIECE)).unwrap();
        }
        // They are in the guest's memory by then.
        thread::sleep(QUIET);
        scene.stay_while(|_| thread::sleep(Duration::from_secs(2)));
        for (handle, theirs) in &all {
            scene.guest.download(*handle, PIECE);
            exchange(&mut scene.guest, *handle, theirs);
        }
    }
}

/// Nobody can take them out of repair mode.
#[test]
fn connections_of_a_guest_that_stays_when_its_helper_is_gone_are_reset() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let listeners = scene.listeners();
    let all = listeners.each_ref().map(|listener| scene.connect(listener));
    let helper = scene.helper();
    scene.stay_while(|_| drop(helper));
    scene
        .source
        .expect_log("The guest stays, but 2 of 2 connections are lost");
    for (handle, theirs) in &all {
        scene.guest.until("reset", |sockets| {
            sockets.get::<tcp::Socket<'_>>(*handle).state() == tcp::State::Closed
        });
        // Its next word tells the peer.
        (&*theirs).write_all(b"anybody?").unwrap();
        let error = uninterrupted(|| (&*theirs).read(&mut [0; 1])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    for listener in &listeners {
        let (handle, theirs) = scene.connect(listener);
        exchange(&mut scene.guest, handle, &theirs);
    }
}

/// It is as good as the first.
#[test]
fn another_helper_will_do_for_a_guest_that_stays() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let listeners = scene.listeners();
    let all = listeners.each_ref().map(|listener| scene.connect(listener));
    let (first, second) = (scene.helper(), scene.helper());
    scene.stay_while(|_| drop(first));
    for (handle, theirs) in &all {
        exchange(&mut scene.guest, *handle, theirs);
    }
    assert_eq!(second.end(), Some(0));
}

/// `savevm` and `loadvm` of one QEMU: what there is by then is of a guest that is no more.
#[test]
fn a_guest_that_goes_back_to_what_it_was_leaves_its_flows_behind() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let [listener, _] = scene.listeners();
    let (handle, old) = scene.connect(&listener);
    let udp = udp(&mut scene, 5000, PEER[0]);
    let mut new = None;
    scene.go_back_after(|scene| new = Some(scene.connect(&listener).1));
    for mut theirs in [old, new.unwrap()] {
        let ended = uninterrupted(|| theirs.read(&mut [0]));
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    scene.guest.until("reset", |sockets| {
        sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed
    });
    udp.theirs.send_to(b"after", udp.from).unwrap();
    assert_eq!(scene.guest.recv_from(udp.ours).0, b"after");
}
