//! A TCP connection of the guest, as a translator keeps it: sequence numbers, windows and the two ends of the streams. It
//! holds no octets: those to the guest stay in the host's socket until acknowledged, those from the guest are handed on.
//!
//! The guest opens connections, or is asked by a SYN of ours to take one (`syn.rs`).
//!
//! Facts go in by `segment`, `connected`, `sent`, `ended`, `expired`; what is to be done about them comes back as a [`Todo`].
//! What a connection has to remember while its streams have gaps is a [`Disorder`], which it is lent for as long. How far it
//! has come is its [`Phase`].
//!
//! Always true: the edge of a window that was promised never moves left, but where no room is left for what came; what is
//! acknowledged was taken by the host's socket or lies in the spill pool; what the guest has not acknowledged is still in the
//! host's socket; a FIN goes on only behind every octet before it.
#![doc = include_str!("rfc.md")]

mod syn;

mod phase;

mod todo;

mod terms;

mod saved;

mod ranges;

mod flight;

mod delay;

mod disorder;

mod idle;

mod rtt;

mod receive;

mod send;

mod conn;

pub use conn::Conn;
pub use delay::DELAY;
pub use disorder::Disorder;
pub use phase::{Half, Phase};
pub use saved::{Saved, SavedReceiver, SavedSender, Stage};
pub use syn::SynRetries;
pub use terms::{Origin, Terms};
pub use todo::{Ack, Todo, reset_for};

use crate::{
    net::{Now, Seq, Span, Why},
    wire::{
        frame::Segment,
        tcp::{Flags, Timestamps},
    },
};
use delay::Delay;
use idle::Idle;
use receive::{Receiver, Text};
use send::{Sender, Timeout};
use syn::{Answer, Asking};
use terms::Clock;

/// Repetitions of SYN,ACK before the guest is given up; Linux's `tcp_synack_retries`.
const SYN_ACK_RETRIES: u8 = 5;

/// Retransmissions of the same octets from which on the guest may be elsewhere (R1 of RFC 9293, section 3.8.3).
const DOUBTFUL: u8 = 3;

/// Silence after which timestamps say nothing any more (RFC 7323, section 5.5).
const OUTDATED: Span = Span::secs(24 * 24 * 3600);

impl Conn {
    /// A connection begins with the guest's SYN. `mss` is the segment size of the link.
    pub fn new(syn: &Segment, origin: Origin, mss: u16) -> Self {
        let terms = Terms::ours(mss).with(&syn.options);
        let scale = syn.options.window_scale.unwrap_or(0);
        let segment = terms.segment_to(&syn.options);
        Self {
            phase: Phase::Connecting,
            send: Sender::new(origin.iss, 0, scale, segment, terms.sack),
            receive: Receiver::new(syn.seq, mss, terms.scaling),
            terms,
            clock: Clock::new(origin.clock, syn.options.timestamps),
            idle: Idle::default(),
            delay: Delay::default(),
        }
    }

    /// A connection that a peer of the host has opened; the guest is asked by [`Conn::syn`]. `mss` is the segment size of
    /// the link.
    pub fn toward_guest(origin: Origin, mss: u16, retries: SynRetries, now: Now) -> Self {
        let mut send = Sender::new(origin.iss, 0, 0, mss, false);
        send.sent(1, now);
        let asking = Asking::new(retries);
        send.wait_until(now + asking.interval());
        Self {
            phase: Phase::SynSent(asking),
            send,
            receive: Receiver::new(Seq(0), mss, true),
            terms: Terms::ours(mss),
            clock: Clock::new(origin.clock, None),
            idle: Idle::default(),
            delay: Delay::default(),
        }
    }

    /// The host's connect() succeeded.
    pub fn connected(&mut self, now: Now) -> Todo {
        if self.phase != Phase::Connecting {
            return Todo::default();
        }
        self.phase = Phase::SynReceived;
        self.send.sent(1, now);
        Todo::syn_ack()
    }

