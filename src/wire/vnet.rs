//! The header before each frame in a virtio-net queue (virtio 1.2, section 5.1.6), and checksums that are left to the reader.

use std::net::IpAddr;

use super::{build::ETHERNET_LEN, checksum::Sum};
use crate::net::number::{TCP, UDP};

/// Octets of the header; without VERSION_1 and MRG_RXBUF the last field is missing.
pub const LEN: usize = 12;
pub const LEN_LEGACY: usize = 10;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u8 = 1;

/// VIRTIO_NET_HDR_GSO_*; the uppermost bit says that the segment may carry ECN marks.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What a header says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vnet {
    /// Where in the frame checksumming starts, and where behind that the checksum is to be stored.
    pub checksum: Option<(u16, u16)>,
    pub cut: Cut,
    /// Octets of all headers, as a hint.
    pub headers: u16,
    /// Buffers that the frame spans.
    pub buffers: u16,
}

/// Into what a frame is to be cut before it may travel, by octets of payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cut {
    #[default]
    Whole,
    Tcp4(u16),
    Tcp6(u16),
    Udp(u16),
    /// Something that was not negotiated.
    Unknown,
}

impl Vnet {
    /// Reads the header of a frame from the guest.
    #[must_use]
    pub const fn read(header: &[u8; LEN_LEGACY]) -> Self {
        let &[flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = header;
        let size = u16::from_le_bytes([s0, s1]);
        let checksum = if flags & NEEDS_CSUM == 0 {
            None
        } else {
            Some((u16::from_le_bytes([c0, c1]), u16::from_le_bytes([o0, o1])))
        };
        let cut = match kind & !GSO_ECN {
            GSO_NONE => Cut::Whole,
            GSO_TCPV4 => Cut::Tcp4(size),
            GSO_TCPV6 => Cut::Tcp6(size),
            GSO_UDP_L4 if size > 0 => Cut::Udp(size),
            _ => Cut::Unknown,
        };
        Self {
            checksum,
            cut,
            headers: u16::from_le_bytes([h0, h1]),
            buffers: 0,
        }
    }

    /// Writes the header of a frame to the guest; of a legacy driver's, the first octets count.
    #[must_use]
    pub fn write(self) -> [u8; LEN] {
        let (kind, size) = match self.cut {
            Cut::Whole | Cut::Unknown => (GSO_NONE, 0),
            Cut::Tcp4(size) => (GSO_TCPV4, size),
            Cut::Tcp6(size) => (GSO_TCPV6, size),
            Cut::Udp(size) => (GSO_UDP_L4, size),
        };
        let (start, offset) = self.checksum.unwrap_or((0, 0));
        let mut out = [0; LEN];
        out[0] = if self.checksum.is_some() {
            NEEDS_CSUM
        } else {
            0
        };
        out[1] = kind;
        let fields = [self.headers, size, start, offset, self.buffers];
        for (octets, field) in out[2..].chunks_exact_mut(2).zip(fields) {
            octets.copy_from_slice(&field.to_le_bytes());
        }
        out
    }
}

/// Whether the first 256 octets of a frame are enough to tell what becomes of it: TCP and UDP are carried, whatever their
/// payload. Messages to services, fragments and all else is read whole.
#[must_use]
pub fn is_carried(head: &[u8]) -> bool {
    let (protocol, at) = match head.get(12..14) {
        Some([0x08, 0x00]) => {
            let Some(&[first, _, _, _, _, _, high, low, _, protocol]) =
                head.get(ETHERNET_LEN..).and_then(<[u8]>::first_chunk)
            else {
                return false;
            };
            // More fragments, or not the first one (RFC 791, section 3.1).
            if high & 0x3f != 0 || low != 0 {
                return false;
            }
            (protocol, ETHERNET_LEN + 4 * usize::from(first & 0xf))
        }
        Some([0x86, 0xdd]) => (
            head.get(ETHERNET_LEN + 6).copied().unwrap_or(0),
            ETHERNET_LEN + 40,
        ),
        _ => return false,
    };
    match protocol {
        TCP => true,
        UDP => !matches!(
            head.get(at + 2..at + 4),
            None | Some([0, 67] | [0x02, 0x23])
        ),
        _ => false,
    }
}

/// Leaves the checksum of a TCP segment or UDP datagram to its reader: the pseudo-header's sum takes its place. `headers` are
/// those of a frame of ours (no IPv4 options, no extension headers) with `payload` octets behind them. Returns where
/// checksumming starts and where the result goes; `None` for anything else, which stays as it is.
pub fn leave_checksum(headers: &mut [u8], payload: usize) -> Option<(u16, u16)> {
    let (protocol, start) = match headers.get(12..14)? {
        [0x08, 0x00] => (*headers.get(ETHERNET_LEN + 9)?, ETHERNET_LEN + 20),
        [0x86, 0xdd] => (*headers.get(ETHERNET_LEN + 6)?, ETHERNET_LEN + 40),
        _ => return None,
    };
    let offset = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let (src, dst) = if start == ETHERNET_LEN + 20 {
        let at = |at: usize| Some(IpAddr::from(*headers.get(at..)?.first_chunk::<4>()?));
        (at(ETHERNET_LEN + 12)?, at(ETHERNET_LEN + 16)?)
    } else {
        let at = |at: usize| Some(IpAddr::from(*headers.get(at..)?.first_chunk::<16>()?));
        (at(ETHERNET_LEN + 8)?, at(ETHERNET_LEN + 24)?)
    };
    let len = headers.len().checked_sub(start)? + payload;
    let sum = !Sum::pseudo(src, dst, protocol, len).finish();
    headers
        .get_mut(start + offset..start + offset + 2)?
        .copy_from_slice(&sum.to_be_bytes());
    Some((start as u16, offset as u16))
}

/// Where a UDP header has its checksum.
const UDP_CHECKSUM: u16 = 6;

/// Completes a checksum that the sender of a whole frame left to us. What lies outside the frame is left alone.
pub fn complete_checksum(frame: &mut [u8], place: (u16, u16)) {
    complete_checksum_before(frame, &[], place);
}

/// The same of a frame whose payload lies apart from its headers.
pub fn complete_checksum_before(frame: &mut [u8], payload: &[u8], (start, offset): (u16, u16)) {
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    let sum = Sum::new().bytes(frame.get(start..).unwrap_or_default());
    let sum = sum.plus(Sum::new().bytes(payload));
    let sum = if offset == UDP_CHECKSUM {
        sum.finish_datagram()
    } else {
        sum.finish()
    };
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::{Endpoint, Mac, Seq},
        wire::{
            headers::{HEADERS_MAX, TcpFields, Template},
            tcp::Flags,
        },
    };

