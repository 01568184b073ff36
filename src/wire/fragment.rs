//! IP headers of packets and of their parts (RFC 791, section 3.2; RFC 8200, section 4.5), written from what was read of the
//! guest's, and our own frames cut into parts for a link that takes no more at a time.

use std::net::IpAddr;

use super::{
    build::{Ends, IPV4_LEN, IPV6_LEN, MIN_FRAME},
    checksum::Sum,
    frame::Ip,
};
use crate::net::number::FRAGMENT;

/// What a part of a packet says of its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What tells packets between two addresses apart; of IPv4 the lower half counts.
    pub id: u32,
    /// In octets, a multiple of eight.
    pub offset: u16,
    pub more: bool,
}

/// The length of a fragment header of IPv6.
const HEADER: usize = 8;

/// The largest packet that usual links take, those of Ethernet (RFC 894).
const USUAL_MTU: usize = 1500;

/// Whether a packet of so many octets may be cut on its way, for which it needs an identification (RFC 6864, section 4): one
/// that usual links do not take can hardly have come with "don't fragment" set, and the guest may have to pass it on by such
/// a link. Of IPv6, nobody but the sender cuts any.
pub const fn may_be_cut(v4: bool, len: usize) -> bool {
    len > USUAL_MTU && v4
}

/// Appends the IP header of a packet with `len` octets of this protocol, or of this part of it. A length that does not
/// fit is written as the largest that does.
pub fn header(out: &mut Vec<u8>, ip: &Ip, protocol: u8, part: Option<Part>, len: usize) {
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let start = out.len();
            let total = u16::try_from(IPV4_LEN + len).unwrap_or(u16::MAX);
            let id = part.map_or(ip.id, |part| part.id) as u16;
            let flags = match part {
                Some(part) => (part.offset / 8) | (u16::from(part.more) << 13),
                None => u16::from(ip.whole) << 14,
            };
            out.extend([0x45, ip.tos]);
            out.extend([total, id, flags].map(u16::to_be_bytes).as_flattened());
            out.extend([ip.ttl, protocol, 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            let sum = Sum::new().bytes(out.get(start..).unwrap_or_default());
            if let Some(field) = out.get_mut(start + 10..start + 12) {
                field.copy_from_slice(&sum.finish().to_be_bytes());
            }
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let first = 0x6000_0000 | u32::from(ip.tos) << 20 | (ip.id & 0xf_ffff);
            let payload = if part.is_some() { HEADER + len } else { len };
            out.extend(first.to_be_bytes());
            out.extend(u16::try_from(payload).unwrap_or(u16::MAX).to_be_bytes());
            out.extend([if part.is_some() { FRAGMENT } else { protocol }, ip.ttl]);
            out.extend(src.octets());
            out.extend(dst.octets());
            if let Some(part) = part {
                out.extend([protocol, 0]);
                out.extend((part.offset | u16::from(part.more)).to_be_bytes());
                out.extend(part.id.to_be_bytes());
            }
        }
        _ => {}
    }
}

