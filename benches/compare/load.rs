//! The workloads: what runs between a program in the guest and a server, and what is counted while it runs.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::sockopt::UdpGsoSegment;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{cpu, iperf, kernel_guest::KernelGuest, lab::Host};

/// No single socket call takes longer; a translator that stalls ends the workload, not the benchmark.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes per `read` and `write` of the bulk workloads, as iperf3 uses.
const BULK: usize = 128 * 1024;

/// Payload of a flooded datagram: what fits any path, and what costs by its number alone.
const DATAGRAM: usize = 1400;
const SMALL: usize = 64;

/// Datagrams sent as one.
const SEGMENTS: usize = 40;

pub(crate) const GIB: f64 = (1u64 << 30) as f64;

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Bulk TCP, server to guest
    Down,
    /// Bulk TCP, guest to server
    Up,
    /// One byte there and back on one connection
    Rr,
    /// Connect, one byte there and back, close: one at a time
    Crr,
    /// The same, 16 at a time
    Crr16,
    /// Connect, ask one byte, read the answer to its end, as of a web server that closes: one at a time
    Get,
    /// The same, 16 at a time
    Get16,
    /// Bulk TCP by iperf3 (which has to be installed), server to guest, the start of the connection included
    IperfDown,
    /// The same, guest to server
    IperfUp,
    /// UDP datagrams of 1400 bytes, server to guest, as fast as they go
    UdpDown,
    /// UDP datagrams of 1400 bytes, guest to server, as fast as they go
    UdpUp,
    /// The same in pieces of 40 that whoever comes last cuts (UDP_SEGMENT)
    UsoUp,
    /// UDP datagrams of 64 bytes, server to guest, as fast as they go
    UdpDown64,
    /// UDP datagrams of 64 bytes, guest to server, as fast as they go
    UdpUp64,
    /// One datagram there and back on one flow
    UdpRr,
    /// Idle connections held open
    Hold,
}

impl Workload {
    /// Whether more is sent than any guest could take.
    pub(crate) fn is_flood(self) -> bool {
        matches!(
            self,
            Self::UdpDown | Self::UdpUp | Self::UsoUp | Self::UdpDown64 | Self::UdpUp64
        )
    }

    /// Units of [`Sample::rate`] and [`Sample::cost`].
    pub(crate) fn units(self) -> (&'static str, &'static str) {
        match self {
            Self::Down | Self::Up | Self::IperfDown | Self::IperfUp => ("Gbit/s", "CPU s/GiB"),
            Self::Rr | Self::Crr | Self::Crr16 | Self::Get | Self::Get16 | Self::UdpRr => {
                ("1/s", "CPU µs/op")
            }
            Self::UdpDown | Self::UdpUp | Self::UsoUp | Self::UdpDown64 | Self::UdpUp64 => {
                ("1/s", "CPU µs/datagram")
            }
            Self::Hold => ("opened/s", "RSS MiB"),
        }
    }
}

/// Who ends a connection of which the answer has come.
#[derive(Debug, Clone, Copy)]
enum Closer {
    Guest,
    Server,
}

/// One measured run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Speed; more is better.
    pub(crate) rate: f64,
    /// Price; less is better.
    pub(crate) cost: f64,
    /// Latency in µs, median and 99th percentile, where one is measured.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// Segments the guest has sent again, and how many of these it was told had arrived before (D-SACK): its timer was early,
    /// as whoever was to acknowledge them had to wait for a CPU.
    pub(crate) retransmissions: u64,
    pub(crate) needless: u64,
}

/// Between whom, how long, how many.
pub(crate) struct Load<'a> {
    pub(crate) guest: &'a KernelGuest,
    pub(crate) server: &'a Host,
    /// Where the server binds, and how the guest calls that address.
    pub(crate) bind: IpAddr,
    pub(crate) target: IpAddr,
    pub(crate) translator: u32,
    pub(crate) congestion: &'a str,
    pub(crate) flows: usize,
    /// Bits per second that all flows of a bulk workload send together, if not as many as go.
    pub(crate) pace: Option<f64>,
    pub(crate) held: usize,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

