//! Many connections: held, made and ended, and side by side with one that takes all it can get.
//!
//! `HELD_FLOWS` is how many are held at a time (2,000 by default), `CHURN_FLOWS` how many are made one after the other (10,000).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod kernel_guest;
mod lab;

use std::{
    collections::HashSet,
    env,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use guest::{
    Peer, Tcp, Wire,
    frame::{FIN, RST},
    guest_addr,
};
use kernel_guest::KernelGuest;
use lab::{
    LONG, Setup, Translator, World,
    servers::{TcpServer, accept, tcp_listener},
    uninterrupted, wait_until,
    world::INTERNET4,
};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    resource::{Resource, getrlimit, setrlimit},
};

/// Small flows beside the hog, and how often each of them asks: all at once, which is a load of its own, or one each
/// millisecond, which is nearly none.
const SMALL: usize = 1000;
const ROUNDS: [(usize, Duration); 2] = [(5, Duration::ZERO), (2, Duration::from_millis(1))];

/// A table of flows, its index and its timers cost so much each at most, in octets.
const PER_FLOW: u64 = 1024;

fn number(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Lets this process have as many descriptors as it may.
fn raise_limit() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard
}

#[test]
fn thousands_of_connections_are_held_and_all_of_them_work() {
    let Some(world) = World::pod() else { return };
    // What the test itself and its neighbours need.
    let count = number("HELD_FLOWS", 2000).min(raise_limit() as usize - 800);
    let translator = Setup::new(&["--quiet"]).start(&world.pod);
    let remote: SocketAddr = (INTERNET4, 9).into();
    let listener = tcp_listener(&world.outside, remote);
    let wire = Wire::new(translator.connect());
    let idle = translator.idle_fd_count();
    let before = translator.rss();
    let accepting = thread::spawn(move || {
        let accepted = (0..count).map(|_| listener.accept().unwrap().0);
        accepted.collect::<Vec<_>>()
    });
    let began = Instant::now();
    for n in 0..count {
        Peer::connect(&wire, guest_addr(remote, 1024 + n as u16), remote);
    }
    let servers = accepting.join().unwrap();
    let grown = (translator.rss() - before) * 1024 / count as u64;
    println!(
        "{count} connections in {:?}, {grown} octets each",
        began.elapsed()
    );
    assert!(grown <= PER_FLOW, "{grown} octets a connection");
    assert!(translator.fd_count() >= count);
    // Every one is alive.
    for mut server in &servers {
        server.write_all(b"!").unwrap();
    }
    let mut heard = HashSet::new();
    while heard.len() < count {
        let frame = wire.recv(LONG).expect("a word of every connection");
        if let Some(segment) = Tcp::of_frame(&frame).filter(|s| s.payload == b"!") {
            assert!(!segment.has(RST));
            heard.insert(segment.dst.port());
        }
    }
    drop(wire);
    translator.expect_fd_count(idle - 1);
}

#[test]
fn connections_made_and_ended_leave_nothing_behind() {
    let Some(world) = World::pod() else { return };
    let count = number("CHURN_FLOWS", 10_000);
    let mut translator = Translator::start(&world.pod, &["--quiet"]);
    let remote: SocketAddr = (INTERNET4, 9).into();
    // Who closes first waits, so that is the server: whoever opens has ports enough.
    let _server = TcpServer::start(&world.outside, remote, |stream| {
        let _ = stream.shutdown(Shutdown::Write);
        let _ = uninterrupted(|| (&stream).read(&mut [0]));
    });
    let wire = Wire::new(translator.connect());
    let idle = translator.idle_fd_count();
    let (mut warm, began) = (0, Instant::now());
    for n in 0..count {
        let local = guest_addr(remote, 1024 + (n % 60_000) as u16);
        let mut peer = Peer::connect(&wire, local, remote);
        let fin = peer.expect("FIN", |s| s.has(FIN));
        peer.rcv_nxt = fin.seq.wrapping_add(1);
        if n % 2 == 0 {
            peer.rst();
        } else {
            peer.fin();
            peer.expect_acked();
        }
        if n == count / 10 {
            warm = translator.rss();
        }
    }
    println!(
        "{:.0} connections a second",
        count as f64 / began.elapsed().as_secs_f64()
    );
    translator.expect_fd_count(idle);
    translator.assert_alive();
    let grown = translator.rss().saturating_sub(warm);
    assert!(grown <= 1024, "{grown} KiB more than {warm} KiB");
}

