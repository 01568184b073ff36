//! Octets that must be held: a fixed number of blocks shared by all flows, none of which can take more than its limit.
//!
//! Blocks are of a page each by default: what is held is mostly little (a datagram, a few segments behind a gap) for many
//! owners at once, and a page is what the kernel backs on first touch and what a long chain wastes at its end. Vacant
//! blocks are reused last freed first, so that only as many pages are ever touched as were needed at once.

use std::fmt;

/// Octets in a block of the default pool.
const BLOCK: usize = 4_096;

/// No block, as a link.
const NONE: u32 = u32::MAX;

/// Blocks and who may have them: each is in one chain, set aside for one, or free.
pub struct Pool {
    /// All blocks in one zeroed allocation, backed by the kernel as they are touched.
    octets: Vec<u8>,
    block: usize,
    /// For each block that was ever used, the next of its chain or of the vacant ones.
    links: Vec<u32>,
    blocks: usize,
    /// The block freed last.
    vacant: u32,
    /// Blocks that hold octets.
    used: usize,
    /// Blocks set aside.
    reserved: usize,
}

/// One owner's octets in a [`Pool`], first in first out, and the blocks set aside for more. Behind those in order there may be
/// others that came early, in their places: a chain is a picture of the stream from its first octet held to the last. It
/// must go back by [`Pool::release`]: dropped, it takes its blocks with it.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "blocks return to the pool only by Pool::release"]
pub struct Chain {
    /// First and last block; meaningless while `span` is 0, when the chain holds none.
    head: u32,
    tail: u32,
    /// Octets of the first block that were consumed.
    offset: u32,
    /// Octets in order.
    len: u32,
    /// Octets from the first to the last, gaps included.
    span: u32,
    /// Blocks set aside.
    reserved: u32,
    /// Octets that must find room yet: never more than the last block and the blocks set aside can take.
    promised: u32,
}

impl Chain {
    /// Octets held in order, from the first up to the first gap.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Octets from the first to the last held, gaps included.
    pub const fn span(&self) -> usize {
        self.span as usize
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nothing is held or set aside.
    pub const fn is_unused(&self) -> bool {
        self.span == 0 && self.reserved == 0
    }
}

impl Pool {
    /// A pool of `blocks` blocks of `block_size` octets, at least one each and at most `u32::MAX` octets together.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        let block = block_size.clamp(1, u32::MAX as usize);
        let blocks = blocks.min(u32::MAX as usize / block);
        Self {
            octets: vec![0; blocks * block],
            block,
            links: Vec::with_capacity(blocks),
            blocks,
            vacant: NONE,
            used: 0,
            reserved: 0,
        }
    }

    /// Blocks that neither hold octets nor are set aside.
    pub const fn free(&self) -> usize {
        self.blocks - self.used - self.reserved
    }

    /// Takes octets up to the chain's `limit` while blocks set aside for it or free ones last; how many were taken. Where they
    /// fill a gap they have their place already.
    pub fn append(&mut self, chain: &mut Chain, octets: &[u8], limit: usize) -> usize {
        let room = limit.max(chain.span()).saturating_sub(chain.len());
        let taken = self.write(chain, chain.len(), &octets[..octets.len().min(room)]);
        chain.len += taken as u32;
        chain.promised = chain.promised.saturating_sub(taken as u32);
        taken
    }

    /// Keeps octets that came early, `ahead` octets behind those in order. All or nothing: `false` if they would lie beyond
    /// the chain's `limit`, or leave less than a quarter of the pool to octets that come in order.
    pub fn place(&mut self, chain: &mut Chain, ahead: usize, octets: &[u8], limit: usize) -> bool {
        let at = chain.len() + ahead;
        let end = at + octets.len();
        let blocks = |span: usize| (chain.offset as usize + span).div_ceil(self.block);
        let wanted = blocks(end)
            .saturating_sub(blocks(chain.span()))
            .saturating_sub(chain.reserved as usize);
        if end > limit || wanted > 0 && wanted + self.blocks / 4 > self.free() {
            return false;
        }
        self.write(chain, at, octets) == octets.len()
    }

    /// Notes that the next `count` octets behind those in order are there, as the gap before them is filled.
    pub fn admit(&mut self, chain: &mut Chain, count: usize) {
        let count = count.min(chain.span() - chain.len());
        chain.len += count as u32;
        chain.promised = chain.promised.saturating_sub(count as u32);
    }

