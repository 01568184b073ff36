//! The error queue (IP_RECVERR, ip(7)): which ICMP error a socket met, and who sent it.

use super::cmsg::{self, Control, Marks, messages};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

/// One ICMP or ICMPv6 error, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketError {
    /// Whether type and code are ICMPv6's.
    pub v6: bool,
    pub kind: u8,
    pub code: u8,
    /// The `errno` the kernel made of it.
    pub errno: i32,
    /// The MTU, for fragmentation needed and packet too big.
    pub info: u32,
    /// Who reported it.
    pub offender: Option<IpAddr>,
    /// Time to live, or hop limit, of the report, if the socket asks for it.
    pub ttl: Option<u8>,
    /// Octets of `payload` that were returned of the datagram at fault.
    pub quoted: usize,
}

/// Takes the oldest error from the queue; errors of local origin are skipped. `payload` receives what the kernel returns of
/// the datagram at fault, without its headers.
///
/// # Errors
/// `WouldBlock` when the queue is empty, else those of recvmsg(2).
pub fn take(socket: BorrowedFd<'_>, payload: &mut [u8]) -> io::Result<SocketError> {
    loop {
        if let Some(error) = take_one(socket, payload)? {
            return Ok(error);
        }
    }
}

fn take_one(socket: BorrowedFd<'_>, payload: &mut [u8]) -> io::Result<Option<SocketError>> {
    let mut control = <Control>::new();
    let message = cmsg::receive(socket, payload, &mut [], &mut control, libc::MSG_ERRQUEUE)?;
    let ttl = Marks::read(message.control).ttl;
    let quoted = message.len;
    let error = messages(message.control).find_map(|message| match message {
        (libc::SOL_IP, libc::IP_RECVERR, data) | (libc::SOL_IPV6, libc::IPV6_RECVERR, data) => {
            read(data)
        }
        _ => None,
    });
    Ok(error.map(|error| SocketError {
        ttl,
        quoted,
        ..error
    }))
}

/// Reads a `struct sock_extended_err` (ip(7)) and the offender's address behind it; `None` for errors of local origin.
fn read(data: &[u8]) -> Option<SocketError> {
    const SIZE: usize = size_of::<libc::sock_extended_err>();
    let number = |at: usize| Some(u32::from_ne_bytes(*data.get(at..SIZE)?.first_chunk()?));
    let &[origin, kind, code] = data.get(4..SIZE)?.first_chunk()?;
    let v6 = match origin {
        libc::SO_EE_ORIGIN_ICMP => false,
        libc::SO_EE_ORIGIN_ICMP6 => true,
        _ => return None,
    };
    Some(SocketError {
        v6,
        kind,
        code,
        errno: number(0)?.cast_signed(),
        info: number(8)?,
        offender: address(data.get(SIZE..)?),
        ttl: None,
        quoted: 0,
    })
}

/// Reads the address of a `sockaddr_in` or `sockaddr_in6`.
pub(super) fn address(sockaddr: &[u8]) -> Option<IpAddr> {
    let family = u16::from_ne_bytes(sockaddr.get(..2)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let octets: [u8; 4] = sockaddr.get(4..8)?.try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(octets)))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = sockaddr.get(8..24)?.try_into().ok()?;
            let v6 = Ipv6Addr::from(octets);
            Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::sockopt;
    use std::{net::UdpSocket, os::fd::AsFd};

    #[test]
    fn a_closed_port_on_loopback_is_reported_with_its_payload() {
        let closed = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(closed).unwrap();
        sockopt::set_receive_errors(socket.as_fd(), false, true).unwrap();
        socket.send(b"anybody?").unwrap();
        let mut payload = [0; 64];
        let error = take(socket.as_fd(), &mut payload).unwrap();
        assert_eq!(
            (error.v6, error.kind, error.code, error.errno),
            (false, 3, 3, libc::ECONNREFUSED)
        );
        assert_eq!(error.offender, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(&payload[..error.quoted], b"anybody?");
        assert_eq!(
            take(socket.as_fd(), &mut payload).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
