//! One deadline for each slot of a table, in ticks of 4 ms.
//!
//! A ring of buckets, each a doubly linked list threaded through an array of slots, and a bitmap of those that hold
//! something: arming, disarming and asking for the next deadline cost the same however many are armed. What lies beyond
//! the ring (16 s) waits in its farthest bucket and is filed again when that is reached. A deadline is never delivered
//! early, and at most one tick late.

use crate::net::{Now, Span};

/// Microseconds in a tick.
const TICK: u64 = 4_000;

/// Buckets in the ring: 64 words of 64 bits, so that one more word can say which words are not zero.
const BUCKETS: u64 = 4_096;

/// No slot, as a link.
const NONE: u32 = u32::MAX;

/// Deadlines of slots 0 to `capacity - 1`.
#[derive(Debug)]
pub struct Wheel {
    /// Grows up to `capacity`, which is reserved at the start.
    entries: Vec<Entry>,
    capacity: usize,
    /// The first slot of each bucket.
    heads: Vec<u32>,
    occupied: Bitmap,
    /// No entry is filed under an earlier tick, nor under one a whole ring or more ahead of this one.
    cursor: u64,
    /// The latest tick that was drained: what is armed now comes later.
    seen: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// When it is due; 0 if it is not armed.
    tick: u64,
    next: u32,
    previous: u32,
    /// Where it is filed: before the bucket of `tick` if that lies beyond the ring.
    bucket: u32,
}

impl Entry {
    const IDLE: Self = Self {
        tick: 0,
        next: NONE,
        previous: NONE,
        bucket: 0,
    };
}

impl Wheel {
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            capacity,
            heads: vec![NONE; BUCKETS as usize],
            occupied: Bitmap::default(),
            cursor: 0,
            seen: 0,
        }
    }

    /// Sets the deadline of a slot in place of any it had. One in the past is delivered by the next drain that begins at
    /// least a tick after the latest. A slot outside the capacity is a mistake of the caller's and has no deadline.
    pub fn arm(&mut self, slot: u32, deadline: Now) {
        debug_assert!((slot as usize) < self.capacity, "slot {slot} has no place");
        if slot as usize >= self.capacity {
            return;
        }
        if self.entries.len() <= slot as usize {
            self.entries.resize(slot as usize + 1, Entry::IDLE);
        }
        self.disarm(slot);
        self.file(slot, deadline.0.div_ceil(TICK).max(self.seen + 1));
    }

    /// Takes the deadline of a slot away, if it has one.
    pub fn disarm(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(slot as usize) else {
            return;
        };
        if entry.tick == 0 {
            return;
        }
        let Entry {
            next,
            previous,
            bucket,
            ..
        } = std::mem::replace(entry, Entry::IDLE);
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[bucket as usize] = next;
            if next == NONE {
                self.occupied.clear(bucket);
            }
        }
    }

    /// Takes out a slot whose deadline has come; none when all are served. The caller may arm and disarm between calls: as
    /// what is armed meanwhile comes a tick later at the earliest, a drain at a fixed `now` ends. The order is that of the
    /// ticks, except after a sleep of longer than the ring.
    pub fn expired(&mut self, now: Now) -> Option<u32> {
        let tick = now.0 / TICK;
        if tick > self.seen {
            self.seen = tick;
            // After a long sleep every bucket is due; one turn of the ring visits all.
            self.cursor = self.cursor.max((tick + 1).saturating_sub(BUCKETS));
        }
        while let Some(filed) = self.earliest().filter(|&filed| filed <= self.seen) {
            self.cursor = filed;
            let slot = self.heads[(filed % BUCKETS) as usize];
            let due = self.entries[slot as usize].tick;
            self.disarm(slot);
            if due <= self.seen {
                return Some(slot);
            }
            self.file(slot, due);
        }
        self.cursor = self.seen + 1;
        None
    }

    /// How long until [`Wheel::expired`] should be called: until the next deadline or less, at most one tick more.
    pub fn next(&self, now: Now) -> Option<Span> {
        self.earliest()
            .map(|filed| Now(filed.saturating_mul(TICK)).since(now))
    }

    /// The earliest tick under which something is filed.
    fn earliest(&self) -> Option<u64> {
        let start = (self.cursor % BUCKETS) as u32;
        let bucket = u64::from(self.occupied.from(start)?);
        Some(self.cursor + (bucket + BUCKETS - u64::from(start)) % BUCKETS)
    }

    fn file(&mut self, slot: u32, tick: u64) {
        let filed = tick.clamp(self.cursor, self.cursor + (BUCKETS - 1));
        let bucket = (filed % BUCKETS) as u32;
        let next = std::mem::replace(&mut self.heads[bucket as usize], slot);
        if next != NONE {
            self.entries[next as usize].previous = slot;
        }
        self.entries[slot as usize] = Entry {
            tick,
            next,
            previous: NONE,
            bucket,
        };
        self.occupied.set(bucket);
    }
}

