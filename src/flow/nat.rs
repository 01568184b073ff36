//! Translation between the addresses the guest uses and those of the host's sockets. Few are translated: those that stand
//! for the host itself or its resolver. All others are the same on both sides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::guest::Guest;
use crate::{
    config::{Net, Net4, PREFIX6},
    net::{Class, Endpoint, Protocol, Why, class, is_link_local6},
};

/// DNS (RFC 1035, section 4.2) and DNS over TLS or DTLS (RFC 7858, section 3.1; RFC 8094, section 3.1).
const DNS_PORTS: [u16; 2] = [53, 853];

/// Where the host's socket of a flow connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub addr: Endpoint,
    /// The interface of a link-local address, 0 for all others.
    pub scope: u32,
    /// Whether this is the host's resolver in place of the forwarding address.
    pub dns: bool,
}

/// The target of what the guest sends to `dst`, or why it has none: [`Why::Disabled`], [`Why::PortZero`],
/// [`Why::Destination`] or [`Why::Multicast`]. The port of an echo is its identifier.
pub fn outbound(net: &Net, protocol: Protocol, dst: Endpoint) -> Result<Target, Why> {
    let (served, has_ports) = match protocol {
        Protocol::Tcp => (net.serve.tcp, true),
        Protocol::Udp => (net.serve.udp, true),
        Protocol::Echo => (net.serve.icmp, false),
    };
    let family = Family::of(net, dst.addr)
        .filter(|_| served)
        .ok_or(Why::Disabled)?;
    match class(dst.addr) {
        Class::Unspecified | Class::Loopback => return Err(Why::Destination),
        Class::Multicast | Class::Broadcast => return Err(Why::Multicast),
        Class::LinkLocal | Class::Global => {}
    }
    if is_mapped(dst.addr) {
        return Err(Why::Destination);
    }
    if is_directed_broadcast(net, dst.addr) {
        return Err(Why::Multicast);
    }
    if has_ports && dst.port == 0 {
        return Err(Why::PortZero);
    }
    let asks_dns = has_ports && DNS_PORTS.contains(&dst.port);
    let resolver = family
        .dns_host
        .filter(|_| asks_dns && family.dns_forward == Some(dst.addr));
    let addr = if let Some(resolver) = resolver {
        resolver
    } else if family.map_host_loopback == Some(dst.addr) {
        family.loopback
    } else if family.map_guest_addr == Some(dst.addr) {
        family.host.ok_or(Why::Destination)?
    } else {
        dst.addr
    };
    Ok(Target {
        addr: Endpoint::new(addr, dst.port),
        scope: if is_link_local(addr) { family.scope } else { 0 },
        dns: resolver.is_some(),
    })
}

/// Whether more than one host is meant: multicast, or broadcast of any kind.
pub fn is_group(net: &Net, dst: IpAddr) -> bool {
    matches!(class(dst), Class::Multicast | Class::Broadcast) || is_directed_broadcast(net, dst)
}

/// Whether the guest may send from this address: any a host can have but ours, so also more than we gave it, unless it is
/// held to that.
pub fn check_source(net: &Net, src: IpAddr) -> Result<(), Why> {
    let ours = Family::of(net, src).is_some_and(|family| family.ours == src);
    let usable = matches!(class(src), Class::Global | Class::LinkLocal)
        && !is_mapped(src)
        && !is_directed_broadcast(net, src);
    if usable && !ours && (!net.strict_source || is_given(net, src)) {
        Ok(())
    } else {
        Err(Why::Source)
    }
}

/// Whether the guest has this address from us: by DHCP or DHCPv6, or in IPv6 because it may make its own, in the network we
/// advertise (RFC 4862, section 5.5) and on the link (section 5.3).
fn is_given(net: &Net, src: IpAddr) -> bool {
    match src {
        IpAddr::V4(src) => net.v4.as_ref().is_some_and(|v4| v4.addr == src),
        IpAddr::V6(src) if is_link_local6(src) => net.v6.is_some(),
        IpAddr::V6(src) => {
            let given = net.v6.as_ref().and_then(|v6| v6.addr);
            let makes_its_own = net.serve.ndp && net.serve.ra;
            given.is_some_and(|addr| {
                let differs = (addr.to_bits() ^ src.to_bits()) >> (128 - PREFIX6);
                addr == src || makes_its_own && differs == 0
            })
        }
    }
}

