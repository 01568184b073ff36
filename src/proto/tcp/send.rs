//! The sending side: the stream from host to guest. Octets stay in the host's socket until the guest acknowledges them.
//!
//! Where the guest tells what it holds (SACK), loss is what RFC 8985 (RACK-TLP) says it is, and only that is sent again.
//! Elsewhere three duplicate acknowledgements mean that the first segment is lost, and so does each acknowledgement of a
//! part (RFC 6582). There is no congestion control towards the guest: the link pushes back. Only a timeout, which means that
//! the guest had no room, halves what may be in flight.

use super::{
    disorder::{Disorder, Loss},
    flight::Flight,
    rtt::Rtt,
    saved::SavedSender,
};
use crate::{
    net::{Now, Seq, Span},
    wire::tcp::Sack,
};

/// Retransmissions of the same octets before the connection is given up (R2 of RFC 9293, section 3.8.3).
const RETRIES: u8 = 15;

/// Doublings of the time between probes of a shut window, as long as the guest answers them: an update of its window may have
/// been lost, and is made up for within seconds.
const ANSWERED: u8 = 4;

/// Duplicate acknowledgements, or segments that arrived behind a gap, that mean loss (RFC 5681, section 3.2; RFC 8985, 6.2).
const DUPLICATES: u8 = 3;

/// Octets in flight that keep a guest busy whose round trip is short.
const NEAR_FLIGHT: u32 = 1 << 20;

/// Octets worth a call to the kernel of their own, while so many times more are in flight that acknowledgements are sure to come.
const WORTH: u32 = 64 * 1024;
const PLENTY: u32 = 4;

/// The deadline of a timer that does not run.
const NEVER: Now = Now(u64::MAX);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Oldest octet not acknowledged, next to send, and the highest ever sent.
    pub una: Seq,
    pub nxt: Seq,
    max: Seq,
    /// The guest's window, in octets from `una`, and the segment that last set it (SND.WL1, SND.WL2).
    pub window: u32,
    wl1: Seq,
    wl2: Seq,
    /// The largest window so far.
    largest: u32,
    /// Octets that may be in flight after a timeout; `u32::MAX` when that is overcome.
    cap: u32,
    /// Where our FIN stands, once the host's stream has ended.
    fin: Seq,
    /// Round trips to the guest.
    pub rtt: Rtt,
    flight: Flight,
    /// Nothing from here on was sent twice: only that tells round trip times (Karn; RFC 6298, section 3).
    repaired: Seq,
    /// The end of what was in flight when a loss was noticed (RFC 6582, section 3.2).
    recover: Seq,
    /// Octets of payload the guest takes in a segment.
    pub mss: u16,
    /// Shift of the guest's windows.
    scale: u8,
    /// Whether the guest tells what it holds.
    sack: bool,
    /// There are gaps: what the guest holds is remembered.
    gaps: bool,
    /// The timer has run out: a zero window may be probed with one octet, a small one be filled.
    probing: bool,
    /// Quarters of a round trip that octets which seem to be late are waited for; none as long as no guest's acknowledgement
    /// came out of order (RFC 8985, section 6.2, steps 3 and 4).
    quarters: u8,
    ended: bool,
    backoff: u8,
    duplicates: u8,
    again: Again,
    timer: Timer,
    /// When the timer runs out; [`NEVER`] if it does not run.
    deadline: Now,
}

/// What is to be sent again without further knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Nothing,
    /// The first segment.
    Head,
    /// The last one, so that the guest tells what it misses.
    Tail,
}

/// What the deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// RTO, or a probe of a shut window.
    Retransmit,
    /// PTO (RFC 8985, section 7).
    Probe,
    /// Some octets will be taken for lost then (RFC 8985, section 6.3).
    Reorder,
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
    /// Whether what did not fit before, while nothing was in flight or the window was shut, may do so now.
    pub opened: bool,
    /// Whether `nxt` moved against what was read from the socket.
    pub seek: bool,
}

/// What to do when the deadline has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// Not yet.
    Early,
    /// Something may be lost now.
    Look,
    /// Send again from `una`.
    Retransmit,
    GiveUp,
}

