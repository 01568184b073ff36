//! What is remembered of groups: those the guest is in, the ports it uses with them, and what we have sent ourselves.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
};

use crate::{
    config::Multicast,
    flow::Id,
    net::{Now, Span},
};

/// Groups the guest may be in, ports it may show by using them, and sockets of either kind.
const GROUPS: usize = 32;
const PORTS: usize = 8;
pub const MEMBERS: usize = 128;
pub const SENDERS: usize = 64;

/// How often the guest is asked for its groups, and how long one lasts of which it says no more (RFC 3376, sections 8.2 and
/// 8.4; RFC 3810, sections 9.2 and 9.4).
pub const ASK: Span = Span::secs(125);
const PATIENCE: Span = Span::secs(260);

/// How long what was sent may take to come back to us, and how much of that is remembered.
const ECHO: Span = Span::secs(1);
const ECHOES: usize = 1024;

/// Groups, and the sockets for them.
#[derive(Debug)]
pub struct Groups {
    /// The groups the guest is in, and when it last said so.
    joined: Vec<(IpAddr, Now)>,
    /// Ports the guest sends to or from, the one used last at the end.
    ports: Vec<u16>,
    pub members: Vec<Id>,
    pub senders: Vec<Id>,
    /// Whether a guest that left was in groups: it may come back, and not tell again by itself.
    pub left: bool,
    /// When to ask the guest for its groups next.
    pub ask: Option<Now>,
    echoes: Box<[(u64, Now)]>,
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
            echoes: vec![(0, Now::default()); ECHOES].into_boxed_slice(),
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
    }

    /// The guest is in this group.
    pub fn join(&mut self, group: IpAddr, now: Now) {
        if let Some((_, said)) = self.joined.iter_mut().find(|(known, _)| *known == group) {
            *said = now;
        } else if self.joined.len() < GROUPS {
            self.joined.push((group, now));
        }
    }

    pub fn leave(&mut self, group: IpAddr) {
        self.joined.retain(|(known, _)| *known != group);
    }

    /// Forgets the groups of which the guest has said nothing for long.
    pub fn forget_old(&mut self, now: Now) {
        self.joined.retain(|(_, said)| now.since(*said) < PATIENCE);
    }

    pub fn is_empty(&self) -> bool {
        self.joined.is_empty()
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
            && self.joined.iter().any(|(known, _)| *known == group)
    }

    /// Everything that is to be heard: the group, the host's port and the guest's.
    pub fn wanted(&self, config: &Multicast) -> impl Iterator<Item = (IpAddr, u16, u16)> {
        let used = self.ports.iter().map(|&port| (port, port));
        self.joined.iter().flat_map(move |&(group, _)| {
            let ports = config.heard.iter().copied().chain(used.clone());
            ports.map(move |(host, guest)| (group, host, guest))
        })
    }

    /// Remembers what was sent, as others and our own members of the group see it.
    pub fn sent(&mut self, from: SocketAddr, payload: &[u8], now: Now) {
        let hash = self.secret.hash_one((from, payload));
        if let Some(place) = self.echoes.get_mut(hash as usize % ECHOES) {
            *place = (hash, now);
        }
    }

    /// Whether what was received is our own.
    pub fn is_own(&self, from: SocketAddr, payload: &[u8], now: Now) -> bool {
        let hash = self.secret.hash_one((from, payload));
        let known = self.echoes.get(hash as usize % ECHOES);
        known.is_some_and(|&(echo, sent)| echo == hash && now.since(sent) < ECHO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now::default() + Span::secs(seconds)
    }

    fn group(last: u8) -> IpAddr {
        [239, 0, 0, last].into()
    }

    #[test]
    fn groups_are_bounded_and_last_while_the_guest_says_so() {
        let mut groups = Groups::new();
        for last in 0..=u8::MAX {
            groups.join(group(last), at(0));
        }
        assert_eq!(groups.joined.len(), GROUPS);
        groups.join(group(3), at(200));
        groups.forget_old(at(300));
        assert_eq!(groups.joined, [(group(3), at(200))]);
        groups.leave(group(3));
        assert!(groups.is_empty());
    }

    #[test]
    fn the_ports_used_last_are_heard_besides_those_listed() {
        let mut groups = Groups::new();
        groups.join(group(1), at(0));
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