/// The address under which the guest sees a peer of the host's socket; none if the peer's family is switched off. A peer
/// of an IPv6 socket in IPv4-mapped form is an IPv4 peer.
pub fn inbound_source(net: &Net, peer: IpAddr, guest: &Guest) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    let family = Family::of(net, peer)?;
    let kept = match class(peer) {
        Class::Loopback => family.map_host_loopback,
        Class::Unspecified | Class::Multicast | Class::Broadcast => None,
        Class::LinkLocal | Class::Global
            if family.host == Some(peer) && family.map_guest_addr.is_some() =>
        {
            family.map_guest_addr
        }
        Class::LinkLocal | Class::Global if family.assigned == Some(peer) || guest.has(peer) => {
            None
        }
        Class::LinkLocal | Class::Global => Some(peer),
    };
    // The guest would take a packet from its own address for a forgery.
    Some(kept.filter(|&addr| !guest.has(addr)).unwrap_or(family.ours))
}

/// The address under which the guest sees the sender of an ICMP error about a flow to `target`, which it knows as `asked`.
/// The target itself and the host's loopback appear as `asked`, others as [`inbound_source`] says; none if they cannot
/// appear in that family.
pub fn error_source(
    net: &Net,
    offender: IpAddr,
    target: IpAddr,
    asked: IpAddr,
    guest: &Guest,
) -> Option<IpAddr> {
    let offender = offender.to_canonical();
    if offender == target || offender.is_loopback() {
        return Some(asked);
    }
    inbound_source(net, offender, guest).filter(|addr| addr.is_ipv4() == asked.is_ipv4())
}

/// Whether we ourselves stand behind this address, or the guest does: no neighbour of the host can have it.
pub fn is_stand_in(net: &Net, addr: IpAddr) -> bool {
    let Some(family) = Family::of(net, addr) else {
        return false;
    };
    // Router advertisements come from ours, with our MAC address; whoever has it on the host's link, the guest means us.
    let router = Some(family.ours).filter(IpAddr::is_ipv6);
    [
        family.assigned,
        family.map_host_loopback,
        family.map_guest_addr,
        family.dns_forward,
        router,
    ]
    .contains(&Some(addr))
}

/// Whether the guest was told of this IPv4 address as ours or its router's, or we stand behind it otherwise.
pub fn means_us4(net: &Net, addr: Ipv4Addr) -> bool {
    let told = |v4: &Net4| addr == v4.ours || Some(addr) == v4.router;
    net.v4.as_ref().is_some_and(told) || is_stand_in(net, addr.into())
}

/// One family's part of [`Net`], so that the rules are written once for both.
struct Family {
    assigned: Option<IpAddr>,
    host: Option<IpAddr>,
    ours: IpAddr,
    loopback: IpAddr,
    map_host_loopback: Option<IpAddr>,
    map_guest_addr: Option<IpAddr>,
    dns_forward: Option<IpAddr>,
    dns_host: Option<IpAddr>,
    scope: u32,
}

impl Family {
    /// The family of this address; none if it is switched off.
    fn of(net: &Net, addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(_) => net.v4.as_ref().map(|v4| Self {
                assigned: Some(v4.addr.into()),
                host: Some(v4.host.into()),
                ours: v4.ours.into(),
                loopback: Ipv4Addr::LOCALHOST.into(),
                map_host_loopback: v4.map_host_loopback.map(IpAddr::from),
                map_guest_addr: v4.map_guest_addr.map(IpAddr::from),
                dns_forward: v4.dns_forward.map(IpAddr::from),
                dns_host: v4.dns_host.map(IpAddr::from),
                scope: 0,
            }),
            IpAddr::V6(_) => net.v6.as_ref().map(|v6| Self {
                assigned: v6.addr.map(IpAddr::from),
                host: v6.host.map(IpAddr::from),
                ours: v6.ours.into(),
                loopback: Ipv6Addr::LOCALHOST.into(),
                map_host_loopback: v6.map_host_loopback.map(IpAddr::from),
                map_guest_addr: v6.map_guest_addr.map(IpAddr::from),
                dns_forward: v6.dns_forward.map(IpAddr::from),
                dns_host: v6.dns_host.map(IpAddr::from),
                scope: v6.scope,
            }),
        }
    }
}

/// An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) must not be on the wire, and a socket would take it for IPv4:
/// ::ffff:127.0.0.1 for the host's loopback.
const fn is_mapped(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Only IPv6 needs an interface with a link-local address.
const fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if is_link_local6(v6))
}

