//! A guest whose queues several reactors serve, each with a relay of its own: whose flow a frame is of, and its way there.
//!
//! A frame that belongs to another relay is copied into a ring to that one. Where the ring is full the frame stays in the
//! guest's queue, and those behind it. What no relay owns is the first one's: services, groups, and the guest's ends of
//! forwarded UDP ports, as what comes to those comes in there. Connections to forwarded ports come in there too, and go to
//! each relay in turn, which has its queue for what they bring.
//!
//! A flow whose frames keep coming by another queue goes to the relay of that one ([`Drift`]), while all stand still and none
//! of its frames is on its way.
//!
//! What is guaranteed: frames of a flow that come by one queue are taken in their order, whoever owns the flow, and also
//! where it begins, ends or begins anew meanwhile. For all of them take one way: from a queue straight to the owner, or by
//! one ring; a frame that must wait blocks all behind it in its queue; and one that counts on its slot, wherever it is,
//! keeps the flow's owner what it is. Parts of a packet go to the relay that took the first of them. As they come by one
//! queue, that is the queue's own relay, except where two packets share a slot or the queue cannot be answered by. Where a
//! guest sends a flow by several queues the order between these is not defined (virtio knows none), so each stays in order
//! by itself. Packets whose parts went to another relay first may be lost where the owner of their flow has no room: to
//! rule out deadlock no thread waits there.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use super::{
    handoff::{Accepted, Entry, Exit, handoff},
    label::Label,
    whose::{key_of, parts_key},
};
use crate::{
    config::Net,
    flow::{
        ClaimSlot, Claims, Drift, Guest, Key, Quota,
        ring::{Receiver, Sender, ring},
    },
    link::{FRAME_MAX, Frame, Inbox},
    net::{PortSet, Protocol},
    wire::{
        self, dhcp, dhcpv6,
        frame::{Body, Fragment, Ip},
    },
};

/// The relay that has what nobody owns.
const FIRST: usize = 0;

/// Octets of a ring.
const RING: usize = 512 * 1024;

/// Flows of which it is noted at a time that they are to follow their frames.
const DRIFTED: usize = 32;

/// Where a frame is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Here; the slot is counted on until it has been looked at.
    Here(Option<ClaimSlot>),
    /// It has gone to another relay.
    Elsewhere,
    /// Another relay has no room for it now: it stays where it is.
    Stays,
}

/// The guest's ends of forwarded UDP ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded(PortSet);

impl Forwarded {
    /// Whether a flow ends at one of them.
    pub fn has(&self, key: &Key) -> bool {
        key.protocol == Protocol::Udp && self.0.contains(key.guest.port)
    }

    /// These and others.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let mut all = self.clone();
        others.0.iter().for_each(|port| all.0.insert(port));
        all
    }
}

/// One relay's part in a guest that several share.
#[derive(Debug)]
pub struct Share {
    me: usize,
    claims: Arc<Claims>,
    quota: Arc<Quota>,
    forwarded: Arc<Forwarded>,
    /// Rings to and from the others, by their numbers.
    to: Vec<Option<Sender>>,
    from: Vec<Option<Receiver>>,
    /// The ways of the first one's connections to the others, and to this one; whose turn it was.
    entries: Vec<Option<Entry>>,
    exit: Option<Exit>,
    served: usize,
    /// What came from others and is looked at, and what was said of each frame.
    handed: Option<Inbox>,
    labels: Vec<Label>,
    /// Which flows' frames keep coming by another queue, and those among what came last that have it said: by their places,
    /// and whose queue.
    drift: Drift,
    drifted: Vec<(usize, usize)>,
    /// Whether flows can be ours: there is a queue for what they have for the guest.
    able: bool,
    /// Others that are to be woken, a bit each.
    wakes: u32,
    /// Whose ring is looked at first, each in turn: one that is always full is not to keep the others out.
    turn: usize,
    /// Something was learnt of the guest.
    pub(super) news: bool,
}

