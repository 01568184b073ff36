//! A run: datagrams of one flow that follow one another in a burst of the guest, to leave by one call.

use super::flow::Packet;
use crate::{flow::Id, host::socket::Manner, link::Slot};

/// The most datagrams in a run.
const LONGEST: usize = 256;

/// The most datagrams in one message: UDP_MAX_SEGMENTS of kernels before 6.10.
const UDP_SEGMENTS_SENT: usize = 64;

/// Octets of payload in one message that the kernel cuts into datagrams (UDP_SEGMENT, udp(7)): what fits a packet.
const MESSAGE: usize = 65_000;

/// Datagrams that follow one another.
#[derive(Debug)]
pub struct Run {
    /// Whose they are, and how they travel: all alike.
    of: Option<(Id, Manner)>,
    list: Vec<Piece>,
}

/// A datagram in the burst.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub payload: Slot,
    pub packet: Packet,
}

impl Run {
    pub fn new() -> Self {
        Self {
            of: None,
            list: Vec::with_capacity(LONGEST),
        }
    }

    /// Whether a datagram of this flow can stand behind those that are here.
    pub fn takes(&self, id: Id, manner: Manner) -> bool {
        self.list.len() < LONGEST && self.of.is_none_or(|of| of == (id, manner))
    }

    pub fn push(&mut self, id: Id, piece: Piece) {
        self.of = Some((id, piece.packet.manner));
        self.list.push(piece);
    }

    /// Takes all out; the memory comes back by [`Run::put_back`].
    pub fn take(&mut self) -> Option<(Id, Manner, Vec<Piece>)> {
        let (id, manner) = self.of.take()?;
        Some((id, manner, std::mem::take(&mut self.list)))
    }

    pub fn put_back(&mut self, mut list: Vec<Piece>) {
        list.clear();
        self.list = list;
    }
}

/// How many datagrams at the front of a run make one message: all of the first one's size, which may be `largest` at most,
/// and one shorter at the end.
pub fn message(run: &[Piece], largest: usize) -> usize {
    let size = run.first().map_or(0, |piece| piece.payload.len());
    if size == 0 || size > largest {
        return 1;
    }
    let (mut octets, mut count) = (0, 0);
    for piece in run.iter().take(UDP_SEGMENTS_SENT) {
        let len = piece.payload.len();
        octets += len;
        if len == 0 || len > size || octets > MESSAGE {
            break;
        }
        count += 1;
        if len < size {
            break;
        }
    }
    count.max(1)
}
