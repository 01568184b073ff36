//! A network, requests and a frame reader for the tests of all services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket};

use crate::{
    config::{Dns, Multicast, Net, Net4, Net6, Outbound, Serve, Withdrawn},
    net::Mac,
    wire::dhcpv6,
};

pub(super) const OUR_MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
pub(super) const GUEST_MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 15);
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

pub(super) fn guest6() -> Ipv6Addr {
    "2001:db8::15".parse().unwrap()
}

pub(super) fn guest_link_local() -> Ipv6Addr {
    "fe80::5054:ff:fe12:3456".parse().unwrap()
}

pub(super) fn ours6() -> Ipv6Addr {
    "fe80::1".parse().unwrap()
}

/// Both families, all services, two nameservers and search domains.
pub(crate) fn net() -> Net {
    let search = ["one.test", "two.test"].map(str::to_owned);
    Net {
        mac: OUR_MAC,
        mtu: 65_520,
        announce_mtu: true,
        v4: Some(Net4 {
            addr: GUEST,
            prefix: 24,
            router: Some(ROUTER),
            ours: ROUTER,
            routes: Vec::new(),
            map_host_loopback: Some(ROUTER),
            map_guest_addr: None,
            host: GUEST,
            dns_forward: None,
            dns_host: None,
            dns: vec![[198, 51, 100, 1].into(), [198, 51, 100, 2].into()],
            interface: 2,
        }),
        v6: Some(Net6 {
            addr: Some(guest6()),
            router: Some(ours6()),
            ours: ours6(),
            map_host_loopback: None,
            map_guest_addr: None,
            host: Some(guest6()),
            dns_forward: None,
            dns_host: None,
            dns: vec!["2001:db8::53".parse().unwrap()],
            withdrawn: Withdrawn::default(),
            scope: 2,
        }),
        dns: Dns {
            search: search.to_vec(),
            hostname: Some("guest".to_owned()),
            fqdn: Some("guest.example".to_owned()),
        },
        serve: Serve::default(),
        outbound: Outbound::default(),
        multicast: Multicast::default(),
        strict_source: false,
    }
}

/// A frame taken apart, all its checksums and lengths found right.
#[derive(Debug)]
pub(super) struct Opened {
    pub to: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub hops: u8,
    pub protocol: u8,
    /// Source and destination, of UDP.
    pub ports: (u16, u16),
    /// Of UDP, or the whole ICMPv6 message.
    pub payload: Vec<u8>,
}

pub(super) fn open(frame: &[u8]) -> Opened {
    assert!(frame.len() >= 60);
    assert_eq!(frame[6..12], OUR_MAC.0);
    let (src, dst, hops, protocol, inner): (IpAddr, IpAddr, _, IpProtocol, &[u8]) =
        match frame[12..14] {
            [0x08, 0x00] => {
                let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                assert!(ip.verify_checksum() && ip.dont_frag());
                let total = usize::from(ip.total_len());
                assert!(frame.len() == (14 + total).max(60));
                let inner = &frame[34..14 + total];
                (
                    ip.src_addr().into(),
                    ip.dst_addr().into(),
                    ip.hop_limit(),
                    ip.next_header(),
                    inner,
                )
            }
            [0x86, 0xdd] => {
                let ip = Ipv6Packet::new_checked(&frame[14..]).unwrap();
                assert!(frame.len() == (14 + ip.total_len()).max(60));
                let inner = &frame[54..14 + ip.total_len()];
                (
                    ip.src_addr().into(),
                    ip.dst_addr().into(),
                    ip.hop_limit(),
                    ip.next_header(),
                    inner,
                )
            }
            ref other => panic!("EtherType {other:?}"),
        };
    let (ports, payload) = match (protocol, src, dst) {
        (IpProtocol::Udp, ..) => {
            let udp = UdpPacket::new_checked(inner).unwrap();
            assert!(udp.checksum() != 0);
            assert!(udp.verify_checksum(&src.into(), &dst.into()));
            assert_eq!(usize::from(udp.len()), inner.len());
            ((udp.src_port(), udp.dst_port()), udp.payload())
        }
        (IpProtocol::Icmpv6, IpAddr::V6(src), IpAddr::V6(dst)) => {
            let icmp = Icmpv6Packet::new_checked(inner).unwrap();
            assert!(icmp.verify_checksum(&src, &dst));
            ((0, 0), inner)
        }
        other => panic!("{other:?}"),
    };
    Opened {
        to: Mac(frame[..6].try_into().unwrap()),
        src,
        dst,
        hops,
        protocol: protocol.into(),
        ports,
        payload: payload.to_vec(),
    }
}

/// The guest's broadcast frame asking for `target`.
pub(super) fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [Mac::BROADCAST.0, GUEST_MAC.0].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(GUEST_MAC.0);
    frame.extend(GUEST.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// A DHCP message from the guest; type 0 is none, as in BOOTP.
pub(super) fn dhcp(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef];
    message.resize(28, 0);
    message.extend(GUEST_MAC.0);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99]);
    if kind != 0 {
        message.extend([53, 1, kind]);
    }
    for (code, value) in options {
        message.extend([*code, value.len() as u8]);
        message.extend(*value);
    }
    message.push(255);
    message.resize(message.len().max(300), 0);
    message
}

pub(super) fn our_duid() -> Vec<u8> {
    dhcpv6::duid(OUR_MAC).to_vec()
}

/// A DHCPv6 message with these options.
pub(super) fn dhcpv6(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![kind, 0xab, 0xcd, 0xef];
    for (code, value) in options {
        message.extend(code.to_be_bytes());
        message.extend((value.len() as u16).to_be_bytes());
        message.extend(*value);
    }
    message
}

/// An ICMPv6 neighbor solicitation; its checksum is not looked at by the service.
pub(super) fn neighbor_solicitation(target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend(options);
    message
}