/// Appends an Ethernet header for IP between these addresses.
pub fn ethernet(out: &mut Vec<u8>, ends: Ends, ip: &Ip) {
    out.extend(ends.dst.0);
    out.extend(ends.src.0);
    out.extend(if ip.src.is_ipv4() {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
}

/// Octets behind the IP header of every part but the last, which must be a multiple of eight.
const fn part_len(v4: bool, mtu: usize) -> usize {
    let headers = if v4 { IPV4_LEN } else { IPV6_LEN + HEADER };
    let len = mtu.saturating_sub(headers) & !7;
    if len < 8 { 8 } else { len }
}

/// How many parts the largest packet is cut into.
pub const fn most_parts(v4: bool, mtu: usize) -> usize {
    (u16::MAX as usize).div_ceil(part_len(v4, mtu))
}

/// Cuts a packet into parts of at most `mtu` octets with their IP headers, and has each as a frame in `out` when `emit` is
/// called, which may end it by `false`. `upper` is all behind the IP header; of `ip` all but `whole` counts.
pub fn split(
    out: &mut Vec<u8>,
    ends: Ends,
    (ip, protocol, id): (&Ip, u8, u32),
    upper: &[u8],
    mtu: usize,
    mut emit: impl FnMut(&[u8]) -> bool,
) {
    let mut at = 0;
    for octets in upper.chunks(part_len(ip.src.is_ipv4(), mtu)) {
        let part = Part {
            id,
            offset: at as u16,
            more: at + octets.len() < upper.len(),
        };
        out.clear();
        ethernet(out, ends, ip);
        header(out, ip, protocol, Some(part), octets.len());
        out.extend_from_slice(octets);
        out.resize(out.len().max(MIN_FRAME), 0);
        at += octets.len();
        if !emit(out) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::Mac,
        wire::frame::{Body, classify},
    };

    const ENDS: Ends = Ends {
        src: Mac([2; 6]),
        dst: Mac([4; 6]),
    };

    fn ip(v6: bool) -> Ip {
        let (src, dst) = if v6 {
            ("2001:db8::1", "fd00::2")
        } else {
            ("198.51.100.1", "10.0.2.15")
        };
        Ip {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            ttl: 57,
            tos: 0x2e,
            id: 0x1234,
            whole: false,
        }
    }

    #[test]
    fn parts_fit_the_link_and_make_the_whole() {
        for (v6, mtu) in [(false, 1500), (false, 68), (true, 1280), (true, 1501)] {
            let upper: Vec<u8> = (0..5000_u16).map(|n| (n % 251) as u8).collect();
            let (mut frame, mut whole, mut last) = (Vec::new(), Vec::new(), false);
            split(&mut frame, ENDS, (&ip(v6), 17, 77), &upper, mtu, |frame| {
                assert!(!last && frame.len() <= 14 + mtu);
                let Ok(Body::Fragment(read, part)) = classify(frame, frame.len()).map(|f| f.body)
                else {
                    panic!("not a fragment")
                };
                assert_eq!((read.src, read.ttl, read.tos), (ip(v6).src, 57, 0x2e));
                assert_eq!((part.id, part.protocol), (77, 17));
                assert_eq!(usize::from(part.offset), whole.len());
                whole.extend_from_slice(&frame[part.payload]);
                last = !part.more;
                true
            });
            assert!(last && whole == upper);
        }
    }

    #[test]
    fn a_header_reads_back_as_it_was() {
        for (v6, whole) in [(false, false), (false, true), (true, true)] {
            let ip = Ip { whole, ..ip(v6) };
            let mut frame = Vec::new();
            ethernet(&mut frame, ENDS, &ip);
            header(&mut frame, &ip, 17, None, 9);
            frame.extend([0, 7, 0, 9, 0, 9, 0, 0, 1]);
            let Ok(Body::Udp(read, _)) = classify(&frame, frame.len()).map(|f| f.body) else {
                panic!("not UDP")
            };
            assert_eq!(read, ip);
        }
    }

    #[test]
    fn only_what_usual_links_do_not_take_may_be_cut() {
        assert!(may_be_cut(true, 1501) && !may_be_cut(true, 1500));
        assert!(!may_be_cut(false, 65_535));
    }

    /// RFC 6946.
    #[test]
    fn an_atomic_fragment_is_no_fragment() {
        let part = Part {
            id: 5,
            offset: 0,
            more: false,
        };
        let mut frame = Vec::new();
        ethernet(&mut frame, ENDS, &ip(true));
        header(&mut frame, &ip(true), 17, Some(part), 9);
        frame.extend([0, 7, 0, 9, 0, 9, 0, 0, 1]);
        let body = classify(&frame, frame.len()).map(|f| f.body);
        assert!(matches!(body, Ok(Body::Udp(..))));
    }
}
