//! Behaviours of the Linux kernel that the data path rests on. Should one of these fail, the code that names it is wrong
//! on that kernel, whatever the other tests say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::{
    io::{self, ErrorKind, Read, Write},
    mem::{MaybeUninit, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    ptr,
    time::Duration,
};

use lab::{
    LONG, QUIET, World, uninterrupted, wait_until,
    world::{GATEWAY4, PROHIBITED4, PROHIBITED6, UNREACHABLE4, UNREACHABLE6},
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Two connected TCP sockets: the one that connected, and the other.
fn tcp_pair(addr: IpAddr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((addr, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
    }
    (near, far)
}

fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = u32::try_from(size_of::<i32>()).unwrap();
    // SAFETY: the kernel reads `len` octets at the address of `value`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `SO_MEMINFO` (socket(7)); indices are those of sock_diag(7).
fn meminfo(socket: &impl AsRawFd) -> [u32; 9] {
    let mut info = [0_u32; 9];
    let mut len = u32::try_from(size_of_val(&info)).unwrap();
    // SAFETY: the kernel writes at most `len` octets to `info`, which is that large.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    info
}

const SNDBUF: usize = 3;
const WMEM_QUEUED: usize = 5;

fn receive(socket: &impl AsFd, len: usize, flags: i32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![MaybeUninit::uninit(); len];
    let got = SockRef::from(socket).recv_with_flags(&mut bytes, flags)?;
    // SAFETY: the kernel has written the first `got` octets; with MSG_TRUNC on TCP this function is not used.
    Ok(bytes[..got]
        .iter()
        .map(|b| unsafe { b.assume_init() })
        .collect())
}

/// Takes octets out of the receive queue without copying them.
fn discard(stream: &TcpStream, len: usize) -> usize {
    // SAFETY: with MSG_TRUNC a TCP socket writes nothing to the buffer, which may therefore be null (tcp(7)).
    let got = unsafe { libc::recv(stream.as_raw_fd(), ptr::null_mut(), len, libc::MSG_TRUNC) };
    usize::try_from(got).unwrap_or_else(|_| panic!("{}", io::Error::last_os_error()))
}

/// Since Linux 6.9 (IPv4) and 6.11 (IPv6); older ones refuse the option, and we do without.
#[test]
fn a_peek_offset_goes_forward_with_peeks_and_back_with_reads() {
    for addr in LOOPBACKS {
        let (mut near, far) = tcp_pair(addr);
        if let Err(e) = set_option(&far, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0) {
            assert_eq!(e.raw_os_error(), Some(libc::EOPNOTSUPP));
            println!("skipped: no SO_PEEK_OFF for {addr} before Linux 6.9 or 6.11");
            continue;
        }
        near.write_all(b"0123456789").unwrap();
        let peek = |len| receive(&far, len, libc::MSG_PEEK).unwrap();
        assert_eq!(peek(4), b"0123");
        assert_eq!(peek(2), b"45");
        // Four of the six octets peeked are taken: the offset is now two, in front of the same octet as before.
        assert_eq!(discard(&far, 4), 4);
        assert_eq!(peek(2), b"67");
        assert_eq!(peek(9), b"89");
        far.set_nonblocking(true).unwrap();
        let error = receive(&far, 1, libc::MSG_PEEK).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // Back to the first octet that was not taken, as for sending again.
        set_option(&far, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).unwrap();
        assert_eq!(peek(9), b"456789");
        assert_eq!(discard(&far, 99), 6);
        near.write_all(b"ab").unwrap();
        far.set_nonblocking(false).unwrap();
        assert_eq!(peek(9), b"ab");
        // The end of the stream is seen behind the last octet, however far the offset.
        drop(near);
        assert_eq!(peek(9), b"");
        assert_eq!(discard(&far, 2), 2);
    }
}

/// So it is set when there is something to step over for the first time.
#[test]
fn a_peek_offset_may_be_set_behind_what_was_peeked_without_one() {
    for addr in LOOPBACKS {
        let (mut near, far) = tcp_pair(addr);
        near.write_all(b"0123456789").unwrap();
        let peek = |len| receive(&far, len, libc::MSG_PEEK).unwrap();
        assert_eq!((peek(4), peek(4)), (b"0123".to_vec(), b"0123".to_vec()));
        if let Err(e) = set_option(&far, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 4) {
            assert_eq!(e.raw_os_error(), Some(libc::EOPNOTSUPP));
            println!("skipped: no SO_PEEK_OFF for {addr} before Linux 6.9 or 6.11");
            continue;
        }
        assert_eq!((peek(4), peek(4)), (b"4567".to_vec(), b"89".to_vec()));
    }
}

#[test]
fn msg_trunc_takes_octets_without_copying_them() {
    for addr in LOOPBACKS {
        let (mut near, mut far) = tcp_pair(addr);
        near.write_all(b"0123456789").unwrap();
        assert_eq!(discard(&far, 5), 5);
        let mut rest = [0; 5];
        far.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"56789");
    }
}

#[test]
fn meminfo_tells_what_is_queued_and_what_may_be() {
    let (mut near, mut far) = tcp_pair(LOOPBACKS[0]);
    let before = meminfo(&near);
    assert_eq!(before[WMEM_QUEUED], 0);
    assert!(before[SNDBUF] > 0);
    // More than the receiver takes unread, so that something stays queued.
    near.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(n) = near.write(&[7; 1 << 16]) {
        written += n;
    }
    let full = meminfo(&near);
    assert!(full[WMEM_QUEUED] > 0 && full[SNDBUF] >= before[SNDBUF]);
    let mut bytes = vec![0; written];
    far.read_exact(&mut bytes).unwrap();
    assert!(wait_until(LONG, || meminfo(&near)[WMEM_QUEUED] == 0));
}

/// An edge-triggered watch on one socket.
struct Watch<'a> {
    epoll: Epoll,
    stream: &'a TcpStream,
    flags: EpollFlags,
}

