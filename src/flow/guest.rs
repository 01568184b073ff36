//! What the guest has shown of itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::{Class, Mac, class};

/// How many of its addresses are known to be the guest's at a time.
const HEARD: usize = 8;

/// The guest's addresses as observed on the link; what was configured until something is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Broadcast until a frame was seen.
    pub mac: Mac,
    pub addr4: Option<Ipv4Addr>,
    pub addr6: Option<Ipv6Addr>,
    pub link_local6: Option<Ipv6Addr>,
    /// Whether the addresses stay what they are, whatever is seen.
    pinned4: bool,
    pinned6: bool,
    /// Addresses at which the client on the link was heard, latest first.
    heard: [Option<IpAddr>; HEARD],
    /// How often it said something new.
    news: u32,
}

impl Guest {
    pub const fn new(addr4: Option<Ipv4Addr>, addr6: Option<Ipv6Addr>) -> Self {
        Self {
            mac: Mac::BROADCAST,
            addr4,
            addr6,
            link_local6: None,
            pinned4: false,
            pinned6: false,
            heard: [None; HEARD],
            news: 0,
        }
    }

    /// Has connections go to the addresses given, even if others are seen: `--address` says where the guest is.
    pub const fn pin(&mut self, v4: bool, v6: bool) {
        (self.pinned4, self.pinned6) = (v4, v6);
    }

    /// Notes the source of a frame; `true` if the MAC address is new.
    pub fn saw_mac(&mut self, mac: Mac) -> bool {
        let new = !mac.is_multicast() && mac != Mac::ZERO && mac != self.mac;
        if new {
            self.mac = mac;
            self.news = self.news.wrapping_add(1);
        }
        new
    }

    /// Notes the source of a packet; addresses no host can have (unspecified, multicast, loopback) are ignored. `true` if it
    /// was not known to be there.
    pub fn saw_addr(&mut self, addr: IpAddr) -> bool {
        if !matches!(class(addr), Class::Global | Class::LinkLocal) {
            return false;
        }
        let at = self.heard.iter().position(|&heard| heard == Some(addr));
        self.heard[..=at.unwrap_or(HEARD - 1)].rotate_right(1);
        self.heard[0] = Some(addr);
        match (class(addr), addr) {
            (_, IpAddr::V4(v4)) if !self.pinned4 => self.addr4 = Some(v4),
            (Class::LinkLocal, IpAddr::V6(v6)) => self.link_local6 = Some(v6),
            (_, IpAddr::V6(v6)) if !self.pinned6 => self.addr6 = Some(v6),
            _ => {}
        }
        let new = at.is_none();
        self.news = self.news.wrapping_add(new.into());
        new
    }

    /// Another number each time the client on the link was heard at another address, or as another one.
    pub const fn news(&self) -> u32 {
        self.news
    }

    /// Learns what was seen elsewhere.
    pub fn hear_of(&mut self, other: &Self) {
        self.saw_mac(other.mac);
        let unknown = other.heard.iter().flatten().rev();
        for &addr in unknown {
            if !self.heard.contains(&Some(addr)) {
                self.saw_addr(addr);
            }
        }
    }

    /// Notes an address the guest is about to take (RFC 4862, section 5.4): where none is known better, it is there.
    pub fn saw_probe(&mut self, addr: Ipv6Addr) {
        let known = self.pinned6 || self.addr6.is_some_and(|addr6| self.is_at(addr6.into()));
        if !known && class(addr.into()) == Class::Global {
            self.addr6 = Some(addr);
        }
    }

    /// Addresses at which the client on the link was heard, latest first.
    pub fn heard(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.heard.iter().flatten().copied()
    }

    /// Whether the client on the link was heard at this address, so that frames to it arrive.
    pub fn is_at(&self, addr: IpAddr) -> bool {
        self.mac != Mac::BROADCAST && self.heard.contains(&Some(addr))
    }

    /// Whether this is one of the addresses at which the guest is to be reached.
    pub fn has(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(v4) => self.addr4 == Some(v4),
            IpAddr::V6(v6) => self.addr6 == Some(v6) || self.link_local6 == Some(v6),
        }
    }

    /// The address at which the guest is to be reached by `peer`.
    pub fn address_for(&self, peer: IpAddr) -> Option<IpAddr> {
        match (class(peer), peer) {
            (_, IpAddr::V4(_)) => self.addr4.map(IpAddr::V4),
            (Class::LinkLocal, IpAddr::V6(_)) => self.link_local6.or(self.addr6).map(IpAddr::V6),
            (_, IpAddr::V6(_)) => self.addr6.or(self.link_local6).map(IpAddr::V6),
        }
    }

    /// Forgets the client that left: another may have another MAC.
    pub fn left(&mut self) {
        self.mac = Mac::BROADCAST;
        self.heard = [None; HEARD];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn guest() -> Guest {
        let mut guest = Guest::new(Some([10, 0, 2, 15].into()), None);
        guest.saw_mac(Mac([2, 0, 0, 0, 0, 1]));
        guest
    }

    #[test]
    fn a_guest_is_where_it_was_heard_last() {
        let mut guest = guest();
        assert_eq!(guest.address_for(ip("192.0.2.1")), Some(ip("10.0.2.15")));
        assert!(!guest.is_at(ip("10.0.2.15")));
        for addr in ["10.0.2.15", "10.0.2.16", "fe80::1", "2001:db8::1"] {
            guest.saw_addr(ip(addr));
            assert!(guest.is_at(ip(addr)));
        }
        assert_eq!(guest.address_for(ip("192.0.2.1")), Some(ip("10.0.2.16")));
        assert_eq!(
            guest.address_for(ip("2001:db8::2")),
            Some(ip("2001:db8::1"))
        );
        assert_eq!(guest.address_for(ip("fe80::2")), Some(ip("fe80::1")));
        guest.left();
        assert!(!guest.is_at(ip("10.0.2.16")));
    }

    /// Regression C18.
    #[test]
    fn a_pinned_guest_stays_where_it_was_put() {
        let mut guest = guest();
        guest.pin(true, false);
        guest.saw_addr(ip("10.0.2.99"));
        assert_eq!(guest.address_for(ip("192.0.2.1")), Some(ip("10.0.2.15")));
    }

    #[test]
    fn only_so_many_addresses_are_remembered_the_latest_ones() {
        let mut guest = guest();
        for host in 1..=20 {
            guest.saw_addr([10, 0, 0, host].into());
        }
        guest.saw_addr(ip("10.0.0.13"));
        assert!(guest.is_at(ip("10.0.0.13")) && guest.is_at(ip("10.0.0.20")));
        assert!(!guest.is_at(ip("10.0.0.12")));
    }

    /// Regression N10: what has no address cannot be found there.
    #[test]
    fn a_probed_address_is_where_to_look_until_one_is_heard() {
        let mut guest = guest();
        guest.saw_addr(ip("::"));
        guest.saw_probe("2001:db8::7".parse().unwrap());
        assert_eq!(
            guest.address_for(ip("2001:db8::2")),
            Some(ip("2001:db8::7"))
        );
        guest.saw_addr(ip("2001:db8::8"));
        guest.saw_probe("2001:db8::9".parse().unwrap());
        assert_eq!(
            guest.address_for(ip("2001:db8::2")),
            Some(ip("2001:db8::8"))
        );
    }
}
