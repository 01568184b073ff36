//! What an input says, and the connections as the guest keeps them.

use crate::guest::{self, Pair, Tcp};

/// How much of the input there is: what is done, octet by octet.
pub(super) struct Script<'a>(pub &'a [u8]);

impl Script<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Small numbers often, large ones at times.
    pub fn number(&mut self) -> u32 {
        let octet = self.byte();
        match octet {
            0..=0x7f => octet.into(),
            0x80..=0xbf => (u32::from(octet & 0x3f) << 8) | u32::from(self.byte()),
            _ => u32::from(octet & 0x3f) << 13 | u32::from(self.byte()) << 5,
        }
    }
}

/// A connection as the guest keeps it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conn {
    pub v6: bool,
    /// Of the guest and of the remote end.
    pub ports: (u16, u16),
    pub remote: u8,
    pub inbound: bool,
    /// Our first sequence number, the next octet of our stream, and how far it ever went.
    pub iss: u32,
    pub next: u32,
    pub most: u32,
    /// The other side's first sequence number, and the next we expect.
    pub irs: Option<u32>,
    pub expected: u32,
}

impl Conn {
    pub fn new(v6: bool, ports: (u16, u16), remote: u8, inbound: bool) -> Self {
        Self {
            v6,
            ports,
            remote,
            inbound,
            iss: 0x1000_0000,
            next: 0,
            most: 0,
            irs: None,
            expected: 0,
        }
    }

    pub fn pair(&self) -> Pair {
        guest::pair(self.v6, self.remote, self.inbound)
    }

    /// The next segment, without anything.
    pub fn segment(&self) -> Tcp<'static> {
        Tcp {
            ports: self.ports,
            seq: self.iss.wrapping_add(1).wrapping_add(self.next),
            ack: self.expected,
            flags: 0x10,
            window: 0xffff,
            options: &[],
            payload: &[],
        }
    }
}
