//! Whole frames written into a vector, for the answers we give ourselves. The data path stamps templates instead.
//!
//! Each function clears `out`, writes Ethernet and IP headers, lets a closure append what they carry, then fills in lengths
//! and checksums and pads the frame to [`MIN_FRAME`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use crate::net::{
    Mac,
    number::{ICMPV6, UDP},
};

/// The shortest frame that Ethernet knows, in octets without the check sequence (IEEE 802.3).
pub const MIN_FRAME: usize = 60;

/// The lengths of headers, those of IPv4 and TCP without options.
pub const ETHERNET_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
pub const TCP_LEN: usize = 20;
pub const UDP_LEN: usize = 8;

/// The largest IP packet, as its header can say (RFC 791; RFC 8200 without jumbograms, the header not counted).
pub const PACKET_MAX: usize = 65_535;

/// The most datagrams that the kernel sends or receives as one (UDP_MAX_SEGMENTS, linux/udp.h).
pub const UDP_SEGMENTS_MAX: usize = 128;

/// The length of an IP header without options.
pub const fn ip_len(v4: bool) -> usize {
    if v4 { IPV4_LEN } else { IPV6_LEN }
}

/// TTL or hop limit of packets that we originate and no RFC asks more of (RFC 1700).
pub const HOPS: u8 = 64;

/// Between whom a frame travels on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub src: Mac,
    pub dst: Mac,
}

/// What an IPv4 header shall say. Packets are never fragments, may not be fragmented, and so need no identification
/// (RFC 6864, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip4 {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub ttl: u8,
}

/// What an IPv6 header shall say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip6 {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub hop_limit: u8,
    /// 20 bits; 0 is no label.
    pub flow_label: u32,
}

/// Writes an Ethernet frame of this EtherType.
pub fn ethernet(out: &mut Vec<u8>, ends: Ends, ethertype: u16, body: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    out.extend(ends.dst.0);
    out.extend(ends.src.0);
    out.extend(ethertype.to_be_bytes());
    body(out);
    if out.len() < MIN_FRAME {
        out.resize(MIN_FRAME, 0);
    }
}

/// Writes an IPv4 packet (RFC 791); the body, which must fit 65,515 octets, follows a header of 20 octets.
pub fn ipv4(out: &mut Vec<u8>, ends: Ends, ip: Ip4, protocol: u8, body: impl FnOnce(&mut Vec<u8>)) {
    ethernet(out, ends, 0x0800, |out| {
        let start = out.len();
        out.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, ip.ttl, protocol, 0, 0]);
        out.extend(ip.src.octets());
        out.extend(ip.dst.octets());
        body(out);
        let total = length(out.len() - start);
        set(out, start + 2, total);
        let header = out.get(start..start + 20).unwrap_or_default();
        let checksum = Sum::new().bytes(header).finish();
        set(out, start + 10, checksum);
    });
}

/// Writes an IPv6 packet (RFC 8200), without extension headers; the body must fit 65,535 octets.
pub fn ipv6(
    out: &mut Vec<u8>,
    ends: Ends,
    ip: Ip6,
    next_header: u8,
    body: impl FnOnce(&mut Vec<u8>),
) {
    ethernet(out, ends, 0x86dd, |out| {
        let start = out.len();
        out.extend((0x6000_0000 | (ip.flow_label & 0xf_ffff)).to_be_bytes());
        out.extend([0, 0, next_header, ip.hop_limit]);
        out.extend(ip.src.octets());
        out.extend(ip.dst.octets());
        let inner = out.len();
        body(out);
        let payload = length(out.len() - inner);
        set(out, start + 4, payload);
    });
}

/// Writes a UDP datagram over IPv4, from the first port to the second.
pub fn udp4(
    out: &mut Vec<u8>,
    ends: Ends,
    ip: Ip4,
    ports: (u16, u16),
    body: impl FnOnce(&mut Vec<u8>),
) {
    ipv4(out, ends, ip, UDP, |out| {
        udp(out, (ip.src.into(), ip.dst.into()), ports, body);
    });
}

/// Writes a UDP datagram over IPv6, from the first port to the second.
pub fn udp6(
    out: &mut Vec<u8>,
    ends: Ends,
    ip: Ip6,
    ports: (u16, u16),
    body: impl FnOnce(&mut Vec<u8>),
) {
    ipv6(out, ends, ip, UDP, |out| {
        udp(out, (ip.src.into(), ip.dst.into()), ports, body);
    });
}

