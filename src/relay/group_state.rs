//! What is remembered of groups: those the guest is in, the ports it uses with them, and what we have sent ourselves.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
};

use crate::{
    config::Multicast,
    flow::Id,
    net::{Now, Span},
    service::{membership::Membership, multicast::Record},
};

/// Groups the guest may be in, ports it may show by using them, and sockets of either kind.
const GROUPS: usize = 32;
const PORTS: usize = 8;
pub const MEMBERS: usize = 128;
pub const SENDERS: usize = 64;

/// How often the guest is asked for its groups (RFC 3376, section 8.2; RFC 3810, section 9.2).
pub const ASK: Span = Span::secs(125);

/// How long what was sent may take to come back to us, and how much of that is remembered: in rows, so that little of it
/// falls on the same place.
const ECHO: Span = Span::secs(1);
const ROWS: usize = 128;
const ROW: usize = 8;

/// Groups, and the sockets for them.
#[derive(Debug)]
pub struct Groups {
    /// The groups the guest is in.
    joined: Vec<Membership>,
    /// Ports the guest sends to or from, the one used last at the end.
    ports: Vec<u16>,
    pub members: Vec<Id>,
    pub senders: Vec<Id>,
    /// Whether a guest that left was in groups: it may come back, and not tell again by itself.
    pub left: bool,
    /// When to ask the guest for its groups next.
    pub ask: Option<Now>,
    /// Whether it could not be asked when it was to be.
    pub unasked: bool,
    echoes: Box<[[(u64, Now); ROW]]>,
    secret: RandomState,
}

impl Groups {
    pub fn new() -> Self {
        Self {
            joined: Vec::with_capacity(GROUPS),
            ports: Vec::with_capacity(PORTS + 1),
            members: Vec::with_capacity(MEMBERS),
            senders: Vec::with_capacity(SENDERS),
            left: false,
            ask: None,
            unasked: false,
            echoes: vec![[(0, Now::default()); ROW]; ROWS].into_boxed_slice(),
            secret: RandomState::new(),
        }
    }

    /// The guest is gone. The flows end by themselves.
    pub fn clear(&mut self) {
        self.left |= !self.joined.is_empty();
        self.joined.clear();
        self.ports.clear();
        self.members.clear();
        self.senders.clear();
        self.ask = None;
        self.unasked = false;
    }

    /// The guest says this of a group.
    pub fn follow(&mut self, record: &Record<'_>, now: Now) {
        let mut known = self.joined.iter_mut();
        if let Some(known) = known.find(|known| known.group == record.group) {
            known.follow(record, now);
        } else if self.joined.len() < GROUPS {
            let mut joined = Membership::new(record.group, now);
            joined.follow(record, now);
            self.joined.push(joined);
        }
        self.joined.retain(|joined| !joined.is_over());
    }

    /// Forgets what the guest has said nothing of for long.
    pub fn forget_old(&mut self, now: Now) {
        self.joined
            .iter_mut()
            .for_each(|joined| joined.forget_old(now));
        self.joined.retain(|joined| !joined.is_over());
    }

    /// Whether the guest wants what this source sends to a group.
    pub fn wants(&self, group: IpAddr, source: IpAddr) -> bool {
        let mut joined = self.joined.iter().filter(|joined| joined.group == group);
        joined.any(|joined| joined.wants(source))
    }

    pub fn is_empty(&self) -> bool {
        self.joined.is_empty()
    }

