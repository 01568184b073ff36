//! The only first reading of a guest's frame: what it is, checked once, so that nobody behind this has to look again.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};

use super::{
    build::{ETHERNET_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN},
    checksum::Sum,
    tcp::{Flags, Options},
};
use crate::net::{
    Endpoint, Mac, Seq, Why,
    number::{DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IGMP, NO_NEXT, ROUTING, TCP, UDP},
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Customer's and provider's VLAN tags (IEEE 802.1Q).
const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Below this it is a length (IEEE 802.3).
const ETHERTYPE_LEAST: u16 = 0x0600;

/// A frame from the guest, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// The sender's MAC address.
    pub mac: Mac,
    pub body: Body,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Arp,
    Tcp(Ip, Segment),
    Udp(Ip, Datagram),
    /// ICMP or ICMPv6 by the family of the addresses; its checksum is right.
    Icmp(Ip, IcmpMessage),
    /// IGMP, whose checksum is right, and where it lies in the frame.
    Igmp(Ip, Range<usize>),
    /// A part of a packet.
    Fragment(Ip, Fragment),
}

impl Body {
    /// The sender of a packet.
    pub const fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(ip, _)
            | Self::Udp(ip, _)
            | Self::Icmp(ip, _)
            | Self::Igmp(ip, _)
            | Self::Fragment(ip, _) => Some(ip.src),
            Self::Arp => None,
        }
    }

    /// Notes of a packet that anybody may cut it into parts.
    pub const fn allow_parts(&mut self) {
        if let Self::Tcp(ip, _) | Self::Udp(ip, _) | Self::Icmp(ip, _) = self {
            ip.whole = false;
        }
    }
}

/// The network layer of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Identification, or flow label.
    pub id: u32,
    /// Whether nobody may fragment it; of IPv6 whatever has no fragment header.
    pub whole: bool,
}

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: Seq,
    pub ack: Seq,
    pub flags: Flags,
    /// As it stands in the header, not scaled.
    pub window: u16,
    pub options: Options,
    /// Octets of header and payload.
    pub len: usize,
    /// Where the payload lies in the frame.
    pub payload: Range<usize>,
}

/// A UDP datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub src_port: u16,
    pub dst_port: u16,
    /// Octets of header and payload, and the checksum, as the header has them.
    pub len: u16,
    pub checksum: u16,
    /// Where the payload lies in the frame.
    pub payload: Range<usize>,
}

/// An ICMP or ICMPv6 message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcmpMessage {
    pub kind: u8,
    pub code: u8,
    /// Where the whole message lies in the frame.
    pub octets: Range<usize>,
}

/// A part of a packet (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// What tells packets between two addresses apart.
    pub id: u32,
    /// The protocol of the whole, or the next header behind its fragment header.
    pub protocol: u8,
    /// Where in the whole these octets belong.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
    /// Where the octets lie in the frame.
    pub payload: Range<usize>,
}

impl Ip {
    pub const fn source(&self, port: u16) -> Endpoint {
        Endpoint::new(self.src, port)
    }

    pub const fn destination(&self, port: u16) -> Endpoint {
        Endpoint::new(self.dst, port)
    }
}

/// Who has sent a frame that starts like this. `None` if it is too short for one.
pub fn sender(head: &[u8]) -> Option<Mac> {
    let &[_, _, _, _, _, _, a, b, c, d, e, f, _, _]: &[u8; ETHERNET_LEN] = head.first_chunk()?;
    Some(Mac([a, b, c, d, e, f]))
}

