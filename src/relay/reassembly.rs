//! Packets of the guest that came in parts, until the last part is here. What is held is bounded: some packets, the oldest of
//! which makes room, and blocks of the pool.

use std::{collections::VecDeque, net::IpAddr};

use crate::{
    flow::{Chain, ClaimSlot, Pool},
    link::Inbox,
    net::{Now, Span, Why},
    proto::fragments::{Parts, Verdict},
    wire::{
        build::{IPV4_LEN, PACKET_MAX},
        frame::{Fragment, Ip},
    },
};

/// Packets at a time.
const PACKETS: usize = 64;

/// Octets behind the header of the largest packet.
const LARGEST4: usize = PACKET_MAX - IPV4_LEN;
const LARGEST6: usize = PACKET_MAX;

/// The lower bits of type of service: explicit congestion notification (RFC 3168, section 5).
const ECN: u8 = 3;

/// The packets that are not whole.
#[derive(Debug)]
pub struct Reassembly {
    /// The oldest first.
    packets: VecDeque<Partial>,
    /// What parts counted on that wait no more, for the relay to release.
    pub over: Vec<ClaimSlot>,
    /// Packets that made room for others, for the relay to count.
    pub displaced: usize,
    /// A packet that became whole, as a frame.
    pub held: Option<Inbox>,
    /// How long a packet may wait for its last part, by family.
    pub patience: (Span, Span),
}

/// One packet that is not whole.
#[derive(Debug)]
pub struct Partial {
    src: IpAddr,
    dst: IpAddr,
    pub id: u32,
    pub protocol: u8,
    /// Of its first part, once that is here.
    pub first: Option<Ip>,
    /// Whether a part met congestion: then all of it did (RFC 3168, section 5.3).
    congested: bool,
    parts: Parts,
    octets: Chain,
    deadline: Now,
    /// What it counts on while it is here, so that all its parts come here.
    slot: Option<ClaimSlot>,
}