impl Sender {
    pub fn new(iss: Seq, window: u32, scale: u8, mss: u16, sack: bool) -> Self {
        Self {
            una: iss,
            nxt: iss,
            max: iss,
            window,
            wl1: Seq(0),
            wl2: iss,
            largest: window,
            cap: u32::MAX,
            fin: iss,
            rtt: Rtt::default(),
            flight: Flight::default(),
            repaired: iss,
            recover: iss,
            mss,
            scale,
            sack,
            gaps: false,
            probing: false,
            quarters: 0,
            ended: false,
            backoff: 0,
            duplicates: 0,
            again: Again::Nothing,
            timer: Timer::Retransmit,
            deadline: NEVER,
        }
    }

    /// What has to be known to go on elsewhere.
    pub fn save(&self) -> SavedSender {
        SavedSender {
            una: self.una,
            max: self.max,
            window: self.window,
            largest: self.largest,
            wl1: self.wl1,
            wl2: self.wl2,
            mss: self.mss,
            scale: self.scale,
            fin: self.fin(),
        }
    }

    /// Goes on: whatever is not acknowledged will be sent again.
    pub fn restored(saved: &SavedSender, sack: bool, now: Now) -> Self {
        let mut send = Self::new(saved.una, saved.window, saved.scale, saved.mss, sack);
        (send.max, send.largest) = (saved.max, saved.largest);
        (send.wl1, send.wl2) = (saved.wl1, saved.wl2);
        (send.repaired, send.recover) = (saved.max, saved.una);
        if let Some(fin) = saved.fin {
            (send.fin, send.ended) = (fin, true);
        }
        if saved.max.after(saved.una) {
            send.wait_until(now + send.rtt.timeout(0));
        }
        send
    }

    /// Octets of payload that may be sent now.
    pub fn sendable(&self) -> u32 {
        let most = self.fin().map_or(u32::MAX, |fin| fin.since(self.nxt));
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
        (self.una + window.min(useful).min(self.cap))
            .since(self.nxt)
            .min(most)
    }

    /// Whether so little fits into the window that more than that should wait for more room (RFC 9293, section 3.8.6.2.1).
    pub fn is_silly(&self) -> bool {
        let usable = self.window.saturating_sub(self.in_flight());
        usable < u32::from(self.mss).min(self.largest / 2) && !self.probing
    }

    /// Whether a guest nearby has so much before it that the little which may be sent now waits for more acknowledgements.
    pub fn gathers(&self) -> bool {
        let calm = !self.gaps && self.nxt == self.max && self.backoff == 0;
        calm && self.rtt.is_near() && self.in_flight() >= PLENTY * WORTH && self.sendable() < WORTH
    }

    pub fn in_flight(&self) -> u32 {
        self.nxt.since(self.una)
    }

    /// Where our FIN stands, if the host's stream has ended.
    fn fin(&self) -> Option<Seq> {
        self.ended.then_some(self.fin)
    }

    /// Whether a FIN is the next thing to send.
    pub fn fin_due(&self) -> bool {
        self.fin() == Some(self.nxt) && (self.window > self.in_flight() || self.probing)
    }

    /// Whether the sequence number after the stream's end is `end`.
    pub fn ends_at(&self, end: Seq) -> bool {
        self.fin() == Some(end)
    }

    /// The host's stream ends after what was sent.
    pub fn end(&mut self) {
        if !self.ended {
            (self.fin, self.ended) = (self.nxt, true);
        }
    }

    /// Notes sequence numbers sent: octets of payload, SYN, FIN.
    pub fn sent(&mut self, count: u32, now: Now) {
        if self.nxt.before(self.max) {
            self.repaired = self.repaired.max(self.max.min(self.nxt + count));
        }
        self.nxt += count;
        self.max = self.max.max(self.nxt);
        self.flight.sent(self.nxt, now);
        self.probing = false;
        if self.deadline == NEVER {
            self.arm(now);
        }
    }

    /// Starts the timer for what is outstanding.
    fn arm(&mut self, now: Now) {
        let alone = self.max.since(self.una) <= u32::from(self.mss);
        let calm = self.sack && self.backoff == 0 && (self.gaps || self.nxt == self.max);
        let probe = self.rtt.probe(alone).filter(|_| calm && self.window > 0);
        let (timer, after) = match probe {
            Some(probe) => (Timer::Probe, probe),
            None => (Timer::Retransmit, self.rtt.timeout(self.backoff)),
        };
        (self.timer, self.deadline) = (timer, now + after);
    }

