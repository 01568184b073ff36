//! The error queue (IP_RECVERR, ip(7)): which ICMP error a socket met, and who sent it.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
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
    /// Octets of `payload` that were returned of the datagram at fault.
    pub quoted: usize,
}

#[repr(C, align(8))]
struct Control([u8; 256]);

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
    let mut control = Control([0; 256]);
    let mut iovec = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: `header` points to one iovec over `payload` and to `control`, with their true lengths; all outlive the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let quoted = usize::try_from(received)
        .map_err(|_| io::Error::last_os_error())?
        .min(payload.len());
    // SAFETY: the kernel has filled `control` up to `msg_controllen`; the macros stay inside these bounds.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: a non-null result of the CMSG macros points to a whole header inside `control`, aligned by its type.
        let (level, kind, len) = unsafe {
            (
                (*message).cmsg_level,
                (*message).cmsg_type,
                (*message).cmsg_len as usize,
            )
        };
        let ours = (level, kind) == (libc::SOL_IP, libc::IP_RECVERR)
            || (level, kind) == (libc::SOL_IPV6, libc::IPV6_RECVERR);
        // SAFETY: CMSG_DATA of a header inside `control`; how much of it may be read is bounded by `cmsg_len` below.
        let data = unsafe { libc::CMSG_DATA(message) };
        let room = len.saturating_sub(data as usize - message as usize);
        if ours && room >= size_of::<libc::sock_extended_err>() {
            // SAFETY: `room` octets at `data` were written by the kernel, enough for the structure; unaligned reads are allowed.
            let error = unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() };
            // SAFETY: as above; what follows the structure inside `cmsg_len` is the offender's socket address.
            let rest = unsafe {
                let after = size_of::<libc::sock_extended_err>();
                std::slice::from_raw_parts(data.add(after), room - after)
            };
            if error.ee_origin == libc::SO_EE_ORIGIN_ICMP
                || error.ee_origin == libc::SO_EE_ORIGIN_ICMP6
            {
                return Ok(Some(SocketError {
                    v6: error.ee_origin == libc::SO_EE_ORIGIN_ICMP6,
                    kind: error.ee_type,
                    code: error.ee_code,
                    errno: error.ee_errno.cast_signed(),
                    info: error.ee_info,
                    offender: address(rest),
                    quoted,
                }));
            }
        }
        // SAFETY: `message` lies inside the control buffer that `header` describes.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(None)
}

/// Reads the address of a `sockaddr_in` or `sockaddr_in6`.
fn address(sockaddr: &[u8]) -> Option<IpAddr> {
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
