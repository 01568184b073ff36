//! The receiving side: the stream from guest to host, and the window we promise for it.

use crate::{net::Seq, wire::tcp::Flags};

/// Window scale we offer: windows up to 16 MiB in steps of 256 octets.
pub const SCALE: u8 = 8;

/// Frames of a window at most, so that the guest's queue towards us (1,000 frames by default) never overflows.
const FRAMES: u32 = 512;

/// What became of a segment's text (RFC 9293, section 3.10.7.4, "first, check sequence number").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// The next octets of the stream: skip the first, take the rest. Both may be zero.
    Next { skip: u32, take: u32 },
    /// It starts behind a gap.
    Gap,
    /// It lies outside the window: old, or not allowed yet.
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiver {
    /// The next octet expected; those before are taken, or will be with the current burst.
    pub nxt: Seq,
    /// The right edge we promised. Never moves left.
    edge: Seq,
    /// The acknowledgement last sent.
    acked: Seq,
    /// Shift of the windows we send, zero if the guest cannot scale.
    scale: u8,
    /// Octets of the largest segment the guest may send.
    pub mss: u16,
}

impl Receiver {
    /// `irs` is the sequence number of the guest's SYN, `mss` the one we announce.
    pub fn new(irs: Seq, mss: u16, scaling: bool) -> Self {
        let nxt = irs + 1;
        Self {
            nxt,
            edge: nxt,
            acked: irs,
            scale: if scaling { SCALE } else { 0 },
            mss,
        }
    }

    /// Judges a segment's place in the stream.
    pub fn place(&self, seq: Seq, len: u32) -> Text {
        let end = seq + len;
        if seq.after(self.nxt) {
            return if seq.before(self.edge) {
                Text::Gap
            } else {
                Text::Outside
            };
        }
        if end.before(self.nxt) || (len > 0 && end == self.nxt) {
            return Text::Outside;
        }
        let skip = self.nxt.since(seq);
        let take = end.min(self.edge.max(self.nxt)).since(self.nxt);
        if len > skip && take == 0 {
            Text::Outside
        } else {
            Text::Next { skip, take }
        }
    }

    /// Takes the next octets of the stream.
    pub fn take(&mut self, octets: u32) {
        self.nxt += octets;
    }

    /// Gives back the last octets taken: nobody could hold them.
    pub fn give_back(&mut self, octets: u32) {
        self.nxt = self.nxt - octets;
    }

    /// Whether the guest waits for an acknowledgement.
    pub fn ack_due(&self) -> bool {
        self.acked != self.nxt
    }

    /// The window to announce with the next segment, given the octets the host can take beyond `nxt`. Unscaled for a SYN.
    ///
    /// The edge moves in useful steps only (RFC 9293, section 3.8.6.2.2), and never back.
    pub fn announce(&mut self, free: u32, flags: Flags) -> u16 {
        let most = if self.scale == 0 || flags.has(Flags::SYN) {
            65_535
        } else {
            65_535 << SCALE
        };
        let allowed = free
            .min(u32::from(self.mss).saturating_mul(FRAMES).max(65_535))
            .min(most);
        let wanted = self.nxt + allowed;
        let step = u32::from(self.mss).min(allowed / 2).max(1);
        let edge = if wanted.since(self.edge) >= step {
            wanted
        } else {
            self.edge.max(self.nxt)
        };
        let window = edge.since(self.nxt);
        self.acked = self.nxt;
        if flags.has(Flags::SYN) {
            let window = window.min(65_535);
            self.edge = self.nxt + window;
            return window as u16;
        }
        let units = window.div_ceil(1 << self.scale).min(65_535);
        self.edge = (self.nxt + (units << self.scale)).max(self.edge);
        units as u16
    }

    /// Octets still promised.
    pub fn promised(&self) -> u32 {
        self.edge.since(self.nxt)
    }

    /// Whether telling the guest of `free` octets would let it go on: the window was shut or small and would open well.
    pub fn would_open(&self, free: u32) -> bool {
        let promised = self.promised();
        let mss = u32::from(self.mss);
        let gain = free
            .min(mss.saturating_mul(FRAMES))
            .saturating_sub(promised);
        gain >= mss.min(free / 2).max(1) && (promised < mss.saturating_mul(2) || gain >= promised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver() -> Receiver {
        let mut receiver = Receiver::new(Seq(u32::MAX), 1460, true);
        receiver.announce(10_000, Flags::ACK);
        receiver
    }

    #[test]
    fn text_is_trimmed_to_the_window() {
        let receiver = receiver();
        let edge = receiver.promised();
        assert!((10_000..10_256).contains(&edge));
        assert_eq!(
            receiver.place(Seq(0), 100),
            Text::Next { skip: 0, take: 100 }
        );
        assert_eq!(
            receiver.place(Seq(0) - 50, 100),
            Text::Next { skip: 50, take: 50 }
        );
        assert_eq!(
            receiver.place(Seq(0), 20_000),
            Text::Next {
                skip: 0,
                take: edge
            }
        );
        assert_eq!(receiver.place(Seq(1), 100), Text::Gap);
        assert_eq!(receiver.place(Seq(edge), 1), Text::Outside);
        assert_eq!(receiver.place(Seq(0) - 100, 100), Text::Outside);
        assert_eq!(receiver.place(Seq(0) - 1, 0), Text::Outside);
        assert_eq!(receiver.place(Seq(0), 0), Text::Next { skip: 0, take: 0 });
    }

    #[test]
    fn a_shut_window_takes_only_empty_segments() {
        let receiver = Receiver::new(Seq(99), 1460, true);
        assert_eq!(receiver.place(Seq(100), 0), Text::Next { skip: 0, take: 0 });
        assert_eq!(receiver.place(Seq(100), 1), Text::Outside);
    }

    #[test]
    fn the_edge_never_moves_left() {
        let mut receiver = receiver();
        let edge = receiver.edge;
        receiver.take(1000);
        receiver.announce(0, Flags::ACK);
        assert!(
            !receiver.edge.before(edge) && receiver.edge.since(edge) < 256,
            "only by rounding"
        );
        receiver.take(9000);
        receiver.announce(5_000_000, Flags::ACK);
        assert!(receiver.edge.after(edge));
        assert!(receiver.promised() <= 512 * 1460 + 255);
    }

    #[test]
    fn a_small_gain_is_not_announced() {
        let mut receiver = receiver();
        let edge = receiver.edge;
        receiver.announce(10_500, Flags::ACK);
        assert_eq!(receiver.edge, edge);
        receiver.announce(12_000, Flags::ACK);
        assert!(receiver.edge.after(edge));
    }

    #[test]
    fn without_scaling_the_window_stays_below_64_kib() {
        let mut receiver = Receiver::new(Seq(0), 65_480, false);
        assert_eq!(receiver.announce(4 << 20, Flags::ACK), 65_535);
        assert_eq!(
            Receiver::new(Seq(0), 65_480, true).announce(4 << 20, Flags::SYN | Flags::ACK),
            65_535
        );
    }
}
