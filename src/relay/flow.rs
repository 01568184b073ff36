//! What is remembered of a flow.

use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroU64},
    os::fd::{AsFd, OwnedFd},
};

use crate::{
    flow::{Chain, Id, Lent},
    host::socket::Manner,
    link::Slot,
    net::{Now, Seq, Span},
    proto::tcp::Conn,
    sys::{msg, sockopt},
    wire::build::ip_len,
};

/// One flow of the guest, and the host's socket behind it.
#[derive(Debug)]
pub enum Flow {
    Tcp(TcpFlow),
    Udp(UdpFlow),
    Echo(EchoFlow),
    Group(GroupFlow),
}

impl Flow {
    pub const fn is_of_group(&self) -> bool {
        matches!(self, Self::Group(_))
    }

    pub const fn socket(&self) -> &OwnedFd {
        match self {
            Self::Tcp(flow) => &flow.socket,
            Self::Udp(flow) => &flow.socket,
            Self::Echo(flow) => &flow.socket,
            Self::Group(flow) => &flow.socket,
        }
    }

    /// Whether it waits for room on the link, or for its socket to be readable again.
    pub const fn starved(&mut self) -> &mut bool {
        match self {
            Self::Tcp(flow) => &mut flow.state.starved,
            Self::Udp(flow) => &mut flow.starved,
            Self::Echo(flow) => &mut flow.starved,
            Self::Group(flow) => &mut flow.starved,
        }
    }

    /// Which port its socket is bound to, where that counts, and whether it holds more than is usual.
    pub const fn socket_kind(&self) -> (Bound, bool) {
        match self {
            Self::Udp(flow) => (flow.bound, flow.roomy),
            Self::Tcp(_) | Self::Echo(_) | Self::Group(_) => (Bound::Elsewhere, false),
        }
    }

    pub fn into_socket(self) -> OwnedFd {
        match self {
            Self::Tcp(flow) => flow.socket,
            Self::Udp(flow) => flow.socket,
            Self::Echo(flow) => flow.socket,
            Self::Group(flow) => flow.socket,
        }
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct TcpFlow {
    pub socket: OwnedFd,
    pub conn: Conn,
    pub syn: Syn,
    pub peeks: Peeks,
    /// Octets taken from the guest that the kernel would not take yet, and those that came before others.
    pub spill: Chain,
    /// Octets at the front of the receive queue that the guest has acknowledged.
    pub forget: u32,
    /// What the socket can take at least: as it was last asked, less what small writes since may have cost.
    pub space: Option<Space>,
    /// The earliest time the wheel will wake this flow, in microseconds as [`Now`] has them.
    pub armed: Option<NonZeroU64>,
    /// Payloads of the current burst, as a chain through [`Burst`].
    pub pieces: Option<Pieces>,
    pub state: State,
}

impl TcpFlow {
    /// Whether both streams have ended in order: where the peer has reset the connection, the guest is to hear of that yet.
    pub fn is_over(&self) -> bool {
        self.conn.is_over() && !self.state.failed
    }

    /// A flow over this socket, of which nothing was heard yet; `peeks` tells whether it has a peek offset.
    pub fn new(socket: OwnedFd, conn: Conn, syn: Syn, peeks: bool) -> Self {
        let peeks = if peeks { Peeks::AtStart } else { Peeks::All };
        Self {
            socket,
            conn,
            syn,
            peeks,
            spill: Chain::default(),
            forget: 0,
            space: None,
            armed: None,
            pieces: None,
            state: State::default(),
        }
    }

    /// Readies the socket for a write. The first needs no TCP_NODELAY: nothing small is on its way before it.
    pub fn ready_to_write(&mut self) {
        if self.state.writes == 1 {
            // No error a stream socket could have.
            let _ = sockopt::set_no_delay(self.socket.as_fd());
        }
        self.state.writes = match self.state.writes {
            OFTEN_LAST => OFTEN,
            writes => writes + 1,
        };
    }

    /// What is left of the space at least after a write of so many octets, if these are so few, and it was asked for so lately,
    /// that it need not be asked for again.
    pub fn space_after(&self, written: usize, space: Space) -> Option<Space> {
        let left = space.octets().saturating_sub(SMALL_COST);
        let known = written <= SMALL && left >= AMPLE && self.state.writes != OFTEN;
        known.then(|| Space::new(left))
    }

    /// Sets the peek offset so many octets behind those the guest has acknowledged. One that was never needed stands at none.
    pub fn seek(&mut self, octets: u32) {
        let offset = self.forget + octets;
        if self.peeks == Peeks::AtStart && offset > 0 || self.peeks == Peeks::AtOffset {
            let set = sockopt::set_peek_offset(self.socket.as_fd(), offset.cast_signed());
            // Sockets of IPv6 that carry IPv4 learnt it later than those of IPv4.
            self.peeks = match (self.peeks, set) {
                (Peeks::AtStart, Err(_)) => Peeks::All,
                _ => Peeks::AtOffset,
            };
        }
    }

    /// Throws away what the guest has acknowledged.
    pub fn forget_all(&mut self) {
        while self.forget > 0 {
            match msg::discard(self.socket.as_fd(), self.forget as usize) {
                Ok(0) | Err(_) => break,
                Ok(octets) => self.forget -= (octets as u32).min(self.forget),
            }
        }
    }

    /// Throws it away when it is enough to be worth a call, or most of what there is. Even a little that stayed could hold the
    /// memory of a large buffer, so that the peer's window stays shut.
    pub fn forget(&mut self) {
        if self.forget >= FORGET || self.conn.unacknowledged() < self.forget {
            self.forget_all();
        }
    }
}

/// What a look into a socket begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peeks {
    /// The first octet: there is no peek offset.
    All,
    /// The first octet, as the peek offset was not needed yet.
    AtStart,
    AtOffset,
}

/// Acknowledged octets that wait in the socket before they are thrown away, unless all are acknowledged.
const FORGET: u32 = 128 * 1024;

/// Writes that are often. From then on they are counted in rounds.
const OFTEN: u8 = 8;
const OFTEN_LAST: u8 = 2 * OFTEN - 1;

/// Octets of a small write, and what it takes of the socket's space at most, with the buffer's own cost.
const SMALL: usize = 512;
const SMALL_COST: u32 = 2048;

/// Where less is free the socket has to know that more is wanted.
const AMPLE: u32 = 32 * 1024;

/// Octets a socket can take, in a form that leaves room to say that they are not known.
#[derive(Debug, Clone, Copy)]
pub struct Space(NonZeroU32);

impl Space {
    pub const fn new(octets: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(octets))
    }

