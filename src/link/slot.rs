//! Where frames lie, and what they consist of.

use std::ops::Range;

use crate::wire::checksum::Sum;

/// The shortest frame: an Ethernet header.
pub const FRAME_MIN: usize = 14;

/// The longest frame, QEMU's own limit: 64 KiB and a page.
pub const FRAME_MAX: usize = 69_632;

/// No piece of guest memory.
const NONE: u32 = u32::MAX;

/// A stretch of the current burst. It means nothing once the next burst is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    at: u32,
    len: u32,
    /// The piece of guest memory from whose start on `at` counts, if it does not lie in memory of ours.
    piece: u32,
}

impl Slot {
    /// A stretch of our own memory.
    pub const fn ours(at: usize, len: usize) -> Self {
        Self {
            at: at as u32,
            len: len as u32,
            piece: NONE,
        }
    }

    /// A stretch of guest memory, `at` octets behind the start of a piece.
    pub const fn guests(piece: usize, at: usize, len: usize) -> Self {
        Self {
            at: at as u32,
            len: len as u32,
            piece: piece as u32,
        }
    }

    /// The part of this stretch that a range of its octets names.
    #[must_use]
    pub fn part(self, range: &Range<usize>) -> Self {
        let start = (range.start as u32).min(self.len);
        let end = (range.end as u32).clamp(start, self.len);
        Self {
            at: self.at + start,
            len: end - start,
            piece: self.piece,
        }
    }

    /// Octets.
    pub const fn len(self) -> usize {
        self.len as usize
    }

    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Where it starts, in our memory or behind the start of its piece.
    pub const fn at(self) -> usize {
        self.at as usize
    }

    /// Its piece of guest memory, if it has one.
    pub const fn piece(self) -> Option<usize> {
        if self.piece == NONE {
            None
        } else {
            Some(self.piece as usize)
        }
    }
}

/// One frame's payload, when its headers are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Portion {
    /// Octets of the committed payload before these.
    pub at: usize,
    pub len: usize,
    pub sum: Sum,
    /// Whether no other follows.
    pub last: bool,
}

/// What has passed the link in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    pub frames: u64,
    /// Octets of the frames, their Ethernet headers included.
    pub octets: u64,
}

impl Passed {
    pub const fn count(&mut self, octets: usize) {
        self.frames += 1;
        self.octets += octets as u64;
    }

    pub const fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.octets += other.octets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stays_inside_its_slot() {
        let slot = Slot::ours(10, 5);
        assert_eq!(slot.part(&(1..3)), Slot::ours(11, 2));
        assert_eq!(slot.part(&(4..9)), Slot::ours(14, 1));
        assert!(slot.part(&(7..9)).is_empty());
        assert_eq!(Slot::guests(3, 10, 5).part(&(1..3)), Slot::guests(3, 11, 2));
    }
}
