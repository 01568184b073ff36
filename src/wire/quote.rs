//! What an ICMP error says of the packet it is about.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::net::{Endpoint, Seq, number::FRAGMENT};

/// Octets of an ICMP error before the packet it quotes (RFC 792; RFC 4443, section 3).
const ERROR: usize = 8;

/// Octets of upper-layer header that every error quotes.
const UPPER: usize = 8;

/// The longest start of an error that [`Quoted::read`] looks at: an IPv4 header with all the options there is room for.
pub const START: usize = ERROR + 60 + UPPER;

/// The start of a TCP segment or UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    pub protocol: u8,
    pub src: Endpoint,
    pub dst: Endpoint,
    /// Of TCP.
    pub seq: Seq,
}

impl Quoted {
    /// Reads what an ICMP (`v4`) or ICMPv6 error quotes. `None` if that has no ports: too little of it, or a fragment behind
    /// the first.
    pub fn read(message: &[u8], v4: bool) -> Option<Self> {
        let packet = message.get(ERROR..)?;
        if v4 {
            Self::of_ipv4(packet)
        } else {
            Self::of_ipv6(packet)
        }
    }

    fn of_ipv4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let len = usize::from(header[0] & 0xf) * 4;
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        if header[0] >> 4 != 4 || len < header.len() || offset != 0 {
            return None;
        }
        let src = Ipv4Addr::from(*header[12..].first_chunk()?);
        let dst = Ipv4Addr::from(*header[16..].first_chunk()?);
        Self::of_upper(header[9], packet.get(len..)?, |source, destination| {
            (
                Endpoint::new(src.into(), source),
                Endpoint::new(dst.into(), destination),
            )
        })
    }

    fn of_ipv6(packet: &[u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let src = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
        let dst = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
        // We send no other extension header.
        let (protocol, upper) = match (header[6], rest) {
            (FRAGMENT, &[next, _, high, low, _, _, _, _, ref upper @ ..]) => {
                let offset = u16::from_be_bytes([high, low]) >> 3;
                (next, upper.get(..).filter(|_| offset == 0)?)
            }
            (next, upper) => (next, upper),
        };
        Self::of_upper(protocol, upper, |source, destination| {
            (
                Endpoint::new(src.into(), source),
                Endpoint::new(dst.into(), destination),
            )
        })
    }

    fn of_upper(
        protocol: u8,
        upper: &[u8],
        ends: impl FnOnce(u16, u16) -> (Endpoint, Endpoint),
    ) -> Option<Self> {
        let &[a, b, c, d, e, f, g, h] = upper.first_chunk::<UPPER>()?;
        let (src, dst) = ends(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Some(Self {
            protocol,
            src,
            dst,
            seq: Seq(u32::from_be_bytes([e, f, g, h])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::Mac,
        wire::build::{Ends, Ip4, Ip6, ip_len, udp4, udp6},
    };
    use proptest::prelude::*;

    const ENDS: Ends = Ends {
        src: Mac([2, 0, 0, 0, 0, 1]),
        dst: Mac([2, 0, 0, 0, 0, 2]),
    };

    /// An error about a datagram from port 53 to port 5000.
    fn error(v4: bool) -> Vec<u8> {
        let mut frame = Vec::new();
        let body = |out: &mut Vec<u8>| out.extend(b"hello");
        if v4 {
            let ip = Ip4 {
                src: [192, 0, 2, 1].into(),
                dst: [192, 0, 2, 2].into(),
                ttl: 64,
            };
            udp4(&mut frame, ENDS, ip, (53, 5000), body);
        } else {
            let ip = Ip6 {
                src: "2001:db8::1".parse().unwrap(),
                dst: "2001:db8::2".parse().unwrap(),
                hop_limit: 64,
                flow_label: 0,
            };
            udp6(&mut frame, ENDS, ip, (53, 5000), body);
        }
        [&[3, 3, 0, 0, 0, 0, 0, 0], &frame[14..]].concat()
    }

    #[test]
    fn a_datagram_is_recognized_in_both_families() {
        for (v4, src, dst) in [
            (true, "192.0.2.1", "192.0.2.2"),
            (false, "2001:db8::1", "2001:db8::2"),
        ] {
            let quoted = Quoted::read(&error(v4), v4).unwrap();
            assert_eq!(quoted.protocol, 17);
            assert_eq!(quoted.src, Endpoint::new(src.parse().unwrap(), 53));
            assert_eq!(quoted.dst, Endpoint::new(dst.parse().unwrap(), 5000));
            assert_eq!(Quoted::read(&error(v4), !v4), None);
            let header = ip_len(v4);
            for len in 0..ERROR + header + UPPER {
                assert_eq!(Quoted::read(&error(v4)[..len], v4), None, "{len}");
            }
        }
    }

    #[test]
    fn options_and_a_fragment_header_are_passed_and_later_fragments_have_no_ports() {
        let mut with_options = error(true);
        with_options[8] = 0x46;
        with_options.splice(28..28, [1; 4]);
        assert_eq!(
            Quoted::read(&with_options, true),
            Quoted::read(&error(true), true)
        );
        let mut later = error(true);
        later[8 + 7] = 1;
        assert_eq!(Quoted::read(&later, true), None);
        for (offset, there) in [(1, true), (8, false)] {
            let mut fragment = error(false);
            fragment[8 + 6] = FRAGMENT;
            fragment.splice(48..48, [17, 0, 0, offset, 0, 0, 0, 1]);
            let quoted = Quoted::read(&fragment, false);
            assert_eq!(quoted.is_some(), there);
        }
    }

    proptest! {
        #[test]
        fn any_octets_can_be_read(octets: Vec<u8>, v4: bool) {
            let _ = Quoted::read(&octets, v4);
        }
    }
}
