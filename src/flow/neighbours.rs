//! Who else is on the host's link, as far as its kernel knows where: the guest is told the same link addresses.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{guest::Guest, nat};
use crate::{
    config::{Net, PREFIX6},
    net::{Class, Mac, class, is_link_local6},
};

/// Neighbours known at a time, as many as Linux keeps of a family (gc_thresh3, arp(7)).
const MOST: usize = if cfg!(miri) { 64 } else { 1024 };

/// What the host's kernel says of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface it is reached over.
    pub interface: u32,
    pub addr: IpAddr,
    /// `None` if it is not known, or not any more.
    pub mac: Option<Mac>,
    /// Whether it says of itself that it is a router (RFC 4861, section 4.4).
    pub router: bool,
}

/// Where a neighbour is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    pub mac: Mac,
    pub router: bool,
}

/// The neighbours on the template interface.
#[derive(Debug, Default, Clone)]
pub struct Neighbours(HashMap<IpAddr, Whereabouts>);

impl Neighbours {
    /// Notes what the kernel says; `true` if a guest that believes otherwise should be told. Neighbours on other interfaces,
    /// and at addresses that we ourselves stand for, are none of the guest's.
    pub fn note(&mut self, net: &Net, told: &Neighbour) -> bool {
        let addr = told.addr;
        if !concerns(net, told) {
            return false;
        }
        let usable = |mac: &Mac| !mac.is_multicast() && *mac != Mac::ZERO && *mac != net.mac;
        let Some(mac) = told.mac.filter(usable) else {
            // The guest keeps what it knows: we are reached under any address.
            self.0.remove(&addr);
            return false;
        };
        let now = Whereabouts {
            mac,
            router: told.router,
        };
        if self.0.len() >= MOST && !self.0.contains_key(&addr) {
            return false;
        }
        self.0.insert(addr, now) != Some(now)
    }

    /// Forgets all but these.
    pub fn keep(&mut self, net: &Net, told: &[Neighbour]) {
        let told = told.iter().filter(|neighbour| concerns(net, neighbour));
        let there: HashSet<IpAddr> = told.map(|neighbour| neighbour.addr).collect();
        self.0.retain(|addr, _| there.contains(addr));
    }

    pub fn get(&self, addr: IpAddr) -> Option<Whereabouts> {
        self.0.get(&addr).copied()
    }

    /// Whether this is an address of the guest's, which tells itself where it is. At one that it was only heard at a neighbour may
    /// be by now; and no word of its own makes `ours` one of them.
    pub fn leave_to(&self, guest: &Guest, addr: IpAddr, ours: IpAddr) -> bool {
        guest.has(addr) || guest.is_at(addr) && addr != ours && self.get(addr).is_none()
    }

    /// From where on the link a packet of this address comes: the neighbour itself, the router for those beyond, or us.
    pub fn source(&self, net: &Net, addr: IpAddr) -> Mac {
        if self.0.is_empty() {
            return net.mac;
        }
        let known = self.get(addr).or_else(|| self.get(router_to(net, addr)?));
        known.map_or(net.mac, |known| known.mac)
    }
}

/// Whether this is a neighbour on the template interface, at an address that neither the guest was given nor we have.
fn concerns(net: &Net, told: &Neighbour) -> bool {
    told.interface == interface(net, told.addr)
        && matches!(class(told.addr), Class::Global | Class::LinkLocal)
        && !nat::is_stand_in(net, told.addr)
}

/// The template interface of an address's family; 0 where there is none.
fn interface(net: &Net, addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(_) => net.v4.as_ref().map_or(0, |v4| v4.interface),
        IpAddr::V6(_) => net.v6.as_ref().map_or(0, |v6| v6.scope),
    }
}