/// Reads a frame of `len` octets, of which `head` holds the first ones: all headers at least, and all of an ICMP message.
///
/// TCP and UDP checksums are not verified: a guest with offloads leaves them partial.
///
/// # Errors
/// Why the frame goes no further.
pub fn classify(head: &[u8], len: usize) -> Result<Classified, Why> {
    let ethernet: &[u8; ETHERNET_LEN] = head.first_chunk().ok_or(Why::Truncated)?;
    let mac = sender(head).ok_or(Why::Truncated)?;
    let &[.., high, low] = ethernet;
    let body = match u16::from_be_bytes([high, low]) {
        ETHERTYPE_ARP => Body::Arp,
        ETHERTYPE_IPV4 => ipv4(head, len)?,
        ETHERTYPE_IPV6 => ipv6(head, len)?,
        vlan if ETHERTYPES_VLAN.contains(&vlan) => return Err(Why::Vlan),
        ETHERTYPE_LEAST.. => return Err(Why::EtherType),
        _ => return Err(Why::Llc),
    };
    Ok(Classified { mac, body })
}

fn ipv4(head: &[u8], len: usize) -> Result<Body, Why> {
    let rest = head.get(ETHERNET_LEN..).unwrap_or_default();
    let header = Ipv4HeaderSlice::from_slice(rest).map_err(|_| {
        if rest.len() < IPV4_LEN {
            Why::Truncated
        } else {
            Why::Malformed
        }
    })?;
    let header_len = header.slice().len();
    if !Sum::new().bytes(header.slice()).is_valid() {
        return Err(Why::Checksum);
    }
    check_options4(header.options())?;
    let total = usize::from(header.total_len());
    if total < header_len {
        return Err(Why::Malformed);
    }
    // A frame may be padded beyond the packet, never be shorter than it.
    if ETHERNET_LEN + total > len {
        return Err(Why::Truncated);
    }
    let ip = Ip {
        src: IpAddr::V4(Ipv4Addr::from(header.source())),
        dst: IpAddr::V4(Ipv4Addr::from(header.destination())),
        ttl: header.ttl(),
        tos: header.slice().get(1).copied().unwrap_or(0),
        id: u32::from(header.identification()),
        whole: header.dont_fragment(),
    };
    if header.is_fragmenting_payload() {
        let fragment = Fragment {
            id: ip.id,
            protocol: header.protocol().0,
            offset: header.fragments_offset().value() * 8,
            more: header.more_fragments(),
            payload: ETHERNET_LEN + header_len..ETHERNET_LEN + total,
        };
        return Ok(Body::Fragment(ip, fragment));
    }
    upper(
        head,
        ip,
        header.protocol().0,
        ETHERNET_LEN + header_len..ETHERNET_LEN + total,
    )
}

/// Options (RFC 791, section 3.1) are let go, but for routes that do not end yet: the packet is meant for somebody else than
/// its destination then.
fn check_options4(mut options: &[u8]) -> Result<(), Why> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    loop {
        match *options {
            [] | [END, ..] => return Ok(()),
            [NO_OPERATION, ref rest @ ..] => options = rest,
            [kind, len @ (2..), ref rest @ ..] if usize::from(len) <= options.len() => {
                // The route ends once the pointer is behind it.
                let ends = rest.first().is_some_and(|&pointer| pointer > len);
                if matches!(kind, LOOSE_ROUTE | STRICT_ROUTE) && !ends {
                    return Err(Why::Extension);
                }
                options = options.get(usize::from(len)..).unwrap_or_default();
            }
            _ => return Err(Why::Malformed),
        }
    }
}

/// Options of hop-by-hop and destination headers (RFC 8200, section 4.2) are let go, but for those that say whoever does not
/// know them must not: the jumbo payload is one.
fn check_options6(mut options: &[u8]) -> Result<(), Why> {
    const PAD1: u8 = 0;
    const ACTION: u8 = 0xc0;
    loop {
        match *options {
            [] => return Ok(()),
            [PAD1, ref rest @ ..] => options = rest,
            [kind, _, ..] if kind & ACTION != 0 => return Err(Why::Extension),
            [_, len, ref rest @ ..] => {
                options = rest.get(usize::from(len)..).ok_or(Why::Malformed)?;
            }
            _ => return Err(Why::Malformed),
        }
    }
}

