//! Data in bulk between a kernel guest and the world: everything arrives once, in order, and nothing has to be sent twice.
//!
//! `TRANSFER_MIB` sets the size of the bulk transfers (256 by default, 1024 for a full GiB).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use kernel_guest::KernelGuest;
use lab::{
    Host, Translator, World,
    janitor::TempDir,
    world::{GATEWAY4, INTERNET4, INTERNET6},
};

/// No transfer stands still for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of one read or write.
const CHUNK: usize = 256 * 1024;

/// A transfer over a wire that loses frames, and how long it may stand still.
const LOSSY_BYTES: u64 = 32 << 20;
const STALL: Duration = Duration::from_secs(1);

const DOWNLOADS: u64 = 200;

/// Body of one download: enough to need many turns, and to overlap with the others.
const BODY: u64 = 1024 * 1024;

#[test]
fn a_bulk_download_arrives_whole() {
    let Some((world, guest, _translator)) = furnish(65520) else {
        return;
    };
    transfer(&guest, &Server::remote(&world, INTERNET4), false);
}

#[test]
fn a_bulk_upload_arrives_whole_and_nothing_is_sent_twice() {
    let Some((world, guest, _translator)) = furnish(65520) else {
        return;
    };
    transfer(&guest, &Server::remote(&world, INTERNET4), true);
    assert_eq!(guest.retransmissions(), 0);
}

/// X14: a reader on the translator's own host is slower than the guest, and has the largest window.
#[test]
fn a_bulk_upload_to_the_host_itself_needs_no_retransmission() {
    let Some((world, guest, _translator)) = furnish(1500) else {
        return;
    };
    transfer(&guest, &Server::on_the_host(&world), true);
    assert_eq!(guest.retransmissions(), 0);
}

#[test]
fn bulk_transfers_arrive_whole_at_an_ethernet_mtu_over_ipv6() {
    let Some((world, guest, _translator)) = furnish(1500) else {
        return;
    };
    let server = Server::remote(&world, INTERNET6);
    transfer(&guest, &server, true);
    assert_eq!(guest.retransmissions(), 0);
    transfer(&guest, &server, false);
    assert_eq!(guest.dropped_at_device(), 0);
}

/// No packet scheduler that loses is needed for it: the wire is ours.
#[test]
fn a_wire_that_loses_one_frame_in_a_hundred_stalls_nobody() {
    for (mtu, address) in [
        (1500, IpAddr::from(INTERNET4)),
        (65520, IpAddr::from(INTERNET6)),
    ] {
        let Some(world) = World::pod() else { return };
        let translator = Translator::start(&world.pod, &["--mtu", &mtu.to_string()]);
        let Some(guest) = KernelGuest::plug(&translator, mtu) else {
            return;
        };
        guest.number();
        let server = Server::remote(&world, address);
        for up in [true, false] {
            guest.counters().loss.store(10_000, Ordering::Relaxed);
            let gap = transfer_bytes(&guest, &server, up, LOSSY_BYTES);
            guest.counters().loss.store(0, Ordering::Relaxed);
            println!("mtu {mtu}, up {up}: at most {gap:?} without progress");
            assert!(gap < STALL, "{gap:?} without progress, mtu {mtu}, up {up}");
        }
    }
}

#[test]
fn two_hundred_parallel_downloads_succeed() {
    let Some((world, guest, mut translator)) = furnish(65520) else {
        return;
    };
    let Server { listener, target } = Server::remote(&world, INTERNET4);
    let idle = translator.idle_fd_count();
    thread::spawn(move || serve_http(&listener));
    let dir = TempDir::new();
    let output = guest.host().run(|| {
        Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "120"])
            .args(["--parallel", "--parallel-immediate", "--parallel-max"])
            .arg(DOWNLOADS.to_string())
            .args(["--output", "#1"])
            .arg(format!("http://{target}/[1-{DOWNLOADS}]"))
            .current_dir(dir.path())
            .output()
            .expect("curl")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    for number in 1..=DOWNLOADS {
        let mut expected = Vec::new();
        Noise::new(number).copy(BODY, &mut expected).unwrap();
        let body = fs::read(dir.path().join(number.to_string())).unwrap();
        assert!(body == expected, "download {number} is not what was sent");
    }
    translator.assert_alive();
    translator.expect_fd_count(idle);
}

