//! Streams of noise between two programs, hashed at both ends.

use std::{
    env,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    CHUNK, PATIENCE,
    kernel_guest::KernelGuest,
    lab::{Host, World, uninterrupted, world::GATEWAY4},
};

/// A listener and how the guest calls its address.
pub struct Server {
    pub listener: TcpListener,
    pub target: SocketAddr,
}

impl Server {
    pub fn remote(world: &World, address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self::new(&world.outside, address, address)
    }

    pub fn on_the_host(world: &World) -> Self {
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
pub fn transfer(guest: &KernelGuest, server: &Server, up: bool) {
    transfer_bytes(guest, server, up, bulk_bytes());
}

/// The same, of so many bytes.
pub fn transfer_bytes(guest: &KernelGuest, server: &Server, up: bool, size: u64) {
    let (near, far) = connect(guest, server);
    let (from, to) = if up { (near, far) } else { (far, near) };
    carry(&from, &to, size);
}

/// A connection of the guest's, and its other end; nothing waits for ever.
pub fn connect(guest: &KernelGuest, server: &Server) -> (TcpStream, TcpStream) {
    let near = guest
        .host()
        .run(|| TcpStream::connect_timeout(&server.target, PATIENCE))
        .unwrap();
    let (far, _) = server.listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (near, far)
}

/// Sends so much noise and compares hashes. Returns the longest time in which nothing arrived.
pub fn carry(from: &TcpStream, to: &TcpStream, size: u64) -> Duration {
    let (sent, (received, hash, gap)) = thread::scope(|scope| {
        let sent = scope.spawn(|| send(from, size));
        let received = scope.spawn(|| receive(to));
        (sent.join().unwrap(), received.join().unwrap())
    });
    assert_eq!(received, size, "bytes");
    assert_eq!(hash, sent, "SHA-256");
    gap
}

fn bulk_bytes() -> u64 {
    number("TRANSFER_MIB", 256) << 20
}

/// What this variable of the environment says, or how it is by default.
pub fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
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
        let length = uninterrupted(|| from.read(&mut chunk)).expect("receiving");
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
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn copy(&mut self, size: u64, to: &mut impl Write) -> io::Result<()> {
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
