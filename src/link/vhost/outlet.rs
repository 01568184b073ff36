//! Frames to the guest: the receive queue. The kernel writes payloads straight into the guest's buffers; headers are copied in.

use std::ops::Range;

use super::super::slot::Portion;
use super::{
    intake::stretch,
    ring::{Broken, Chain, Ring},
};
use crate::{
    sys::{
        Scatter,
        guestmem::{GuestMemory, Stretch},
    },
    wire::{
        build::{ETHERNET_LEN, IPV6_LEN, MIN_FRAME, PACKET_MAX, TCP_LEN},
        checksum::Sum,
        headers::HEADERS_MAX,
        vnet::{self, Cut, Vnet},
    },
};

/// Frames and pieces of memory of one room: what one list for the kernel takes.
const FRAMES: usize = 256;
const PIECES: usize = 700;

/// Chains given back that make it worth moving those behind them to the front.
const COMPACT: usize = 256;

/// Octets that are worth a read of a stream of which there is more.
const WORTH: usize = 8192;

/// Octets summed up at a time.
const CHUNK: usize = 4096;

/// What the driver can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "bits of a feature mask")]
pub struct Abilities {
    /// Octets of the header before each frame.
    pub header: usize,
    /// MRG_RXBUF: a frame may span several chains.
    pub mergeable: bool,
    /// GUEST_CSUM: checksums may be left to it.
    pub checksum: bool,
    /// GUEST_TSO4, GUEST_TSO6: frames may hold many segments.
    pub segments4: bool,
    pub segments6: bool,
    /// GUEST_USO4 and GUEST_USO6: and many datagrams.
    pub datagrams: bool,
}

/// A frame of the room that was lent.
#[derive(Debug, Clone, Copy)]
struct Planned {
    /// Its first chain, and how many it may need.
    first: usize,
    chains: usize,
    /// Octets of payload it has room for.
    room: usize,
}

/// A chain that waits to be filled.
#[derive(Debug, Clone, Copy)]
struct Staged {
    head: u16,
    /// Its first piece, of how many, with how many octets.
    first: usize,
    pieces: usize,
    len: usize,
}

/// What became of a frame that was to be copied to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    Whole,
    /// No buffers of this driver will ever hold it.
    Never,
    /// Buffers are missing.
    Later,
}

/// A running receive queue.
#[derive(Debug)]
pub struct Outlet {
    ring: Ring,
    abilities: Abilities,
    staged: Vec<Staged>,
    pieces: Vec<Stretch>,
    /// Chains of `staged` that are given back already.
    taken: usize,
    plan: Vec<Planned>,
    /// Buffers were missing when room was last asked for.
    short: bool,
    /// The most buffers the driver ever had waiting.
    most: usize,
    broken: Option<Broken>,
}

impl Outlet {
    pub fn new(ring: Ring, abilities: Abilities) -> Self {
        let size = usize::from(ring.size());
        Self {
            ring,
            abilities,
            staged: Vec::with_capacity(size + COMPACT),
            pieces: Vec::with_capacity(8192),
            taken: 0,
            plan: Vec::with_capacity(FRAMES),
            short: false,
            most: 0,
            broken: None,
        }
    }

    /// Ends it, and gives its ring back.
    pub fn into_ring(mut self) -> Ring {
        let unused = self.staged.len() - self.taken;
        self.ring.put_back(unused as u16);
        self.ring
    }

    /// Whether checksums may be left to the guest.
    pub const fn leaves_checksums(&self) -> bool {
        self.abilities.checksum
    }

    /// Whether datagrams of one size may go to the guest as one.
    pub const fn leaves_datagrams(&self) -> bool {
        self.abilities.datagrams
    }

    /// Whether its memory has vanished.
    pub fn has_vanished(&self) -> bool {
        self.ring.memory().has_vanished()
    }

    /// What the driver did wrong, if it did.
    pub const fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// Whether buffers were missing, and still are.
    pub fn is_short(&mut self) -> bool {
        self.short &= self.broken.is_some() || !self.ring.has_more();
        self.short
    }

