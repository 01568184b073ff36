//! Sending and receiving: sendmsg(2), recvmsg(2) and recv(2), never blocking, never raising SIGPIPE.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use super::iovec::{Gather, Scatter};

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

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Iovecs;
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
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
}
