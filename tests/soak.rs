//! Guests that come and go, with traffic of every kind, for as long as one likes: memory and descriptors stay what they were
//! after the first rounds, and no flow is left when everybody has said goodbye.
//!
//! `SOAK_SECONDS` sets how long (8 by default, 120 in the longer variant; 1800 for half an hour).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    env,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use kernel_guest::KernelGuest;
use lab::{
    LONG, Translator, World,
    path::said,
    servers::{TcpServer, UdpEcho, reset},
    traffic::ping,
    uninterrupted, wait_until,
    world::{BLACKHOLE4, INTERNET4, INTERNET6, POD4, UNREACHABLE4},
};

/// The forwarded port.
const PORT: u16 = 2222;

/// Octets of one transfer.
const BULK: usize = 4 << 20;

/// Rounds after which nothing is new any more.
const WARM: u32 = 3;

/// What resident memory may grow by from then on, in KiB.
const GROWTH: u64 = 1024;

/// Servers in the world outside.
struct Outside {
    echo: [TcpServer; 2],
    endless: TcpServer,
    udp: [UdpEcho; 2],
}

impl Outside {
    fn open(world: &World) -> Self {
        let both = [IpAddr::from(INTERNET4), IpAddr::from(INTERNET6)];
        Self {
            echo: both.map(|addr| TcpServer::echo(&world.outside, (addr, 7))),
            endless: TcpServer::start(&world.outside, (INTERNET4, 19), |mut stream| {
                while stream.write_all(&[0; 1 << 16]).is_ok() {}
            }),
            udp: both.map(|addr| UdpEcho::start(&world.outside, (addr, 7))),
        }
    }
}

#[test]
fn guests_that_come_and_go_leave_nothing_behind() {
    let seconds = env::var("SOAK_SECONDS").map_or(8, |text| text.parse().expect("SOAK_SECONDS"));
    let Some(world) = World::pod() else { return };
    let servers = Outside::open(&world);
    let mut translator = Translator::start(&world.pod, &["-t", "2222", "-u", "2222"]);
    let idle = translator.idle_fd_count();
    let (start, mut rounds, mut warm) = (Instant::now(), 0, 0);
    while rounds <= WARM || start.elapsed() < Duration::from_secs(seconds) {
        let mtu = if rounds % 2 == 0 { 65_520 } else { 1500 };
        let Some(guest) = KernelGuest::plug(&translator, mtu) else {
            return;
        };
        guest.number();
        guest.host().allow_ping();
        work(&world, &guest, &servers);
        if rounds % 3 == 2 {
            leave_in_the_middle(guest, &servers);
        } else {
            say_goodbye(guest, &translator);
        }
        translator.assert_alive();
        translator.expect_fd_count(idle);
        rounds += 1;
        if rounds == WARM {
            warm = translator.rss();
        }
    }
    let rss = translator.rss();
    println!(
        "{rounds} guests in {:.0} s: {warm} KiB resident after {WARM}, {rss} KiB at the end, {} descriptors",
        start.elapsed().as_secs_f64(),
        translator.fd_count()
    );
    assert!(rss <= warm + GROWTH, "{warm} KiB grew to {rss} KiB");
    assert_eq!(flows(&translator), (0, 0));
    assert_eq!(translator.stop(), 0);
}

/// Traffic of every kind at once.
fn work(world: &World, guest: &KernelGuest, servers: &Outside) {
    thread::scope(|scope| {
        for server in &servers.echo {
            scope.spawn(|| transfer(world, guest, server.addr()));
        }
        for server in &servers.udp {
            scope.spawn(|| datagrams(guest, server.addr()));
        }
        scope.spawn(|| {
            ping(guest.host(), INTERNET4);
            ping(guest.host(), INTERNET6);
        });
        scope.spawn(|| failures(guest, servers));
        scope.spawn(|| visitors(world, guest));
    });
}

