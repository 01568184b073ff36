//! Flows in every state.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use smoltcp::{iface::SocketHandle, socket::tcp};
use socket2::{Domain, Socket, Type};

use crate::{
    guest::{Guest, assert_pattern, pattern},
    lab::{
        LONG, Setup,
        nodes::{PEER, SERVICE},
        uninterrupted, wait_until,
    },
    scene::{PIECE, Scene, exchange, limit},
};

/// One connection, and how far its streams are.
struct Streams {
    handle: SocketHandle,
    theirs: TcpStream,
    up: Way,
    down: Way,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Way {
    sent: usize,
    got: usize,
}

impl Streams {
    fn new(handle: SocketHandle, theirs: TcpStream) -> Self {
        theirs.set_nonblocking(true).unwrap();
        Self {
            handle,
            theirs,
            up: Way::default(),
            down: Way::default(),
        }
    }

    /// Both ends send what they can, and read nothing.
    fn push(&mut self, guest: &mut Guest) {
        let socket = guest.tcp(self.handle);
        let data = pattern(self.up.sent as u64, PIECE);
        self.up.sent += socket.send_slice(&data).unwrap();
        let data = pattern(self.down.sent as u64, PIECE);
        self.down.sent += self.theirs.write(&data).unwrap_or(0);
    }

    /// Both ends read what there is.
    fn pull(&mut self, guest: &mut Guest) {
        let socket = guest.tcp(self.handle);
        while socket.can_recv() {
            let got = socket.recv(|octets| (octets.len(), octets.to_vec()));
            let got = got.unwrap();
            assert_pattern(self.down.got as u64, &got);
            self.down.got += got.len();
        }
        let mut octets = vec![0; PIECE];
        while let Ok(len @ 1..) = uninterrupted(|| self.theirs.read(&mut octets)) {
            assert_pattern(self.up.got as u64, &octets[..len]);
            self.up.got += len;
        }
    }

    fn is_even(&self) -> bool {
        self.up.got == self.up.sent && self.down.got == self.down.sent
    }
}

/// A connection in each family.
fn streams(scene: &mut Scene) -> Vec<Streams> {
    let listeners = scene.listeners();
    let connect = |listener| {
        let (handle, theirs) = scene.connect(listener);
        Streams::new(handle, theirs)
    };
    listeners.iter().map(connect).collect()
}

/// Sends until nothing goes on any more, in any direction.
fn stuff(scene: &mut Scene, all: &mut [Streams]) {
    let mut quiet = 0;
    while quiet < 10 {
        let before: Vec<_> = all.iter().map(|one| (one.up, one.down)).collect();
        for one in &mut *all {
            one.push(&mut scene.guest);
        }
        scene.guest.run_for(Duration::from_millis(30));
        let after: Vec<_> = all.iter().map(|one| (one.up, one.down)).collect();
        quiet = if before == after { quiet + 1 } else { 0 };
    }
}

fn drain(scene: &mut Scene, all: &mut [Streams]) {
    let deadline = std::time::Instant::now() + LONG;
    while !all.iter().all(Streams::is_even) {
        for one in &mut *all {
            one.pull(&mut scene.guest);
        }
        scene.guest.run_for(Duration::from_millis(2));
        let ways: Vec<_> = all.iter().map(|one| (one.up, one.down)).collect();
        let late = std::time::Instant::now() >= deadline;
        assert!(
            !late,
            "{ways:?}\n{}{}",
            scene.source.log(),
            scene.target.log()
        );
    }
}

/// The same streams, of a guest that does not leave after all.
#[test]
fn streams_of_a_guest_that_stays_go_on() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut all = streams(&mut scene);
    for _ in 0..3 {
        stuff(&mut scene, &mut all);
        scene.stay();
        drain(&mut scene, &mut all);
    }
}

