//! Who was heard of last: slots in the order of their last use, so that the one idle for longest can make room.

/// A list through slots, the least recently used first. All operations take the same, short time.
#[derive(Debug)]
pub struct Lru {
    /// For each slot; zeroed memory, backed on use.
    links: Vec<Link>,
    ends: Ends,
}

/// A slot's neighbours in the one list it may be in, as a slot and one, 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    older: u32,
    newer: u32,
}

/// The ends of a list: least and most recently used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    oldest: u32,
    newest: u32,
}

impl Ends {
    /// Puts a slot behind all others.
    pub fn touch(&mut self, links: &mut [Link], slot: u32) {
        let name = slot + 1;
        if self.newest == name || slot as usize >= links.len() {
            return;
        }
        self.remove(links, slot);
        let last = std::mem::replace(&mut self.newest, name);
        links[slot as usize].older = last;
        match last.checked_sub(1) {
            Some(last) => links[last as usize].newer = name,
            None => self.oldest = name,
        }
    }

    /// Takes out a slot, if it is in the list; it is in no other.
    pub fn remove(&mut self, links: &mut [Link], slot: u32) {
        let name = slot + 1;
        let Some(link) = links.get_mut(slot as usize).map(std::mem::take) else {
            return;
        };
        let known = link != Link::default() || self.oldest == name;
        if !known {
            return;
        }
        match link.older.checked_sub(1) {
            Some(older) => links[older as usize].newer = link.newer,
            None => self.oldest = link.newer,
        }
        match link.newer.checked_sub(1) {
            Some(newer) => links[newer as usize].older = link.older,
            None => self.newest = link.older,
        }
    }

    pub const fn oldest(&self) -> Option<u32> {
        self.oldest.checked_sub(1)
    }
}

impl Lru {
    /// For slots below `capacity`.
    pub fn new(capacity: usize) -> Self {
        Self {
            links: vec![Link::default(); capacity],
            ends: Ends::default(),
        }
    }

    /// Notes that a slot was used just now.
    pub fn touch(&mut self, slot: u32) {
        self.ends.touch(&mut self.links, slot);
    }

    /// Forgets a slot, if it is known.
    pub fn remove(&mut self, slot: u32) {
        self.ends.remove(&mut self.links, slot);
    }

    /// The slot used next after this one.
    pub fn newer(&self, slot: u32) -> Option<u32> {
        self.links.get(slot as usize)?.newer.checked_sub(1)
    }

    /// The slot that was not used for longest.
    pub const fn oldest(&self) -> Option<u32> {
        self.ends.oldest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An interpreter (Miri) takes a thousand times as long.
    const STEPS: usize = if cfg!(miri) { 20 } else { 200 };

    proptest! {
        #[test]
        fn it_keeps_the_order_of_use(steps in proptest::collection::vec((0_u32..8, any::<bool>()), 0..STEPS)) {
            let (mut lru, mut model) = (Lru::new(8), Vec::new());
            for (slot, used) in steps {
                model.retain(|&known| known != slot);
                if used {
                    model.push(slot);
                    lru.touch(slot);
                } else {
                    lru.remove(slot);
                }
                prop_assert_eq!(lru.oldest(), model.first().copied());
            }
            for slot in model {
                prop_assert_eq!(lru.oldest(), Some(slot));
                lru.remove(slot);
            }
            prop_assert_eq!(lru.oldest(), None);
        }
    }
}
