//! The receiving side: the stream from guest to host, and the window we promise for it.

use super::{ranges::Ranges, saved::SavedReceiver, terms::SCALE};
use crate::{
    net::Seq,
    wire::tcp::{Flags, Sack},
};

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
    /// The right edge we promised. Never moves left, unless the promise was broken.
    edge: Seq,
    /// The right edge as the guest understood it: windows are told in units, so it may lie some octets beyond, and further once
    /// a promise was broken. What comes up to here is taken (RFC 7323, section 2.4), but never promised again: rounding must
    /// not let the edge creep.
    shown: Seq,
    /// The acknowledgement last sent.
    acked: Seq,
    /// Shift of the windows we send, zero if the guest cannot scale.
    scale: u8,
    /// Octets of the largest segment the guest may send.
    pub mss: u16,
    /// Where the guest's FIN stands, once it was seen.
    fin: Seq,
    ended: bool,
    /// What came twice, to be told once (D-SACK, RFC 2883): first octet, and how many.
    twice: (Seq, u32),
}

impl Receiver {
    /// `irs` is the sequence number of the guest's SYN, `mss` the one we announce.
    pub fn new(irs: Seq, mss: u16, scaling: bool) -> Self {
        let nxt = irs + 1;
        Self {
            nxt,
            edge: nxt,
            shown: nxt,
            acked: irs,
            scale: if scaling { SCALE } else { 0 },
            mss,
            fin: nxt,
            ended: false,
            twice: (nxt, 0),
        }
    }

    /// What has to be known to go on elsewhere.
    pub fn save(&self) -> SavedReceiver {
        SavedReceiver {
            nxt: self.nxt,
            edge: self.edge,
            shown: self.shown,
            acked: self.acked,
            mss: self.mss,
            fin: self.ended.then_some(self.fin),
        }
    }

    /// Goes on. What came behind a gap has to come again.
    pub fn restored(saved: &SavedReceiver, scaling: bool) -> Self {
        let mut receive = Self::new(saved.nxt - 1, saved.mss, scaling);
        (receive.edge, receive.shown) = (saved.edge, saved.shown);
        receive.acked = saved.acked;
        if let Some(fin) = saved.fin {
            receive.end(fin);
        }
        receive
    }