/// Writes an ICMP message (RFC 792); the body begins with type, code and two octets for the checksum.
pub fn icmp4(out: &mut Vec<u8>, ends: Ends, ip: Ip4, body: impl FnOnce(&mut Vec<u8>)) {
    ipv4(out, ends, ip, 1, |out| {
        let start = out.len();
        body(out);
        let sum = Sum::new().bytes(out.get(start..).unwrap_or_default());
        set(out, start + 2, sum.finish());
    });
}

/// Writes an ICMPv6 message (RFC 4443); the body begins with type, code and two octets for the checksum.
pub fn icmp6(out: &mut Vec<u8>, ends: Ends, ip: Ip6, body: impl FnOnce(&mut Vec<u8>)) {
    ipv6(out, ends, ip, ICMPV6, |out| {
        let start = out.len();
        body(out);
        let message = out.get(start..).unwrap_or_default();
        let pseudo = Sum::pseudo(ip.src.into(), ip.dst.into(), ICMPV6, message.len());
        let checksum = pseudo.bytes(message).finish();
        set(out, start + 2, checksum);
    });
}

fn udp(
    out: &mut Vec<u8>,
    addrs: (IpAddr, IpAddr),
    ports: (u16, u16),
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend(ports.0.to_be_bytes());
    out.extend(ports.1.to_be_bytes());
    out.extend([0; 4]);
    body(out);
    let len = out.len() - start;
    set(out, start + 4, length(len));
    let datagram = out.get(start..).unwrap_or_default();
    let sum = Sum::pseudo(addrs.0, addrs.1, UDP, len).bytes(datagram);
    set(out, start + 6, sum.finish_datagram());
}

/// A length field; callers keep to what it can say.
fn length(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}

/// Fills in a field left open before.
fn set(out: &mut [u8], at: usize, value: u16) {
    if let Some(field) = out.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{Icmpv6Packet, Ipv4Packet, Ipv6Packet, UdpPacket};

    const ENDS: Ends = Ends {
        src: Mac([2, 0, 0, 0, 0, 1]),
        dst: Mac([2, 0, 0, 0, 0, 2]),
    };
    const IP4: Ip4 = Ip4 {
        src: Ipv4Addr::new(192, 0, 2, 1),
        dst: Ipv4Addr::new(192, 0, 2, 2),
        ttl: 64,
    };

    fn ip6() -> Ip6 {
        Ip6 {
            src: "fe80::1".parse().unwrap(),
            dst: "fe80::2".parse().unwrap(),
            hop_limit: 255,
            flow_label: 0xf_1234,
        }
    }

    /// N13.
    #[test]
    fn a_short_frame_is_padded_and_its_lengths_leave_the_padding_out() {
        let mut out = vec![0xff; 2000];
        udp4(&mut out, ENDS, IP4, (67, 68), |out| out.push(b'x'));
        assert_eq!(out.len(), MIN_FRAME);
        assert_eq!(out[..14], *b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\x00");
        let ip = Ipv4Packet::new_checked(&out[14..]).unwrap();
        assert!(ip.verify_checksum() && ip.dont_frag() && ip.ident() == 0);
        assert_eq!((ip.total_len(), ip.hop_limit()), (29, 64));
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&IP4.src.into(), &IP4.dst.into()));
        assert_eq!(
            (udp.src_port(), udp.dst_port(), udp.payload()),
            (67, 68, &b"x"[..])
        );
        assert!(out[43..].iter().all(|&octet| octet == 0));
    }

    #[test]
    fn an_ipv6_packet_carries_hop_limit_and_flow_label() {
        let mut out = Vec::new();
        icmp6(&mut out, ENDS, ip6(), |out| {
            out.extend([128, 0, 0, 0, 1, 2, 3, 4, 5]);
        });
        let ip = Ipv6Packet::new_checked(&out[14..]).unwrap();
        assert_eq!(
            (ip.hop_limit(), ip.flow_label(), ip.payload_len()),
            (255, 0xf_1234, 9)
        );
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        let mut out = Vec::new();
        udp6(&mut out, ENDS, ip6(), (1, 2), |out| out.extend([0, 0]));
        let without = u16::from_be_bytes([out[60], out[61]]);
        // A datagram's word equal to the checksum of the rest makes the sum all ones.
        udp6(&mut out, ENDS, ip6(), (1, 2), |out| {
            out.extend(without.to_be_bytes());
        });
        assert_eq!(out[60..62], [0xff, 0xff]);
    }
}
