//! Frames that wait to be sent: prefix and headers in one place, payload in another.

use super::inbox::PREFIX;
use crate::{
    sys::Gather,
    wire::{
        build::MIN_FRAME,
        headers::HEADERS_MAX,
        vnet::{self, Vnet},
    },
};

/// Memory of one frame's prefix and headers, and of a payload that fits behind them.
pub const HEAD: usize = 128;

/// A frame that waits.
#[derive(Debug, Clone, Copy)]
pub struct Queued {
    /// Octets in its head: prefix, headers, a short payload, padding.
    pub head: usize,
    /// Payload in the arena.
    pub at: usize,
    pub len: usize,
    /// What is left to the guest of it.
    pub left: Vnet,
}

impl Queued {
    /// Completes the checksum that was left to a driver, for another that does not.
    pub fn complete(&mut self, headers: &mut [u8], payload: &[u8]) {
        if let Some(place) = self.left.checksum.take() {
            vnet::complete_checksum_before(headers, payload, place);
        }
    }
}

/// Writes prefix and headers of one frame; a payload that fits joins them. Returns the octets used, and whether the payload
/// stays in the arena.
pub fn fill(
    head: &mut [u8; HEAD],
    payload: &[u8],
    stamp: impl FnOnce(&mut [u8; HEADERS_MAX]) -> usize,
) -> (usize, bool) {
    let (prefix, rest) = head.split_at_mut(PREFIX);
    let mut headers = 0;
    if let Some(space) = rest.first_chunk_mut() {
        headers = stamp(space);
    }
    let inside = headers + payload.len() <= rest.len();
    let mut used = headers;
    if inside {
        rest[headers..headers + payload.len()].copy_from_slice(payload);
        used += payload.len();
        if used < MIN_FRAME {
            rest[used..MIN_FRAME].fill(0);
            used = MIN_FRAME;
        }
    }
    let frame = if inside {
        used
    } else {
        headers + payload.len()
    };
    prefix.copy_from_slice(&(frame as u32).to_be_bytes());
    (PREFIX + used, !inside)
}

/// Lists the frames from `first` on, less the octets of it that were sent, as far as the list takes them.
pub fn list<'a>(
    gather: &mut Gather<'_, 'a>,
    heads: &'a [[u8; HEAD]],
    arena: &'a [u8],
    frames: &[Queued],
    first: usize,
    sent: usize,
) {
    let mut skip = sent;
    for (frame, head) in frames.iter().zip(heads).skip(first) {
        let parts = [
            &head[..frame.head],
            arena
                .get(frame.at..frame.at + frame.len)
                .unwrap_or_default(),
        ];
        for part in parts {
            let (gone, part) = part.split_at(skip.min(part.len()));
            skip -= gone.len();
            if !part.is_empty() && !gather.push(part) {
                return;
            }
        }
    }
}
