//! Sets of ports, and maps from a host's port to a guest's.

use std::fmt;

const WORDS: usize = 65_536 / 64;

/// A set of ports, as a bitmap of 8 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64; WORDS]>);

impl PortSet {
    pub fn new() -> Self {
        Self(Box::new([0; WORDS]))
    }

    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port) / 64] |= 1 << (port % 64);
    }

    pub fn remove(&mut self, port: u16) {
        self.0[usize::from(port) / 64] &= !(1 << (port % 64));
    }

    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port) / 64] & (1 << (port % 64)) != 0
    }

    /// The ports of the set, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(|&port| self.contains(port))
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Which guest port stands behind a host's port: the port plus a distance that wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortMap {
    delta: u16,
}

impl PortMap {
    /// The map that sends `host` to `guest`, and its neighbours likewise.
    pub const fn new(host: u16, guest: u16) -> Self {
        Self {
            delta: guest.wrapping_sub(host),
        }
    }

    pub const fn guest(self, host: u16) -> u16 {
        host.wrapping_add(self.delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_the_first_and_the_last_port() {
        let mut set = PortSet::new();
        assert!(set.is_empty());
        for port in [0, 63, 64, 65_535] {
            set.insert(port);
        }
        set.remove(63);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 64, 65_535]);
        assert_eq!(set.len(), 3);
    }

    #[test]
    fn a_map_shifts_both_ways() {
        assert_eq!(PortMap::new(2222, 22).guest(2223), 23);
        assert_eq!(PortMap::new(22, 2222).guest(22), 2222);
    }
}
