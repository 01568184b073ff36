//! Timers for all flows: one deadline a slot, in a wheel of coarse buckets.

use crate::net::{Now, Span};

/// Buckets; the wheel turns once in `BUCKETS * TICK`.
const BUCKETS: usize = 4096;

/// The width of a bucket, in microseconds: deadlines are kept no more exactly.
const TICK: u64 = 4_000;

const NONE: u32 = u32::MAX;

/// A deadline for each of a fixed number of slots. Deadlines beyond a turn wait in the last bucket and are filed anew.
#[derive(Debug)]
pub struct Wheel {
    nodes: Vec<Node>,
    capacity: usize,
    heads: Box<[u32; BUCKETS]>,
    /// Which buckets hold anything.
    occupied: [u64; BUCKETS / 64],
    /// The tick that is drained next.
    tick: u64,
    /// No slot is filed before this tick: the one being drained must come to an end.
    floor: u64,
    armed: usize,
}

/// A slot's place in the list of its bucket.
#[derive(Debug, Clone, Copy)]
struct Node {
    deadline: Now,
    bucket: u32,
    next: u32,
    previous: u32,
}

const IDLE: Node = Node {
    deadline: Now(0),
    bucket: NONE,
    next: NONE,
    previous: NONE,
};

impl Wheel {
    pub fn new(capacity: usize) -> Self {
        Self {
            nodes: Vec::with_capacity(capacity),
            capacity,
            heads: Box::new([NONE; BUCKETS]),
            occupied: [0; BUCKETS / 64],
            tick: 0,
            floor: 0,
            armed: 0,
        }
    }

    /// Sets a slot's deadline, in place of the one it had.
    pub fn arm(&mut self, slot: u32, deadline: Now) {
        if slot as usize >= self.capacity {
            return;
        }
        while self.nodes.len() <= slot as usize {
            self.nodes.push(IDLE);
        }
        self.disarm(slot);
        self.file(slot, deadline);
    }

