//! What the guest has shown of itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::{Class, Mac, Now, class};

/// How many of its addresses are known to be the guest's at a time.
const HEARD: usize = 16;

/// An address of the guest's, the MAC address it was heard at, and when last. Several machines may be behind the link, by a
/// bridge in the guest for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    addr: IpAddr,
    mac: Mac,
    last: Now,
}

/// The guest's addresses as observed on the link; what was configured until something is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// That of the last frame; broadcast until one was seen.
    pub mac: Mac,
    pub addr4: Option<Ipv4Addr>,
    pub addr6: Option<Ipv6Addr>,
    pub link_local6: Option<Ipv6Addr>,
    /// Whether the addresses stay what they are, whatever is seen.
    pinned4: bool,
    pinned6: bool,
    /// Addresses at which the client on the link was heard, latest first.
    heard: [Option<Place>; HEARD],
    /// When the last frame came.
    last: Now,
    /// Since this MAC address was first seen none came from another.
    alone: bool,
    /// A MAC address that is not heard any more, and the one that has come in its place.
    moved: Option<(Mac, Mac)>,
    /// When the last MAC address that was new was first heard, and which.
    newest: (Now, Mac),
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
            last: Now(0),
            alone: false,
            moved: None,
            newest: (Now(0), Mac::BROADCAST),
            news: 0,
        }
    }

    /// Has connections go to the addresses given, even if others are seen: `--address` says where the guest is.
    pub const fn pin(&mut self, v4: bool, v6: bool) {
        (self.pinned4, self.pinned6) = (v4, v6);
    }

    /// Notes who has sent a frame, and from which address if it carries a packet; `true` if the MAC address is new.
    pub fn saw_frame(&mut self, mac: Mac, src: Option<IpAddr>, now: Now) -> bool {
        self.last = now;
        let new = self.saw_mac(mac);
        if let Some(src) = src
            && mac == self.mac
            && let Some(at) = self.find(src)
        {
            self.heard[..=at].rotate_right(1);
            match &mut self.heard[0] {
                Some(place) if place.mac == mac => place.last = now,
                _ => _ = self.saw_addr(src),
            }
        }
        new
    }

    /// Notes who has sent a frame that goes no further, if its sender is known.
    pub fn saw_known(&mut self, mac: Mac, now: Now) {
        if self.heard.iter().flatten().any(|place| place.mac == mac) {
            self.saw_frame(mac, None, now);
        }
    }

    /// Notes the source of a frame; `true` if the MAC address is new.
    pub fn saw_mac(&mut self, mac: Mac) -> bool {
        self.is_not_gone(mac);
        if mac == self.mac || mac.is_multicast() || mac == Mac::ZERO {
            return false;
        }
        let new = !self.heard.iter().flatten().any(|place| place.mac == mac);
        (self.mac, self.alone) = (mac, new);
        if new {
            self.newest = (self.last, mac);
        }
        self.news = self.news.wrapping_add(new.into());
        new
    }

    /// Notes the source of a packet; addresses no host can have (unspecified, multicast, loopback) are ignored. `true` if it
    /// was not known to be there.
    pub fn saw_addr(&mut self, addr: IpAddr) -> bool {
        let (mac, last) = (self.mac, self.last);
        let before = self.place(addr).map(|_| self.mac_at(addr));
        let new = self.note(Place { addr, mac, last });
        if let Some(before) = before
            && new
            && self.alone
        {
            self.follow(before, mac);
        }
        new
    }

    fn note(&mut self, place: Place) -> bool {
        let addr = place.addr;
        if !matches!(class(addr), Class::Global | Class::LinkLocal) {
            return false;
        }
        let at = self.find(addr);
        let before = at.map(|_| self.mac_at(addr));
        self.heard[..=at.unwrap_or(HEARD - 1)].rotate_right(1);
        self.heard[0] = Some(place);
        match (class(addr), addr) {
            (_, IpAddr::V4(v4)) if !self.pinned4 => self.addr4 = Some(v4),
            (Class::LinkLocal, IpAddr::V6(v6)) => self.link_local6 = Some(v6),
            (_, IpAddr::V6(v6)) if !self.pinned6 => self.addr6 = Some(v6),
            _ => {}
        }
        let new = before.is_none_or(|before| before != place.mac);
        self.news = self.news.wrapping_add(new.into());
        new
    }

    /// One of its addresses is at this MAC address, and was at another before. Has the guest changed it, then those that are
    /// silent are there too; once the old one is heard again, it is another machine's.
    fn follow(&mut self, before: Mac, mac: Mac) {
        let Some((gone, next)) = self.moved.replace((before, mac)) else {
            return;
        };
        let places = self.heard.iter_mut().flatten();
        for place in places.filter(|place| place.mac == gone) {
            place.mac = next;
        }
    }

    /// What has this MAC address was heard.
    fn is_not_gone(&mut self, mac: Mac) {
        self.moved = self.moved.filter(|&(gone, _)| gone != mac);
    }

    /// The MAC address that frames to this address of the guest's are for.
    pub fn mac_at(&self, addr: IpAddr) -> Mac {
        let place = self.place(addr).map(|place| place.mac);
        match (place, self.moved) {
            (None | Some(Mac::BROADCAST), _) => self.mac,
            (Some(mac), Some((gone, next))) if mac == gone => next,
            (Some(mac), _) => mac,
        }
    }

    /// Whether a MAC address that was new was heard since this address was, at another: it may be there by now.
    pub fn may_have_moved(&self, addr: IpAddr) -> bool {
        let (since, mac) = self.newest;
        let place = self.place(addr);
        place.is_some_and(|place| place.last <= since) && self.mac_at(addr) != mac
    }

    fn find(&self, addr: IpAddr) -> Option<usize> {
        let mut places = self.heard.iter();
        places.position(|place| matches!(place, Some(place) if place.addr == addr))
    }

    fn place(&self, addr: IpAddr) -> Option<&Place> {
        self.heard.get(self.find(addr)?)?.as_ref()
    }

    /// Another number each time the client on the link was heard at another address, or as another one.
    pub const fn news(&self) -> u32 {
        self.news
    }

    /// Learns what was seen elsewhere. That an address is at another machine there makes no machine another: what follows a
    /// guest that has changed its MAC address is known there as well.
    pub fn hear_of(&mut self, other: &Self) {
        let newest = self.newest;
        let new = self.saw_mac(other.mac);
        self.alone &= other.alone;
        self.newest = newest.max(other.newest);
        for &place in other.heard.iter().flatten().rev() {
            let mac = other.mac_at(place.addr);
            let now = self.mac_at(place.addr);
            let own = self.place(place.addr);
            if own.is_none_or(|own| now != mac && own.last < place.last) {
                self.note(Place { mac, ..place });
                if place.last > newest.0 {
                    self.is_not_gone(mac);
                }
            }
        }
        if let Some((gone, next)) = other.moved
            && new
        {
            self.follow(gone, next);
        }
    }

    /// The same, by a client on the link that was heard here later.
    pub fn hear_of_before(&mut self, other: &Self) {
        let mac = self.mac;
        self.hear_of(other);
        if mac != Mac::BROADCAST && mac != self.mac {
            (self.mac, self.alone) = (mac, false);
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
        self.heard.iter().flatten().map(|place| place.addr)
    }

    /// Whether the client on the link was heard at this address, so that frames to it arrive.
    pub fn is_at(&self, addr: IpAddr) -> bool {
        self.mac != Mac::BROADCAST && self.place(addr).is_some()
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
        self.moved = None;
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
        let most = HEARD as u8;
        for host in 1..=12 + most {
            guest.saw_addr([10, 0, 0, host].into());
        }
        guest.saw_addr(ip("10.0.0.13"));
        assert!(guest.is_at(ip("10.0.0.13")) && guest.is_at([10, 0, 0, 12 + most].into()));
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
    const MACS: [Mac; 3] = [
        Mac([2, 0, 0, 0, 0, 1]),
        Mac([2, 0, 0, 0, 0, 2]),
        Mac([2, 0, 0, 0, 0, 3]),
    ];

    /// A packet of this machine from the last address of these.
    fn says(guest: &mut Guest, mac: Mac, host: u8) -> IpAddr {
        let addr = [10, 0, 2, host].into();
        guest.saw_frame(mac, Some(addr), Now(guest.last.0 + 1));
        guest.saw_addr(addr);
        addr
    }

    #[test]
    fn each_address_is_at_the_machine_that_was_heard_there() {
        let mut guest = Guest::new(None, None);
        let addrs = [2, 3].map(|host| says(&mut guest, MACS[usize::from(host - 2)], host));
        let news = guest.news();
        for _ in 0..3 {
            for (addr, mac) in addrs.into_iter().zip(MACS) {
                guest.saw_frame(mac, Some(addr), Now(9));
                assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[0], MACS[1]]);
            }
        }
        assert_eq!(guest.news(), news, "nothing is new");
        assert_eq!(guest.mac_at(ip("10.0.2.4")), MACS[1], "where it may be");
        // One takes an address of the other, as a cluster does.
        says(&mut guest, MACS[2], 4);
        says(&mut guest, MACS[0], 2);
        assert_eq!(says(&mut guest, MACS[1], 4), ip("10.0.2.4"));
        let places = [2, 3, 4].map(|host| guest.mac_at([10, 0, 2, host].into()));
        assert_eq!(places, [MACS[0], MACS[1], MACS[1]]);
        assert!(guest.news() > news);
    }

    #[test]
    fn an_address_that_goes_on_talking_is_not_forgotten() {
        let mut guest = Guest::new(None, None);
        let talks = says(&mut guest, MACS[0], 2);
        for host in 3..=3 + HEARD as u8 {
            says(&mut guest, MACS[1], host);
            guest.saw_frame(MACS[0], Some(talks), Now(9));
        }
        assert!(guest.is_at(talks));
        assert_eq!(guest.mac_at(talks), MACS[0]);
    }

    #[test]
    fn what_is_silent_follows_a_guest_that_changes_its_mac_address() {
        let mut guest = Guest::new(None, None);
        let addrs = [2, 3, 4].map(|host| says(&mut guest, MACS[0], host));
        guest.saw_frame(MACS[1], Some(addrs[1]), Now(9));
        assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[1]; 3]);
        guest.saw_frame(MACS[2], None, Now(10));
        guest.saw_frame(MACS[2], Some(addrs[0]), Now(11));
        assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[2]; 3]);
    }

    #[test]
    fn a_machine_that_is_heard_again_has_what_it_had() {
        let mut guest = Guest::new(None, None);
        let addrs = [2, 3, 4].map(|host| says(&mut guest, MACS[0], host));
        says(&mut guest, MACS[1], 3);
        assert_eq!(guest.mac_at(addrs[0]), MACS[1]);
        guest.saw_frame(MACS[0], Some(addrs[2]), Now(9));
        let places = addrs.map(|addr| guest.mac_at(addr));
        assert_eq!(places, [MACS[0], MACS[1], MACS[0]]);
    }

    /// Each of two relays hears one of the machines, and of the other by what it is told.
    #[test]
    fn what_was_heard_elsewhere_makes_no_machine_another() {
        let mut here = Guest::new(None, None);
        let own = says(&mut here, MACS[0], 2);
        let shared = says(&mut here, MACS[0], 3);
        // The other has heard both machines when the second takes an address of the first.
        let mut there = here;
        says(&mut there, MACS[1], 4);
        there.saw_frame(MACS[0], None, Now(8));
        there.saw_frame(MACS[1], Some(shared), Now(9));
        assert_eq!([own, shared].map(|addr| there.mac_at(addr)), MACS[..2]);
        here.hear_of_before(&there);
        assert_eq!([own, shared].map(|addr| here.mac_at(addr)), MACS[..2]);
        // And the first takes it back.
        here.saw_frame(MACS[0], Some(shared), Now(10));
        let places = [own, shared, ip("10.0.2.4")].map(|addr| here.mac_at(addr));
        assert_eq!(places, [MACS[0], MACS[0], MACS[1]]);
    }

    #[test]
    fn a_machine_that_was_heard_elsewhere_again_has_what_it_had() {
        let mut here = Guest::new(None, None);
        let addrs = [2, 3, 4].map(|host| says(&mut here, MACS[0], host));
        let mut there = here;
        says(&mut here, MACS[1], 3);
        assert_eq!(here.mac_at(addrs[0]), MACS[1]);
        there.saw_frame(MACS[0], Some(addrs[0]), Now(8));
        there.saw_frame(MACS[2], None, Now(9));
        here.hear_of(&there);
        let places = addrs.map(|addr| here.mac_at(addr));
        assert_eq!(places, [MACS[0], MACS[1], MACS[0]]);
    }

    #[test]
    fn what_is_silent_follows_a_guest_that_was_heard_elsewhere() {
        let mut here = Guest::new(None, None);
        let addrs = [2, 3, 4].map(|host| says(&mut here, MACS[0], host));
        let mut there = here;
        for (at, mac) in [(1, MACS[1]), (0, MACS[2])] {
            says(&mut there, mac, 2 + at);
            here.hear_of_before(&there);
            assert_eq!(addrs.map(|addr| here.mac_at(addr)), [mac; 3]);
        }
    }

    #[test]
    fn of_what_two_have_heard_the_latest_counts() {
        let mut here = Guest::new(None, None);
        let addr = says(&mut here, MACS[0], 2);
        let mut there = here;
        says(&mut there, MACS[1], 2);
        let before = here;
        here.hear_of(&there);
        assert_eq!(here.mac_at(addr), MACS[1]);
        assert_ne!(here.news(), before.news());
        here.hear_of(&before);
        assert_eq!(here.mac_at(addr), MACS[1]);
    }
}
