//! What is remembered of a flow.

use std::{num::NonZeroU64, os::fd::OwnedFd};

use crate::{
    flow::{Chain, Lent},
    link::Slot,
    net::{Now, Seq, Span},
    proto::tcp::Conn,
};

/// One flow of the guest, and the host's socket behind it.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "flows lie in the table's slots: a box would be an allocation for each connection"
)]
pub enum Flow {
    Tcp(TcpFlow),
    Udp(UdpFlow),
    Echo(EchoFlow),
}

impl Flow {
    pub fn into_socket(self) -> OwnedFd {
        match self {
            Self::Tcp(flow) => flow.socket,
            Self::Udp(flow) => flow.socket,
            Self::Echo(flow) => flow.socket,
        }
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct TcpFlow {
    pub socket: OwnedFd,
    pub conn: Conn,
    pub syn: Syn,
    /// Whether the socket has a peek offset.
    pub peeks: bool,
    /// Octets taken from the guest that the kernel would not take yet, and those that came before others.
    pub spill: Chain,
    /// Octets at the front of the receive queue that the guest has acknowledged.
    pub forget: u32,
    /// What the socket could take when it was last asked; nothing was written to it since.
    pub space: Option<u32>,
    /// The earliest time the wheel will wake this flow, in microseconds as [`Now`] has them.
    pub armed: Option<NonZeroU64>,
    /// Payloads of the current burst, as a chain through [`Burst`].
    pub pieces: Option<(u32, u32)>,
    pub state: State,
}

/// The guest's SYN, which an ICMP error about it has to quote.
#[derive(Debug, Clone, Copy)]
pub struct Syn {
    pub seq: Seq,
    /// Octets of the whole segment.
    pub len: u16,
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
    /// Writing to the socket failed: once what it holds is read, the guest hears of it.
    pub failed: bool,
    /// We have asked to hear when the socket takes more.
    pub wants_space: bool,
    /// The flow waits in line for room on the link.
    pub starved: bool,
    /// An acknowledgement found no room on the link.
    pub owes_ack: bool,
    /// What is known of gaps in its streams.
    pub disorder: Option<Lent>,
    /// The flow is listed in the burst.
    pub touched: bool,
    pub ack: bool,
    pub pull: bool,
    pub over: bool,
}

/// A UDP flow: one connected socket for one pair of endpoints.
#[derive(Debug)]
pub struct UdpFlow {
    pub socket: OwnedFd,
    pub last: Now,
    /// Datagrams seen from the guest and from the host, up to two each: a stream lives longer than a question.
    pub seen: (u8, u8),
    /// Length and checksum of the last datagram from the guest, as its header has them: an ICMP error about it quotes them.
    pub header: (u16, u16),
    pub readable: bool,
    pub starved: bool,
    /// Nothing goes to the guest yet: it is not found.
    pub waits: bool,
}

/// A series of echo requests with one identifier.
#[derive(Debug)]
pub struct EchoFlow {
    pub socket: OwnedFd,
    pub last: Now,
    pub readable: bool,
    pub starved: bool,
}

/// How long a UDP flow lives after its last datagram: Linux's nf_conntrack_udp_timeout and _stream.
pub const UDP_TIMEOUT: Span = Span::secs(30);
pub const UDP_STREAM_TIMEOUT: Span = Span::secs(120);

/// How long an identifier is remembered after the last request or reply.
pub const ECHO_TIMEOUT: Span = Span::secs(60);

impl UdpFlow {
    pub const fn timeout(&self) -> Span {
        match self.seen {
            (2.., 1..) | (1.., 2..) => UDP_STREAM_TIMEOUT,
            _ => UDP_TIMEOUT,
        }
    }
}

/// The payloads a burst brought, by flow: every flow's are chained, and written together when the burst is done.
#[derive(Debug)]
pub struct Burst<I> {
    pieces: Vec<(Slot, u32)>,
    /// The flows that have something to do when the burst is done.
    pub touched: Vec<I>,
}

const END: u32 = u32::MAX;

impl<I> Burst<I> {
    pub fn new() -> Self {
        Self {
            pieces: Vec::with_capacity(4096),
            touched: Vec::with_capacity(1024),
        }
    }

    /// Adds a payload to a flow's chain.
    pub fn push(&mut self, chain: &mut Option<(u32, u32)>, slot: Slot) {
        let at = self.pieces.len() as u32;
        self.pieces.push((slot, END));
        *chain = match *chain {
            None => Some((at, at)),
            Some((first, last)) => {
                if let Some((_, next)) = self.pieces.get_mut(last as usize) {
                    *next = at;
                }
                Some((first, at))
            }
        };
    }

    /// The payloads of a chain, in order.
    pub fn chain(&self, chain: Option<(u32, u32)>) -> impl Iterator<Item = Slot> + Clone + '_ {
        let mut at = chain.map_or(END, |(first, _)| first);
        std::iter::from_fn(move || {
            let (slot, next) = *self.pieces.get(at as usize)?;
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

    /// Promise 6.
    #[test]
    fn a_flow_fits_256_octets() {
        assert!(size_of::<Flow>() <= 256, "{}", size_of::<Flow>());
    }
}
