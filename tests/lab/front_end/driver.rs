//! A guest's driver: how it behaves, and what it remembers of its rings.

use std::collections::VecDeque;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::words::{MQ, MRG_RXBUF, VERSION_1};

/// How the driver behaves.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    pub features: u64,
    /// Entries of each ring, and buffers posted for frames of how many octets.
    pub entries: u16,
    pub buffers: u16,
    pub buffer: u32,
    /// Descriptors each buffer is cut into.
    pub pieces: u32,
    /// Octets between the pieces of a frame to the device.
    pub gap: u64,
    /// Queue pairs, up to two.
    pub pairs: usize,
    /// Whether the guest's memory is made of huge pages: the front-end itself can only read it then.
    pub huge: bool,
}

impl Driver {
    pub const fn new(features: u64) -> Self {
        Self {
            features,
            entries: 256,
            buffers: 256,
            buffer: 1536,
            pieces: 1,
            gap: 0,
            pairs: 1,
            huge: false,
        }
    }

    /// The same with two queue pairs.
    pub const fn twice(features: u64) -> Self {
        let mut driver = Self::new(features | MQ);
        driver.pairs = 2;
        driver
    }

    pub fn has(&self, bit: u64) -> bool {
        self.features & bit != 0
    }

    /// Octets of the header before each frame.
    pub fn header(&self) -> usize {
        if self.has(VERSION_1) || self.has(MRG_RXBUF) {
            12
        } else {
            10
        }
    }
}

/// One ring, at its place in guest memory.
#[derive(Debug)]
pub struct Ring {
    pub at: u64,
    pub entries: u16,
    pub available: u16,
    pub used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub kicks: u64,
    /// Descriptors of the table that are free, and slots of the data area.
    pub free: VecDeque<u16>,
}

impl Ring {
    pub fn new(at: u64, entries: u16) -> Self {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        Self {
            at,
            entries,
            available: 0,
            used: 0,
            kick: event().expect("eventfd"),
            call: event().expect("eventfd"),
            kicks: 0,
            free: (0..entries).collect(),
        }
    }

    pub const fn descriptors(&self) -> u64 {
        self.at
    }

    pub const fn available_ring(&self) -> u64 {
        self.at + 0x8000
    }

    pub const fn used_ring(&self) -> u64 {
        self.at + 0xc000
    }
}

/// A frame as the driver got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub header: Vec<u8>,
    pub frame: Vec<u8>,
    pub buffers: u16,
    /// The pair it came by.
    pub pair: usize,
}
