//! Long paths: the guest's connections fill them as those of a process on the host do.
//!
//! Between the translator's host and the world lie two TAP devices and a relay that holds every frame for half a round trip.
//! `DELAY_LAB=1` runs all round trips and both sizes of buffers, and holds each direction to nine tenths of what a process of
//! the host reaches; by default it is two round trips and a tenth, as this machine may be busy with others: a window that does
//! not grow reaches less.

use std::{
    collections::VecDeque,
    env,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, ppoll};

use crate::{
    CHUNK, PATIENCE,
    kernel_guest::{KernelGuest, tap::Tap},
    lab::{Host, Translator, World, world::INTERNET4},
    stream::Server,
};

/// Sizes of TCP's buffers that no path here exceeds.
const LARGE: &str = "4096 131072 134217728";

/// Octets per second of the path where buffers are large: less than this machine can carry, so that the path is what limits.
const RATE: u64 = 60_000_000;

/// Pairs measured until one is good enough.
const TRIES: usize = 3;

/// Two hosts with a long way between them.
struct LongWay {
    world: World,
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl LongWay {
    /// `None`, with a word about it, where there are no TAP devices. `rate` is in octets per second.
    fn new(round_trip: Duration, rate: Option<u64>) -> Option<Self> {
        // Skips where there are no namespaces for us.
        World::bare()?;
        let (pod, outside) = (Host::new().unwrap(), Host::new().unwrap());
        let near = pod.run(|| Tap::create_offloading("eth0"));
        let far = outside.run(|| Tap::create_offloading("pod0"));
        let (Ok(near), Ok(far)) = (near, far) else {
            println!("skipped: no TAP devices");
            return None;
        };
        pod.ip("link set eth0 mtu 1500 txqueuelen 100000 up
             addr add 10.233.70.50/24 dev eth0
             route add default via 10.233.70.1 dev eth0");
        outside.ip("link set pod0 mtu 1500 txqueuelen 100000 up
             addr add 10.233.70.1/24 dev pod0
             addr add 198.51.100.1/24 dev lo");
        let (near, far) = (Arc::new(near), Arc::new(far));
        let stop = Arc::new(AtomicBool::new(false));
        let carriers = [(&near, &far), (&far, &near)].map(|(from, to)| {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            thread::spawn(move || carry(&from, &to, round_trip / 2, rate, &stop).unwrap())
        });
        Some(Self {
            world: World { pod, outside },
            stop,
            carriers: carriers.into(),
        })
    }
}

impl Drop for LongWay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// Carries frames, each `delay` after it came, and none before the one ahead of it is through at `rate`.
fn carry(
    from: &Tap,
    to: &Tap,
    delay: Duration,
    rate: Option<u64>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 1 << 17];
    let mut through = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while waiting.front().is_some_and(|(due, _)| *due <= now) {
            let (_, frame) = waiting.pop_front().expect("one");
            // A device that is going away takes no more.
            let _ = to.write(&frame);
        }
        let patience = waiting
            .front()
            .map_or(Duration::from_millis(50), |(due, _)| {
                due.saturating_duration_since(now)
                    .min(Duration::from_millis(50))
            });
        let mut sources = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let _ = ppoll(&mut sources, Some(patience.into()), None);
        for _ in 0..64 {
            match from.read(&mut buffer) {
                Ok(len) => {
                    let now = Instant::now();
                    let takes = rate.map_or(Duration::ZERO, |rate| {
                        Duration::from_nanos(len as u64 * 1_000_000_000 / rate)
                    });
                    through = through.max(now) + takes;
                    waiting.push_back((through + delay, buffer[..len].to_vec()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Regressions T04, T08, T10, T11, T50 and T74.
#[test]
fn a_long_way_is_filled_as_by_a_process_of_the_host() {
    let full = env::var_os("DELAY_LAB").is_some();
    let trips: &[u64] = if full { &[20, 100, 300] } else { &[20, 100] };
    for &trip in trips {
        for large in [false, true] {
            if large && !full {
                continue;
            }
            if !compare(
                Duration::from_millis(trip),
                large,
                if full { 0.9 } else { 0.1 },
            ) {
                return;
            }
        }
    }
}

/// `false` where this test is not to go on.
fn compare(trip: Duration, large: bool, least: f64) -> bool {
    let Some(way) = LongWay::new(trip, large.then_some(RATE)) else {
        return false;
    };
    let world = &way.world;
    let translator = Translator::start(&world.pod, &["-4"]);
    let Some(guest) = KernelGuest::plug(&translator, 65_520) else {
        return false;
    };
    guest.host().ip("addr add 10.233.70.50/24 dev eth0
         route add default via 10.233.70.1 dev eth0");
    if large {
        for host in [&world.pod, &world.outside, guest.host()] {
            host.sysctl("ipv4/tcp_rmem", LARGE);
            host.sysctl("ipv4/tcp_wmem", LARGE);
        }
    }
    let server = Server::remote(world, INTERNET4);
    for up in [true, false] {
        // Others on this machine may disturb one of a pair.
        let mut ratio = 0.0_f64;
        for _ in 0..TRIES {
            let [plain, ours] =
                [&world.pod, guest.host()].map(|host| rate(host, &server, up, trip));
            ratio = ratio.max(ours / plain);
            println!(
                "{trip:?}, up {up}, large {large}: {:.1} of {:.1} MB/s, {:.2}",
                ours / 1e6,
                plain / 1e6,
                ours / plain
            );
            if ratio >= least {
                break;
            }
        }
        assert!(
            ratio >= least,
            "{trip:?}, up {up}, large {large}: {ratio:.2}"
        );
    }
    true
}

/// Octets per second between a program on `host` and the server, once the connection has come to its speed.
fn rate(host: &Host, server: &Server, up: bool, trip: Duration) -> f64 {
    let near = host
        .run(|| TcpStream::connect_timeout(&server.target, PATIENCE))
        .unwrap();
    let (far, _) = server.listener.accept().unwrap();
    let (from, to) = if up { (near, far) } else { (far, near) };
    let count = AtomicU64::new(0);
    let start = Duration::from_secs(1) + trip * 20;
    let span = Duration::from_secs(2) + trip * 10;
    thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = vec![7; CHUNK];
            while (&from).write(&chunk).is_ok_and(|octets| octets > 0) {}
        });
        scope.spawn(|| {
            let mut chunk = vec![0; CHUNK];
            while let Ok(octets @ 1..) = (&to).read(&mut chunk) {
                count.fetch_add(octets as u64, Ordering::Relaxed);
            }
        });
        thread::sleep(start);
        let (began, before) = (Instant::now(), count.load(Ordering::Relaxed));
        thread::sleep(span);
        let octets = count.load(Ordering::Relaxed) - before;
        let rate = octets as f64 / began.elapsed().as_secs_f64();
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
        rate
    })
}
