//! Frames from the guest: the transmit queue. Payloads stay where they are; what is to be read of a frame is copied out once.

use super::super::slot::{FRAME_MAX, FRAME_MIN, Slot};
use super::ring::{Broken, Ring};
use crate::{
    sys::{
        Gather,
        guestmem::{GuestMemory, Stretch},
    },
    wire::vnet::{self, Cut, Vnet},
};

/// Octets that are copied of each frame, if they suffice.
const HEAD: usize = 256;

/// Limits of a burst: frames, octets and pieces of memory.
const FRAMES: usize = 512;
const OCTETS: u64 = 1 << 20;
const PIECES: usize = 4096;

/// The most pieces of one frame, so that each fits a list for the kernel.
const FRAME_PIECES: u32 = 512;

/// Octets copied at a time.
const CHUNK: usize = 4096;

/// A frame of a burst.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    /// Its copied octets, in the burst's private memory.
    pub head: Slot,
    /// All of it, in guest memory.
    pub whole: Slot,
    /// The payload octets of each datagram it stands for, if it is more than one.
    pub segment: Option<u16>,
    /// Where checksumming starts and where behind that the checksum goes, if it was left to us.
    pub checksum: Option<(u16, u16)>,
}

/// What stands for a frame that is none, so that it is counted with those that are too short.
const NOTHING: Fetched = Fetched::plain(Slot::ours(0, 0));

impl Fetched {
    /// A frame that is all private, and stands for itself.
    pub const fn plain(whole: Slot) -> Self {
        Self {
            head: whole,
            whole,
            segment: None,
            checksum: None,
        }
    }
}

/// What a look into the queue brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// There may be frames, and more to fetch.
    More,
    /// There may be frames; a kick will tell of more, if the driver was asked for it.
    Last,
}

/// A running transmit queue.
#[derive(Debug)]
pub struct Intake {
    ring: Ring,
    pieces: Vec<Stretch>,
    /// Chains of the current burst, to be given back when it is done.
    heads: Vec<u16>,
    /// Octets of the header before each frame.
    header: usize,
    discards: bool,
}

impl Intake {
    /// Of a queue that is disabled, where its frames are to go nowhere.
    pub fn new(ring: Ring, header: usize, discards: bool) -> Self {
        Self {
            ring,
            pieces: Vec::with_capacity(2 * PIECES),
            heads: Vec::with_capacity(FRAMES),
            header,
            discards,
        }
    }

    /// Whether its frames are to go nowhere.
    pub const fn discards(&self) -> bool {
        self.discards
    }

    /// Ends it, and gives its ring back.
    pub fn into_ring(mut self) -> Ring {
        self.release();
        self.ring
    }

    /// Whether its memory has vanished.
    pub fn has_vanished(&self) -> bool {
        self.ring.memory().has_vanished()
    }

    /// Whether there are frames that were not fetched.
    pub fn has_more(&self) -> bool {
        self.ring.has_more()
    }

    /// Asks the driver to kick for the next frame. `true` if there is one already.
    pub fn ask_for_kicks(&mut self) -> bool {
        self.ring.ask_for_kicks()
    }

    /// Fetches the frames that are available, up to a burst's limits; what is copied of them goes to `memory`. If `quiet`, the
    /// driver is not asked to kick for more.
    ///
    /// # Errors
    /// What the driver did wrong; frames before are lost with it.
    pub fn fetch(
        &mut self,
        memory: &mut [u8],
        frames: &mut Vec<Fetched>,
        quiet: bool,
    ) -> Result<Look, Broken> {
        self.release();
        self.pieces.clear();
        self.ring.ask_for_quiet();
        let (mut used, mut octets) = (0, 0);
        while self.heads.len() < FRAMES
            && octets < OCTETS
            && self.pieces.len() < PIECES
            && memory.len() - used >= FRAME_MAX
        {
            let first = self.pieces.len();
            let Some(chain) = self.ring.take(false, &mut self.pieces)? else {
                if !quiet && self.ring.ask_for_kicks() {
                    continue;
                }
                return Ok(Look::Last);
            };
            self.heads.push(chain.head);
            octets += chain.len;
            let len = chain.len.saturating_sub(self.header as u64);
            let free = memory.get_mut(used..).unwrap_or_default();
            let frame = ((FRAME_MIN as u64..=FRAME_MAX as u64).contains(&len)
                && chain.pieces <= FRAME_PIECES)
                .then(|| self.open(first, len as usize, used, free));
            let frame = frame.flatten().unwrap_or(NOTHING);
            used += frame.head.len().next_multiple_of(64);
            frames.push(frame);
        }
        Ok(Look::More)
    }