fn ipv6(head: &[u8], len: usize) -> Result<Body, Why> {
    let rest = head.get(ETHERNET_LEN..).unwrap_or_default();
    let header = Ipv6HeaderSlice::from_slice(rest).map_err(|_| {
        if rest.len() < IPV6_LEN {
            Why::Truncated
        } else {
            Why::Malformed
        }
    })?;
    let end = ETHERNET_LEN + IPV6_LEN + usize::from(header.payload_length());
    if end > len {
        return Err(Why::Truncated);
    }
    let mut ip = Ip {
        src: IpAddr::V6(Ipv6Addr::from(header.source())),
        dst: IpAddr::V6(Ipv6Addr::from(header.destination())),
        ttl: header.hop_limit(),
        tos: header.traffic_class(),
        id: header.flow_label().value(),
        whole: true,
    };
    match skip_extensions(head, header.next_header().0, ETHERNET_LEN + IPV6_LEN, end)? {
        Behind::Upper {
            protocol,
            start,
            atomic,
        } => {
            ip.whole = !atomic;
            upper(head, ip, protocol, start..end)
        }
        Behind::Fragment(fragment) => Ok(Body::Fragment(ip, fragment)),
    }
}

/// What extension headers lead to.
enum Behind {
    Upper {
        protocol: u8,
        start: usize,
        /// Whether there was a fragment header, with all of the packet behind it: who writes such lets others make fragments.
        atomic: bool,
    },
    Fragment(Fragment),
}

/// Steps over extension headers (RFC 8200, section 4) to the upper layer.
fn skip_extensions(head: &[u8], mut next: u8, mut at: usize, end: usize) -> Result<Behind, Why> {
    let mut atomic = false;
    loop {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let &[following, units] = head
                    .get(at..end.min(head.len()))
                    .and_then(<[u8]>::first_chunk)
                    .ok_or(Why::Truncated)?;
                // A routing header with segments left asks us to be a router.
                if next == ROUTING && head.get(at + 3).is_none_or(|&left| left != 0) {
                    return Err(Why::Extension);
                }
                let behind = at + 8 * (usize::from(units) + 1);
                if behind > end {
                    return Err(Why::Malformed);
                }
                if next != ROUTING {
                    check_options6(head.get(at + 2..behind).ok_or(Why::Truncated)?)?;
                }
                (next, at) = (following, behind);
            }
            FRAGMENT => {
                let &[following, _, high, low, id @ ..] = head
                    .get(at..end.min(head.len()))
                    .and_then(<[u8]>::first_chunk::<8>)
                    .ok_or(Why::Truncated)?;
                let place = u16::from_be_bytes([high, low]);
                at += 8;
                // One that is all of its packet is no part of anything (RFC 6946).
                if place & 0xfff9 == 0 {
                    (next, atomic) = (following, true);
                    continue;
                }
                return Ok(Behind::Fragment(Fragment {
                    id: u32::from_be_bytes(id),
                    protocol: following,
                    offset: place & 0xfff8,
                    more: place & 1 != 0,
                    payload: at..end,
                }));
            }
            NO_NEXT => return Err(Why::Extension),
            _ => {
                return Ok(Behind::Upper {
                    protocol: next,
                    start: at,
                    atomic,
                });
            }
        }
    }
}

