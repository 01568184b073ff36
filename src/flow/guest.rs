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
        if self.is_latest(place) {
            self.prefer(place.addr);
        }
        self.news = self.news.wrapping_add(1);
        if let Some(before) = before
            && self.newest.alone
            && self.newest.mac == place.mac
        {
            self.bring_along(before);
        }
        true
    }

    /// Whether no other address that serves the same peers was heard later.
    fn is_latest(&self, place: Place) -> bool {
        let serves = |addr: IpAddr| addr.is_ipv6().then(|| class(addr));
        let mut others = self.heard.iter().flatten();
        !others.any(|at| serves(at.addr) == serves(place.addr) && at.last > place.last)
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

    /// Puts a place behind those heard later, and returns what was known of its address.
    fn put(&mut self, place: Place) -> Option<Place> {
        let mut places = self.heard.iter();
        let known = places.position(|at| at.is_some_and(|at| at.addr == place.addr));
        let out = known.unwrap_or(HEARD - 1);
        let mut places = self.heard[..out].iter();
        let later = places.position(|at| at.is_none_or(|at| at.last <= place.last));
        let at = later.unwrap_or(out);
        self.heard[at..=out].rotate_right(1);
        self.heard[at].replace(place).filter(|_| known.is_some())
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
mod tests;
