//! Frames as plain values: built with every field free to be wrong, and read with every checksum held to be right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::checksum;

/// The guest's address on the link.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Of the machine beside it, or of the guest once it has another.
pub const OTHER_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x57];

/// The translator's, unless told otherwise.
pub const OUR_MAC: [u8; 6] = [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const ICMP: u8 = 1;
const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

/// An Ethernet frame from the guest.
pub fn ethernet(to: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &GUEST_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// The payload of a frame of this type.
pub fn of_type(frame: &[u8], ethertype: u16) -> Option<&[u8]> {
    (frame.get(12..14)? == ethertype.to_be_bytes()).then(|| &frame[14..])
}

/// An IP packet without options or extension headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

impl Ip {
    /// The packet alone.
    pub fn packet(&self) -> Vec<u8> {
        let len = u16::try_from(self.payload.len()).expect("fits a packet");
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = [0; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
                header[4..8].copy_from_slice(&[0x12, 0x34, 0x40, 0]);
                header[8] = self.ttl;
                header[9] = self.protocol;
                header[12..16].copy_from_slice(&src.octets());
                header[16..20].copy_from_slice(&dst.octets());
                let sum = !checksum::data(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [&header, &self.payload[..]].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut header = [0; 40];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&len.to_be_bytes());
                header[6] = self.protocol;
                header[7] = self.ttl;
                header[8..24].copy_from_slice(&src.octets());
                header[24..40].copy_from_slice(&dst.octets());
                [&header, &self.payload[..]].concat()
            }
            _ => panic!("{} to {}", self.src, self.dst),
        }
    }

    /// The packet in a frame from the guest to the translator, or to the group of its destination.
    pub fn frame(&self) -> Vec<u8> {
        let to = match self.dst {
            IpAddr::V4(dst) if dst.is_broadcast() => [0xff; 6],
            IpAddr::V6(dst) if dst.is_multicast() => {
                let o = dst.octets();
                [0x33, 0x33, o[12], o[13], o[14], o[15]]
            }
            _ => OUR_MAC,
        };
        let ethertype = if self.src.is_ipv4() {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        ethernet(to, ethertype, &self.packet())
    }

    /// Reads a packet in a frame that is no IPv4 fragment, nor IGMP, which has options; padding behind it is no part of it.
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        if let Some(packet) = of_type(frame, ETHERTYPE_IPV4) {
            let packet = &packet[..usize::from(be16(packet, 2)?)];
            if packet[9] == IGMP {
                return None;
            }
            assert_eq!(packet[0], 0x45, "an IPv4 header without options");
            assert_eq!(
                checksum::data(&packet[..20]),
                0xffff,
                "IPv4 header checksum"
            );
            if be16(packet, 6)? & 0x3fff != 0 {
                return None;
            }
            Some(Self {
                src: Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?).into(),
                dst: Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?).into(),
                protocol: packet[9],
                ttl: packet[8],
                payload: packet[20..].to_vec(),
            })
        } else {
            let packet = of_type(frame, ETHERTYPE_IPV6)?;
            let packet = &packet[..40 + usize::from(be16(packet, 4)?)];
            assert_eq!(packet[0] >> 4, 6, "an IPv6 header");
            Some(Self {
                src: Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?).into(),
                dst: Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).into(),
                protocol: packet[6],
                ttl: packet[7],
                payload: packet[40..].to_vec(),
            })
        }
    }

    /// As [`Self::of_frame`], for one protocol, whose checksum must be right.
    fn of_protocol(frame: &[u8], v4: u8, v6: u8) -> Option<Self> {
        let ip = Self::of_frame(frame)?;
        if ip.protocol != if ip.src.is_ipv4() { v4 } else { v6 } {
            return None;
        }
        let unchecked = ip.protocol == UDP && ip.src.is_ipv4() && be16(&ip.payload, 6) == Some(0);
        assert!(
            unchecked || ip.sum() == 0xffff,
            "transport checksum of {ip:?}"
        );
        Some(ip)
    }

    /// The folded sum over payload and, but for ICMPv4, pseudo header; 0xffff is right.
    fn sum(&self) -> u16 {
        let data = checksum::data(&self.payload);
        if self.protocol == ICMP {
            return data;
        }
        let len = u32::try_from(self.payload.len()).expect("a length");
        let (src, dst) = (self.src.into(), self.dst.into());
        let pseudo = checksum::pseudo_header(&src, &dst, self.protocol.into(), len);
        checksum::combine(&[pseudo, data])
    }

    /// Writes the checksum where the protocol has it.
    fn with_checksum(mut self, at: usize) -> Self {
        self.payload[at..at + 2].copy_from_slice(&[0, 0]);
        // In UDP zero means "none", and stands for itself as its complement.
        let sum = match !self.sum() {
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        self.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk::<2>()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

/// A UDP datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub payload: Vec<u8>,
}

impl Udp {
    pub fn new(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Self {
        Self {
            src,
            dst,
            payload: payload.to_vec(),
        }
    }

    pub fn ip(&self) -> Ip {
        let len = u16::try_from(self.payload.len() + 8).expect("fits a datagram");
        let header = [self.src.port(), self.dst.port(), len, 0].map(u16::to_be_bytes);
        Ip {
            src: self.src.ip(),
            dst: self.dst.ip(),
            protocol: UDP,
            ttl: 64,
            payload: [header.as_flattened(), &self.payload].concat(),
        }
        .with_checksum(6)
    }

    pub fn frame(&self) -> Vec<u8> {
        self.ip().frame()
    }

    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let ip = Ip::of_protocol(frame, UDP, UDP)?;
        assert_eq!(
            usize::from(be16(&ip.payload, 4)?),
            ip.payload.len(),
            "UDP length"
        );
        Some(Self {
            src: (ip.src, be16(&ip.payload, 0)?).into(),
            dst: (ip.dst, be16(&ip.payload, 2)?).into(),
            payload: ip.payload[8..].to_vec(),
        })
    }
}

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Octets of the options field, a multiple of four.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Tcp {
    pub fn new(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        Self {
            src,
            dst,
            seq: 0,
            ack: 0,
            flags,
            window: 0xffff,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    pub fn ip(&self) -> Ip {
        assert_eq!(self.options.len() % 4, 0, "padded options");
        let mut header = Vec::with_capacity(20);
        header.extend_from_slice(&self.src.port().to_be_bytes());
        header.extend_from_slice(&self.dst.port().to_be_bytes());
        header.extend_from_slice(&self.seq.to_be_bytes());
        header.extend_from_slice(&self.ack.to_be_bytes());
        let words = u8::try_from(5 + self.options.len() / 4).expect("few options");
        header.extend_from_slice(&[words << 4, self.flags]);
        header.extend_from_slice(&self.window.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        Ip {
            src: self.src.ip(),
            dst: self.dst.ip(),
            protocol: TCP,
            ttl: 64,
            payload: [&header, &self.options[..], &self.payload].concat(),
        }
        .with_checksum(16)
    }

    pub fn frame(&self) -> Vec<u8> {
        self.ip().frame()
    }

    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let ip = Ip::of_protocol(frame, TCP, TCP)?;
        let segment = &ip.payload;
        let data = usize::from(segment[12] >> 4) * 4;
        Some(Self {
            src: (ip.src, be16(segment, 0)?).into(),
            dst: (ip.dst, be16(segment, 2)?).into(),
            seq: be32(segment, 4)?,
            ack: be32(segment, 8)?,
            flags: segment[13],
            window: be16(segment, 14)?,
            options: segment[20..data].to_vec(),
            payload: segment[data..].to_vec(),
        })
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The value of an option with this kind.
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = &self.options[..];
        while let [k, after @ ..] = rest {
            match *k {
                0 => break,
                1 => rest = after,
                _ => {
                    let len = usize::from(*after.first()?);
                    if *k == kind {
                        return rest.get(2..len);
                    }
                    rest = rest.get(len..)?;
                }
            }
        }
        None
    }

    /// Sequence space it takes.
    pub fn len(&self) -> u32 {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        u32::try_from(self.payload.len()).expect("a length") + flags
    }
}

/// An ICMP or ICMPv6 message, by the family of its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Icmp {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub kind: u8,
    pub code: u8,
    /// The second word.
    pub word: u32,
    pub body: Vec<u8>,
}

impl Icmp {
    pub fn new(src: IpAddr, dst: IpAddr, kind: u8, word: u32, body: &[u8]) -> Self {
        Self {
            src,
            dst,
            ttl: 255,
            kind,
            code: 0,
            word,
            body: body.to_vec(),
        }
    }

    pub fn echo_request(src: IpAddr, dst: IpAddr, ident: u16, seq: u16, body: &[u8]) -> Self {
        let kind = if src.is_ipv4() { 8 } else { 128 };
        let word = u32::from(ident) << 16 | u32::from(seq);
        Self::new(src, dst, kind, word, body)
    }

    pub fn ip(&self) -> Ip {
        let head = [&[self.kind, self.code, 0, 0], &self.word.to_be_bytes()[..]].concat();
        Ip {
            src: self.src,
            dst: self.dst,
            protocol: if self.src.is_ipv4() { ICMP } else { ICMPV6 },
            ttl: self.ttl,
            payload: [&head[..], &self.body].concat(),
        }
        .with_checksum(2)
    }

    pub fn frame(&self) -> Vec<u8> {
        self.ip().frame()
    }

    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let ip = Ip::of_protocol(frame, ICMP, ICMPV6)?;
        Some(Self {
            src: ip.src,
            dst: ip.dst,
            ttl: ip.ttl,
            kind: *ip.payload.first()?,
            code: *ip.payload.get(1)?,
            word: be32(&ip.payload, 4)?,
            body: ip.payload[8..].to_vec(),
        })
    }

    pub fn is_echo_reply(&self) -> bool {
        self.kind == if self.src.is_ipv4() { 0 } else { 129 }
    }

    /// Whether it is "destination unreachable".
    pub fn is_unreachable(&self) -> bool {
        self.kind == if self.src.is_ipv4() { 3 } else { 1 }
    }
}

/// An ICMP error must quote the packet it is about: not less than eight octets behind the IP header, and not one octet
/// that was not in it (X13). What routers change on the way, and the host does not tell, may differ: IPv4's
/// identification, TTL and header checksum, IPv6's flow label and hop limit.
pub fn assert_quotes(error: &Icmp, packet: &[u8]) {
    let quote = &error.body;
    let (header, length, rest) = if error.dst.is_ipv4() {
        (20, 2..4, 12..20)
    } else {
        (40, 4..7, 8..40)
    };
    assert!(
        quote.len() >= header + 8,
        "only {} octets are quoted",
        quote.len()
    );
    assert!(
        quote.len() <= packet.len(),
        "{} octets too many",
        quote.len() - packet.len()
    );
    for part in [0..1, length, rest, header..quote.len()] {
        assert_eq!(
            quote[part.clone()],
            packet[part.clone()],
            "octets {part:?} of the quote"
        );
    }
}

#[test]
fn checksums_of_built_frames_hold() {
    for (src, dst) in [("10.0.0.1:7", "10.0.0.2:9"), ("[fd00::1]:7", "[fd00::2]:9")] {
        let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        for len in [0, 1, 2, 999] {
            let payload = super::pattern(3, len);
            let udp = Udp::new(src, dst, &payload);
            assert_eq!(Udp::of_frame(&udp.frame()), Some(udp));
            let tcp = Tcp {
                payload: payload.clone(),
                seq: 0x1234_5678,
                ..Tcp::new(src, dst, SYN)
            };
            assert_eq!(Tcp::of_frame(&tcp.frame()), Some(tcp));
            let echo = Icmp::echo_request(src.ip(), dst.ip(), 65_535, 1, &payload);
            assert_eq!(Icmp::of_frame(&echo.frame()), Some(echo));
        }
    }
}
