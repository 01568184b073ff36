//! Socket options that no crate wraps without a catch.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::{c_int, c_void, socklen_t};

/// linux/in.h
const IP_UNICAST_IF: c_int = 50;

/// A TCP socket's send memory, in octets of kernel accounting (SO_MEMINFO): data with the overhead of the buffers that
/// hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendMemory {
    /// What the socket may hold; grows by autotuning.
    pub limit: u32,
    /// What it holds.
    pub queued: u32,
}

impl SendMemory {
    /// What it may still take.
    pub const fn free(self) -> u32 {
        self.limit.saturating_sub(self.queued)
    }

    /// Whether less than a third is free: then, and only then, does epoll polling the socket ask the kernel for a
    /// notification when space returns, and let the buffer grow.
    pub const fn is_low(self) -> bool {
        self.free() < self.limit / 3
    }
}

/// Reads [`SendMemory`].
///
/// # Errors
/// Those of getsockopt(2).
pub fn send_memory(socket: BorrowedFd<'_>) -> io::Result<SendMemory> {
    // linux/sock_diag.h: SK_MEMINFO_SNDBUF is the fourth of the array, SK_MEMINFO_WMEM_QUEUED the sixth.
    let mut info = [0_u32; 9];
    get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut info)?;
    Ok(SendMemory {
        limit: info[3],
        queued: info[5],
    })
}

/// Sets where the next MSG_PEEK starts, in octets from the front of the receive queue; -1 turns the offset off.
///
/// # Errors
/// Those of setsockopt(2); kernels before 6.9 (IPv4) and 6.11 (IPv6) refuse it for TCP.
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

/// Has small segments leave though others are on their way (TCP_NODELAY, tcp(7)).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_no_delay(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// Sets the interface that IPv4 multicast and broadcast leave through, by index or, where that is 0, by address
/// (IP_MULTICAST_IF, IP_UNICAST_IF, ip(7)); neither leaves it to the routes.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_group_interface4(socket: BorrowedFd<'_>, index: u32, addr: Ipv4Addr) -> io::Result<()> {
    let request = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: 0 },
        imr_address: libc::in_addr {
            s_addr: u32::from(addr).to_be(),
        },
        imr_ifindex: index as c_int,
    };
    set(socket, libc::SOL_IP, libc::IP_MULTICAST_IF, request)?;
    set(socket, libc::SOL_IP, IP_UNICAST_IF, index.to_be())
}

/// Asks for ICMP errors in the error queue (IP_RECVERR, ip(7); IPV6_RECVERR, ipv6(7)), or not.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_receive_errors(socket: BorrowedFd<'_>, v6: bool, on: bool) -> io::Result<()> {
    let (level, name) = if v6 {
        (libc::SOL_IPV6, libc::IPV6_RECVERR)
    } else {
        (libc::SOL_IP, libc::IP_RECVERR)
    };
    set(socket, level, name, c_int::from(on))
}

/// Asks for time to live and type of service (hop limit and traffic class) of every datagram received (ip(7), ipv6(7)).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_receive_marks(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let (level, names) = if v6 {
        let names = [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS];
        (libc::SOL_IPV6, names)
    } else {
        (libc::SOL_IP, [libc::IP_RECVTTL, libc::IP_RECVTOS])
    };
    for name in names {
        set(socket, level, name, 1)?;
    }
    Ok(())
}

/// Lets several datagrams of one sender and size be received as one (UDP_GRO, udp(7); Linux 5.0).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_receive_segments(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Sets the time to live, or hop limit, of what is sent: 1 to 255.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_ttl(socket: BorrowedFd<'_>, v6: bool, ttl: u8) -> io::Result<()> {
    let (level, name) = ttl_option(v6);
    set(socket, level, name, c_int::from(ttl))
}

/// The time to live, or hop limit, of what is sent.
///
/// # Errors
/// Those of getsockopt(2).
pub fn ttl(socket: BorrowedFd<'_>, v6: bool) -> io::Result<u8> {
    octet(socket, ttl_option(v6))
}

const fn ttl_option(v6: bool) -> (c_int, c_int) {
    if v6 {
        (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS)
    } else {
        (libc::SOL_IP, libc::IP_TTL)
    }
}