impl Share {
    /// Shares for `count` relays (at most 32) that may have `flows` flows in all.
    pub fn among(count: usize, flows: usize, forwarded: Forwarded) -> Vec<Self> {
        let (claims, forwarded) = (Arc::new(Claims::default()), Arc::new(forwarded));
        let quota = Arc::new(Quota::new(flows, count));
        let mut shares: Vec<Self> = (0..count)
            .map(|me| Self {
                me,
                claims: Arc::clone(&claims),
                quota: Arc::clone(&quota),
                forwarded: Arc::clone(&forwarded),
                to: (0..count).map(|_| None).collect(),
                from: (0..count).map(|_| None).collect(),
                entries: Vec::new(),
                exit: None,
                served: FIRST,
                handed: Some(Inbox::new()),
                labels: Vec::with_capacity(8192),
                drift: Drift::default(),
                drifted: Vec::with_capacity(DRIFTED),
                able: me == FIRST,
                wakes: 0,
                turn: 0,
                news: false,
            })
            .collect();
        let mut entries = Vec::with_capacity(count);
        for share in &mut shares {
            let way = (share.me != FIRST).then(handoff);
            let (entry, exit) = way.unzip();
            entries.push(entry);
            share.exit = exit;
        }
        if let Some(first) = shares.get_mut(FIRST) {
            first.entries = entries;
        }
        for from in 0..count {
            for to in (0..count).filter(|&to| to != from) {
                let (sender, receiver) = ring(RING);
                if let Some(place) = shares.get_mut(from).and_then(|s| s.to.get_mut(to)) {
                    *place = Some(sender);
                }
                if let Some(place) = shares.get_mut(to).and_then(|s| s.from.get_mut(from)) {
                    *place = Some(receiver);
                }
            }
        }
        shares
    }

    /// Whether this relay has what nobody owns.
    pub(super) const fn is_first(&self) -> bool {
        self.me == FIRST
    }

    /// Takes room for one flow more, until it has ended. `false` if this relay may have no more, as things are.
    pub(super) fn take_room(&self) -> bool {
        self.quota.take(self.me)
    }

    /// Takes the room of a flow that has just ended in favour of another.
    pub(super) fn keep_room(&self) {
        self.quota.note(self.me);
    }

    /// There is no flow after all.
    pub(super) fn give_room_back(&self) {
        self.quota.give_back(self.me);
    }

    /// How many flows this relay may have, as things are.
    pub(super) fn room(&self) -> usize {
        self.quota.room(self.me)
    }

    /// Splits the room for flows among the relays that have a queue, a bit each, while nobody else runs.
    pub(super) fn divide_room(&self, able: u32) {
        self.quota.divide(|n| n == FIRST || able >> n & 1 == 1);
    }

    /// The slot that a flow of this key counts on.
    fn slot(&self, key: &Key) -> Option<ClaimSlot> {
        let of_first = match key.protocol {
            // Where these services are off, they are datagrams like others.
            Protocol::Udp if matches!(key.remote.port, dhcp::SERVER_PORT | dhcpv6::SERVER_PORT) => {
                true
            }
            Protocol::Udp => self.forwarded.has(key),
            Protocol::Tcp | Protocol::Echo => false,
        };
        (!of_first).then(|| self.claims.slot(&counted_as(key)))
    }

    pub(super) const fn forwarded(&self) -> &Arc<Forwarded> {
        &self.forwarded
    }

    /// These are the first relay's from now on, whose `flows` of theirs count no more. Nobody else runs meanwhile. What was
    /// forwarded before is to be among it.
    pub fn set_forwarded(&mut self, forwarded: &Arc<Forwarded>, flows: impl Iterator<Item = Key>) {
        for key in flows.filter(|key| forwarded.has(key)) {
            if let Some(slot) = self.slot(&key) {
                self.claims.release(slot);
            }
        }
        self.forwarded = Arc::clone(forwarded);
    }

    /// The slot of a flow that can be this relay's, if it has one: it is counted on until it has been looked at. `None` where
    /// the flow can only be another's.
    pub(super) fn claim(&self, key: &Key) -> Option<Option<ClaimSlot>> {
        let Some(slot) = self.slot(key) else {
            return self.is_first().then_some(None);
        };
        let is_ours = self.claims.claim(slot, self.me) == self.me;
        if !is_ours {
            self.claims.release(slot);
        }
        is_ours.then_some(Some(slot))
    }