    pub const fn octets(self) -> u32 {
        self.0.get() - 1
    }
}

/// The guest's SYN, which an ICMP error about it has to quote.
#[derive(Debug, Clone, Copy, Default)]
pub struct Syn {
    pub seq: Seq,
    /// Octets of the whole segment.
    pub len: u16,
    /// As its IP header had it: identification or flow label, and the rest.
    pub id: u32,
    pub manner: Manner,
}

/// What a TCP flow waits for, and what the current burst asked of it.
#[derive(Debug, Clone, Copy, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent conditions, most of them of edge-triggered events"
)]
pub struct State {
    /// The socket has, or may have, something to read: events are edges and tell only once.
    pub readable: bool,
    /// The host's stream has ended behind what is in the socket.
    pub ended: bool,
    /// There was urgent data: a short read need not have emptied the socket, as reads stop at it.
    pub urgent: bool,
    /// Writing to the socket failed: once what it holds is read, the guest hears of it.
    pub failed: bool,
    /// Octets of the guest went nowhere: it hears of it at once if it does not read.
    pub lost: bool,
    /// We have asked to hear when the socket takes more.
    pub wants_space: bool,
    /// The flow waits in line for room on the link.
    pub starved: bool,
    /// An acknowledgement found no room on the link.
    pub owes_ack: bool,
    /// Writes to the socket so far, up to a few.
    pub writes: u8,
    /// What is known of gaps in its streams.
    pub disorder: Option<Lent>,
    /// The flow is listed in the burst.
    pub touched: bool,
    pub ack: bool,
    pub pull: bool,
}

/// A UDP flow: one connected socket for one pair of endpoints.
#[derive(Debug)]
pub struct UdpFlow {
    pub socket: OwnedFd,
    pub last: Now,
    /// Datagrams seen from the guest and from the host, up to two each: a stream lives longer than a question.
    pub seen: (u8, u8),
    pub sent: Sent,
    /// How the socket sends so far.
    pub manner: Option<Manner>,
    /// The most octets of datagrams that may leave several in one message, once it is known; 0 where they may not.
    pub segment: Option<u16>,
    pub readable: bool,
    pub starved: bool,
    /// Nothing goes to the guest yet: it is not found.
    pub waits: bool,
    /// The socket holds more than is usual.
    pub roomy: bool,
    pub bound: Bound,
    /// Where its port and its peer are noted.
    pub pair: Option<Id>,
    /// Its socket may bring what others sent, as it was bound before it was connected: it heard everybody.
    pub fresh: Option<Fresh>,
}

