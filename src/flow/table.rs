//! The flow table: a fixed number of slots, found by key or by identifier.
//!
//! Everything is reserved at the start and touched on use only: slots are taken from the front, and the index is zeroed
//! memory the kernel has not yet backed. The index is an open-addressed array of (hash, slot) pairs, never more than half
//! full; removal moves later entries back instead of leaving tombstones, so that it never has to be rebuilt however many
//! flows come and go.

use std::{collections::hash_map::RandomState, fmt, hash::BuildHasher};

use super::key::{Id, Key};

/// Values of type `T` under a [`Key`] each. `S` is the hasher; the guest chooses the keys, so it must be seeded.
pub struct Table<T, S = RandomState> {
    slots: Vec<Slot<T>>,
    capacity: usize,
    len: usize,
    /// The vacant slot freed last; slots beyond `slots.len()` were never used.
    vacant: Option<u32>,
    index: Index,
    hasher: S,
}

struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

enum Content<T> {
    Vacant { next: Option<u32> },
    Used { key: Key, value: T },
}

impl<T> Table<T> {
    /// A table of `capacity` slots, at most [`Id::SLOTS`].
    pub fn new(capacity: usize) -> Self {
        Self::with_hasher(capacity, RandomState::new())
    }
}

impl<T, S: BuildHasher> Table<T, S> {
    /// As [`Table::new`], with the hasher given.
    pub fn with_hasher(capacity: usize, hasher: S) -> Self {
        let capacity = capacity.min(Id::SLOTS as usize);
        Self {
            slots: Vec::with_capacity(capacity),
            capacity,
            len: 0,
            vacant: None,
            index: Index::new(capacity),
            hasher,
        }
    }

    /// Stores `value`, or hands it back if the table is full or knows the key already.
    pub fn insert(&mut self, key: Key, value: T) -> Result<Id, T> {
        let hash = self.hash(&key);
        if self.len == self.capacity || self.seek(hash, &key).is_some() {
            return Err(value);
        }
        let content = Content::Used { key, value };
        let slot = match self.vacant {
            Some(slot) => {
                let place = &mut self.slots[slot as usize];
                if let Content::Vacant { next } = place.content {
                    self.vacant = next;
                }
                place.content = content;
                slot
            }
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    content,
                });
                self.slots.len() as u32 - 1
            }
        };
        self.index.insert(hash, slot);
        self.len += 1;
        Ok(Id {
            slot,
            generation: self.slots[slot as usize].generation,
        })
    }

    /// The flow of this key.
    pub fn find(&self, key: &Key) -> Option<Id> {
        self.seek(self.hash(key), key)
            .and_then(|slot| self.at(slot))
    }

    /// Takes the value out; the slot is free, and `id` names nothing any more.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        let hash = self.hash(&self.key(id)?);
        let place = self.slots.get_mut(id.slot as usize)?;
        let freed = Content::Vacant { next: self.vacant };
        match std::mem::replace(&mut place.content, freed) {
            Content::Used { value, .. } => {
                place.generation = place.generation.wrapping_add(1);
                self.vacant = Some(id.slot);
                self.index.remove(hash, id.slot);
                self.len -= 1;
                Some(value)
            }
            vacant @ Content::Vacant { .. } => {
                place.content = vacant;
                None
            }
        }
    }

    /// Has a value go by another key. `false` if `id` names none, or the key is another's.
    pub fn rename(&mut self, id: Id, key: Key) -> bool {
        let (Some(before), None) = (self.key(id), self.find(&key)) else {
            return false;
        };
        if let Some(Slot {
            content: Content::Used { key: name, .. },
            ..
        }) = self.slots.get_mut(id.slot as usize)
        {
            *name = key;
        }
        self.index.remove(self.hash(&before), id.slot);
        self.index.insert(self.hash(&key), id.slot);
        true
    }

    fn hash(&self, key: &Key) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    fn seek(&self, hash: u32, key: &Key) -> Option<u32> {
        self.index.find(hash, |slot| {
            matches!(&self.slots[slot as usize].content, Content::Used { key: known, .. } if known == key)
        })
    }
}