/// Nobody waits behind a flow that takes all it can get, for longer than what is in the link.
#[test]
fn a_thousand_small_flows_are_served_beside_a_hog() {
    let Some(world) = World::pod() else { return };
    raise_limit();
    let translator = Translator::start(&world.pod, &["--quiet"]);
    let Some(guest) = KernelGuest::plug(&translator, 65_520) else {
        return;
    };
    guest.number();
    let echo = TcpServer::echo(&world.outside, (INTERNET4, 7));
    let hog = tcp_listener(&world.outside, (INTERNET4, 9));
    let connect = |to| guest.host().run(|| TcpStream::connect(to).unwrap());
    let small: Vec<TcpStream> = (0..SMALL).map(|_| connect(echo.addr())).collect();
    for (down, (rounds, pace)) in [true, false]
        .into_iter()
        .flat_map(|d| ROUNDS.map(|r| (d, r)))
    {
        let (stop, carried) = (AtomicBool::new(false), AtomicU64::new(0));
        let (trips, rate, pause) = thread::scope(|scope| {
            let (near, far) = pair(connect(hog.local_addr().unwrap()), &hog);
            let (from, to) = if down { (far, near) } else { (near, far) };
            let (stop, carried) = (&stop, &carried);
            scope.spawn(move || {
                let chunk = vec![0; 1 << 17];
                while !stop.load(Ordering::Relaxed) && (&from).write_all(&chunk).is_ok() {}
            });
            scope.spawn(move || {
                let mut chunk = vec![0; 1 << 17];
                while let Ok(octets @ 1..) = uninterrupted(|| (&to).read(&mut chunk)) {
                    carried.fetch_add(octets as u64, Ordering::Relaxed);
                }
            });
            let running = Running(stop);
            let going = || carried.load(Ordering::Relaxed) >= 64 << 20;
            assert!(wait_until(LONG, going), "the hog does not get going");
            let pause = scope.spawn(|| longest_pause(stop));
            let (began, before) = (Instant::now(), carried.load(Ordering::Relaxed));
            let mut trips: Vec<_> = (0..rounds).flat_map(|_| round(&small, pace)).collect();
            let octets = carried.load(Ordering::Relaxed) - before;
            let rate = octets as f64 * 8e-9 / began.elapsed().as_secs_f64();
            drop(running);
            trips.sort();
            (trips, rate, pause.join().unwrap())
        });
        let at = |hundredth: usize| trips[trips.len() * hundredth / 100];
        println!(
            "hog down {down}, {rate:.1} Gbit/s, asked each {pace:?}: p50 {:?}, p99 {:?}; {} segments sent again, {} frames lost \
             at the device, {pause:?} without a processor",
            at(50),
            at(99),
            guest.retransmissions(),
            guest.dropped_at_device()
        );
        assert_eq!(trips.len(), SMALL * rounds);
        assert!(at(99) < Duration::from_secs(3), "{:?}", at(99));
    }
}

/// Lets the threads of a scope run for as long as it lives: a test that fails within it ends.
struct Running<'a>(&'a AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// For how long at most a thread had no processor though it wanted one, to be told with what took long.
fn longest_pause(stop: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        thread::sleep(Duration::from_millis(10));
        longest = longest.max(began.elapsed());
    }
    longest
}

fn pair(near: TcpStream, listener: &TcpListener) -> (TcpStream, TcpStream) {
    near.set_read_timeout(Some(LONG)).unwrap();
    near.set_write_timeout(Some(LONG)).unwrap();
    (near, accept(listener))
}

/// Every flow asks, `pace` after the one before; how long each waits for its answer.
fn round(flows: &[TcpStream], pace: Duration) -> Vec<Duration> {
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    for (n, flow) in flows.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, n as u64);
        epoll.add(flow.as_fd(), event).unwrap();
    }
    let (began, mut asked, mut trips) = (Instant::now(), Vec::new(), Vec::new());
    let mut events = [EpollEvent::empty(); 256];
    while trips.len() < flows.len() {
        while asked.len() < flows.len() && began.elapsed() >= pace * asked.len() as u32 {
            let at = Instant::now();
            (&flows[asked.len()]).write_all(b"?").unwrap();
            asked.push(at);
        }
        let all_asked = asked.len() == flows.len();
        let patience = if all_asked { LONG } else { pace };
        let patience = EpollTimeout::try_from(patience).unwrap();
        let ready = uninterrupted(|| Ok(epoll.wait(&mut events, patience)?)).unwrap();
        let missing = flows.len() - trips.len();
        assert!(ready > 0 || !all_asked, "{missing} answers are missing");
        for event in &events[..ready] {
            let n = event.data() as usize;
            let mut flow = &flows[n];
            assert_eq!(uninterrupted(|| flow.read(&mut [0])).unwrap(), 1);
            trips.push(asked[n].elapsed());
        }
    }
    trips
}
