//! The floor of datagrams: a process that makes a translator's system calls for one flow and nothing else.
//!
//! Down, it takes as many datagrams as there are by one call, each with its TTL and TOS, sums them up, and sends them as frames
//! by one call. Up, it takes framed bytes and sends the payloads as messages that the kernel cuts (UDP_SEGMENT). It stands where
//! a translator does: behind it is a guest like theirs, and the same flood. It never looks into a frame, looks nothing up, and
//! waits in the call that reads; only where it goes both ways it has to ask first which (epoll_wait(2)), as a translator does.

use std::{
    array,
    io::{self, ErrorKind},
    mem,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    ptr,
    time::Duration,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use passt_rs::wire::checksum::Sum;
use socket2::SockRef;

use crate::{
    floor::{Burst, MOST_IOVECS, UNIX_SEND_BUFFER, send_all, set_option, start, vector},
    kernel_guest::{KernelGuest, MAC},
    lab::world::{GATEWAY4, POD4},
    load::{Sample, Workload},
    world::{LOCAL4, World},
};

/// Length word, Ethernet, IPv4 and UDP header: what stands before each payload on the UNIX socket.
const HEADERS: usize = 4 + 14 + 20 + 8;

/// Datagrams of one call, the room for each, and for its ancillary data.
const MANY: usize = 64;
const ROOM: usize = 2048;
const CONTROL: usize = 64;

/// The most octets of one message, and datagrams (UDP_MAX_SEGMENTS of older kernels).
const MESSAGE: usize = 65_507;
const SEGMENTS: usize = 64;

/// Who the guest believes its router to be.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Run the floor for datagrams; `None` for other workloads, or where there can be no guest. `run` does it between the
/// sockets of a guest and its server, over this process.
pub(crate) fn measure(
    world: &World,
    workload: Workload,
    mtu: u32,
    pin: Option<usize>,
    run: impl FnOnce(&KernelGuest, u32, [&UdpSocket; 2]) -> io::Result<Sample>,
) -> Option<io::Result<Sample>> {
    let direction = match workload {
        Workload::UdpUp | Workload::UdpUp64 => "udp-up",
        Workload::UdpDown | Workload::UdpDown64 => "udp-down",
        Workload::UdpRr => "udp-both",
        _ => return None,
    };
    let (ours, theirs) = UnixStream::pair().ok()?;
    let guest = KernelGuest::plug_into(theirs, mtu)?;
    guest.number();
    let router = ROUTER.map(|octet| format!("{octet:02x}")).join(":");
    let neighbour = format!("neigh replace {GATEWAY4} lladdr {router} dev eth0 nud permanent");
    guest.host().ip(&neighbour);
    let carry = || {
        let local = (Ipv4Addr::LOCALHOST, 0);
        let (server, floor) = world.hosts.pod.run(|| {
            let pair = (UdpSocket::bind(local)?, UdpSocket::bind(local)?);
            pair.0.connect(pair.1.local_addr()?)?;
            pair.1.connect(pair.0.local_addr()?)?;
            Ok::<_, io::Error>(pair)
        })?;
        let port = server.local_addr()?.port();
        let inside = guest.host().run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect((LOCAL4, port))?;
            Ok::<_, io::Error>(socket)
        })?;
        for socket in [&server, &inside] {
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        }
        let ports = [port, inside.local_addr()?.port()].map(|port| port.to_string());
        let words = [direction, &ports[0], &ports[1]];
        let process = start(&words, ours.into(), floor.into(), pin)?;
        run(&guest, process.id(), [&inside, &server])
    };
    Some(carry())
}

/// Whether a floor's process is one of these.
pub(crate) fn is_ours(arguments: &[String]) -> bool {
    arguments
        .first()
        .is_some_and(|word| word.starts_with("udp-"))
}

