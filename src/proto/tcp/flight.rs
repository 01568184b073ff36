//! When what is in flight left.

use crate::net::{Now, Seq, Span};

/// A point in time to tell ages by, in microseconds; it wraps after 71 minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp(u32);

impl Stamp {
    pub const fn of(now: Now) -> Self {
        Self(now.0 as u32)
    }

    pub const fn after(self, other: Self) -> bool {
        (other.0.wrapping_sub(self.0) as i32) < 0
    }

    /// The time passed since then.
    pub const fn age(self, now: Now) -> Span {
        Span((now.0 as u32).wrapping_sub(self.0) as u64)
    }
}

/// Runs that are told apart. What is sent beyond counts to the last, with its time, which is that of the last octet alone: the
/// others are older, their loss is noticed later, never too early.
const RUNS: usize = 3;

/// Octets that left at once, up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Run {
    end: Seq,
    at: Stamp,
}

/// What is in flight, in runs that left at once, the oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flight {
    runs: [Run; RUNS],
    len: u8,
    /// Those that did not leave at once after all, a bit each.
    mixed: u8,
}

impl Flight {
    fn runs(&self) -> &[Run] {
        self.runs.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Octets up to `end` left now.
    pub fn sent(&mut self, end: Seq, now: Now) {
        let run = Run {
            end,
            at: Stamp::of(now),
        };
        let last = usize::from(self.len).min(RUNS - 1);
        let same = self.runs().last().is_some_and(|last| last.at == run.at);
        if !same && usize::from(self.len) == RUNS {
            self.mixed |= 1 << last;
        }
        if same {
            self.runs[usize::from(self.len) - 1] = run;
        } else {
            self.runs[last] = run;
            self.len = last as u8 + 1;
        }
    }

    /// Octets up to `una` arrived.
    pub fn acknowledged(&mut self, una: Seq) {
        let gone = self.runs().iter().take_while(|run| !run.end.after(una));
        let gone = gone.count();
        if gone > 0 {
            self.runs.rotate_left(gone);
            self.len -= gone as u8;
            self.mixed >>= gone;
        }
    }

    pub const fn clear(&mut self) {
        (self.len, self.mixed) = (0, 0);
    }

    /// The latest moment known that an octet left at, or after: where it is of a mixed run, the end of the one before.
    pub fn left_since(&self, seq: Seq) -> Option<Stamp> {
        let runs = self.runs();
        let place = runs.iter().position(|run| run.end.after(seq))?;
        let exact = self.mixed & 1 << place == 0 || runs.get(place)?.end == seq + 1;
        let known = if exact { place } else { place.checked_sub(1)? };
        runs.get(known).map(|run| run.at)
    }

    /// When an octet left at the latest, and up to where others left with it.
    pub fn left(&self, seq: Seq) -> Option<(Stamp, Seq)> {
        let run = self.runs().iter().find(|run| run.end.after(seq))?;
        Some((run.at, run.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_octet_left_with_its_run() {
        let mut flight = Flight::default();
        for (end, now) in [(10, 1), (20, 2), (25, 2), (30, 3), (40, 4)] {
            flight.sent(Seq(end), Now(now));
        }
        let left = |flight: &Flight, at| flight.left(Seq(at)).map(|(at, end)| (at.0, end.0));
        assert_eq!(left(&flight, 9), Some((1, 10)));
        assert_eq!(left(&flight, 24), Some((2, 25)));
        assert_eq!(left(&flight, 26), Some((4, 40)), "older than it says");
        let since = |flight: &Flight, at| flight.left_since(Seq(at)).map(|at| at.0);
        assert_eq!((since(&flight, 9), since(&flight, 24)), (Some(1), Some(2)));
        assert_eq!((since(&flight, 26), since(&flight, 39)), (Some(2), Some(4)));
        flight.acknowledged(Seq(10));
        assert_eq!(left(&flight, 10), Some((2, 25)));
        flight.sent(Seq(50), Now(5));
        assert_eq!(left(&flight, 45), Some((5, 50)));
        assert_eq!(left(&flight, 50), None);
        flight.acknowledged(Seq(25));
        assert_eq!((since(&flight, 26), since(&flight, 39)), (None, Some(4)));
        assert_eq!(since(&flight, 41), Some(5));
    }
}
