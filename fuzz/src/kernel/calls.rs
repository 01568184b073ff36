//! The calls of the C library.

use libc::{c_int, c_uint, c_void, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};

use super::{
    sockets::{BASE, Kernel, Kind, Waiting, die, fail, is_ours, judge, on, outcome, with},
    transfer::{Control, mark, pieces, receive_from, send_into, take_error},
};

/// Where a peer sends from that is heard whatever port that is.
const ANY_PORT: u16 = 2069;

macro_rules! real {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are handed on as the caller gave them.
        unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

#[unsafe(no_mangle)]
extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if !matches!(domain, libc::AF_INET | libc::AF_INET6) {
        return real!(SYS_socket, domain, kind, protocol) as c_int;
    }
    let errors = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EACCES,
        libc::EAFNOSUPPORT,
    ];
    outcome(judge(&errors).map(|()| {
        let kind = match (kind & 0xf, protocol) {
            (libc::SOCK_STREAM, _) => Kind::Tcp,
            (_, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => Kind::Echo,
            _ => Kind::Udp,
        };
        with(|kernel| kernel.add(kind, domain == libc::AF_INET6))
    }))
}

#[unsafe(no_mangle)]
extern "C" fn close(fd: c_int) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_close, fd) as c_int;
    }
    with(|kernel| {
        let slot = (fd - BASE) as usize;
        if kernel
            .sockets
            .get_mut(slot)
            .and_then(Option::take)
            .is_none()
        {
            die("a descriptor is closed twice");
        }
    });
    0
}

#[unsafe(no_mangle)]
extern "C" fn bind(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_bind, fd, name, len) as c_int;
    }
    on(fd, |_| ());
    outcome(judge(&[libc::EADDRINUSE, libc::EADDRNOTAVAIL, libc::EACCES]).map(|()| 0))
}

#[unsafe(no_mangle)]
extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_listen, fd, backlog) as c_int;
    }
    on(fd, |socket| socket.kind = Kind::Listener);
    0
}

/// # Safety
/// As connect(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_connect, fd, name, len) as c_int;
    }
    on(fd, |socket| {
        // SAFETY: `name` points to `len` octets (connect(2)).
        let name = unsafe { std::slice::from_raw_parts(name.cast::<u8>(), len as usize) };
        let len = name.len().min(28);
        socket.peer[..len].copy_from_slice(&name[..len]);
    });
    let tcp = on(fd, |socket| socket.kind == Kind::Tcp);
    let errors = [
        libc::ENETUNREACH,
        libc::EACCES,
        libc::EADDRNOTAVAIL,
        libc::ECONNREFUSED,
        libc::EPERM,
        libc::EAGAIN,
    ];
    outcome(judge(&errors).and_then(|()| {
        let odd = with(|kernel| kernel.script.pop()).is_some_and(|octet| octet & 1 == 1);
        if !tcp {
            on(fd, |socket| {
                socket.kind == Kind::Udp && odd && socket.hear_strays()
            });
            return Ok(0);
        }
        if odd {
            return Ok(0);
        }
        on(fd, |socket| socket.connecting = true);
        Err(libc::EINPROGRESS)
    }))
}

/// # Safety
/// As accept4(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn accept4(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_accept4, fd, name, len, flags) as c_int;
    }
    let errors = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ECONNABORTED,
        libc::EPERM,
    ];
    let taken = judge(&errors)
        .and_then(|()| on(fd, |socket| socket.waiting.pop_front()).ok_or(libc::EAGAIN));
    outcome(taken.map(|Waiting { port, .. }| {
        with(|kernel| {
            let listener = kernel.socket(fd);
            let (v6, peer) = listener.map_or((false, [0; 28]), |l| (l.v6, l.name(port)));
            let new = kernel.add(Kind::Tcp, v6);
            if let Some(socket) = kernel.socket(new) {
                socket.peer = peer;
                // SAFETY: both are null or lent by the caller for the answer.
                unsafe { give_name(socket.peer, socket.name_len(), name, len) };
            }
            new
        })
    }))
}

/// # Safety
/// `to` must have room for `*len` octets, unless it is null.
unsafe fn give_name(name: [u8; 28], name_len: socklen_t, to: *mut sockaddr, len: *mut socklen_t) {
    if to.is_null() || len.is_null() {
        return;
    }
    // SAFETY: see above.
    unsafe {
        let room = (*len).min(name_len) as usize;
        to.cast::<u8>()
            .copy_from_nonoverlapping(name.as_ptr(), room);
        *len = name_len;
    }
}