/// A world with a guest in it that has its addresses.
fn furnish(mtu: u32) -> Option<(World, KernelGuest, Translator)> {
    let world = World::pod()?;
    let translator = Translator::start(&world.pod, &["--mtu", &mtu.to_string()]);
    let guest = KernelGuest::plug(&translator, mtu)?;
    guest.number();
    // On a loaded machine an acknowledgement may be late: what is counted here are answers to loss, not to impatience.
    guest.host().sysctl("ipv4/tcp_early_retrans", "0");
    guest
        .host()
        .ip("route replace default via 10.233.70.1 dev eth0 rto_min 5s
         route replace default via fe80::1 dev eth0 rto_min 5s");
    Some((world, guest, translator))
}

/// A listener and how the guest calls its address.
struct Server {
    listener: TcpListener,
    target: SocketAddr,
}

impl Server {
    fn remote(world: &World, address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self::new(&world.outside, address, address)
    }

    fn on_the_host(world: &World) -> Self {
        Self::new(&world.pod, Ipv4Addr::LOCALHOST.into(), GATEWAY4.into())
    }

    fn new(host: &Host, address: IpAddr, target: IpAddr) -> Self {
        let listener = host.run(|| TcpListener::bind((address, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = (target, port).into();
        Self { listener, target }
    }
}

/// Sends noise between `server` and `guest`; both ends hash what passes by.
fn transfer(guest: &KernelGuest, server: &Server, up: bool) {
    transfer_bytes(guest, server, up, bulk_bytes());
}

/// The same, of so many bytes. Returns the longest time in which nothing arrived.
fn transfer_bytes(guest: &KernelGuest, server: &Server, up: bool, size: u64) -> Duration {
    let near = guest
        .host()
        .run(|| TcpStream::connect_timeout(&server.target, PATIENCE))
        .unwrap();
    let (far, _) = server.listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let (from, to) = if up { (near, far) } else { (far, near) };
    let (sent, (received, hash, gap)) = thread::scope(|scope| {
        let sent = scope.spawn(|| send(&from, size));
        let received = scope.spawn(|| receive(&to));
        (sent.join().unwrap(), received.join().unwrap())
    });
    assert_eq!(received, size, "bytes");
    assert_eq!(hash, sent, "SHA-256");
    gap
}

fn bulk_bytes() -> u64 {
    let mib = env::var("TRANSFER_MIB").map_or(256, |text| text.parse().expect("a number"));
    mib * 1024 * 1024
}

fn send(to: &TcpStream, size: u64) -> String {
    let mut hash = Sha256::start();
    let mut both = Tee(to, hash.input());
    Noise::new(size).copy(size, &mut both).expect("sending");
    to.shutdown(Shutdown::Write).unwrap();
    hash.finish()
}

fn receive(mut from: &TcpStream) -> (u64, String, Duration) {
    let mut hash = Sha256::start();
    let mut chunk = vec![0; CHUNK];
    let mut received = 0;
    let mut gap = Duration::ZERO;
    loop {
        let before = Instant::now();
        let length = from.read(&mut chunk).expect("receiving");
        gap = gap.max(before.elapsed());
        match length {
            0 => return (received, hash.finish(), gap),
            length => {
                received += length as u64;
                hash.input().write_all(&chunk[..length]).unwrap();
            }
        }
    }
}

/// Writes everything twice.
struct Tee<'a>(&'a TcpStream, &'a mut ChildStdin);

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// sha256sum(1), which is faster than anything unoptimized.
struct Sha256(Child);

impl Sha256 {
    fn start() -> Self {
        let child = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.expect("sha256sum(1)"))
    }

    fn input(&mut self) -> &mut ChildStdin {
        self.0.stdin.as_mut().expect("piped")
    }

    fn finish(self) -> String {
        let output = self.0.wait_with_output().expect("sha256sum(1)");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Bytes that repeat nowhere, so that a piece lost, doubled or misplaced shows (xorshift64).
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn copy(&mut self, size: u64, to: &mut impl Write) -> io::Result<()> {
        let mut left = size;
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            for word in chunk.as_chunks_mut::<8>().0 {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                *word = self.0.to_ne_bytes();
            }
            let length = left.min(CHUNK as u64);
            to.write_all(&chunk[..length as usize])?;
            left -= length;
        }
        Ok(())
    }
}

/// Answers `GET /NUMBER` with noise grown from the number, one request a connection.
fn serve_http(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let number = request
        .strip_prefix("GET /")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .ok_or(io::ErrorKind::InvalidInput)?;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n"
    )?;
    Noise::new(number).copy(BODY, &mut stream)
}