/// The port a UDP flow's socket shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The guest's.
    Guest,
    /// This one of the host, which is forwarded, with a client that came to it at this place.
    Forwarded { port: u16, place: u32 },
    /// None that counts: it is of the kernel's choice, or as it was where the guest was before.
    Elsewhere,
}

/// How long a socket that has heard everybody may bring what others sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// Until then more of it may come, which was on its way.
    Until(Now),
    /// None comes any more, and so many datagrams at the most may lie before the last of it.
    Before(usize),
}

/// A series of echo requests with one identifier.
#[derive(Debug)]
pub struct EchoFlow {
    pub socket: OwnedFd,
    pub last: Now,
    pub sent: Sent,
    pub manner: Option<Manner>,
    pub readable: bool,
    pub starved: bool,
}

/// A socket that sends to groups, or is a member of one.
#[derive(Debug)]
pub struct GroupFlow {
    pub socket: OwnedFd,
    /// Whether it only listens.
    pub member: bool,
    /// How it sends so far, and as whom it is seen where it sent last.
    pub manner: Option<Manner>,
    pub seen_as: Option<(IpAddr, SocketAddr)>,
    pub last: Now,
    pub readable: bool,
    pub starved: bool,
}

/// A packet of the guest, as far as an ICMP error about it has to quote what no socket returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packet {
    /// Identification, or flow label.
    pub id: u32,
    pub manner: Manner,
    /// Octets behind the IP header.
    pub len: u16,
    /// Of UDP.
    pub checksum: u16,
    /// What tells it from its neighbours: the first octets of a datagram's payload, the sequence number of an echo.
    pub start: [u8; 4],
}

/// The last packets of a flow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    list: [Packet; 4],
    count: u8,
}

/// Octets that a packet has at the least where an error has more behind it (RFC 4884, section 5).
const FILLED: usize = 128;

impl Sent {
    pub fn note(&mut self, packet: Packet) {
        let at = usize::from(self.count) % self.list.len();
        if let Some(place) = self.list.get_mut(at) {
            *place = packet;
        }
        // Stays congruent when it wraps, as the length divides 256.
        self.count = self.count.wrapping_add(1);
    }

    /// The packet that an error is about. Of one before the last few only what came back is known, and that is all of it.
    pub fn at_fault(&self, start: &[u8], len: usize, v4: bool) -> Packet {
        self.find(start, len, v4).unwrap_or_else(|| Packet {
            len: len as u16,
            ..Packet::default()
        })
    }

    /// The newest packet that starts like this, of which `len` octets came back. That may be more than it had: a router that
    /// has something to add behind it fills it up (RFC 4884, section 5).
    fn find(&self, start: &[u8], len: usize, v4: bool) -> Option<Packet> {
        let known = |packet: &Packet| packet.len > 0 && packet.start.starts_with(start);
        let whole = |packet: &Packet| known(packet) && usize::from(packet.len) >= len;
        self.newest(whole).or_else(|| {
            let filled = ip_len(v4) + len >= FILLED;
            self.newest(known).filter(|_| filled)
        })
    }

    fn newest(&self, is_it: impl Fn(&Packet) -> bool) -> Option<Packet> {
        (1..=self.list.len() as u8)
            .filter_map(|back| {
                let at = usize::from(self.count.wrapping_sub(back)) % self.list.len();
                self.list.get(at)
            })
            .find(|packet| is_it(packet))
            .copied()
    }
}

/// How long an identifier is remembered after the last request or reply.
pub const ECHO_TIMEOUT: Span = Span::secs(60);

/// How long a datagram may be on its way into a socket at the most: within the kernel, on another processor.
const FRESH: Span = Span::millis(100);

impl Fresh {
    /// Of a socket that was connected at `now`.
    pub fn since(now: Now) -> Self {
        Self::Until(now + FRESH)
    }

    /// The same before the next datagram is read from a socket that holds `most` of them; `None` if it is the peer's for sure.
    pub fn next(self, now: Now, most: impl FnOnce() -> usize) -> Option<Self> {
        match self {
            Self::Until(until) if until > now => Some(self),
            Self::Until(_) => Some(Self::Before(most())),
            Self::Before(left) => left.checked_sub(1).map(Self::Before),
        }
    }

