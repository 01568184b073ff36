//! Headers of the flows' frames to the guest: laid out once for a burst, then stamped for each frame.

use std::net::IpAddr;

use super::{
    build::{ETHERNET_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN},
    checksum::Sum,
    tcp::{Flags, OPTIONS_MAX, Options},
};
use crate::net::{
    Endpoint, Mac, Seq,
    number::{TCP, UDP},
};

/// The longest headers we write: Ethernet, IPv6, TCP with all the options there is room for.
pub const HEADERS_MAX: usize = ETHERNET_LEN + IPV6_LEN + TCP_LEN + OPTIONS_MAX;

/// Hop limit of what we send for a flow whose sender's is not known: what a host would use.
pub const TTL: u8 = 64;

/// Ethernet and IP headers with everything in place but lengths and checksums.
#[derive(Debug, Clone)]
pub struct Template {
    octets: [u8; ETHERNET_LEN + IPV6_LEN],
    /// Octets of Ethernet and IP header.
    len: usize,
    v6: bool,
    ports: [u8; 4],
    /// Addresses of the pseudo-header.
    pseudo: Sum,
    /// IPv4 header, without total length and checksum.
    header: Sum,
}

/// What differs from segment to segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFields {
    pub seq: Seq,
    pub ack: Seq,
    pub flags: Flags,
    pub window: u16,
    pub options: Option<Options>,
}

impl Template {
    /// Headers from `src`, which the guest sees as its peer, to `dst`, the guest. Both are of one family; the flow label
    /// (IPv6 only) should be stable and not zero.
    pub fn new(ours: Mac, guest: Mac, src: Endpoint, dst: Endpoint, label: u32) -> Self {
        let mut octets = [0; ETHERNET_LEN + IPV6_LEN];
        octets[0..6].copy_from_slice(&guest.0);
        octets[6..12].copy_from_slice(&ours.0);
        let ip = &mut octets[ETHERNET_LEN..];
        let (v6, len, pseudo) = match (src.addr, dst.addr) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                ip[0] = 0x45;
                ip[6] = 0x40; // don't fragment
                ip[8] = TTL;
                ip[12..16].copy_from_slice(&src.octets());
                ip[16..20].copy_from_slice(&dst.octets());
                (
                    false,
                    ETHERNET_LEN + IPV4_LEN,
                    Sum::new().bytes(&ip[12..20]),
                )
            }
            (src, dst) => {
                let mapped = |addr| match addr {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                ip[0..4].copy_from_slice(&(0x6000_0000 | (label & 0xf_ffff)).to_be_bytes());
                ip[7] = TTL;
                ip[8..24].copy_from_slice(&mapped(src).octets());
                ip[24..40].copy_from_slice(&mapped(dst).octets());
                (true, ETHERNET_LEN + IPV6_LEN, Sum::new().bytes(&ip[8..40]))
            }
        };
        octets[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        let header = Sum::new().bytes(&octets[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN]);
        let [a, b] = src.port.to_be_bytes();
        let [c, d] = dst.port.to_be_bytes();
        Self {
            octets,
            len,
            v6,
            ports: [a, b, c, d],
            pseudo,
            header,
        }
    }

    /// Replaces the hop limit.
    #[must_use]
    pub fn with_ttl(mut self, ttl: u8) -> Self {
        let at = if self.v6 {
            ETHERNET_LEN + 7
        } else {
            ETHERNET_LEN + 8
        };
        self.octets[at] = ttl;
        self.sum_again();
        self
    }

    /// Replaces type of service, or traffic class.
    #[must_use]
    pub fn with_tos(mut self, tos: u8) -> Self {
        if self.v6 {
            self.octets[ETHERNET_LEN] = 0x60 | tos >> 4;
            self.octets[ETHERNET_LEN + 1] = tos << 4 | (self.octets[ETHERNET_LEN + 1] & 0xf);
        } else {
            self.octets[ETHERNET_LEN + 1] = tos;
        }
        self.sum_again();
        self
    }