impl Load<'_> {
    pub(crate) fn run(&self, workload: Workload) -> io::Result<Sample> {
        let before = (self.guest.retransmissions(), self.guest.needless());
        let mut sample = match workload {
            Workload::Down => self.bulk(false),
            Workload::Up => self.bulk(true),
            Workload::Rr => self.request_response(),
            Workload::Crr => self.connections(1, Closer::Guest),
            Workload::Crr16 => self.connections(16, Closer::Guest),
            Workload::Get => self.connections(1, Closer::Server),
            Workload::Get16 => self.connections(16, Closer::Server),
            Workload::IperfDown => iperf::measure(self, false),
            Workload::IperfUp => iperf::measure(self, true),
            Workload::UdpDown => self.flood(false, DATAGRAM, 1),
            Workload::UdpUp => self.flood(true, DATAGRAM, 1),
            Workload::UsoUp => self.flood(true, DATAGRAM, SEGMENTS),
            Workload::UdpDown64 => self.flood(false, SMALL, 1),
            Workload::UdpUp64 => self.flood(true, SMALL, 1),
            Workload::UdpRr => {
                let (guest, server) = self.datagram_pair()?;
                self.ask_and_answer(&guest, &server)
            }
            Workload::Hold => self.hold(),
        }?;
        sample.retransmissions = self.guest.retransmissions() - before.0;
        sample.needless = self.guest.needless() - before.1;
        Ok(sample)
    }

    fn bulk(&self, up: bool) -> io::Result<Sample> {
        let listener = self.listen()?;
        let port = listener.local_addr()?.port();
        let mut pairs = Vec::new();
        for _ in 0..self.flows {
            let guest = self.guest.host().run(|| self.connect(port))?;
            let server = listener.accept()?.0;
            patient(&server)?;
            pairs.push(if up { (guest, server) } else { (server, guest) });
        }
        let arrived = AtomicU64::new(0);
        let pause = self.pace.map_or(Duration::ZERO, |pace| {
            Duration::from_secs_f64((8 * BULK * self.flows) as f64 / pace)
        });
        let measured = thread::scope(|scope| {
            for (from, to) in &pairs {
                scope.spawn(|| send_bulk(from, pause));
                scope.spawn(|| receive_bulk(to, &arrived));
            }
            let measured = self.measure(&arrived);
            for stream in pairs.iter().flat_map(|(from, to)| [from, to]) {
                let _ = stream.shutdown(Shutdown::Both);
            }
            measured
        });
        for stream in pairs.iter().flat_map(|(from, to)| [from, to]) {
            // A reset: nothing of this run is still on the way in the next.
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
        }
        let gib = measured.count as f64 / GIB;
        Ok(Sample {
            rate: measured.count as f64 * 8e-9 / measured.seconds,
            cost: measured.cpu / gib,
            ..Sample::default()
        })
    }

    fn request_response(&self) -> io::Result<Sample> {
        let listener = self.listen()?;
        let mut guest = self
            .guest
            .host()
            .run(|| self.connect(listener.local_addr()?.port()))?;
        let server = listener.accept()?.0;
        patient(&server)?;
        server.set_nodelay(true)?;
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let latencies = Mutex::new(Vec::new());
        let measured = thread::scope(|scope| {
            scope.spawn(|| echo(&server));
            scope.spawn(|| {
                let mut took = Vec::with_capacity(1 << 18);
                while !stop.load(Relaxed) {
                    let start = Instant::now();
                    if guest.write_all(b"?").is_err() || guest.read_exact(&mut [0]).is_err() {
                        break;
                    }
                    took.push(start.elapsed());
                    done.fetch_add(1, Relaxed);
                }
                let _ = guest.shutdown(Shutdown::Both);
                latencies.lock().unwrap().append(&mut took);
            });
            let measured = self.measure(&done);
            stop.store(true, Relaxed);
            measured
        });
        Ok(measured.operations(latencies.into_inner().unwrap()))
    }

    fn connections(&self, at_a_time: usize, closer: Closer) -> io::Result<Sample> {
        let listener = self.listen()?;
        let port = listener.local_addr()?.port();
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let latencies = Mutex::new(Vec::new());
        let measured = thread::scope(|scope| {
            for _ in 0..at_a_time {
                scope.spawn(|| {
                    while let Ok((stream, _)) = listener.accept() {
                        if patient(&stream).is_err() || stop.load(Relaxed) {
                            break;
                        }
                        match closer {
                            Closer::Guest => echo(&stream),
                            Closer::Server => drop(echo_once(&stream)),
                        }
                    }
                });
                scope.spawn(|| {
                    let mut took = Vec::with_capacity(1 << 16);
                    self.guest.host().run(|| {
                        while !stop.load(Relaxed) {
                            let start = Instant::now();
                            if self.one_connection(port, closer).is_err() {
                                break;
                            }
                            took.push(start.elapsed());
                            done.fetch_add(1, Relaxed);
                        }
                    });
                    latencies.lock().unwrap().append(&mut took);
                });
            }
            let measured = self.measure(&done);
            stop.store(true, Relaxed);
            // Wakes those in accept().
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
            measured
        });
        Ok(measured.operations(latencies.into_inner().unwrap()))
    }

    fn one_connection(&self, port: u16, closer: Closer) -> io::Result<()> {
        let mut stream = self.connect(port)?;
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
        match closer {
            Closer::Guest => Ok(()),
            Closer::Server => stream.read(&mut [0]).map(drop),
        }
    }

    /// A socket of the guest's and one of the server's that know each other.
    fn datagram_pair(&self) -> io::Result<(UdpSocket, UdpSocket)> {
        let server = self.server.run(|| UdpSocket::bind((self.bind, 0)))?;
        let target = SocketAddr::new(self.target, server.local_addr()?.port());
        let guest = self.guest.host().run(|| {
            let any: IpAddr = match self.target {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(target)?;
            Ok::<_, io::Error>(socket)
        })?;
        for socket in [&server, &guest] {
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        }
        greet(&guest, &server)?;
        Ok((guest, server))
    }

    fn ask_and_answer(&self, guest: &UdpSocket, server: &UdpSocket) -> io::Result<Sample> {
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut latencies = Vec::new();
        let measured = thread::scope(|scope| {
            scope.spawn(|| {
                let mut question = [0; 8];
                while !stop.load(Relaxed) {
                    if server.recv(&mut question).is_ok() {
                        let _ = server.send(&question);
                    }
                }
            });
            let asking = scope.spawn(|| {
                let mut took = Vec::with_capacity(1 << 18);
                let mut answer = [0; 8];
                for number in 0_u64.. {
                    let question = number.to_be_bytes();
                    let start = Instant::now();
                    // What got lost is not waited for; an answer that was late is no answer to this.
                    let mut heard = guest.send(&question).is_ok();
                    while heard {
                        heard = guest.recv(&mut answer).is_ok();
                        if heard && answer == question {
                            took.push(start.elapsed());
                            done.fetch_add(1, Relaxed);
                            break;
                        }
                    }
                    if stop.load(Relaxed) {
                        break;
                    }
                }
                took
            });
            let measured = self.measure(&done);
            stop.store(true, Relaxed);
            latencies = asking.join().unwrap_or_default();
            measured
        });
        Ok(measured.operations(latencies))
    }

    /// Single datagrams between a guest's socket and a server's that know each other.
    pub(crate) fn run_between(
        &self,
        workload: Workload,
        [guest, server]: [&UdpSocket; 2],
    ) -> io::Result<Sample> {
        let (up, len) = match workload {
            Workload::UdpDown => (false, DATAGRAM),
            Workload::UdpUp => (true, DATAGRAM),
            Workload::UdpDown64 => (false, SMALL),
            Workload::UdpUp64 => (true, SMALL),
            Workload::UdpRr => return self.ask_and_answer(guest, server),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let (from, to) = if up { (guest, server) } else { (server, guest) };
        self.flood_between(from, to, up, len, 1)
    }

    fn flood(&self, up: bool, len: usize, segments: usize) -> io::Result<Sample> {
        let (guest, server) = self.datagram_pair()?;
        let (from, to) = if up {
            (&guest, &server)
        } else {
            (&server, &guest)
        };
        self.flood_between(from, to, up, len, segments)
    }

    /// A flood from one socket to another, which know each other.
    fn flood_between(
        &self,
        from: &UdpSocket,
        to: &UdpSocket,
        up: bool,
        len: usize,
        segments: usize,
    ) -> io::Result<Sample> {
        if segments > 1 {
            nix::sys::socket::setsockopt(from, UdpGsoSegment, &(len as i32))?;
        }
        let payload = vec![0; segments * len];
        let stop = AtomicBool::new(false);
        let measured = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    // A full queue of our own is no reason to stop.
                    let _ = from.send(&payload);
                }
            });
            scope.spawn(|| {
                let mut datagram = [0; DATAGRAM];
                while !stop.load(Relaxed) {
                    let _ = to.recv(&mut datagram);
                }
            });
            // Carried is what reached its socket, though who reads it may be too slow.
            let end = if up { self.server } else { self.guest.host() };
            let measured = self.measure_by(|| datagrams(end));
            stop.store(true, Relaxed);
            measured
        });
        Ok(measured.operations(Vec::new()))
    }

    fn hold(&self) -> io::Result<Sample> {
        let listener = self.listen()?;
        let port = listener.local_addr()?.port();
        let start = Instant::now();
        let mut held = Vec::with_capacity(2 * self.held);
        self.guest.host().run(|| {
            for _ in 0..self.held {
                held.push(self.connect(port)?);
                held.push(listener.accept()?.0);
            }
            Ok::<_, io::Error>(())
        })?;
        let seconds = start.elapsed().as_secs_f64();
        thread::sleep(self.warm_up);
        Ok(Sample {
            rate: self.held as f64 / seconds,
            cost: cpu::resident_kib(self.translator) as f64 / 1024.0,
            ..Sample::default()
        })
    }

    /// Warm up, then take the difference of `count` and of the translator's time over the measuring time.
    fn measure(&self, count: &AtomicU64) -> Measured {
        self.measure_by(|| count.load(Relaxed))
    }

    fn measure_by(&self, count: impl Fn() -> u64) -> Measured {
        let mark = || (Instant::now(), count(), cpu::time_of(self.translator));
        thread::sleep(self.warm_up);
        let (start, count_before, cpu_before) = mark();
        thread::sleep(self.time);
        let (end, count_after, cpu_after) = mark();
        Measured {
            seconds: (end - start).as_secs_f64(),
            count: count_after - count_before,
            cpu: cpu_after.saturating_sub(cpu_before).as_secs_f64(),
        }
    }

    fn listen(&self) -> io::Result<TcpListener> {
        self.server.run(|| {
            let socket = self.socket(self.bind)?;
            socket.bind(&SocketAddr::new(self.bind, 0).into())?;
            socket.listen(4096)?;
            Ok::<_, io::Error>(socket.into())
        })
    }

    /// From the calling thread's namespace, which must be the guest's.
    fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let socket = self.socket(self.target)?;
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&SocketAddr::new(self.target, port).into(), PATIENCE)?;
        Ok(socket.into())
    }

    /// What it accepts inherits the settings.
    fn socket(&self, peer: IpAddr) -> io::Result<Socket> {
        let domain = if peer.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_congestion(self.congestion.as_bytes())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket)
    }
}

