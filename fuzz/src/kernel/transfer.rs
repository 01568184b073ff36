//! How octets and errors get into the memory that a call lends, and out of it.

use libc::{c_int, c_uint, iovec, msghdr, ssize_t};

use super::{
    sockets::{Kind, Socket, Waiting, die, fail, on, with},
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

/// Hands octets over; to be cut into datagrams of `segment` octets, if that is not zero.
pub(super) fn send_into(fd: c_int, octets: &[u8], segment: usize) -> Result<usize, c_int> {
    let Some(kind) = with(|kernel| kernel.socket(fd).map(|socket| socket.kind)) else {
        die("a write to a descriptor that is closed")
    };
    with(|kernel| match kind {
        Kind::Link => {
            let room = kernel.link_room.min(octets.len());
            let errors = [libc::EAGAIN, libc::ENOMEM, libc::ENOBUFS];
            if room == 0 {
                return Err(libc::EAGAIN);
            }
            kernel.verdict(&errors)?;
            kernel.link_room -= room;
            kernel.to_guest.extend_from_slice(&octets[..room]);
            Ok(room)
        }
        Kind::Tcp => {
            kernel.verdict(&TCP_SEND)?;
            let checks = kernel.checks_upload;
            let socket = kernel.socket(fd).ok_or(libc::EBADF)?;
            take_stream(socket, octets, checks)
        }
        _ => {
            kernel.verdict(&DATAGRAM_SEND)?;
            if octets.len() > DATAGRAM_MOST {
                return Err(libc::EMSGSIZE);
            }
            if segment > 0 && octets.len() > SEGMENTS_MOST * segment {
                return Err(libc::EINVAL);
            }
            let cut = if segment > 0 { segment } else { octets.len() };
            let mut datagrams = octets.chunks(cut.max(1));
            let mut intact = |datagram: &[u8]| {
                let octet = filling(datagram.len());
                datagram.iter().all(|found| *found == octet)
            };
            if kernel.checks_upload && kind == Kind::Udp && !datagrams.all(&mut intact) {
                die("a datagram of the guest arrives changed");
            }
            Ok(octets.len())
        }
    })
}

/// The octet that datagrams of the guest repeat: each length has one, so neither contents nor borders change unnoticed.
pub fn filling(len: usize) -> u8 {
    (len % 251) as u8
}

const TCP_SEND: [c_int; 5] = [
    libc::EAGAIN,
    libc::ECONNRESET,
    libc::EPIPE,
    libc::ENOBUFS,
    libc::ENOMEM,
];

const DATAGRAM_SEND: [c_int; 8] = [
    libc::EAGAIN,
    libc::ENOBUFS,
    libc::EPERM,
    libc::ECONNREFUSED,
    libc::EMSGSIZE,
    libc::EHOSTUNREACH,
    libc::EIO,
    libc::EINVAL,
];

/// The largest payload of IPv4's UDP, and how many datagrams one message may be cut into (linux/udp.h).
const DATAGRAM_MOST: usize = 65_507;
const SEGMENTS_MOST: usize = 128;

fn take_stream(socket: &mut Socket, octets: &[u8], checks: bool) -> Result<usize, c_int> {
    if socket.shut || socket.connecting {
        return Err(libc::EPIPE);
    }
    let room = socket.room.min(octets.len());
    if room == 0 {
        return Err(libc::EAGAIN);
    }
    let at = socket.taken;
    trace!("takes {room} of {} octets at {at}", octets.len());
    if checks && !is_stream(at, &octets[..room]) {
        die("the guest's stream arrives changed");
    }
    socket.room -= room;
    socket.taken += room as u64;
    Ok(room)
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
            return give_stream(socket, &mut out, want, flags);
        }
        let waiting = socket.waiting.pop_front().ok_or(EAGAIN)?;
        let len = usize::from(waiting.len).min(want);
        let cut = match usize::from(waiting.segment) {
            segment if segment > 0 && socket.together => segment,
            _ => len,
        };
        let mut left = len;
        if kind == Kind::Echo {
            let kind = if socket.v6 { 129 } else { 0 };
            let header = [kind, 0, 0, 0, 0x77, 0x77, 0, 1];
            left -= left.min(8);
            out.put(&header[..len.min(8)]);
        }
        while left > 0 {
            stream(0, left.min(cut)).for_each(|piece| out.put(piece));
            left -= left.min(cut);
        }
        Ok(len)
    })
}

