//! What is said of a frame that waits: in a ring to another relay, or for its turn.

use crate::{flow::ClaimSlot, link::Frame, wire::frame::Body};

/// What stands for no slot.
const NO_SLOT: u32 = u32::MAX;

/// What is known of a frame beyond its octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The slot it counts on.
    pub slot: Option<ClaimSlot>,
    /// It was reassembled, so it may be fragmented again: it does not show that it came in parts.
    pub in_parts: bool,
    pub segment: Option<u16>,
    pub checksum: Option<(u16, u16)>,
}

impl Label {
    pub const fn new(slot: Option<ClaimSlot>, body: &Body, frame: Frame<'_>) -> Self {
        Self {
            slot,
            in_parts: may_be_cut(body),
            segment: frame.segment,
            checksum: frame.checksum,
        }
    }

    /// In two words.
    pub fn pack(self) -> [u64; 2] {
        let slot = self.slot.map_or(NO_SLOT, ClaimSlot::to_bits);
        let first = u64::from(slot) | u64::from(self.in_parts) << 32;
        let (start, offset) = self.checksum.unwrap_or_default();
        let second = u64::from(self.segment.unwrap_or_default())
            | u64::from(self.segment.is_some()) << 16
            | u64::from(self.checksum.is_some()) << 17
            | u64::from(start) << 32
            | u64::from(offset) << 48;
        [first, second]
    }

    /// Undoes [`Label::pack`].
    pub fn unpack([first, second]: [u64; 2]) -> Self {
        let slot = first as u32;
        Self {
            slot: (slot != NO_SLOT).then(|| ClaimSlot::from_bits(slot)),
            in_parts: first >> 32 & 1 == 1,
            segment: (second >> 16 & 1 == 1).then_some(second as u16),
            checksum: (second >> 17 & 1 == 1)
                .then_some(((second >> 32) as u16, (second >> 48) as u16)),
        }
    }
}

const fn may_be_cut(body: &Body) -> bool {
    match body {
        Body::Tcp(ip, _) | Body::Udp(ip, _) | Body::Icmp(ip, _) => !ip.whole,
        Body::Arp | Body::Igmp(..) | Body::Fragment(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::{Claims, Key},
        net::{Endpoint, Protocol},
    };

    #[test]
    fn labels_survive_the_ring() {
        let slot = Claims::default().slot(&Key {
            protocol: Protocol::Udp,
            guest: Endpoint::new([10, 0, 0, 1].into(), 1),
            remote: Endpoint::new([10, 0, 0, 2].into(), 2),
        });
        for slot in [None, Some(slot)] {
            for (in_parts, segment, checksum) in [
                (false, None, None),
                (true, Some(0), Some((0, 0))),
                (false, Some(u16::MAX), Some((u16::MAX, 6))),
            ] {
                let label = Label {
                    slot,
                    in_parts,
                    segment,
                    checksum,
                };
                assert_eq!(Label::unpack(label.pack()), label);
            }
        }
    }
}