impl Reassembly {
    pub fn new() -> Self {
        Self {
            packets: VecDeque::with_capacity(PACKETS),
            over: Vec::with_capacity(PACKETS),
            displaced: 0,
            held: Some(Inbox::holding()),
            // RFC 791, section 3.2, as Linux has it; RFC 8200, section 4.5.
            patience: (Span::secs(30), Span::secs(60)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// When the first packet has waited for too long.
    pub fn deadline(&self) -> Option<Now> {
        self.packets.iter().map(|packet| packet.deadline).min()
    }

    /// Takes a part in, which counts on `slot`. The packet comes out when it is whole; it must go back by
    /// [`Reassembly::release`].
    ///
    /// # Errors
    /// [`Why::Fragment`] for a part that fits none, which ends its packet; [`Why::NoMemory`] where it cannot be held.
    pub fn add(
        &mut self,
        ip: &Ip,
        part: &Fragment,
        octets: &[u8],
        slot: Option<ClaimSlot>,
        pool: &mut Pool,
        now: Now,
    ) -> Result<Option<Partial>, Why> {
        let known = self
            .packets
            .iter()
            .position(|packet| packet.is_of(ip, part));
        let at = match known {
            Some(at) => {
                self.over.extend(slot);
                at
            }
            None => {
                if self.packets.len() == PACKETS
                    && let Some(oldest) = self.packets.pop_front()
                {
                    self.release(oldest, pool);
                    self.displaced += 1;
                }
                let (v4, v6) = self.patience;
                let patience = if ip.src.is_ipv4() { v4 } else { v6 };
                self.packets
                    .push_back(Partial::new(ip, part, slot, now + patience));
                self.packets.len() - 1
            }
        };
        let Some(packet) = self.packets.get_mut(at) else {
            return Err(Why::Fragment);
        };
        let taken = packet.take(ip, part, octets, pool);
        if taken == Ok(false) {
            return Ok(None);
        }
        let packet = self.packets.remove(at);
        match (taken, packet) {
            (Ok(_), packet) => Ok(packet),
            (Err(why), packet) => {
                if let Some(packet) = packet {
                    self.release(packet, pool);
                }
                Err(why)
            }
        }
    }

    /// A packet that has waited for too long. It must go back by [`Reassembly::release`].
    pub fn expired(&mut self, now: Now) -> Option<Partial> {
        let at = self
            .packets
            .iter()
            .position(|packet| packet.deadline <= now)?;
        self.packets.remove(at)
    }

    /// Forgets all.
    pub fn clear(&mut self, pool: &mut Pool) {
        while let Some(packet) = self.packets.pop_front() {
            self.release(packet, pool);
        }
    }

    /// Gives up what a packet has.
    pub fn release(&mut self, packet: Partial, pool: &mut Pool) {
        pool.release(packet.octets);
        self.over.extend(packet.slot);
    }

    /// Has no packet count on anything any more.
    pub fn release_slots(&mut self) {
        let slots = self.packets.iter_mut().filter_map(|p| p.slot.take());
        self.over.extend(slots);
    }
}

impl Partial {
    fn new(ip: &Ip, part: &Fragment, slot: Option<ClaimSlot>, deadline: Now) -> Self {
        Self {
            src: ip.src,
            dst: ip.dst,
            id: part.id,
            protocol: part.protocol,
            first: None,
            congested: false,
            parts: Parts::new(),
            octets: Chain::default(),
            deadline,
            slot,
        }
    }

    /// IPv6 packets are told apart without the next header, which may differ (RFC 8200, section 4.5).
    fn is_of(&self, ip: &Ip, part: &Fragment) -> bool {
        (self.id, self.src, self.dst) == (part.id, ip.src, ip.dst)
            && (self.protocol == part.protocol || ip.src.is_ipv6())
    }

    /// Takes a part in; `true` when the packet is whole.
    fn take(
        &mut self,
        ip: &Ip,
        part: &Fragment,
        octets: &[u8],
        pool: &mut Pool,
    ) -> Result<bool, Why> {
        let largest = if ip.src.is_ipv4() { LARGEST4 } else { LARGEST6 };
        let verdict = self
            .parts
            .add(part.offset, octets.len(), part.more, largest);
        if matches!(verdict, Verdict::Keep | Verdict::Whole) {
            self.congested |= ip.tos & ECN == ECN;
            if part.offset == 0 {
                self.first = Some(*ip);
                self.protocol = part.protocol;
            }
            if pool.append(&mut self.octets, octets, usize::MAX) < octets.len() {
                return Err(Why::NoMemory);
            }
        }
        match verdict {
            Verdict::Keep | Verdict::Repeated => Ok(false),
            Verdict::Whole => Ok(true),
            Verdict::Discard => Err(Why::Fragment),
        }
    }

    /// The header of the whole.
    pub fn header(&self) -> Option<Ip> {
        let first = self.first?;
        Some(Ip {
            tos: first.tos | if self.congested { ECN } else { 0 },
            whole: false,
            ..first
        })
    }

    /// Octets behind the header, as far as they are here.
    pub const fn len(&self) -> usize {
        self.parts.len()
    }

    /// Octets of the first part.
    pub fn first_len(&self) -> usize {
        self.parts
            .iter()
            .find_map(|(at, len)| (at == 0).then_some(len))
            .unwrap_or(0)
    }

    /// Copies the octets to where they belong, as far as `out` goes.
    pub fn write(&self, pool: &Pool, out: &mut [u8]) {
        let mut pieces = pool.pieces(&self.octets);
        let mut piece: &[u8] = &[];
        for (at, len) in self.parts.iter() {
            let mut done = 0;
            while done < len {
                if piece.is_empty() {
                    let Some(next) = pieces.next() else { return };
                    piece = next;
                }
                let (now, later) = piece.split_at(piece.len().min(len - done));
                let start = (at + done).min(out.len());
                let place = out.get_mut(start..).unwrap_or_default();
                let fits = now.len().min(place.len());
                place[..fits].copy_from_slice(&now[..fits]);
                done += now.len();
                piece = later;
            }
        }
    }
}