/// Gives octets of the stream, or throws them away, or says that there are no more.
fn give_stream(
    socket: &mut Socket,
    out: &mut Writer<'_>,
    want: usize,
    flags: c_int,
) -> Result<usize, c_int> {
    let peeks = flags & libc::MSG_PEEK != 0;
    let start = socket.read + socket.peek.filter(|_| peeks).unwrap_or(0);
    let octets = (want as u64).min(socket.sent_by_peer.saturating_sub(start));
    if octets == 0 && want > 0 {
        return if socket.ended {
            Ok(0)
        } else {
            Err(libc::EAGAIN)
        };
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
    Ok(octets as usize)
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

/// Ancillary data in the making, in the caller's buffer.
pub(super) struct Control {
    message: *mut msghdr,
    room: usize,
    used: usize,
}

impl Control {
    /// # Safety
    /// As [`pieces`]; the control buffer must be lent for writing with its true length.
    pub unsafe fn new(message: *mut msghdr) -> Self {
        // SAFETY: see above.
        let (memory, room) = unsafe { ((*message).msg_control, (*message).msg_controllen) };
        Self {
            message,
            room: if memory.is_null() { 0 } else { room },
            used: 0,
        }
    }

    pub fn put(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        // SAFETY: these compute with their argument only.
        let (len, space) = unsafe {
            let octets = data.len() as c_uint;
            (libc::CMSG_LEN(octets), libc::CMSG_SPACE(octets) as usize)
        };
        if self.used + space > self.room {
            return;
        }
        // SAFETY: `space` octets from `used` on lie in the caller's buffer, as was just found.
        unsafe {
            let at = (*self.message).msg_control.cast::<u8>().add(self.used);
            at.write_bytes(0, space);
            at.cast::<usize>().write_unaligned(len as usize);
            at.add(8)
                .cast::<[c_int; 2]>()
                .write_unaligned([level, kind]);
            at.add(16)
                .copy_from_nonoverlapping(data.as_ptr(), data.len());
        }
        self.used += space;
    }

    pub fn finish(self) {
        // SAFETY: the header is the caller's.
        unsafe { (*self.message).msg_controllen = self.used };
    }
}

/// What the kernel tells of a datagram besides its octets.
pub(super) fn mark(control: &mut Control, socket: &Socket, waiting: Waiting) {
    let number = |value: u16| c_int::from(value).to_ne_bytes();
    let (ttl, tos) = (waiting.ttl.into(), waiting.tos.into());
    // An IPv4 peer at a socket for both families is told of as IPv4's.
    let v4 = !socket.v6 || socket.kind == Kind::Listener && waiting.port & 1 == 0;
    if v4 {
        control.put(libc::SOL_IP, libc::IP_TTL, &number(ttl));
        control.put(libc::SOL_IP, libc::IP_TOS, &[waiting.tos]);
    } else {
        control.put(libc::SOL_IPV6, libc::IPV6_HOPLIMIT, &number(ttl));
        control.put(libc::SOL_IPV6, libc::IPV6_TCLASS, &number(tos));
    }
    if waiting.segment > 0 && socket.together {
        control.put(libc::SOL_UDP, libc::UDP_GRO, &number(waiting.segment));
    }
    if socket.kind == Kind::Listener && v4 {
        let info = [2_u32.to_ne_bytes(), [192, 0, 2, 15], [192, 0, 2, 15]];
        control.put(libc::SOL_IP, libc::IP_PKTINFO, info.as_flattened());
    } else if socket.kind == Kind::Listener {
        let first = if waiting.tos == 0 { 0xff } else { 0x20 };
        let mut info = [0; 20];
        info[..4].copy_from_slice(&[first, 1, 0xd, 0xb8]);
        (info[15], info[16]) = (0x15, 2);
        control.put(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
    }
}

/// Writes a `sock_extended_err` with the offender's address as the only control message.
///
/// # Safety
/// As [`pieces`].
pub(super) unsafe fn take_error(fd: c_int, message: *mut msghdr) -> ssize_t {
    let taken = on(fd, |socket| {
        let error = socket.errors.pop_front()?;
        Some((error, socket.v6, socket.kind, socket.name(0)))
    });
    let Some(((kind, code), v6, socket, name)) = taken else {
        return fail(libc::EAGAIN) as ssize_t;
    };
    let (level, message_kind, origin) = if v6 {
        (libc::SOL_IPV6, libc::IPV6_RECVERR, libc::SO_EE_ORIGIN_ICMP6)
    } else {
        (libc::SOL_IP, libc::IP_RECVERR, libc::SO_EE_ORIGIN_ICMP)
    };
    let mut data = Vec::new();
    data.extend(libc::EHOSTUNREACH.to_ne_bytes());
    data.extend([origin, kind, code, 0]);
    data.extend((u32::from(code) << 4).to_ne_bytes());
    data.extend([0; 4]);
    data.extend(name);
    // SAFETY: the header, and what it names, is lent by the caller.
    let list = unsafe {
        let mut control = Control::new(message);
        control.put(level, message_kind, &data);
        control.finish();
        pieces(message)
    };
    let mut out = Writer {
        pieces: &list,
        at: 0,
    };
    let mut quoted = list.iter().map(|(_, len)| len).sum::<usize>().min(32);
    if socket == Kind::Echo {
        let request = [if v6 { 128 } else { 8 }, 0, 0, 0, 0x77, 0x77, 0, 1];
        quoted = quoted.min(8);
        out.put(&request[..quoted]);
    } else {
        stream(0, quoted).for_each(|piece| out.put(piece));
    }
    quoted as ssize_t
}
