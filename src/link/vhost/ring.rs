//! A split virtqueue, from the device's side (virtio 1.2, section 2.7). Nothing the driver writes is believed: every index
//! and every descriptor is read once into private memory and checked there.

use std::{
    fmt,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use crate::sys::guestmem::{DirtyLog, GuestMemory, Stretch};

/// The largest queue we serve: QEMU's largest.
pub const SIZE_MAX: u16 = 1024;

/// Octets of a descriptor.
const DESCRIPTOR: usize = 16;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where the indices stand in the available and the used ring, and where their entries begin.
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// Flag of the available ring: VIRTQ_AVAIL_F_NO_INTERRUPT; and of the used ring: VIRTQ_USED_F_NO_NOTIFY.
const QUIET: u16 = 1;

/// Why a ring cannot be served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// More buffers than the ring has entries.
    Index,
    /// A descriptor that does not exist.
    Number,
    /// A chain that is longer than its table.
    Loop,
    /// Memory that was not shared.
    Unmapped,
    /// A buffer of the other direction.
    Direction,
    /// An indirect table where none may be, or of an impossible length.
    Indirect,
    /// A buffer too small for any frame.
    Small,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Index => "available index out of range",
            Self::Number => "descriptor number out of range",
            Self::Loop => "descriptors form a loop",
            Self::Unmapped => "descriptor outside of shared memory",
            Self::Direction => "descriptor of the wrong direction",
            Self::Indirect => "bad indirect descriptor",
            Self::Small => "buffer too small",
        })
    }
}

/// What a ring is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Entries; a power of two.
    pub size: u16,
    /// Addresses of descriptor table, available and used ring, in the front-end's memory.
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// The used ring's guest physical address, if writes to it are logged.
    pub log: Option<u64>,
    /// The entry of the available ring that comes next.
    pub next: u16,
    pub event_index: bool,
    pub indirect: bool,
}

/// A chain of descriptors that the driver has made available.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// Its number.
    pub head: u16,
    /// How many pieces it was found to consist of.
    pub pieces: u32,
    /// Octets of all of them.
    pub len: u64,
}

/// A running ring.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    shape: Shape,
    descriptors: Stretch,
    available: Stretch,
    used: Stretch,
    /// The available index when it was last looked at.
    seen: u16,
    next: u16,
    next_used: u16,
    published: u16,
    /// The used index when the driver was last notified, if it ever was.
    notified: Option<u16>,
    quiet: bool,
    call: Option<OwnedFd>,
}

impl Ring {
    /// Starts a ring; `None` if it does not lie in shared memory.
    pub fn new(
        shape: Shape,
        memory: Arc<GuestMemory>,
        log: Option<Arc<DirtyLog>>,
        call: Option<OwnedFd>,
    ) -> Option<Self> {
        let size = u32::from(shape.size);
        let descriptors = memory.find_user(shape.descriptors, size * DESCRIPTOR as u32, 16)?;
        let available = memory.find_user(shape.available, 6 + 2 * size, 2)?;
        let used = memory.find_user(shape.used, 6 + 8 * size, 4)?;
        let next_used = memory.load(used, INDEX);
        let mut ring = Self {
            memory,
            log,
            shape,
            descriptors,
            available,
            used,
            seen: shape.next,
            next: shape.next,
            next_used,
            published: next_used,
            notified: None,
            quiet: true,
            call,
        };
        ring.ask_for_kicks();
        Some(ring)
    }

    pub const fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Entries.
    pub const fn size(&self) -> u16 {
        self.shape.size
    }

    /// The entry that comes next, and the driver's call descriptor: the ring ends here.
    pub fn stop(mut self) -> (u16, Option<OwnedFd>) {
        self.flush();
        (self.next, self.call)
    }