    /// Hands a peer's connection to the relay whose turn it is, or the one that has its slot.
    ///
    /// # Errors
    /// The connection, if it is this relay's, or there is no room for it.
    pub(super) fn hand_on(
        &mut self,
        socket: OwnedFd,
        peer: SocketAddr,
        key: Key,
        guest: Guest,
    ) -> Result<(), OwnedFd> {
        let count = self.entries.len();
        let turn = (1..=count).map(|n| (self.served + n) % count);
        self.served = turn
            .into_iter()
            .find(|&n| self.quota.welcomes(n))
            .unwrap_or(self.me);
        let slot = self.claims.slot(&key);
        let owner = self.claims.claim(slot, self.served);
        let Some(Some(entry)) = self.entries.get(owner) else {
            self.claims.release(slot);
            return Err(socket);
        };
        let accepted = Accepted {
            socket,
            peer,
            key,
            slot,
            guest,
        };
        let sent = entry.send(accepted);
        if sent.is_ok() {
            self.wakes |= 1 << owner;
        } else {
            self.claims.release(slot);
        }
        sent
    }

    /// Takes a connection that was handed on to this relay. It counts on its slot until it has been looked at.
    pub(super) fn take_accepted(&self) -> Option<Accepted> {
        self.exit.as_ref()?.take()
    }

    /// A flow that was there before counts here from now on.
    pub(super) fn brings(&self, key: &Key, of_group: bool) {
        self.quota.note(self.me);
        self.opened(key, of_group);
    }

    /// A flow begins here, for which room was taken; one of groups has no slot.
    pub(super) fn opened(&self, key: &Key, of_group: bool) {
        if let Some(slot) = self.slot(key).filter(|_| !of_group) {
            let owner = self.claims.claim(slot, self.me);
            debug_assert_eq!(owner, self.me, "a flow of another's slot");
        }
    }

    /// It has ended.
    pub(super) fn closed(&self, key: &Key, of_group: bool) {
        self.quota.give_back(self.me);
        if let Some(slot) = self.slot(key).filter(|_| !of_group) {
            self.claims.release(slot);
        }
    }

    /// A flow goes by another key, whose slot is this relay's.
    pub(super) fn renamed(&self, before: &Key, key: &Key) {
        if let Some(slot) = self.slot(key) {
            let owner = self.claims.claim(slot, self.me);
            debug_assert_eq!(owner, self.me, "a flow of another's slot");
        }
        if let Some(slot) = self.slot(before) {
            self.claims.release(slot);
        }
    }

    /// A flow of another's comes here, with all of its slot; nobody else runs meanwhile.
    pub(super) fn moves(&self, key: &Key) {
        if let Some(slot) = self.slot(key) {
            self.claims.give(slot, self.me);
        }
    }

    /// The slot that a frame counts on.
    fn slot_of(&self, net: &Net, body: &Body, head: &[u8]) -> Option<ClaimSlot> {
        match body {
            Body::Fragment(ip, part) => Some(self.claims.slot_of_parts(&parts_key(ip, part))),
            _ => key_of(net, body, head).and_then(|key| self.slot(&key)),
        }
    }

    /// Has a frame of this relay's count on its slot until it has been looked at again.
    pub(super) fn count_on(&self, net: &Net, body: &Body, head: &[u8]) -> Option<ClaimSlot> {
        let slot = self.slot_of(net, body, head)?;
        let owner = self.claims.claim(slot, self.me);
        debug_assert_eq!(owner, self.me, "a frame of another's slot");
        Some(slot)
    }

    /// The same of a part of a packet.
    pub(super) fn count_on_parts(&self, ip: &Ip, part: &Fragment) -> ClaimSlot {
        let slot = self.claims.slot_of_parts(&parts_key(ip, part));
        let owner = self.claims.claim(slot, self.me);
        debug_assert_eq!(owner, self.me, "a part of another's packet");
        slot
    }

    /// What waits at another comes here, with all of its slot; nobody else runs meanwhile.
    pub(super) fn takes_over(&self, slot: ClaimSlot) {
        self.claims.give(slot, self.me);
    }

