//! Sending and receiving: sendmsg(2), recvmsg(2) and recv(2), never blocking, never raising SIGPIPE.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use super::{
    cmsg::{self, Control, Marks},
    errqueue,
    iovec::{Gather, Part, Scatter},
};

/// Sends a list of memory; the octets taken may be fewer.
///
/// # Errors
/// Those of sendmsg(2); `WouldBlock` when the socket takes nothing now.
pub fn send(socket: BorrowedFd<'_>, gather: &Gather<'_, '_>) -> io::Result<usize> {
    let (iov, len) = gather.raw();
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = iov.cast_mut();
    header.msg_iovlen = len as _;
    // SAFETY: `header` lists memory that `gather` holds borrowed for reading until after this call; sendmsg writes none of it.
    check(unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const header,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}

/// Receives into a list of memory.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is nothing.
pub fn receive(socket: BorrowedFd<'_>, scatter: &mut Scatter<'_, '_>) -> io::Result<usize> {
    receive_with(socket, scatter, 0)
}

/// Looks at a stream's octets from the peek offset on (SO_PEEK_OFF, socket(7)), and leaves them in the socket.
///
/// # Errors
/// As [`receive`].
pub fn peek(socket: BorrowedFd<'_>, scatter: &mut Scatter<'_, '_>) -> io::Result<usize> {
    receive_with(socket, scatter, libc::MSG_PEEK)
}

fn receive_with(
    socket: BorrowedFd<'_>,
    scatter: &mut Scatter<'_, '_>,
    flags: libc::c_int,
) -> io::Result<usize> {
    let (iov, len) = scatter.raw();
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = iov;
    header.msg_iovlen = len as _;
    // SAFETY: `header` lists memory that `scatter` holds mutably borrowed until after this call, each entry with its length.
    check(unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut header,
            flags | libc::MSG_DONTWAIT,
        )
    })
}

/// The most datagrams one call receives, and the most messages one call sends.
pub const RECEIVE_MANY: usize = 16;
pub const SEND_MANY: usize = 32;

/// One datagram that was received, or several of one size (see [`Marks::segment`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Octets of payload.
    pub len: usize,
    pub marks: Marks,
}

/// Receives datagrams, one into each piece of memory listed. Returns how many: fewer than pieces if there were no more.
///
/// # Errors
/// Those of recvmmsg(2); `WouldBlock` when there is nothing.
pub fn receive_many(
    socket: BorrowedFd<'_>,
    scatter: &mut Scatter<'_, '_>,
    received: &mut [Received; RECEIVE_MANY],
) -> io::Result<usize> {
    let (iov, len) = scatter.raw();
    let len = len.min(RECEIVE_MANY);
    // SAFETY: all-zero is a valid `mmsghdr`: null pointers with zero lengths.
    let mut headers: [libc::mmsghdr; RECEIVE_MANY] = unsafe { mem::zeroed() };
    let mut controls = [const { <Control>::new() }; RECEIVE_MANY];
    for (at, (header, control)) in headers.iter_mut().zip(&mut controls).take(len).enumerate() {
        header.msg_hdr.msg_iov = iov.wrapping_add(at);
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = <Control>::LEN as _;
    }
    // SAFETY: each of the `len` headers lists one entry of memory that `scatter` holds mutably borrowed until after this
    // call, and a control buffer of its own with its true length.
    let count = check_count(unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            len as _,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    })?;
    for ((header, control), received) in headers.iter().zip(&controls).zip(received).take(count) {
        let used = header.msg_hdr.msg_controllen.min(<Control>::LEN);
        let control = control.0.get(..used).unwrap_or_default();
        *received = Received {
            len: header.msg_len as usize,
            marks: Marks::read(control),
        };
    }
    Ok(count)
}

/// Receives a datagram, and who sent it.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is none.
pub fn receive_from(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(Received, Option<SocketAddr>)> {
    let mut control = <Control>::new();
    let mut name = [0; 128];
    let message = cmsg::receive(socket, buffer, &mut name, &mut control, 0)?;
    let received = Received {
        len: message.len,
        marks: Marks::read(message.control),
    };
    let port = u16::from_be_bytes([name[2], name[3]]);
    let from = errqueue::address(&name).map(|addr| SocketAddr::new(addr, port));
    Ok((received, from))
}

/// Sends messages, one for each part of the list, [`SEND_MANY`] at most. Returns how many were sent: all of them, or those
/// before the first that failed.
///
/// # Errors
/// Those of sendmmsg(2) for the first message; `WouldBlock` when the socket takes nothing now.
pub fn send_many(
    socket: BorrowedFd<'_>,
    gather: &Gather<'_, '_>,
    parts: &[Part],
) -> io::Result<usize> {
    // What most calls are about, and cheaper.
    if let [part] = parts {
        return send_one(socket, gather, part).map(|_| 1);
    }
    // SAFETY: all-zero is a valid `mmsghdr`: null pointers with zero lengths.
    let mut headers: [libc::mmsghdr; SEND_MANY] = unsafe { mem::zeroed() };
    let mut controls = [const { OfPart::new() }; SEND_MANY];
    let mut len = 0;
    for ((part, header), control) in parts.iter().zip(&mut headers).zip(&mut controls) {
        header.msg_hdr = header_of(gather, part, control)?;
        len += 1;
    }
    // SAFETY: each of the `len` headers lists entries of `gather`'s list, whose memory it holds borrowed for reading until
    // after this call, and at most a control buffer of its own; sendmmsg writes none of it but the headers' lengths.
    check_count(unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            len,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    })
}