    /// Whether the guest is known to use this port.
    pub fn uses(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// The guest uses this port; `true` if that is new.
    pub fn use_port(&mut self, port: u16) -> bool {
        let known = self.ports.iter().position(|known| *known == port);
        if let Some(at) = known {
            self.ports.remove(at);
        } else if self.ports.len() == PORTS {
            self.ports.remove(0);
        }
        self.ports.push(port);
        known.is_none()
    }

    /// Whether a port of the guest's hears this group.
    pub fn hears(&self, config: &Multicast, group: IpAddr, port: u16) -> bool {
        let listed = config.heard.iter().any(|(_, guest)| *guest == port);
        (listed || self.ports.contains(&port))
            && self.joined.iter().any(|joined| joined.group == group)
    }

    /// Everything that is to be heard: the group, the host's port and the guest's.
    pub fn wanted(&self, config: &Multicast) -> impl Iterator<Item = (IpAddr, u16, u16)> {
        let used = self.ports.iter().map(|&port| (port, port));
        self.joined.iter().flat_map(move |joined| {
            let ports = config.heard.iter().copied().chain(used.clone());
            ports.map(move |(host, guest)| (joined.group, host, guest))
        })
    }

    /// Remembers what was sent, as others and our own members of the group see it.
    pub fn sent(&mut self, from: SocketAddr, payload: &[u8], now: Now) {
        let hash = self.secret.hash_one((from, payload));
        let row = self.echoes.get_mut(hash as usize % ROWS);
        // Its own place, or that of the oldest.
        let place = row.and_then(|row| {
            row.iter_mut()
                .max_by_key(|(echo, sent)| (*echo == hash, now.since(*sent)))
        });
        if let Some(place) = place {
            *place = (hash, now);
        }
    }

    /// Whether what was received is our own.
    pub fn is_own(&self, from: SocketAddr, payload: &[u8], now: Now) -> bool {
        let hash = self.secret.hash_one((from, payload));
        let row = self.echoes.get(hash as usize % ROWS);
        let mut row = row.into_iter().flatten();
        row.any(|&(echo, sent)| echo == hash && now.since(sent) < ECHO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::multicast;

    /// Types of IGMPv2 (RFC 2236, section 2.1).
    const JOIN: u8 = 0x16;
    const LEAVE: u8 = 0x17;

    fn at(seconds: u64) -> Now {
        Now::default() + Span::secs(seconds)
    }

    fn group(last: u8) -> IpAddr {
        [239, 0, 0, last].into()
    }

    fn say(groups: &mut Groups, kind: u8, last: u8, now: Now) {
        let report = [kind, 0, 0, 0, 239, 0, 0, last];
        multicast::igmp(&report, |record| groups.follow(&record, now)).unwrap();
    }

    #[test]
    fn groups_are_bounded_and_last_while_the_guest_says_so() {
        let mut groups = Groups::new();
        for last in 0..=u8::MAX {
            say(&mut groups, JOIN, last, at(0));
        }
        assert_eq!(groups.joined.len(), GROUPS);
        say(&mut groups, JOIN, 3, at(200));
        groups.forget_old(at(300));
        assert_eq!(groups.joined.len(), 1);
        let source = [192, 0, 2, 1].into();
        assert!(groups.wants(group(3), source) && !groups.wants(group(4), source));
        say(&mut groups, LEAVE, 3, at(300));
        assert!(groups.is_empty());
    }

    #[test]
    fn the_ports_used_last_are_heard_besides_those_listed() {
        let mut groups = Groups::new();
        say(&mut groups, JOIN, 1, at(0));
        let config = Multicast {
            listed: vec![5353],
            heard: vec![(5353, 5353), (1000, 2000)],
        };
        for port in 1..=PORTS as u16 {
            assert!(groups.use_port(port));
        }
        assert!(!groups.use_port(1));
        assert!(groups.use_port(99));
        let hears = |port| groups.hears(&config, group(1), port);
        assert!(hears(5353) && hears(2000) && hears(1) && hears(99));
        assert!(!hears(1000) && !hears(2));
        assert!(!groups.hears(&config, group(2), 5353));
        let wanted: Vec<_> = groups.wanted(&config).collect();
        assert_eq!(wanted.len(), 2 + PORTS);
        assert!(wanted.contains(&(group(1), 1000, 2000)));
    }

    #[test]
    fn much_that_is_sent_at_once_is_known_again() {
        let mut groups = Groups::new();
        let from = "192.0.2.1:5353".parse().unwrap();
        for n in 0..100_u8 {
            groups.sent(from, &[n], at(5));
        }
        assert!((0..100).all(|n| groups.is_own(from, &[n], at(5))));
        assert!(!groups.is_own(from, &[100], at(5)));
    }

    #[test]
    fn what_was_sent_is_known_again_for_a_moment() {
        let mut groups = Groups::new();
        let [from, other]: [SocketAddr; 2] =
            ["192.0.2.1:5353", "192.0.2.2:5353"].map(|addr| addr.parse().unwrap());
        groups.sent(from, b"who?", at(5));
        assert!(groups.is_own(from, b"who?", at(5)));
        assert!(!groups.is_own(other, b"who?", at(5)));
        assert!(!groups.is_own(from, b"me!", at(5)));
        assert!(!groups.is_own(from, b"who?", at(7)));
    }
}
