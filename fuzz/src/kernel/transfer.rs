//! How octets and errors get into the memory that a call lends, and out of it.

use libc::{c_int, c_uint, iovec, msghdr, ssize_t};

use super::{
    sockets::{Kind, die, fail, on, with},
    stream::{is_stream, stream},
};

/// The pieces of memory a message names.
///
/// # Safety
/// `message` must be what the C library's caller has promised it to be.
pub(super) unsafe fn pieces(message: *const msghdr) -> Vec<(*mut u8, usize)> {
    // SAFETY: see above.
    unsafe {
        let list: *const iovec = (*message).msg_iov;
        (0..(*message).msg_iovlen)
            .map(|n| {
                let piece = *list.add(n);
                (piece.iov_base.cast::<u8>(), piece.iov_len)
            })
            .collect()
    }
}

pub(super) fn send_into(fd: c_int, octets: &[u8]) -> Result<usize, c_int> {
    use libc::{
        EAGAIN, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EMSGSIZE, ENOBUFS, ENOMEM, EPERM, EPIPE,
    };
    with(|kernel| {
        let Some(kind) = kernel.socket(fd).map(|socket| socket.kind) else {
            die("a write to a descriptor that is closed")
        };
        let errors: &[c_int] = match kind {
            Kind::Link => &[EAGAIN, ENOMEM, ENOBUFS],
            Kind::Tcp => &[EAGAIN, ECONNRESET, EPIPE, ENOBUFS, ENOMEM],
            _ => &[EAGAIN, ENOBUFS, EPERM, ECONNREFUSED, EMSGSIZE, EHOSTUNREACH],
        };
        if kind == Kind::Link {
            let room = kernel.link_room.min(octets.len());
            if room == 0 || kernel.verdict(errors).is_err() {
                return Err(EAGAIN);
            }
            kernel.link_room -= room;
            kernel.to_guest.extend_from_slice(&octets[..room]);
            return Ok(room);
        }
        kernel.verdict(errors)?;
        let checks = kernel.checks_upload;
        let Some(socket) = kernel.socket(fd) else {
            return Err(libc::EBADF);
        };
        if kind != Kind::Tcp {
            return Ok(octets.len());
        }
        if socket.shut || socket.connecting {
            return Err(EPIPE);
        }
        let room = socket.room.min(octets.len());
        if room == 0 {
            return Err(EAGAIN);
        }
        trace!(
            "socket {fd}: takes {room} of {} octets at {}",
            octets.len(),
            socket.taken
        );
        if checks && !is_stream(socket.taken, &octets[..room]) {
            die("the guest's stream arrives changed");
        }
        socket.room -= room;
        socket.taken += room as u64;
        Ok(room)
    })
}

/// Writes what there is to read into `pieces`; `None` for memory means that it is thrown away.
pub(super) fn receive_from(
    fd: c_int,
    pieces: &[(*mut u8, usize)],
    flags: c_int,
) -> Result<usize, c_int> {
    use libc::{EAGAIN, ECONNREFUSED, ECONNRESET, ENOBUFS, ENOMEM};
    let want: usize = pieces.iter().map(|(_, len)| len).sum();
    with(|kernel| {
        let Some(kind) = kernel.socket(fd).map(|socket| socket.kind) else {
            die("a read from a descriptor that is closed")
        };
        let mut out = Writer { pieces, at: 0 };
        if kind == Kind::Link {
            if kernel.from_guest.is_empty() {
                return if kernel.link_closed {
                    Ok(0)
                } else {
                    Err(EAGAIN)
                };
            }
            let octets = want.min(kernel.from_guest.len());
            out.put(&kernel.from_guest[..octets]);
            kernel.from_guest.drain(..octets);
            return Ok(octets);
        }
        kernel.verdict(match kind {
            Kind::Tcp => &[ECONNRESET, EAGAIN, ENOMEM],
            _ => &[ECONNREFUSED, EAGAIN, ENOMEM, ENOBUFS],
        })?;
        let Some(socket) = kernel.socket(fd) else {
            return Err(libc::EBADF);
        };
        if kind == Kind::Tcp {
            let peeks = flags & libc::MSG_PEEK != 0;
            let start = socket.read + socket.peek.filter(|_| peeks).unwrap_or(0);
            let octets = (want as u64).min(socket.sent_by_peer.saturating_sub(start));
            if octets == 0 && want > 0 {
                return if socket.ended { Ok(0) } else { Err(EAGAIN) };
            }
            if flags & libc::MSG_TRUNC == 0 {
                stream(start, octets as usize).for_each(|piece| out.put(piece));
            }
            if peeks {
                socket.peek = socket.peek.map(|at| at + octets);
            } else {
                socket.read += octets;
                socket.peek = socket.peek.map(|at| at.saturating_sub(octets));
            }
            return Ok(octets as usize);
        }
        let len = usize::from(socket.waiting.pop_front().ok_or(EAGAIN)?);
        let octets = len.min(want);
        stream(0, octets).for_each(|piece| out.put(piece));
        Ok(octets)
    })
}

