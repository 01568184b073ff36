//! Descriptors that come with octets over a UNIX socket (SCM_RIGHTS, unix(7)).

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// The most descriptors taken with one read (SCM_MAX_FD).
const MOST: usize = 253;

#[repr(C, align(8))]
struct Control([u8; 16 + 4 * (MOST + 1)]);

/// Receives octets, and adds the descriptors that came with them.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is nothing; `InvalidData` if descriptors were lost on the way.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = Control([0; 16 + 4 * (MOST + 1)]);
    let mut iovec = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `header` describes `buffer` and `control`, both borrowed mutably until after this call, with their lengths.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let octets = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
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
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: CMSG_DATA of a header inside `control`; how much of it is read is bounded by `cmsg_len`.
            let data = unsafe { libc::CMSG_DATA(message) };
            let room = len.saturating_sub(data as usize - message as usize);
            for at in 0..room / size_of::<i32>() {
                // SAFETY: the kernel wrote `room` octets of whole descriptors, each made for us and known to nobody else.
                descriptors.push(unsafe {
                    OwnedFd::from_raw_fd(data.cast::<i32>().add(at).read_unaligned())
                });
            }
        }
        // SAFETY: `message` lies inside the control buffer that `header` describes.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{IoSlice, Read, Write},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    #[test]
    fn descriptors_come_with_the_octets_they_were_sent_with() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut a, b) = UnixStream::pair().unwrap();
        let fds = [b.as_raw_fd(), b.as_raw_fd()];
        (&theirs).write_all(b"before").unwrap();
        sendmsg::<()>(
            theirs.as_raw_fd(),
            &[IoSlice::new(b"with")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        let (mut octets, mut got) = ([0; 99], Vec::new());
        let first = &mut octets[..6];
        assert_eq!(receive(ours.as_fd(), first, &mut got).unwrap(), 6);
        assert_eq!(got.len(), 0);
        assert_eq!(receive(ours.as_fd(), &mut octets, &mut got).unwrap(), 4);
        assert_eq!(got.len(), 2);
        UnixStream::from(got.pop().unwrap())
            .write_all(b"x")
            .unwrap();
        a.read_exact(&mut octets[..1]).unwrap();
        assert_eq!(octets[0], b'x');
        let error = receive(ours.as_fd(), &mut octets, &mut got).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