    /// A frame that was looked at counts on its slot no more.
    pub(super) fn looked_at(&self, slot: ClaimSlot) {
        self.claims.release(slot);
    }

    /// Sees whose a frame is, and hands it over if it is another's.
    pub(super) fn place(
        &mut self,
        net: &Net,
        read: &wire::frame::Classified,
        frame: Frame<'_>,
        inbox: &Inbox,
    ) -> Destination {
        let is_fragment = matches!(read.body, Body::Fragment(..));
        let slot = self.slot_of(net, &read.body, frame.head);
        let owner = slot.map_or(FIRST, |slot| {
            let owner = if self.able { self.me } else { FIRST };
            self.claims.claim(slot, owner)
        });
        if owner == self.me {
            // The packet it completes may be another's.
            if is_fragment && !self.has_room_everywhere() {
                if let Some(slot) = slot {
                    self.claims.release(slot);
                }
                return Destination::Stays;
            }
            if let Some(slot) = slot {
                self.drift.came_here(slot);
            }
            return Destination::Here(slot);
        }
        let label = Label::new(slot, &read.body, frame);
        if self.hand(owner, label, frame, inbox) {
            return Destination::Elsewhere;
        }
        if let Some(slot) = slot {
            self.claims.release(slot);
        }
        Destination::Stays
    }

    /// Copies a frame into the ring to its owner. `false` if that has no room.
    fn hand(&mut self, owner: usize, label: Label, frame: Frame<'_>, inbox: &Inbox) -> bool {
        let Some(Some(sender)) = self.to.get_mut(owner) else {
            return false;
        };
        let len = frame.whole.len();
        if !sender.has_room(len) {
            return false;
        }
        let rest = frame.whole.part(&(frame.head.len()..len));
        let wake = sender.send(len, label.pack(), |put| {
            // What was read of it stays what it was, whatever the guest writes meanwhile.
            put(frame.head);
            inbox.copy(rest, |octets| put(octets));
        });
        self.wakes |= u32::from(wake) << owner;
        true
    }

    /// Whether each of the others has room for a frame of any length.
    fn has_room_everywhere(&mut self) -> bool {
        let mut others = self.to.iter_mut().flatten();
        others.all(|sender| sender.has_room(FRAME_MAX))
    }

    /// Whether others have handed over frames or connections.
    pub fn has_handed(&self) -> bool {
        self.has_frames() || self.exit.as_ref().is_some_and(Exit::has_any)
    }

    fn has_frames(&self) -> bool {
        let mut rings = self.from.iter().flatten();
        rings.any(|ring| ring.next().is_some())
    }

    /// Takes what others have handed over; its frames are in the inbox, which is to be given back.
    pub(super) fn take(&mut self) -> Option<Inbox> {
        if !self.has_frames() {
            return None;
        }
        let mut held = self.handed.take()?;
        self.fill(&mut held);
        Some(held)
    }

    /// What was taken has been looked at.
    pub(super) fn put(&mut self, held: Inbox) {
        self.handed = Some(held);
        for slot in self.labels.drain(..).filter_map(|label| label.slot) {
            self.claims.release(slot);
        }
    }

    /// Frames among those taken whose flows are to follow them: their places, and whose queue they came by.
    pub(super) fn drifted(&self) -> &[(usize, usize)] {
        &self.drifted
    }

    /// Whether nothing counts on a flow's slot but the flow itself: no frame is on its way, and nobody shares the slot.
    pub(super) fn is_alone(&self, key: &Key) -> bool {
        let slot = self.slot(key);
        slot.is_some_and(|slot| self.claims.counted(slot) == 1)
    }

    /// Whether this relay has a queue, and room for another flow without another's end.
    pub(super) fn welcomes(&self) -> bool {
        self.able && self.quota.welcomes(self.me)
    }

    /// What was said of one of the frames that were taken.
    pub(super) fn label(&self, index: usize) -> Option<Label> {
        self.labels.get(index).copied()
    }

    /// Whether new flows may be this relay's.
    pub(super) const fn set_able(&mut self, able: bool) {
        self.able = able || self.is_first();
    }