    /// Takes the next chain, and adds where it lies to `pieces`. `None` if the driver has made none available.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn take(
        &mut self,
        writable: bool,
        pieces: &mut Vec<Stretch>,
    ) -> Result<Option<Chain>, Broken> {
        if self.seen == self.next {
            self.seen = self.memory.load(self.available, INDEX);
            if self.seen == self.next {
                return Ok(None);
            }
            if self.seen.wrapping_sub(self.next) > self.shape.size {
                return Err(Broken::Index);
            }
        }
        let entry = usize::from(self.next & (self.shape.size - 1));
        let head = self.memory.load(self.available, ENTRIES + 2 * entry);
        let before = pieces.len();
        let len = self.walk(head, writable, pieces)?;
        self.next = self.next.wrapping_add(1);
        Ok(Some(Chain {
            head,
            pieces: (pieces.len() - before) as u32,
            len,
        }))
    }

    /// Puts back the last `count` chains that were taken; they must not have been returned.
    pub const fn put_back(&mut self, count: u16) {
        self.next = self.next.wrapping_sub(count);
        self.seen = self.next;
    }

    /// Reads a chain to its end; the octets of all its buffers.
    fn walk(&self, head: u16, writable: bool, pieces: &mut Vec<Stretch>) -> Result<u64, Broken> {
        let (mut table, mut entries) = (self.descriptors, self.shape.size);
        let (mut index, mut count, mut octets, mut indirect) = (head, 0, 0, false);
        loop {
            if index >= entries {
                return Err(Broken::Number);
            }
            count += 1;
            if count > entries {
                return Err(Broken::Loop);
            }
            let (addr, len, flags, next) = self.descriptor(table, index)?;
            if flags & INDIRECT != 0 {
                if indirect || !self.shape.indirect || flags & NEXT != 0 {
                    return Err(Broken::Indirect);
                }
                (table, entries) = self.indirect(addr, len)?;
                (index, count, indirect) = (0, 0, true);
                continue;
            }
            if (flags & WRITE != 0) != writable {
                return Err(Broken::Direction);
            }
            if !self.memory.find(addr, len, pieces) {
                return Err(Broken::Unmapped);
            }
            octets += u64::from(len);
            if flags & NEXT == 0 {
                return Ok(octets);
            }
            index = next;
        }
    }

    fn descriptor(&self, table: Stretch, index: u16) -> Result<(u64, u32, u16, u16), Broken> {
        let mut octets = [0; DESCRIPTOR];
        if !self
            .memory
            .read(table, DESCRIPTOR * usize::from(index), &mut octets)
        {
            return Err(Broken::Unmapped);
        }
        let value = u128::from_le_bytes(octets);
        Ok((
            value as u64,
            (value >> 64) as u32,
            (value >> 96) as u16,
            (value >> 112) as u16,
        ))
    }

    fn indirect(&self, addr: u64, len: u32) -> Result<(Stretch, u16), Broken> {
        let entries = len as usize / DESCRIPTOR;
        if !(len as usize).is_multiple_of(DESCRIPTOR)
            || !(1..=usize::from(SIZE_MAX)).contains(&entries)
        {
            return Err(Broken::Indirect);
        }
        let table = self.memory.find_one(addr, len).ok_or(Broken::Unmapped)?;
        Ok((table, entries as u16))
    }

    /// Returns a chain of which `len` octets were written. The driver sees it after [`Ring::publish`].
    pub fn give_back(&mut self, head: u16, len: u32) {
        let entry = usize::from(self.next_used & (self.shape.size - 1));
        let octets = (u64::from(head) | u64::from(len) << 32).to_le_bytes();
        // It was inside when the ring was found.
        let _ = self.memory.write(self.used, ENTRIES + 8 * entry, &octets);
        self.next_used = self.next_used.wrapping_add(1);
        self.log_used(ENTRIES + 8 * entry, 8);
    }

    /// Notes that a place was written.
    pub fn log(&self, place: Stretch) {
        if let (Some(log), Some(guest)) = (&self.log, self.memory.guest_address(place)) {
            log.mark(guest, place.len());
        }
    }

    /// Whether it is to be marked what is written.
    pub const fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    fn log_used(&self, at: usize, len: usize) {
        if let (Some(log), Some(base)) = (&self.log, self.shape.log) {
            log.mark(base.saturating_add(at as u64), len);
        }
    }

    /// Shows the driver all that was returned.
    fn publish(&mut self) {
        if self.published != self.next_used {
            self.memory.store(self.used, INDEX, self.next_used);
            self.published = self.next_used;
            self.log_used(INDEX, 2);
        }
    }

    /// Shows the driver all that was returned, and notifies it if it wants that.
    pub fn flush(&mut self) {
        if self.published == self.next_used && self.notified == Some(self.published) {
            return;
        }
        self.publish();
        if self.wants_call()
            && let Some(call) = &self.call
        {
            // A counter that is full has not been read: the driver will.
            let _ = nix::unistd::write(call, &1_u64.to_ne_bytes());
        }
    }

    fn wants_call(&mut self) -> bool {
        // The index must be written before the driver's wish is read: one of the two sides sees the other's (section 2.7.7).
        fence(Ordering::SeqCst);
        let new = self.published;
        let old = self.notified.replace(new);
        if !self.shape.event_index {
            return old != Some(new) && self.memory.load(self.available, 0) & QUIET == 0;
        }
        let at = ENTRIES + 2 * usize::from(self.shape.size);
        let event = self.memory.load(self.available, at);
        old.is_none_or(|old| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Asks the driver not to kick while we look anyway.
    pub fn ask_for_quiet(&mut self) {
        // With event indices the driver kicks only for the entry it was asked to.
        if !self.quiet && !self.shape.event_index {
            self.memory.store(self.used, 0, QUIET);
            self.log_used(0, 2);
        }
        self.quiet = true;
    }

    /// Asks the driver to kick when it makes the next chain available. `true` if there is one already.
    pub fn ask_for_kicks(&mut self) -> bool {
        if self.shape.event_index {
            let at = ENTRIES + 8 * usize::from(self.shape.size);
            self.memory.store(self.used, at, self.next);
            self.log_used(at, 2);
        } else if self.quiet {
            self.memory.store(self.used, 0, 0);
            self.log_used(0, 2);
        }
        self.quiet = false;
        fence(Ordering::SeqCst);
        self.has_more()
    }

    /// Chains that were available at the last look and were not taken.
    pub const fn waiting(&self) -> usize {
        self.seen.wrapping_sub(self.next) as usize
    }

    /// Whether the driver has made chains available that were not taken.
    pub fn has_more(&self) -> bool {
        self.memory.load(self.available, INDEX) != self.next
    }
}
