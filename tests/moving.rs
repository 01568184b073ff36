//! Connections that are taken from one host's kernel to another's, while the address moves with them. The peer's kernel is the
//! judge: it must not notice.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use lab::{
    Host, LONG, Nodes, janitor,
    nodes::{PEER, SERVICE},
    servers::once_free,
    uninterrupted, wait_until,
};
use passt_rs::{
    host::{moving, repair::Helper},
    proto::{
        repair::Command as Order,
        state::{Carried, HostSide, SocketOptions},
    },
    sys::{repair, sockopt},
};
use socket2::{SockRef, TcpKeepalive};

/// A connection from the service address, and the peer's end of it.
fn connection(nodes: &Nodes, family: usize) -> (TcpStream, TcpStream) {
    let peer: IpAddr = PEER[family].parse().unwrap();
    let listener = nodes.peer.run(|| TcpListener::bind((peer, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let ours = nodes.source.run(|| TcpStream::connect(address).unwrap());
    let (theirs, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), SERVICE[family].parse::<IpAddr>().unwrap());
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
    }
    (ours, theirs)
}

/// A helper at work on a host, and our end of its connection.
struct Repair {
    helper: Helper,
    process: Child,
    _folder: janitor::TempDir,
}

impl Repair {
    /// `PASST_REPAIR_BIN` may name another than ours.
    fn new(host: &Host) -> Self {
        let folder = janitor::TempDir::new();
        let path = folder.path().join("vm.repair");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let binary: OsString = std::env::var_os("PASST_REPAIR_BIN")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_passt-repair").into());
        let process = host.run(|| {
            Command::new(binary)
                .arg(&path)
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        });
        janitor::watch_pid(process.id());
        let helper = Helper::accept(&listener, LONG).unwrap();
        Self {
            helper,
            process,
            _folder: folder,
        }
    }

    fn order(&self, order: Order, sockets: &[&OwnedFd]) {
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
        self.helper.order(order, &sockets).unwrap();
    }
}

impl Drop for Repair {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        janitor::gone(self.process.id());
    }
}

/// Takes a connection away from its host. The socket stays, silent.
fn take(nodes: &Nodes, socket: &OwnedFd) -> Box<Carried> {
    take_from(&nodes.source, socket)
}

fn take_from(host: &Host, socket: &OwnedFd) -> Box<Carried> {
    let repair = Repair::new(host);
    moving::silence(socket).unwrap();
    repair.order(Order::On, &[socket]);
    match moving::take(socket, &[]).unwrap() {
        HostSide::Open(carried) => carried,
        other => panic!("{other:?}"),
    }
}

/// The connection on the other host.
fn restore(nodes: &Nodes, carried: &Carried) -> io::Result<TcpStream> {
    restore_late(&nodes.target, carried, || ())
}

/// The same, where something happens before the connection is what it was.
fn restore_late(host: &Host, carried: &Carried, meanwhile: impl FnOnce()) -> io::Result<TcpStream> {
    let repair = Repair::new(host);
    let socket = host.run(|| moving::open(carried.peer))?;
    repair.order(Order::On, &[&socket]);
    moving::claim(&socket, carried, 0)?;
    meanwhile();
    moving::restore(&socket, carried)?;
    repair.order(Order::Off, &[&socket]);
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LONG))?;
    (&stream).write_all(&carried.unsent)?;
    if carried.shut {
        stream.shutdown(std::net::Shutdown::Write)?;
    }
    Ok(stream)
}

fn migrate(nodes: &Nodes, ours: TcpStream) -> (TcpStream, Box<Carried>, OwnedFd) {
    ours.set_nonblocking(true).unwrap();
    let old = OwnedFd::from(ours);
    let carried = take(nodes, &old);
    // The peer, which may repeat itself, comes when the connection is there.
    nodes.give(&nodes.target);
    let new = restore(nodes, &carried).unwrap();
    nodes.withdraw(&nodes.source);
    (new, carried, old)
}