    /// The relays that are to be woken by now, a bit each.
    pub(super) const fn wakes(&mut self) -> u32 {
        std::mem::replace(&mut self.wakes, 0)
    }

    /// Takes frames that others have handed over, in the order of each, as many as `held` has room for.
    fn fill(&mut self, held: &mut Inbox) {
        held.hold_none();
        self.drifted.clear();
        let count = self.from.len();
        self.turn = (self.turn + 1) % count.max(1);
        for from in (self.turn..count).chain(0..self.turn) {
            let Some(mut ring) = self.from.get_mut(from).and_then(Option::take) else {
                continue;
            };
            while let Some(frame) = ring.next().filter(|frame| held.can_hold(frame.len)) {
                let label = Label::unpack(frame.words);
                held.hold_next(frame.len, label.segment, label.checksum, |out| {
                    ring.take(frame, out);
                });
                if label
                    .slot
                    .is_some_and(|slot| self.drift.came_by(slot, from))
                    && self.drifted.len() < DRIFTED
                {
                    self.drifted.push((self.labels.len(), from));
                }
                self.labels.push(label);
            }
            self.wakes |= u32::from(ring.release()) << from;
            if let Some(place) = self.from.get_mut(from) {
                *place = Some(ring);
            }
        }
    }
}

/// What stands for a flow where it is to be one relay's. Those of datagrams go together from all addresses of the guest: their
/// sockets may want the same port and peer.
const fn counted_as(key: &Key) -> Key {
    let mut key = *key;
    if matches!(key.protocol, Protocol::Udp) {
        key.guest.addr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    }
    key
}

/// What the guest's ends of these forwarded ports are.
impl FromIterator<(Protocol, u16)> for Forwarded {
    fn from_iter<T: IntoIterator<Item = (Protocol, u16)>>(ports: T) -> Self {
        let mut forwarded = PortSet::new();
        for (protocol, port) in ports {
            if protocol == Protocol::Udp {
                forwarded.insert(port);
            }
        }
        Self(forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Endpoint;

    /// It sees to it that their sockets do not have the same ends.
    #[test]
    fn datagram_flows_of_all_addresses_of_the_guest_from_one_port_to_one_peer_are_one_relays() {
        let shares = Share::among(2, 16, std::iter::empty().collect());
        let (first, second) = (&shares[0], &shares[1]);
        let key = |host: u8| Key {
            protocol: Protocol::Udp,
            guest: Endpoint::new([10, 0, 0, host].into(), 5000),
            remote: Endpoint::new([198, 51, 100, 1].into(), 7),
        };
        second.opened(&key(1), false);
        assert!((2..100).all(|host| first.claim(&key(host)).is_none()));
        second.closed(&key(1), false);
        assert!(first.claim(&key(2)).is_some());
    }
    #[test]
    fn flows_of_ports_that_are_forwarded_later_are_the_first_relays_and_count_on_nothing() {
        let mut shares = Share::among(2, 16, std::iter::empty().collect());
        let key = |port: u16| Key {
            protocol: Protocol::Udp,
            guest: Endpoint::new([10, 0, 0, 2].into(), port),
            remote: Endpoint::new([198, 51, 100, 1].into(), 7),
        };
        let slot = shares[0].claims.slot(&counted_as(&key(5000)));
        shares[0].opened(&key(5000), false);
        assert_eq!(shares[0].claims.counted(slot), 1);
        let ports = [(Protocol::Udp, 5000), (Protocol::Tcp, 5001)];
        let all = Arc::new(shares[0].forwarded().with(&ports.into_iter().collect()));
        shares[0].set_forwarded(&all, std::iter::once(key(5000)));
        shares[1].set_forwarded(&all, std::iter::empty());
        assert_eq!(shares[0].claims.counted(slot), 0);
        assert_eq!(shares[0].claim(&key(5000)), Some(None));
        assert_eq!(shares[1].claim(&key(5000)), None);
        assert!(shares[1].slot(&key(5001)).is_some());
        shares[0].closed(&key(5000), false);
        assert_eq!(shares[0].claims.counted(slot), 0);
    }
}