/// The router that leads to an address outside the guest's network.
fn router_to(net: &Net, addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(addr) => {
            let v4 = net.v4.as_ref()?;
            let differing = (addr.to_bits() ^ v4.addr.to_bits()).leading_zeros();
            let beyond = differing < u32::from(v4.prefix);
            v4.router.filter(|_| beyond).map(IpAddr::V4)
        }
        IpAddr::V6(addr) => {
            let v6 = net.v6.as_ref()?;
            let differing = (addr.to_bits() ^ v6.addr?.to_bits()).leading_zeros();
            let beyond = differing < u32::from(PREFIX6) && !is_link_local6(addr);
            v6.router.filter(|_| beyond).map(IpAddr::V6)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::OUR_MAC,
        flow::fixture::{self, ip},
    };
    use std::net::Ipv4Addr;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 8]);

    fn net() -> Net {
        let mut net = fixture::net();
        if let Some(v4) = &mut net.v4 {
            v4.map_host_loopback = None;
            v4.map_guest_addr = Some(Ipv4Addr::new(192, 168, 1, 2));
            v4.dns_forward = Some(Ipv4Addr::new(192, 168, 1, 3));
        }
        net
    }

    fn told(addr: &str, mac: Option<Mac>) -> Neighbour {
        let addr = ip(addr);
        Neighbour {
            interface: if addr.is_ipv4() { 4 } else { 7 },
            addr,
            mac,
            router: false,
        }
    }

    #[test]
    fn what_is_new_is_worth_telling_and_what_is_known_is_not() {
        let (net, mut neighbours) = (net(), Neighbours::default());
        for addr in ["192.168.1.7", "2001:db8::7", "fe80::7"] {
            assert!(neighbours.note(&net, &told(addr, Some(MAC))));
            assert!(!neighbours.note(&net, &told(addr, Some(MAC))));
            assert!(neighbours.note(&net, &told(addr, Some(OTHER))));
            assert_eq!(neighbours.source(&net, ip(addr)), OTHER);
            assert!(!neighbours.note(&net, &told(addr, None)));
            assert_eq!(neighbours.get(ip(addr)), None);
            assert_eq!(neighbours.source(&net, ip(addr)), OUR_MAC);
        }
    }

    #[test]
    fn other_interfaces_and_addresses_we_stand_for_are_left_out() {
        let (net, mut neighbours) = (net(), Neighbours::default());
        let elsewhere = Neighbour {
            interface: 5,
            ..told("192.168.1.7", Some(MAC))
        };
        assert!(!neighbours.note(&net, &elsewhere));
        for addr in [
            "192.168.1.50",
            "192.168.1.2",
            "192.168.1.3",
            "2001:db8::50",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "127.0.0.1",
        ] {
            assert!(!neighbours.note(&net, &told(addr, Some(MAC))), "{addr}");
        }
        for mac in [Mac::ZERO, Mac::BROADCAST, OUR_MAC] {
            assert!(!neighbours.note(&net, &told("192.168.1.7", Some(mac))));
        }
        assert_eq!(neighbours.source(&net, ip("192.168.1.7")), OUR_MAC);
    }

    #[test]
    fn what_comes_from_beyond_comes_from_the_router() {
        let (net, mut neighbours) = (net(), Neighbours::default());
        assert!(neighbours.note(&net, &told("192.168.1.1", Some(MAC))));
        for (addr, mac) in [
            ("192.168.1.1", MAC),
            ("198.51.100.1", MAC),
            ("192.168.1.9", OUR_MAC),
            ("2001:db8:9::1", OUR_MAC),
        ] {
            assert_eq!(neighbours.source(&net, ip(addr)), mac, "{addr}");
        }
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered_and_old_ones_are_forgotten() {
        let (net, mut neighbours) = (net(), Neighbours::default());
        for n in 0..2 * MOST {
            let addr = format!("2001:db8::1:{n:x}");
            assert_eq!(neighbours.note(&net, &told(&addr, Some(MAC))), n < MOST);
        }
        let (kept, gone) = ("2001:db8::1:7", "2001:db8::1:8");
        neighbours.keep(&net, &[told(kept, Some(MAC))]);
        assert!(neighbours.get(ip(kept)).is_some());
        assert_eq!(neighbours.get(ip(gone)), None);
    }
}
