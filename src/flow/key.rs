//! What names a flow: the [`Key`] that frames are matched by, and the [`Id`] that events carry.

use std::{
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
};

use crate::net::{Endpoint, Protocol};

/// A flow as the guest sees it, so that translation never changes which frames belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub protocol: Protocol,
    /// The guest's end.
    pub guest: Endpoint,
    /// The other end, under the address the guest uses for it.
    pub remote: Endpoint,
}

impl Hash for Key {
    /// One write of fixed length: keyed hashers pay for every call, and this stands in the path of every frame.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut octets = [0; 40];
        octets[..16].copy_from_slice(&wide(self.guest.addr));
        octets[16..32].copy_from_slice(&wide(self.remote.addr));
        octets[32..34].copy_from_slice(&self.guest.port.to_ne_bytes());
        octets[34..36].copy_from_slice(&self.remote.port.to_ne_bytes());
        octets[36] = self.protocol as u8;
        state.write(&octets);
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.guest, self.remote)
    }
}

fn wide(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A place in a [`Table`](super::Table) with its age: an event that comes late for a flow that is gone finds nothing, even
/// if the place was given away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Below [`Id::SLOTS`].
    pub slot: u32,
    /// How often the slot was freed before, modulo 2^32.
    pub generation: u32,
}

impl Id {
    /// How many slots an identifier can name.
    pub const SLOTS: u32 = 1 << Self::SLOT_BITS;
    /// How many low bits of [`Id::to_bits`] are in use; the eight above are the caller's.
    pub const BITS: u32 = Self::SLOT_BITS + u32::BITS;

    const SLOT_BITS: u32 = 24;

    /// Packs the identifier into the low [`Id::BITS`] bits.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << Self::SLOT_BITS | (self.slot & (Self::SLOTS - 1)) as u64
    }

    /// Undoes [`Id::to_bits`]; the bits above [`Id::BITS`] are ignored.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            slot: bits as u32 & (Self::SLOTS - 1),
            generation: (bits >> Self::SLOT_BITS) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_packing_and_leaves_eight_bits() {
        for id in [
            Id {
                slot: 0,
                generation: 0,
            },
            Id {
                slot: Id::SLOTS - 1,
                generation: u32::MAX,
            },
            Id {
                slot: 77,
                generation: 0x8000_0001,
            },
        ] {
            assert!(id.to_bits() < 1 << 56);
            assert_eq!(Id::from_bits(id.to_bits() | 0xff << Id::BITS), id);
        }
    }

    #[test]
    fn a_key_is_printed_guest_first() {
        let key = Key {
            protocol: Protocol::Tcp,
            guest: Endpoint::new("10.0.2.15".parse().unwrap(), 40_000),
            remote: Endpoint::new("2001:db8::1".parse().unwrap(), 443),
        };
        assert_eq!(key.to_string(), "[10.0.2.15]:40000 -> [2001:db8::1]:443");
    }
}