/// Has packets dropped that come with a lower time to live, or hop limit (IP_MINTTL, ip(7); IPV6_MINHOPCOUNT): as if they were
/// lost. 0 drops none.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_least_ttl(socket: BorrowedFd<'_>, ttl: u8) -> io::Result<()> {
    // linux/in6.h; a socket of IPv6 has both, and needs the other for IPv4 addresses in the guise of its own.
    const IPV6_MINHOPCOUNT: c_int = 73;
    let v4 = set(socket, libc::SOL_IP, libc::IP_MINTTL, c_int::from(ttl));
    set(socket, libc::SOL_IPV6, IPV6_MINHOPCOUNT, c_int::from(ttl)).or(v4)
}

/// Has a socket be readable only with so many octets to read (SO_RCVLOWAT, socket(7)). The kernel makes room for them, as far
/// as it would by itself.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_least_readable(socket: BorrowedFd<'_>, octets: usize) -> io::Result<()> {
    let octets = c_int::try_from(octets).unwrap_or(c_int::MAX);
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, octets)
}

/// Sets the type of service, or traffic class, of what is sent. Of a TCP socket the lower two bits stay the kernel's.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_tos(socket: BorrowedFd<'_>, v6: bool, tos: u8) -> io::Result<()> {
    let (level, name) = tos_option(v6);
    set(socket, level, name, c_int::from(tos))
}

/// The type of service, or traffic class, of what is sent.
///
/// # Errors
/// Those of getsockopt(2).
pub fn tos(socket: BorrowedFd<'_>, v6: bool) -> io::Result<u8> {
    octet(socket, tos_option(v6))
}

const fn tos_option(v6: bool) -> (c_int, c_int) {
    if v6 {
        (libc::SOL_IPV6, libc::IPV6_TCLASS)
    } else {
        (libc::SOL_IP, libc::IP_TOS)
    }
}

/// An option that is an octet, though the kernel tells it as an integer.
fn octet(socket: BorrowedFd<'_>, (level, name): (c_int, c_int)) -> io::Result<u8> {
    let mut value: c_int = 0;
    get(socket, level, name, &mut value)?;
    u8::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Forbids fragments, so that datagrams above the path MTU are refused with EMSGSIZE, or lets the kernel make them
/// (IP_MTU_DISCOVER, ip(7)).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_dont_fragment(socket: BorrowedFd<'_>, v6: bool, on: bool) -> io::Result<()> {
    let (level, name, value) = match (v6, on) {
        (false, true) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (false, false) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (true, true) => (
            libc::SOL_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
        // A router's "packet too big" still counts: IPv6 knows no other way to learn it (RFC 8200, section 5).
        (true, false) => (
            libc::SOL_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_WANT,
        ),
    };
    set(socket, level, name, value)
}

/// The path MTU of a connected socket as far as it is known, in octets (IP_MTU, ip(7)).
///
/// # Errors
/// Those of getsockopt(2): ENOTCONN without a route.
pub fn mtu(socket: BorrowedFd<'_>, v6: bool) -> io::Result<u32> {
    let (level, name) = if v6 {
        (libc::SOL_IPV6, libc::IPV6_MTU)
    } else {
        (libc::SOL_IP, libc::IP_MTU)
    };
    let mut value: c_int = 0;
    get(socket, level, name, &mut value)?;
    Ok(value.unsigned_abs())
}

/// Reads an option of integers, for which any octets are valid, and says how many it had.
pub(super) fn get<T: Copy>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut T,
) -> io::Result<usize> {
    let mut len = size_of::<T>() as socklen_t;
    // SAFETY: the kernel writes at most `len` octets, the size of `value`; every caller passes integers or arrays of them,
    // for which any bytes are valid, and a shorter answer leaves the rest as it was.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut *value).cast::<c_void>(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(len as usize)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets an option.
pub(super) fn set<T: Copy>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: T,
) -> io::Result<()> {
    let len = size_of::<T>() as socklen_t;
    // SAFETY: the kernel reads `len` octets, the size of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    #[test]
    fn send_memory_of_a_fresh_connection_is_all_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let memory = send_memory(client.as_fd()).unwrap();
        assert!(memory.limit >= 4096);
        assert_eq!(memory.queued, 0);
        assert!(!memory.is_low());
    }
}