/// The last address of the guest's IPv4 network (RFC 919, section 7); networks of one or two addresses have none
/// (RFC 3021, section 2.1).
fn is_directed_broadcast(net: &Net, addr: IpAddr) -> bool {
    match (addr, &net.v4) {
        (IpAddr::V4(v4), Some(Net4 { addr, prefix, .. })) if *prefix < 31 => {
            let hosts = u32::MAX >> prefix;
            v4.to_bits() == addr.to_bits() | hosts
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::fixture::{ip, net};

    fn guest() -> Guest {
        let mut guest = Guest::new(
            Some("192.168.1.50".parse().unwrap()),
            Some("2001:db8::50".parse().unwrap()),
        );
        guest.saw_addr(ip("fe80::50"));
        guest
    }

    fn to(net: &Net, dst: &str, port: u16) -> Result<(IpAddr, u32, bool), Why> {
        outbound(net, Protocol::Tcp, Endpoint::new(ip(dst), port)).map(|target| {
            assert_eq!(target.addr.port, port);
            (target.addr.addr, target.scope, target.dns)
        })
    }

    #[test]
    fn most_destinations_stay_as_they_are() {
        for dst in [
            "198.51.100.1",
            "192.168.1.50",
            "169.254.3.4",
            "2001:db8::1",
            "fd00::1",
        ] {
            assert_eq!(to(&net(), dst, 80), Ok((ip(dst), 0, false)));
        }
        assert_eq!(to(&net(), "fe80::2", 80), Ok((ip("fe80::2"), 7, false)));
    }

    #[test]
    fn the_mapped_addresses_reach_the_host() {
        assert_eq!(
            to(&net(), "192.168.1.1", 80),
            Ok((ip("127.0.0.1"), 0, false))
        );
        assert_eq!(to(&net(), "fe80::1", 80), Ok((ip("::1"), 0, false)));
        assert_eq!(
            to(&net(), "2001:db8::99", 80),
            Ok((ip("2001:db8::50"), 0, false))
        );
        let mut local = net();
        local.v6.as_mut().unwrap().host = None;
        assert_eq!(to(&local, "2001:db8::99", 80), Err(Why::Destination));
    }

    /// U21: DNS and DNS over TLS, by TCP and UDP alike. C46: a resolver on the host's loopback is reached through the
    /// gateway's address, other ports of which still are the loopback.
    #[test]
    fn queries_to_the_forwarding_address_reach_the_resolver() {
        let mut net = net();
        let v4 = net.v4.as_mut().unwrap();
        v4.dns_forward = v4.map_host_loopback;
        v4.dns_host = Some("127.0.0.53".parse().unwrap());
        for port in [53, 853] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let target =
                    outbound(&net, protocol, Endpoint::new(ip("192.168.1.1"), port)).unwrap();
                assert_eq!(target.addr, Endpoint::new(ip("127.0.0.53"), port));
                assert!(target.dns);
            }
        }
        assert_eq!(to(&net, "192.168.1.1", 80), Ok((ip("127.0.0.1"), 0, false)));
        let echo = outbound(&net, Protocol::Echo, Endpoint::new(ip("192.168.1.1"), 53));
        assert_eq!(echo.map(|target| target.addr.addr), Ok(ip("127.0.0.1")));
    }

    /// U23: what the guest asks the resolver directly is an ordinary flow.
    #[test]
    fn queries_to_the_resolver_itself_are_not_translated() {
        let mut net = net();
        let v6 = net.v6.as_mut().unwrap();
        v6.dns_forward = Some("2001:db8::53".parse().unwrap());
        v6.dns_host = Some("fe80::53".parse().unwrap());
        assert_eq!(to(&net, "fe80::53", 53), Ok((ip("fe80::53"), 7, false)));
        assert_eq!(to(&net, "2001:db8::53", 53), Ok((ip("fe80::53"), 7, true)));
        assert_eq!(
            to(&net, "2001:db8::53", 54),
            Ok((ip("2001:db8::53"), 0, false))
        );
        assert_eq!(
            inbound_source(&net, ip("fe80::53"), &guest()),
            Some(ip("fe80::53"))
        );
    }

    /// V21: the host's loopback is reached by no other name than its mapping. U07: nor is any broadcast.
    #[test]
    fn some_destinations_are_refused_by_name() {
        for (dst, why) in [
            ("127.0.0.1", Why::Destination),
            ("127.9.9.9", Why::Destination),
            ("0.0.0.0", Why::Destination),
            ("::", Why::Destination),
            ("::1", Why::Destination),
            ("::ffff:127.0.0.1", Why::Destination),
            ("::ffff:198.51.100.1", Why::Destination),
            ("224.0.0.251", Why::Multicast),
            ("255.255.255.255", Why::Multicast),
            ("192.168.1.255", Why::Multicast),
            ("ff02::fb", Why::Multicast),
        ] {
            assert_eq!(to(&net(), dst, 80), Err(why), "{dst}");
        }
        assert_eq!(
            to(&net(), "192.168.2.255", 80),
            Ok((ip("192.168.2.255"), 0, false))
        );
    }

    #[test]
    fn the_smallest_networks_have_no_broadcast() {
        for prefix in [31, 32] {
            let mut net = net();
            let v4 = net.v4.as_mut().unwrap();
            (v4.addr, v4.prefix) = ("192.168.1.254".parse().unwrap(), prefix);
            assert!(to(&net, "192.168.1.255", 80).is_ok());
        }
        let mut wide = net();
        wide.v4.as_mut().unwrap().prefix = 0;
        assert!(to(&wide, "198.51.100.1", 80).is_ok());
    }

    #[test]
    fn port_zero_is_refused_but_an_echo_identifier_may_be_zero() {
        let dst = Endpoint::new(ip("198.51.100.1"), 0);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(outbound(&net(), protocol, dst), Err(Why::PortZero));
        }
        assert!(outbound(&net(), Protocol::Echo, dst).is_ok());
    }

    #[test]
    fn what_is_switched_off_is_refused() {
        let mut net = net();
        net.v6 = None;
        assert_eq!(to(&net, "2001:db8::1", 80), Err(Why::Disabled));
        assert_eq!(inbound_source(&net, ip("2001:db8::1"), &guest()), None);
        net.serve.tcp = false;
        assert_eq!(to(&net, "198.51.100.1", 80), Err(Why::Disabled));
    }

    /// V21.
    #[test]
    fn sources_no_guest_can_have_are_refused() {
        for src in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "192.168.1.255",
            "192.168.1.1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(check_source(&net(), ip(src)), Err(Why::Source), "{src}");
        }
        for src in ["192.168.1.50", "10.9.8.7", "2001:db8::77", "fe80::77"] {
            assert_eq!(check_source(&net(), ip(src)), Ok(()), "{src}");
        }
    }

    #[test]
    fn a_guest_held_to_what_it_was_given_has_that_and_no_more() {
        let mut net = net();
        net.strict_source = true;
        let answers = |net: &Net, list: &[&str]| -> Vec<bool> {
            let each = list.iter().map(|src| check_source(net, ip(src)).is_ok());
            each.collect()
        };
        let given = ["192.168.1.50", "2001:db8::50", "fe80::77"];
        let made = ["2001:db8::5054:ff:fe12:3456"];
        let others = [
            "192.168.1.51",
            "10.9.8.7",
            "169.254.7.7",
            "2001:db8:0:1::50",
            "fd00::1",
            "fe80::1",
            "192.168.1.1",
            "127.0.0.1",
            "::",
        ];
        assert_eq!(answers(&net, &given), [true; 3]);
        assert_eq!(answers(&net, &made), [true]);
        assert_eq!(answers(&net, &others), [false; 9]);
        net.serve.ra = false;
        assert_eq!(answers(&net, &given), [true; 3]);
        assert_eq!(answers(&net, &made), [false]);
    }

    #[test]
    fn peers_are_shown_as_they_are_where_the_guest_can_answer() {
        for (peer, seen) in [
            ("198.51.100.1", "198.51.100.1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("fe80::9", "fe80::9"),
            ("127.0.0.1", "192.168.1.1"),
            ("127.0.0.53", "192.168.1.1"),
            ("::1", "fe80::1"),
            ("0.0.0.0", "192.168.1.1"),
            ("::", "fe80::1"),
            ("192.168.1.50", "192.168.1.1"),
            ("2001:db8::50", "2001:db8::99"),
            ("fe80::50", "fe80::1"),
        ] {
            let found = inbound_source(&net(), ip(peer), &guest());
            assert_eq!(found, Some(ip(seen)), "{peer}");
        }
    }

    #[test]
    fn without_a_mapping_the_host_appears_under_our_own_address() {
        let mut net = net();
        let v4 = net.v4.as_mut().unwrap();
        v4.map_host_loopback = None;
        v4.ours = "192.168.1.2".parse().unwrap();
        let seen = inbound_source(&net, ip("127.0.0.1"), &guest());
        assert_eq!(seen, Some(ip("192.168.1.2")));
    }

    /// U10: 127.0.0.1 never appears as the sender of an ICMP error.
    #[test]
    fn errors_from_the_host_itself_come_from_the_address_the_guest_used() {
        let (net, guest) = (net(), guest());
        let error = |offender, target, asked| {
            error_source(&net, ip(offender), ip(target), ip(asked), &guest)
        };
        assert_eq!(
            error("127.0.0.1", "127.0.0.1", "192.168.1.1"),
            Some(ip("192.168.1.1"))
        );
        assert_eq!(
            error("9.9.9.9", "9.9.9.9", "192.168.1.3"),
            Some(ip("192.168.1.3"))
        );
        assert_eq!(
            error("203.0.113.1", "198.51.100.1", "198.51.100.1"),
            Some(ip("203.0.113.1"))
        );
        assert_eq!(
            error("192.168.1.50", "198.51.100.1", "198.51.100.1"),
            Some(ip("192.168.1.1"))
        );
        assert_eq!(error("203.0.113.1", "2001:db8::1", "2001:db8::1"), None);
    }
}
