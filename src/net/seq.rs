//! TCP sequence numbers, which wrap (RFC 9293, section 3.4).

use std::{
    fmt,
    ops::{Add, AddAssign, Sub},
};

/// A point in a stream's sequence space, modulo 2^32. Comparison is only meaningful within 2^31 of each other, so there is
/// no `Ord`: use the named relations.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether `self` comes before `other`.
    pub const fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether `self` comes after `other`.
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// The later of the two.
    pub const fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of the two.
    pub const fn min(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }

    /// Octets from `earlier` up to `self`; zero if `self` is not after it.
    pub const fn since(self, earlier: Self) -> u32 {
        if earlier.before(self) {
            self.0.wrapping_sub(earlier.0)
        } else {
            0
        }
    }
}

impl Add<u32> for Seq {
    type Output = Self;
    fn add(self, octets: u32) -> Self {
        Self(self.0.wrapping_add(octets))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;
    fn sub(self, octets: u32) -> Self {
        Self(self.0.wrapping_sub(octets))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, octets: u32) {
        *self = *self + octets;
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let late = Seq(u32::MAX - 1);
        let wrapped = late + 3;
        assert_eq!(wrapped, Seq(1));
        assert!(late.before(wrapped) && wrapped.after(late) && !late.after(wrapped));
        assert_eq!(wrapped.since(late), 3);
        assert_eq!(late.since(wrapped), 0);
        assert_eq!(late.max(wrapped), wrapped);
        assert_eq!(late.min(wrapped), late);
    }
}