/// Zero windows of both ends, and octets in every queue there is: unread, unacknowledged, unsent and refused by the kernel.
#[test]
fn streams_that_stand_still_go_on() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut all = streams(&mut scene);
    // How much a host's socket takes at first depends on its congestion control.
    let full = |one: &Streams| one.up.sent > 1 << 19 && one.down.sent > 1 << 20;
    let stuffed = wait_until(LONG, || {
        stuff(&mut scene, &mut all);
        all.iter().all(full)
    });
    let ways: Vec<_> = all.iter().map(|one| (one.up, one.down)).collect();
    assert!(stuffed, "{ways:?}");
    scene.hand_over();
    scene.target.expect_log("Guest arrived with 2 of 2 TCP");
    drain(&mut scene, &mut all);
    stuff(&mut scene, &mut all);
    drain(&mut scene, &mut all);
}

/// Streams in the midst of a transfer.
#[test]
fn streams_that_run_go_on() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut all = streams(&mut scene);
    for _ in 0..20 {
        for one in &mut all {
            one.push(&mut scene.guest);
            one.pull(&mut scene.guest);
        }
        scene.guest.run_for(Duration::from_millis(1));
    }
    scene.hand_over();
    for one in &mut all {
        one.push(&mut scene.guest);
    }
    drain(&mut scene, &mut all);
    assert!(
        all.iter()
            .all(|one| one.up.sent > PIECE && one.down.sent > PIECE)
    );
}

/// A client of the target's own asks for the guest's port, gets no answer there, and the guest arrives.
fn wait_for_arrival(scene: &mut Scene) {
    scene.nodes.target.ip("addr add 192.0.2.9/24 dev eth0");
    let theirs = scene.nodes.target.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let own = SocketAddr::from(([192, 0, 2, 9], 0));
        let to = SocketAddr::new(SERVICE[0].parse().unwrap(), 8080);
        socket.bind(&own.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        TcpStream::from(socket)
    });
    limit(&theirs);
    let handle = scene.guest.listen(8080);
    scene.hand_over();
    scene.guest.accept(handle);
    exchange(&mut scene.guest, handle, &theirs);
}

/// Its peer may be there before the front-end is.
#[test]
fn a_connection_that_waits_for_the_guest_gets_it_when_it_arrives() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    // The guest has to be known before.
    let listener = &scene.listeners()[0];
    let _ = scene.connect(listener);
    wait_for_arrival(&mut scene);
    // Where it goes back to it was before.
    scene.turn_round();
    wait_for_arrival(&mut scene);
}

#[test]
fn forwarded_connections_go_on() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let dial = |scene: &Scene, addr: &str| {
        let addr = SocketAddr::new(addr.parse().unwrap(), 8080);
        let stream = scene.nodes.peer.run(|| TcpStream::connect(addr).unwrap());
        limit(&stream);
        stream
    };
    // The guest has to be known before.
    let listener = &scene.listeners()[0];
    let _ = scene.connect(listener);
    let open: Vec<_> = SERVICE
        .iter()
        .map(|addr| {
            let handle = scene.guest.listen(8080);
            let theirs = dial(&scene, addr);
            scene.guest.accept(handle);
            exchange(&mut scene.guest, handle, &theirs);
            (handle, theirs)
        })
        .collect();
    // The guest has not answered this one yet.
    let waiting = dial(&scene, SERVICE[0]);
    (&waiting).write_all(b"early").unwrap();
    scene.hand_over();
    scene.target.expect_log("Guest arrived with 4 of 4 TCP");
    let handle = scene.guest.listen(8080);
    scene.guest.accept(handle);
    for (handle, theirs) in &open {
        exchange(&mut scene.guest, *handle, theirs);
    }
    let mut got = Vec::new();
    scene.guest.until("early octets", |sockets| {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_recv() {
            got.extend(
                socket
                    .recv(|octets| (octets.len(), octets.to_vec()))
                    .unwrap(),
            );
        }
        got.len() == 5
    });
    assert_eq!(got, b"early");
    // New ones find their way to the guest where it is now.
    let theirs = dial(&scene, SERVICE[1]);
    let handle = scene.guest.listen(8080);
    scene.guest.accept(handle);
    exchange(&mut scene.guest, handle, &theirs);
}