fn pattern(octets: usize) -> Vec<u8> {
    (0..octets as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn read(stream: &TcpStream, octets: usize) -> Vec<u8> {
    let mut buffer = vec![0; octets];
    (&mut &*stream).read_exact(&mut buffer).unwrap();
    buffer
}

fn exchange(one: &TcpStream, other: &TcpStream) {
    for (from, to) in [(one, other), (other, one)] {
        (&mut &*from).write_all(b"hello").unwrap();
        assert_eq!(read(to, 5), b"hello");
    }
}

/// Everything the peer would take, until nobody takes any more; returns what was written.
fn stuff(stream: &TcpStream) -> Vec<u8> {
    let all = pattern(32 << 20);
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut written = 0;
    while written < all.len() {
        match (&mut &*stream).write(&all[written..]) {
            Ok(octets) => written += octets,
            Err(_) => break,
        }
    }
    stream.set_write_timeout(Some(LONG)).unwrap();
    all[..written].to_vec()
}

/// Repair mode has no word for these.
#[test]
fn what_a_socket_was_told_the_next_is_told() {
    let Some(nodes) = Nodes::new() else { return };
    for family in [0, 1] {
        let (ours, theirs) = connection(&nodes, family);
        let v6 = family == 1;
        let often = TcpKeepalive::new()
            .with_time(Duration::from_secs(77))
            .with_interval(Duration::from_secs(21));
        SockRef::from(&ours).set_tcp_keepalive(&often).unwrap();
        sockopt::set_ttl(ours.as_fd(), v6, 33).unwrap();
        sockopt::set_tos(ours.as_fd(), v6, 0x28).unwrap();
        SockRef::from(&ours).bind_device(Some(b"eth0")).unwrap();
        let (ours, carried, _old) = migrate(&nodes, ours);
        let wanted = SocketOptions {
            ttl: 33,
            tos: 0x28,
            keepalive: Some((77, 21)),
            device: Some("eth0".to_owned()),
        };
        assert_eq!(carried.options, wanted);
        let (fd, options) = (ours.as_fd(), SockRef::from(&ours));
        assert_eq!(sockopt::ttl(fd, v6).unwrap(), 33);
        assert_eq!(sockopt::tos(fd, v6).unwrap() & !3, 0x28);
        assert_eq!(options.device().unwrap().unwrap(), b"eth0");
        assert!(options.keepalive().unwrap());
        let times = [
            options.tcp_keepalive_time(),
            options.tcp_keepalive_interval(),
        ];
        assert_eq!(times.map(|time| time.unwrap().as_secs()), [77, 21]);
        // And what every socket of ours is told.
        assert!(options.tcp_nodelay().unwrap());
        assert!(options.out_of_band_inline().unwrap());
        assert_eq!(options.tcp_notsent_lowat().unwrap(), u32::MAX);
        exchange(&ours, &theirs);
        nodes.move_address(&nodes.target, &nodes.source);
    }
}

/// A clock that is far ahead of the new host's: were it shown, the peer would take every segment for an old one (PAWS, RFC 7323).
#[test]
fn timestamps_go_on_where_they_were() {
    let Some(nodes) = Nodes::new() else { return };
    for family in [0, 1] {
        let (ours, theirs) = connection(&nodes, family);
        let ours = OwnedFd::from(ours);
        let ahead = repair::timestamp(ours.as_fd())
            .unwrap()
            .wrapping_add(1 << 30);
        let helper = Repair::new(&nodes.source);
        helper.order(Order::On, &[&ours]);
        repair::set_timestamp(ours.as_fd(), ahead).unwrap();
        helper.order(Order::Off, &[&ours]);
        let ours = TcpStream::from(ours);
        exchange(&ours, &theirs);
        let (new, carried, _old) = migrate(&nodes, ours);
        assert!(carried.timestamp.unwrap().wrapping_sub(ahead) < 1 << 20);
        exchange(&new, &theirs);
        let shown = repair::timestamp(new.as_fd()).unwrap();
        assert!(shown.wrapping_sub(ahead) < 1 << 29, "{ahead} {shown}");
        assert_eq!(paws(&nodes.peer), 0);
        nodes.move_address(&nodes.target, &nodes.source);
    }
}

/// Segments of established connections that a host has refused for their timestamps.
fn paws(host: &Host) -> u64 {
    host.counter("netstat", "TcpExt:", "PAWSEstab")
}

/// Octets in every queue: read by neither side, not acknowledged, not sent.
#[test]
fn a_connection_moves_with_all_that_is_in_its_queues() {
    let Some(nodes) = Nodes::new() else { return };
    for family in [0, 1] {
        let (ours, theirs) = connection(&nodes, family);
        exchange(&ours, &theirs);
        let (up, down) = (stuff(&ours), stuff(&theirs));
        let (new, carried, _old) = migrate(&nodes, ours);
        assert!(!carried.received.is_empty() && !carried.unsent.is_empty());
        assert!(carried.timestamp.is_some() && carried.sack && carried.scales.is_some());
        let (up_len, down_len) = (up.len(), down.len());
        thread::scope(|scope| {
            let theirs = &theirs;
            let upload = scope.spawn(move || read(theirs, up_len));
            assert!(read(&new, down_len) == down, "download");
            assert!(upload.join().unwrap() == up, "upload");
        });
        exchange(&new, &theirs);
        drop(new);
        assert_eq!(uninterrupted(|| (&theirs).read(&mut [0])).unwrap(), 0);
        nodes.move_address(&nodes.target, &nodes.source);
    }
}

/// Regression M01: what comes for a host the connection has left meets silence.
#[test]
fn a_peer_that_sends_during_the_move_loses_nothing() {
    let Some(nodes) = Nodes::new() else { return };
    let (ours, theirs) = connection(&nodes, 0);
    exchange(&ours, &theirs);
    ours.set_nonblocking(true).unwrap();
    let old = OwnedFd::from(ours);
    let carried = take(&nodes, &old);
    // The source hears it, and must not acknowledge.
    let sent = pattern(50_000);
    (&theirs).write_all(&sent).unwrap();
    thread::sleep(lab::QUIET);
    nodes.move_address(&nodes.source, &nodes.target);
    let new = restore(&nodes, &carried).unwrap();
    assert!(read(&new, sent.len()) == sent);
    exchange(&new, &theirs);
}

/// What the peer sends again while the connection is being made anew comes neither too early nor twice.
#[test]
fn a_peer_that_repeats_itself_during_the_move_is_heard_once() {
    let Some(nodes) = Nodes::new() else { return };
    for family in [0, 1] {
        let (ours, theirs) = connection(&nodes, family);
        exchange(&ours, &theirs);
        // The network takes nothing from the source any more, acknowledgements neither.
        let cut =
            "table inet cut { chain out { type filter hook output priority 0; policy drop; }; }";
        nodes.source.nft(cut);
        let down = pattern(10_000);
        (&theirs).write_all(&down).unwrap();
        let all = || uninterrupted(|| ours.peek(&mut [0; 10_000])).unwrap() == down.len();
        assert!(wait_until(LONG, all));
        ours.set_nonblocking(true).unwrap();
        let old = OwnedFd::from(ours);
        let carried = take(&nodes, &old);
        assert!(carried.received == down);
        nodes.give(&nodes.target);
        let new = restore_late(&nodes.target, &carried, || {
            nodes.withdraw(&nodes.source);
            let repeated = || retransmissions(&nodes.peer);
            let before = repeated();
            assert!(wait_until(LONG, || repeated() > before + 1));
        });
        let new = new.unwrap();
        assert!(read(&new, down.len()) == down, "family {family}");
        exchange(&new, &theirs);
        nodes.source.nft("delete table inet cut");
        nodes.move_address(&nodes.target, &nodes.source);
    }
}

/// Segments that a host's connections have sent again.
fn retransmissions(host: &Host) -> u64 {
    host.counter("snmp", "Tcp:", "RetransSegs")
}

/// There and back, with octets in every queue each time, and no end to how often.
#[test]
fn a_connection_moves_a_hundred_times() {
    let Some(nodes) = Nodes::new() else { return };
    let (mut ours, theirs) = connection(&nodes, 0);
    let mut hosts = [&nodes.source, &nodes.target];
    let (down, up) = (pattern(80_000), pattern(60_000));
    for turn in 0..100 {
        (&theirs).write_all(&down).unwrap();
        (&ours).write_all(&up).unwrap();
        // Some of it is read, and some of it is on its way.
        assert!(read(&ours, 30_000) == down[..30_000], "download {turn}");
        assert!(read(&theirs, 20_000) == up[..20_000], "upload {turn}");
        ours.set_nonblocking(true).unwrap();
        let old = OwnedFd::from(ours);
        let carried = take_from(hosts[0], &old);
        nodes.give(hosts[1]);
        ours = once_free(|| restore_late(hosts[1], &carried, || ()));
        drop(old);
        nodes.withdraw(hosts[0]);
        assert!(read(&ours, 50_000) == down[30_000..], "download {turn}");
        assert!(read(&theirs, 40_000) == up[20_000..], "upload {turn}");
        hosts.reverse();
    }
    exchange(&ours, &theirs);
}

/// The kernel of the new host fills segments as that of the old one did, from the first. Regression M05.
#[test]
fn segments_are_no_smaller_after_a_move() {
    let Some(nodes) = Nodes::new() else { return };
    for family in [0, 1] {
        let (ours, theirs) = connection(&nodes, family);
        exchange(&ours, &theirs);
        let mss = |stream: &TcpStream| SockRef::from(stream).tcp_mss().unwrap();
        let before = mss(&ours);
        let (new, _, _old) = migrate(&nodes, ours);
        assert_eq!(mss(&new), before);
        exchange(&new, &theirs);
        assert_eq!(mss(&new), before);
        nodes.move_address(&nodes.target, &nodes.source);
    }
}

/// Peers that know no timestamps, no selective acknowledgements, no window scale.
#[test]
fn a_connection_without_options_moves_as_well() {
    let Some(nodes) = Nodes::new() else { return };
    for option in ["timestamps", "sack", "window_scaling"] {
        nodes.peer.sysctl(&format!("ipv4/tcp_{option}"), "0");
    }
    for family in [0, 1] {
        let (ours, theirs) = connection(&nodes, family);
        exchange(&ours, &theirs);
        let (up, down) = (stuff(&ours), stuff(&theirs));
        let (new, carried, _old) = migrate(&nodes, ours);
        assert!(carried.timestamp.is_none() && !carried.sack && carried.scales.is_none());
        thread::scope(|scope| {
            let upload = scope.spawn(|| read(&theirs, up.len()));
            assert!(read(&new, down.len()) == down, "download");
            assert!(upload.join().unwrap() == up, "upload");
        });
        exchange(&new, &theirs);
        nodes.move_address(&nodes.target, &nodes.source);
    }
}

/// More than SO_RCVBUF may ask for (rmem_max).
#[test]
fn a_receive_queue_may_be_as_long_as_autotuning_makes_it() {
    let Some(nodes) = Nodes::new() else { return };
    for host in [&nodes.source, &nodes.target] {
        host.sysctl("ipv4/tcp_rmem", "4096 131072 33554432");
    }
    nodes
        .source
        .sysctl("ipv4/tcp_rmem", "4096 33554432 33554432");
    nodes.peer.sysctl("ipv4/tcp_wmem", "4096 131072 33554432");
    let (ours, theirs) = connection(&nodes, 0);
    let down = stuff(&theirs);
    let (new, carried, _old) = migrate(&nodes, ours);
    println!("{} octets", carried.received.len());
    assert!(
        carried.received.len() > 10 << 20,
        "{}",
        carried.received.len()
    );
    assert!(read(&new, down.len()) == down);
    exchange(&new, &theirs);
}

#[test]
fn half_closed_connections_stay_half_closed() {
    let Some(nodes) = Nodes::new() else { return };
    // The peer has ended its stream.
    let (ours, theirs) = connection(&nodes, 0);
    (&theirs).write_all(b"last words").unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let all = || uninterrupted(|| ours.peek(&mut [0; 16])).unwrap() == 10;
    assert!(wait_until(LONG, all));
    let (new, carried, _old) = migrate(&nodes, ours);
    assert!(carried.ended && !carried.shut);
    assert_eq!(read(&new, 10), b"last words");
    (&new).write_all(b"answer").unwrap();
    assert_eq!(read(&theirs, 6), b"answer");
    drop(new);
    assert_eq!(uninterrupted(|| (&theirs).read(&mut [0])).unwrap(), 0);
    nodes.move_address(&nodes.target, &nodes.source);
    // We have, and the peer has acknowledged it.
    let (ours, theirs) = connection(&nodes, 1);
    (&ours).write_all(b"request").unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read(&theirs, 7), b"request");
    assert_eq!(uninterrupted(|| (&theirs).read(&mut [0])).unwrap(), 0);
    let (new, carried, _old) = migrate(&nodes, ours);
    assert!(!carried.ended && carried.shut);
    let answer = pattern(200_000);
    (&theirs).write_all(&answer).unwrap();
    assert!(read(&new, answer.len()) == answer);
    drop(theirs);
    assert_eq!(uninterrupted(|| (&new).read(&mut [0])).unwrap(), 0);
}

#[test]
fn a_connection_that_stays_after_all_goes_on() {
    let Some(nodes) = Nodes::new() else { return };
    let (ours, theirs) = connection(&nodes, 0);
    let down = stuff(&theirs);
    ours.set_nonblocking(true).unwrap();
    let socket = OwnedFd::from(ours);
    take(&nodes, &socket);
    moving::listen(&socket);
    Repair::new(&nodes.source).order(Order::Off, &[&socket]);
    let ours = TcpStream::from(socket);
    ours.set_nonblocking(false).unwrap();
    assert!(read(&ours, down.len()) == down);
    exchange(&ours, &theirs);
}

/// Regression M03.
#[test]
fn a_listener_at_the_port_is_no_obstacle() {
    let Some(nodes) = Nodes::new() else { return };
    let any: SocketAddr = "[::]:8080".parse().unwrap();
    let listener = nodes.source.run(|| TcpListener::bind(any).unwrap());
    let service: IpAddr = SERVICE[0].parse().unwrap();
    let theirs = nodes
        .peer
        .run(|| TcpStream::connect((service, 8080)).unwrap());
    theirs.set_read_timeout(Some(LONG)).unwrap();
    let (ours, _) = listener.accept().unwrap();
    let _listener = nodes.target.run(|| TcpListener::bind(any).unwrap());
    let (new, _, _old) = migrate(&nodes, ours);
    exchange(&new, &theirs);
}

#[test]
fn a_host_without_the_address_refuses() {
    let Some(nodes) = Nodes::new() else { return };
    let (ours, _theirs) = connection(&nodes, 0);
    ours.set_nonblocking(true).unwrap();
    let old = OwnedFd::from(ours);
    let carried = take(&nodes, &old);
    let error = restore(&nodes, &carried).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
}
