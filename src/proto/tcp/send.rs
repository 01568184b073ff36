//! The sending side: the stream from host to guest. Octets stay in the host's socket until the guest acknowledges them.

use super::rtt::Rtt;
use crate::net::{Now, Seq};

/// Retransmissions of the same octets before the connection is given up (R2 of RFC 9293, section 3.8.3).
const RETRIES: u8 = 15;

/// Duplicate acknowledgements that mean loss (RFC 5681, section 3.2).
const DUPLICATES: u8 = 3;

/// Octets in flight that keep a guest busy whose round trip is short.
const NEAR_FLIGHT: u32 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Oldest octet not acknowledged, next to send, and the highest ever sent.
    pub una: Seq,
    pub nxt: Seq,
    max: Seq,
    /// The guest's window, in octets from `una`, and the segment that last set it (SND.WL1, SND.WL2).
    window: u32,
    wl1: Seq,
    wl2: Seq,
    /// Shift of the guest's windows.
    scale: u8,
    /// Octets of payload the guest takes in a segment.
    pub mss: u16,
    /// Where our FIN stands, once the host's stream has ended.
    fin: Option<Seq>,
    rtt: Rtt,
    /// The end of the segment that is being timed, and when it left.
    timed: Option<(Seq, Now)>,
    backoff: u8,
    duplicates: u8,
    /// No fast retransmit again before this is acknowledged (RFC 6582, section 3.2).
    recover: Seq,
    /// A zero window may be probed with one octet.
    probing: bool,
    /// When to retransmit or probe.
    deadline: Option<Now>,
}

/// What an acknowledgement brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acked {
    /// Octets of the stream that the socket may forget.
    pub octets: u32,
    /// Whether our FIN is acknowledged.
    pub fin: bool,
    /// Whether `nxt` moved against what was read from the socket.
    pub seek: bool,
}

/// What the window of a segment brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Update {
    pub changed: bool,
    /// Whether `nxt` moved against what was read from the socket.
    pub seek: bool,
}

/// What to do when the deadline has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// Not yet.
    Early,
    /// Send again from `una`.
    Retransmit,
    GiveUp,
}

impl Sender {
    pub fn new(iss: Seq, window: u32, scale: u8, mss: u16) -> Self {
        Self {
            una: iss,
            nxt: iss,
            max: iss,
            window,
            wl1: Seq(0),
            wl2: iss,
            scale,
            mss,
            fin: None,
            rtt: Rtt::default(),
            timed: None,
            backoff: 0,
            duplicates: 0,
            recover: iss,
            probing: false,
            deadline: None,
        }
    }

    /// Octets of payload that may be sent now.
    pub fn sendable(&self) -> u32 {
        let most = self.fin.map_or(u32::MAX, |fin| fin.since(self.nxt));
        let window = if self.probing {
            self.window.max(1)
        } else {
            self.window
        };
        // More would only wait in queues, and in no cache any more.
        let useful = if self.rtt.is_near() {
            NEAR_FLIGHT
        } else {
            u32::MAX
        };
        (self.una + window.min(useful)).since(self.nxt).min(most)
    }

    pub fn in_flight(&self) -> u32 {
        self.nxt.since(self.una)
    }

    /// Whether a FIN is the next thing to send.
    pub fn fin_due(&self) -> bool {
        self.fin == Some(self.nxt) && (self.window > self.in_flight() || self.probing)
    }

    /// Whether the sequence number after the stream's end is `end`.
    pub fn ends_at(&self, end: Seq) -> bool {
        self.fin == Some(end)
    }

    /// The host's stream ends after what was sent.
    pub fn end(&mut self) {
        self.fin = self.fin.or(Some(self.nxt));
    }

    /// Notes sequence numbers sent: octets of payload, SYN, FIN.
    pub fn sent(&mut self, count: u32, now: Now) {
        // Only what was never sent before may be timed (Karn; RFC 6298, section 3).
        if self.timed.is_none() && self.nxt == self.max {
            self.timed = Some((self.nxt + count, now));
        }
        self.nxt += count;
        self.max = self.max.max(self.nxt);
        self.probing = false;
        if self.deadline.is_none() {
            self.deadline = Some(now + self.rtt.timeout(self.backoff));
        }
    }

    /// Whether an acknowledgement is for something sent (RFC 9293, section 3.10.7.4).
    pub fn acknowledges_unsent(&self, ack: Seq) -> bool {
        ack.after(self.max)
    }

