//! The clock as a value: pure code is told the time, it never asks.

use std::{ops::Add, time::Duration};

/// A point on the monotonic clock, in microseconds since an arbitrary start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now(pub u64);

/// A length of time, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub u64);

impl Now {
    /// Time passed since `earlier`, zero if it lies ahead.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Span {
    pub const ZERO: Self = Self(0);

    pub const fn millis(ms: u64) -> Self {
        Self(ms * 1_000)
    }

    pub const fn secs(s: u64) -> Self {
        Self(s * 1_000_000)
    }

    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }
}

impl From<Duration> for Span {
    /// Whole microseconds, the most there are if it is longer.
    fn from(time: Duration) -> Self {
        Self(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }
}

impl Add<Span> for Now {
    type Output = Self;
    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}