/// A bit for each bucket, and one for each word of those.
#[derive(Debug)]
struct Bitmap {
    words: [u64; 64],
    summary: u64,
}

impl Bitmap {
    const fn set(&mut self, bit: u32) {
        let word = bit as usize / 64 % 64;
        self.words[word] |= 1 << (bit % 64);
        self.summary |= 1 << word;
    }

    const fn clear(&mut self, bit: u32) {
        let word = bit as usize / 64 % 64;
        self.words[word] &= !(1 << (bit % 64));
        if self.words[word] == 0 {
            self.summary &= !(1 << word);
        }
    }

    /// The first bit set at or after `start`, going on from 0 after the last.
    const fn from(&self, start: u32) -> Option<u32> {
        let word = start / 64 % 64;
        let here = self.words[word as usize] & (u64::MAX << (start % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros());
        }
        if self.summary == 0 {
            return None;
        }
        // The words after this one come first, this one's low bits last.
        let turn = word + 1;
        let word = (self.summary.rotate_right(turn).trailing_zeros() + turn) % 64;
        Some(word * 64 + self.words[word as usize].trailing_zeros())
    }
}

impl Default for Bitmap {
    fn default() -> Self {
        Self {
            words: [0; 64],
            summary: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn drain(wheel: &mut Wheel, now: Now) -> Vec<u32> {
        std::iter::from_fn(|| wheel.expired(now)).collect()
    }

    #[test]
    fn a_deadline_comes_once_and_not_early() {
        let mut wheel = Wheel::new(4);
        let start = Now(1_000_000_001);
        assert_eq!(wheel.expired(start), None);
        assert_eq!(wheel.next(start), None);
        wheel.arm(3, start + Span::millis(10));
        let wait = wheel.next(start).unwrap();
        assert!(wait >= Span::millis(10) && wait <= Span::millis(14));
        assert_eq!(wheel.expired(start + Span(9_999)), None);
        assert_eq!(wheel.expired(start + wait), Some(3));
        assert_eq!(wheel.expired(start + Span::secs(100)), None);
    }

    #[test]
    fn arming_again_moves_and_disarming_removes() {
        let mut wheel = Wheel::new(4);
        wheel.arm(0, Now(5_000));
        wheel.arm(0, Now(50_000));
        wheel.arm(1, Now(5_000));
        wheel.arm(2, Now(5_000));
        wheel.disarm(1);
        wheel.disarm(3);
        assert_eq!(drain(&mut wheel, Now(20_000)), [2]);
        assert_eq!(drain(&mut wheel, Now(60_000)), [0]);
        assert_eq!(wheel.next(Now(60_000)), None);
    }

    #[test]
    fn what_is_armed_for_the_past_waits_for_the_next_drain() {
        let mut wheel = Wheel::new(1);
        let mut now = Now(77_000_000);
        wheel.arm(0, Now(0));
        for _ in 0..3 {
            assert_eq!(wheel.expired(now), Some(0));
            wheel.arm(0, Now(0));
            assert_eq!(wheel.expired(now), None);
            let wait = wheel.next(now).unwrap();
            assert!(wait <= Span::millis(4));
            now = now + wait;
        }
    }

    #[test]
    fn far_deadlines_wake_seldom_and_come_on_time() {
        let mut wheel = Wheel::new(1);
        let (mut now, due) = (Now(123_456_789), Now(123_456_789) + Span::secs(7_200));
        assert_eq!(wheel.expired(now), None);
        wheel.arm(0, due);
        let mut wakes = 0;
        loop {
            now = now + wheel.next(now).unwrap();
            wakes += 1;
            if wheel.expired(now).is_some() {
                break;
            }
        }
        assert!(now >= due && now.since(due) <= Span::millis(4));
        assert!(wakes <= 7_200 / 16 + 2, "{wakes}");
    }

    #[test]
    fn a_deadline_that_never_comes_does_no_harm() {
        let mut wheel = Wheel::new(1);
        wheel.arm(0, Now(u64::MAX));
        assert_eq!(drain(&mut wheel, Now(1 << 60)), [0; 0]);
        assert!(wheel.next(Now(1 << 60)).is_some());
    }

    #[test]
    fn a_hundred_thousand_deadlines() {
        const COUNT: u32 = if cfg!(miri) { 300 } else { 100_000 };
        let mut wheel = Wheel::new(COUNT as usize);
        for slot in 0..COUNT {
            wheel.arm(slot, Now(u64::from(slot) * 997));
        }
        let mut found = vec![false; COUNT as usize];
        let mut now = Now(0);
        while let Some(wait) = wheel.next(now) {
            now = now + wait;
            while let Some(slot) = wheel.expired(now) {
                let due = Now(u64::from(slot) * 997);
                assert!(now >= due && now.since(due) <= Span(2 * TICK));
                assert!(!std::mem::replace(&mut found[slot as usize], true));
            }
        }
        assert!(found.iter().all(|&found| found));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Arm(u32, u64),
        Disarm(u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let span = prop_oneof![0_u64..20_000, 0_u64..40_000_000, 0_u64..8_000_000_000];
        prop_oneof![
            4 => (0_u32..32, span.clone()).prop_map(|(slot, ahead)| Step::Arm(slot, ahead)),
            1 => (0_u32..32).prop_map(Step::Disarm),
            2 => span.prop_map(Step::Pass),
        ]
    }

    /// An interpreter (Miri) takes a thousand times as long.
    const STEPS: usize = if cfg!(miri) { 20 } else { 200 };

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(
            start in 0_u64..1 << 40,
            steps in prop::collection::vec(step(), 0..STEPS),
        ) {
            let mut wheel = Wheel::new(32);
            let mut model = BTreeMap::new();
            let mut now = Now(start);
            prop_assert_eq!(wheel.expired(now), None);
            for step in steps {
                match step {
                    Step::Arm(slot, ahead) => {
                        // Some lie in the past.
                        let due = Now((now.0 + ahead).saturating_sub(5_000));
                        wheel.arm(slot, due);
                        model.insert(slot, due.max(now));
                    }
                    Step::Disarm(slot) => {
                        wheel.disarm(slot);
                        model.remove(&slot);
                    }
                    Step::Pass(span) => {
                        now = now + Span(span);
                        for slot in drain(&mut wheel, now) {
                            prop_assert!(model.remove(&slot).is_some_and(|due| due <= now));
                        }
                        for due in model.values() {
                            prop_assert!(*due + Span(TICK) > now, "late");
                        }
                    }
                }
                let wait = wheel.next(now);
                prop_assert_eq!(wait.is_some(), !model.is_empty());
                if let (Some(wait), Some(due)) = (wait, model.values().min()) {
                    prop_assert!(wait.0 <= due.since(now).0 + TICK);
                }
            }
        }
    }
}