/// The host has no answer to its SYN yet: the guest's next one asks anew.
#[test]
fn a_connection_that_is_not_established_is_asked_for_again() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let listener = &scene.listeners()[0];
    let addr = listener.local_addr().unwrap();
    let mute = format!(
        "table inet mute {{ chain in {{ type filter hook input priority 0; tcp dport {} drop; }}; }}",
        addr.port()
    );
    scene.nodes.peer.nft(&mute);
    let handle = scene.guest.start_connect(addr);
    scene.guest.run_for(Duration::from_millis(100));
    scene.hand_over();
    scene.target.expect_log("Guest arrived with 0 of 0 TCP");
    scene.nodes.peer.nft("delete table inet mute");
    scene.guest.finish_connect(handle);
    let (theirs, _) = listener.accept().unwrap();
    limit(&theirs);
    exchange(&mut scene.guest, handle, &theirs);
}

/// The peer talks to the same address and port as before, and so does the guest.
#[test]
fn datagrams_go_on_between_the_same_ports() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let sockets = PEER.map(|addr| {
        let addr: IpAddr = addr.parse().unwrap();
        let socket = scene.nodes.peer.run(|| UdpSocket::bind((addr, 0)).unwrap());
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket
    });
    let mut known = Vec::new();
    for (port, theirs) in (5000..).zip(&sockets) {
        let ours = scene.guest.udp(port);
        let remote = theirs.local_addr().unwrap();
        scene.guest.send_to(ours, remote, b"before");
        let mut octets = [0; 16];
        let (len, from) = loop {
            // The stack may ask for the router first.
            scene.guest.run_for(Duration::from_millis(10));
            theirs.set_nonblocking(true).unwrap();
            if let Ok(got) = uninterrupted(|| theirs.recv_from(&mut octets)) {
                break got;
            }
        };
        theirs.set_nonblocking(false).unwrap();
        assert_eq!(&octets[..len], b"before");
        theirs.send_to(b"answer", from).unwrap();
        assert_eq!(scene.guest.recv_from(ours), (b"answer".to_vec(), remote));
        known.push((ours, theirs, from));
    }
    scene.hand_over();
    scene.target.expect_log("and 2 UDP flows");
    for (ours, theirs, from) in known {
        let remote = theirs.local_addr().unwrap();
        // The peer first: nothing of the guest's has opened a way.
        theirs.send_to(b"late", from).unwrap();
        assert_eq!(scene.guest.recv_from(ours), (b"late".to_vec(), remote));
        scene.guest.send_to(ours, remote, b"after");
        let mut octets = [0; 16];
        let (len, again) = uninterrupted(|| theirs.recv_from(&mut octets)).unwrap();
        assert_eq!((&octets[..len], again), (&b"after"[..], from));
    }
}

/// Nobody hears of a host that a guest has left, neither answers nor resets, as long as its translator is there.
#[test]
fn a_source_is_silent_after_its_guest_has_left() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut all = streams(&mut scene);
    scene.hand_over();
    // The network is late.
    scene.nodes.switch("p2", "p1");
    let segments = |scene: &Scene, name| scene.nodes.source.counter("snmp", "Tcp:", name);
    let (taken, sent, resets) = ("InSegs", "OutSegs", "OutRsts");
    let before = [sent, resets].map(|at| segments(&scene, at));
    let heard = segments(&scene, taken);
    for one in &mut all {
        one.down.sent += one.theirs.write(&pattern(0, 1000)).unwrap();
    }
    // Each is there, and again when nobody has answered.
    assert!(wait_until(LONG, || segments(&scene, taken) >= heard + 4));
    assert_eq!([sent, resets].map(|at| segments(&scene, at)), before);
    scene.nodes.switch("p1", "p2");
    drain(&mut scene, &mut all);
}

