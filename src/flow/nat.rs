//! Translation: which host address stands behind the one the guest uses, and the other way round. Pure, and stateless.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::guest::Guest;
use crate::{
    config::{Net, Net4},
    net::{Class, Endpoint, Protocol, Why, class},
};

/// Ports of DNS, and of DNS over TLS or DTLS (RFC 1035; RFC 7858, RFC 8094).
const DNS: [u16; 2] = [53, 853];

/// Where on the host a flow of the guest goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub endpoint: Endpoint,
    /// The interface behind a link-local IPv6 address, else 0.
    pub scope: u32,
}

/// Translates a flow's destination. The order decides: the resolver first, then the host's loopback, then the host at the
/// guest's own address; everything else is meant as it stands.
///
/// # Errors
/// Why no flow may go there.
pub fn outbound(net: &Net, protocol: Protocol, to: Endpoint) -> Result<Target, Why> {
    if to.port == 0 && protocol != Protocol::Echo {
        return Err(Why::PortZero);
    }
    let addr = match to.addr {
        IpAddr::V4(v4) => outbound4(net, protocol, v4, to.port).map(IpAddr::V4),
        IpAddr::V6(v6) => outbound6(net, protocol, v6, to.port).map(IpAddr::V6),
    }?;
    let scope = match (class(addr), &net.v6) {
        (Class::LinkLocal, Some(v6)) if addr.is_ipv6() => v6.scope,
        _ => 0,
    };
    Ok(Target {
        endpoint: Endpoint::new(addr, to.port),
        scope,
    })
}

fn outbound4(net: &Net, protocol: Protocol, to: Ipv4Addr, port: u16) -> Result<Ipv4Addr, Why> {
    let v4 = net.v4.as_ref().ok_or(Why::Disabled)?;
    if is_dns(protocol, port) && v4.dns_forward == Some(to) {
        return v4.dns_host.ok_or(Why::Destination);
    }
    if v4.map_host_loopback == Some(to) {
        return Ok(Ipv4Addr::LOCALHOST);
    }
    if v4.map_guest_addr == Some(to) {
        return Ok(v4.addr);
    }
    carried(to.into())?;
    if is_directed_broadcast(v4, to) {
        Err(Why::Multicast)
    } else {
        Ok(to)
    }
}

fn outbound6(net: &Net, protocol: Protocol, to: Ipv6Addr, port: u16) -> Result<Ipv6Addr, Why> {
    let v6 = net.v6.as_ref().ok_or(Why::Disabled)?;
    if is_dns(protocol, port) && v6.dns_forward == Some(to) {
        return v6.dns_host.ok_or(Why::Destination);
    }
    if v6.map_host_loopback == Some(to) {
        return Ok(Ipv6Addr::LOCALHOST);
    }
    if v6.map_guest_addr == Some(to) {
        return v6.addr.ok_or(Why::Destination);
    }
    carried(to.into())?;
    if to.to_ipv4_mapped().is_some() {
        Err(Why::Destination)
    } else {
        Ok(to)
    }
}

fn is_dns(protocol: Protocol, port: u16) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Udp) && DNS.contains(&port)
}

/// Whether flows go to this kind of address at all.
fn carried(to: IpAddr) -> Result<(), Why> {
    match class(to) {
        Class::Unspecified | Class::Loopback => Err(Why::Destination),
        Class::Multicast | Class::Broadcast => Err(Why::Multicast),
        Class::LinkLocal | Class::Global => Ok(()),
    }
}

/// Whether this is the broadcast address of the guest's subnet (RFC 919); a /31 and a /32 have none (RFC 3021).
fn is_directed_broadcast(v4: &Net4, to: Ipv4Addr) -> bool {
    let host = u32::MAX.checked_shr(u32::from(v4.prefix)).unwrap_or(0);
    v4.prefix < 31 && u32::from(to) == u32::from(v4.addr) | host
}

