//! ICMP and ICMPv6 messages to the guest: errors that quote what it sent, and echoes under its own identifier.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    build::{Ends, Ip4, Ip6, icmp4, icmp6},
    checksum::Sum,
};

/// An ICMP error (RFC 792), without what it quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error4 {
    /// Type 3, of any code but 4.
    Unreachable { code: u8 },
    /// Type 3, code 4, with the next hop's MTU in octets (RFC 1191, section 4).
    FragmentationNeeded { mtu: u16 },
    /// Type 11.
    TimeExceeded { code: u8 },
    /// Type 12; the pointer counts octets of the quoted packet.
    ParameterProblem { code: u8, pointer: u8 },
}

impl Error4 {
    /// The error of this type and code; `info` is what its first word says beyond them: an MTU or a pointer. `None` for types
    /// that are no errors, and for source quench and redirects, which hosts no longer heed (RFC 6633).
    pub fn new(kind: u8, code: u8, info: u32) -> Option<Self> {
        match (kind, code) {
            (3, 4) => Some(Self::FragmentationNeeded {
                mtu: u16::try_from(info).unwrap_or(u16::MAX),
            }),
            (3, code) => Some(Self::Unreachable { code }),
            (11, code) => Some(Self::TimeExceeded { code }),
            (12, code) => Some(Self::ParameterProblem {
                code,
                pointer: u8::try_from(info).unwrap_or(0),
            }),
            _ => None,
        }
    }

    fn header(self) -> [u8; 8] {
        match self {
            Self::Unreachable { code } => [3, code, 0, 0, 0, 0, 0, 0],
            Self::FragmentationNeeded { mtu } => {
                let [high, low] = mtu.to_be_bytes();
                [3, 4, 0, 0, 0, 0, high, low]
            }
            Self::TimeExceeded { code } => [11, code, 0, 0, 0, 0, 0, 0],
            Self::ParameterProblem { code, pointer } => [12, code, 0, 0, pointer, 0, 0, 0],
        }
    }
}

/// An ICMPv6 error (RFC 4443, section 3), without what it quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error6 {
    /// Type 1.
    Unreachable { code: u8 },
    /// Type 2, with the next hop's MTU in octets.
    PacketTooBig { mtu: u32 },
    /// Type 3.
    TimeExceeded { code: u8 },
    /// Type 4; the pointer counts octets of the quoted packet.
    ParameterProblem { code: u8, pointer: u32 },
}

impl Error6 {
    /// The error of this type and code; `info` is its second word: an MTU or a pointer. `None` for types that are no errors.
    pub const fn new(kind: u8, code: u8, info: u32) -> Option<Self> {
        match kind {
            1 => Some(Self::Unreachable { code }),
            2 => Some(Self::PacketTooBig { mtu: info }),
            3 => Some(Self::TimeExceeded { code }),
            4 => Some(Self::ParameterProblem {
                code,
                pointer: info,
            }),
            _ => None,
        }
    }

    fn header(self) -> [u8; 8] {
        let (kind, code, info) = match self {
            Self::Unreachable { code } => (1, code, 0),
            Self::PacketTooBig { mtu } => (2, 0, mtu),
            Self::TimeExceeded { code } => (3, code, 0),
            Self::ParameterProblem { code, pointer } => (4, code, pointer),
        };
        let [a, b, c, d] = info.to_be_bytes();
        [kind, code, 0, 0, a, b, c, d]
    }
}

/// Writes the frame of an ICMP error about `packet`, the guest's own from its IP header on; octets behind its total length
/// (a frame's padding) are not quoted. The datagram is at most 576 octets (RFC 1812, section 4.3.2.3).
pub fn error4(
    out: &mut Vec<u8>,
    ends: Ends,
    (src, dst, ttl): (Ipv4Addr, Ipv4Addr, u8),
    error: Error4,
    packet: &[u8],
) {
    let ip = Ip4 { src, dst, ttl };
    icmp4(out, ends, ip, |out| {
        out.extend(error.header());
        out.extend(quoted(packet, total4(packet), 576 - 20 - 8));
    });
}

