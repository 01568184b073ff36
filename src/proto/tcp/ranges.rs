//! A few stretches of a stream, for what came or arrived behind a gap.

use crate::net::Seq;

/// Stretches kept at most.
pub const MOST: usize = 32;

/// Stretches that neither overlap nor touch, the one that changed last first (RFC 2018, section 4, wants them so).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    list: [(Seq, Seq); MOST],
    len: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            list: [(Seq(0), Seq(0)); MOST],
            len: 0,
        }
    }
}

impl Ranges {
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// The stretches: first octet, and the one after the last.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, Seq)> + '_ {
        self.list.iter().take(self.len).copied()
    }

    /// Adds the octets from `start` up to `end`. `false` if they are a stretch of their own and there is no room for it.
    pub fn insert(&mut self, start: Seq, end: Seq) -> bool {
        let (mut start, mut end) = (start, end);
        self.retain(|(a, b)| {
            let apart = b.before(start) || a.after(end);
            if !apart {
                (start, end) = (a.min(start), b.max(end));
            }
            apart
        });
        let Some(front) = self.list.get_mut(..=self.len) else {
            return false;
        };
        front.rotate_right(1);
        self.list[0] = (start, end);
        self.len += 1;
        true
    }

    /// Forgets what lies before `seq`.
    pub fn forget(&mut self, seq: Seq) {
        self.retain(|(_, end)| end.after(seq));
        for (start, _) in self.list.iter_mut().take(self.len) {
            *start = start.max(seq);
        }
    }

    /// Takes out what continues at `nxt`, and moves that behind it. Returns by how many octets.
    pub fn advance(&mut self, nxt: &mut Seq) -> u32 {
        let from = *nxt;
        while let Some((_, end)) = self.containing(*nxt) {
            *nxt = end;
        }
        self.forget(*nxt);
        nxt.since(from)
    }

    /// Whether all octets from `start` up to `end` are there.
    pub fn covers(&self, start: Seq, end: Seq) -> bool {
        self.iter().any(|(a, b)| !start.before(a) && !end.after(b))
    }

    /// The stretch that holds this octet.
    pub fn containing(&self, seq: Seq) -> Option<(Seq, Seq)> {
        self.iter()
            .find(|&(start, end)| !seq.before(start) && seq.before(end))
    }

    /// Where the first stretch after this octet begins.
    pub fn next(&self, seq: Seq) -> Option<Seq> {
        self.iter()
            .map(|(start, _)| start)
            .filter(|start| start.after(seq))
            .reduce(Seq::min)
    }

    /// The octet after the last.
    pub fn end(&self) -> Option<Seq> {
        self.iter().map(|(_, end)| end).reduce(Seq::max)
    }

    /// Octets in all.
    pub fn octets(&self) -> u32 {
        self.iter().map(|(start, end)| end.since(start)).sum()
    }

    fn retain(&mut self, mut keep: impl FnMut((Seq, Seq)) -> bool) {
        let mut kept = 0;
        for at in 0..self.len {
            if keep(self.list[at]) {
                self.list[kept] = self.list[at];
                kept += 1;
            }
        }
        self.len = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_stretch_that_changed_last_comes_first() {
        let mut ranges = Ranges::default();
        for (start, end) in [(10, 20), (30, 40), (50, 60), (20, 25)] {
            assert!(ranges.insert(Seq(start), Seq(end)));
        }
        let list: Vec<_> = ranges.iter().map(|(a, b)| (a.0, b.0)).collect();
        assert_eq!(list, [(10, 25), (50, 60), (30, 40)]);
        assert_eq!(
            (ranges.next(Seq(10)), ranges.end()),
            (Some(Seq(30)), Some(Seq(60)))
        );
    }

    #[test]
    fn more_than_there_is_room_for_is_refused_but_growth_is_not() {
        let mut ranges = Ranges::default();
        for n in 0..MOST as u32 {
            assert!(ranges.insert(Seq(n * 10), Seq(n * 10 + 5)));
        }
        assert!(!ranges.insert(Seq(5000), Seq(5001)));
        assert!(ranges.insert(Seq(5), Seq(10)));
        assert!(ranges.insert(Seq(5000), Seq(5001)));
    }

    /// An interpreter (Miri) takes a thousand times as long.
    const STEPS: usize = if cfg!(miri) { 6 } else { 60 };

    proptest! {
        #[test]
        fn behaves_like_a_set_of_octets(
            base: u32,
            steps in prop::collection::vec((0_u32..200, 0_u32..20, 0_u8..4), 0..STEPS),
        ) {
            let base = Seq(base);
            let mut ranges = Ranges::default();
            let mut model = std::collections::BTreeSet::new();
            for (at, len, what) in steps {
                match what {
                    0 => {
                        ranges.forget(base + at);
                        model.retain(|&octet| octet >= at);
                    }
                    1 => {
                        let mut nxt = base + at;
                        let end = (at..).find(|octet| !model.contains(octet)).unwrap();
                        prop_assert_eq!(ranges.advance(&mut nxt), end - at);
                        model.retain(|&octet| octet >= end);
                    }
                    _ if len > 0 && ranges.insert(base + at, base + at + len) => {
                        model.extend(at..at + len);
                    }
                    _ => {}
                }
                for octet in 0..230 {
                    prop_assert_eq!(ranges.containing(base + octet).is_some(), model.contains(&octet));
                }
                prop_assert_eq!(ranges.octets() as usize, model.len());
            }
        }
    }
}
