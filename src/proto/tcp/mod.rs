//! A TCP connection of the guest, as a translator keeps it: sequence numbers, windows and the two ends of the streams. It
//! holds no octets: those to the guest stay in the host's socket until acknowledged, those from the guest are handed on.
//!
//! The guest opens connections, or is asked by a SYN of ours to take one ([`syn`]).
//!
//! Facts go in by `segment`, `connected`, `sent`, `ended`, `expired`; each answers with a [`Todo`]. Guest and link lose and
//! reorder nothing by themselves, so a gap is answered by a duplicate acknowledgement and a loss by going back to the first
//! octet not acknowledged. There is no congestion control towards the guest: the link pushes back.

mod syn;

mod phase;

mod receive;

mod rtt;

mod send;

mod todo;

pub use phase::{Half, Phase};
pub use receive::{Receiver, Text};
pub use send::{Sender, Timeout};
pub use syn::SynRetries;
use syn::{Answer, Asking};
pub use todo::{Ack, Todo, reset_for};

use crate::{
    net::{Now, Seq, Why},
    wire::{
        frame::Segment,
        headers::TcpFields,
        tcp::{Flags, Options},
    },
};

/// Repetitions of SYN,ACK before the guest is given up; Linux's `tcp_synack_retries`.
const SYN_ACK_RETRIES: u8 = 5;

/// The segment size to assume of a guest that says nothing (RFC 9293, section 3.7.1), and the least we believe.
const MSS_DEFAULT: u16 = 536;
const MSS_LEAST: u16 = 48;

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conn {
    phase: Phase,
    send: Sender,
    receive: Receiver,
    /// Options of our SYN,ACK.
    offer: Options,
}

impl Conn {
    /// A connection begins with the guest's SYN. `iss` is our initial sequence number, `mss` the segment size of the link.
    pub fn new(syn: &Segment, iss: Seq, mss: u16) -> Self {
        let theirs = syn
            .options
            .mss
            .unwrap_or(MSS_DEFAULT)
            .max(MSS_LEAST)
            .min(mss);
        let scaling = syn.options.window_scale.is_some();
        Self {
            phase: Phase::Connecting,
            send: Sender::new(iss, 0, syn.options.window_scale.unwrap_or(0), theirs),
            receive: Receiver::new(syn.seq, mss, scaling),
            offer: Options {
                mss: Some(mss),
                window_scale: scaling.then_some(receive::SCALE),
            },
        }
    }

    /// A connection that a peer of the host has opened; the guest is asked by [`Conn::syn`]. `iss` is our initial sequence
    /// number, `mss` the segment size of the link.
    pub fn toward_guest(iss: Seq, mss: u16, retries: SynRetries, now: Now) -> Self {
        let mut send = Sender::new(iss, 0, 0, mss);
        send.sent(1, now);
        Self {
            phase: Phase::SynSent(Asking::new(retries, now)),
            send,
            receive: Receiver::new(Seq(0), mss, true),
            offer: Options {
                mss: Some(mss),
                window_scale: Some(receive::SCALE),
            },
        }
    }

    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The largest payload of a segment to the guest, in octets.
    pub fn mss(&self) -> usize {
        usize::from(self.send.mss)
    }

    /// Octets sent and not acknowledged, of the host's stream.
    pub fn unacknowledged(&self) -> u32 {
        let past_end = matches!(
            self.phase,
            Phase::Open {
                host: Half::FinSent,
                ..
            }
        ) && self.send.ends_at(self.send.nxt - 1);
        self.send.in_flight() - u32::from(past_end && self.send.in_flight() > 0)
    }

    /// Octets of payload the guest takes now.
    pub fn sendable(&self) -> usize {
        match self.phase {
            Phase::Open {
                host: Half::Open | Half::FinSeen | Half::FinSent,
                ..
            } => self.send.sendable() as usize,
            Phase::Open {
                host: Half::Done, ..
            }
            | Phase::SynSent(_)
            | Phase::Connecting
            | Phase::SynReceived
            | Phase::Closed => 0,
        }
    }

