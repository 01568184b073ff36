//! Which parts of a packet are here (RFC 791, section 3.2; RFC 815; RFC 8200, section 4.5). The octets lie elsewhere.

/// The most parts of one packet: enough for the largest in parts of 512 octets.
const MOST: usize = 128;

/// The parts of one packet, in the order they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    list: [(u16, u16); MOST],
    count: usize,
    /// Octets that are here.
    have: usize,
    /// Octets of the whole, once its end is here.
    total: Option<usize>,
}

/// What to do with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it and wait for others.
    Keep,
    /// Keep it: now all are here.
    Whole,
    /// Forget it: it was here before.
    Repeated,
    /// Forget all of the packet: parts overlap or contradict each other (RFC 5722, section 4; RFC 8200, section 4.5), or are
    /// too many.
    Discard,
}

impl Parts {
    pub const fn new() -> Self {
        Self {
            list: [(0, 0); MOST],
            count: 0,
            have: 0,
            total: None,
        }
    }

    /// Judges a part of `len` octets at `offset`, of which the packet may have `largest` at most; `more` is false for its end.
    pub fn add(&mut self, offset: u16, len: usize, more: bool, largest: usize) -> Verdict {
        let start = usize::from(offset);
        let end = start + len;
        if len == 0 || end > largest.min(usize::from(u16::MAX)) || more && !len.is_multiple_of(8) {
            return Verdict::Discard;
        }
        let known = self.list.get(..self.count).unwrap_or_default();
        for &(at, octets) in known {
            let (at, until) = (usize::from(at), usize::from(at) + usize::from(octets));
            if (at, until) == (start, end) {
                return Verdict::Repeated;
            }
            if start < until && at < end {
                return Verdict::Discard;
            }
        }
        let contradicts = match (self.total, more) {
            (Some(total), true) => end > total,
            (Some(_), false) => true,
            (None, false) => known
                .iter()
                .any(|&(at, octets)| usize::from(at) + usize::from(octets) > end),
            (None, true) => false,
        };
        let Some(place) = self.list.get_mut(self.count).filter(|_| !contradicts) else {
            return Verdict::Discard;
        };
        *place = (offset, len as u16);
        self.count += 1;
        self.have += len;
        if !more {
            self.total = Some(end);
        }
        if self.total == Some(self.have) {
            Verdict::Whole
        } else {
            Verdict::Keep
        }
    }

    /// Where each part belongs and how long it is, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let known = self.list.get(..self.count).unwrap_or_default();
        known
            .iter()
            .map(|&(at, len)| (usize::from(at), usize::from(len)))
    }

    /// Octets of the whole, as far as its parts tell.
    pub const fn len(&self) -> usize {
        self.have
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Default for Parts {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LARGEST: usize = 65_515;

    #[test]
    fn parts_that_overlap_or_contradict_end_it() {
        for (first, second) in [
            ((0, 16, true), (8, 16, true)),
            ((8, 16, true), (0, 16, true)),
            ((0, 16, true), (8, 4, false)),
            ((0, 24, true), (8, 8, true)),
            ((16, 8, true), (0, 8, false)),
            ((16, 8, false), (24, 8, true)),
            ((16, 8, false), (8, 9, false)),
            ((0, 16, true), (16, 0, false)),
            ((0, 16, true), (16, 12, true)),
            ((0, 16, true), (65_512, 8, false)),
        ] {
            let mut parts = Parts::new();
            let (at, len, more) = first;
            assert_eq!(parts.add(at, len, more, LARGEST), Verdict::Keep);
            let (at, len, more) = second;
            assert_eq!(
                parts.add(at, len, more, LARGEST),
                Verdict::Discard,
                "{first:?} {second:?}"
            );
        }
    }

    #[test]
    fn one_that_comes_twice_counts_once() {
        let mut parts = Parts::new();
        assert_eq!(parts.add(8, 8, false, LARGEST), Verdict::Keep);
        assert_eq!(parts.add(8, 8, false, LARGEST), Verdict::Repeated);
        assert_eq!(parts.add(0, 8, true, LARGEST), Verdict::Whole);
    }

    #[test]
    fn too_many_end_it() {
        let mut parts = Parts::new();
        for n in 0..MOST as u16 {
            assert_eq!(parts.add(n * 16, 8, true, LARGEST), Verdict::Keep);
        }
        assert_eq!(
            parts.add(MOST as u16 * 16, 8, true, LARGEST),
            Verdict::Discard
        );
    }

    proptest! {
        /// In any order they make the whole, and never before the last is here.
        #[test]
        fn any_order_makes_the_whole(
            cuts in proptest::collection::vec(1_usize..60, 1..60),
            order in proptest::collection::vec(any::<u32>(), 60),
            end in 1_usize..9,
        ) {
            let mut at = 0;
            let mut parts: Vec<_> = cuts.iter().map(|cut| {
                let part = (at as u16, cut * 8, true);
                at += cut * 8;
                part
            }).collect();
            parts.push((at as u16, end, false));
            let mut shuffled: Vec<_> = parts.iter().zip(order.iter().cycle()).collect();
            shuffled.sort_by_key(|&(part, key)| (key, part.0));
            let mut known = Parts::new();
            for (n, ((offset, len, more), _)) in shuffled.iter().enumerate() {
                let want = if n + 1 == parts.len() { Verdict::Whole } else { Verdict::Keep };
                prop_assert_eq!(known.add(*offset, *len, *more, LARGEST), want);
            }
            prop_assert_eq!(known.len(), at + end);
        }
    }
}