    /// Shows the driver what it was given.
    pub fn flush(&mut self) {
        self.ring.flush();
    }

    /// Lends room for up to `want` octets of a stream, in frames with headers of `headers` octets and segments of `cut` octets.
    /// How many there is room for; `None` if too few to be worth it.
    pub fn lend(&mut self, want: usize, cut: usize, headers: usize) -> Option<usize> {
        self.compact();
        self.plan.clear();
        self.short = false;
        let overhead = self.abilities.header + headers;
        let most = self.frame_payload(cut, headers);
        let (mut first, mut room, mut pieces) = (self.taken, 0, 0);
        while room < want && self.plan.len() < FRAMES && pieces < PIECES {
            let payload = most.min(want - room);
            let (chains, octets) = self.gather_chains(first, overhead + payload, PIECES - pieces);
            let Some(fits) = octets.checked_sub(overhead).filter(|&fits| fits > 0) else {
                if self.plan.is_empty() && !self.short {
                    // No more buffers would help.
                    self.broken = Some(Broken::Small);
                }
                break;
            };
            let scarce = fits < payload && self.abilities.mergeable;
            if scarce && fits < cut && !self.plan.is_empty() {
                break;
            }
            let here = if fits < payload && fits > cut {
                fits - fits % cut
            } else {
                fits.min(payload)
            };
            self.plan.push(Planned {
                first,
                chains,
                room: here,
            });
            pieces += self.pieces_of(first..first + chains);
            first += chains;
            room += here;
            if scarce {
                break;
            }
        }
        if room > 0 && self.is_all() {
            // No more will come, and nothing waits for them.
            self.short = false;
        }
        let enough = !self.short || room >= want.min(cut).min(WORTH);
        (room > 0 && enough).then_some(room)
    }

    /// Octets of payload that one frame may hold.
    const fn frame_payload(&self, cut: usize, headers: usize) -> usize {
        // Headers with an IPv6 header are longer than any other.
        let segments = if headers >= ETHERNET_LEN + IPV6_LEN + TCP_LEN {
            self.abilities.segments6
        } else {
            self.abilities.segments4
        };
        let most = PACKET_MAX + ETHERNET_LEN - headers;
        if segments && cut < most {
            most - most % cut
        } else {
            cut
        }
    }