    /// Whether an acknowledgement is for something never sent, or too old to be of this guest (RFC 5961, section 5.2).
    pub fn acknowledges_wildly(&self, ack: Seq) -> bool {
        ack.after(self.max) || ack.before(self.una - self.largest)
    }

    /// Takes the window of a segment whose acknowledgement is acceptable, unless a newer one is known.
    pub fn update_window(
        &mut self,
        seq: Seq,
        ack: Seq,
        window: u16,
        disorder: Option<&mut Disorder>,
    ) -> Update {
        // What acknowledges more is newer wherever it stands: a guest whose window has shrunk speaks from further left.
        let newer = ack.after(self.wl2) || !seq.before(self.wl1);
        if !newer || ack.before(self.una) {
            return Update::default();
        }
        let window = self.octets(window, false);
        let old = std::mem::replace(&mut self.window, window);
        self.largest = self.largest.max(window);
        (self.wl1, self.wl2) = (seq, ack);
        let opened = window > old && (old == 0 || self.max == self.una);
        if opened {
            // What is sent now runs the timer anew (RFC 6298, section 5.1), and not that of probes.
            (self.timer, self.deadline, self.backoff) = (Timer::Retransmit, NEVER, 0);
        }
        // What was sent into a shut window can only be probes, and a guest need not have kept them.
        let probed = opened && self.nxt.after(self.una);
        if probed {
            self.recover = self.una;
            self.rewind(disorder, false);
        }
        Update {
            changed: window != old,
            opened,
            seek: probed,
        }
    }

    /// Windows told with octets from `seq` on are news again: they were given back.
    pub fn hear_again(&mut self, seq: Seq) {
        self.wl1 = self.wl1.min(seq);
    }

    /// What the guest's SYN says of its windows and segments, and whether it tells what it holds.
    pub const fn learn(&mut self, scale: u8, mss: u16, sack: bool) {
        (self.scale, self.mss, self.sack) = (scale, mss, sack);
    }

    /// What was sent last is sent again: its acknowledgement measures nothing.
    pub const fn forget_timing(&mut self) {
        self.repaired = self.max;
    }

    /// The octets of a window field, of a SYN or of another segment (RFC 7323, section 2.2).
    pub const fn octets(&self, window: u16, syn: bool) -> u32 {
        (window as u32) << if syn { 0 } else { self.scale }
    }

    /// The handshake's segments: their window in octets, and order.
    pub fn establish(&mut self, seq: Seq, ack: Seq, window: u32, now: Now) {
        self.acknowledge(ack, None, now);
        (self.window, self.wl1, self.wl2) = (window, seq, ack);
        self.largest = self.largest.max(self.window);
    }

    /// Takes an acceptable acknowledgement that is new.
    pub fn acknowledge(&mut self, ack: Seq, disorder: Option<&mut Disorder>, now: Now) -> Acked {
        if !ack.after(self.una) {
            return Acked::default();
        }
        if !self.una.before(self.repaired)
            && let Some(at) = self.flight.left_since(ack - 1)
        {
            // Of a mixed run acknowledged in part, nothing is known: the end of the one before was acknowledged with it.
            self.rtt.measured(at.age(now));
        }
        if let Some(disorder) = disorder {
            if !disorder.no_holes() && !disorder.was_resent(self.una) {
                self.quarters = self.quarters.max(1);
            }
            disorder.arrived(ack - 1, &self.flight, self.rtt.least(), now);
            disorder.acknowledged(ack);
            self.gaps = !disorder.no_holes();
        }
        self.flight.acknowledged(ack);
        let fin = self.fin().is_some_and(|fin| ack.after(fin));
        let octets = ack.since(self.una) - u32::from(fin);
        // The window counts from `una`; its right edge stays until the guest tells another.
        self.window = (self.una + self.window).since(ack);
        if self.cap != u32::MAX {
            self.cap = self.cap.saturating_add(octets);
            if self.cap > self.largest {
                self.cap = u32::MAX;
            }
        }
        // A part of what was in flight when the first segment was lost: so is the next (RFC 6582, section 3.2, step 3).
        let partly = !self.gaps && self.duplicates >= DUPLICATES && ack.before(self.recover);
        self.again = if partly { Again::Head } else { Again::Nothing };
        self.duplicates = if partly { DUPLICATES } else { 0 };
        self.una = ack;
        let seek = ack.after(self.nxt);
        self.nxt = self.nxt.max(ack);
        self.backoff = 0;
        // Kept near, so that they never seem to lie ahead by wrapping.
        self.recover = self.recover.max(ack);
        self.repaired = self.repaired.max(ack);
        self.deadline = NEVER;
        if self.max.after(ack) {
            self.arm(now);
        }
        Acked { octets, fin, seek }
    }