/// The process itself: runs until a socket ends.
pub(crate) fn process(arguments: &[String]) -> io::Result<()> {
    let [direction, from, to] = arguments else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let ports = [from, to].map(|port| port.parse().unwrap_or(0));
    // SAFETY: standard input and output are the sockets the benchmark put there, and nothing else uses them.
    let (unix, udp) = unsafe {
        (
            UnixStream::from(OwnedFd::from_raw_fd(0)),
            UdpSocket::from(OwnedFd::from_raw_fd(1)),
        )
    };
    SockRef::from(&unix).set_send_buffer_size(UNIX_SEND_BUFFER)?;
    for option in [libc::IP_RECVTTL, libc::IP_RECVTOS] {
        set_option(udp.as_raw_fd(), libc::SOL_IP, option, 1)?;
    }
    let (mut up, mut down) = (Up::new(), Down::new(&header(ports)));
    match direction.as_str() {
        "udp-up" => while up.carry(&unix, &udp)? {},
        "udp-down" => loop {
            down.carry(&unix, &udp)?;
        },
        _ => carry_both(&unix, &udp, &mut up, &mut down)?,
    }
    Ok(())
}

/// Whatever has something.
fn carry_both(unix: &UnixStream, udp: &UdpSocket, up: &mut Up, down: &mut Down) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(unix, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    epoll.add(udp, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    let mut events = [EpollEvent::empty(); 2];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..count] {
            if event.data() == 1 {
                down.carry(unix, udp)?;
            } else if !up.carry(unix, udp)? {
                return Ok(());
            }
        }
    }
}