/// A source keeps the connections that have left silent no longer than until the next guest comes: it may be the same.
#[test]
fn a_guest_that_comes_back_has_its_connections_again() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut all = streams(&mut scene);
    scene.hand_over();
    stuff(&mut scene, &mut all);
    scene.turn_round();
    scene.hand_over();
    drain(&mut scene, &mut all);
}

/// With `--migrate-no-linger` a source closes the sockets of what has left at once.
#[test]
fn connections_that_have_left_need_not_be_kept_silent() {
    let mut left = [0; 2];
    for (left, args) in left.iter_mut().zip([&["--migrate-no-linger"][..], &[]]) {
        let Some(mut scene) = Scene::with(args, |setup| setup) else {
            return;
        };
        let all = streams(&mut scene);
        scene.hand_over();
        *left = scene.source.idle_fd_count();
        drop(all);
    }
    assert_eq!(left[1], left[0] + 2);
}

/// What clients from outside said goes on, whoever speaks first where the guest is now.
#[test]
fn forwarded_datagrams_go_on() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let ours = scene.guest.udp(8080);
    let said = |ours: &UdpSocket, from: SocketAddr, words: &[u8]| {
        let mut octets = [0; 16];
        let (len, source) = uninterrupted(|| ours.recv_from(&mut octets)).unwrap();
        assert_eq!((&octets[..len], source), (words, from));
    };
    // The guest has to be known before.
    let listener = &scene.listeners()[0];
    let _ = scene.connect(listener);
    let mut clients = Vec::new();
    for (own, service) in PEER.iter().zip(SERVICE) {
        let [own, service]: [IpAddr; 2] = [own, service].map(|addr| addr.parse().unwrap());
        let service = SocketAddr::new(service, 8080);
        for first in [true, false] {
            let client = scene.nodes.peer.run(|| UdpSocket::bind((own, 0)).unwrap());
            client.set_read_timeout(Some(LONG)).unwrap();
            client.send_to(b"before", service).unwrap();
            let (words, remote) = scene.guest.recv_from(ours);
            assert_eq!(
                (&words[..], remote),
                (&b"before"[..], client.local_addr().unwrap())
            );
            scene.guest.send_to(ours, remote, b"answer");
            said(&client, service, b"answer");
            clients.push((client, service, remote, first));
        }
    }
    scene.hand_over();
    scene.target.expect_log("and 4 UDP flows");
    for (client, service, remote, first) in clients {
        if first {
            client.send_to(b"after", service).unwrap();
            assert_eq!(scene.guest.recv_from(ours), (b"after".to_vec(), remote));
        }
        scene.guest.send_to(ours, remote, b"late");
        said(&client, service, b"late");
        client.send_to(b"again", service).unwrap();
        assert_eq!(scene.guest.recv_from(ours), (b"again".to_vec(), remote));
    }
}

/// Pods have their node's gateway, and the guest has that of the first: what it knows as nameserver is one wherever it is.
#[test]
fn the_router_the_guest_knows_forwards_queries_where_another_is_the_hosts() {
    queries_are_forwarded("");
}

/// A guest that arrives is not kept waiting for the tables, though they were read a moment before and take long.
#[test]
fn the_router_the_guest_knows_forwards_queries_where_tables_are_large() {
    let routes =
        (0..16_384).map(|n| format!("route add blackhole 10.{}.{}.0/24\n", n >> 8, n & 255));
    queries_are_forwarded(&routes.collect::<String>());
}