fn send_one(socket: BorrowedFd<'_>, gather: &Gather<'_, '_>, part: &Part) -> io::Result<usize> {
    let mut control = OfPart::new();
    let header = header_of(gather, part, &mut control)?;
    // SAFETY: `header` lists entries of `gather`'s list, whose memory it holds borrowed for reading until after this call, and
    // at most `control`; sendmsg writes none of it.
    check(unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const header,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}

/// What a message of several datagrams says of them: UDP_SEGMENT.
type OfPart = Control<{ cmsg::OF_U16 }>;

/// The header of one part's message; it points into the list and to `control`.
fn header_of(
    gather: &Gather<'_, '_>,
    part: &Part,
    control: &mut OfPart,
) -> io::Result<libc::msghdr> {
    let (iov, entries) = gather.raw();
    if part.end > entries || part.start > part.end {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = iov.wrapping_add(part.start).cast_mut();
    header.msg_iovlen = (part.end - part.start) as _;
    if let Some(octets) = part.segment {
        cmsg::write_u16(control, libc::SOL_UDP, libc::UDP_SEGMENT, octets);
        header.msg_control = ptr::from_mut(control).cast();
        header.msg_controllen = OfPart::LEN as _;
    }
    Ok(header)
}

/// Receives into one buffer.
///
/// # Errors
/// As [`receive`].
pub fn receive_into(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` octets into `buffer`, which is borrowed mutably.
    check(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    })
}

/// Throws away up to `octets` from the front of a TCP socket's receive queue (MSG_TRUNC, tcp(7)). Returns how many.
///
/// # Errors
/// As [`receive`].
pub fn discard(socket: BorrowedFd<'_>, octets: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC a TCP socket copies nothing, so the null buffer is never written (tcp(7)).
    check(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            ptr::null_mut(),
            octets,
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
        )
    })
}

fn check_count(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Iovecs, sockopt};
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd,
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn gathered_octets_arrive_in_order() {
        let (mut a, b) = pair();
        let mut iovecs = Iovecs::new();
        let mut gather = iovecs.gather();
        assert!(gather.push(b"hello ") && gather.push(b"world"));
        assert_eq!(send(b.as_fd(), &gather).unwrap(), 11);
        let mut got = [0; 11];
        a.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello world");
    }

    #[test]
    fn peeked_octets_stay_and_discarded_ones_go() {
        let (a, mut b) = pair();
        b.write_all(b"abcdef").unwrap();
        let mut wait = [0; 6];
        while a.peek(&mut wait).unwrap() < 6 {}
        let mut iovecs = Iovecs::new();
        let (mut one, mut two) = ([0; 2], [0; 8]);
        let mut scatter = iovecs.scatter();
        assert!(scatter.push(&mut one) && scatter.push(&mut two));
        assert_eq!(peek(a.as_fd(), &mut scatter).unwrap(), 6);
        assert_eq!((&one, &two[..4]), (b"ab", &b"cdef"[..]));
        assert_eq!(discard(a.as_fd(), 4).unwrap(), 4);
        let mut rest = [0; 8];
        assert_eq!(receive_into(a.as_fd(), &mut rest).unwrap(), 2);
        assert_eq!(&rest[..2], b"ef");
        assert_eq!(
            receive_into(a.as_fd(), &mut rest).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn datagrams_leave_and_arrive_by_the_many() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        sockopt::set_receive_marks(to.as_fd(), false).unwrap();
        sockopt::set_ttl(from.as_fd(), false, 7).unwrap();
        sockopt::set_tos(from.as_fd(), false, 0xb9).unwrap();
        let mut iovecs = Iovecs::new();
        let mut gather = iovecs.gather();
        let parts = [(&b"four"[..], None), (b"", None), (b"abcdefg", Some(3))];
        let parts = parts.map(|(octets, segment)| {
            let start = gather.part();
            assert!(gather.push(octets));
            let end = gather.part();
            Part {
                start,
                end,
                segment,
            }
        });
        assert_eq!(send_many(from.as_fd(), &gather, &parts).unwrap(), 3);
        let mut iovecs = Iovecs::new();
        let mut memory = [[0; 8]; 6];
        let mut scatter = iovecs.scatter();
        for piece in &mut memory {
            assert!(scatter.push(piece));
        }
        let mut got = [Received::default(); RECEIVE_MANY];
        let count = receive_many(to.as_fd(), &mut scatter, &mut got).unwrap();
        let marks = Marks {
            ttl: Some(7),
            tos: Some(0xb9),
            segment: None,
        };
        assert!(got[..count].iter().all(|datagram| datagram.marks == marks));
        let texts = got
            .iter()
            .zip(&memory)
            .map(|(got, octets)| &octets[..got.len]);
        let texts: Vec<_> = texts.take(count).collect();
        assert_eq!(texts, [&b"four"[..], b"", b"abc", b"def", b"g"]);
    }

    #[test]
    fn several_datagrams_may_be_received_as_one() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        sockopt::set_receive_segments(to.as_fd()).unwrap();
        let mut iovecs = Iovecs::new();
        let mut gather = iovecs.gather();
        assert!(gather.push(b"abcdefg"));
        let part = Part {
            start: 0,
            end: 1,
            segment: Some(3),
        };
        assert_eq!(send_many(from.as_fd(), &gather, &[part]).unwrap(), 1);
        let mut iovecs = Iovecs::new();
        let mut memory = [0; 16];
        let mut scatter = iovecs.scatter();
        assert!(scatter.push(&mut memory));
        let mut got = [Received::default(); RECEIVE_MANY];
        assert_eq!(receive_many(to.as_fd(), &mut scatter, &mut got).unwrap(), 1);
        assert_eq!((got[0].len, got[0].marks.segment), (7, Some(3)));
    }
}