    /// The same of a socket that was found empty.
    pub fn after_all(self, now: Now) -> Option<Self> {
        matches!(self, Self::Until(until) if until > now).then_some(self)
    }
}

impl UdpFlow {
    /// A flow over this connected socket, which [`prepare_udp`](crate::host::socket::prepare_udp) has seen.
    pub fn new(socket: OwnedFd, now: Now) -> Self {
        Self {
            socket,
            last: now,
            seen: (0, 0),
            sent: Sent::default(),
            manner: None,
            segment: None,
            readable: false,
            starved: false,
            waits: false,
            roomy: false,
            bound: Bound::Elsewhere,
            pair: None,
            fresh: None,
        }
    }

    /// Whether something waits in its socket that may be another's.
    pub const fn may_bring_strays(&self) -> bool {
        self.readable && self.fresh.is_some()
    }

    /// The guest has sent a datagram.
    pub fn heard_guest(&mut self, now: Now) {
        self.last = now;
        self.seen.0 = self.seen.0.saturating_add(1).min(2);
    }

    /// A datagram has come from the host.
    pub fn heard_host(&mut self, now: Now) {
        self.last = now;
        self.seen.1 = self.seen.1.saturating_add(1).min(2);
    }

    /// Whether datagrams went back and forth: a stream, in the words of Linux's connection tracking.
    pub const fn is_stream(&self) -> bool {
        matches!(self.seen, (2.., 1..) | (1.., 2..))
    }
}

/// A flow's payloads in a [`Burst`]: the places of the first and of the last, counted from 1.
#[derive(Debug, Clone, Copy)]
pub struct Pieces {
    first: NonZeroU32,
    last: NonZeroU32,
}

/// The payloads a burst brought, by flow: every flow's are chained, and written together when the burst is done.
#[derive(Debug)]
pub struct Burst<I> {
    /// Every payload, and the place of the next one of its flow.
    pieces: Vec<(Slot, Option<NonZeroU32>)>,
    /// The flows that have something to do when the burst is done.
    pub touched: Vec<I>,
}

/// Segments one burst can hold, of the smallest there are.
const BURST_SEGMENTS: usize = 8192;

impl<I> Burst<I> {
    pub fn new() -> Self {
        Self {
            pieces: Vec::with_capacity(BURST_SEGMENTS),
            touched: Vec::with_capacity(BURST_SEGMENTS),
        }
    }

    /// Adds a payload to a flow's chain.
    pub fn push(&mut self, chain: &mut Option<Pieces>, slot: Slot) {
        self.pieces.push((slot, None));
        let Some(last) = NonZeroU32::new(self.pieces.len() as u32) else {
            return;
        };
        let first = match *chain {
            None => last,
            Some(before) => {
                if let Some((_, next)) = self.pieces.get_mut(before.last.get() as usize - 1) {
                    *next = Some(last);
                }
                before.first
            }
        };
        *chain = Some(Pieces { first, last });
    }

    /// The payloads of a chain, in order.
    pub fn chain(&self, chain: Option<Pieces>) -> impl Iterator<Item = Slot> + Clone + '_ {
        let mut at = chain.map(|chain| chain.first);
        std::iter::from_fn(move || {
            let (slot, next) = *self.pieces.get(at?.get() as usize - 1)?;
            at = next;
            Some(slot)
        })
    }

    /// Forgets the payloads; the burst's memory is about to be used again.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Up to 131,072 of them are reserved at start.
    #[test]
    fn a_flow_fits_256_octets() {
        assert!(size_of::<Flow>() <= 256, "{}", size_of::<Flow>());
    }

    #[test]
    fn the_newest_packet_that_fits_is_found() {
        let mut sent = Sent::default();
        assert_eq!(sent.find(b"", 0, true), None);
        for n in 0..6_u8 {
            sent.note(Packet {
                id: n.into(),
                len: 10,
                start: [n / 2, 0, 0, 0],
                ..Packet::default()
            });
        }
        let id = |start: &[u8], len| sent.find(start, len, true).map(|packet| packet.id);
        assert_eq!(id(&[1], 8), Some(3));
        assert_eq!(id(&[2, 0, 0, 0], 10), Some(5));
        assert_eq!(id(&[], 0), Some(5));
        assert_eq!((id(&[0], 0), id(&[2], 11)), (None, None));
        // With its IP header filled up to 128 octets, and with what a router says of itself behind them.
        assert_eq!((id(&[2], 107), id(&[2], 108)), (None, Some(5)));
        assert_eq!((id(&[1], 300), id(&[0], 300)), (Some(3), None));
    }
}