    /// The deadline has come.
    pub fn expired(&mut self, disorder: Option<&mut Disorder>, now: Now) -> Todo {
        let retries = match self.phase {
            Phase::SynSent(asking) => return self.syn_expired(asking, now),
            _ if self.is_lingering() || self.send.deadline().is_none() => return self.silent(now),
            Phase::SynReceived => self.send.retries(),
            Phase::Connecting | Phase::Open { .. } | Phase::Closed => 0,
        };
        match self.send.timeout(disorder, now) {
            Timeout::Early => Todo::default(),
            Timeout::GiveUp => self.give_up(),
            Timeout::Retransmit if self.phase == Phase::SynReceived => {
                if retries >= SYN_ACK_RETRIES {
                    return self.give_up();
                }
                self.send.sent(1, now);
                Todo::syn_ack()
            }
            Timeout::Look => Todo {
                pull: true,
                ..Todo::default()
            },
            Timeout::Retransmit => Todo {
                doubt: self.send.retries() >= DOUBTFUL,
                seek: true,
                pull: true,
                ..Todo::default()
            },
        }
    }

    /// Nothing is outstanding, and the guest may have said nothing for long.
    fn silent(&mut self, now: Now) -> Todo {
        let open = matches!(self.phase, Phase::Open { .. });
        if !open || self.deadline().is_none_or(|due| due > now) {
            return Todo::default();
        }
        if self.is_lingering() || !self.idle.ask(now) {
            return self.give_up();
        }
        Todo {
            doubt: true,
            ask: true,
            ..Todo::default()
        }
    }

    /// A segment of the guest. Where [`Conn::is_disordered_by`] it, or the connection was lent a `disorder` before, that should
    /// be there; without one the rest is done.
    pub fn segment(
        &mut self,
        segment: &Segment,
        disorder: Option<&mut Disorder>,
        now: Now,
    ) -> Todo {
        match self.phase {
            Phase::SynSent(_) => self.while_syn_sent(segment, now),
            Phase::Connecting => self.while_connecting(segment),
            Phase::SynReceived => self.while_syn_received(segment, disorder, now),
            Phase::Open { .. } => self.while_open(segment, disorder, now),
            Phase::Closed => Todo::dropped(Why::OutOfWindow),
        }
    }

    fn while_syn_sent(&mut self, segment: &Segment, now: Now) -> Todo {
        let answer = syn::answer(segment, self.send.nxt);
        match answer {
            Answer::Accepted | Answer::Crossed => {}
            Answer::Refused => return self.aborted(),
            Answer::Stale => {
                return Todo {
                    rst: Some(reset_for(segment).into()),
                    ..Todo::dropped(Why::OutOfWindow)
                };
            }
            Answer::Nothing => return Todo::dropped(Why::OutOfWindow),
        }
        let theirs = &segment.options;
        self.terms = self.terms.with(theirs);
        let (scale, mss) = (
            theirs.window_scale.unwrap_or(0),
            self.terms.segment_to(theirs),
        );
        self.receive = Receiver::new(segment.seq, self.receive.mss, self.terms.scaling);
        if let Some(stamps) = theirs.timestamps {
            self.clock.outlived(stamps);
        }
        self.idle.heard(now);
        if answer == Answer::Crossed {
            self.phase = Phase::SynReceived;
            self.send.learn(scale, mss, self.terms.sack);
            return Todo::syn_ack();
        }
        // The window of a SYN is not scaled (RFC 7323, section 2.2).
        let window = u32::from(segment.window);
        self.send.establish(segment.seq, segment.ack, window, now);
        self.send.learn(scale, mss, self.terms.sack);
        self.phase = Phase::established();
        Todo {
            open: true,
            pull: true,
            ack: Ack::Now,
            ..Todo::default()
        }
    }

