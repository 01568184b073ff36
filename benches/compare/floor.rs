//! The floor: a process that makes a translator's system calls and nothing else, to know what a GiB costs at least.
//!
//! Up, it takes framed bytes from a UNIX socket and sends the payloads to a TCP socket. Down, it peeks at a TCP socket, sums
//! each segment up, sends header and payload pairs to a UNIX socket and discards what it sent. No flow, no
//! state, no acknowledgement, no timer. With virtqueues there is no UNIX socket: up, it sends from memory, 64 KiB a segment,
//! and tells by an eventfd; down, it peeks into memory, tells and discards, and somebody else reads what it tells of, as a guest
//! does: memory that is always one's own is cheaper to write than any that is shared. It is this program started again, UNIX socket as standard input, TCP as output.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    memfd::{MFdFlags, memfd_create},
};
use passt_rs::wire::checksum::Sum;
use socket2::SockRef;

use crate::{
    cpu, floor_udp,
    lab::Host,
    load::Sample,
    world::{Process, pin_process},
};

/// First argument that makes this program the floor instead of the benchmark.
pub(crate) const ROLE: &str = "floor-process";

/// Bytes per burst.
pub(crate) const BURST: usize = 256 * 1024;

/// Send buffer of the UNIX socket towards the guest; the kernel caps it at `net.core.wmem_max`.
pub(crate) const UNIX_SEND_BUFFER: usize = 1024 * 1024;

/// Length word, Ethernet, IPv4 and TCP header: what stands before each payload on the UNIX socket.
const HEADERS: usize = 4 + 14 + 20 + 20;

/// IPv4 and TCP header, which the MTU counts.
const IN_MTU: usize = 40;

/// Most iovecs of one call (Linux `UIO_MAXIOV`).
pub(crate) const MOST_IOVECS: usize = 1024;

/// Octets of a segment in a virtqueue.
const SEGMENT: usize = 64 * 1024;

/// Octets of all buffers of the queue to the guest: 256 of 4 KiB, as the bench's own driver has them. They are filled in turns,
/// so no translator writes to the same ones again before it has gone through all of them.
const BUFFERS: usize = 1024 * 1024;

/// Told to the reader of buffers at the end.
const OVER: u64 = 1 << 62;

const GIB: f64 = (1u64 << 30) as f64;

/// Run the floor for `up` or down at `mtu`, or without one for virtqueues, on the loopback of `pod`.
pub(crate) fn measure(
    pod: &Host,
    up: bool,
    mtu: Option<u32>,
    congestion: &str,
    pin: Option<usize>,
    warm_up: Duration,
    time: Duration,
) -> io::Result<Sample> {
    let (far, near) = pod.run(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        SockRef::from(&listener).set_tcp_congestion(congestion.as_bytes())?;
        let far = TcpStream::connect(listener.local_addr()?)?;
        SockRef::from(&far).set_tcp_congestion(congestion.as_bytes())?;
        Ok::<_, io::Error>((far, listener.accept()?.0))
    })?;
    let (relay, guest_side) = UnixStream::pair()?;
    // Inherited.
    let shared = File::from(memfd_create("buffers", MFdFlags::empty())?);
    shared.set_len(BUFFERS as u64)?;
    let call = EventFd::from_flags(EfdFlags::empty())?;
    let words = [
        if up { "up" } else { "down" }.to_owned(),
        mtu.unwrap_or(0).to_string(),
        shared.as_raw_fd().to_string(),
        call.as_raw_fd().to_string(),
    ];
    let process = start(&words, guest_side.into(), near.into(), pin)?;
    let arrived = AtomicU64::new(0);
    let sample = thread::scope(|scope| {
        match (up, mtu) {
            (true, Some(mtu)) => {
                let to = &relay;
                scope.spawn(move || write_frames(to, mtu));
                scope.spawn(|| count(&far, &arrived));
            }
            (true, None) => {
                scope.spawn(|| count(&far, &arrived));
            }
            (false, None) => {
                scope.spawn(|| write_counted(&far, &arrived));
                scope.spawn(|| read_buffers(&shared, &call));
            }
            (false, Some(_)) => {
                scope.spawn(|| write_forever(&far, &vec![0x5a; BURST]));
                scope.spawn(|| count(&relay, &arrived));
            }
        }
        let mark = || {
            (
                Instant::now(),
                arrived.load(Relaxed),
                cpu::time_of(process.id()),
            )
        };
        thread::sleep(warm_up);
        let (start, count_before, cpu_before) = mark();
        thread::sleep(time);
        let (end, count_after, cpu_after) = mark();
        let _ = far.shutdown(Shutdown::Both);
        let _ = relay.shutdown(Shutdown::Both);
        let _ = call.write(OVER);
        let mut bytes = (count_after - count_before) as f64;
        if let (false, Some(mtu)) = (up, mtu) {
            // What arrived there are frames.
            let payload = mtu as usize - IN_MTU;
            bytes *= payload as f64 / (payload + HEADERS) as f64;
        }
        Sample {
            rate: bytes * 8e-9 / (end - start).as_secs_f64(),
            cost: (cpu_after - cpu_before).as_secs_f64() * GIB / bytes,
            ..Sample::default()
        }
    });
    Ok(sample)
}