impl<T, S> Table<T, S> {
    pub fn get(&self, id: Id) -> Option<&T> {
        match self.slots.get(id.slot as usize)? {
            Slot {
                generation,
                content: Content::Used { value, .. },
            } if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        match self.slots.get_mut(id.slot as usize)? {
            Slot {
                generation,
                content: Content::Used { value, .. },
            } if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    pub fn key(&self, id: Id) -> Option<Key> {
        match self.slots.get(id.slot as usize)? {
            Slot {
                generation,
                content: Content::Used { key, .. },
            } if *generation == id.generation => Some(*key),
            _ => None,
        }
    }

    /// The flow that has this slot now.
    pub fn at(&self, slot: u32) -> Option<Id> {
        let place = self.slots.get(slot as usize)?;
        matches!(place.content, Content::Used { .. }).then_some(Id {
            slot,
            generation: place.generation,
        })
    }

    /// The first flow at or after this slot: for a sweep that changes the table as it goes.
    pub fn from(&self, slot: u32) -> Option<Id> {
        (slot..self.slots.len() as u32).find_map(|slot| self.at(slot))
    }

    /// All flows, in the order of their slots.
    pub fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        (0..self.slots.len() as u32).filter_map(|slot| self.at(slot))
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub const fn capacity(&self) -> usize {
        self.capacity
    }
}

impl<T, S> fmt::Debug for Table<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// From hashes to slots, by linear probing.
struct Index {
    /// Zero where empty, else the hash above and the slot plus one below. A power of two long, at least twice the capacity,
    /// so a probe always meets an empty bucket.
    buckets: Vec<u64>,
    mask: usize,
}

impl Index {
    fn new(capacity: usize) -> Self {
        let len = (capacity * 2).next_power_of_two().max(2);
        Self {
            buckets: vec![0; len],
            mask: len - 1,
        }
    }

    fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        while self.buckets[at] != 0 {
            let (theirs, slot) = unpack(self.buckets[at]);
            if theirs == hash && is_it(slot) {
                return Some(slot);
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    fn insert(&mut self, hash: u32, slot: u32) {
        let mut at = hash as usize & self.mask;
        while self.buckets[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.buckets[at] = pack(hash, slot);
    }

    fn remove(&mut self, hash: u32, slot: u32) {
        let wanted = pack(hash, slot);
        let mut hole = hash as usize & self.mask;
        while self.buckets[hole] != wanted {
            if self.buckets[hole] == 0 {
                return;
            }
            hole = (hole + 1) & self.mask;
        }
        // An entry behind the hole moves into it, unless its probe starts after the hole.
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let bucket = self.buckets[at];
            if bucket == 0 {
                break;
            }
            let home = unpack(bucket).0 as usize;
            if at.wrapping_sub(home) & self.mask >= at.wrapping_sub(hole) & self.mask {
                self.buckets[hole] = bucket;
                hole = at;
            }
        }
        self.buckets[hole] = 0;
    }
}

const fn pack(hash: u32, slot: u32) -> u64 {
    (hash as u64) << 32 | (slot as u64 + 1)
}

const fn unpack(bucket: u64) -> (u32, u32) {
    ((bucket >> 32) as u32, (bucket as u32).wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Endpoint, Protocol};
    use proptest::prelude::*;
    use std::{
        collections::BTreeMap,
        hash::{BuildHasherDefault, Hasher},
        net::{IpAddr, Ipv4Addr},
    };

    fn key(n: u32) -> Key {
        Key {
            protocol: Protocol::Udp,
            guest: Endpoint::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), n as u16),
            remote: Endpoint::new(IpAddr::V4(Ipv4Addr::from_bits(n >> 16)), 53),
        }
    }

    /// Sends everything to the last three buckets, so that probes collide and wrap.
    #[derive(Default)]
    struct Poor(u64);

    impl Hasher for Poor {
        fn write(&mut self, octets: &[u8]) {
            let sum: u64 = octets.iter().map(|&o| u64::from(o)).sum();
            self.0 = u64::from(u32::MAX) - sum % 3;
        }

        fn finish(&self) -> u64 {
            self.0
        }
    }

    /// Regressions T32 and T70.
    #[test]
    fn an_old_id_finds_nothing_in_a_reused_slot() {
        let mut table = Table::new(1);
        let first = table.insert(key(1), 'a').unwrap();
        assert_eq!(table.insert(key(2), 'b'), Err('b'));
        assert_eq!(table.remove(first), Some('a'));
        assert_eq!(table.remove(first), None);
        let second = table.insert(key(2), 'b').unwrap();
        assert_eq!((first.slot, table.get(first)), (second.slot, None));
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.key(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&'b'));
        assert_eq!(table.find(&key(1)), None);
    }

    #[test]
    fn a_known_key_is_refused() {
        let mut table = Table::new(4);
        table.insert(key(1), 'a').unwrap();
        assert_eq!(table.insert(key(1), 'b'), Err('b'));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_table_without_slots_refuses_everything() {
        let mut table = Table::new(0);
        assert_eq!(table.insert(key(1), ()), Err(()));
        assert_eq!(table.find(&key(1)), None);
    }

    #[test]
    fn a_hundred_thousand_flows() {
        const COUNT: u32 = if cfg!(miri) { 100 } else { 100_000 };
        let mut table = Table::new(COUNT as usize);
        let ids: Vec<_> = (0..COUNT)
            .map(|n| table.insert(key(n), n).unwrap())
            .collect();
        assert_eq!(table.insert(key(COUNT), 0), Err(0));
        for (n, &id) in (0..).zip(&ids) {
            assert_eq!(table.find(&key(n)), Some(id));
            assert_eq!(table.get(id), Some(&n));
        }
        for &id in ids.iter().step_by(2) {
            table.remove(id).unwrap();
        }
        assert_eq!(table.len(), COUNT as usize / 2);
        assert!(table.ids().eq(ids.iter().skip(1).step_by(2).copied()));
        assert_eq!(table.from(0), Some(ids[1]));
        assert_eq!(table.from(2), Some(ids[3]));
        assert_eq!(table.from(COUNT), None);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Add(u32),
        Remove(u32),
        Rename(u32, u32),
    }

    fn agrees_with_a_map<S: BuildHasher>(mut table: Table<u32, S>, steps: &[Step]) {
        let mut model = BTreeMap::new();
        for (number, &step) in (0..).zip(steps) {
            let (Step::Add(n) | Step::Remove(n) | Step::Rename(n, _)) = step;
            match (step, table.find(&key(n))) {
                (Step::Add(_), None) => {
                    let full = model.len() == table.capacity();
                    assert_eq!(table.insert(key(n), number).is_err(), full);
                    if !full {
                        model.insert(n, number);
                    }
                }
                (Step::Remove(_), Some(id)) => assert_eq!(table.remove(id), model.remove(&n)),
                (Step::Rename(_, to), Some(id)) => {
                    let free = !model.contains_key(&to);
                    assert_eq!(table.rename(id, key(to)), free);
                    if free && let Some(value) = model.remove(&n) {
                        model.insert(to, value);
                        assert_eq!(table.key(id), Some(key(to)));
                    }
                }
                (Step::Add(_), Some(_)) | (Step::Remove(_) | Step::Rename(..), None) => {}
            }
            assert_eq!(table.len(), model.len());
            for n in 0..24 {
                let value = table.find(&key(n)).and_then(|id| table.get(id));
                assert_eq!(value, model.get(&n));
            }
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        const KEYS: std::ops::Range<u32> = 0..24;
        prop_oneof![
            KEYS.prop_map(Step::Add),
            KEYS.prop_map(Step::Remove),
            (KEYS, KEYS).prop_map(|(n, to)| Step::Rename(n, to)),
        ]
    }

    /// An interpreter (Miri) takes a thousand times as long.
    const STEPS: usize = if cfg!(miri) { 15 } else { 200 };

    proptest! {
        /// Regression T55.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec(step(), 0..STEPS)) {
            agrees_with_a_map(Table::new(16), &steps);
            agrees_with_a_map(Table::with_hasher(16, BuildHasherDefault::<Poor>::default()), &steps);
        }
    }
}
