//! Constant memory: once it serves, the loop asks the allocator for nothing, whatever passes through it; and an idle process is
//! small.
//!
//! `MEMORY_MIB` sets how much passes by each link (128 by default, 1024 for a full GiB), `PASST_PEER` names a binary to
//! compare with (`/tmp/peer/passt` by default, where it is).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env,
    ffi::{CStr, OsString},
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use kernel_guest::KernelGuest;
use lab::{
    LONG, Setup, World,
    front_end::{Driver, LINUX},
    servers::{TcpServer, UdpEcho, tcp_listener},
    traffic::ping,
    uninterrupted,
    world::{INTERNET4, INTERNET6, POD4, UNREACHABLE4},
};
use nix::sys::{
    prctl::set_name,
    resource::{Resource, getrlimit, setrlimit},
};
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

/// How long each thread runs at least, in nanoseconds, for a test to mean anything.
const LEAST: u64 = 10_000_000;

/// The forwarded port.
const PORT: u16 = 2222;

/// What the threads under test asked for: how often, and the size of the latest.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LATEST: AtomicUsize = AtomicUsize::new(0);

/// Which threads these are.
static COUNTED: [AtomicI32; 2] = [const { AtomicI32::new(0) }; 2];

/// One test at a time counts.
static COUNTER: Mutex<()> = Mutex::new(());

/// The system's allocator, counting what some threads ask of it.
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
    let this = nix::unistd::gettid().as_raw();
    if COUNTED.iter().any(|id| id.load(Ordering::Relaxed) == this) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LATEST.store(size, Ordering::Relaxed);
    }
}

/// The name of a loop's thread, which those that it starts inherit: threads of queue pairs stay until the process ends.
const fn name(pairs: Option<usize>) -> &'static CStr {
    match pairs {
        None => c"stream loop",
        Some(1) => c"queue loop",
        Some(_) => c"queues' loop",
    }
}

/// Counts what threads of this name ask for from now on; how many they are.
fn count_loops(wanted: &CStr) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let ids = tasks.filter_map(|task| {
        let task = task.unwrap();
        // Others may end meanwhile.
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        (name.trim_end().as_bytes() == wanted.to_bytes())
            .then(|| task.file_name().to_str().unwrap().parse().unwrap())
    });
    let ids: Vec<i32> = ids.collect();
    assert!(ids.len() <= COUNTED.len(), "{ids:?}");
    for (at, place) in COUNTED.iter().enumerate() {
        place.store(ids.get(at).copied().unwrap_or(0), Ordering::Relaxed);
    }
    ids.len()
}

/// Nanoseconds that each thread that is counted has run (proc(5), `schedstat`).
fn run_times() -> Vec<u64> {
    let ids = COUNTED.iter().map(|id| id.load(Ordering::Relaxed));
    let time = |id: i32| {
        let text = fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    ids.filter(|&id| id != 0).map(time).collect()
}

/// The loop of the translator in a thread of this process, in the pod, until its client leaves: by the stream, or by so many
/// queue pairs.
fn serve(
    world: World,
    flows: usize,
    client: UnixStream,
    pairs: Option<usize>,
) -> JoinHandle<World> {
    thread::spawn(move || {
        world.pod.run(|| {
            set_name(name(pairs)).unwrap();
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
            let features = Features::probe();
            let further = (1..pairs.unwrap_or(1))
                .map(|_| Relay::new(net.clone(), features, limits))
                .collect();
            let mut relay = Relay::new(net, features, limits);
            relay.forward(ports, listen::syn_retries());
            let entrance = Entrance::Connected(client.into());
            let vhost = pairs.map(|_| config.vhost_features);
            let mut reactor = Reactor::new(relay, entrance, vhost, true, None).unwrap();
            reactor.recruit(further, flows).unwrap();
            reactor.run().unwrap();
        });
        world
    })
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
        while let n @ 1.. = uninterrupted(|| (&stream).read(&mut bytes)).unwrap() {
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
            assert_eq!(
                uninterrupted(|| socket.recv(&mut vec![0; 1 << 16])).unwrap(),
                len
            );
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
    uninterrupted(|| service.recv(&mut [0; 16])).unwrap();
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

/// Traffic of every kind, in bulk and by many flows, asks for no memory: by the stream, or by a driver's queue pairs.
fn assert_constant(driver: Option<Driver>) {
    let _alone = COUNTER.lock();
    let Some(world) = World::pod() else { return };
    let flows = most_flows();
    let tcp = [INTERNET4.into(), INTERNET6.into()]
        .map(|addr: std::net::IpAddr| TcpServer::echo(&world.outside, (addr, 7)));
    let udp = [INTERNET4.into(), INTERNET6.into()]
        .map(|addr: std::net::IpAddr| UdpEcho::start(&world.outside, (addr, 7)));
    let deaf = tcp_listener(&world.outside, (INTERNET4, 9));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let outside = world.outside.again();
    let pairs = driver.map(|driver| driver.pairs);
    let serving = serve(world, flows, ours, pairs);
    let guest = match driver {
        Some(driver) => KernelGuest::plug_driver(theirs, 65_520, driver),
        None => KernelGuest::plug_into(theirs, 65_520),
    };
    let Some(guest) = guest else { return };
    guest.number();
    guest.host().allow_ping();
    // The first of everything is made ready.
    mix(&guest, &outside, &tcp, &udp);
    let loops = count_loops(name(pairs));
    assert_eq!(loops, pairs.unwrap_or(1));
    let idle = run_times();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    mix(&guest, &outside, &tcp, &udp);
    for server in &tcp {
        up_and_down(&guest, server.addr(), (mib() << 20) / 4);
    }
    crowd(&guest, flows, deaf.local_addr().unwrap());
    mix(&guest, &outside, &tcp, &udp);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    for (idle, busy) in idle.iter().zip(run_times()) {
        assert!(busy > idle + LEAST, "a thread that had nothing to do");
    }
    println!(
        "{} allocations of {loops} threads for {} MiB and {flows} flows",
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
fn nothing_is_allocated_once_the_loop_serves() {
    assert_constant(None);
}

#[test]
fn nothing_is_allocated_for_what_passes_by_virtqueues() {
    assert_constant(Some(Driver::new(LINUX)));
}

#[test]
fn no_thread_allocates_for_what_passes_by_two_queue_pairs() {
    assert_constant(Some(Driver::twice(LINUX)));
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