/// Starts this program as the floor, on the CPU `pin`, with the guest's side as standard input and the host's as output.
pub(crate) fn start(
    words: &[impl AsRef<OsStr>],
    guest: OwnedFd,
    host: OwnedFd,
    pin: Option<usize>,
) -> io::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(ROLE)
        .args(words)
        .stdin(Stdio::from(guest))
        .stdout(Stdio::from(host));
    let process = Process(command.spawn()?);
    if let Some(cpu) = pin {
        pin_process(process.id(), |at| at == cpu);
    }
    Ok(process)
}

/// The floor process itself: runs until a socket ends.
pub(crate) fn process(arguments: &[String]) -> io::Result<()> {
    let result = if floor_udp::is_ours(arguments) {
        floor_udp::process(arguments)
    } else {
        carry(arguments)
    };
    // However the benchmark cuts the connection.
    result.or_else(|error| match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused => Ok(()),
        _ => Err(error),
    })
}

fn carry(arguments: &[String]) -> io::Result<()> {
    let [direction, mtu, shared, call] = arguments else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let mtu: usize = mtu.parse().map_err(io::Error::other)?;
    let shared: RawFd = shared.parse().map_err(io::Error::other)?;
    let call: RawFd = call.parse().map_err(io::Error::other)?;
    // SAFETY: these are what the benchmark has put there, and nothing else uses them.
    let (unix, tcp, shared, call) = unsafe {
        (
            UnixStream::from(OwnedFd::from_raw_fd(0)),
            TcpStream::from(OwnedFd::from_raw_fd(1)),
            OwnedFd::from_raw_fd(shared),
            File::from(OwnedFd::from_raw_fd(call)),
        )
    };
    if mtu == 0 && direction == "up" {
        send_memory(&tcp, &call)
    } else if mtu == 0 {
        fill_buffers(&tcp, &shared, &call)
    } else if direction == "up" {
        carry_up(&unix, &tcp)
    } else {
        carry_down(&unix, &tcp, mtu - IN_MTU)
    }
}

/// Frames read from a UNIX socket, and the beginning of one more.
pub(crate) struct Burst {
    octets: Vec<u8>,
    filled: usize,
}

impl Burst {
    pub(crate) fn new() -> Self {
        Self {
            octets: vec![0; BURST],
            filled: 0,
        }
    }

    /// Reads once, and has frames taken from the front: `take` says how many octets it took. `false` at the end.
    pub(crate) fn read(
        &mut self,
        mut unix: &UnixStream,
        take: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        match unix.read(&mut self.octets[self.filled..])? {
            0 => return Ok(false),
            more => self.filled += more,
        }
        let taken = take(&mut self.octets[..self.filled])?;
        self.octets.copy_within(taken..self.filled, 0);
        self.filled -= taken;
        Ok(true)
    }
}

fn carry_up(unix: &UnixStream, tcp: &TcpStream) -> io::Result<()> {
    let mut burst = Burst::new();
    let mut payloads = Vec::with_capacity(MOST_IOVECS);
    while burst.read(unix, |burst| {
        let mut at = 0;
        payloads.clear();
        while let Some((word, _)) = burst[at..].split_first_chunk() {
            let frame = 4 + u32::from_be_bytes(*word) as usize;
            if at + frame > burst.len() || payloads.len() == MOST_IOVECS {
                break;
            }
            payloads.push(vector(&mut burst[at + HEADERS..at + frame]));
            at += frame;
        }
        send_all(tcp.as_raw_fd(), &mut payloads)?;
        Ok(at)
    })? {}
    Ok(())
}

/// From memory to TCP, telling somebody of each burst.
fn send_memory(tcp: &TcpStream, mut call: &File) -> io::Result<()> {
    let mut memory = vec![0x5a_u8; BURST];
    loop {
        let mut segments: Vec<_> = memory.chunks_mut(SEGMENT).map(vector).collect();
        send_all(tcp.as_raw_fd(), &mut segments)?;
        call.write_all(&1_u64.to_ne_bytes())?;
    }
}

/// From TCP to buffers in turns, telling their reader of each burst.
fn fill_buffers(tcp: &TcpStream, shared: &OwnedFd, mut call: &File) -> io::Result<()> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BUFFERS,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            shared.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: inside the mapping, which stays; only the kernel writes there, and nobody looks at it by this reference.
    let memory = unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), BUFFERS) };
    set_peek_offset(tcp)?;
    let mut at = 0;
    loop {
        let end = memory.len().min(at + BURST);
        let peeked = receive(tcp.as_raw_fd(), &mut memory[at..end], libc::MSG_PEEK)?;
        if peeked == 0 {
            return Ok(());
        }
        call.write_all(&(peeked as u64).to_ne_bytes())?;
        receive(
            tcp.as_raw_fd(),
            &mut memory[at..at + peeked],
            libc::MSG_TRUNC,
        )?;
        at = (at + peeked) % BUFFERS;
    }
}

