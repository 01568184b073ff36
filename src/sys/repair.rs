//! TCP connections that are taken from one kernel to another (repair mode, tcp(7) does not tell; linux/tcp.h).

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use libc::c_int;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::sockopt;

/// Turns repair mode on (1), off (0), or off without a window probe (-1). Takes CAP_NET_ADMIN over the socket's network
/// namespace.
///
/// # Errors
/// Those of setsockopt(2): EPERM without the right, or for a socket that is neither established nor closed.
pub fn set_repair(socket: BorrowedFd<'_>, mode: i32) -> io::Result<()> {
    set(socket, libc::TCP_REPAIR, mode)
}

fn set<T: Copy>(socket: BorrowedFd<'_>, name: c_int, value: T) -> io::Result<()> {
    sockopt::set(socket, libc::SOL_TCP, name, value)
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

/// A queue of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    None = 0,
    Receive = 1,
    Send = 2,
}

/// Chooses the queue that [`sequence`], [`set_sequence`] and reading and writing are about, of a socket in repair mode.
///
/// # Errors
/// Those of setsockopt(2): EPERM if it is not in repair mode.
pub fn choose(socket: BorrowedFd<'_>, queue: Queue) -> io::Result<()> {
    set(socket, libc::TCP_REPAIR_QUEUE, queue as c_int)
}

/// The sequence number behind the last octet of the queue chosen, a FIN included.
///
/// # Errors
/// Those of getsockopt(2).
pub fn sequence(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut value = 0_u32;
    get(socket, libc::TCP_QUEUE_SEQ, &mut value)?;
    Ok(value)
}

/// Sets the sequence number of the first octet of the queue chosen, before the socket is connected.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_sequence(socket: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    set(socket, libc::TCP_QUEUE_SEQ, value)
}

/// The windows of a connection, as `struct tcp_repair_window` has them.
///
/// # Errors
/// Those of getsockopt(2): EPERM out of repair mode.
pub fn window(socket: BorrowedFd<'_>) -> io::Result<[u32; 5]> {
    let mut window = [0; 5];
    get(socket, libc::TCP_REPAIR_WINDOW, &mut window)?;
    Ok(window)
}

/// Sets what [`window`] returns.
///
/// # Errors
/// Those of setsockopt(2): EINVAL if the kernel finds it contradicts the queues.
pub fn set_window(socket: BorrowedFd<'_>, window: [u32; 5]) -> io::Result<()> {
    set(socket, libc::TCP_REPAIR_WINDOW, window)
}

/// What the timestamps of a connection show now (TCP_TIMESTAMP).
///
/// # Errors
/// Those of getsockopt(2).
pub fn timestamp(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut value = 0_u32;
    get(socket, libc::TCP_TIMESTAMP, &mut value)?;
    Ok(value)
}

/// Has timestamps go on from here. Since Linux 6.7 an odd value has them count microseconds from now on.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_timestamp(socket: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    set(socket, libc::TCP_TIMESTAMP, value)
}

/// The segment size the peer announced; in repair mode only.
///
/// # Errors
/// Those of getsockopt(2).
pub fn segment_size(socket: BorrowedFd<'_>) -> io::Result<u16> {
    let mut value: c_int = 0;
    get(socket, libc::TCP_MAXSEG, &mut value)?;
    u16::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What was agreed on in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The segment size the peer announced.
    pub mss: u16,
    /// Shifts of the peer's windows and of ours.
    pub scales: Option<(u8, u8)>,
    pub sack: bool,
    pub timestamps: bool,
}

/// Sets what was agreed on in the handshake of a connection in repair mode.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_agreed(socket: BorrowedFd<'_>, agreed: Agreed) -> io::Result<()> {
    // TCPOPT_MSS, TCPOPT_WINDOW, TCPOPT_SACK_PERMITTED and TCPOPT_TIMESTAMP, as `struct tcp_repair_opt`.
    // Without a word about scales the kernel would go on with those it had in mind to ask for.
    let (theirs, ours) = agreed.scales.unwrap_or_default();
    let both = u32::from(theirs) | u32::from(ours) << 16;
    let options = [
        Some((2, agreed.mss.into())),
        Some((3, both)),
        agreed.sack.then_some((4, 0)),
        agreed.timestamps.then_some((8, 0)),
    ];
    for (code, value) in options.into_iter().flatten() {
        set::<[u32; 2]>(socket, libc::TCP_REPAIR_OPTIONS, [code, value])?;
    }
    Ok(())
}

/// A connection as the kernel tells of it (`struct tcp_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// `TCP_ESTABLISHED` and so on (linux/tcp_states.h).
    pub state: u8,
    pub scales: Option<(u8, u8)>,
    pub sack: bool,
    pub timestamps: bool,
    /// Timestamps count microseconds (Linux 6.7).
    pub micros: bool,
    /// Octets that were never sent.
    pub unsent: u32,
}

/// Reads [`Info`].
///
/// # Errors
/// Those of getsockopt(2).
pub fn info(socket: BorrowedFd<'_>) -> io::Result<Info> {
    // As far as tcpi_notsent_bytes, which is the 37th word (Linux 4.6).
    let mut words = [0_u32; 37];
    get(socket, libc::TCP_INFO, &mut words)?;
    let [state, _, _, _, _, options, scales, _] = {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&words[0].to_ne_bytes());
        head[4..].copy_from_slice(&words[1].to_ne_bytes());
        head
    };
    // The lower four bits in memory order: a bit-field begins at the other end where octets do.
    let (low, high) = (scales & 0xf, scales >> 4);
    let both = if cfg!(target_endian = "little") {
        (low, high)
    } else {
        (high, low)
    };
    // TCPI_OPT_TIMESTAMPS, TCPI_OPT_SACK, TCPI_OPT_WSCALE, TCPI_OPT_USEC_TS.
    Ok(Info {
        state,
        scales: (options & 4 != 0).then_some(both),
        sack: options & 2 != 0,
        timestamps: options & 1 != 0,
        micros: options & 64 != 0,
        unsent: words[36],
    })
}

/// Octets that the queues hold at most: the memory they take (SO_MEMINFO), of the receive queue and the send queue.
///
/// # Errors
/// Those of getsockopt(2).
pub fn queued(socket: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    // linux/sock_diag.h: SK_MEMINFO_RMEM_ALLOC is the first of the array, SK_MEMINFO_WMEM_QUEUED the sixth.
    let mut info = [0_u32; 9];
    sockopt::get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut info)?;
    Ok((info[0] as usize, info[5] as usize))
}

/// Has the kernel size a socket's buffers again by itself, after SO_RCVBUF and SO_SNDBUF (SO_BUF_LOCK, Linux 5.15).
///
/// # Errors
/// Those of setsockopt(2).
pub fn unlock_buffers(socket: BorrowedFd<'_>) -> io::Result<()> {
    const SO_BUF_LOCK: c_int = 72;
    let none: c_int = 0;
    sockopt::set(socket, libc::SOL_SOCKET, SO_BUF_LOCK, none)
}

fn get<T: Copy>(socket: BorrowedFd<'_>, name: c_int, value: &mut T) -> io::Result<()> {
    sockopt::get(socket, libc::SOL_TCP, name, value).map(drop)
}