    /// Copies what is to be read of the frame in the pieces from `first` on to `out`, which starts at `at` of the burst's
    /// memory. `None` if it is to be cut in a manner nobody knows.
    fn open(&self, first: usize, len: usize, at: usize, out: &mut [u8]) -> Option<Fetched> {
        let mut header = [0; vnet::LEN_LEGACY];
        self.read(Slot::guests(first, 0, header.len()), &mut header);
        let header = Vnet::read(&header);
        let segment = match header.cut {
            Cut::Whole | Cut::Tcp4(_) | Cut::Tcp6(_) => None,
            Cut::Udp(size) => Some(size),
            Cut::Unknown => return None,
        };
        let whole = Slot::guests(first, self.header, len);
        let head = len.min(HEAD);
        self.read(whole, out.get_mut(..head)?);
        let head = if vnet::is_carried(out.get(..head)?) {
            head
        } else {
            self.read(whole, out.get_mut(..len)?);
            if let Some(place) = header.checksum {
                vnet::complete_checksum(out.get_mut(..len)?, place);
            }
            len
        };
        Some(Fetched {
            head: Slot::ours(at, head),
            whole,
            segment,
            checksum: header.checksum,
        })
    }

    /// Returns the chains of the current burst to the driver; its slots become void.
    pub fn release(&mut self) {
        for head in self.heads.drain(..) {
            self.ring.give_back(head, 0);
        }
        self.ring.flush();
    }

    /// Puts the last `count` chains of the current burst back, to be fetched again.
    pub fn put_back(&mut self, count: usize) {
        let count = count.min(self.heads.len());
        self.heads.truncate(self.heads.len() - count);
        self.ring.put_back(count as u16);
    }

    /// Lists a stretch for the kernel to read; `false`, with nothing listed, if the list has no room for all of it.
    #[must_use]
    pub fn gather<'a>(&'a self, slot: Slot, gather: &mut Gather<'_, 'a>) -> bool {
        let memory: &GuestMemory = self.ring.memory();
        gather.has_room(self.places(slot).count())
            && self
                .places(slot)
                .all(|place| gather.push_guest(memory, place))
    }

    /// Copies a stretch out, piece by piece.
    pub fn copy(&self, slot: Slot, mut take: impl FnMut(&[u8])) {
        let mut chunk = [0; CHUNK];
        for place in self.places(slot) {
            for start in (0..place.len()).step_by(CHUNK) {
                let part = place.part(start..start + CHUNK);
                let out = &mut chunk[..part.len()];
                if self.ring.memory().read(part, 0, out) {
                    take(out);
                }
            }
        }
    }

    fn read(&self, slot: Slot, out: &mut [u8]) {
        let mut at = 0;
        for place in self.places(slot) {
            let end = out.len().min(at + place.len());
            if let Some(out) = out.get_mut(at..end) {
                let _ = self.ring.memory().read(place, 0, out);
            }
            at = end;
        }
    }

    fn places(&self, slot: Slot) -> impl Iterator<Item = Stretch> {
        let pieces = slot.piece().and_then(|first| self.pieces.get(first..));
        stretch(pieces.unwrap_or_default(), slot.at(), slot.len())
    }
}

/// The places of `len` octets behind the first `skip` of these pieces.
pub fn stretch(pieces: &[Stretch], skip: usize, len: usize) -> impl Iterator<Item = Stretch> {
    let (mut skip, mut left) = (skip, len);
    pieces
        .iter()
        .map_while(move |piece| {
            if left == 0 {
                return None;
            }
            let part = piece.part(skip..skip.saturating_add(left));
            skip -= skip.min(piece.len());
            left -= part.len();
            Some(part)
        })
        .filter(|part| !part.is_empty())
}