/// Writes the frame of an ICMPv6 error about `packet`, the guest's own from its IPv6 header on; octets behind its payload
/// length are not quoted. The packet is at most 1280 octets (RFC 4443, section 2.4 (c)).
pub fn error6(
    out: &mut Vec<u8>,
    ends: Ends,
    (src, dst, hop_limit): (Ipv6Addr, Ipv6Addr, u8),
    error: Error6,
    packet: &[u8],
) {
    let ip = Ip6 {
        src,
        dst,
        hop_limit,
        flow_label: 0,
    };
    icmp6(out, ends, ip, |out| {
        out.extend(error.header());
        out.extend(quoted(packet, total6(packet), 1280 - 40 - 8));
    });
}

/// Gives an echo message another identifier and a checksum to match; `ends` are the addresses that count for ICMPv6's.
pub fn renumber(message: &mut [u8], id: u16, ends: Option<(Ipv6Addr, Ipv6Addr)>) {
    let len = message.len();
    if let Some([_, _, sum @ .., a, b]) = message.first_chunk_mut::<6>() {
        sum.fill(0);
        [*a, *b] = id.to_be_bytes();
    }
    let pseudo = ends.map_or_else(Sum::new, |(src, dst)| {
        Sum::pseudo(src.into(), dst.into(), 58, len)
    });
    let sum = pseudo.bytes(message).finish();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// As much of `packet` as is packet, at most `room` octets.
fn quoted(packet: &[u8], total: Option<usize>, room: usize) -> &[u8] {
    let len = packet.len().min(total.unwrap_or(usize::MAX)).min(room);
    packet.get(..len).unwrap_or_default()
}

/// The length an IPv4 header claims, if it is one a header fits in.
fn total4(packet: &[u8]) -> Option<usize> {
    let total = usize::from(u16::from_be_bytes(*packet.get(2..4)?.first_chunk()?));
    (total >= 20).then_some(total)
}

/// The length an IPv6 header claims.
fn total6(packet: &[u8]) -> Option<usize> {
    let payload = u16::from_be_bytes(*packet.get(4..6)?.first_chunk()?);
    Some(40 + usize::from(payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::Mac,
        wire::build::{MIN_FRAME, udp4, udp6},
    };
    use smoltcp::wire::{
        Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, Ipv4Packet, Ipv6Packet,
    };

    const ENDS: Ends = Ends {
        src: Mac([2, 0, 0, 0, 0, 1]),
        dst: Mac([2, 0, 0, 0, 0, 2]),
    };
    const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    /// The guest's datagram with so many octets of payload, from the IP header on, Ethernet padding included.
    fn datagram4(payload: usize) -> Vec<u8> {
        let ip = Ip4 {
            src: GUEST,
            dst: Ipv4Addr::new(198, 51, 100, 7),
            ttl: 3,
        };
        let mut out = Vec::new();
        udp4(&mut out, ENDS, ip, (40_000, 33_434), |out| {
            out.resize(out.len() + payload, 7);
        });
        out.split_off(14)
    }

    fn datagram6(payload: usize) -> Vec<u8> {
        let ip = Ip6 {
            src: "2001:db8::2".parse().unwrap(),
            dst: "2001:db8:1::7".parse().unwrap(),
            hop_limit: 3,
            flow_label: 5,
        };
        let mut out = Vec::new();
        udp6(&mut out, ENDS, ip, (40_000, 33_434), |out| {
            out.resize(out.len() + payload, 7);
        });
        out.split_off(14)
    }

    /// X13.
    #[test]
    fn an_error_quotes_the_packet_exactly_and_nothing_behind_it() {
        for (payload, want) in [
            (0, 28),
            (1, 29),
            (100, 128),
            (520, 548),
            (521, 548),
            (3000, 548),
        ] {
            let packet = datagram4(payload);
            let mut out = Vec::new();
            error4(
                &mut out,
                ENDS,
                (US, GUEST, 64),
                Error4::Unreachable { code: 3 },
                &packet,
            );
            let ip = Ipv4Packet::new_checked(&out[14..]).unwrap();
            assert!(ip.verify_checksum());
            assert_eq!((ip.src_addr(), ip.dst_addr()), (US, GUEST));
            assert_eq!(usize::from(ip.total_len()), 28 + want);
            assert_eq!(out.len(), (14 + 28 + want).max(MIN_FRAME));
            let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
            assert!(icmp.verify_checksum());
            assert_eq!(
                (icmp.msg_type(), icmp.msg_code()),
                (Icmpv4Message::DstUnreachable, 3)
            );
            assert_eq!(ip.payload()[4..8], [0; 4]);
            assert_eq!(ip.payload()[8..], packet[..want]);
        }
    }

    /// X13.
    #[test]
    fn an_icmpv6_error_quotes_up_to_the_minimum_mtu() {
        let (src, dst) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
        for (payload, want) in [(0, 48), (3, 51), (1184, 1232), (1185, 1232), (3000, 1232)] {
            let packet = datagram6(payload);
            let mut out = Vec::new();
            error6(
                &mut out,
                ENDS,
                (src, dst, 64),
                Error6::PacketTooBig { mtu: 1400 },
                &packet,
            );
            let ip = Ipv6Packet::new_checked(&out[14..]).unwrap();
            assert_eq!(out.len(), 14 + 40 + 8 + want);
            assert_eq!(ip.total_len(), 40 + 8 + want);
            let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
            assert!(icmp.verify_checksum(&src, &dst));
            assert_eq!(
                (icmp.msg_type(), icmp.pkt_too_big_mtu()),
                (Icmpv6Message::PktTooBig, 1400)
            );
            assert_eq!(ip.payload()[8..], packet[..want]);
        }
    }

    #[test]
    fn each_error_has_its_type_code_and_second_word() {
        for (kind, code, info, want) in [
            (3, 1, 9, Some([3, 1, 0, 0, 0, 0, 0, 0])),
            (3, 4, 1400, Some([3, 4, 0, 0, 0, 0, 0x05, 0x78])),
            (11, 0, 9, Some([11, 0, 0, 0, 0, 0, 0, 0])),
            (12, 0, 9, Some([12, 0, 0, 0, 9, 0, 0, 0])),
            (0, 0, 0, None),
            (5, 1, 0, None),
        ] {
            assert_eq!(
                Error4::new(kind, code, info).map(Error4::header),
                want,
                "{kind}"
            );
        }
        for (kind, code, info, want) in [
            (1, 4, 9, Some([1, 4, 0, 0, 0, 0, 0, 0])),
            (2, 0, 1400, Some([2, 0, 0, 0, 0, 0, 0x05, 0x78])),
            (3, 1, 9, Some([3, 1, 0, 0, 0, 0, 0, 0])),
            (4, 1, 40, Some([4, 1, 0, 0, 0, 0, 0, 40])),
            (129, 0, 0, None),
        ] {
            assert_eq!(
                Error6::new(kind, code, info).map(Error6::header),
                want,
                "{kind}"
            );
        }
    }

    #[test]
    fn a_packet_cut_short_is_quoted_as_far_as_it_goes() {
        for len in 0..28 {
            let mut out = Vec::new();
            error4(
                &mut out,
                ENDS,
                (US, GUEST, 64),
                Error4::TimeExceeded { code: 0 },
                &datagram4(0)[..len],
            );
            assert_eq!(
                usize::from(Ipv4Packet::new_checked(&out[14..]).unwrap().total_len()),
                28 + len
            );
        }
    }

    #[test]
    fn another_identifier_leaves_the_checksum_right() {
        let mut message = *b"\x00\x00\xbe\xef\x12\x34\x00\x01odd";
        renumber(&mut message, 65_535, None);
        let icmp = Icmpv4Packet::new_checked(&message[..]).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!((icmp.echo_ident(), icmp.echo_seq_no()), (65_535, 1));

        let (src, dst) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
        message[0] = 129;
        renumber(&mut message, 0, Some((src, dst)));
        let icmp = Icmpv6Packet::new_checked(&message[..]).unwrap();
        assert!(icmp.verify_checksum(&src, &dst));
        assert_eq!((icmp.echo_ident(), icmp.echo_seq_no()), (0, 1));
        renumber(&mut [0; 3], 7, None);
    }
}