    /// Whether the host may still have something for the guest.
    pub const fn wants_host(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                host: Half::Open,
                ..
            }
        )
    }

    /// The largest payload of a segment from the guest, in octets.
    pub fn largest_segment(&self) -> u32 {
        u32::from(self.receive.mss)
    }

    /// When [`Conn::expired`] wants to be called.
    pub const fn deadline(&self) -> Option<Now> {
        match self.phase {
            Phase::Closed => None,
            Phase::SynSent(asking) => Some(asking.due()),
            Phase::Connecting | Phase::SynReceived | Phase::Open { .. } => self.send.deadline(),
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

    /// Fields of a segment that starts at `seq`; `free` octets can be taken from the guest.
    fn fields(&mut self, seq: Seq, flags: Flags, free: u32, options: Option<Options>) -> TcpFields {
        let window = self.receive.announce(free, flags);
        TcpFields {
            seq,
            ack: self.receive.nxt,
            flags,
            window,
            options,
        }
    }

    /// A segment with payload or FIN, to start at our next sequence number plus `at`.
    pub fn data(&mut self, at: u32, flags: Flags, free: u32) -> TcpFields {
        self.fields(self.send.nxt + at, flags | Flags::ACK, free, None)
    }

    /// A bare acknowledgement.
    pub fn acknowledgement(&mut self, free: u32) -> TcpFields {
        self.fields(self.send.nxt, Flags::ACK, free, None)
    }

    /// Our SYN, first or repeated.
    pub fn syn(&mut self, free: u32) -> TcpFields {
        TcpFields {
            seq: self.send.una,
            ack: Seq(0),
            flags: Flags::SYN,
            window: free.min(65_535) as u16,
            options: Some(self.offer),
        }
    }

    /// Our SYN,ACK, first or repeated.
    pub fn syn_ack(&mut self, free: u32) -> TcpFields {
        let offer = self.offer;
        self.fields(self.send.una, Flags::SYN | Flags::ACK, free, Some(offer))
    }

    /// The RST that tells the guest its connection is gone.
    pub fn reset(&mut self) -> TcpFields {
        self.phase = Phase::Closed;
        TcpFields {
            seq: self.send.nxt,
            ack: self.receive.nxt,
            flags: Flags::RST | Flags::ACK,
            window: 0,
            options: None,
        }
    }

    /// Whether an acknowledgement is outstanding.
    pub fn ack_due(&self) -> bool {
        self.receive.ack_due()
    }

    /// Whether the guest should hear that `free` octets can be taken.
    pub fn window_would_open(&self, free: u32) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                guest: Half::Open,
                ..
            }
        ) && self.receive.would_open(free)
    }

    /// Octets promised to the guest that it has not sent.
    pub fn promised(&self) -> u32 {
        self.receive.promised()
    }

    /// Notes octets of payload sent.
    pub fn sent(&mut self, octets: u32, now: Now) {
        self.send.sent(octets, now);
    }

    /// Notes that there is something to send but no window.
    pub fn blocked(&mut self, now: Now) {
        let waits = matches!(
            self.phase,
            Phase::Open {
                host: Half::Open | Half::FinSeen | Half::FinSent,
                ..
            }
        );
        if waits && self.send.in_flight() == 0 {
            self.send.persist(now);
        }
    }

    /// The host's stream has ended behind what was sent so far.
    pub fn ended(&mut self) {
        if let Phase::Open {
            host: host @ Half::Open,
            ..
        } = &mut self.phase
        {
            *host = Half::FinSeen;
            self.send.end();
        }
    }

    /// Whether our FIN is the next thing to send.
    pub fn fin_due(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                host: Half::FinSeen | Half::FinSent,
                ..
            }
        ) && self.send.fin_due()
    }

    /// Whether all was sent but our FIN.
    pub fn fin_waits(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                host: Half::FinSeen | Half::FinSent,
                ..
            }
        ) && self.send.ends_at(self.send.nxt)
    }

    /// Notes our FIN sent.
    pub fn fin_sent(&mut self, now: Now) {
        if let Phase::Open { host, .. } = &mut self.phase {
            *host = Half::FinSent;
            self.send.sent(1, now);
        }
    }

    /// Whether the guest's stream has ended and the host has not been told.
    pub const fn shutdown_due(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                guest: Half::FinSeen,
                ..
            }
        )
    }

    /// The host was told: its kernel sends the FIN and has it acknowledged. `true` if the flow is over.
    pub fn shut_down(&mut self) -> bool {
        if let Phase::Open {
            guest: guest @ Half::FinSeen,
            ..
        } = &mut self.phase
        {
            *guest = Half::Done;
        }
        self.is_over()
    }

    /// The host could not hold the last octets taken.
    pub fn give_back(&mut self, octets: u32) {
        if let Phase::Open {
            guest: guest @ Half::FinSeen,
            ..
        } = &mut self.phase
        {
            *guest = Half::Open;
            self.receive.give_back(1);
        }
        self.receive.give_back(octets);
    }

    fn is_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                host: Half::Done,
                guest: Half::Done
            }
        )
    }

    /// The deadline has come.
    pub fn expired(&mut self, now: Now) -> Todo {
        let retries = match self.phase {
            Phase::SynSent(asking) => return self.syn_expired(asking, now),
            Phase::SynReceived => self.send.retries(),
            Phase::Connecting | Phase::Open { .. } | Phase::Closed => 0,
        };
        match self.send.timeout(now) {
            Timeout::Early => Todo::default(),
            Timeout::GiveUp => Todo::give_up(self.reset()),
            Timeout::Retransmit if self.phase == Phase::SynReceived => {
                if retries >= SYN_ACK_RETRIES {
                    return Todo::give_up(self.reset());
                }
                self.send.sent(1, now);
                Todo::syn_ack()
            }
            Timeout::Retransmit => Todo {
                seek: true,
                pull: true,
                ..Todo::default()
            },
        }
    }

    /// A segment of the guest with `len` octets of payload.
    pub fn segment(&mut self, segment: &Segment, now: Now) -> Todo {
        match self.phase {
            Phase::SynSent(_) => self.while_syn_sent(segment, now),
            Phase::Connecting => self.while_connecting(segment),
            Phase::SynReceived => self.while_syn_received(segment, now),
            Phase::Open { .. } => self.while_open(segment, now),
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
                    rst: Some(reset_for(segment)),
                    ..Todo::dropped(Why::OutOfWindow)
                };
            }
            Answer::Nothing => return Todo::dropped(Why::OutOfWindow),
        }
        let (scale, mss) = (segment.options.window_scale, segment.options.mss);
        let mss = mss.unwrap_or(MSS_DEFAULT).max(MSS_LEAST);
        self.receive = Receiver::new(segment.seq, self.receive.mss, scale.is_some());
        self.offer.window_scale = self.offer.window_scale.and(scale).map(|_| receive::SCALE);
        if answer == Answer::Crossed {
            self.phase = Phase::SynReceived;
            self.send.learn(scale.unwrap_or(0), mss.min(self.send.mss));
            return Todo::syn_ack();
        }
        // The window of a SYN is not scaled (RFC 7323, section 2.2).
        self.send
            .establish(segment.seq, segment.ack, segment.window, now);
        self.send.learn(scale.unwrap_or(0), mss.min(self.send.mss));
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
        if asking.due() > now {
            return Todo::default();
        }
        let Some(asking) = asking.again(now) else {
            return Todo::give_up(self.reset());
        };
        self.phase = Phase::SynSent(asking);
        // Which of them is answered cannot be told (Karn; RFC 6298, section 3).
        self.send.forget_timing();
        Todo {
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

    fn while_syn_received(&mut self, segment: &Segment, now: Now) -> Todo {
        if segment.flags.has(Flags::RST) || !segment.flags.has(Flags::ACK) {
            if segment.flags.has(Flags::SYN) && segment.seq + 1 == self.receive.nxt {
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
                rst: Some(reset_for(segment)),
                dropped: Some(Why::OutOfWindow),
                ..Todo::default()
            };
        }
        if self
            .receive
            .place(segment.seq, segment.payload.len() as u32)
            == Text::Outside
        {
            return Todo::ack_now(Why::OutOfWindow);
        }
        self.send
            .establish(segment.seq, segment.ack, segment.window, now);
        self.phase = Phase::established();
        Todo {
            open: true,
            pull: true,
            ..self.while_open(segment, now)
        }
    }

    /// RFC 9293, section 3.10.7.4, in its order.
    fn while_open(&mut self, segment: &Segment, now: Now) -> Todo {
        let len = segment.payload.len() as u32;
        let text = self.receive.place(segment.seq, len);
        let flags = segment.flags;
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
            return Todo::ack_now(Why::OutOfWindow);
        }
        if self.send.acknowledges_unsent(segment.ack) {
            return Todo::ack_now(Why::OutOfWindow);
        }
        let mut todo = self.acknowledged(segment, len, now);
        match text {
            Text::Outside => (todo.ack, todo.dropped) = (Ack::Now, Some(Why::OutOfWindow)),
            Text::Gap if len > 0 || flags.has(Flags::FIN) => {
                (todo.ack, todo.dropped) = (Ack::Now, Some(Why::OutOfOrder));
            }
            Text::Gap => {}
            Text::Next { skip, take } => self.text(segment, skip, take, &mut todo),
        }
        todo.over = self.is_over();
        todo
    }

    /// The acknowledgement and window of an acceptable segment.
    fn acknowledged(&mut self, segment: &Segment, len: u32, now: Now) -> Todo {
        let before = self.send.sendable();
        let new = segment.ack.after(self.send.una);
        let acked = self.send.acknowledge(segment.ack, now);
        let update = self
            .send
            .update_window(segment.seq, segment.ack, segment.window);
        self.send.heard();
        if acked.fin
            && let Phase::Open { host, .. } = &mut self.phase
        {
            *host = Half::Done;
        }
        let repeated = !new
            && !update.changed
            && len == 0
            && segment.window != 0
            && !segment.flags.has(Flags::FIN);
        let lost = repeated && segment.ack == self.send.una && self.send.duplicate();
        Todo {
            forget: acked.octets,
            seek: acked.seek || update.seek || lost,
            pull: lost || update.seek || new || self.send.sendable() > before,
            ..Todo::default()
        }
    }

    /// The text and FIN of a segment that continues the stream.
    fn text(&mut self, segment: &Segment, skip: u32, take: u32, todo: &mut Todo) {
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
        if take > 0 {
            self.receive.take(take);
            todo.take = Some((skip, take));
            todo.ack = Ack::Burst;
        } else if skip > 0 {
            todo.ack = Ack::Now;
        }
        if segment.flags.has(Flags::FIN) && skip + take == len {
            *guest = Half::FinSeen;
            self.receive.take(1);
            todo.ack = Ack::Burst;
        } else if skip + take < len {
            // Beyond the window: say where it ends.
            todo.ack = Ack::Now;
        }
    }

    fn aborted(&mut self) -> Todo {
        self.phase = Phase::Closed;
        Todo {
            abort: true,
            ..Todo::default()
        }
    }
}

#[cfg(test)]
mod tests;