/// # Safety
/// As getpeername(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn getpeername(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_getpeername, fd, name, len) as c_int;
    }
    let (peer, peer_len) = on(fd, |socket| (socket.peer, socket.name_len()));
    if peer[2..4] == [0, 0] {
        return fail(libc::ENOTCONN);
    }
    // SAFETY: lent by the caller for the answer.
    unsafe { give_name(peer, peer_len, name, len) };
    0
}

/// # Safety
/// As getsockname(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn getsockname(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_getsockname, fd, name, len) as c_int;
    }
    let port = with(|kernel| {
        kernel.port = kernel.port.wrapping_add(1) | 0x8000;
        kernel.port
    });
    let (own, own_len) = on(fd, |socket| (socket.name(port), socket.name_len()));
    // SAFETY: lent by the caller for the answer.
    unsafe { give_name(own, own_len, name, len) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_shutdown, fd, how) as c_int;
    }
    on(fd, |socket| socket.shut = true);
    outcome(judge(&[libc::ENOTCONN]).map(|()| 0))
}

/// # Safety
/// As setsockopt(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_setsockopt, fd, level, name, value, len) as c_int;
    }
    // The peek offset of a socket that has one can always be moved.
    let errors: &[c_int] = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_PEEK_OFF | libc::SO_LINGER) => &[],
        _ => &[libc::ENOBUFS, libc::ENOMEM, libc::EINVAL, libc::ENOPROTOOPT],
    };
    on(fd, |_| ());
    if let Err(errno) = judge(errors) {
        return fail(errno);
    }
    on(fd, |socket| match (level, name) {
        (libc::SOL_SOCKET, libc::SO_PEEK_OFF) => {
            // SAFETY: the option is an int (socket(7)).
            let offset = unsafe { value.cast::<c_int>().read_unaligned() };
            socket.peek = u64::try_from(offset).ok();
        }
        (libc::SOL_UDP, libc::UDP_GRO) => socket.together = true,
        _ => {}
    });
    0
}

/// # Safety
/// As getsockopt(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_getsockopt, fd, level, name, value, len) as c_int;
    }
    let mut answer = [0_u8; 256];
    let room = on(fd, |socket| match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ERROR) => {
            answer[..4].copy_from_slice(&std::mem::take(&mut socket.error).to_ne_bytes());
            4
        }
        (libc::SOL_SOCKET, libc::SO_MEMINFO) => {
            let limit = 64 * 1024_u32;
            let queued = limit.saturating_sub(socket.room as u32);
            answer[12..16].copy_from_slice(&limit.to_ne_bytes());
            answer[20..24].copy_from_slice(&queued.to_ne_bytes());
            36
        }
        (libc::SOL_IP, libc::IP_MTU) | (libc::SOL_IPV6, libc::IPV6_MTU) => {
            answer[..4].copy_from_slice(&1500_u32.to_ne_bytes());
            4
        }
        (libc::SOL_SOCKET, _) => 4,
        _ => answer.len(),
    });
    if let Err(errno) = judge(&[libc::EINVAL, libc::ENOPROTOOPT]) {
        return fail(errno);
    }
    // SAFETY: the caller lends `*len` octets for the answer.
    unsafe {
        let octets = (*len as usize).min(room);
        value
            .cast::<u8>()
            .copy_from_nonoverlapping(answer.as_ptr(), octets);
        *len = octets as socklen_t;
    }
    0
}

/// # Safety
/// As ioctl(2); the requests we know take a pointer to an int.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: libc::c_ulong, argument: *mut c_void) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_ioctl, fd, request, argument) as c_int;
    }
    on(fd, |_| ());
    if request != libc::FIONBIO {
        // SAFETY: see above.
        unsafe { argument.cast::<c_int>().write(0) };
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_fcntl, fd, command, argument) as c_int;
    }
    on(fd, |_| ());
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => with(Kernel::link),
        libc::F_GETFL => libc::O_NONBLOCK | libc::O_RDWR,
        _ => 0,
    }
}

/// # Safety
/// As sendto(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendto(
    fd: c_int,
    memory: *const c_void,
    len: size_t,
    flags: c_int,
    name: *const sockaddr,
    name_len: socklen_t,
) -> ssize_t {
    if !is_ours(fd) {
        return real!(SYS_sendto, fd, memory, len, flags, name, name_len) as ssize_t;
    }
    // SAFETY: as of send(2).
    unsafe { send(fd, memory, len, flags) }
}

