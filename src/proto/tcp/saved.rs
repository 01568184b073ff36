//! A connection on its way to another process: what [`Conn`](super::conn::Conn) has to remember of it, in plain values.

use super::{phase::Half, terms::Terms};
use crate::net::Seq;

/// Where a connection stands that can be carried on elsewhere. One whose connect() on the host is under way cannot: the guest
/// repeats its SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    SynSent,
    SynReceived,
    Open { host: Half, guest: Half },
}

/// The stream from host to guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedSender {
    /// Oldest number not acknowledged, and the one after the highest ever sent.
    pub una: Seq,
    pub max: Seq,
    /// The guest's window in octets, the largest so far, and the segment that last set it (SND.WL1, SND.WL2).
    pub window: u32,
    pub largest: u32,
    pub wl1: Seq,
    pub wl2: Seq,
    /// Octets of payload the guest takes in a segment.
    pub mss: u16,
    /// Shift of the guest's windows.
    pub scale: u8,
    /// Where our FIN stands, once the host's stream has ended.
    pub fin: Option<Seq>,
}

/// The stream from guest to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedReceiver {
    pub nxt: Seq,
    /// The right edge promised, and as the guest understood it.
    pub edge: Seq,
    pub shown: Seq,
    /// The acknowledgement last sent.
    pub acked: Seq,
    /// Octets of the largest segment the guest may send.
    pub mss: u16,
    /// Where the guest's FIN stands, once it was seen.
    pub fin: Option<Seq>,
}

/// A connection as it stood at a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    pub stage: Stage,
    pub send: SavedSender,
    pub receive: SavedReceiver,
    pub terms: Terms,
    /// What our timestamps showed, and the guest's as last heard (TS.Recent).
    pub clock: u32,
    pub recent: u32,
}

/// The most that two numbers of one stream lie apart: the largest window there is (RFC 7323, section 2.3).
const SPREAD: u32 = 1 << 30;

impl Saved {
    /// Whether the numbers fit together: what comes from elsewhere may be anything.
    pub fn is_sound(&self) -> bool {
        let (send, receive) = (&self.send, &self.receive);
        let near = |from: Seq, to: Seq| to.0.wrapping_sub(from.0) <= SPREAD;
        let opening = matches!(self.stage, Stage::SynSent | Stage::SynReceived);
        let fin_fits = match self.stage {
            Stage::SynSent | Stage::SynReceived => send.fin.is_none(),
            Stage::Open { host, guest } => match host {
                Half::Open => send.fin.is_none(),
                Half::FinSeen | Half::FinSent => send
                    .fin
                    .is_some_and(|fin| near(send.una, fin) && near(send.max, fin + 1)),
                // A guest that has ended its own stream may have forgotten the other, wherever that stood.
                Half::Done => guest != Half::Open || send.fin == Some(send.una - 1),
            },
        };
        let of_send = near(send.una, send.max)
            && send.window <= send.largest
            && send.largest <= SPREAD
            && send.scale <= 14
            && fin_fits
            && (!opening || send.max == send.una + 1);
        // A FIN fits a shut window.
        let last = receive.shown + u32::from(receive.fin.is_some());
        let of_receive = near(receive.nxt, last)
            && near(receive.edge, receive.shown)
            && near(receive.acked, receive.nxt)
            && receive.fin.is_none_or(|fin| near(receive.nxt - 1, fin));
        let sizes = [send.mss, receive.mss, self.terms.mss];
        of_send && of_receive && !sizes.contains(&0)
    }
}