// What is read is written where it stays: the copies of a call were a fiftieth of what a frame costs.
#[inline(always)]
fn upper(head: &[u8], ip: Ip, protocol: u8, at: Range<usize>) -> Result<Body, Why> {
    let seen = head
        .get(at.start..at.end.min(head.len()))
        .ok_or(Why::Truncated)?;
    match (protocol, ip.src) {
        (TCP, _) => tcp(seen, &at).map(|segment| Body::Tcp(ip, segment)),
        (UDP, _) => udp(seen, &at).map(|datagram| Body::Udp(ip, datagram)),
        (ICMP, IpAddr::V4(_)) => icmp(seen, at, Sum::new()).map(|message| Body::Icmp(ip, message)),
        (IGMP, IpAddr::V4(_)) => {
            icmp(seen, at, Sum::new()).map(|message| Body::Igmp(ip, message.octets))
        }
        (ICMPV6, IpAddr::V6(_)) => {
            let pseudo = Sum::pseudo(ip.src, ip.dst, ICMPV6, at.len());
            icmp(seen, at, pseudo).map(|message| Body::Icmp(ip, message))
        }
        _ => Err(Why::IpProtocol),
    }
}

fn tcp(seen: &[u8], at: &Range<usize>) -> Result<Segment, Why> {
    if at.len() < TCP_LEN {
        return Err(Why::Truncated);
    }
    let header = TcpHeaderSlice::from_slice(seen).map_err(|_| Why::Malformed)?;
    let flags = Flags(header.slice().get(13).copied().unwrap_or(0));
    Ok(Segment {
        src_port: header.source_port(),
        dst_port: header.destination_port(),
        seq: Seq(header.sequence_number()),
        ack: Seq(header.acknowledgment_number()),
        flags,
        window: header.window_size(),
        options: Options::parse(header.options()),
        len: at.len(),
        payload: at.start + header.slice().len()..at.end,
    })
}

fn udp(seen: &[u8], at: &Range<usize>) -> Result<Datagram, Why> {
    let header = UdpHeaderSlice::from_slice(seen).map_err(|_| Why::Truncated)?;
    // A zero length belongs to jumbograms (RFC 2675), whose packet length is zero as well; ours is not.
    let len = usize::from(header.length());
    if len < 8 {
        return Err(Why::Malformed);
    }
    if len > at.len() {
        return Err(Why::Truncated);
    }
    Ok(Datagram {
        src_port: header.source_port(),
        dst_port: header.destination_port(),
        len: header.length(),
        checksum: header.checksum(),
        payload: at.start + 8..at.start + len,
    })
}