    pub fn disarm(&mut self, slot: u32) {
        let Some(&Node {
            bucket,
            next,
            previous,
            ..
        }) = self.nodes.get(slot as usize)
        else {
            return;
        };
        if bucket == NONE {
            return;
        }
        match self.nodes.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.set_head(bucket, next),
        }
        if let Some(behind) = self.nodes.get_mut(next as usize) {
            behind.previous = previous;
        }
        if let Some(node) = self.nodes.get_mut(slot as usize) {
            *node = IDLE;
        }
        self.armed -= 1;
    }

    /// A slot whose deadline has come; it is disarmed. Called until it says `None`. A slot armed meanwhile for a time already
    /// past is due with the next tick, so this ends.
    pub fn expired(&mut self, now: Now) -> Option<u32> {
        let current = now.0 / TICK;
        self.floor = current + 1;
        while self.tick <= current {
            if self.armed == 0 {
                self.tick = current + 1;
                break;
            }
            let bucket = (self.tick as usize % BUCKETS) as u32;
            let slot = self.head(bucket);
            let Some(&Node { deadline, .. }) = self.nodes.get(slot as usize) else {
                self.tick += 1;
                continue;
            };
            self.disarm(slot);
            if deadline.0 / TICK <= self.tick {
                return Some(slot);
            }
            // It waited a turn, and there is more to wait. The tick is over for it, so that it is not met again.
            self.file_from(slot, deadline, self.tick + 1);
        }
        None
    }

    /// The time until [`Wheel::expired`] may have something, a tick late at most. `None` if nothing is armed.
    pub fn next(&self, now: Now) -> Option<Span> {
        if self.armed == 0 {
            return None;
        }
        let start = self.tick as usize % BUCKETS;
        let distance = (0..=BUCKETS / 64).find_map(|step| {
            let word = (start / 64 + step) % (BUCKETS / 64);
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            }
            (bits != 0)
                .then(|| (word * 64 + bits.trailing_zeros() as usize + BUCKETS - start) % BUCKETS)
        })?;
        let at = (self.tick + distance as u64) * TICK;
        Some(Now(at).since(now))
    }

    fn file(&mut self, slot: u32, deadline: Now) {
        self.file_from(slot, deadline, self.tick.max(self.floor));
    }

    /// Files a slot into the bucket of its deadline, `earliest` at the least and a turn from now at the most.
    fn file_from(&mut self, slot: u32, deadline: Now, earliest: u64) {
        // A deadline inside a tick is met when the tick is over.
        let tick = (deadline.0.div_ceil(TICK)).clamp(earliest, self.tick + BUCKETS as u64 - 1);
        let bucket = (tick as usize % BUCKETS) as u32;
        let next = self.head(bucket);
        if let Some(first) = self.nodes.get_mut(next as usize) {
            first.previous = slot;
        }
        let deadline = Now(deadline.0.div_ceil(TICK) * TICK);
        if let Some(node) = self.nodes.get_mut(slot as usize) {
            *node = Node {
                deadline,
                bucket,
                next,
                previous: NONE,
            };
        }
        self.set_head(bucket, slot);
        self.armed += 1;
    }

    fn head(&self, bucket: u32) -> u32 {
        self.heads[bucket as usize % BUCKETS]
    }

    fn set_head(&mut self, bucket: u32, slot: u32) {
        let bucket = bucket as usize % BUCKETS;
        self.heads[bucket] = slot;
        let bit = 1 << (bucket % 64);
        if slot == NONE {
            self.occupied[bucket / 64] &= !bit;
        } else {
            self.occupied[bucket / 64] |= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn drain(wheel: &mut Wheel, now: Now) -> Vec<u32> {
        let mut due: Vec<u32> = std::iter::from_fn(|| wheel.expired(now)).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn a_deadline_is_met_once_and_never_early() {
        let mut wheel = Wheel::new(4);
        wheel.arm(1, Now(10_000));
        wheel.arm(2, Now(0) + Span::secs(3600));
        assert_eq!(drain(&mut wheel, Now(9_999)), []);
        assert_eq!(drain(&mut wheel, Now(14_000)), [1]);
        assert_eq!(drain(&mut wheel, Now(0) + Span::secs(3599)), []);
        assert_eq!(drain(&mut wheel, Now(0) + Span::secs(3601)), [2]);
        assert_eq!(wheel.next(Now(0)), None);
    }

    #[test]
    fn a_slot_armed_for_the_past_is_due_with_the_next_tick() {
        let mut wheel = Wheel::new(1);
        let mut now = Now(1_000_000);
        wheel.arm(0, now);
        let mut met = 0;
        for _ in 0..5 {
            while let Some(slot) = wheel.expired(now) {
                met += 1;
                wheel.arm(slot, Now(0));
            }
            now = now + Span(TICK);
        }
        assert!((1..=6).contains(&met), "{met}");
    }

    #[test]
    fn a_hundred_thousand_deadlines() {
        let mut wheel = Wheel::new(100_000);
        for slot in 0..100_000 {
            wheel.arm(slot, Now(u64::from(slot) * 100));
        }
        assert_eq!(drain(&mut wheel, Now(20_000_000)).len(), 100_000);
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(steps in proptest::collection::vec((0_u32..20, 0_u64..40_000_000, 0_u64..3_000_000, any::<bool>()), 1..200)) {
            let mut wheel = Wheel::new(20);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 0;
            for (slot, ahead, pass, disarm) in steps {
                if disarm {
                    wheel.disarm(slot);
                    model.remove(&slot);
                } else {
                    wheel.arm(slot, Now(now + ahead));
                    model.insert(slot, now + ahead);
                }
                if let Some(&first) = model.values().min() {
                    let next = wheel.next(Now(now)).unwrap().0;
                    prop_assert!(now + next <= first.max(now) + TICK);
                }
                now += pass;
                for slot in drain(&mut wheel, Now(now)) {
                    let deadline = model.remove(&slot).unwrap();
                    prop_assert!(deadline <= now);
                }
                prop_assert!(model.values().all(|&deadline| deadline + TICK >= now), "late: {model:?} at {now}");
            }
        }
    }
}
