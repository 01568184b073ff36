//! Where the guest is: the addresses it has, and the MAC address that each of them is at.
//!
//! Several machines may be behind the link, by a bridge in the guest for one. So an address is at the MAC address it was heard
//! at last, and one that was never heard is looked for at the MAC address of the last frame.
//!
//! An address that is heard at another MAC address than before is there now. It has gone to another machine by itself (VRRP, a
//! cluster), or its machine has got another MAC address (`ip link set address`): then whatever else was at the old one has come
//! along without a word. The latter is assumed if the new one was not known and no other was heard since it appeared, and taken
//! back when the old one is heard again. What is silent else since a new one appeared may be there, and is worth asking for.
//!
//! Each of several threads that serve a guest hears some of its frames, and they tell each other what they know: of an address
//! the later word counts, and a MAC address is heard where any of them heard it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::{Class, Mac, Now, class};

/// How many of its addresses are known to be the guest's at a time.
const HEARD: usize = 16;

/// An address of the guest's, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    addr: IpAddr,
    /// Broadcast until it is heard, if only the address is known.
    mac: Mac,
    /// The MAC address it was heard at, if it has come along from there.
    from: Option<Mac>,
    /// When it was heard; or when `mac` appeared, if it has come along to that.
    last: Now,
}

/// The MAC address that appeared last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newcomer {
    mac: Mac,
    since: Now,
    /// No other was heard since.
    alone: bool,
}

/// The guest's addresses as observed on the link; what was configured until something is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// That of the last frame; broadcast until one was seen.
    pub mac: Mac,
    /// When the last frame came.
    last: Now,
    pub addr4: Option<Ipv4Addr>,
    pub addr6: Option<Ipv6Addr>,
    pub link_local6: Option<Ipv6Addr>,
    /// Whether the addresses stay what they are, whatever is seen.
    pinned4: bool,
    pinned6: bool,
    /// Addresses at which the client on the link was heard, latest first.
    heard: [Option<Place>; HEARD],
    newest: Newcomer,
    /// How often it said something new.
    news: u32,
}