impl<'a> Watch<'a> {
    fn new(stream: &'a TcpStream, flags: EpollFlags) -> Self {
        let flags = flags | EpollFlags::EPOLLET;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(stream, EpollEvent::new(flags, 1)).unwrap();
        Self {
            epoll,
            stream,
            flags,
        }
    }

    /// What has happened, if anything does in time.
    fn event(&self, patience: Duration) -> Option<EpollFlags> {
        let timeout = EpollTimeout::try_from(patience).unwrap();
        let mut events = [EpollEvent::empty()];
        let count = uninterrupted(|| Ok(self.epoll.wait(&mut events, timeout)?)).unwrap();
        (count == 1).then(|| events[0].events())
    }

    fn arm_again(&self) {
        let mut event = EpollEvent::new(self.flags, 1);
        self.epoll.modify(self.stream, &mut event).unwrap();
    }
}

#[test]
fn an_edge_comes_again_when_it_is_armed_again() {
    let (mut near, far) = tcp_pair(LOOPBACKS[0]);
    let watch = Watch::new(&far, EpollFlags::EPOLLIN);
    near.write_all(b"data").unwrap();
    assert_eq!(watch.event(LONG), Some(EpollFlags::EPOLLIN));
    assert_eq!(watch.event(QUIET), None, "one edge, one event");
    watch.arm_again();
    assert_eq!(watch.event(LONG), Some(EpollFlags::EPOLLIN));
}

/// Octets free in the send buffer, and its size, as the kernel counts.
fn send_space(stream: &TcpStream) -> (u32, u32) {
    let info = meminfo(stream);
    (info[SNDBUF].saturating_sub(info[WMEM_QUEUED]), info[SNDBUF])
}

/// Two sockets of which the second takes little, so that most of what is written stays queued in the first.
fn narrow_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((LOOPBACKS[0], 0)).unwrap();
    // Inherited by what is accepted.
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(LONG)).unwrap();
    (near, far)
}

/// Reads until `stream` has nothing queued.
fn drain(near: &TcpStream, far: &mut TcpStream) {
    let mut bytes = [0; 1 << 16];
    let empty = wait_until(LONG, || {
        far.set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        while let Ok(1..) = uninterrupted(|| far.read(&mut bytes)) {}
        meminfo(near)[WMEM_QUEUED] == 0
    });
    assert!(empty);
}