    /// Judges the place in the stream of a segment with so many octets of payload, and a FIN behind them or not.
    pub fn place(&self, seq: Seq, len: u32, fin: bool) -> Text {
        let end = seq + len;
        let span = len + u32::from(fin);
        if seq.after(self.nxt) {
            // An acknowledgement may stand at the very edge: what came before it was lost, or given back.
            return if seq.before(self.shown) || span == 0 && seq == self.shown {
                Text::Gap
            } else {
                Text::Outside
            };
        }
        let last = seq + span;
        if last.before(self.nxt) || (span > 0 && last == self.nxt) {
            return Text::Outside;
        }
        let skip = self.nxt.since(seq);
        let take = end.min(self.shown.max(self.nxt)).since(self.nxt);
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

    /// Gives back the last octets taken, as nobody could hold them, and with them what more was promised: a guest with a
    /// window would try ever more seldom, one without asks, and is told.
    pub fn give_back(&mut self, octets: u32) {
        self.nxt = self.nxt - octets;
        self.edge = self.nxt;
    }

    /// Octets of a segment behind a gap that lie inside the window.
    pub fn early(&self, seq: Seq, len: u32) -> u32 {
        (seq + len).min(self.shown).since(seq)
    }

    /// Where a segment stands that tells its window: beyond a promise that was taken back, where the guest may go on.
    pub fn place_of_window(&self, seq: Seq) -> Seq {
        if seq.after(self.edge) { self.nxt } else { seq }
    }

    /// Octets between the next one expected and this one.
    pub fn ahead(&self, seq: Seq) -> u32 {
        seq.since(self.nxt)
    }

    /// The guest's stream ends here, as far as is known.
    pub fn end(&mut self, at: Seq) {
        (self.fin, self.ended) = (at, true);
    }

    /// Whether what is expected next is a FIN that was seen already.
    pub fn at_end(&self) -> bool {
        self.ended && self.fin == self.nxt
    }

    /// Notes octets that were here already.
    pub fn came_twice(&mut self, seq: Seq, octets: u32) {
        self.twice = (seq, octets);
    }

    /// Whether a segment as old as this may tell the time: the last acknowledgement did not cover it (RFC 7323, section 4.3).
    pub fn may_tell_time(&self, seq: Seq) -> bool {
        !seq.after(self.acked)
    }

    /// What to tell of octets that came twice and of those behind a gap, each once or as often as there is room.
    pub fn blocks(&mut self, held: Option<&Ranges>) -> Sack {
        let mut sack = Sack::default();
        let (start, octets) = std::mem::take(&mut self.twice);
        if octets > 0 {
            sack.push(start, start + octets);
        }
        for (start, end) in held.into_iter().flat_map(Ranges::iter) {
            sack.push(start, end);
        }
        sack
    }

    /// Whether the guest waits for an acknowledgement.
    pub fn ack_due(&self) -> bool {
        self.acked != self.nxt
    }

    /// The window to announce with the next segment, given the octets the host can take beyond `nxt`. Unscaled for a SYN.
    ///
    /// The edge moves in useful steps only (RFC 9293, section 3.8.6.2.2), or if a guest that waits to send a whole segment then
    /// may; and not back.
    pub fn announce(&mut self, free: u32, flags: Flags) -> u16 {
        let scaled = self.scale > 0 && !flags.has(Flags::SYN);
        let scale = if scaled { self.scale } else { 0 };
        let allowed = free
            .min(u32::from(self.mss).saturating_mul(FRAMES).max(65_535))
            .min(65_535 << scale);
        // Whole units only, so that nothing is rounded while the window stays open.
        let wanted = self.nxt + (allowed >> scale << scale);
        let step = u32::from(self.mss).min(allowed / 2).max(1);
        let frees = self.frees_segment(self.edge.since(self.nxt), wanted.since(self.nxt));
        self.edge = if frees || wanted.since(self.edge) >= step {
            wanted
        } else {
            self.edge.max(self.nxt)
        };
        self.acked = self.nxt;
        let units = self.edge.since(self.nxt).div_ceil(1 << scale).min(65_535);
        self.shown = self.shown.max(self.nxt + (units << scale));
        units as u16
    }

    /// The least window, in octets, that the largest segment of the guest fits in: whole units.
    pub fn segment(&self) -> u32 {
        u32::from(self.mss).next_multiple_of(1 << self.scale)
    }

    /// Whether the largest segment fits a window of `then` octets, and does not fit the one of `now`.
    fn frees_segment(&self, now: u32, then: u32) -> bool {
        let mss = u32::from(self.mss);
        now < mss && then >= mss
    }

    /// Octets the guest may still send.
    pub fn promised(&self) -> u32 {
        let rounding = self.shown.since(self.edge) >> self.scale == 0;
        let edge = if rounding { self.shown } else { self.edge };
        edge.since(self.nxt)
    }

    /// Whether telling the guest of `free` octets would let it go on: the window was shut or small and would open well.
    pub fn would_open(&self, free: u32) -> bool {
        let promised = self.promised();
        let mss = u32::from(self.mss);
        let gain = free
            .min(mss.saturating_mul(FRAMES))
            .saturating_sub(promised);
        let useful = gain >= mss.min(free / 2).max(1);
        useful && (promised < mss.saturating_mul(2) || gain >= promised)
            || self.frees_segment(promised, free >> self.scale << self.scale)
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
        assert_eq!(edge, 10_000 / 256 * 256);
        assert_eq!(
            receiver.place(Seq(0), 100, false),
            Text::Next { skip: 0, take: 100 }
        );
        assert_eq!(
            receiver.place(Seq(0) - 50, 100, false),
            Text::Next { skip: 50, take: 50 }
        );
        assert_eq!(
            receiver.place(Seq(0), 20_000, false),
            Text::Next {
                skip: 0,
                take: edge
            }
        );
        assert_eq!(
            (receiver.early(Seq(10), 20_000), receiver.ahead(Seq(10))),
            (edge - 10, 10)
        );
        assert_eq!(receiver.place(Seq(1), 100, false), Text::Gap);
        assert_eq!(receiver.place(Seq(edge), 1, false), Text::Outside);
        assert_eq!(receiver.place(Seq(0) - 100, 100, false), Text::Outside);
        assert_eq!(receiver.place(Seq(0) - 1, 0, false), Text::Outside);
        assert_eq!(
            receiver.place(Seq(0), 0, false),
            Text::Next { skip: 0, take: 0 }
        );
    }

    #[test]
    fn a_shut_window_takes_only_empty_segments() {
        let receiver = Receiver::new(Seq(99), 1460, true);
        assert_eq!(
            receiver.place(Seq(100), 0, false),
            Text::Next { skip: 0, take: 0 }
        );
        assert_eq!(receiver.place(Seq(100), 1, false), Text::Outside);
    }

    #[test]
    fn the_edge_never_moves_left() {
        let mut receiver = receiver();
        let edge = receiver.edge;
        receiver.take(1000);
        receiver.announce(0, Flags::ACK);
        assert_eq!(receiver.edge, edge);
        receiver.take(8984);
        receiver.announce(5_000_000, Flags::ACK);
        assert!(receiver.edge.after(edge));
        assert!(receiver.promised() <= 512 * 1460);
    }

    /// A guest that sends octet by octet into a window that does not open gets to its edge, and no further than the rounding of
    /// one unit.
    #[test]
    fn the_edge_does_not_creep_by_rounding() {
        let mut receiver = receiver();
        let (first, edge) = (receiver.nxt, receiver.edge);
        let mut window = receiver.announce(0, Flags::ACK);
        while window > 0 {
            assert_eq!(
                receiver.place(receiver.nxt, 1, false),
                Text::Next { skip: 0, take: 1 }
            );
            receiver.take(1);
            window = receiver.announce(0, Flags::ACK);
            assert!(window == 0 || (receiver.nxt + (u32::from(window) << 8)).since(edge) < 256);
        }
        assert_eq!(receiver.nxt.since(first), edge.since(first));
        // What was shown is taken all the same.
        let slack = receiver.promised();
        assert!(slack < 256);
        receiver.take(slack);
        assert_eq!(receiver.announce(0, Flags::ACK), 0);
        assert_eq!(receiver.promised(), 0);
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

    /// A guest may wait for a window that fits a whole segment (RFC 9293, section 3.8.6.2.1): however little is missing.
    #[test]
    fn a_window_that_a_segment_fits_again_is_announced() {
        for missing in [200, 700] {
            let mut receiver = Receiver::new(Seq(7), 1460, true);
            let whole = receiver.segment();
            assert_eq!(whole, 1536);
            receiver.announce(2 * whole, Flags::ACK);
            receiver.take(2 * whole - (1460 - missing));
            receiver.announce(0, Flags::ACK);
            assert!(receiver.promised() < 1460 && !receiver.would_open(1459));
            assert!(receiver.would_open(whole));
            receiver.announce(whole, Flags::ACK);
            assert!(receiver.promised() >= 1460);
        }
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