/// The headers of a frame from server to guest, but for lengths and checksums.
fn header(ports: [u16; 2]) -> [u8; HEADERS] {
    let mut header = [0; HEADERS];
    for (octet, digits) in header[4..10].iter_mut().zip(MAC.split(':')) {
        *octet = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    header[10..16].copy_from_slice(&ROUTER);
    header[16..20].copy_from_slice(&[8, 0, 0x45, 0]);
    (header[26], header[27]) = (64, 17);
    header[30..34].copy_from_slice(&LOCAL4.octets());
    header[34..38].copy_from_slice(&POD4.octets());
    header[38..42].copy_from_slice(ports.map(u16::to_be_bytes).as_flattened());
    header
}

/// Writes what differs from frame to frame.
fn stamp(header: &mut [u8; HEADERS], ttl: u8, tos: u8, payload: &[u8]) {
    let len = 8 + payload.len();
    header[..4].copy_from_slice(&((HEADERS - 12 + len) as u32).to_be_bytes());
    (header[19], header[26]) = (tos, ttl);
    header[20..22].copy_from_slice(&((20 + len) as u16).to_be_bytes());
    header[28..30].fill(0);
    let sum = Sum::new().bytes(&header[18..38]).finish();
    header[28..30].copy_from_slice(&sum.to_be_bytes());
    header[42..44].copy_from_slice(&(len as u16).to_be_bytes());
    header[44..46].fill(0);
    let pseudo = Sum::pseudo(LOCAL4.into(), POD4.into(), 17, len);
    let ports = Sum::new().bytes(&header[38..46]);
    let sum = pseudo.plus(ports).plus(Sum::new().bytes(payload)).finish();
    header[44..46].copy_from_slice(&sum.to_be_bytes());
}

/// Where datagrams for the guest are received, and their frames.
struct Down {
    rooms: Vec<[u8; ROOM]>,
    controls: Vec<[u64; CONTROL / 8]>,
    headers: Vec<[u8; HEADERS]>,
    pairs: Vec<libc::iovec>,
}

impl Down {
    fn new(header: &[u8; HEADERS]) -> Self {
        Self {
            rooms: vec![[0; ROOM]; MANY],
            controls: vec![[0; CONTROL / 8]; MANY],
            headers: vec![*header; MANY],
            pairs: Vec::with_capacity(2 * MANY),
        }
    }

    /// What there is, or what comes next.
    fn carry(&mut self, unix: &UnixStream, udp: &UdpSocket) -> io::Result<()> {
        let Self {
            rooms,
            controls,
            headers,
            pairs,
        } = self;
        // SAFETY: all bytes zero are a valid mmsghdr.
        let mut messages: [libc::mmsghdr; MANY] = unsafe { mem::zeroed() };
        let mut vectors: [_; MANY] = array::from_fn(|at| vector(&mut rooms[at]));
        for ((message, vector), control) in messages.iter_mut().zip(&mut vectors).zip(controls) {
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: each message lists one room and one control buffer with their lengths; nothing else touches them meanwhile.
        let count = unsafe {
            libc::recvmmsg(
                udp.as_raw_fd(),
                messages.as_mut_ptr(),
                MANY as _,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        pairs.clear();
        for (at, message) in messages.iter().enumerate().take(count) {
            let payload = &mut rooms[at][..message.msg_len as usize];
            let (ttl, tos) = marks(&message.msg_hdr);
            stamp(&mut headers[at], ttl, tos, payload);
            pairs.push(vector(&mut headers[at]));
            pairs.push(vector(payload));
        }
        send_all(unix.as_raw_fd(), pairs)
    }
}

/// TTL and TOS of a message.
fn marks(message: &libc::msghdr) -> (u8, u8) {
    let (mut ttl, mut tos) = (64, 0);
    // SAFETY: the kernel has written the message's control buffer as cmsg(3) has it, and its length; both kinds hold an octet
    // at least.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(message);
        while let Some(known) = part.as_ref() {
            match known.cmsg_type {
                libc::IP_TTL => ttl = *libc::CMSG_DATA(part),
                libc::IP_TOS => tos = *libc::CMSG_DATA(part),
                _ => {}
            }
            part = libc::CMSG_NXTHDR(message, part);
        }
    }
    (ttl, tos)
}

/// Where frames of the guest are read.
struct Up {
    burst: Burst,
    payloads: Vec<libc::iovec>,
}

impl Up {
    fn new() -> Self {
        Self {
            burst: Burst::new(),
            payloads: Vec::with_capacity(MOST_IOVECS),
        }
    }

    /// What there is, or what comes next; `false` at the end.
    fn carry(&mut self, unix: &UnixStream, udp: &UdpSocket) -> io::Result<bool> {
        let payloads = &mut self.payloads;
        self.burst.read(unix, |burst| {
            let (mut at, mut size) = (0, 0);
            payloads.clear();
            while let Some((word, _)) = burst[at..].split_first_chunk() {
                let frame = 4 + u32::from_be_bytes(*word) as usize;
                if at + frame > burst.len() {
                    break;
                }
                // Of what is no datagram of the flood, as of neighbour discovery, there is little.
                if frame > HEADERS && burst[at + 18] == 0x45 {
                    let len = frame - HEADERS;
                    let full = payloads.len() >= SEGMENTS.min(MESSAGE / len);
                    if full || len != size {
                        send_segments(udp.as_raw_fd(), payloads, size)?;
                        size = len;
                    }
                    payloads.push(vector(&mut burst[at + HEADERS..at + frame]));
                }
                at += frame;
            }
            send_segments(udp.as_raw_fd(), payloads, size)?;
            Ok(at)
        })
    }
}

/// Sends payloads of one size as one message, and forgets them.
fn send_segments(udp: RawFd, payloads: &mut Vec<libc::iovec>, size: usize) -> io::Result<()> {
    if payloads.is_empty() {
        return Ok(());
    }
    let mut control = [0_u64; CONTROL / 8];
    // SAFETY: all bytes zero are a valid msghdr; the control buffer is aligned, and larger than the one message written there.
    let sent = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = payloads.as_mut_ptr();
        message.msg_iovlen = payloads.len();
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(2) as _;
        let part = libc::CMSG_FIRSTHDR(&raw const message);
        (*part).cmsg_level = libc::SOL_UDP;
        (*part).cmsg_type = libc::UDP_SEGMENT;
        (*part).cmsg_len = libc::CMSG_LEN(2) as _;
        libc::CMSG_DATA(part)
            .cast::<u16>()
            .write_unaligned(size as u16);
        libc::sendmsg(udp, &raw const message, libc::MSG_NOSIGNAL)
    };
    payloads.clear();
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