/// Writability is not told to whom never asked for more than there was: no flag SOCK_NOSPACE, no EPOLLOUT, and no growth
/// of the buffer. Therefore a flow asks again (EPOLL_CTL_MOD) when less than a third is free.
#[test]
fn writability_is_told_after_a_third_was_left_and_it_was_asked_for() {
    for ask in [false, true] {
        let (mut near, mut far) = narrow_pair();
        let watcher = near.try_clone().unwrap();
        let watch = Watch::new(&watcher, EpollFlags::EPOLLOUT);
        assert_eq!(watch.event(LONG), Some(EpollFlags::EPOLLOUT));
        // Never more than there is room for: EAGAIN does not occur.
        loop {
            let (free, size) = send_space(&near);
            if free < size / 4 {
                break;
            }
            assert_eq!(near.write(&[7; 4096]).unwrap(), 4096);
        }
        assert_eq!(watch.event(QUIET), None);
        if ask {
            watch.arm_again();
            assert_eq!(watch.event(QUIET), None, "not writable with so little free");
        }
        drain(&near, &mut far);
        let told = if ask {
            watch.event(LONG)
        } else {
            watch.event(QUIET)
        };
        assert_eq!(told, ask.then_some(EpollFlags::EPOLLOUT));
    }
}

#[test]
fn writability_is_told_after_eagain() {
    let (mut near, mut far) = narrow_pair();
    let watcher = near.try_clone().unwrap();
    let watch = Watch::new(&watcher, EpollFlags::EPOLLOUT);
    assert_eq!(watch.event(LONG), Some(EpollFlags::EPOLLOUT));
    while near.write(&[7; 4096]).is_ok() {}
    assert_eq!(watch.event(QUIET), None);
    drain(&near, &mut far);
    assert_eq!(watch.event(LONG), Some(EpollFlags::EPOLLOUT));
}

#[test]
fn the_send_buffer_only_grows() {
    let (mut near, mut far) = tcp_pair(LOOPBACKS[0]);
    near.set_nonblocking(true).unwrap();
    let mut size = 0;
    for _ in 0..20 {
        while near.write(&[7; 1 << 16]).is_ok() {}
        let now = meminfo(&near)[SNDBUF];
        assert!(now >= size, "{now} after {size}");
        size = now;
        drain(&near, &mut far);
        assert!(meminfo(&near)[SNDBUF] >= size);
    }
}

/// What the error queue says (ip(7), `struct sock_extended_err`).
#[derive(Debug, PartialEq, Eq)]
struct Told {
    errno: i32,
    origin: u8,
    kind: u8,
    code: u8,
    offender: Option<IpAddr>,
    payload: Vec<u8>,
}