    /// Lets a packet of IPv4 be cut on its way, where this tells it from others (RFC 6864, section 4).
    #[must_use]
    pub fn with_id(mut self, id: u16) -> Self {
        if !self.v6 {
            self.octets[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&id.to_be_bytes());
            self.octets[ETHERNET_LEN + 6] = 0;
            self.sum_again();
        }
        self
    }

    fn sum_again(&mut self) {
        self.header = Sum::new().bytes(&self.octets[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN]);
    }

    /// Octets of a TCP header with so many of options, with all below it.
    pub const fn tcp_len(&self, options: usize) -> usize {
        self.len + TCP_LEN + options
    }

    /// Octets of a UDP header with all below it.
    pub const fn udp_len(&self) -> usize {
        self.len + 8
    }

    /// Octets from the IP header to the payload of a datagram.
    pub const fn udp_overhead(&self) -> usize {
        self.udp_len() - ETHERNET_LEN
    }

    /// Writes the headers of a segment with `len` octets of payload that sum up to `payload`. Returns their length.
    pub fn tcp(
        &self,
        out: &mut [u8; HEADERS_MAX],
        fields: TcpFields,
        len: usize,
        payload: Sum,
    ) -> usize {
        let options_len = match (&fields.options, out[self.len + TCP_LEN..].first_chunk_mut()) {
            (Some(options), Some(space)) => options.write(space),
            _ => 0,
        };
        let l4 = TCP_LEN + options_len;
        self.network(out, TCP, l4 + len);
        let tcp = &mut out[self.len..self.len + l4];
        tcp[0..4].copy_from_slice(&self.ports);
        tcp[4..8].copy_from_slice(&fields.seq.0.to_be_bytes());
        tcp[8..12].copy_from_slice(&fields.ack.0.to_be_bytes());
        tcp[12] = ((l4 / 4) << 4) as u8;
        tcp[13] = fields.flags.0;
        tcp[14..16].copy_from_slice(&fields.window.to_be_bytes());
        tcp[16..20].copy_from_slice(&[0; 4]);
        let sum = self.upper(TCP, l4 + len).bytes(tcp).plus(payload).finish();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        self.len + l4
    }

    /// Writes the headers of a datagram with `len` octets of payload that sum up to `payload`. Returns their length.
    pub fn udp(&self, out: &mut [u8; HEADERS_MAX], len: usize, payload: Sum) -> usize {
        let l4 = 8 + len;
        self.network(out, UDP, l4);
        let udp = &mut out[self.len..self.len + 8];
        udp[0..4].copy_from_slice(&self.ports);
        udp[4..6].copy_from_slice(&(l4 as u16).to_be_bytes());
        udp[6..8].copy_from_slice(&[0; 2]);
        let sum = self
            .upper(UDP, l4)
            .bytes(udp)
            .plus(payload)
            .finish_datagram();
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        self.len + 8
    }