/// # Safety
/// As recvfrom(2); nobody asks a socket of ours for the sender in this way.
#[unsafe(no_mangle)]
unsafe extern "C" fn recvfrom(
    fd: c_int,
    memory: *mut c_void,
    len: size_t,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> ssize_t {
    if !is_ours(fd) {
        return real!(SYS_recvfrom, fd, memory, len, flags, name, name_len) as ssize_t;
    }
    assert!(name.is_null());
    // SAFETY: as of recv(2).
    unsafe { recv(fd, memory, len, flags) }
}

/// The size of datagrams a message is to be cut into (UDP_SEGMENT), or zero.
///
/// # Safety
/// As sendmsg(2).
unsafe fn segment_of(message: *const msghdr) -> usize {
    // SAFETY: the control buffer is lent for reading, with its true length.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        if header.is_null()
            || ((*header).cmsg_level, (*header).cmsg_type) != (libc::SOL_UDP, libc::UDP_SEGMENT)
        {
            return 0;
        }
        libc::CMSG_DATA(header)
            .cast::<u16>()
            .read_unaligned()
            .into()
    }
}

/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    if !is_ours(fd) {
        return real!(SYS_sendmsg, fd, message, flags) as ssize_t;
    }
    let mut octets = Vec::new();
    // SAFETY: the pieces are lent by the caller for reading.
    for (memory, len) in unsafe { pieces(message) } {
        // SAFETY: as above.
        octets.extend_from_slice(unsafe { std::slice::from_raw_parts(memory, len) });
    }
    // SAFETY: as above.
    let segment = unsafe { segment_of(message) };
    outcome(send_into(fd, &octets, segment).map(|octets| octets as ssize_t))
}

/// # Safety
/// As sendmmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_sendmmsg, fd, messages, count, flags) as c_int;
    }
    for n in 0..count {
        // SAFETY: the caller lends `count` headers.
        unsafe {
            let message = messages.add(n as usize);
            let sent = sendmsg(fd, &raw const (*message).msg_hdr, flags);
            if sent < 0 {
                return if n == 0 { -1 } else { n as c_int };
            }
            (*message).msg_len = sent as c_uint;
        }
    }
    count as c_int
}

/// # Safety
/// As send(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, memory: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    if !is_ours(fd) {
        return real!(SYS_sendto, fd, memory, len, flags, 0, 0) as ssize_t;
    }
    // SAFETY: lent by the caller for reading.
    let octets = unsafe { std::slice::from_raw_parts(memory.cast::<u8>(), len) };
    outcome(send_into(fd, octets, 0).map(|octets| octets as ssize_t))
}

/// # Safety
/// As recvmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if !is_ours(fd) {
        return real!(SYS_recvmsg, fd, message, flags) as ssize_t;
    }
    // SAFETY: the header, and what it names, is lent by the caller.
    unsafe {
        if flags & libc::MSG_ERRQUEUE != 0 {
            return take_error(fd, message);
        }
        let list = pieces(message);
        let mut control = Control::new(message);
        let first = on(fd, |socket| socket.waiting.front().copied());
        let received = receive_from(fd, &list, flags);
        if let (Ok(_), Some(waiting)) = (received, first) {
            on(fd, |socket| {
                mark(&mut control, socket, waiting);
                let connected = socket.peer[..2] != [0, 0] && !waiting.stray;
                let mut sender = if connected {
                    socket.peer
                } else {
                    socket.name(waiting.port)
                };
                if sender[2..4] == [0, 0] {
                    // All ports of the peer's are heard.
                    sender[2..4].copy_from_slice(&ANY_PORT.to_be_bytes());
                }
                if !(*message).msg_name.is_null() {
                    let len = &raw mut (*message).msg_namelen;
                    give_name(sender, socket.name_len(), (*message).msg_name.cast(), len);
                }
            });
        }
        control.finish();
        outcome(received.map(|octets| octets as ssize_t))
    }
}

/// # Safety
/// As recvmmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    patience: *mut libc::timespec,
) -> c_int {
    if !is_ours(fd) {
        return real!(SYS_recvmmsg, fd, messages, count, flags, patience) as c_int;
    }
    for n in 0..count {
        // SAFETY: the caller lends `count` headers.
        unsafe {
            let message = messages.add(n as usize);
            let received = recvmsg(fd, &raw mut (*message).msg_hdr, flags);
            if received < 0 {
                return if n == 0 { -1 } else { n as c_int };
            }
            (*message).msg_len = received as c_uint;
        }
    }
    count as c_int
}

/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn recv(fd: c_int, memory: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    if !is_ours(fd) {
        return real!(SYS_recvfrom, fd, memory, len, flags, 0, 0) as ssize_t;
    }
    outcome(receive_from(fd, &[(memory.cast(), len)], flags).map(|octets| octets as ssize_t))
}