fn icmp(seen: &[u8], at: Range<usize>, pseudo: Sum) -> Result<IcmpMessage, Why> {
    if seen.len() != at.len() {
        return Err(Why::Truncated);
    }
    let &[kind, code] = seen
        .first_chunk()
        .filter(|_| seen.len() >= 8)
        .ok_or(Why::Truncated)?;
    if !pseudo.bytes(seen).is_valid() {
        return Err(Why::Checksum);
    }
    Ok(IcmpMessage {
        kind,
        code,
        octets: at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const OURS: [u8; 6] = [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];

    fn tcp4(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(GUEST, OURS)
            .ipv4([10, 0, 2, 15], [198, 51, 100, 1], 64)
            .tcp(40_000, 80, 1000, 65_535)
            .ack(77)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn udp6(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let dst = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
        PacketBuilder::ethernet2(GUEST, OURS)
            .ipv6("fd00::2".parse::<Ipv6Addr>().unwrap().octets(), dst, 9)
            .udp(5353, 53)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn a_tcp_segment_is_read() {
        let frame = tcp4(b"hello");
        let Body::Tcp(ip, segment) = classify(&frame, frame.len()).unwrap().body else {
            panic!("not TCP")
        };
        assert_eq!(ip.source(segment.src_port).to_string(), "[10.0.2.15]:40000");
        assert_eq!(
            (segment.seq, segment.ack, segment.window),
            (Seq(1000), Seq(77), 65_535)
        );
        assert!(segment.flags.has(Flags::ACK) && !segment.flags.has(Flags::SYN));
        assert_eq!(&frame[segment.payload], b"hello");
    }

    #[test]
    fn padding_behind_the_packet_is_no_payload() {
        let mut frame = tcp4(b"");
        frame.resize(60, 0);
        let Body::Tcp(_, segment) = classify(&frame, 60).unwrap().body else {
            panic!("not TCP")
        };
        assert!(segment.payload.is_empty());
    }

    #[test]
    fn only_the_head_is_needed_of_a_long_segment() {
        let frame = tcp4(&[7; 3000]);
        let whole = classify(&frame, frame.len()).unwrap();
        assert_eq!(classify(&frame[..256], frame.len()), Ok(whole));
        assert_eq!(classify(&frame[..256], 256), Err(Why::Truncated));
    }

    #[test]
    fn a_datagram_behind_extension_headers_is_read() {
        let plain = udp6(b"query");
        let mut frame = plain[..ETHERNET_LEN + 40].to_vec();
        frame[ETHERNET_LEN + 6] = 0;
        frame[ETHERNET_LEN + 5] += 16;
        frame.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend(&plain[ETHERNET_LEN + 40..]);
        let Body::Udp(ip, datagram) = classify(&frame, frame.len()).unwrap().body else {
            panic!("not UDP")
        };
        assert_eq!(
            (ip.ttl, datagram.dst_port, &frame[datagram.payload]),
            (9, 53, &b"query"[..])
        );
    }

    #[test]
    fn wrong_checksums_and_lengths_are_named() {
        let mut frame = tcp4(b"x");
        frame[ETHERNET_LEN + 10] ^= 1;
        assert_eq!(classify(&frame, frame.len()), Err(Why::Checksum));
        let frame = tcp4(b"x");
        assert_eq!(classify(&frame, frame.len() - 1), Err(Why::Truncated));
        assert_eq!(classify(&frame[..13], 13), Err(Why::Truncated));
        let mut frame = udp6(b"x");
        frame[ETHERNET_LEN + 40 + 5] = 7;
        assert_eq!(classify(&frame, frame.len()), Err(Why::Malformed));
        let mut frame = udp6(b"x");
        frame[12] = 0x81;
        assert_eq!(classify(&frame, frame.len()), Err(Why::EtherType));
        let mut frame = udp6(b"x");
        frame[ETHERNET_LEN + 6] = 132;
        assert_eq!(classify(&frame, frame.len()), Err(Why::IpProtocol));
    }

    #[test]
    fn an_echo_request_with_a_wrong_checksum_is_refused() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(GUEST, OURS)
            .ipv4([10, 0, 2, 15], [198, 51, 100, 1], 64)
            .icmpv4_echo_request(1, 2)
            .write(&mut frame, b"ping")
            .unwrap();
        let Body::Icmp(_, message) = classify(&frame, frame.len()).unwrap().body else {
            panic!("not ICMP")
        };
        assert_eq!(
            (message.kind, message.code, message.octets.len()),
            (8, 0, 12)
        );
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(classify(&frame, frame.len()), Err(Why::Checksum));
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(mut frame in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..4, extra in 0_usize..99) {
            if frame.len() > 14 {
                let (a, b) = [(8, 0), (0x86, 0xdd), (8, 6), (0, 1)][usize::from(kind)];
                (frame[12], frame[13]) = (a, b);
            }
            let _ = classify(&frame, frame.len() + extra);
        }

        #[test]
        fn a_payload_lies_inside_its_frame(at in 0_usize..80, value in any::<u8>()) {
            for mut frame in [tcp4(b"some payload"), udp6(b"some payload")] {
                if let Some(octet) = frame.get_mut(at) { *octet = value; }
                let range = match classify(&frame, frame.len()).map(|f| f.body) {
                    Ok(Body::Tcp(_, s)) => s.payload,
                    Ok(Body::Udp(_, d)) => d.payload,
                    Ok(Body::Icmp(_, m)) => m.octets,
                    Ok(Body::Fragment(_, f)) => f.payload,
                    _ => 0..0,
                };
                prop_assert!(range.start <= range.end && range.end <= frame.len());
            }
        }
    }
}
