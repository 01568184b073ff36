//! What the machine wants done.

use crate::{
    net::{Seq, Span, Why},
    wire::{frame::Segment, headers::TcpFields, tcp::Flags},
};

/// When to acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    #[default]
    No,
    /// Once, when the burst is done.
    Burst,
    /// Now, and for this segment alone: duplicates count at the other end.
    Now,
}

impl Ack {
    /// At least once.
    pub(super) fn or_burst(self) -> Self {
        if self == Self::No { Self::Burst } else { self }
    }
}

/// An RST: all that differs from one to another. Every segment's [`Todo`] has room for one, so it is small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    pub seq: Seq,
    pub ack: Seq,
    pub flags: Flags,
}

impl From<TcpFields> for Reset {
    fn from(fields: TcpFields) -> Self {
        Self {
            seq: fields.seq,
            ack: fields.ack,
            flags: fields.flags,
        }
    }
}

impl From<Reset> for TcpFields {
    fn from(rst: Reset) -> Self {
        Self {
            seq: rst.seq,
            ack: rst.ack,
            flags: rst.flags,
            window: 0,
            options: None,
        }
    }
}

/// What `relay` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Todo {
    /// Octets of the segment's payload to hand to the host: skip the first, take the rest.
    pub take: Option<(u32, u32)>,
    /// Octets of the segment's payload, from its first on, that lie behind a gap: to be kept if there is room, and then told
    /// by `Conn::held`.
    pub hold: Option<u32>,
    /// Octets kept before that are next in the stream now, behind those of `take`.
    pub admit: u32,
    pub ack: Ack,
    /// Octets the host's socket may forget.
    pub forget: u32,
    /// The socket's peek offset must be set anew: `Conn::unacknowledged` octets behind those forgotten.
    pub seek: bool,
    /// More may be sent to the guest, or some of it again.
    pub pull: bool,
    /// The connection was established just now.
    pub open: bool,
    /// The guest does not answer: it is to be asked where it is.
    pub doubt: bool,
    /// A SYN is due.
    pub syn: bool,
    /// A SYN,ACK is due.
    pub syn_ack: bool,
    /// An RST is due, with these fields.
    pub rst: Option<Reset>,
    /// The guest is to be asked whether it is still there: with `Conn::question`.
    pub ask: bool,
    /// The host's peer is to be asked after so long a silence whether it is still there, as the guest does.
    pub keep_alive: Option<Span>,
    /// The guest aborted: so must the host's socket be.
    pub abort: bool,
    /// The segment belongs to a new connection between the same ports.
    pub anew: bool,
    pub dropped: Option<Why>,
}

impl Todo {
    pub(super) fn dropped(why: Why) -> Self {
        Self {
            dropped: Some(why),
            ..Self::default()
        }
    }

    pub(super) fn syn_ack() -> Self {
        Self {
            syn_ack: true,
            ..Self::default()
        }
    }

    pub(super) fn anew() -> Self {
        Self {
            anew: true,
            ..Self::default()
        }
    }

    pub(super) fn ack_now(why: Why) -> Self {
        Self {
            ack: Ack::Now,
            dropped: Some(why),
            ..Self::default()
        }
    }
}

/// The RST for a segment that belongs to no connection (RFC 9293, section 3.10.7.1); the segment itself must be none.
pub fn reset_for(segment: &Segment) -> TcpFields {
    let fin = u32::from(segment.flags.has(Flags::FIN));
    let syn = u32::from(segment.flags.has(Flags::SYN));
    let (seq, ack, flags) = if segment.flags.has(Flags::ACK) {
        (segment.ack, Seq(0), Flags::RST)
    } else {
        (
            Seq(0),
            segment.seq + segment.payload.len() as u32 + syn + fin,
            Flags::RST | Flags::ACK,
        )
    };
    TcpFields {
        seq,
        ack,
        flags,
        window: 0,
        options: None,
    }
}