/// Reads what the floor has told of, until it is over; what was filled again meanwhile only once.
fn read_buffers(shared: &File, call: &EventFd) {
    let mut data = vec![0; BUFFERS];
    let mut at = 0;
    while let Ok(told @ ..OVER) = call.read() {
        let told = told as usize;
        at = (at + told.saturating_sub(BUFFERS)) % BUFFERS;
        let mut left = told.min(BUFFERS);
        while left > 0 {
            let len = left.min(BUFFERS - at);
            if shared.read_exact_at(&mut data[..len], at as u64).is_err() {
                return;
            }
            at = (at + len) % BUFFERS;
            left -= len;
        }
    }
}

fn carry_down(unix: &UnixStream, tcp: &TcpStream, segment: usize) -> io::Result<()> {
    set_peek_offset(tcp)?;
    // A burst that blocks half-way costs a change of context, up to half the throughput.
    SockRef::from(unix).set_send_buffer_size(UNIX_SEND_BUFFER)?;
    let mut arena = vec![0_u8; (BURST / segment).max(1) * segment];
    let mut headers = vec![[0_u8; HEADERS]; arena.len() / segment];
    let mut pairs = Vec::with_capacity(2 * headers.len());
    loop {
        let peeked = receive(tcp.as_raw_fd(), &mut arena, libc::MSG_PEEK)?;
        if peeked == 0 {
            return Ok(());
        }
        pairs.clear();
        for (payload, header) in arena[..peeked].chunks_mut(segment).zip(&mut headers) {
            let length = (HEADERS - 4 + payload.len()) as u32;
            header[..4].copy_from_slice(&length.to_be_bytes());
            let checksum = Sum::new().bytes(payload).finish();
            header[HEADERS - 4..HEADERS - 2].copy_from_slice(&checksum.to_be_bytes());
            pairs.push(vector(header));
            pairs.push(vector(payload));
        }
        send_all(unix.as_raw_fd(), &mut pairs)?;
        receive(tcp.as_raw_fd(), &mut arena[..peeked], libc::MSG_TRUNC)?;
    }
}

pub(crate) fn vector(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// Send all of it; the socket blocks, so a call rarely takes less than everything.
pub(crate) fn send_all(socket: RawFd, mut vectors: &mut [libc::iovec]) -> io::Result<()> {
    while !vectors.is_empty() {
        // SAFETY: all bytes zero are a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        let count = vectors.len().min(MOST_IOVECS);
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = count;
        // SAFETY: the iovecs point into buffers of the caller, which are neither moved nor freed meanwhile.
        let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) };
        let mut sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        let whole = vectors.iter().take_while(|vector| {
            let fits = vector.iov_len <= sent;
            sent -= if fits { vector.iov_len } else { 0 };
            fits
        });
        let whole = whole.count();
        vectors = &mut vectors[whole..];
        if let Some(first) = vectors.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(sent);
            first.iov_len -= sent;
        }
    }
    Ok(())
}

/// Fills a socket at whose other end nobody counts.
fn write_counted(mut to: &TcpStream, arrived: &AtomicU64) {
    let data = vec![0x5a; BURST];
    while let Ok(octets) = to.write(&data) {
        arrived.fetch_add(octets as u64, Relaxed);
    }
}

fn receive(socket: RawFd, into: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the buffer is as long as the call is told.
    let length = unsafe { libc::recv(socket, into.as_mut_ptr().cast(), into.len(), flags) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Let `MSG_PEEK` go on where the last peek ended (socket(7), `SO_PEEK_OFF`).
fn set_peek_offset(tcp: &TcpStream) -> io::Result<()> {
    set_option(tcp.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)
}

/// An option that is an int (setsockopt(2)).
pub(crate) fn set_option(
    socket: RawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option takes an int, whose size is told.
    let result = unsafe {
        libc::setsockopt(
            socket,
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn write_frames(mut to: &UnixStream, mtu: u32) {
    let frame = mtu as usize + 14;
    let mut framed = (frame as u32).to_be_bytes().to_vec();
    framed.resize(4 + frame, 0x5a);
    let burst = framed.repeat(BURST.div_ceil(framed.len()));
    while to.write_all(&burst).is_ok() {}
}

fn write_forever(mut to: &TcpStream, data: &[u8]) {
    while to.write_all(data).is_ok() {}
}

fn count(from: &impl AsRawFd, arrived: &AtomicU64) {
    let mut data = vec![0; 2 * BURST];
    while let Ok(length @ 1..) = receive(from.as_raw_fd(), &mut data, 0) {
        arrived.fetch_add(length as u64, Relaxed);
    }
}
