//! Constant memory: once it serves, the loop asks the allocator for nothing, whatever passes through it; and an idle process is
//! small.
//!
//! `MEMORY_MIB` sets how much passes (128 by default, 1024 for a full GiB), `PASST_PEER` names a binary to compare with
//! (`/tmp/peer/passt` by default, where it is).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    env,
    ffi::OsString,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread::{self, JoinHandle},
};

use kernel_guest::KernelGuest;
use lab::{
    LONG, Setup, World,
    servers::{TcpServer, UdpEcho, tcp_listener},
    traffic::ping,
    world::{INTERNET4, INTERNET6, POD4, UNREACHABLE4},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use passt_rs::{
    cli::{self, Parsed},
    config::{Config, resolve},
    daemon::{Entrance, Reactor},
    host::{
        facts,
        listen::{self, Ports},
        socket::Features,
    },
    net::Span,
    relay::{Limits, Relay},
};

/// What an idle process may have resident, in KiB.
const IDLE_MOST: u64 = 10 << 10;

/// Descriptors for everything here but flows.
const KEPT: u64 = 1000;

/// The forwarded port.
const PORT: u16 = 2222;

/// What the thread under test asked for: how often, and the size of the latest.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LATEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, counting what one thread asks of it.
struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(size: usize) {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LATEST.store(size, Ordering::Relaxed);
    }
}

/// The loop of the translator in a thread of this process, in the pod, until its client leaves.
fn serve(world: World, flows: usize, client: UnixStream) -> JoinHandle<World> {
    let thread = thread::Builder::new().name("reactor".to_owned());
    let run = move || {
        world.pod.run(|| {
            let config = config(&["-t", "2222", "-u", "2222", "--fd", "3"]);
            let net = resolve(&config, &facts::read().unwrap()).unwrap().net;
            let limits = Limits {
                flows,
                spill: 16 << 20,
                udp: Span::secs(30),
                udp_stream: Span::secs(180),
            };
            let options = listen::Options {
                v4: true,
                v6: true,
                freebind: false,
                most: 100,
            };
            let (ports, _) = Ports::open(&config.forwards, options).unwrap();
            let mut relay = Relay::new(net, Features::probe(), limits);
            relay.forward(ports, listen::syn_retries());
            let entrance = Entrance::Connected(client.into());
            let reactor = Reactor::new(relay, entrance, None, true, None).unwrap();
            COUNTED.set(true);
            let ending = reactor.run();
            COUNTED.set(false);
            ending.unwrap();
        });
        world
    };
    thread.spawn(run).unwrap()
}

fn config(args: &[&str]) -> Config {
    let argv = ["passt"].iter().chain(args).map(OsString::from);
    match cli::parse(argv) {
        Parsed::Run(config, _) => *config,
        other => panic!("{other:?}"),
    }
}

/// As many flows as the system lets this process have.
fn most_flows() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard.saturating_sub(KEPT).clamp(64, 60_000) as usize
}

fn mib() -> usize {
    env::var("MEMORY_MIB").map_or(128, |text| text.parse().expect("MEMORY_MIB"))
}

/// Sends so many octets and sees them all come back in time.
fn up_and_down(guest: &KernelGuest, server: SocketAddr, octets: usize) {
    let stream = guest.host().run(|| TcpStream::connect(server)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut left = octets;
            while left > 0 {
                let now = left.min(1 << 16);
                (&stream).write_all(&[7; 1 << 16][..now]).unwrap();
                left -= now;
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let (mut got, mut bytes) = (0, vec![0; 1 << 18]);
        while let n @ 1.. = (&stream).read(&mut bytes).unwrap() {
            got += n;
        }
        assert_eq!(got, octets);
    });
}

