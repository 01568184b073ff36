//! Memory for octets we have acknowledged and the kernel would not take: fixed blocks, one pool for all flows.

/// Octets of a block. Small enough that many flows find one, large enough that a flow needs few.
const BLOCK: usize = 16 * 1024;

const NONE: u32 = u32::MAX;

/// Blocks, handed out one by one and touched when they are first used.
#[derive(Debug)]
pub struct Pool {
    memory: Vec<u8>,
    /// The block behind each, in its chain or among the free ones.
    next: Vec<u32>,
    free: u32,
    blocks: usize,
}

/// Octets held for one owner, first in, first out. Given back with [`Pool::release`].
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    first: u32,
    last: u32,
    /// Octets of the first block that are consumed.
    start: u32,
    len: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
            start: 0,
            len: 0,
        }
    }
}

impl Chain {
    /// Octets held.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Pool {
    /// A pool of `octets`, rounded down to whole blocks.
    pub fn new(octets: usize) -> Self {
        let blocks = octets / BLOCK;
        Self {
            memory: Vec::with_capacity(blocks * BLOCK),
            next: Vec::with_capacity(blocks),
            free: NONE,
            blocks,
        }
    }

    /// Holds octets behind those a chain holds already, `limit` in all at the most. Returns how many were taken.
    pub fn append(&mut self, chain: &mut Chain, mut octets: &[u8], limit: usize) -> usize {
        octets = octets
            .get(..octets.len().min(limit.saturating_sub(chain.len())))
            .unwrap_or_default();
        let mut taken = 0;
        while !octets.is_empty() {
            let used = (chain.start as usize + chain.len()) % BLOCK;
            let full = used == 0;
            if full && !self.extend(chain) {
                break;
            }
            let at = chain.last as usize * BLOCK + used;
            let count = octets.len().min(BLOCK - used);
            let (now, later) = octets.split_at(count);
            if let Some(space) = self.memory.get_mut(at..at + count) {
                space.copy_from_slice(now);
            }
            chain.len += count as u32;
            taken += count;
            octets = later;
        }
        taken
    }

    /// Adds an empty block to a chain. `false` if there is none.
    fn extend(&mut self, chain: &mut Chain) -> bool {
        let Some(block) = self.take() else {
            return false;
        };
        match self.next.get_mut(chain.last as usize) {
            Some(next) if !chain.is_empty() => *next = block,
            _ => (chain.first, chain.start) = (block, 0),
        }
        chain.last = block;
        true
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(next) = self.next.get_mut(self.free as usize) {
            let block = self.free;
            self.free = std::mem::replace(next, NONE);
            return Some(block);
        }
        (self.next.len() < self.blocks).then(|| {
            self.next.push(NONE);
            self.memory.resize(self.next.len() * BLOCK, 0);
            (self.next.len() - 1) as u32
        })
    }

    fn give(&mut self, block: u32) -> u32 {
        let Some(next) = self.next.get_mut(block as usize) else {
            return NONE;
        };
        let behind = std::mem::replace(next, self.free);
        self.free = block;
        behind
    }

    /// The first octets of a chain, as far as they lie together.
    pub fn front(&self, chain: &Chain) -> &[u8] {
        let start = chain.start as usize;
        let at = chain.first as usize * BLOCK + start;
        let count = chain.len().min(BLOCK - start);
        self.memory.get(at..at + count).unwrap_or_default()
    }

    /// Forgets the first octets of a chain.
    pub fn consume(&mut self, chain: &mut Chain, octets: usize) {
        let mut left = octets.min(chain.len());
        chain.len -= left as u32;
        while left > 0 {
            let here = left.min(BLOCK - chain.start as usize);
            chain.start += here as u32;
            left -= here;
            if chain.start as usize == BLOCK || chain.len == 0 && left == 0 {
                chain.first = self.give(chain.first);
                chain.start = 0;
            }
        }
        if chain.len == 0 {
            *chain = Chain::default();
        }
    }

    /// Forgets a chain.
    pub fn release(&mut self, mut chain: Chain) {
        let len = chain.len();
        self.consume(&mut chain, len);
    }

    /// Octets that could still be held, by chains that hold nothing yet.
    pub fn available(&self) -> usize {
        let mut free = self.blocks - self.next.len();
        let mut block = self.free;
        while let Some(&next) = self.next.get(block as usize) {
            free += 1;
            block = next;
        }
        free * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn an_owner_keeps_to_its_limit_and_the_pool_to_its_size() {
        let mut pool = Pool::new(4 * BLOCK);
        let (mut a, mut b) = (Chain::default(), Chain::default());
        assert_eq!(
            pool.append(&mut a, &[1; 3 * BLOCK], 2 * BLOCK + 5),
            2 * BLOCK + 5
        );
        assert_eq!(pool.append(&mut b, &[2; 3 * BLOCK], 9 * BLOCK), BLOCK);
        pool.release(a);
        assert_eq!(pool.append(&mut b, &[2; 3 * BLOCK], 9 * BLOCK), 3 * BLOCK);
        pool.release(b);
        assert_eq!(pool.available(), 4 * BLOCK);
    }

    proptest! {
        #[test]
        fn behaves_like_queues(steps in proptest::collection::vec((0_usize..3, any::<bool>(), 0_usize..3 * BLOCK), 1..60)) {
            let mut pool = Pool::new(12 * BLOCK);
            let mut chains: [Chain; 3] = Default::default();
            let mut models: [VecDeque<u8>; 3] = Default::default();
            let mut value = 0_u8;
            for (who, append, count) in steps {
                let (chain, model) = (&mut chains[who], &mut models[who]);
                if append {
                    value = value.wrapping_add(1);
                    let octets: Vec<u8> = (0..count).map(|i| value ^ i as u8).collect();
                    let taken = pool.append(chain, &octets, 5 * BLOCK);
                    model.extend(&octets[..taken]);
                    prop_assert!(taken == count || chain.len() == 5 * BLOCK || pool.available() == 0);
                } else {
                    let count = count.min(model.len());
                    let got: Vec<u8> = model.drain(..count).collect();
                    let mut left = &got[..];
                    while !left.is_empty() {
                        let piece = pool.front(chain);
                        let n = piece.len().min(left.len());
                        prop_assert_eq!(&piece[..n], &left[..n]);
                        pool.consume(chain, n);
                        left = &left[n..];
                    }
                }
                prop_assert_eq!(chains[who].len(), models[who].len());
            }
            for chain in chains {
                pool.release(chain);
            }
            prop_assert_eq!(pool.available(), 12 * BLOCK);
        }
    }
}