/// There and back.
fn transfer(world: &World, guest: &KernelGuest, server: SocketAddr) {
    let stream = guest.host().run(|| TcpStream::connect(server)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&vec![7; BULK]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        let read = (&stream).read_to_end(&mut got);
        assert!(
            read.is_ok(),
            "{read:?} after {} octets from {server}\nthe guest:\n{}the host:\n{}the world:\n{}",
            got.len(),
            said(guest.host(), "ss", &["-tinom"]),
            said(&world.pod, "ss", &["-tinom"]),
            said(&world.outside, "ss", &["-tinom"])
        );
        assert_eq!(got.len(), BULK);
    });
}

fn datagrams(guest: &KernelGuest, server: SocketAddr) {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    };
    for _ in 0..20 {
        let socket = guest.host().run(|| UdpSocket::bind(any)).unwrap();
        let pause = Some(Duration::from_millis(500));
        socket.set_read_timeout(pause).unwrap();
        let answered = wait_until(LONG, || {
            let _ = socket.send_to(b"hello", server);
            uninterrupted(|| socket.recv(&mut [0; 16])).is_ok()
        });
        assert!(answered, "{server}");
    }
}

/// Connections that come to nothing, or to a sudden end.
fn failures(guest: &KernelGuest, servers: &Outside) {
    let soon = Duration::from_millis(200);
    let connect = |remote: SocketAddr| {
        guest
            .host()
            .run(|| TcpStream::connect_timeout(&remote, soon))
    };
    for remote in [(INTERNET4, 1), (UNREACHABLE4, 80), (BLACKHOLE4, 80)] {
        assert!(connect(remote.into()).is_err(), "{remote:?}");
    }
    for _ in 0..20 {
        // A machine that has other things to do may be too late for either.
        if let Ok(mut stream) = connect(servers.endless.addr()) {
            let _ = uninterrupted(|| stream.read(&mut [0; 1000]));
            reset(stream);
        }
        if let Ok(stream) = connect(servers.echo[0].addr()) {
            reset(stream);
        }
    }
}

/// From outside, to a port that is served and to one that is not.
fn visitors(world: &World, guest: &KernelGuest) {
    let visit = || {
        world
            .outside
            .run(|| TcpStream::connect((POD4, PORT)))
            .unwrap()
    };
    let refused = visit();
    refused.set_read_timeout(Some(LONG)).unwrap();
    assert!(
        uninterrupted(|| (&refused).read(&mut [0])).is_err(),
        "nobody listens"
    );
    let listener = guest
        .host()
        .run(|| TcpListener::bind((POD4, PORT)))
        .unwrap();
    for _ in 0..20 {
        let mut stream = visit();
        stream.write_all(b"hello").unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.read_exact(&mut [0; 5]).unwrap();
    }
}

/// Pulls the plug with downloads under way.
fn leave_in_the_middle(guest: KernelGuest, servers: &Outside) {
    let streams: Vec<TcpStream> = guest.host().run(|| {
        let each = (0..5).map(|_| TcpStream::connect(servers.endless.addr()));
        each.collect::<Result<_, _>>().unwrap()
    });
    for mut stream in &streams {
        stream.read_exact(&mut [0; 1000]).unwrap();
    }
    drop(guest);
}

/// All connections of this guest are closed: none may be left in the translator, but for the one that never was.
fn say_goodbye(guest: KernelGuest, translator: &Translator) {
    let closed = wait_until(LONG, || {
        let (tcp, connecting) = flows(translator);
        tcp == connecting
    });
    assert!(closed, "{}", translator.flows());
    drop(guest);
}

/// How many connections the translator has, and how many of these wait for the host.
fn flows(translator: &Translator) -> (u32, u32) {
    let report = translator.flows();
    let number = |text: &str| text.parse().expect(text);
    let (tcp, rest) = report.split_once(" TCP (").expect("TCP");
    let (_, rest) = rest.split_once(" SYN sent, ").expect("SYN sent");
    let (connecting, _) = rest.split_once(" connecting").expect("connecting");
    (number(tcp), number(connecting))
}