    /// Takes what the guest says it holds. `true` if that is news.
    pub fn acknowledge_blocks(
        &mut self,
        sack: &Sack,
        ack: Seq,
        disorder: &mut Disorder,
        now: Now,
    ) -> bool {
        let mut news = false;
        let top = disorder.sacked.end();
        for (at, &(start, end)) in sack.blocks().iter().enumerate() {
            let repeated = at == 0
                && sack
                    .blocks()
                    .get(1)
                    .is_some_and(|&(outer, until)| !start.before(outer) && !end.after(until));
            if start.before(ack) || repeated {
                // D-SACK (RFC 2883): what was sent again had arrived, so more time is given (RFC 8985, section 6.2, step 4).
                self.quarters = self.quarters.saturating_add(1).min(16);
                continue;
            }
            // An acknowledgement that was overtaken tells of what has been acknowledged since.
            let known = !end.after(self.una) || disorder.sacked.covers(start, end);
            if known || !start.before(end) || end.after(self.max) {
                continue;
            }
            let late = top.is_some_and(|top| end.before(top));
            if late && !disorder.was_resent(start) {
                self.quarters = self.quarters.max(1);
            }
            if disorder.sacked.insert(start.max(self.una), end) {
                disorder.arrived(end - 1, &self.flight, self.rtt.least(), now);
                news = true;
            }
        }
        self.gaps = !disorder.no_holes();
        news
    }

    /// Counts an acknowledgement that brought nothing while octets are in flight. `true` if the first segment is lost.
    pub fn duplicate(&mut self) -> bool {
        // A FIN alone is left to the timer.
        let outstanding = self.fin().unwrap_or(self.max).min(self.max).since(self.una);
        if outstanding == 0 || self.gaps || self.una.before(self.recover) {
            return false;
        }
        self.duplicates = self.duplicates.saturating_add(1);
        if self.duplicates != DUPLICATES {
            return false;
        }
        self.recover = self.max;
        self.again = Again::Head;
        true
    }

    /// Octets to send again: where they begin, and how many; none for a FIN.
    pub fn resend(&mut self, disorder: Option<&Disorder>, now: Now) -> Option<(Seq, u32)> {
        let end = self.fin().unwrap_or(self.max).min(self.max);
        let edge = end.min(self.una + self.window);
        let mss = u32::from(self.mss);
        let (start, until) = match self.again {
            Again::Head => (self.una, self.una + mss),
            Again::Tail if end.after(self.una) => ((end - mss).max(self.una), end),
            Again::Tail => return self.max.after(self.una).then_some((end, 0)),
            Again::Nothing => {
                match disorder?.loss(self.una, &self.flight, self.patience(disorder?), now) {
                    Loss::None => return None,
                    Loss::Lost(start, until) => (start, until),
                    Loss::Wait(span) => {
                        let at = now + span;
                        if at < self.deadline {
                            (self.timer, self.deadline) = (Timer::Reorder, at);
                        }
                        return None;
                    }
                }
            }
        };
        let octets = until.min(edge).since(start);
        if octets == 0 {
            self.again = Again::Nothing;
            return None;
        }
        Some((start, octets))
    }