    /// Our SYN was not answered in time.
    fn syn_expired(&mut self, asking: Asking, now: Now) -> Todo {
        if self.send.deadline().is_some_and(|due| due > now) {
            return Todo::default();
        }
        let Some(asking) = asking.again() else {
            return self.give_up();
        };
        self.phase = Phase::SynSent(asking);
        self.send.wait_until(now + asking.interval());
        // Which of them is answered cannot be told (Karn; RFC 6298, section 3).
        self.send.forget_timing();
        Todo {
            doubt: true,
            syn: true,
            ..Todo::default()
        }
    }

    fn while_connecting(&mut self, segment: &Segment) -> Todo {
        if segment.flags.has(Flags::RST) {
            let ours = segment.seq == self.receive.nxt;
            return if ours {
                self.aborted()
            } else {
                Todo::dropped(Why::OutOfWindow)
            };
        }
        if segment.flags.has(Flags::SYN) && segment.seq + 1 != self.receive.nxt {
            return Todo::anew();
        }
        // A repeated SYN is answered when the host has decided.
        Todo::dropped(Why::OutOfWindow)
    }

    fn while_syn_received(
        &mut self,
        segment: &Segment,
        disorder: Option<&mut Disorder>,
        now: Now,
    ) -> Todo {
        if segment.flags.has(Flags::RST) || !segment.flags.has(Flags::ACK) {
            if segment.flags.has(Flags::SYN) && segment.seq + 1 == self.receive.nxt {
                self.send.forget_timing();
                return Todo::syn_ack();
            }
            if segment.flags.has(Flags::RST) && segment.seq == self.receive.nxt {
                return self.aborted();
            }
            let anew = segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::RST);
            return if anew {
                Todo::anew()
            } else {
                Todo::dropped(Why::OutOfWindow)
            };
        }
        if segment.ack != self.send.nxt {
            return Todo {
                rst: Some(reset_for(segment).into()),
                dropped: Some(Why::OutOfWindow),
                ..Todo::default()
            };
        }
        // A SYN with the ACK: the guest asked when we did.
        let syn = segment.flags.has(Flags::SYN);
        let fin = segment.flags.has(Flags::FIN);
        let text = segment.seq + u32::from(syn);
        let len = segment.payload.len() as u32;
        if self.receive.place(text, len, fin) == Text::Outside {
            return Todo::ack_now(Why::OutOfWindow);
        }
        let window = self.send.octets(segment.window, syn);
        self.send.establish(segment.seq, segment.ack, window, now);
        self.phase = Phase::established();
        Todo {
            open: true,
            pull: true,
            ..self.while_open(segment, disorder, now)
        }
    }

    /// RFC 9293, section 3.10.7.4, in its order.
    fn while_open(
        &mut self,
        segment: &Segment,
        mut disorder: Option<&mut Disorder>,
        now: Now,
    ) -> Todo {
        let len = segment.payload.len() as u32;
        let flags = segment.flags;
        let text = self.receive.place(segment.seq, len, flags.has(Flags::FIN));
        let (silence, unasked) = (self.idle.silence(now), self.idle.unasked(now));
        let plain = text == (Text::Next { skip: 0, take: 0 }) && flags == Flags::ACK;
        if plain && self.idle.is_asked() {
            self.idle.answered(now);
        } else {
            self.idle.heard(now);
        }
        if let Some(stamps) = segment.options.timestamps
            && self.is_from_the_past(stamps, flags, silence)
        {
            return Todo::ack_now(Why::OutOfWindow);
        }
        if flags.has(Flags::RST) {
            // RFC 5961, section 3.2: exact resets, inside the window challenges.
            return match text {
                _ if segment.seq == self.receive.nxt => self.aborted(),
                Text::Outside => Todo::dropped(Why::OutOfWindow),
                Text::Gap | Text::Next { .. } => Todo::ack_now(Why::OutOfWindow),
            };
        }
        // RFC 5961, section 4.2: a SYN is challenged. A guest that started anew answers with an exact RST.
        if flags.has(Flags::SYN) {
            return Todo::ack_now(Why::OutOfWindow);
        }
        if !flags.has(Flags::ACK) {
            return Todo::dropped(Why::OutOfWindow);
        }
        // A shut window still takes acknowledgements (RFC 9293, section 3.10.7.4).
        let shut = text == Text::Outside && segment.seq == self.receive.nxt;
        if text == Text::Outside && !shut {
            return self.outside(segment, unasked, disorder, now);
        }
        if self.send.acknowledges_wildly(segment.ack) {
            return Todo::ack_now(Why::OutOfWindow);
        }
        if let Some(stamps) = segment.options.timestamps
            && self.receive.may_tell_time(segment.seq)
        {
            self.clock.heard(stamps);
            // A guest that only sends acknowledges nothing new: its first answer may have stood in a long queue.
            self.send
                .rtt
                .took_at_most(self.clock.age_at_most(stamps, now));
        }
        let at = self.receive.place_of_window(segment.seq);
        let mut todo = self.acknowledged(segment, at, disorder.as_deref_mut(), now);
        match text {
            Text::Outside => (todo.ack, todo.dropped) = (Ack::Now, Some(Why::OutOfWindow)),
            Text::Gap => self.early(segment, disorder.as_deref(), &mut todo),
            Text::Next { skip, take } => self.text(segment, skip, take, disorder, &mut todo),
        }
        todo
    }

    /// PAWS (RFC 7323, section 5.3): a reset is never from the past, and after long silence nothing is.
    fn is_from_the_past(&mut self, stamps: Timestamps, flags: Flags, silence: Span) -> bool {
        if !self.terms.timestamps || flags.has(Flags::RST) || !self.clock.is_old(stamps) {
            return false;
        }
        let outdated = silence > OUTDATED;
        if outdated {
            self.clock.outlived(stamps);
        }
        !outdated
    }

    /// A segment that is old, or not allowed yet: it is acknowledged.
    fn outside(
        &mut self,
        segment: &Segment,
        silence: Span,
        disorder: Option<&mut Disorder>,
        now: Now,
    ) -> Todo {
        let len = segment.payload.len() as u32;
        let old = segment.seq.before(self.receive.nxt);
        // An octet before those expected, or none: a keepalive (RFC 9293, section 3.8.4), or a probe of a shut window.
        let fin = segment.flags.has(Flags::FIN);
        let question = segment.seq + 1 == self.receive.nxt && len <= 1 && !fin;
        let span = len + u32::from(fin);
        if old && span > 0 && !question {
            self.receive.came_twice(segment.seq, span);
        }
        if !question {
            return Todo::ack_now(Why::OutOfWindow);
        }
        // Its acknowledgement and window are news all the same.
        let heard = if self.send.acknowledges_wildly(segment.ack) {
            Todo::default()
        } else {
            self.acknowledged(segment, self.receive.nxt, disorder, now)
        };
        Todo {
            keep_alive: (self.promised() > 0).then_some(silence),
            ack: Ack::Now,
            dropped: Some(Why::OutOfWindow),
            ..heard
        }
    }

    /// The acknowledgement and window of an acceptable segment, which are as new as `seq`.
    fn acknowledged(
        &mut self,
        segment: &Segment,
        seq: Seq,
        mut disorder: Option<&mut Disorder>,
        now: Now,
    ) -> Todo {
        let before = self.send.sendable();
        let new = segment.ack.after(self.send.una);
        let acked = self
            .send
            .acknowledge(segment.ack, disorder.as_deref_mut(), now);
        let update =
            self.send
                .update_window(seq, segment.ack, segment.window, disorder.as_deref_mut());
        self.send.heard();
        if acked.fin
            && let Phase::Open { host, .. } = &mut self.phase
        {
            *host = Half::Done;
        }
        let sack = &segment.options.sack;
        let mut lost = match disorder {
            Some(disorder) if self.terms.sack && !sack.is_empty() => {
                self.send
                    .acknowledge_blocks(sack, segment.ack, disorder, now)
            }
            _ => false,
        };
        let repeated = !new
            && !update.changed
            && segment.payload.is_empty()
            && segment.window != 0
            && !segment.flags.has(Flags::FIN);
        lost |= repeated && segment.ack == self.send.una && self.send.duplicate();
        Todo {
            forget: acked.octets,
            seek: acked.seek || update.seek,
            pull: lost || update.opened || new || self.send.sendable() > before,
            ..Todo::default()
        }
    }

    /// The text and FIN of a segment behind a gap.
    fn early(&mut self, segment: &Segment, disorder: Option<&Disorder>, todo: &mut Todo) {
        let len = segment.payload.len() as u32;
        let fin = segment.flags.has(Flags::FIN);
        if len == 0 && !fin {
            return;
        }
        todo.ack = Ack::Now;
        let Phase::Open {
            guest: Half::Open, ..
        } = self.phase
        else {
            return;
        };
        let end = segment.seq + len;
        let take = self.receive.early(segment.seq, len);
        if fin && take == len {
            self.receive.end(end);
        }
        match disorder {
            Some(disorder) if take > 0 => {
                if disorder.held.covers(segment.seq, segment.seq + take) {
                    self.receive.came_twice(segment.seq, take);
                } else {
                    todo.hold = Some(take);
                }
            }
            _ if len > 0 => todo.dropped = Some(Why::OutOfOrder),
            _ => {}
        }
    }

    /// The text and FIN of a segment that continues the stream.
    fn text(
        &mut self,
        segment: &Segment,
        skip: u32,
        take: u32,
        disorder: Option<&mut Disorder>,
        todo: &mut Todo,
    ) {
        let len = segment.payload.len() as u32;
        let Phase::Open { guest, .. } = &mut self.phase else {
            return;
        };
        if *guest != Half::Open {
            // Nothing follows a FIN: what comes is a repetition, or nonsense.
            if take > 0 || skip > 0 || segment.flags.has(Flags::FIN) {
                todo.ack = Ack::Now;
            }
            return;
        }
        if skip > 0 {
            self.receive.came_twice(segment.seq, skip.min(len));
        }
        if take > 0 {
            self.delay.took(take, !self.receive.ack_due());
            self.receive.take(take);
            todo.take = Some((skip, take));
            todo.ack = Ack::Burst;
        } else if skip > 0 {
            todo.ack = Ack::Now;
        }
        if segment.flags.has(Flags::FIN) && skip + take == len {
            self.receive.end(self.receive.nxt);
        } else if skip + take < len {
            // Beyond the window: say where it ends.
            todo.ack = Ack::Now;
        }
        if let Some(disorder) = disorder
            && !disorder.held.is_empty()
        {
            // A gap is filled, or part of it: the guest waits to hear of that (RFC 5681, section 4.2).
            todo.admit = disorder.held.advance(&mut self.receive.nxt);
            todo.ack = Ack::Now;
        }
        if self.receive.at_end() {
            *guest = Half::FinSeen;
            self.delay.took(1, !self.receive.ack_due());
            self.receive.take(1);
            todo.ack = todo.ack.or_burst();
        }
    }

    /// The guest is given up, and told so should it hear it.
    fn give_up(&mut self) -> Todo {
        let rst = Some(self.reset_fields().into());
        let lingered = self.is_lingering();
        let todo = self.aborted();
        if lingered {
            self.phase = Phase::Closed;
        }
        Todo {
            rst,
            abort: todo.abort || lingered,
            ..todo
        }
    }

    /// The guest knows of the connection no more. Where it had sent its FIN, all it said was acknowledged, so the host gets
    /// that yet; otherwise the host hears of an abort.
    fn aborted(&mut self) -> Todo {
        if let Phase::Open {
            host,
            guest: Half::FinSeen | Half::FinSent | Half::Done,
        } = &mut self.phase
        {
            *host = Half::Done;
            // Nothing else ends a connection whose socket has failed before.
            return Todo {
                pull: true,
                ..Todo::default()
            };
        }
        self.phase = Phase::Closed;
        Todo {
            abort: true,
            ..Todo::default()
        }
    }
}

#[cfg(test)]
mod tests;
