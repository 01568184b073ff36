//! Whose flows are whose, where several reactors share a guest: each reactor owns those whose first frame it took.
//!
//! Keys are hashed to slots. The first to claim a slot owns all keys in it, until nothing counts on it any more: each flow
//! does, and each frame that is being looked at or is on its way to the owner. So a slot never changes hands while there is
//! something that a later frame could overtake. No locks, and no names of flows.

use std::hash::{BuildHasher, RandomState};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

use super::key::Key;
use crate::sys::zeroed;

/// Slots of flows, and as many of packets in parts; a power of two. Zeroed memory, backed on use. Miri looks
/// at all of them each time one is looked at.
const SLOTS: usize = if cfg!(miri) { 1 << 6 } else { 1 << 16 };

/// The owner stands above the count.
const COUNT_BITS: u32 = 24;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// A place in the table, which several keys may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimSlot(u32);

impl ClaimSlot {
    /// Packs it into a number.
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// Undoes [`ClaimSlot::to_bits`].
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// The table that all reactors share.
#[derive(Debug)]
pub struct Claims {
    slots: Box<[AtomicU32]>,
    hasher: RandomState,
}

impl Default for Claims {
    /// Nobody has anything yet.
    fn default() -> Self {
        Self {
            slots: zeroed::halves(2 * SLOTS),
            hasher: RandomState::new(),
        }
    }
}

impl Claims {
    pub fn slot(&self, key: &Key) -> ClaimSlot {
        ClaimSlot(self.hasher.hash_one(key) as u32 & (SLOTS as u32 - 1))
    }

    /// The slot of a packet in parts, which it shares with no flow: so few packets wait that hardly any two meet.
    pub fn slot_of_parts(&self, key: &Key) -> ClaimSlot {
        ClaimSlot(self.slot(key).0 + SLOTS as u32)
    }

    /// Counts on a slot, as whoever owns it, or `owner` (below 255) if nobody does. Returns the owner.
    pub fn claim(&self, slot: ClaimSlot, owner: usize) -> usize {
        let Some(cell) = self.slots.get(slot.0 as usize) else {
            return owner;
        };
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let next = match seen & COUNT {
                0 => (owner as u32) << COUNT_BITS | 1,
                // So many flows there never are.
                COUNT => seen,
                _ => seen + 1,
            };
            // What the owner before did comes before what the next one does.
            match cell.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return (next >> COUNT_BITS) as usize,
                Err(now) => seen = now,
            }
        }
    }

    /// Counts on a slot no more, once for each [`Claims::claim`].
    pub fn release(&self, slot: ClaimSlot) {
        if let Some(cell) = self.slots.get(slot.0 as usize) {
            let before = cell.fetch_sub(1, Ordering::AcqRel);
            debug_assert_ne!(before & COUNT, 0, "released more often than claimed");
        }
    }

    /// How much counts on a slot, while nobody else looks.
    pub fn counted(&self, slot: ClaimSlot) -> u32 {
        let cell = self.slots.get(slot.0 as usize);
        cell.map_or(0, |cell| cell.load(Ordering::Acquire) & COUNT)
    }

    /// Gives a slot with all in it to another, while nobody else looks.
    pub fn give(&self, slot: ClaimSlot, owner: usize) {
        if let Some(cell) = self.slots.get(slot.0 as usize) {
            let count = cell.load(Ordering::Acquire) & COUNT;
            cell.store((owner as u32) << COUNT_BITS | count, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{Arc, atomic::AtomicUsize},
        thread,
    };

    const SLOT: ClaimSlot = ClaimSlot(7);

    fn owner(claims: &Claims, slot: ClaimSlot) -> Option<u32> {
        let seen = claims.slots[slot.0 as usize].load(Ordering::Relaxed);
        (seen & COUNT != 0).then_some(seen >> COUNT_BITS)
    }

    #[test]
    fn the_first_to_claim_owns_until_nothing_counts_on_it() {
        let claims = Claims::default();
        assert_eq!(owner(&claims, SLOT), None);
        assert_eq!(claims.claim(SLOT, 2), 2);
        assert_eq!(claims.claim(SLOT, 1), 2);
        assert_eq!(owner(&claims, SLOT), Some(2));
        claims.release(SLOT);
        assert_eq!(claims.counted(SLOT), 1);
        assert_eq!(claims.claim(SLOT, 0), 2);
        assert_eq!(claims.counted(SLOT), 2);
        claims.release(SLOT);
        claims.release(SLOT);
        assert_eq!(owner(&claims, SLOT), None);
        assert_eq!(claims.claim(SLOT, 1), 1);
        claims.give(SLOT, 0);
        assert_eq!(claims.claim(SLOT, 1), 0);
        assert_eq!(owner(&claims, ClaimSlot(8)), None);
    }

    /// Whoever holds a slot is alone with it: each adds to a plain number of its own and sees no other do so meanwhile.
    #[test]
    fn no_two_own_a_slot_at_a_time() {
        const TURNS: u32 = if cfg!(miri) { 50 } else { 20_000 };
        let claims = Arc::new(Claims::default());
        let inside = Arc::new([const { AtomicUsize::new(0) }; 3]);
        let threads: Vec<_> = (0..3)
            .map(|me| {
                let (claims, inside) = (Arc::clone(&claims), Arc::clone(&inside));
                thread::spawn(move || {
                    let mut owned = 0;
                    while owned < TURNS {
                        let mine = claims.claim(SLOT, me) == me;
                        if mine {
                            owned += 1;
                            inside[me].store(1, Ordering::Relaxed);
                            let others = (0..3).filter(|&other| other != me);
                            for other in others {
                                assert_eq!(inside[other].load(Ordering::Relaxed), 0);
                            }
                            inside[me].store(0, Ordering::Relaxed);
                        }
                        claims.release(SLOT);
                        if !mine {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(owner(&claims, SLOT), None);
    }
}