    /// How long octets are waited for that seem to be late (RACK.reo_wnd; RFC 8985, section 6.2, step 4).
    fn patience(&self, disorder: &Disorder) -> Span {
        let many = disorder.sacked.octets() >= u32::from(DUPLICATES) * u32::from(self.mss);
        if self.quarters == 0 && (many || self.una.before(self.recover)) {
            return Span::ZERO;
        }
        let quarters = u64::from(self.quarters.max(1));
        Span(self.rtt.least().0 / 4 * quarters).min(self.rtt.smoothed())
    }

    /// Notes octets sent again, or a FIN.
    pub fn resent(&mut self, start: Seq, count: u32, disorder: Option<&mut Disorder>, now: Now) {
        let end = start + count;
        if self.again == Again::Nothing {
            self.recover = self.recover.max(self.max);
        }
        self.again = Again::Nothing;
        self.repaired = self.repaired.max(end);
        if let Some(disorder) = disorder {
            disorder.note_resent(start, end, now);
        }
        (self.timer, self.deadline) = (Timer::Retransmit, now + self.rtt.timeout(self.backoff));
    }

    /// Steps over what the guest holds, when everything else is sent again. `true` if `nxt` moved.
    pub fn step_over(&mut self, disorder: &Disorder) -> bool {
        let Some((_, end)) = disorder.sacked.containing(self.nxt) else {
            return false;
        };
        self.nxt = end.min(self.max);
        true
    }

    /// Octets from the next to send up to what the guest holds.
    pub fn gap(&self, disorder: &Disorder) -> u32 {
        let next = disorder.sacked.next(self.nxt);
        next.map_or(u32::MAX, |start| start.since(self.nxt))
    }

    /// Sends anew from `una`, but for what the guest holds: nothing of what was in flight is known any more to have left before
    /// something that arrived. A guest may have broken its word on what it holds: `all` goes again then.
    pub fn rewind(&mut self, disorder: Option<&mut Disorder>, all: bool) {
        self.nxt = self.una;
        self.repaired = self.repaired.max(self.max);
        self.flight.clear();
        if let Some(disorder) = disorder {
            disorder.restart(self.una, all);
            self.gaps = !disorder.no_holes();
        }
    }

    /// There is something to send, but the window is shut: probe when the time has come (RFC 9293, section 3.8.6.1).
    pub fn persist(&mut self, now: Now) {
        if self.deadline == NEVER {
            (self.timer, self.deadline) = (Timer::Retransmit, now + self.rtt.timeout(self.backoff));
        }
    }

    /// How often the timer has run out since the guest last acknowledged something.
    pub const fn retries(&self) -> u8 {
        self.backoff
    }

    pub fn deadline(&self) -> Option<Now> {
        (self.deadline != NEVER).then_some(self.deadline)
    }

    /// Has the timer run out then.
    pub const fn wait_until(&mut self, at: Now) {
        (self.timer, self.deadline) = (Timer::Retransmit, at);
    }

    /// An answer to a probe, even one that says the window is still shut, shows that the guest lives.
    pub fn heard(&mut self) {
        if self.window == 0 {
            self.backoff = self.backoff.min(ANSWERED);
        }
    }

    /// The deadline has come: what now?
    pub fn timeout(&mut self, disorder: Option<&mut Disorder>, now: Now) -> Timeout {
        if self.deadline > now {
            return Timeout::Early;
        }
        self.deadline = NEVER;
        if self.timer != Timer::Retransmit && self.max.after(self.una) {
            if self.timer == Timer::Probe {
                // Of what was sent again together, the end may be lost again: only something sent later tells.
                self.again = if self.gaps { Again::Head } else { Again::Tail };
            }
            let timeout = self.rtt.timeout(self.backoff);
            self.wait_until(now + timeout);
            return Timeout::Look;
        }
        if self.backoff >= RETRIES {
            return Timeout::GiveUp;
        }
        self.backoff += 1;
        self.duplicates = 0;
        self.again = Again::Nothing;
        self.recover = self.max;
        // Into a window too small to be worth filling until now, and even one that is shut.
        self.probing = true;
        if self.window > 0 && self.in_flight() > 0 {
            self.cap = (self.in_flight() / 2).max(2 * u32::from(self.mss));
        }
        self.rewind(disorder, self.backoff > 1);
        // Armed again by what is sent now; if there is nothing, there is nothing to wait for.
        Timeout::Retransmit
    }
}