    /// Lists the room that was lent for the kernel to write.
    #[must_use]
    pub fn scatter<'a>(&'a self, headers: usize, scatter: &mut Scatter<'_, 'a>) -> bool {
        let memory: &GuestMemory = self.ring.memory();
        let overhead = self.abilities.header + headers;
        self.plan.iter().all(|frame| {
            self.places(frame.first, frame.chains, overhead, frame.room)
                .all(|place| scatter.push_guest(memory, place))
        })
    }

    /// Makes frames of the first `len` octets of the room that was lent; `stamp` writes the headers of each.
    pub fn commit(
        &mut self,
        len: usize,
        cut: usize,
        headers: usize,
        mut stamp: impl FnMut(Portion, &mut [u8; HEADERS_MAX]) -> usize,
        mut seen: impl FnMut(&Self, usize, usize, Vnet),
    ) {
        let mut at = 0;
        for index in 0..self.plan.len() {
            let Some(&frame) = self.plan.get(index).filter(|_| at < len) else {
                break;
            };
            let payload = frame.room.min(len - at);
            let mut octets = [0; vnet::LEN + HEADERS_MAX];
            let (vnet_header, space) = octets.split_at_mut(self.abilities.header);
            let Some(space) = space.first_chunk_mut::<HEADERS_MAX>() else {
                break;
            };
            let portion = Portion {
                at,
                len: payload,
                sum: self.sum(&frame, headers, payload),
                last: at + payload >= len,
            };
            let stamped = stamp(portion, space);
            debug_assert_eq!(stamped, headers);
            let mut header = Vnet {
                headers: headers as u16,
                ..Vnet::default()
            };
            if self.abilities.checksum
                && let Some(stamped) = space.get_mut(..headers)
            {
                header.checksum = vnet::leave_checksum(stamped, payload);
            }
            if payload > cut {
                header.cut = if headers >= ETHERNET_LEN + IPV6_LEN + TCP_LEN {
                    Cut::Tcp6(cut as u16)
                } else {
                    Cut::Tcp4(cut as u16)
                };
            }
            let total = self.abilities.header + headers + payload;
            let chains = self.chains_for(frame.first, total);
            header.buffers = chains as u16;
            let written = header.write();
            vnet_header.copy_from_slice(&written[..vnet_header.len()]);
            let head = self.abilities.header + headers;
            self.write(
                frame.first,
                chains,
                0,
                octets.get(..head).unwrap_or_default(),
            );
            let total = self.pad(frame.first, chains, total);
            seen(self, frame.first, total, header);
            self.give(chains, total);
            at += payload;
        }
    }

    /// Makes a frame of octets of ours, of which the guest is left to do what `left` says.
    pub fn copy(&mut self, parts: &[&[u8]], left: Vnet) -> Copied {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let total = self.abilities.header + len;
        self.compact();
        self.short = false;
        let first = self.taken;
        let (chains, octets) = self.gather_chains(first, total, usize::MAX);
        if octets < total {
            if chains > 0 && (!self.abilities.mergeable || self.is_all()) {
                self.short = false;
                return Copied::Never;
            }
            return Copied::Later;
        }
        let header = Vnet {
            buffers: chains as u16,
            ..left
        };
        let mut at = self.abilities.header;
        self.write(first, chains, 0, &header.write()[..at]);
        for part in parts {
            self.write(first, chains, at, part);
            at += part.len();
        }
        self.give(chains, total);
        Copied::Whole
    }

    /// Octets of a frame that has so many with its virtio-net header.
    pub const fn octets(&self, total: usize) -> usize {
        total.saturating_sub(self.abilities.header)
    }

    /// Copies out `len` octets of a frame that was written, from its Ethernet header on.
    pub fn read_back(&self, first: usize, total: usize, out: &mut Vec<u8>) {
        let chains = self.chains_for(first, total);
        for place in self.places(first, chains, self.abilities.header, total) {
            let start = out.len();
            let len = place.len().min(total - self.abilities.header - start);
            out.resize(start + len, 0);
            let _ = self.ring.memory().read(place, 0, &mut out[start..]);
        }
    }

    /// Stages chains from the `first` on until they hold `want` octets, one chain if frames may not span more. How many,
    /// and how many octets they hold.
    fn gather_chains(&mut self, first: usize, want: usize, pieces: usize) -> (usize, usize) {
        let (mut chains, mut octets, mut left) = (0, 0, pieces);
        while octets < want && (chains == 0 || self.abilities.mergeable) {
            if first + chains >= self.staged.len() && !self.stage() {
                break;
            }
            let Some(staged) = self.staged.get(first + chains) else {
                break;
            };
            let Some(rest) = left.checked_sub(staged.pieces) else {
                break;
            };
            left = rest;
            octets += staged.len;
            chains += 1;
        }
        (chains, octets)
    }

    /// Forgets chains that were given back, before any is counted from the start.
    fn compact(&mut self) {
        if self.taken == self.staged.len() {
            self.staged.clear();
            self.pieces.clear();
            self.taken = 0;
        } else if self.taken >= COMPACT {
            let gone = self.staged.get(self.taken).map_or(0, |next| next.first);
            self.staged.drain(..self.taken);
            self.pieces.drain(..gone);
            for staged in &mut self.staged {
                staged.first -= gone;
            }
            self.taken = 0;
        }
    }

    /// Takes one more chain of the ring's.
    fn stage(&mut self) -> bool {
        if self.broken.is_some() {
            self.short = true;
            return false;
        }
        let first = self.pieces.len();
        let taken = self.ring.take(true, &mut self.pieces);
        match taken {
            Ok(Some(Chain { head, pieces, len })) => {
                if len <= self.abilities.header as u64 || pieces as usize > PIECES {
                    self.broken = Some(Broken::Small);
                    return false;
                }
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 24);
                self.staged.push(Staged {
                    head,
                    first,
                    pieces: pieces as usize,
                    len,
                });
                let waiting = self.staged.len() - self.taken + self.ring.waiting();
                self.most = self.most.max(waiting);
                true
            }
            Ok(None) => {
                if self.ring.ask_for_kicks() {
                    return self.stage();
                }
                self.short = true;
                false
            }
            Err(broken) => {
                self.broken = Some(broken);
                self.short = true;
                false
            }
        }
    }

    /// Whether the driver has made about as many buffers available as it ever will.
    const fn is_all(&self) -> bool {
        2 * (self.staged.len() - self.taken) >= self.most
    }

    /// How many chains from the `first` on it takes to hold `octets`.
    fn chains_for(&self, first: usize, octets: usize) -> usize {
        let (mut chains, mut held) = (0, 0);
        for staged in self.staged.get(first..).unwrap_or_default() {
            if held >= octets {
                break;
            }
            held += staged.len;
            chains += 1;
        }
        chains
    }

    fn pieces_of(&self, chains: Range<usize>) -> usize {
        let staged = self.staged.get(chains).unwrap_or_default();
        staged.iter().map(|staged| staged.pieces).sum()
    }

    /// The places of `len` octets behind the first `skip` of these chains.
    fn places(
        &self,
        first: usize,
        chains: usize,
        skip: usize,
        len: usize,
    ) -> impl Iterator<Item = Stretch> {
        let staged = self.staged.get(first..first + chains).unwrap_or_default();
        let start = staged.first().map_or(0, |staged| staged.first);
        let count = staged.iter().map(|staged| staged.pieces).sum::<usize>();
        let pieces = self.pieces.get(start..start + count).unwrap_or_default();
        stretch(pieces, skip, len)
    }

    fn write(&self, first: usize, chains: usize, at: usize, octets: &[u8]) {
        let mut rest = octets;
        for place in self.places(first, chains, at, octets.len()) {
            let (now, later) = rest.split_at(place.len().min(rest.len()));
            let _ = self.ring.memory().write(place, 0, now);
            rest = later;
        }
    }

    /// Fills a short frame up, if its buffers have room. Returns its octets.
    fn pad(&self, first: usize, chains: usize, total: usize) -> usize {
        let least = self.abilities.header + MIN_FRAME;
        let room: usize = self.places(first, chains, 0, least).map(Stretch::len).sum();
        if total < least && room >= least {
            self.write(first, chains, total, &[0; MIN_FRAME][..least - total]);
            return least;
        }
        total
    }

    /// The sum of a frame's payload, unless the checksum is left to the guest.
    fn sum(&self, frame: &Planned, headers: usize, payload: usize) -> Sum {
        let mut sum = Sum::new();
        if self.abilities.checksum {
            return sum;
        }
        let skip = self.abilities.header + headers;
        let (mut chunk, mut filled) = ([0; CHUNK], 0);
        for place in self.places(frame.first, frame.chains, skip, payload) {
            let mut at = 0;
            while at < place.len() {
                let len = (place.len() - at).min(CHUNK - filled);
                let _ = self
                    .ring
                    .memory()
                    .read(place, at, &mut chunk[filled..filled + len]);
                (at, filled) = (at + len, filled + len);
                if filled == CHUNK {
                    sum = sum.plus(Sum::new().bytes(&chunk));
                    filled = 0;
                }
            }
        }
        sum.plus(Sum::new().bytes(&chunk[..filled]))
    }

    /// Gives the next `chains` chains back, holding `total` octets.
    fn give(&mut self, chains: usize, total: usize) {
        let mut left = total;
        for chain in self.taken..self.taken + chains {
            let Some(&staged) = self.staged.get(chain) else {
                break;
            };
            let len = staged.len.min(left);
            left -= len;
            if self.ring.is_logged() {
                for place in self.places(chain, 1, 0, len) {
                    self.ring.log(place);
                }
            }
            self.ring.give_back(staged.head, len as u32);
        }
        self.taken += chains;
    }
}