    /// Steps over `count` octets that found their way past this chain, which holds none in order.
    pub fn skip(&mut self, chain: &mut Chain, count: usize) {
        chain.promised = chain.promised.saturating_sub(count as u32);
        self.drop_front(chain, count);
    }

    /// Writes octets from `at` on, over what is there and beyond. Returns how many found room.
    fn write(&mut self, chain: &mut Chain, at: usize, octets: &[u8]) -> usize {
        let end = at + octets.len();
        let (mut block, mut index) = (chain.head, 0);
        if chain.span > 0 {
            // The last block is the likely place.
            let last = (chain.offset as usize + chain.span() - 1) / self.block;
            if (chain.offset as usize + at) / self.block >= last {
                (block, index) = (chain.tail, last);
            }
        }
        let fresh = chain.span == 0;
        while chain.span() < end {
            let mut room = self.tail_room(chain);
            if room == 0 {
                if !self.extend(chain) {
                    break;
                }
                room = self.block;
            }
            chain.span += room.min(end - chain.span()) as u32;
        }
        if fresh {
            block = chain.head;
        }
        let end = end.min(chain.span());
        let mut position = chain.offset as usize + at;
        let mut rest = &octets[..end.saturating_sub(at)];
        while !rest.is_empty() {
            while index < position / self.block {
                block = self.links[block as usize];
                index += 1;
            }
            let from = position % self.block;
            let (now, later) = rest.split_at(rest.len().min(self.block - from));
            let start = block as usize * self.block + from;
            self.octets[start..start + now.len()].copy_from_slice(now);
            position += now.len();
            rest = later;
        }
        end.saturating_sub(at)
    }

    /// The octets that came first, as far as they lie together; empty only if the chain is.
    pub fn front(&self, chain: &Chain) -> &[u8] {
        self.pieces(chain).next().unwrap_or(&[])
    }

    /// The octets in order, block by block.
    pub fn pieces(&self, chain: &Chain) -> impl Iterator<Item = &[u8]> {
        let (mut at, mut offset, mut left) = (chain.head, chain.offset as usize, chain.len());
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let len = left.min(self.block - offset);
            let start = at as usize * self.block + offset;
            at = self.links[at as usize];
            offset = 0;
            left -= len;
            Some(&self.octets[start..start + len])
        })
    }

    /// Forgets the first `count` octets, or all in order if there are fewer. Emptied blocks become free for everybody.
    pub fn consume(&mut self, chain: &mut Chain, count: usize) {
        self.drop_front(chain, count.min(chain.len()));
    }

    fn drop_front(&mut self, chain: &mut Chain, count: usize) {
        let mut count = count.min(chain.span());
        chain.len = chain.len.saturating_sub(count as u32);
        while count > 0 {
            let step = count.min(self.block - chain.offset as usize);
            count -= step;
            chain.offset += step as u32;
            chain.span -= step as u32;
            if chain.span == 0 || chain.offset as usize == self.block {
                let emptied = chain.head;
                chain.head = self.links[emptied as usize];
                chain.offset = 0;
                self.links[emptied as usize] = self.vacant;
                self.vacant = emptied;
                self.used -= 1;
                // With the last block goes the room at its end, which may have been promised.
                if chain.promised as usize > chain.reserved as usize * self.block {
                    chain.reserved += 1;
                    self.reserved += 1;
                }
            }
        }
    }

    /// Gives back everything a chain holds and has set aside.
    pub fn release(&mut self, mut chain: Chain) {
        self.unreserve(&mut chain);
        self.drop_front(&mut chain, usize::MAX);
    }

    /// Sets blocks aside so that `octets` octets more can be appended whatever others do, in place of what was promised
    /// before. Returns for how many octets that holds: fewer than asked only if free blocks ran out. What is appended uses
    /// the promise up; what is consumed leaves it as it is.
    pub fn reserve(&mut self, chain: &mut Chain, octets: usize) -> usize {
        let room = self.tail_room(chain);
        let wanted = octets.saturating_sub(room).div_ceil(self.block);
        self.reserved -= chain.reserved as usize;
        let blocks = wanted.min(self.free());
        self.reserved += blocks;
        chain.reserved = blocks as u32;
        let promised = octets.min(room + blocks * self.block);
        chain.promised = promised as u32;
        promised
    }

    /// Gives back the blocks set aside; the octets stay.
    pub const fn unreserve(&mut self, chain: &mut Chain) {
        self.reserved -= chain.reserved as usize;
        chain.reserved = 0;
        chain.promised = 0;
    }

    /// Octets the chain's last block still has room for.
    const fn tail_room(&self, chain: &Chain) -> usize {
        if chain.span == 0 {
            return 0;
        }
        let end = (chain.offset as usize + chain.span as usize) % self.block;
        (self.block - end) % self.block
    }

    /// Links another block to the chain's end: one set aside for it, else a free one.
    fn extend(&mut self, chain: &mut Chain) -> bool {
        if chain.reserved > 0 {
            chain.reserved -= 1;
            self.reserved -= 1;
        } else if self.free() == 0 {
            return false;
        }
        let fresh = if self.vacant == NONE {
            self.links.push(NONE);
            self.links.len() as u32 - 1
        } else {
            let block = self.vacant;
            self.vacant = std::mem::replace(&mut self.links[block as usize], NONE);
            block
        };
        self.used += 1;
        if chain.span == 0 {
            chain.head = fresh;
            chain.offset = 0;
        } else {
            self.links[chain.tail as usize] = fresh;
        }
        chain.tail = fresh;
        true
    }
}