/// The guest's router is nameserver of the host it comes to, right after the network of that has changed by this and by
/// another router.
fn queries_are_forwarded(change: &str) {
    let setup = || Setup::new(&["--vhost-user"]).resolv_conf("nameserver 127.0.0.1\n");
    let Some(mut scene) = Scene::between(setup(), setup()) else {
        return;
    };
    let router = SocketAddr::new(PEER[0].parse().unwrap(), 53);
    for arrived in [false, true] {
        if arrived {
            let helpers = scene.helpers();
            let target = &scene.nodes.target;
            target.ip(&format!(
                "{change}route replace default via 192.0.2.9 dev eth0"
            ));
            scene.target.expect_log("The host's network changed");
            scene.hand_over_alone(|state| state);
            scene.turn_round();
            drop(helpers);
        }
        let server = scene
            .nodes
            .source
            .run(|| UdpSocket::bind("127.0.0.1:53").unwrap());
        server.set_read_timeout(Some(LONG)).unwrap();
        let ours = scene.guest.udp(5000 + u16::from(arrived));
        thread::scope(|threads| {
            threads.spawn(|| {
                let mut octets = [0; 16];
                let (len, from) = uninterrupted(|| server.recv_from(&mut octets)).unwrap();
                server.send_to(&octets[..len], from).unwrap();
            });
            scene.guest.send_to(ours, router, b"query");
            assert_eq!(scene.guest.recv_from(ours), (b"query".to_vec(), router));
        });
    }
}

/// Regression M06: a target that is short of descriptors takes what it can; the guest is told of the others, and so is
/// whoever reads the log.
#[test]
fn connections_that_find_no_place_are_reset_counted_and_named() {
    const ALL: usize = 60;
    let Some(mut scene) = Scene::with(&[], |setup| setup.limit_files(64)) else {
        return;
    };
    let listener = &scene.listeners()[0];
    let all: Vec<_> = (0..ALL).map(|_| scene.connect(listener)).collect();
    scene.hand_over();
    scene.target.expect_log(&format!(
        "of {ALL} TCP connections of the guest are reset: "
    ));
    let log = scene.target.log();
    let line = log.lines().find(|line| line.contains("are reset")).unwrap();
    let count: usize = line.split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!((1..ALL).contains(&count), "{line}");
    assert!(
        line.contains("Too many open files") && line.contains(" more"),
        "{line}"
    );
    let name = format!(
        " -> [{}]:{}",
        PEER[0],
        listener.local_addr().unwrap().port()
    );
    assert!(line.contains(&name), "{line}");
    let handles: Vec<_> = all.iter().map(|(handle, _)| *handle).collect();
    scene.guest.until("resets", |sockets| {
        let state = |handle: &SocketHandle| sockets.get::<tcp::Socket<'_>>(*handle).state();
        handles
            .iter()
            .filter(|handle| state(handle) == tcp::State::Closed)
            .count()
            == count
    });
    for (handle, theirs) in &all {
        if scene.guest.tcp_state(*handle) == tcp::State::Established {
            exchange(&mut scene.guest, *handle, theirs);
        }
    }
}

/// Another host has another address, as pods have: flows are bound to the one they had, the guest is not.
#[test]
fn a_target_without_the_address_serves_the_guest_from_its_own() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.nodes.withdraw(&scene.nodes.target);
    let listeners = scene.listeners();
    let old = listeners.each_ref().map(|listener| scene.connect(listener));
    scene.hand_over();
    let line = "2 of 2 TCP connections of the guest are reset: ";
    scene.target.expect_log(line);
    let log = scene.target.log();
    let line = log.lines().find(|said| said.contains(line)).unwrap();
    assert_eq!(
        line.matches("Cannot assign requested address").count(),
        2,
        "{line}"
    );
    scene.guest.until("resets", |sockets| {
        let state = |handle| sockets.get::<tcp::Socket<'_>>(handle).state();
        old.iter()
            .all(|(handle, _)| state(*handle) == tcp::State::Closed)
    });
    let own = ["192.0.2.8", "2001:db8:7::8"].map(|addr| addr.parse::<IpAddr>().unwrap());
    for (listener, own) in listeners.iter().zip(own) {
        let (handle, theirs) = scene.connect(listener);
        assert_eq!(theirs.peer_addr().unwrap().ip(), own);
        exchange(&mut scene.guest, handle, &theirs);
    }
}
