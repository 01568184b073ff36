//! A strict reader of the frames we send: lengths, checksums and addresses must be right, whatever the guest sent before.

use std::{collections::HashMap, ops::Range};

use smoltcp::wire::{
    ArpPacket, ArpRepr, Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

use crate::{guest::checksum, kernel::is_stream};

/// A segment of TCP, as the guest sees it.
#[derive(Debug, Clone)]
pub struct Segment {
    pub v6: bool,
    /// Of the remote end and of the guest.
    pub ports: (u16, u16),
    /// The last octet of the remote end's address.
    pub remote: u8,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Where the payload lies in the frame.
    pub payload: Range<usize>,
}

/// Who listens: packets in parts become whole first.
#[derive(Debug, Default)]
pub struct Ear {
    parts: HashMap<(IpAddress, IpAddress, u32), Vec<u8>>,
}

/// What IP says of a frame.
struct Packet {
    src: IpAddress,
    dst: IpAddress,
    protocol: IpProtocol,
    /// Where what IP carries lies in the frame.
    inner: Range<usize>,
    /// Of a part: what it belongs to, its place, whether more follow.
    part: Option<(u32, usize, bool)>,
}

impl Ear {
    /// Checks a frame that went to the guest; of TCP, says what is in it.
    ///
    /// # Panics
    /// If it is not sound: that is the finding.
    pub fn hear(&mut self, frame: &[u8], mtu: u16) -> Option<Segment> {
        // Frames are padded to the least an Ethernet carries.
        assert!(frame.len() >= 60, "{} octets", frame.len());
        assert_ne!(frame[..6], frame[6..12], "sent to ourselves");
        let packet = read(frame)?;
        // RFC 791 and RFC 8200: what every link must carry.
        let least = if packet.is_v6() { 1280 } else { 576 };
        let most = usize::from(mtu.max(least));
        assert!(packet.inner.end - 14 <= most, "more than the MTU, {most}");
        let octets = &frame[packet.inner.clone()];
        let Some((id, at, more)) = packet.part else {
            let segment = carried(&packet, octets);
            return segment.map(|segment| segment.behind(packet.inner.start));
        };
        let key = (packet.src, packet.dst, id);
        let held = self.parts.entry(key).or_default();
        assert!(
            !more || octets.len().is_multiple_of(8),
            "a part of odd size"
        );
        if at == 0 {
            held.clear();
        }
        if at != held.len() {
            // The link was full for what was between.
            return None;
        }
        held.extend(octets);
        if !more {
            let whole = self.parts.remove(&key).unwrap_or_default();
            carried(&packet, &whole);
        }
        None
    }
}

impl Packet {
    fn is_v6(&self) -> bool {
        matches!(self.src, IpAddress::Ipv6(_))
    }
}

impl Segment {
    fn behind(mut self, headers: usize) -> Self {
        self.payload = self.payload.start + headers..self.payload.end + headers;
        self
    }
}

/// Reads the IP header, or an ARP packet, of which nothing more is said.
fn read(frame: &[u8]) -> Option<Packet> {
    match frame[12..14] {
        [0x08, 0x06] => {
            let packet = ArpPacket::new_checked(&frame[14..]).expect("ARP");
            ArpRepr::parse(&packet).expect("ARP");
            None
        }
        [0x08, 0x00] => {
            let ip = Ipv4Packet::new_checked(&frame[14..]).expect("IPv4");
            assert!(ip.verify_checksum(), "IPv4 checksum");
            let total = 14 + usize::from(ip.total_len());
            assert_eq!(frame.len(), total.max(60), "IPv4 length");
            let (more, at) = (ip.more_frags(), usize::from(ip.frag_offset()));
            Some(Packet {
                src: ip.src_addr().into(),
                dst: ip.dst_addr().into(),
                protocol: ip.next_header(),
                inner: 14 + usize::from(ip.header_len())..total,
                part: (more || at > 0).then_some((ip.ident().into(), at, more)),
            })
        }
        [0x86, 0xdd] => {
            let ip = Ipv6Packet::new_checked(&frame[14..]).expect("IPv6");
            let total = 14 + ip.total_len();
            assert_eq!(frame.len(), total.max(60), "IPv6 length");
            let mut packet = Packet {
                src: ip.src_addr().into(),
                dst: ip.dst_addr().into(),
                protocol: ip.next_header(),
                inner: 54..total,
                part: None,
            };
            if packet.protocol == IpProtocol::HopByHop {
                // Of queries of MLD (RFC 2710, section 3).
                packet.protocol = frame[54].into();
                packet.inner.start += 8 + usize::from(frame[55]) * 8;
            }
            if packet.protocol == IpProtocol::Ipv6Frag {
                let place = u16::from_be_bytes([frame[56], frame[57]]);
                let id = u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]]);
                packet.part = Some((id, usize::from(place & !7), place & 1 == 1));
                packet.protocol = frame[54].into();
                packet.inner.start = 62;
            }
            Some(packet)
        }
        ref other => panic!("EtherType {other:?}"),
    }
}

/// Checks what a whole packet carries.
fn carried(packet: &Packet, octets: &[u8]) -> Option<Segment> {
    let (src, dst) = (packet.src, packet.dst);
    match (packet.protocol, src, dst) {
        (IpProtocol::Tcp, ..) => {
            let tcp = TcpPacket::new_checked(octets).expect("TCP");
            assert!(tcp.verify_checksum(&src, &dst), "TCP checksum");
            let remote = match src {
                IpAddress::Ipv4(addr) => addr.octets()[3],
                IpAddress::Ipv6(addr) => addr.octets()[15],
            };
            return Some(Segment {
                v6: packet.is_v6(),
                ports: (tcp.src_port(), tcp.dst_port()),
                remote,
                seq: tcp.seq_number().0.cast_unsigned(),
                ack: tcp.ack_number().0.cast_unsigned(),
                flags: octets[13],
                window: tcp.window_len(),
                payload: usize::from(tcp.header_len())..octets.len(),
            });
        }
        (IpProtocol::Udp, ..) => {
            let udp = UdpPacket::new_checked(octets).expect("UDP");
            assert_eq!(usize::from(udp.len()), octets.len(), "UDP length");
            assert!(udp.checksum() != 0, "UDP without checksum");
            assert!(udp.verify_checksum(&src, &dst), "UDP checksum");
            // Services aside, peers send the test stream from its start.
            let service = matches!(udp.src_port(), 67 | 547);
            trace!("ours: {} octets of UDP", udp.payload().len());
            assert!(service || is_stream(0, udp.payload()), "a datagram changed");
        }
        (IpProtocol::Icmp, ..) => {
            let icmp = Icmpv4Packet::new_checked(octets).expect("ICMP");
            assert!(icmp.verify_checksum(), "ICMP checksum");
        }
        (IpProtocol::Igmp, ..) => assert_eq!(checksum(octets), [0; 2], "IGMP checksum"),
        (IpProtocol::Icmpv6, IpAddress::Ipv6(src), IpAddress::Ipv6(dst)) => {
            let icmp = Icmpv6Packet::new_checked(octets).expect("ICMPv6");
            assert!(icmp.verify_checksum(&src, &dst), "ICMPv6 checksum");
        }
        other => panic!("{other:?}"),
    }
    None
}