impl Guest {
    pub const fn new(addr4: Option<Ipv4Addr>, addr6: Option<Ipv6Addr>) -> Self {
        Self {
            mac: Mac::BROADCAST,
            last: Now(0),
            addr4,
            addr6,
            link_local6: None,
            pinned4: false,
            pinned6: false,
            heard: [None; HEARD],
            newest: Newcomer {
                mac: Mac::BROADCAST,
                since: Now(0),
                alone: false,
            },
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
            && self.place(src).is_some()
        {
            self.note(self.at_last_frame(src));
        }
        new
    }

    /// Notes who has sent a frame that goes no further, if its sender is known.
    pub fn saw_known(&mut self, mac: Mac, now: Now) {
        if self.knows(mac) {
            self.saw_frame(mac, None, now);
        }
    }

    /// Notes the source of a frame; `true` if the MAC address is new.
    pub fn saw_mac(&mut self, mac: Mac) -> bool {
        if mac == self.mac || mac.is_multicast() || mac == Mac::ZERO {
            return false;
        }
        self.mac = mac;
        let new = !self.knows(mac);
        if new {
            self.newest = Newcomer {
                mac,
                since: self.last,
                alone: true,
            };
            self.news = self.news.wrapping_add(1);
        } else {
            self.newest.alone = false;
            self.take_back(mac, self.last);
        }
        new
    }

    /// Notes the source of a packet; addresses no host can have (unspecified, multicast, loopback) are ignored. `true` if it
    /// was not known to be there.
    pub fn saw_addr(&mut self, addr: IpAddr) -> bool {
        if !matches!(class(addr), Class::Global | Class::LinkLocal) {
            return false;
        }
        self.prefer(addr);
        self.note(self.at_last_frame(addr))
    }

    /// An address that the last frame was from.
    const fn at_last_frame(&self, addr: IpAddr) -> Place {
        Place {
            addr,
            mac: self.mac,
            from: None,
            last: self.last,
        }
    }

    /// Has connections go to an address.
    fn prefer(&mut self, addr: IpAddr) {
        match (class(addr), addr) {
            (_, IpAddr::V4(v4)) if !self.pinned4 => self.addr4 = Some(v4),
            (Class::LinkLocal, IpAddr::V6(v6)) => self.link_local6 = Some(v6),
            (_, IpAddr::V6(v6)) if !self.pinned6 => self.addr6 = Some(v6),
            _ => {}
        }
    }

    /// Notes where an address is; `true` if it was not known to be there.
    fn note(&mut self, place: Place) -> bool {
        let before = self.put(place).map(|before| before.mac);
        if before == Some(place.mac) {
            return false;
        }
        self.prefer(place.addr);
        self.news = self.news.wrapping_add(1);
        if let Some(before) = before
            && self.newest.alone
            && self.newest.mac == place.mac
        {
            self.bring_along(before);
        }
        true
    }

    /// What was at this MAC address has come along to the newest.
    fn bring_along(&mut self, from: Mac) {
        let Newcomer { mac, since, .. } = self.newest;
        for place in self.heard.iter_mut().flatten() {
            if place.mac == from && from != Mac::BROADCAST {
                (place.mac, place.from, place.last) = (mac, Some(from), since);
            }
        }
    }

    /// This MAC address was heard: nothing had come along from there by then.
    fn take_back(&mut self, mac: Mac, heard: Now) {
        for place in self.heard.iter_mut().flatten() {
            if place.from == Some(mac) && place.last <= heard {
                (place.mac, place.from) = (mac, None);
            }
        }
    }

    /// Learns what was heard elsewhere; what was heard later counts.
    pub fn hear_of(&mut self, other: &Self) {
        let frames = [(self.mac, self.last), (other.mac, other.last)];
        // Who is new there may be known here.
        let newer = other.newest.since > self.newest.since && !self.knows(other.newest.mac);
        let newest = if newer { other.newest } else { self.newest };
        let alone = self.has_heard_only(newest) && other.has_heard_only(newest);
        self.newest = Newcomer { alone, ..newest };
        if other.is_heard() && other.last >= self.last {
            (self.mac, self.last) = (other.mac, other.last);
        }
        // Of two at the same time one has come along: what was heard counts, not what is assumed.
        let weight = |place: &Place| (place.last, place.from.is_none());
        for &place in other.heard.iter().flatten().rev() {
            let own = self.place(place.addr);
            if own.is_none_or(|own| weight(own) < weight(&place)) {
                self.note(place);
            }
        }
        let places = self.heard.into_iter().flatten();
        for (mac, last) in places.map(|place| (place.mac, place.last)).chain(frames) {
            self.take_back(mac, last);
        }
    }

    /// Whether no other MAC address was heard since this one was.
    fn has_heard_only(&self, newcomer: Newcomer) -> bool {
        self.last < newcomer.since || self.newest.alone && self.newest.mac == newcomer.mac
    }

    /// Whether an address of the guest's was heard at this MAC address.
    fn knows(&self, mac: Mac) -> bool {
        let mut places = self.heard.iter().flatten();
        places.any(|place| place.mac == mac || place.from == Some(mac))
    }

    /// The MAC address that frames to this address of the guest's are for.
    pub fn mac_at(&self, addr: IpAddr) -> Mac {
        let place = self.place(addr);
        let known = place.filter(|place| place.mac != Mac::BROADCAST);
        known.map_or(self.mac, |place| place.mac)
    }

    /// Whether a MAC address that was new was heard since this address was, at another: it may be there by now.
    pub fn may_have_moved(&self, addr: IpAddr) -> bool {
        let Newcomer { mac, since, .. } = self.newest;
        let place = self.place(addr);
        place.is_some_and(|place| place.last <= since) && self.mac_at(addr) != mac
    }

    /// Puts a place before the others, and returns what was known of its address.
    fn put(&mut self, place: Place) -> Option<Place> {
        let mut places = self.heard.iter();
        let known = places.position(|at| at.is_some_and(|at| at.addr == place.addr));
        self.heard[..=known.unwrap_or(HEARD - 1)].rotate_right(1);
        self.heard[0].replace(place).filter(|_| known.is_some())
    }

    fn place(&self, addr: IpAddr) -> Option<&Place> {
        let mut places = self.heard.iter().flatten();
        places.find(|place| place.addr == addr)
    }

    /// Another number each time the client on the link was heard at another address, or as another one.
    pub const fn news(&self) -> u32 {
        self.news
    }

    /// Whether the client on the link was heard.
    pub fn is_heard(&self) -> bool {
        self.mac != Mac::BROADCAST
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
        self.is_heard() && self.place(addr).is_some()
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
    pub const fn left(&mut self) {
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
        here.hear_of(&there);
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
            here.hear_of(&there);
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

    /// One relay has heard the guest before that changed its MAC address, the other after.
    #[test]
    fn what_is_silent_follows_a_guest_that_is_elsewhere_now() {
        let mut here = Guest::new(None, None);
        let addrs = [2, 3].map(|host| says(&mut here, MACS[0], host));
        let mut there = Guest::new(None, None);
        there.saw_frame(MACS[1], None, Now(8));
        says(&mut there, MACS[1], 2);
        here.hear_of(&there);
        there.hear_of(&here);
        for guest in [here, there] {
            assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[1]; 2]);
        }
    }

    #[test]
    fn an_address_that_was_heard_elsewhere_is_not_in_doubt() {
        let mut here = Guest::new(None, None);
        let addr = says(&mut here, MACS[0], 2);
        let mut there = here;
        says(&mut here, MACS[1], 3);
        assert!(here.may_have_moved(addr));
        there.saw_frame(MACS[0], Some(addr), Now(9));
        here.hear_of(&there);
        assert!(!here.may_have_moved(addr));
    }

    /// What others say comes late.
    #[test]
    fn what_was_never_heard_may_be_where_the_last_frame_came_from() {
        let mut here = Guest::new(None, None);
        says(&mut here, MACS[0], 2);
        let mut there = here;
        says(&mut there, MACS[1], 3);
        here.saw_frame(MACS[0], None, Now(9));
        here.hear_of(&there);
        assert_eq!(here.mac_at(ip("10.0.2.4")), MACS[0]);
        there.hear_of(&here);
        assert_eq!(there.mac_at(ip("10.0.2.4")), MACS[0]);
    }

    /// One had an address taken over by a second machine; then another by a third.
    #[test]
    fn a_machine_that_is_heard_again_has_what_it_had_whatever_others_did_since() {
        let mut guest = Guest::new(None, None);
        let another = Mac([2, 0, 0, 0, 0, 4]);
        says(&mut guest, another, 5);
        let addrs = [2, 3].map(|host| says(&mut guest, MACS[0], host));
        says(&mut guest, MACS[1], 3);
        assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[1]; 2]);
        says(&mut guest, MACS[2], 5);
        guest.saw_frame(MACS[0], None, Now(20));
        assert_eq!(addrs.map(|addr| guest.mac_at(addr)), MACS[..2]);
    }

    /// A second machine takes an address of the first, which then is heard again by a relay that was told of this.
    #[test]
    fn what_was_heard_elsewhere_has_not_come_along() {
        let mut here = Guest::new(None, None);
        let [kept, taken] = [3, 4].map(|host| says(&mut here, MACS[0], host));
        let mut there = here;
        says(&mut here, MACS[1], 4);
        there.hear_of(&here);
        assert_eq!([kept, taken].map(|addr| there.mac_at(addr)), [MACS[1]; 2]);
        there.saw_frame(MACS[0], None, Now(9));
        assert_eq!([kept, taken].map(|addr| there.mac_at(addr)), MACS[..2]);
    }

    proptest::proptest! {
        /// As long as they tell each other at once, and whatever they hear.
        #[test]
        fn what_each_of_two_hears_both_know(
            frames in proptest::collection::vec((0..2_usize, 0..3_usize, 2..5_u8), 1..9)
        ) {
            let mut both = [Guest::new(None, None); 2];
            for (at, (hears, mac, host)) in frames.into_iter().enumerate() {
                both[hears].last = Now(at as u64);
                says(&mut both[hears], MACS[mac], host);
                let told = both[hears];
                both[1 - hears].hear_of(&told);
            }
            let [here, there] = both;
            for host in 2..5 {
                let addr = [10, 0, 2, host].into();
                assert_eq!(here.mac_at(addr), there.mac_at(addr), "{addr}");
            }
        }
    }
}
