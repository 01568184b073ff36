//! A network for the tests of what depends on it.

use std::net::IpAddr;

use crate::config::{Dns, Multicast, Net, Net4, Net6, OUR_MAC, Outbound, Serve, Withdrawn};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Both families, with the gateway for the host's loopback, and on interfaces 4 and 7.
pub(super) fn net() -> Net {
    Net {
        mac: OUR_MAC,
        mtu: 65_520,
        announce_mtu: true,
        v4: Some(Net4 {
            addr: "192.168.1.50".parse().unwrap(),
            prefix: 24,
            router: Some("192.168.1.1".parse().unwrap()),
            ours: "192.168.1.1".parse().unwrap(),
            routes: Vec::new(),
            map_host_loopback: Some("192.168.1.1".parse().unwrap()),
            map_guest_addr: None,
            host: "192.168.1.50".parse().unwrap(),
            dns_forward: None,
            dns_host: None,
            dns: Vec::new(),
            interface: 4,
        }),
        v6: Some(Net6 {
            addr: Some("2001:db8::50".parse().unwrap()),
            router: Some("fe80::1".parse().unwrap()),
            ours: "fe80::1".parse().unwrap(),
            map_host_loopback: Some("fe80::1".parse().unwrap()),
            map_guest_addr: Some("2001:db8::99".parse().unwrap()),
            host: Some("2001:db8::50".parse().unwrap()),
            dns_forward: None,
            dns_host: None,
            dns: Vec::new(),
            withdrawn: Withdrawn::default(),
            scope: 7,
        }),
        dns: Dns::default(),
        serve: Serve::default(),
        outbound: Outbound::default(),
        multicast: Multicast::default(),
        strict_source: false,
    }
}
