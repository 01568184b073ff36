//! Descriptors that come with octets over a UNIX socket (SCM_RIGHTS, unix(7)).

use super::cmsg::{self, Control};
use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd},
};

/// The most descriptors taken with one read (SCM_MAX_FD).
const MOST: usize = 253;

/// Octets of a message of so many descriptors and its header.
const CONTROL: usize = 16 + 4 * (MOST + 1);

/// Receives octets, and adds the descriptors that came with them.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is nothing; `InvalidData` if descriptors were lost on the way.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = Control::<CONTROL>::new();
    let message = cmsg::receive(
        socket,
        buffer,
        &mut [],
        &mut control,
        libc::MSG_CMSG_CLOEXEC,
    )?;
    for (level, kind, data) in cmsg::messages(message.control) {
        if (level, kind) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            continue;
        }
        for descriptor in data.as_chunks().0 {
            let descriptor = i32::from_ne_bytes(*descriptor);
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    if message.flags & libc::MSG_CTRUNC != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(message.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{IoSlice, Read, Write},
        os::{
            fd::{AsFd, AsRawFd},
            unix::net::UnixStream,
        },
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
