//! A strict reader of the frames we send: lengths, checksums and addresses must be right, whatever the guest sent before.

use std::ops::Range;

use smoltcp::wire::{
    ArpPacket, ArpRepr, Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

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

/// Checks a frame that went to the guest; of TCP, says what is in it.
///
/// # Panics
/// If it is not sound: that is the finding.
pub fn check(frame: &[u8]) -> Option<Segment> {
    // IPv4 frames are padded to the least an Ethernet carries; a length of 14 to 69,632 is what the framing can say.
    assert!(
        (60..=69_632).contains(&frame.len()),
        "{} octets",
        frame.len()
    );
    assert_ne!(frame[..6], frame[6..12], "sent to ourselves");
    let (v6, protocol, src, dst, inner): (_, _, IpAddress, IpAddress, _) = match frame[12..14] {
        [0x08, 0x06] => {
            let packet = ArpPacket::new_checked(&frame[14..]).expect("ARP");
            ArpRepr::parse(&packet).expect("ARP");
            return None;
        }
        [0x08, 0x00] => {
            let ip = Ipv4Packet::new_checked(&frame[14..]).expect("IPv4");
            assert!(ip.verify_checksum(), "IPv4 checksum");
            let total = 14 + usize::from(ip.total_len());
            assert_eq!(frame.len(), total.max(60), "IPv4 length");
            let start = 14 + usize::from(ip.header_len());
            (
                false,
                ip.next_header(),
                ip.src_addr().into(),
                ip.dst_addr().into(),
                start..total,
            )
        }
        [0x86, 0xdd] => {
            let ip = Ipv6Packet::new_checked(&frame[14..]).expect("IPv6");
            let total = 14 + ip.total_len();
            assert_eq!(frame.len(), total.max(60), "IPv6 length");
            (
                true,
                ip.next_header(),
                ip.src_addr().into(),
                ip.dst_addr().into(),
                54..total,
            )
        }
        ref other => panic!("EtherType {other:?}"),
    };
    let packet = &frame[inner.clone()];
    match (protocol, src, dst) {
        (IpProtocol::Tcp, ..) => {
            let tcp = TcpPacket::new_checked(packet).expect("TCP");
            assert!(tcp.verify_checksum(&src, &dst), "TCP checksum");
            let remote = match src {
                IpAddress::Ipv4(addr) => addr.octets()[3],
                IpAddress::Ipv6(addr) => addr.octets()[15],
            };
            Some(Segment {
                v6,
                ports: (tcp.src_port(), tcp.dst_port()),
                remote,
                seq: tcp.seq_number().0.cast_unsigned(),
                ack: tcp.ack_number().0.cast_unsigned(),
                flags: packet[13],
                window: tcp.window_len(),
                payload: inner.start + usize::from(tcp.header_len())..inner.end,
            })
        }
        (IpProtocol::Udp, ..) => {
            let udp = UdpPacket::new_checked(packet).expect("UDP");
            assert_eq!(usize::from(udp.len()), packet.len(), "UDP length");
            assert!(udp.checksum() != 0, "UDP without checksum");
            assert!(udp.verify_checksum(&src, &dst), "UDP checksum");
            None
        }
        (IpProtocol::Icmp, ..) => {
            let icmp = Icmpv4Packet::new_checked(packet).expect("ICMP");
            assert!(icmp.verify_checksum(), "ICMP checksum");
            None
        }
        (IpProtocol::Icmpv6, IpAddress::Ipv6(src), IpAddress::Ipv6(dst)) => {
            let icmp = Icmpv6Packet::new_checked(packet).expect("ICMPv6");
            assert!(icmp.verify_checksum(&src, &dst), "ICMPv6 checksum");
            None
        }
        other => panic!("{other:?}"),
    }
}
