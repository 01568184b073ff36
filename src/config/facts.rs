//! What the host is now, as plain values; `host::facts` reads them.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::net::{Mac, is_link_local6};

/// A snapshot of the host's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub interfaces: Vec<Interface>,
    pub addresses: Vec<Address>,
    /// Unicast routes of the main table.
    pub routes: Vec<Route>,
    pub resolver: Resolver,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// What it is called besides, which the kernel takes as well (ip-link(8), altname).
    pub other_names: Vec<String>,
    pub mac: Option<Mac>,
    /// In octets.
    pub mtu: u32,
    pub loopback: bool,
    pub up: bool,
}

impl Interface {
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.other_names.iter().any(|other| other == name)
    }
}

/// An address assigned to an interface; the local one, where the interface has a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub interface: u32,
    pub addr: IpAddr,
    pub prefix: u8,
    pub deprecated: bool,
    /// Whether the scope is wider than the link's.
    pub global: bool,
}

/// What sockets of the host may have for their own end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    interfaces: HashSet<u32>,
    /// Addresses, each with its interface if it means something there only, else 0.
    addresses: HashSet<(IpAddr, u32)>,
}

impl Places {
    pub fn of(facts: &Facts) -> Self {
        let place = |address: &Address| match address.addr {
            IpAddr::V6(v6) if is_link_local6(v6) => (address.addr, address.interface),
            addr => (addr, 0),
        };
        Self {
            interfaces: facts.interfaces.iter().map(|i| i.index).collect(),
            addresses: facts.addresses.iter().map(place).collect(),
        }
    }

    /// Those of these that there are not any more.
    pub fn gone(&self, now: &Self) -> Self {
        Self {
            interfaces: &self.interfaces - &now.interfaces,
            addresses: &self.addresses - &now.addresses,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty() && self.addresses.is_empty()
    }

    pub fn has_interfaces(&self) -> bool {
        !self.interfaces.is_empty()
    }

    /// Whether this own end of a socket has one of the addresses.
    pub fn has(&self, local: SocketAddr) -> bool {
        let scope = match local {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        self.addresses.contains(&(local.ip(), scope))
    }
}

/// One next hop of a route; a multipath route is several of these with the same destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub interface: u32,
    /// The destination; the unspecified address with prefix 0 is the default route.
    pub dst: IpAddr,
    pub prefix: u8,
    pub via: Option<IpAddr>,
    /// Weight of this next hop in a multipath route, 1 elsewhere.
    pub weight: u16,
    /// Metric: the lower is preferred.
    pub metric: u32,
}

/// What resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers4: Vec<Ipv4Addr>,
    pub servers6: Vec<Ipv6Addr>,
    pub search: Vec<String>,
}