struct Measured {
    seconds: f64,
    count: u64,
    cpu: f64,
}

impl Measured {
    fn operations(&self, mut took: Vec<Duration>) -> Sample {
        took.sort_unstable();
        let at = |share: f64| {
            let place = (took.len() as f64 * share) as usize;
            took.get(place).map(|time| time.as_secs_f64() * 1e6)
        };
        Sample {
            rate: self.count as f64 / self.seconds,
            cost: self.cpu * 1e6 / self.count as f64,
            p50: at(0.5),
            p99: at(0.99),
            ..Sample::default()
        }
    }
}

/// Datagrams that reached a socket on `host`, or found it full.
fn datagrams(host: &Host) -> u64 {
    let table = host.proc_net("snmp");
    let mut rows = table.iter().filter(|line| line.starts_with("Udp:"));
    let (names, values) = rows.next().zip(rows.next()).expect("Udp: twice");
    let columns = names.split(' ').zip(values.split(' '));
    columns
        .filter(|(name, _)| ["InDatagrams", "RcvbufErrors"].contains(name))
        .map(|(_, value)| value.parse::<u64>().expect("a number"))
        .sum()
}

fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// One write each `pause`; after a late one, those that are due at once.
fn send_bulk(mut to: &TcpStream, pause: Duration) {
    let data = vec![0x5a; BULK];
    let mut due = Instant::now();
    while to.write_all(&data).is_ok() {
        due += pause;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive_bulk(mut from: &TcpStream, arrived: &AtomicU64) {
    let mut data = vec![0; BULK];
    while let Ok(length @ 1..) = from.read(&mut data) {
        arrived.fetch_add(length as u64, Relaxed);
    }
}

fn echo(stream: &TcpStream) {
    while echo_once(stream).is_ok() {}
}

fn echo_once(mut stream: &TcpStream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

/// Make the two know each other: the first datagram opens the translator's flow.
fn greet(guest: &UdpSocket, server: &UdpSocket) -> io::Result<()> {
    for _ in 0..20 {
        guest.send(b"hello")?;
        if let Ok((_, peer)) = server.recv_from(&mut [0; 8]) {
            return server.connect(peer);
        }
    }
    Err(io::Error::other("no datagram came through"))
}