/// A little of everything.
fn mix(guest: &KernelGuest, outside: &lab::Host, tcp: &[TcpServer], udp: &[UdpEcho]) {
    for server in tcp {
        up_and_down(guest, server.addr(), 1 << 20);
    }
    for server in udp {
        let any: SocketAddr = match server.addr() {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0; 8].map(|_: u8| 0_u16), 0).into(),
        };
        let socket = guest.host().run(|| UdpSocket::bind(any)).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        for len in [0, 1, 1400] {
            socket.send_to(&vec![1; len], server.addr()).unwrap();
            assert_eq!(socket.recv(&mut vec![0; 1 << 16]).unwrap(), len);
        }
    }
    ping(guest.host(), INTERNET4);
    ping(guest.host(), INTERNET6);
    // Refused, and unreachable.
    for remote in [(INTERNET4, 1), (UNREACHABLE4, 1)] {
        guest
            .host()
            .run(|| TcpStream::connect_timeout(&remote.into(), LONG))
            .unwrap_err();
    }
    // From outside.
    let listener = guest
        .host()
        .run(|| TcpListener::bind((POD4, PORT)))
        .unwrap();
    let stream = outside.run(|| TcpStream::connect((POD4, PORT))).unwrap();
    (&stream).write_all(b"hello").unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
    let service = guest.host().run(|| UdpSocket::bind((POD4, PORT))).unwrap();
    service.set_read_timeout(Some(LONG)).unwrap();
    let client = outside.run(|| UdpSocket::bind((INTERNET4, 0))).unwrap();
    client.send_to(b"hello", (POD4, PORT)).unwrap();
    service.recv(&mut [0; 16]).unwrap();
}

/// Datagram flows and connections, more of them than there is room for.
fn crowd(guest: &KernelGuest, flows: usize, deaf: SocketAddr) {
    let sockets: Vec<UdpSocket> = guest.host().run(|| {
        let each = (0..4).map(|_| UdpSocket::bind((POD4, 0)).unwrap());
        each.collect()
    });
    for n in 0..flows + flows / 4 {
        let port = 1024 + (n / sockets.len()) as u16;
        // Refusals of earlier ones are heard here.
        let _ = sockets[n % sockets.len()].send_to(b"one of many", (INTERNET4, port));
    }
    let connections: Vec<TcpStream> = guest.host().run(|| {
        let each = (0..100).map(|_| TcpStream::connect_timeout(&deaf, LONG));
        each.collect::<Result<_, _>>().unwrap()
    });
    drop(connections);
}

#[test]
fn nothing_is_allocated_once_the_loop_serves() {
    let Some(world) = World::pod() else { return };
    let flows = most_flows();
    let tcp = [INTERNET4.into(), INTERNET6.into()]
        .map(|addr: std::net::IpAddr| TcpServer::echo(&world.outside, (addr, 7)));
    let udp = [INTERNET4.into(), INTERNET6.into()]
        .map(|addr: std::net::IpAddr| UdpEcho::start(&world.outside, (addr, 7)));
    let deaf = tcp_listener(&world.outside, (INTERNET4, 9));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let Some(guest) = KernelGuest::plug_into(theirs, 65_520) else {
        return;
    };
    guest.number();
    guest.host().allow_ping();
    let outside = world.outside.again();
    let serving = serve(world, flows, ours);
    // The first of everything is made ready.
    mix(&guest, &outside, &tcp, &udp);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    mix(&guest, &outside, &tcp, &udp);
    for server in &tcp {
        up_and_down(&guest, server.addr(), (mib() << 20) / 4);
    }
    crowd(&guest, flows, deaf.local_addr().unwrap());
    mix(&guest, &outside, &tcp, &udp);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    println!(
        "{} allocations at the start, {} for {} MiB and {flows} flows",
        before,
        after - before,
        mib()
    );
    assert_eq!(
        after,
        before,
        "the latest of {} octets",
        LATEST.load(Ordering::Relaxed)
    );
    drop(guest);
    serving.join().unwrap();
}

#[test]
fn an_idle_process_is_small() {
    let Some(world) = World::pod() else { return };
    let peer = env::var("PASST_PEER").unwrap_or_else(|_| "/tmp/peer/passt".to_owned());
    let resident = |setup: Setup| {
        let translator = setup.start(&world.pod);
        translator.idle_fd_count();
        let client = translator.connect();
        translator.expect_log("accepted connection");
        let rss = translator.rss();
        drop(client);
        rss
    };
    let ours = resident(Setup::new(&[]));
    if Path::new(&peer).exists() {
        let theirs = resident(Setup::new(&[]).binary(&peer));
        println!("idle: {ours} KiB resident, {theirs} KiB of {peer}");
    } else {
        println!("idle: {ours} KiB resident; no {peer} to compare with");
    }
    assert!(ours < IDLE_MOST, "{ours} KiB");
}