    /// Takes the window of a segment whose acknowledgement is acceptable, unless a newer one is known.
    pub fn update_window(&mut self, seq: Seq, ack: Seq, window: u16) -> Update {
        let newer = self.wl1.before(seq) || (self.wl1 == seq && !ack.before(self.wl2));
        if !newer || ack.before(self.una) {
            return Update::default();
        }
        let window = u32::from(window) << self.scale;
        let old = std::mem::replace(&mut self.window, window);
        (self.wl1, self.wl2) = (seq, ack);
        // What was sent into a shut window can only be probes, and a guest need not have kept them.
        let probed = old == 0 && window > 0 && self.nxt.after(self.una);
        if probed {
            self.recover = self.una;
            self.rewind();
        }
        Update {
            changed: window != old,
            seek: probed,
        }
    }

    /// What the guest's SYN says of its windows and segments.
    pub const fn learn(&mut self, scale: u8, mss: u16) {
        (self.scale, self.mss) = (scale, mss);
    }

    /// What was sent last is sent again: its acknowledgement measures nothing.
    pub const fn forget_timing(&mut self) {
        self.timed = None;
    }

    /// The handshake's segments: their windows and order.
    pub fn establish(&mut self, seq: Seq, ack: Seq, window: u16, now: Now) {
        self.acknowledge(ack, now);
        (self.window, self.wl1, self.wl2) = (u32::from(window) << self.scale, seq, ack);
    }

    /// Takes an acceptable acknowledgement that is new.
    pub fn acknowledge(&mut self, ack: Seq, now: Now) -> Acked {
        if !ack.after(self.una) {
            return Acked::default();
        }
        if let Some((end, at)) = self.timed
            && !ack.before(end)
        {
            self.rtt.measured(now.since(at));
            self.timed = None;
        }
        let fin = self.fin.is_some_and(|fin| ack.after(fin));
        let octets = ack.since(self.una) - u32::from(fin);
        // The window counts from `una`; its right edge stays until the guest tells another.
        self.window = (self.una + self.window).since(ack);
        self.una = ack;
        let seek = ack.after(self.nxt);
        self.nxt = self.nxt.max(ack);
        (self.backoff, self.duplicates) = (0, 0);
        // Kept near, so that it never seems to lie ahead by wrapping.
        self.recover = self.recover.max(ack);
        self.deadline = self.max.after(ack).then(|| now + self.rtt.timeout(0));
        Acked { octets, fin, seek }
    }

    /// Counts an acknowledgement that brought nothing while octets are in flight. `true` if they are lost: `nxt` is back at
    /// `una` then.
    pub fn duplicate(&mut self) -> bool {
        // A FIN alone is left to the timer.
        let outstanding = self.fin.unwrap_or(self.max).min(self.max).since(self.una);
        if outstanding == 0 || self.una.before(self.recover) {
            return false;
        }
        self.duplicates = self.duplicates.saturating_add(1);
        if self.duplicates != DUPLICATES {
            return false;
        }
        self.recover = self.max;
        self.rewind();
        true
    }

    fn rewind(&mut self) {
        self.nxt = self.una;
        self.timed = None;
    }

    /// There is something to send, but the window is shut: probe when the time has come (RFC 9293, section 3.8.6.1).
    pub fn persist(&mut self, now: Now) {
        if self.deadline.is_none() {
            self.deadline = Some(now + self.rtt.timeout(self.backoff));
        }
    }

    /// How often the timer has run out since the guest last acknowledged something.
    pub const fn retries(&self) -> u8 {
        self.backoff
    }

    pub const fn deadline(&self) -> Option<Now> {
        self.deadline
    }

    /// An answer to a probe, even one that says the window is still shut, shows that the guest lives.
    pub fn heard(&mut self) {
        if self.window == 0 {
            self.backoff = self.backoff.min(RETRIES / 2);
        }
    }

    /// The deadline has come: what now?
    pub fn timeout(&mut self, now: Now) -> Timeout {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return Timeout::Early;
        }
        self.deadline = None;
        if self.backoff >= RETRIES {
            return Timeout::GiveUp;
        }
        self.backoff += 1;
        self.duplicates = 0;
        self.recover = self.max;
        self.probing = self.window == 0;
        self.rewind();
        // Armed again by what is sent now; if there is nothing, there is nothing to wait for.
        Timeout::Retransmit
    }
}