/// Takes the next message off the error queue.
fn error_queue(socket: &impl AsRawFd) -> io::Result<Told> {
    let mut payload = [0_u8; 256];
    let mut control = [0_u64; 64];
    let mut part = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: `message` names `payload` and `control` with their true lengths; both outlive the call.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled `control` and said how far; the macros stay within that.
    let head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    assert!(!head.is_null());
    // SAFETY: `head` points to a whole control message within `control`.
    let (level, kind, data) =
        unsafe { ((*head).cmsg_level, (*head).cmsg_type, libc::CMSG_DATA(head)) };
    assert!(
        [
            (libc::SOL_IP, libc::IP_RECVERR),
            (libc::SOL_IPV6, libc::IPV6_RECVERR)
        ]
        .contains(&(level, kind))
    );
    // SAFETY: such a message holds a `sock_extended_err`, with the offender's address behind it.
    let (error, offender) = unsafe {
        let error = ptr::read_unaligned(data.cast::<libc::sock_extended_err>());
        let addr = data.add(size_of::<libc::sock_extended_err>());
        let offender = match i32::from(ptr::read_unaligned(addr.cast::<libc::sa_family_t>())) {
            libc::AF_INET => {
                let addr = ptr::read_unaligned(addr.cast::<libc::sockaddr_in>());
                Some(Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let addr = ptr::read_unaligned(addr.cast::<libc::sockaddr_in6>());
                Some(Ipv6Addr::from(addr.sin6_addr.s6_addr).into())
            }
            _ => None,
        };
        (error, offender)
    };
    Ok(Told {
        errno: i32::try_from(error.ee_errno).unwrap(),
        origin: error.ee_origin,
        kind: error.ee_type,
        code: error.ee_code,
        offender,
        payload: payload[..len].to_vec(),
    })
}

fn wait_for_error(socket: &impl AsRawFd) -> Told {
    let mut told = None;
    wait_until(LONG, || {
        told = error_queue(socket).ok();
        told.is_some()
    });
    told.expect("something in the error queue")
}

fn want_errors(socket: &impl AsRawFd, v4: bool) {
    let (level, name) = if v4 {
        (libc::SOL_IP, libc::IP_RECVERR)
    } else {
        (libc::SOL_IPV6, libc::IPV6_RECVERR)
    };
    set_option(socket, level, name, 1).unwrap();
}

const FROM_ICMP: u8 = 2;
const FROM_ICMP6: u8 = 3;

/// A connect() that fails by an ICMP error says which, so that the guest can be told the same.
#[test]
fn a_failed_tcp_connect_leaves_the_icmp_error_in_the_queue() {
    let Some(world) = World::pod() else { return };
    for (addr, errno, origin, kind, code) in [
        (
            IpAddr::from(UNREACHABLE4),
            libc::EHOSTUNREACH,
            FROM_ICMP,
            3,
            1,
        ),
        (PROHIBITED4.into(), libc::EHOSTUNREACH, FROM_ICMP, 3, 13),
        (UNREACHABLE6.into(), libc::ENETUNREACH, FROM_ICMP6, 1, 0),
        (PROHIBITED6.into(), libc::EACCES, FROM_ICMP6, 1, 1),
    ] {
        let remote = SocketAddr::new(addr, 80);
        let socket = world.pod.run(|| {
            let socket = Socket::new(Domain::for_address(remote), Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            want_errors(&socket, addr.is_ipv4());
            let _ = socket.connect(&remote.into());
            socket
        });
        // First, as reading the queue clears it.
        let mut failed = None;
        wait_until(LONG, || {
            failed = socket.take_error().unwrap().and_then(|e| e.raw_os_error());
            failed.is_some()
        });
        assert_eq!(failed, Some(errno), "{addr}");
        let told = wait_for_error(&socket);
        assert_eq!(
            (told.errno, told.origin, told.kind, told.code),
            (errno, origin, kind, code),
            "{addr}"
        );
        if addr.is_ipv4() {
            assert_eq!(told.offender, Some(GATEWAY4.into()));
        }
    }
}

/// Refused is no ICMP error: nothing in the queue but ECONNREFUSED on the socket.
#[test]
fn a_refused_tcp_connect_leaves_the_queue_empty() {
    let Some(world) = World::pod() else { return };
    let socket = world.pod.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        want_errors(&socket, true);
        let _ = socket.connect(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))));
        socket
    });
    let mut error = None;
    wait_until(LONG, || {
        error = socket.take_error().unwrap();
        error.is_some()
    });
    assert_eq!(error.unwrap().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(
        error_queue(&socket).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

/// The queue holds the datagram that failed, whole as far as it was quoted, and the offender.
#[test]
fn a_refused_datagram_comes_back_in_the_error_queue() {
    for (addr, origin, kind, code) in [
        (LOOPBACKS[0], FROM_ICMP, 3, 3),
        (LOOPBACKS[1], FROM_ICMP6, 1, 4),
    ] {
        let closed = UdpSocket::bind((addr, 0)).unwrap().local_addr().unwrap();
        let socket = UdpSocket::bind((addr, 0)).unwrap();
        socket.connect(closed).unwrap();
        // A child that another test has just started may hold it open for a moment.
        assert!(wait_until(LONG, || {
            let _ = socket.send(b"still there?");
            socket.take_error().unwrap().is_some()
        }));
        want_errors(&socket, addr.is_ipv4());
        socket.send(b"anybody there?").unwrap();
        let told = wait_for_error(&socket);
        let want = Told {
            errno: libc::ECONNREFUSED,
            origin,
            kind,
            code,
            offender: Some(addr),
            payload: b"anybody there?".to_vec(),
        };
        assert_eq!(told, want);
    }
}

#[test]
fn a_socket_connected_to_port_0_hears_its_peer_whatever_port_that_sends_from() {
    for addr in LOOPBACKS {
        let [asked, other] = [(); 2].map(|()| UdpSocket::bind((addr, 0)).unwrap());
        let connected = |port, to: SocketAddr| {
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::new(addr, port).into()).unwrap();
            socket.connect(&to.into()).unwrap();
            socket.set_read_timeout(Some(LONG)).unwrap();
            UdpSocket::from(socket)
        };
        let asking = connected(0, asked.local_addr().unwrap());
        let local = asking.local_addr().unwrap();
        let hearing = connected(local.port(), (addr, 0).into());
        for (from, to) in [(&other, hearing), (&asked, asking)] {
            from.send_to(b"hello", local).unwrap();
            assert_eq!(to.recv(&mut [0; 9]).unwrap(), 5);
        }
    }
}

#[test]
fn empty_datagrams_arrive() {
    for addr in LOOPBACKS {
        let server = UdpSocket::bind((addr, 0)).unwrap();
        server.set_read_timeout(Some(LONG)).unwrap();
        let client = UdpSocket::bind((addr, 0)).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        for data in [&b""[..], b"x", b""] {
            assert_eq!(client.send(data).unwrap(), data.len());
        }
        for len in [0, 1, 0] {
            assert_eq!(uninterrupted(|| server.recv(&mut [0; 9])).unwrap(), len);
        }
    }
}

/// A ping socket's identifier is its "port", whatever the request says; sequence number and data are kept.
#[test]
fn ping_sockets_write_their_own_identifier() {
    let Some(world) = World::pod() else { return };
    for (addr, protocol, request, reply) in [
        (LOOPBACKS[0], Protocol::ICMPV4, 8, 0),
        (LOOPBACKS[1], Protocol::ICMPV6, 128, 129),
    ] {
        let remote = SocketAddr::new(addr, 0);
        let socket = world.pod.run(|| {
            let domain = Domain::for_address(remote);
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).unwrap();
            socket.connect(&remote.into()).unwrap();
            socket
        });
        socket.set_read_timeout(Some(LONG)).unwrap();
        let ident = socket.local_addr().unwrap().as_socket().unwrap().port();
        let foreign = (!ident).to_be_bytes();
        socket
            .send(&[
                request, 0, 0, 0, foreign[0], foreign[1], 0x12, 0x34, b'h', b'i',
            ])
            .unwrap();
        let got = receive(&socket, 99, 0).unwrap();
        assert_eq!(got[..2], [reply, 0]);
        assert_eq!(got[4..6], ident.to_be_bytes());
        assert_eq!(got[6..], [0x12, 0x34, b'h', b'i']);
    }
}

#[test]
fn ping_sockets_can_be_forbidden() {
    let Some(world) = World::pod_without_ping() else {
        return;
    };
    for (domain, protocol) in [
        (Domain::IPV4, Protocol::ICMPV4),
        (Domain::IPV6, Protocol::ICMPV6),
    ] {
        let error = world
            .pod
            .run(|| Socket::new(domain, Type::DGRAM, Some(protocol)).unwrap_err());
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}

#[test]
fn one_send_becomes_many_datagrams_of_equal_length() {
    for addr in LOOPBACKS {
        let server = UdpSocket::bind((addr, 0)).unwrap();
        server.set_read_timeout(Some(LONG)).unwrap();
        let client = UdpSocket::bind((addr, 0)).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        set_option(&client, libc::SOL_UDP, libc::UDP_SEGMENT, 100).unwrap();
        let data: Vec<u8> = (0..=255).cycle().take(1050).collect();
        assert_eq!(client.send(&data).unwrap(), 1050);
        let mut got = [0; 2000];
        for part in data.chunks(100) {
            let len = uninterrupted(|| server.recv(&mut got)).unwrap();
            assert_eq!(&got[..len], part);
        }
    }
}