/// Whether a packet from the guest may have this source. Others than the assigned address may: guests route.
///
/// # Errors
/// [`Why::Source`] for what no host's packet carries, and for our own address.
pub fn check_source(net: &Net, src: IpAddr) -> Result<(), Why> {
    let ours = match src {
        IpAddr::V4(v4) => net.v4.as_ref().is_some_and(|net| net.ours == v4),
        IpAddr::V6(v6) => net.v6.as_ref().is_some_and(|net| net.ours == v6),
    };
    match class(src) {
        Class::LinkLocal | Class::Global if !ours => Ok(()),
        _ => Err(Why::Source),
    }
}

/// The address by which the guest sees a peer of the host. `None` if no address of that family could be answered.
pub fn inbound_source(net: &Net, peer: IpAddr, guest: &Guest) -> Option<IpAddr> {
    match peer {
        IpAddr::V4(peer) => {
            let v4 = net.v4.as_ref()?;
            Some(IpAddr::V4(if peer.is_loopback() {
                v4.map_host_loopback.unwrap_or(v4.ours)
            } else if peer == v4.addr || guest.addr4 == Some(peer) {
                v4.map_guest_addr.unwrap_or(v4.ours)
            } else if peer.is_unspecified() {
                v4.ours
            } else {
                peer
            }))
        }
        IpAddr::V6(peer) => {
            let v6 = net.v6.as_ref()?;
            Some(IpAddr::V6(if peer.is_loopback() {
                v6.map_host_loopback.unwrap_or(v6.ours)
            } else if v6.addr == Some(peer) || guest.addr6 == Some(peer) {
                v6.map_guest_addr.unwrap_or(v6.ours)
            } else if peer.is_unspecified() || guest.link_local6 == Some(peer) {
                v6.ours
            } else {
                peer
            }))
        }
    }
}

