//! What names a flow: its endpoints as the guest sees them, and a short handle.

use std::fmt;

use crate::net::{Endpoint, Protocol};

/// The endpoints of a flow as they stand in the guest's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub protocol: Protocol,
    pub guest: Endpoint,
    /// Whom the guest talks to, before any translation.
    pub remote: Endpoint,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.guest, self.remote)
    }
}

/// A flow's place in the table and the age of that place, so that a late event for a flow that is gone finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id {
    /// Below 2^24.
    pub slot: u32,
    pub generation: u32,
}

/// Bits of a slot in [`Id::to_bits`].
const SLOT_BITS: u32 = 24;

impl Id {
    /// Packs the handle into the lower 56 bits.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << SLOT_BITS | self.slot as u64
    }

    /// Unpacks what [`Id::to_bits`] packed; higher bits are ignored.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            slot: bits as u32 & ((1 << SLOT_BITS) - 1),
            generation: (bits >> SLOT_BITS) as u32,
        }
    }
}
