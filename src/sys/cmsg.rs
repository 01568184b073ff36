//! Ancillary data (cmsg(3)), read and written as octets in the layout of the kernel's `struct cmsghdr`: a length that counts
//! the header too, level and type, then the data; each message starts aligned to a word.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// Octets that the marks of a datagram, or an error it met, never fill.
const ROOMY: usize = 256;

/// Space for the ancillary data of one message, aligned as the kernel has it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control<const LEN: usize = ROOMY>(pub(crate) [u8; LEN]);

impl<const LEN: usize> Control<LEN> {
    pub(super) const LEN: usize = LEN;

    pub(crate) const fn new() -> Self {
        Self([0; LEN])
    }
}

/// A message that was received.
#[derive(Debug)]
pub(super) struct Message<'a> {
    /// Octets of it in the buffer.
    pub(super) len: usize,
    /// Its ancillary data.
    pub(super) control: &'a [u8],
    /// What the kernel says of it: MSG_CTRUNC and the like.
    pub(super) flags: i32,
}

/// Receives a message with its ancillary data, and into `name`, unless that is empty, who sent it. Never blocks.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is nothing.
pub(super) fn receive<'a, const LEN: usize>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    name: &mut [u8],
    control: &'a mut Control<LEN>,
    flags: i32,
) -> io::Result<Message<'a>> {
    let mut iovec = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    if !name.is_empty() {
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = name.len() as _;
    }
    header.msg_control = ptr::from_mut(control).cast();
    header.msg_controllen = LEN as _;
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: `header` points to one iovec over `buffer`, to `name` or nothing, and to `control`, with their true lengths; all
    // are borrowed mutably until after the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let written = control.0.get(..header.msg_controllen as usize);
    Ok(Message {
        len: len.min(buffer.len()),
        control: written.unwrap_or_default(),
        flags: header.msg_flags,
    })
}

/// What came with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// Time to live, or hop limit.
    pub ttl: Option<u8>,
    /// Type of service, or traffic class.
    pub tos: Option<u8>,
    /// Octets of each of several datagrams that were received as one (UDP_GRO, udp(7)); the last may be shorter.
    pub segment: Option<u16>,
}

const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;

impl Marks {
    /// Reads what the kernel has written.
    pub(super) fn read(control: &[u8]) -> Self {
        let mut marks = Self::default();
        for (level, kind, data) in messages(control) {
            match (level, kind) {
                (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
                    marks.ttl = number(data).and_then(|ttl| u8::try_from(ttl).ok());
                }
                (libc::SOL_IP, libc::IP_TOS) => marks.tos = data.first().copied(),
                (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
                    marks.tos = number(data).and_then(|tos| u8::try_from(tos).ok());
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    marks.segment = number(data)
                        .and_then(|octets| u16::try_from(octets).ok())
                        .filter(|&octets| octets > 0);
                }
                _ => {}
            }
        }
        marks
    }
}

/// The messages in a control buffer: level, type and data of each, as far as they are whole.
pub(super) fn messages(mut control: &[u8]) -> impl Iterator<Item = (i32, i32, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from_ne_bytes(*control.first_chunk()?);
        let level = i32::from_ne_bytes(*control.get(WORD..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*control.get(WORD + 4..)?.first_chunk()?);
        let data = control.get(HEADER..len)?;
        control = control
            .get(len.next_multiple_of(WORD)..)
            .unwrap_or_default();
        Some((level, kind, data))
    })
}

/// Octets of a message whose data is two octets.
pub(super) const OF_U16: usize = (HEADER + 2).next_multiple_of(WORD);

/// Writes one message whose data is two octets.
pub(super) fn write_u16(control: &mut Control<OF_U16>, level: i32, kind: i32, value: u16) {
    let out = &mut control.0;
    out[..WORD].copy_from_slice(&(HEADER + 2).to_ne_bytes());
    out[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
    out[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
    out[HEADER..HEADER + 2].copy_from_slice(&value.to_ne_bytes());
}

fn number(data: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*data.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_c_library() {
        // SAFETY: these compute with their argument only.
        let (header, space) = unsafe { (libc::CMSG_LEN(0), libc::CMSG_SPACE(2)) };
        assert_eq!(header as usize, HEADER);
        assert_eq!(OF_U16, space as usize);
        let mut control = Control::new();
        write_u16(&mut control, libc::SOL_UDP, libc::UDP_SEGMENT, 1400);
        let read: Vec<_> = messages(&control.0).collect();
        let octets = 1400_u16.to_ne_bytes();
        assert_eq!(read, [(libc::SOL_UDP, libc::UDP_SEGMENT, &octets[..])]);
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let mut control = Control::new();
        write_u16(&mut control, 1, 2, 3);
        for len in 0..HEADER + 2 {
            assert_eq!(messages(&control.0[..len]).count(), 0, "{len}");
        }
        control.0[..WORD].copy_from_slice(&3_usize.to_ne_bytes());
        assert_eq!(messages(&control.0).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