    fn segment(v6: bool, payload: &[u8]) -> (Vec<u8>, usize) {
        let end = |addr: &str| Endpoint::new(addr.parse().unwrap(), 443);
        let (src, dst) = if v6 {
            (end("2001:db8::1"), end("fd00::2"))
        } else {
            (end("198.51.100.1"), end("10.0.2.15"))
        };
        let fields = TcpFields {
            seq: Seq(1),
            ack: Seq(2),
            flags: Flags::ACK,
            window: 9,
            options: None,
        };
        let mut headers = [0; HEADERS_MAX];
        let len = Template::new(Mac([2; 6]), Mac([4; 6]), src, dst, 7).tcp(
            &mut headers,
            fields,
            payload.len(),
            Sum::new().bytes(payload),
        );
        ([&headers[..len], payload].concat(), len)
    }

    #[test]
    fn a_checksum_that_was_left_and_completed_is_the_one_it_was() {
        for v6 in [false, true] {
            let (whole, headers) = segment(v6, b"payload, and an odd octet");
            let mut frame = whole.clone();
            let payload = frame.len() - headers;
            let left = leave_checksum(&mut frame[..headers], payload).unwrap();
            assert_ne!(frame, whole);
            complete_checksum(&mut frame, left);
            assert_eq!(frame, whole);
        }
    }

    #[test]
    fn frames_that_are_neither_tcp_nor_udp_keep_their_checksum() {
        let (mut frame, _) = segment(false, b"");
        frame[ETHERNET_LEN + 9] = 1;
        let before = frame.clone();
        assert_eq!(leave_checksum(&mut frame, 0), None);
        assert_eq!(leave_checksum(&mut frame[..20], 0), None);
        assert_eq!(leave_checksum(&mut [], 0), None);
        assert_eq!(frame, before);
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for cut in [Cut::Whole, Cut::Tcp4(1460), Cut::Tcp6(1440), Cut::Udp(1400)] {
            let header = Vnet {
                checksum: Some((34, 16)),
                cut,
                headers: 54,
                buffers: 0,
            };
            let octets = header.write();
            assert_eq!(Vnet::read(octets.first_chunk().unwrap()), header);
        }
        assert_eq!(
            Vnet {
                buffers: 3,
                ..Vnet::default()
            }
            .write()[10..],
            [3, 0]
        );
        let ecn = Vnet::read(&[0, 0x81, 54, 0, 0xb4, 5, 0, 0, 0, 0]);
        assert_eq!((ecn.cut, ecn.checksum), (Cut::Tcp4(1460), None));
        assert_eq!(
            Vnet::read(&[0, 3, 0, 0, 9, 0, 0, 0, 0, 0]).cut,
            Cut::Unknown
        );
    }

    #[test]
    fn a_completed_checksum_of_a_datagram_is_never_none() {
        let mut octets = [0; 20];
        octets[..2].fill(0xff);
        for (offset, wanted) in [(UDP_CHECKSUM, [0xff; 2]), (16, [0; 2])] {
            let (at, mut frame) = (usize::from(offset), octets);
            complete_checksum(&mut frame, (0, offset));
            assert_eq!(frame[at..at + 2], wanted);
        }
    }

    #[test]
    fn what_services_and_fragments_need_is_read_whole() {
        let (tcp, _) = segment(false, b"x");
        assert!(is_carried(&tcp) && is_carried(&segment(true, b"x").0));
        let mut udp = tcp;
        udp[ETHERNET_LEN + 9] = UDP;
        assert!(is_carried(&udp));
        let mut fragment = udp.clone();
        fragment[ETHERNET_LEN + 6] = 0x20;
        let mut dhcp = udp.clone();
        dhcp[ETHERNET_LEN + 22..ETHERNET_LEN + 24].copy_from_slice(&67_u16.to_be_bytes());
        let mut dhcpv6 = segment(true, b"x").0;
        dhcpv6[ETHERNET_LEN + 6] = UDP;
        dhcpv6[ETHERNET_LEN + 42..ETHERNET_LEN + 44].copy_from_slice(&547_u16.to_be_bytes());
        for whole in [
            &fragment[..],
            &dhcp,
            &dhcpv6,
            &udp[..ETHERNET_LEN + 22],
            &udp[..5],
        ] {
            assert!(!is_carried(whole), "{whole:02x?}");
        }
    }

    #[test]
    fn a_checksum_outside_its_frame_is_left_alone() {
        let mut frame = [1; 20];
        complete_checksum(&mut frame, (u16::MAX, u16::MAX));
        complete_checksum(&mut frame, (10, 9));
        assert_eq!(frame, [1; 20]);
    }
}
