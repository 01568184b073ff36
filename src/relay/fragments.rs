//! Fragments, both ways: parts of the guest's packets become whole packets, and what is too large for the link becomes parts.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    errors::{Fault, QUOTED},
    state::Relay,
};
use crate::{
    flow::Key,
    link::{Flushed, Frame, Inbox, Outbox},
    net::{
        Mac, Now, Why,
        number::{TCP, UDP},
    },
    sys::Marks,
    wire::{
        build::{Ends, MIN_FRAME, PACKET_MAX, UDP_SEGMENTS_MAX, ip_len},
        checksum::Sum,
        fragment::{self, Part, may_be_cut},
        frame::{Body, Fragment, Ip, classify},
        headers::TTL,
    },
};

/// Octets that a part takes besides what it carries: its headers, and what fills its cache line up.
const PART_EXTRA: usize = 128;

/// Parts more that datagrams make which were received as one: the last of each is not full, and can be two.
const SEGMENTS: usize = 2 * UDP_SEGMENTS_MAX;

impl Relay {
    /// Hands the guest a packet of a flow, in the manner it came, in parts if the link takes no more at once; the `len` octets
    /// behind its IP header are in `message`.
    pub(super) fn hand_over(
        &mut self,
        key: &Key,
        ends: Ends,
        protocol: u8,
        len: usize,
        marks: Marks,
        outbox: &mut Outbox,
    ) {
        let ip = Ip {
            src: key.remote.addr,
            dst: key.guest.addr,
            ttl: marks.ttl.unwrap_or(TTL),
            tos: marks.tos.unwrap_or(0),
            id: 0,
            whole: true,
        };
        let upper = self.message.get(..len).unwrap_or_default();
        let mtu = usize::from(self.net.mtu);
        let number = || numbers(&self.fragment_ids, 1);
        if !send(
            &mut self.scratch,
            ends,
            (&ip, protocol),
            upper,
            mtu,
            number,
            outbox,
        ) {
            self.drops.count(Why::LinkFull);
        }
    }

    /// Makes room on the link for the largest packet that [`hand_over`](Relay::hand_over) can be asked to, or for several
    /// datagrams that were received as one. `false` if it is full: what waits in a socket is to stay there.
    pub(super) fn has_room_for_packet(&self, v4: bool, outbox: &mut Outbox) -> bool {
        let parts = fragment::most_parts(v4, self.net.mtu.into()) + SEGMENTS;
        outbox.has_room_for(parts, PACKET_MAX + parts * PART_EXTRA)
    }

    /// The link addresses of a frame to the guest.
    pub(super) fn ends(&self, key: &Key) -> Ends {
        Ends {
            src: self.mac_of(key.remote.addr),
            dst: self.guest.mac_at(key.guest.addr),
        }
    }

    /// A part of a packet.
    #[expect(clippy::too_many_arguments, reason = "a frame and what it may cause")]
    pub(super) fn fragment(
        &mut self,
        mac: Mac,
        ip: &Ip,
        part: &Fragment,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        self.check_source(ip.src)?;
        let octets = frame.head.get(part.payload.clone()).ok_or(Why::Truncated)?;
        let share = self.share.as_ref();
        let slot = share.map(|share| share.count_on_parts(ip, part));
        let added = self
            .reassembly
            .add(ip, part, octets, slot, &mut self.pool, now);
        self.forget_parts();
        let Some(packet) = added? else {
            return Ok(());
        };
        let (header, protocol) = (packet.header(), packet.protocol);
        let mut why = Why::Fragment;
        let whole = header.and_then(|ip| {
            let ends = Ends {
                src: mac,
                dst: self.net.mac,
            };
            self.scratch.clear();
            fragment::ethernet(&mut self.scratch, ends, &ip);
            fragment::header(&mut self.scratch, &ip, protocol, None, packet.len());
            let start = self.scratch.len();
            self.scratch.resize(start + packet.len(), 0);
            let octets = self.scratch.get_mut(start..).unwrap_or_default();
            packet.write(&self.pool, octets);
            if !sums_up(&ip, protocol, octets) {
                why = Why::Checksum;
                return None;
            }
            let mut held = self.reassembly.held.take()?;
            held.hold(&self.scratch);
            Some(held)
        });
        self.reassembly.release(packet, &mut self.pool);
        let held = whole.ok_or(why)?;
        self.end_burst(inbox, outbox, now);
        let result = self.whole(&held, outbox, now);
        self.forget_parts();
        self.end_burst(&held, outbox, now);
        self.reassembly.held = Some(held);
        result
    }

    /// A packet that was in parts.
    fn whole(&mut self, held: &Inbox, outbox: &mut Outbox, now: Now) -> Result<(), Why> {
        let frame = held.frame(0).ok_or(Why::Fragment)?;
        let mut read = classify(frame.head, frame.whole.len())?;
        // Who sends parts does not mind that others make them.
        read.body.allow_parts();
        // Extension headers in the whole may say again that it is a part, which would never end.
        if matches!(read.body, Body::Fragment(..)) {
            return Err(Why::Fragment);
        }
        if self.share.is_some() {
            // It can be of a flow that another relay has, where there was room for it before its last part was taken, unless
            // that came by another queue than others.
            return self
                .place(&read, frame, held, outbox, now)
                .unwrap_or(Err(Why::LinkFull));
        }
        self.frame(&read, frame, held, outbox, now)
    }

