//! TCP connections that are taken from one kernel to another (repair mode, tcp(7) does not tell; linux/tcp.h).

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use libc::{c_int, c_void, socklen_t};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Turns repair mode on (1), off (0), or off without a window probe (-1). Takes CAP_NET_ADMIN over the socket's network
/// namespace.
///
/// # Errors
/// Those of setsockopt(2): EPERM without the right, or for a socket that is neither established nor closed.
pub fn set_repair(socket: BorrowedFd<'_>, mode: i32) -> io::Result<()> {
    set(socket, libc::TCP_REPAIR, &mode)
}

fn set<T>(socket: BorrowedFd<'_>, name: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as socklen_t;
    // SAFETY: the kernel reads `len` octets, the size of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_TCP,
            name,
            (&raw const *value).cast::<c_void>(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends one octet, with descriptors to be duplicated into the receiving process (SCM_RIGHTS, unix(7)): 253 at most.
///
/// # Errors
/// Those of sendmsg(2), `WouldBlock` among them; EINVAL with too many descriptors.
pub fn send_with(socket: BorrowedFd<'_>, octet: u8, descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights: &[_] = if descriptors.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&[octet])],
        rights,
        flags,
        None,
    )?;
    Ok(())
}
