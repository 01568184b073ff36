//! The flow table: a fixed number of slots, found by key or by handle. It knows no protocol.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use super::key::{Id, Key};

/// A table of `T`s by [`Key`] and [`Id`]. All memory is reserved when it is made, and touched when it is used.
#[derive(Debug)]
pub struct Table<T, S = RandomState> {
    slots: Vec<Slot<T>>,
    /// Slots that were used and are free again.
    free: Vec<u32>,
    index: HashMap<Key, u32, S>,
    capacity: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    held: Option<(Key, T)>,
}

impl<T> Table<T> {
    /// A table of `capacity` flows, at most 2^24. Its keys come from the guest, so they are hashed with secrets of this process.
    pub fn new(capacity: usize) -> Self {
        Self::with_hasher(capacity, RandomState::new())
    }
}

impl<T, S: BuildHasher> Table<T, S> {
    pub fn with_hasher(capacity: usize, hasher: S) -> Self {
        let capacity = capacity.min(1 << 24);
        Self {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            // Room for as many removed entries as there are live ones: rehashing then happens in place, and rarely.
            index: HashMap::with_capacity_and_hasher(capacity * 2, hasher),
            capacity,
        }
    }

    /// Adds a flow.
    ///
    /// # Errors
    /// Gives the flow back when the table is full or the key is taken.
    pub fn insert(&mut self, key: Key, flow: T) -> Result<Id, T> {
        if self.index.len() >= self.capacity || self.index.contains_key(&key) {
            return Err(flow);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    held: None,
                });
                (self.slots.len() - 1) as u32
            }
        };
        let Some(place) = self.slots.get_mut(slot as usize) else {
            return Err(flow);
        };
        place.generation = place.generation.wrapping_add(1);
        place.held = Some((key, flow));
        self.index.insert(key, slot);
        Ok(Id {
            slot,
            generation: place.generation,
        })
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        let place = self
            .slots
            .get_mut(id.slot as usize)
            .filter(|place| place.generation == id.generation)?;
        let (key, flow) = place.held.take()?;
        self.index.remove(&key);
        self.free.push(id.slot);
        Some(flow)
    }

    pub fn find(&self, key: &Key) -> Option<Id> {
        self.id_at(*self.index.get(key)?)
    }

    pub fn get(&self, id: Id) -> Option<&T> {
        self.held(id).map(|(_, flow)| flow)
    }

    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let place = self
            .slots
            .get_mut(id.slot as usize)
            .filter(|place| place.generation == id.generation)?;
        place.held.as_mut().map(|(_, flow)| flow)
    }

    pub fn key(&self, id: Id) -> Option<&Key> {
        self.held(id).map(|(key, _)| key)
    }

    fn held(&self, id: Id) -> Option<&(Key, T)> {
        self.slots
            .get(id.slot as usize)
            .filter(|place| place.generation == id.generation)?
            .held
            .as_ref()
    }

    /// The handle of the flow in a slot.
    pub fn id_at(&self, slot: u32) -> Option<Id> {
        let place = self.slots.get(slot as usize)?;
        place.held.as_ref().map(|_| Id {
            slot,
            generation: place.generation,
        })
    }

    /// Slots ever used: [`Table::id_at`] knows nothing beyond.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub const fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Endpoint, Protocol};
    use std::net::{IpAddr, Ipv4Addr};

    fn key(n: u32) -> Key {
        let guest = Endpoint::new(IpAddr::V4(Ipv4Addr::from(n)), 1);
        let remote = Endpoint::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2);
        Key {
            protocol: Protocol::Tcp,
            guest,
            remote,
        }
    }

    #[test]
    fn a_handle_outlives_its_flow_and_finds_nothing() {
        let mut table = Table::new(2);
        let old = table.insert(key(1), "old").unwrap();
        assert_eq!(Id::from_bits(old.to_bits() | 0xff << 56), old);
        assert_eq!(table.remove(old), Some("old"));
        let new = table.insert(key(2), "new").unwrap();
        assert_eq!(new.slot, old.slot);
        assert_eq!(table.remove(old), None);
        assert_eq!((table.get(old), table.find(&key(1))), (None, None));
        assert_eq!(
            (table.get(new), table.key(new)),
            (Some(&"new"), Some(&key(2)))
        );
    }

    #[test]
    fn a_full_table_gives_the_flow_back() {
        let mut table = Table::new(2);
        table.insert(key(1), 'a').unwrap();
        assert_eq!(table.insert(key(1), 'x'), Err('x'));
        let b = table.insert(key(2), 'b').unwrap();
        assert_eq!(table.insert(key(3), 'c'), Err('c'));
        table.remove(b);
        assert!(table.insert(key(3), 'c').is_ok());
    }

    #[test]
    fn a_hundred_thousand_flows_come_and_go() {
        let mut table = Table::new(100_000);
        let ids: Vec<Id> = (0..100_000)
            .map(|n| table.insert(key(n), n).unwrap())
            .collect();
        assert!(table.insert(key(100_000), 0).is_err());
        for (n, id) in (0..).zip(&ids) {
            assert_eq!(table.find(&key(n)), Some(*id));
        }
        for id in ids.iter().step_by(2) {
            assert!(table.remove(*id).is_some());
        }
        assert_eq!(
            (table.len(), table.find(&key(0)), table.find(&key(1))),
            (50_000, None, Some(ids[1]))
        );
    }
}