    /// Parts that wait no more count on nothing, and those of packets that made room are counted.
    pub(super) fn forget_parts(&mut self) {
        for _ in 0..std::mem::take(&mut self.reassembly.displaced) {
            self.count(Why::Fragment);
        }
        for slot in self.reassembly.over.drain(..) {
            if let Some(share) = &self.share {
                share.looked_at(slot);
            }
        }
    }

    /// Gives up packets that were not whole in time, and says so if their first part is here (RFC 792; RFC 4443, section 3.3).
    pub(super) fn expire_fragments(&mut self, outbox: &mut Outbox, heard: Now) {
        while let Some(packet) = self.reassembly.expired(heard) {
            self.count(Why::Fragment);
            let len = packet.first_len();
            if let Some(ip) = packet.first.filter(|_| len > 0) {
                let mut octets = [0; QUOTED];
                let octets = octets.get_mut(..len.min(QUOTED)).unwrap_or_default();
                packet.write(&self.pool, octets);
                let part = Part {
                    id: packet.id,
                    offset: 0,
                    more: true,
                };
                self.quote.clear();
                fragment::header(&mut self.quote, &ip, packet.protocol, Some(part), len);
                self.quote.extend_from_slice(octets);
                let v4 = ip.src.is_ipv4();
                let fault = Fault::reassembly(v4);
                if let Some(ours) = self.ours(v4) {
                    self.say_error(ip.src, ours, fault, outbox);
                }
            }
            self.reassembly.release(packet, &mut self.pool);
        }
        self.forget_parts();
    }
}

/// Whether the checksum of a packet that was in parts is right, where it has one: parts of two packets may have had the same
/// identification (RFC 4963), and our sockets give whatever they send a new one.
fn sums_up(ip: &Ip, protocol: u8, upper: &[u8]) -> bool {
    let is_right = |octets: &[u8]| {
        let pseudo = Sum::pseudo(ip.src, ip.dst, protocol, octets.len());
        pseudo.bytes(octets).is_valid()
    };
    match protocol {
        // None (RFC 768; RFC 6935 for IPv6).
        UDP if matches!(upper, [_, _, _, _, _, _, 0, 0, ..]) => true,
        // A datagram may end before its packet does.
        UDP => is_right(upper.get(..datagram_len(upper)).unwrap_or(upper)),
        TCP => is_right(upper),
        // That of ICMP is looked at where it is read.
        _ => true,
    }
}

/// Octets of a datagram, as its header has it.
fn datagram_len(upper: &[u8]) -> usize {
    let len = upper.get(4..6).and_then(|len| len.first_chunk());
    len.map_or(0, |len| u16::from_be_bytes(*len).into())
}

/// What tells so many packets from others: the first one's number, on from which they count.
pub(super) fn numbers(ids: &AtomicU32, packets: usize) -> u32 {
    ids.fetch_add(packets as u32, Ordering::Relaxed)
}

/// Hands a packet to the guest: whole where the link takes it, else in parts. `upper` is all behind the IP header. `false` if
/// the link had no room for some of it. `number` tells what is or may be cut from others.
fn send(
    scratch: &mut Vec<u8>,
    ends: Ends,
    (ip, protocol): (&Ip, u8),
    upper: &[u8],
    mtu: usize,
    number: impl FnOnce() -> u32,
    outbox: &mut Outbox,
) -> bool {
    let mut sent = true;
    let mut put = |frame: &[u8]| {
        sent = outbox.copy(frame).is_ok()
            || outbox.flush() == Flushed::Done && outbox.copy(frame).is_ok();
        sent
    };
    let v4 = ip.src.is_ipv4();
    let len = ip_len(v4) + upper.len();
    let whole = !may_be_cut(v4, len);
    if len <= mtu {
        let id = if whole { ip.id } else { number() };
        scratch.clear();
        fragment::ethernet(scratch, ends, ip);
        let ip = Ip { id, whole, ..*ip };
        fragment::header(scratch, &ip, protocol, None, upper.len());
        scratch.extend_from_slice(upper);
        scratch.resize(scratch.len().max(MIN_FRAME), 0);
        put(scratch);
    } else {
        let ip = Ip {
            whole: false,
            ..*ip
        };
        fragment::split(scratch, ends, (&ip, protocol, number()), upper, mtu, put);
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::super::{
        fixture,
        state::{Limits, SPILL_BLOCK},
    };
    use super::*;
    use crate::{host::socket::Features, service};

    #[test]
    fn a_packet_in_parts_that_makes_room_is_counted() {
        const PACKETS: u32 = 64;
        let limits = Limits {
            spill: 128 * SPILL_BLOCK,
            ..Limits::few(16)
        };
        let mut relay = Relay::new(service::fixture::net(), Features::none(), limits);
        let (mut outbox, _guest) = fixture::link();
        let mut inbox = Inbox::holding();
        let ip = fixture::ip(false);
        let ends = Ends {
            src: Mac([2, 0, 0, 0, 0, 1]),
            dst: relay.net().mac,
        };
        for id in 0..PACKETS + 3 {
            let part = Part {
                id,
                offset: 0,
                more: true,
            };
            let mut frame = Vec::new();
            fragment::ethernet(&mut frame, ends, &ip);
            fragment::header(&mut frame, &ip, UDP, Some(part), 8);
            frame.extend_from_slice(&[0; 8]);
            inbox.hold(&frame);
            relay.from_guest(&inbox, &mut outbox, Now(1));
            let counted = (id + 1).saturating_sub(PACKETS);
            assert_eq!(relay.drops().of(Why::Fragment), counted.into());
        }
        assert_eq!(relay.drops().seen().count(), 1);
    }
}