/// The address by which the guest sees whoever reports an error about a packet it sent to `remote`: where the host itself does,
/// that is the address the guest used; where nobody is known, ours.
pub fn error_source(net: &Net, guest: &Guest, offender: Option<IpAddr>, remote: IpAddr) -> IpAddr {
    match offender {
        Some(offender) if class(offender) == Class::Loopback => remote,
        Some(offender) if offender.is_ipv4() == remote.is_ipv4() => {
            inbound_source(net, offender, guest).unwrap_or(remote)
        }
        Some(_) | None => match remote {
            IpAddr::V4(_) => net.v4.as_ref().map_or(remote, |v4| IpAddr::V4(v4.ours)),
            IpAddr::V6(_) => net.v6.as_ref().map_or(remote, |v6| IpAddr::V6(v6.ours)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Dns, Net6, OUR_MAC, Outbound, Serve},
        net::Mac,
    };

    fn net() -> Net {
        let v4 = Net4 {
            addr: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            router: Some(Ipv4Addr::new(10, 0, 2, 2)),
            ours: Ipv4Addr::new(10, 0, 2, 2),
            routes: vec![],
            map_host_loopback: Some(Ipv4Addr::new(10, 0, 2, 2)),
            map_guest_addr: Some(Ipv4Addr::new(10, 0, 2, 9)),
            dns_forward: Some(Ipv4Addr::new(10, 0, 2, 2)),
            dns_host: Some(Ipv4Addr::new(127, 0, 0, 53)),
            dns: vec![],
        };
        let v6 = Net6 {
            addr: Some("fd00::15".parse().unwrap()),
            router: Some("fe80::1".parse().unwrap()),
            ours: "fe80::1".parse().unwrap(),
            map_host_loopback: Some("fe80::1".parse().unwrap()),
            map_guest_addr: None,
            dns_forward: None,
            dns_host: None,
            dns: vec![],
            scope: 3,
        };
        Net {
            mac: OUR_MAC,
            mtu: 65_520,
            announce_mtu: true,
            v4: Some(v4),
            v6: Some(v6),
            dns: Dns::default(),
            serve: Serve::default(),
            outbound: Outbound::default(),
        }
    }

    fn guest() -> Guest {
        Guest {
            mac: Mac([2; 6]),
            addr4: None,
            addr6: None,
            link_local6: None,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn sent(protocol: Protocol, to: &str, port: u16) -> Result<String, Why> {
        outbound(&net(), protocol, Endpoint::new(ip(to), port))
            .map(|t| format!("{}%{}", t.endpoint.addr, t.scope))
    }

    /// C46, U21, U23, U30: the resolver goes first, by its two ports and no others.
    #[test]
    fn the_resolver_comes_before_the_loopback() {
        use Protocol::{Echo, Tcp, Udp};
        for (protocol, port, want) in [
            (Udp, 53, "127.0.0.53%0"),
            (Tcp, 53, "127.0.0.53%0"),
            (Tcp, 853, "127.0.0.53%0"),
            (Tcp, 80, "127.0.0.1%0"),
            (Echo, 53, "127.0.0.1%0"),
        ] {
            assert_eq!(
                sent(protocol, "10.0.2.2", port).as_deref(),
                Ok(want),
                "{protocol:?} {port}"
            );
        }
    }

    #[test]
    fn mapped_addresses_are_translated_and_others_kept() {
        for (to, want) in [
            ("10.0.2.9", "10.0.2.15%0"),
            ("198.51.100.7", "198.51.100.7%0"),
            ("fe80::1", "::1%0"),
            ("fe80::2", "fe80::2%3"),
            ("2001:db8::1", "2001:db8::1%0"),
        ] {
            assert_eq!(sent(Protocol::Tcp, to, 80).as_deref(), Ok(want), "{to}");
        }
    }

    /// V21, T56, T79.
    #[test]
    fn no_flow_goes_to_loopback_groups_or_port_zero() {
        for (to, port, why) in [
            ("127.0.0.1", 80, Why::Destination),
            ("::1", 80, Why::Destination),
            ("0.0.0.0", 80, Why::Destination),
            ("::", 80, Why::Destination),
            ("::ffff:127.0.0.1", 80, Why::Destination),
            ("224.0.0.251", 80, Why::Multicast),
            ("ff02::fb", 80, Why::Multicast),
            ("255.255.255.255", 80, Why::Multicast),
            ("10.0.2.255", 80, Why::Multicast),
            ("198.51.100.7", 0, Why::PortZero),
        ] {
            assert_eq!(sent(Protocol::Tcp, to, port), Err(why), "{to}");
        }
        assert!(sent(Protocol::Echo, "198.51.100.7", 0).is_ok());
    }

    #[test]
    fn a_family_that_is_off_carries_nothing() {
        let net = Net { v6: None, ..net() };
        let to = Endpoint::new(ip("2001:db8::1"), 80);
        assert_eq!(outbound(&net, Protocol::Tcp, to), Err(Why::Disabled));
        assert_eq!(inbound_source(&net, to.addr, &guest()), None);
    }

    #[test]
    fn sources_no_host_has_are_refused() {
        for bad in [
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "10.0.2.2",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
        ] {
            assert_eq!(check_source(&net(), ip(bad)), Err(Why::Source), "{bad}");
        }
        for good in ["10.0.2.15", "192.168.7.7", "fe80::5054", "fd00::99"] {
            assert_eq!(check_source(&net(), ip(good)), Ok(()), "{good}");
        }
    }

    #[test]
    fn peers_of_the_host_appear_by_addresses_the_guest_can_answer() {
        for (peer, want) in [
            ("127.0.0.6", "10.0.2.2"),
            ("10.0.2.15", "10.0.2.9"),
            ("198.51.100.7", "198.51.100.7"),
            ("::1", "fe80::1"),
            ("fd00::15", "fe80::1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(
                inbound_source(&net(), ip(peer), &guest()),
                Some(ip(want)),
                "{peer}"
            );
        }
    }

    /// U10, U16.
    #[test]
    fn an_error_comes_from_whom_the_guest_can_name() {
        let (net, remote) = (net(), ip("10.0.2.2"));
        assert_eq!(
            error_source(&net, &guest(), Some(ip("127.0.0.1")), remote),
            remote
        );
        assert_eq!(
            error_source(&net, &guest(), Some(ip("203.0.113.1")), ip("198.51.100.7")),
            ip("203.0.113.1")
        );
        assert_eq!(
            error_source(&net, &guest(), None, ip("198.51.100.7")),
            ip("10.0.2.2")
        );
    }
}
