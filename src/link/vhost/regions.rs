//! Regions of the guest's memory, as the messages of a front-end have them.

use std::os::fd::{AsFd, OwnedFd};

use super::message::{Message, Refused};
use crate::sys::guestmem::{GuestMemory, RegionInfo};

/// The most memory regions.
pub const MOST: usize = 32;

/// Reads a region: guest physical address, length, the front-end's address, where it lies in its file.
pub const fn info([guest, len, user, offset]: [u64; 4]) -> RegionInfo {
    RegionInfo {
        guest,
        user,
        len,
        offset,
    }
}

/// The same memory with one more region.
pub fn add(memory: &GuestMemory, region: [u64; 4], file: &OwnedFd) -> Result<GuestMemory, Refused> {
    memory
        .with(info(region), file.as_fd())
        .map_err(|error| Refused::Memory(error.kind()))
}

/// Maps the regions of a table.
pub fn table(message: &Message) -> Result<GuestMemory, Refused> {
    let wrong = || Refused::Payload(message.request);
    let words: Vec<u64> = message.all_words()?.collect();
    let (&first, regions) = words.split_first().ok_or_else(wrong)?;
    let [a, b, c, d, ..] = first.to_ne_bytes();
    let count = u32::from_ne_bytes([a, b, c, d]) as usize;
    let (regions, rest) = regions.as_chunks::<4>();
    // A front-end may send a table of the largest size and fill only a part.
    if count > MOST || count > regions.len() || !rest.is_empty() {
        return Err(wrong());
    }
    if message.descriptors.len() != count {
        return Err(wrong());
    }
    regions
        .iter()
        .zip(&message.descriptors)
        .try_fold(GuestMemory::default(), |memory, (region, file)| {
            add(&memory, *region, file)
        })
}