impl Default for Pool {
    /// 16 MiB in blocks of a page.
    fn default() -> Self {
        Self::new((16 << 20) / BLOCK, BLOCK)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("block", &self.block)
            .field("blocks", &self.blocks)
            .field("used", &self.used)
            .field("reserved", &self.reserved)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(pool: &Pool, chain: &Chain) -> Vec<u8> {
        pool.pieces(chain).flatten().copied().collect()
    }

    #[test]
    fn a_chain_is_small() {
        assert!(size_of::<Chain>() <= 28);
    }

    #[test]
    fn octets_come_out_in_the_order_they_went_in() {
        let mut pool = Pool::new(4, 4);
        let mut chain = Chain::default();
        assert_eq!(pool.append(&mut chain, b"abcdef", 100), 6);
        assert_eq!(pool.front(&chain), b"abcd");
        pool.consume(&mut chain, 3);
        assert_eq!(pool.front(&chain), b"d");
        assert_eq!(pool.append(&mut chain, b"ghijklmnopqrs", 100), 10);
        assert_eq!(held(&pool, &chain), b"defghijklmnop");
        assert_eq!(pool.free(), 0);
        pool.consume(&mut chain, 100);
        assert_eq!((pool.free(), pool.front(&chain)), (4, &b""[..]));
        pool.release(chain);
    }

    #[test]
    fn an_owner_keeps_to_its_limit() {
        let mut pool = Pool::new(4, 4);
        let mut chain = Chain::default();
        assert_eq!(pool.append(&mut chain, b"abcdef", 5), 5);
        assert_eq!(pool.append(&mut chain, b"f", 5), 0);
        pool.consume(&mut chain, 2);
        assert_eq!(pool.append(&mut chain, b"fgh", 5), 2);
        assert_eq!(pool.append(&mut chain, b"h", 0), 0);
        pool.release(chain);
    }

    #[test]
    fn what_is_reserved_is_there_whatever_others_do() {
        let mut pool = Pool::new(4, 4);
        let (mut promised, mut greedy) = (Chain::default(), Chain::default());
        assert_eq!(pool.reserve(&mut promised, 5), 5);
        assert_eq!(pool.append(&mut greedy, &[1; 100], 100), 8);
        assert_eq!(pool.reserve(&mut greedy, 1), 0);
        assert_eq!(pool.append(&mut promised, &[2; 100], 100), 8);
        pool.release(greedy);
        assert_eq!(pool.reserve(&mut promised, 100), 8);
        assert_eq!(pool.reserve(&mut promised, 1), 1);
        assert_eq!(pool.free(), 1);
        pool.unreserve(&mut promised);
        assert_eq!(pool.free(), 2);
        pool.release(promised);
        assert_eq!(pool.free(), 4);
    }

    #[test]
    fn room_in_the_last_block_counts_as_reserved() {
        let mut pool = Pool::new(2, 4);
        let mut chain = Chain::default();
        pool.append(&mut chain, b"a", 100);
        assert_eq!(pool.reserve(&mut chain, 3), 3);
        assert_eq!(pool.free(), 1);
        assert_eq!(pool.reserve(&mut chain, 4), 4);
        assert_eq!(pool.free(), 0);
        pool.release(chain);
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn a_promise_outlives_the_block_it_was_made_on() {
        let mut pool = Pool::new(1, 4);
        let (mut chain, mut greedy) = (Chain::default(), Chain::default());
        pool.append(&mut chain, b"a", 100);
        assert_eq!(pool.reserve(&mut chain, 3), 3);
        pool.consume(&mut chain, 1);
        assert_eq!(pool.append(&mut greedy, b"z", 100), 0);
        assert_eq!(pool.append(&mut chain, b"bcd", 100), 3);
        pool.consume(&mut chain, 3);
        assert_eq!(pool.append(&mut greedy, b"z", 100), 1);
        pool.release(chain);
        pool.release(greedy);
    }

    #[test]
    fn octets_that_came_early_wait_in_their_places() {
        let mut pool = Pool::new(8, 4);
        let mut chain = Chain::default();
        assert!(pool.place(&mut chain, 6, b"ghijk", 100));
        assert_eq!(
            (chain.len(), chain.span(), pool.front(&chain)),
            (0, 11, &b""[..])
        );
        assert_eq!(pool.append(&mut chain, b"abc", 0), 3);
        assert_eq!(held(&pool, &chain), b"abc");
        pool.consume(&mut chain, 3);
        // The rest of the gap went to the socket directly.
        pool.skip(&mut chain, 3);
        pool.admit(&mut chain, 5);
        assert_eq!(held(&pool, &chain), b"ghijk");
        pool.release(chain);
        assert_eq!(pool.free(), 8);
    }

    #[test]
    fn what_comes_early_keeps_to_the_limit_and_leaves_a_quarter_of_the_pool() {
        let mut pool = Pool::new(8, 4);
        let (mut chain, mut other) = (Chain::default(), Chain::default());
        assert!(!pool.place(&mut chain, 8, b"abcde", 12));
        assert!(pool.place(&mut chain, 8, b"abcd", 12));
        assert!(pool.place(&mut other, 0, b"abcdefghijkl", 100));
        assert!(!pool.place(&mut other, 12, b"m", 100));
        assert_eq!(pool.append(&mut chain, &[1; 100], 100), 20);
        pool.release(chain);
        pool.release(other);
        assert_eq!(pool.free(), 8);
    }

    #[test]
    fn an_empty_pool_takes_nothing() {
        let mut pool = Pool::new(0, 0);
        let mut chain = Chain::default();
        assert_eq!(pool.append(&mut chain, b"a", 100), 0);
        assert!(!pool.place(&mut chain, 0, b"a", 100));
        assert_eq!(pool.reserve(&mut chain, 1), 0);
        assert_eq!(pool.front(&chain), b"");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(Vec<u8>, usize),
        Consume(usize),
        Reserve(usize),
        Unreserve,
        Release,
    }

    fn step() -> impl Strategy<Value = (usize, Step)> {
        let step = prop_oneof![
            4 => (prop::collection::vec(any::<u8>(), 0..40), 0_usize..60)
                .prop_map(|(bytes, limit)| Step::Append(bytes, limit)),
            3 => (0_usize..40).prop_map(Step::Consume),
            2 => (0_usize..40).prop_map(Step::Reserve),
            1 => Just(Step::Unreserve),
            1 => Just(Step::Release),
        ];
        (0_usize..3, step)
    }

    /// Every block has one place, and the counts add up.
    fn check(pool: &Pool, chains: &[Chain; 3]) {
        let mut places = vec![0; pool.links.len()];
        let mut vacant = pool.vacant;
        while vacant != NONE {
            places[vacant as usize] += 1;
            vacant = pool.links[vacant as usize];
        }
        let mut used = 0;
        for chain in chains.iter().filter(|chain| chain.span > 0) {
            assert!(chain.len <= chain.span);
            let mut at = chain.head;
            for _ in 0..(chain.offset as usize + chain.span()).div_ceil(pool.block) {
                places[at as usize] += 1;
                used += 1;
                if pool.links[at as usize] == NONE {
                    assert_eq!(at, chain.tail);
                }
                at = pool.links[at as usize];
            }
            assert_eq!(at, NONE);
        }
        assert!(places.iter().all(|&count| count == 1));
        assert_eq!(used, pool.used);
        let reserved: u32 = chains.iter().map(|chain| chain.reserved).sum();
        assert_eq!(reserved as usize, pool.reserved);
        assert!(pool.used + pool.reserved <= pool.blocks);
    }

    /// An interpreter (Miri) takes a thousand times as long.
    const STEPS: usize = if cfg!(miri) { 15 } else { 200 };

    proptest! {
        #[test]
        fn behaves_like_three_queues(block in 1_usize..9, steps in prop::collection::vec(step(), 0..STEPS)) {
            let mut pool = Pool::new(12, block);
            let mut chains = [Chain::default(), Chain::default(), Chain::default()];
            let mut models = [const { Vec::new() }; 3];
            let mut promises = [0; 3];
            for (who, step) in steps {
                let (chain, model): (_, &mut Vec<u8>) = (&mut chains[who], &mut models[who]);
                match step {
                    Step::Append(bytes, limit) => {
                        let taken = pool.append(chain, &bytes, limit);
                        let allowed = bytes.len().min(limit.saturating_sub(model.len()));
                        prop_assert!(taken <= allowed && taken >= allowed.min(promises[who]));
                        prop_assert!(taken == allowed || pool.free() == 0);
                        promises[who] -= taken.min(promises[who]);
                        model.extend(&bytes[..taken]);
                    }
                    Step::Consume(count) => {
                        pool.consume(chain, count);
                        model.drain(..count.min(model.len()));
                    }
                    Step::Reserve(bytes) => {
                        promises[who] = pool.reserve(chain, bytes);
                        prop_assert!(promises[who] >= bytes || pool.free() == 0);
                    }
                    Step::Unreserve => {
                        pool.unreserve(chain);
                        promises[who] = 0;
                    }
                    Step::Release => {
                        pool.release(std::mem::take(chain));
                        model.clear();
                        promises[who] = 0;
                    }
                }
                check(&pool, &chains);
                for (chain, model) in chains.iter().zip(&models) {
                    prop_assert_eq!(&held(&pool, chain), model);
                    prop_assert_eq!(pool.front(chain).is_empty(), model.is_empty());
                }
            }
        }

        /// A stream in pieces that come early, late and again is whole in the end.
        #[test]
        fn pieces_in_any_order_make_the_stream(
            block in 1_usize..9,
            pieces in prop::collection::vec((0_usize..80, 1_usize..20, 0_u8..4), 0..STEPS),
        ) {
            let stream: Vec<u8> = (0..100).collect();
            let mut pool = Pool::new(150, block);
            let [mut chain, mut other, mut third] = <[Chain; 3]>::default();
            let mut there = [false; 100];
            // Octets taken out, and octets in order.
            let (mut out, mut nxt) = (0, 0);
            for (start, len, what) in pieces {
                let end = (start + len).min(100);
                match what {
                    0 => {
                        let count = len.min(nxt - out);
                        pool.consume(&mut chain, count);
                        out += count;
                    }
                    1 if out == nxt => {
                        // Past the chain, up to what is there already.
                        let count = (nxt..(nxt + len).min(100)).take_while(|&at| !there[at]).count();
                        pool.skip(&mut chain, count);
                        (nxt, out) = (nxt + count, nxt + count);
                    }
                    _ if start > nxt => {
                        prop_assert!(pool.place(&mut chain, start - nxt, &stream[start..end], 100));
                        there[start..end].fill(true);
                    }
                    _ if end > nxt => {
                        prop_assert_eq!(pool.append(&mut chain, &stream[nxt..end], 100), end - nxt);
                        nxt = end;
                    }
                    _ => {}
                }
                let more = (nxt..100).take_while(|&at| there[at]).count();
                pool.admit(&mut chain, more);
                nxt += more;
                let chains = [chain, other, third];
                check(&pool, &chains);
                prop_assert_eq!(held(&pool, &chains[0]), &stream[out..nxt]);
                [chain, other, third] = chains;
            }
            pool.release(chain);
            prop_assert_eq!(pool.free(), 150);
        }
    }
}