    fn network(&self, out: &mut [u8; HEADERS_MAX], protocol: u8, upper: usize) {
        out[..self.len].copy_from_slice(&self.octets[..self.len]);
        let ip = &mut out[ETHERNET_LEN..];
        if self.v6 {
            ip[4..6].copy_from_slice(&(upper as u16).to_be_bytes());
            ip[6] = protocol;
        } else {
            let total = (IPV4_LEN + upper) as u16;
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[9] = protocol;
            let sum = self.header.word(total).word(u16::from(protocol)).finish();
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// The pseudo-header's sum for an upper layer of `len` octets.
    fn upper(&self, protocol: u8, len: usize) -> Sum {
        self.pseudo.word(u16::from(protocol)).word(len as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{
        frame::{Body, classify},
        tcp::Timestamps,
    };
    use etherparse::SlicedPacket;

    fn endpoints(v6: bool) -> (Endpoint, Endpoint) {
        let parse = |addr: &str, port| Endpoint::new(addr.parse().unwrap(), port);
        if v6 {
            (parse("2001:db8::1", 443), parse("fd00::2", 50_000))
        } else {
            (parse("198.51.100.1", 443), parse("10.0.2.15", 50_000))
        }
    }

    fn template(v6: bool) -> Template {
        let (src, dst) = endpoints(v6);
        Template::new(Mac([2; 6]), Mac([4; 6]), src, dst, 7)
    }

    #[test]
    fn a_stamped_segment_reads_back_with_right_checksums() {
        for v6 in [false, true] {
            for options in [
                None,
                Some(Options {
                    mss: Some(1460),
                    window_scale: Some(8),
                    sack_permitted: true,
                    timestamps: Some(Timestamps { value: 1, echo: 2 }),
                    ..Options::default()
                }),
            ] {
                let payload = b"some payload of odd length.";
                let fields = TcpFields {
                    seq: Seq(1),
                    ack: Seq(2),
                    flags: Flags::ACK | Flags::PSH,
                    window: 3,
                    options,
                };
                let mut out = [0xaa; HEADERS_MAX];
                let len =
                    template(v6).tcp(&mut out, fields, payload.len(), Sum::new().bytes(payload));
                let mut frame = out[..len].to_vec();
                frame.extend(payload);
                let Ok(Body::Tcp(ip, segment)) = classify(&frame, frame.len()).map(|f| f.body)
                else {
                    panic!("not TCP")
                };
                assert_eq!(
                    (
                        ip.source(segment.src_port),
                        ip.destination(segment.dst_port)
                    ),
                    endpoints(v6)
                );
                assert_eq!(&frame[segment.payload], payload);
                assert_valid(&frame);
            }
        }
    }

    #[test]
    fn a_stamped_datagram_reads_back_with_right_checksums() {
        for v6 in [false, true] {
            let mut out = [0xaa; HEADERS_MAX];
            let len = template(v6).with_ttl(3).with_tos(0xb9).udp(
                &mut out,
                5,
                Sum::new().bytes(b"hello"),
            );
            let mut frame = out[..len].to_vec();
            frame.extend(b"hello");
            let Ok(Body::Udp(ip, datagram)) = classify(&frame, frame.len()).map(|f| f.body) else {
                panic!("not UDP")
            };
            assert_eq!((ip.ttl, ip.tos), (3, 0xb9));
            assert_eq!(
                (ip.id, &frame[datagram.payload]),
                (u32::from(v6) * 7, &b"hello"[..])
            );
            assert_valid(&frame);
        }
    }

    #[test]
    fn only_a_packet_with_an_identification_may_be_cut() {
        for (v6, id, wanted) in [
            (false, None, (true, 0)),
            (false, Some(0x1234), (false, 0x1234)),
            // Of IPv6 the flow label stays, and nobody cuts it.
            (true, Some(0x1234), (true, 7)),
        ] {
            let template = match id {
                Some(id) => template(v6).with_id(id),
                None => template(v6),
            };
            let mut out = [0xaa; HEADERS_MAX];
            let len = template.udp(&mut out, 0, Sum::new());
            let Ok(Body::Udp(ip, _)) = classify(&out[..len], len).map(|f| f.body) else {
                panic!("not UDP")
            };
            assert_eq!((ip.whole, ip.id), wanted);
            assert_valid(&out[..len]);
        }
    }

    fn assert_valid(frame: &[u8]) {
        use etherparse::{NetSlice, TransportSlice};
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (stored, computed) = match (packet.net.unwrap(), packet.transport.unwrap()) {
            (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
                let (s, d) = (ip.header().source(), ip.header().destination());
                (tcp.checksum(), tcp.calc_checksum_ipv4(s, d).unwrap())
            }
            (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
                let (s, d) = (ip.header().source(), ip.header().destination());
                (tcp.checksum(), tcp.calc_checksum_ipv6(s, d).unwrap())
            }
            (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
                let (s, d) = (ip.header().source(), ip.header().destination());
                (
                    udp.checksum(),
                    udp.to_header()
                        .calc_checksum_ipv4_raw(s, d, udp.payload())
                        .unwrap(),
                )
            }
            (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
                let (s, d) = (ip.header().source(), ip.header().destination());
                (
                    udp.checksum(),
                    udp.to_header()
                        .calc_checksum_ipv6_raw(s, d, udp.payload())
                        .unwrap(),
                )
            }
            _ => panic!("unexpected packet"),
        };
        assert_eq!(stored, computed);
    }
}
