//! Who began the flows there are, so that peers leave room for the guest's own, and one peer for others.
//!
//! A peer may have eight times as many flows as peers have left of their share: one alone gets eight ninths of it, and however
//! many there are, something is left for the next (the dynamic thresholds of Choudhury and Hahne, 1998).

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

use super::lru::Lru;

/// The part of the table kept for the guest's own flows: one in so many.
const KEPT: usize = 8;

/// How many flows a peer may have for each that is left.
const EACH: usize = 8;

/// Counters of peers: those that share one count as one.
const COUNTERS: usize = 4096;

/// Flows by who began them, and by their last use.
#[derive(Debug)]
pub struct Census {
    own: Lru,
    others: Lru,
    /// For each slot whether a peer began the flow.
    foreign: Vec<bool>,
    flows: usize,
    /// Of these, those that peers began, and what they may be.
    peers: usize,
    share: usize,
    counters: Box<[u32]>,
    hasher: RandomState,
}

impl Census {
    /// For flows in slots below `capacity`.
    pub fn new(capacity: usize) -> Self {
        Self {
            own: Lru::new(capacity),
            others: Lru::new(capacity),
            foreign: vec![false; capacity],
            flows: 0,
            peers: 0,
            share: share(capacity),
            counters: vec![0; COUNTERS].into_boxed_slice(),
            hasher: RandomState::new(),
        }
    }

    /// From now on there may be so many flows, no more than there are slots.
    pub const fn set_capacity(&mut self, capacity: usize) {
        self.share = share(capacity);
    }

    /// Notes a new flow, begun by a peer at `from` or else by the guest.
    pub fn enter(&mut self, slot: u32, from: Option<IpAddr>) {
        let Some(foreign) = self.foreign.get_mut(slot as usize) else {
            return;
        };
        *foreign = from.is_some();
        self.flows += 1;
        if let Some(from) = from {
            self.peers += 1;
            *self.counter(from) += 1;
        }
        self.touch(slot);
    }

    /// Notes the end of a flow whose remote end was at `remote`.
    pub fn leave(&mut self, slot: u32, remote: IpAddr) {
        self.forget(slot);
        self.flows = self.flows.saturating_sub(1);
        if self.is_foreign(slot) {
            self.peers = self.peers.saturating_sub(1);
            let counter = self.counter(remote);
            *counter = counter.saturating_sub(1);
        }
    }

    /// Notes that a flow was used just now.
    pub fn touch(&mut self, slot: u32) {
        self.list(slot).touch(slot);
    }

    /// Has a flow no longer make room for others.
    pub fn forget(&mut self, slot: u32) {
        self.list(slot).remove(slot);
    }

    /// The flow that makes room first: the one not used for longest among those of whom there are more. So a flood pushes out
    /// itself.
    pub const fn oldest(&self) -> Option<u32> {
        let (more, less) = if self.peers * 2 > self.flows {
            (&self.others, &self.own)
        } else {
            (&self.own, &self.others)
        };
        match more.oldest() {
            None => less.oldest(),
            oldest => oldest,
        }
    }

    /// The flow of a peer that was not used for longest, and the next one behind one of these.
    pub const fn oldest_of_peers(&self) -> Option<u32> {
        self.others.oldest()
    }

    pub fn next_of_peers(&self, slot: u32) -> Option<u32> {
        self.others.newer(slot)
    }

    /// Whether a peer at `from` may begin another flow.
    pub fn admits(&mut self, from: IpAddr) -> bool {
        let left = self.left();
        (*self.counter(from) as usize) < left.saturating_mul(EACH)
    }

    /// Whether a flow with a peer at `old` may make room for one with a peer at `new`, which is not admitted: its own may,
    /// and anybody's when nothing is left.
    pub fn may_replace(&self, old: IpAddr, new: IpAddr) -> bool {
        self.left() == 0 || self.place(old) == self.place(new)
    }

    /// How many flows peers have.
    pub const fn peers(&self) -> usize {
        self.peers
    }

    const fn left(&self) -> usize {
        self.share.saturating_sub(self.peers)
    }

    /// Whether a peer has begun the flow.
    pub fn is_foreign(&self, slot: u32) -> bool {
        self.foreign.get(slot as usize).copied().unwrap_or(false)
    }

    fn list(&mut self, slot: u32) -> &mut Lru {
        if self.is_foreign(slot) {
            &mut self.others
        } else {
            &mut self.own
        }
    }

    fn counter(&mut self, peer: IpAddr) -> &mut u32 {
        let place = self.place(peer);
        &mut self.counters[place]
    }

    /// Who has one address of an IPv6 network has all of it.
    fn place(&self, peer: IpAddr) -> usize {
        let name = match peer {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        self.hasher.hash_one(name) as usize % COUNTERS
    }
}

/// How many flows peers may have, of so many.
const fn share(capacity: usize) -> usize {
    capacity - capacity.div_ceil(KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HOG: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn peer(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0xcb00_7100 + n).into()
    }

    /// As many flows as are admitted.
    fn fill(census: &mut Census, slot: &mut u32, from: IpAddr) -> u32 {
        let before = *slot;
        while census.admits(from) {
            census.enter(*slot, Some(from));
            *slot += 1;
        }
        *slot - before
    }

    #[test]
    fn one_peer_leaves_room_for_others_and_all_for_the_guest() {
        let mut census = Census::new(1000);
        let mut slot = 0;
        let first = fill(&mut census, &mut slot, HOG);
        assert!((770..=780).contains(&first), "{first}");
        assert!(!census.admits(HOG));
        let mut others = 0;
        for n in 0..100 {
            others += fill(&mut census, &mut slot, peer(n));
        }
        assert!(others > 90, "{others}");
        assert_eq!((census.peers(), slot), (875, 875));
        // Nothing is left: anybody's may make room.
        assert!(census.may_replace(HOG, peer(7)));
        for old in 0..first {
            census.leave(old, HOG);
        }
        assert!(census.admits(HOG));
        assert!(census.may_replace(peer(7), peer(7)));
    }

    #[test]
    fn peers_get_no_more_where_there_is_less_room() {
        let mut census = Census::new(1000);
        let mut slot = 0;
        census.set_capacity(100);
        for n in 0..100 {
            fill(&mut census, &mut slot, peer(n));
        }
        assert_eq!(census.peers(), 87);
        census.set_capacity(50);
        assert!(!census.admits(peer(200)) && census.may_replace(peer(7), peer(200)));
        census.set_capacity(1000);
        assert!(census.admits(peer(200)));
    }

    #[test]
    fn those_of_whom_there_are_more_make_room_first() {
        let mut census = Census::new(8);
        census.enter(0, None);
        census.enter(1, Some(HOG));
        assert_eq!(census.oldest(), Some(0));
        census.enter(2, Some(HOG));
        assert_eq!(census.oldest(), Some(1));
        census.touch(1);
        assert_eq!(census.oldest(), Some(2));
        assert_eq!(census.next_of_peers(2), Some(1));
        census.forget(1);
        census.forget(2);
        assert_eq!((census.oldest(), census.oldest_of_peers()), (Some(0), None));
    }
}
