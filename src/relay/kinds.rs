//! What kind of a message a frame holds: some are for services, some about groups, some about errors.

use std::ops::Range;

use crate::{
    net::{Class, class},
    service::multicast::{MLD_DONE, MLD_REPORT, MLD_REPORT_V2},
    wire::{
        dhcp, dhcpv6,
        frame::{Body, Datagram, IcmpMessage, Ip},
        ndp::kind::{NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION, ROUTER_SOLICITATION},
    },
};

/// Whether a frame is a request to a service.
pub fn is_for_service(body: &Body) -> bool {
    match body {
        Body::Arp => true,
        Body::Udp(ip, datagram) => is_dhcp(ip, datagram) || is_dhcpv6(ip, datagram),
        Body::Icmp(ip, message) => is_neighbour_discovery(ip, message),
        Body::Tcp(..) | Body::Igmp(..) | Body::Fragment(..) => false,
    }
}

/// Where a frame's message about groups lies, if it is one.
pub fn membership(body: &Body) -> Option<Range<usize>> {
    match body {
        Body::Igmp(_, octets) => Some(octets.clone()),
        Body::Icmp(ip, message)
            if ip.src.is_ipv6()
                && matches!(message.kind, MLD_REPORT | MLD_DONE | MLD_REPORT_V2) =>
        {
            Some(message.octets.clone())
        }
        _ => None,
    }
}

pub fn is_dhcp(ip: &Ip, datagram: &Datagram) -> bool {
    ip.src.is_ipv4() && datagram.dst_port == dhcp::SERVER_PORT
}

pub fn is_dhcpv6(ip: &Ip, datagram: &Datagram) -> bool {
    ip.src.is_ipv6()
        && datagram.dst_port == dhcpv6::SERVER_PORT
        && matches!(class(ip.dst), Class::Multicast | Class::LinkLocal)
}

pub fn is_neighbour_discovery(ip: &Ip, message: &IcmpMessage) -> bool {
    ip.src.is_ipv6()
        && matches!(
            message.kind,
            ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT
        )
}

/// Whether a type is that of an error (RFC 792; RFC 4443, section 2.1).
pub const fn is_error(v4: bool, kind: u8) -> bool {
    match v4 {
        true => matches!(kind, 3 | 4 | 11 | 12),
        false => kind < 128,
    }
}