struct Writer<'a> {
    pieces: &'a [(*mut u8, usize)],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, mut octets: &[u8]) {
        while let ([(memory, len), rest @ ..], false) = (self.pieces, octets.is_empty()) {
            let (now, later) = octets.split_at(octets.len().min(*len - self.at));
            // SAFETY: the caller of the C library's function has lent this memory for writing, `len` octets of it.
            unsafe {
                memory
                    .add(self.at)
                    .copy_from_nonoverlapping(now.as_ptr(), now.len())
            };
            self.at += now.len();
            octets = later;
            if self.at == *len {
                (self.pieces, self.at) = (rest, 0);
            }
        }
    }
}

/// Writes a `sock_extended_err` with the offender's address as the only control message.
///
/// # Safety
/// As [`pieces`].
pub(super) unsafe fn take_error(fd: c_int, message: *mut msghdr) -> ssize_t {
    let Some((kind, code)) = on(fd, |socket| socket.errors.pop_front()) else {
        return fail(libc::EAGAIN) as ssize_t;
    };
    let (v6, name) = on(fd, |socket| (socket.v6, socket.name(0)));
    // SAFETY: the control buffer is the caller's, with its true length; the macros stay inside it.
    unsafe {
        let error = libc::sock_extended_err {
            ee_errno: libc::EHOSTUNREACH as u32,
            ee_origin: if v6 {
                libc::SO_EE_ORIGIN_ICMP6
            } else {
                libc::SO_EE_ORIGIN_ICMP
            },
            ee_type: kind,
            ee_code: code,
            ee_pad: 0,
            ee_info: u32::from(code) << 4,
            ee_data: 0,
        };
        let len = size_of_val(&error) + name.len();
        let header = libc::CMSG_FIRSTHDR(message);
        let space = libc::CMSG_SPACE(len as c_uint) as usize;
        if !header.is_null() && (*message).msg_controllen >= space {
            (*header).cmsg_len = libc::CMSG_LEN(len as c_uint) as _;
            ((*header).cmsg_level, (*header).cmsg_type) = if v6 {
                (libc::SOL_IPV6, libc::IPV6_RECVERR)
            } else {
                (libc::SOL_IP, libc::IP_RECVERR)
            };
            let data = libc::CMSG_DATA(header);
            data.cast::<libc::sock_extended_err>()
                .write_unaligned(error);
            data.add(size_of_val(&error))
                .copy_from_nonoverlapping(name.as_ptr(), name.len());
            (*message).msg_controllen = space as _;
        }
        let list = pieces(message);
        let mut out = Writer {
            pieces: &list,
            at: 0,
        };
        let quoted = list.iter().map(|(_, len)| len).sum::<usize>().min(32);
        stream(0, quoted).for_each(|piece| out.put(piece));
        quoted as ssize_t
    }
}
