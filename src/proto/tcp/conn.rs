//! The state of a connection, and what may be asked of it and told to it at any time.

use super::{
    delay::Delay,
    disorder::Disorder,
    idle::Idle,
    phase::{Half, Phase},
    receive::Receiver,
    saved::{Saved, Stage},
    send::Sender,
    syn::{Asking, SynRetries},
    terms::{Clock, Terms},
};
use crate::{
    net::{Now, Seq},
    wire::{
        frame::Segment,
        headers::TcpFields,
        tcp::{Flags, Options, Sack},
    },
};

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conn {
    pub(super) phase: Phase,
    pub(super) send: Sender,
    pub(super) receive: Receiver,
    pub(super) terms: Terms,
    pub(super) clock: Clock,
    pub(super) idle: Idle,
    pub(super) delay: Delay,
}

impl Conn {
    /// What has to be known of the connection to go on with it elsewhere, if that can be done.
    pub fn save(&self, now: Now) -> Option<Saved> {
        let stage = match self.phase {
            Phase::SynSent(_) => Stage::SynSent,
            Phase::SynReceived => Stage::SynReceived,
            Phase::Open { host, guest } => Stage::Open { host, guest },
            Phase::Connecting | Phase::Closed => return None,
        };
        let stamps = self.clock.stamp(now);
        let saved = Saved {
            stage,
            send: self.send.save(),
            receive: self.receive.save(),
            terms: self.terms,
            clock: stamps.value,
            recent: stamps.echo,
        };
        saved.is_sound().then_some(saved)
    }

    /// Goes on with a connection that was saved, if what is said of it [can be](Saved::is_sound).
    pub fn restored(saved: &Saved, retries: SynRetries, now: Now) -> Option<Self> {
        if !saved.is_sound() {
            return None;
        }
        let mut send = Sender::restored(&saved.send, saved.terms.sack, now);
        let phase = match saved.stage {
            Stage::SynSent => {
                send.nxt = send.una + 1;
                send.wait_until(now);
                Phase::SynSent(Asking::new(retries))
            }
            Stage::SynReceived => {
                send.nxt = send.una + 1;
                Phase::SynReceived
            }
            Stage::Open { host, guest } => Phase::Open { host, guest },
        };
        let mut idle = Idle::default();
        idle.heard(now);
        Some(Self {
            phase,
            send,
            receive: Receiver::restored(&saved.receive, saved.terms.scaling),
            terms: saved.terms,
            clock: Clock::showing(saved.clock, saved.recent, now),
            idle,
            delay: Delay::default(),
        })
    }

    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The largest payload of a segment to the guest, in octets.
    pub fn mss(&self) -> usize {
        usize::from(self.send.mss)
    }

    /// Octets of options in each segment with payload.
    pub const fn options(&self) -> usize {
        self.terms.overhead() as usize
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

    /// Whether the guest has said that it takes nothing more, as nobody reads.
    pub const fn window_is_shut(&self) -> bool {
        self.send.window == 0
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

    /// Whether the guest has acknowledged all the host said, up to its FIN.
    pub fn host_is_done(&self) -> bool {
        self.send.ends_at(self.send.una - 1)
    }

    /// Whether the other end is somewhere behind the guest.
    pub fn is_far(&self) -> bool {
        self.send.rtt.is_far()
    }

    /// The least window, in octets, that the largest segment of the guest fits in.
    pub fn largest_segment(&self) -> u32 {
        self.receive.segment()
    }

    /// When [`Conn::expired`] wants to be called.
    pub fn deadline(&self) -> Option<Now> {
        match self.phase {
            Phase::Closed
            | Phase::Open {
                host: Half::Done,
                guest: Half::Done,
            } => None,
            Phase::SynSent(_) | Phase::Connecting | Phase::SynReceived => self.send.deadline(),
            Phase::Open { .. } if self.is_lingering() => Some(self.idle.end()),
            Phase::Open { .. } => match self.send.deadline() {
                None => Some(self.idle.deadline()),
                due => due,
            },
        }
    }

    /// Fields of a segment that starts at `seq`; `free` octets can be taken from the guest.
    fn fields(&mut self, seq: Seq, flags: Flags, free: u32, now: Now) -> TcpFields {
        let window = self.receive.announce(free, flags);
        let timestamps = self.terms.timestamps.then(|| self.clock.stamp(now));
        TcpFields {
            seq,
            ack: self.receive.nxt,
            flags,
            window,
            options: timestamps.map(|_| Options {
                timestamps,
                ..Options::default()
            }),
        }
    }

    /// The next sequence number to send.
    pub const fn next(&self) -> Seq {
        self.send.nxt
    }

    /// A segment with payload or FIN that starts at `seq`.
    pub fn data(&mut self, seq: Seq, flags: Flags, free: u32, now: Now) -> TcpFields {
        self.fields(seq, flags | Flags::ACK, free, now)
    }

    /// A bare acknowledgement, which tells what is held behind a gap.
    pub fn acknowledgement(
        &mut self,
        free: u32,
        disorder: Option<&Disorder>,
        now: Now,
    ) -> TcpFields {
        let mut fields = self.fields(self.send.nxt, Flags::ACK, free, now);
        let sack = if self.terms.sack {
            self.receive.blocks(disorder.map(|disorder| &disorder.held))
        } else {
            Sack::default()
        };
        if !sack.is_empty() {
            fields.options.get_or_insert_default().sack = sack;
        }
        fields
    }

    /// A keepalive (RFC 9293, section 3.8.4): an octet that is not there, of a sequence number that was acknowledged.
    pub fn question(&mut self, free: u32, now: Now) -> TcpFields {
        self.fields(self.send.nxt - 1, Flags::ACK, free, now)
    }

    /// Our SYN, first or repeated.
    pub fn syn(&mut self, free: u32, now: Now) -> TcpFields {
        let timestamps = self.terms.timestamps.then(|| self.clock.stamp(now));
        TcpFields {
            seq: self.send.una,
            ack: Seq(0),
            flags: Flags::SYN,
            window: free.min(65_535) as u16,
            options: Some(self.terms.options(timestamps)),
        }
    }

    /// Our SYN,ACK, first or repeated.
    pub fn syn_ack(&mut self, free: u32, now: Now) -> TcpFields {
        let fields = self.fields(self.send.una, Flags::SYN | Flags::ACK, free, now);
        let timestamps = fields.options.and_then(|options| options.timestamps);
        TcpFields {
            options: Some(self.terms.options(timestamps)),
            ..fields
        }
    }

    /// The RST that tells the guest its connection is gone.
    pub fn reset(&mut self) -> TcpFields {
        self.phase = Phase::Closed;
        self.reset_fields()
    }

    pub(super) fn reset_fields(&self) -> TcpFields {
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

    /// Whether the outstanding acknowledgement may wait, for [`DELAY`](super::DELAY), as the host may have something to send
    /// with it.
    pub fn ack_may_wait(&mut self, now: Now) -> bool {
        self.wants_host() && self.delay.may_wait(now)
    }

    /// Whether it waits, and has since then.
    pub fn ack_waits_since(&self, asked: Now) -> bool {
        self.ack_due() && self.delay.is_since(asked)
    }

    /// No answer came in time: none is waited for until several have.
    pub const fn waited_in_vain(&mut self) {
        self.delay.in_vain();
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

    /// Whether this segment needs a [`Disorder`] to be taken well.
    pub fn is_disordered_by(&self, segment: &Segment) -> bool {
        !segment.options.sack.is_empty()
            || segment.seq.after(self.receive.nxt) && !segment.payload.is_empty()
    }

    /// Octets between those taken and the one with this sequence number.
    pub fn ahead(&self, seq: Seq) -> u32 {
        self.receive.ahead(seq)
    }

    /// Notes that the octets of [`Todo::hold`](super::todo::Todo::hold) are kept. `false` if that cannot be remembered.
    pub fn held(&mut self, seq: Seq, octets: u32, disorder: &mut Disorder) -> bool {
        disorder.held.insert(seq, seq + octets)
    }

    /// Octets to be sent again, before anything new: where they begin, and how many; none for a FIN. Then tell
    /// [`Conn::resent`].
    pub fn resend(&mut self, disorder: Option<&Disorder>, now: Now) -> Option<(Seq, u32)> {
        match self.phase {
            Phase::Open {
                host: Half::Open | Half::FinSeen | Half::FinSent,
                ..
            } => self.send.resend(disorder, now),
            _ => None,
        }
    }

    /// Notes octets sent again, none for a FIN.
    pub fn resent(&mut self, seq: Seq, octets: u32, disorder: Option<&mut Disorder>, now: Now) {
        self.send.resent(seq, octets.max(1), disorder, now);
    }

    /// Octets of the host's stream, from the first not acknowledged, before this one.
    pub fn behind(&self, seq: Seq) -> u32 {
        seq.since(self.send.una)
    }

    /// Steps over what the guest holds, where everything else is sent again: `true` if the next octet to send moved.
    pub fn step_over(&mut self, disorder: &Disorder) -> bool {
        self.send.step_over(disorder)
    }

    /// Octets from the next to send up to what the guest holds.
    pub fn gap(&self, disorder: &Disorder) -> usize {
        self.send.gap(disorder) as usize
    }

    /// Whether so little fits into the guest's window that more than that waits for more room.
    pub fn is_silly(&self) -> bool {
        self.send.is_silly()
    }

    /// Whether what may be sent now is too little to be fetched, and more will be soon.
    pub fn gathers(&self) -> bool {
        self.send.gathers()
    }

    /// Whether the guest was asked whether it is there, for the first time since it was heard.
    pub const fn asked_once(&self) -> bool {
        self.idle.asked_once()
    }

    /// Notes octets of payload sent.
    pub fn sent(&mut self, octets: u32, now: Now) {
        self.delay.answered(now);
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
        self.delay.answered(now);
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

    /// The host was told: its kernel sends the FIN and has it acknowledged.
    pub fn shut_down(&mut self) {
        if let Phase::Open {
            guest: guest @ Half::FinSeen,
            ..
        } = &mut self.phase
        {
            *guest = Half::Done;
        }
    }

    /// Behind the guest is a link for segments of so many octets, options counted, which the one at `seq` was too large for.
    /// `true` if what is in flight goes again, in smaller ones (RFC 1191, section 6.3); what else an error is about, or asks
    /// for, may be forged (RFC 5927, section 7.2).
    pub fn narrow(&mut self, seq: Seq, octets: u16, disorder: Option<&mut Disorder>) -> bool {
        let octets = octets.saturating_sub(self.terms.overhead()).max(1);
        let open = matches!(self.phase, Phase::Open { .. });
        let in_flight = !seq.before(self.send.una) && seq.before(self.send.nxt);
        let smaller = open && in_flight && octets < self.send.mss;
        if smaller {
            self.send.mss = octets;
            self.send.rewind(disorder, false);
        }
        smaller
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
        self.send.hear_again(self.receive.nxt);
    }

    /// Whether the guest has nothing to say or hear any more, but the host does not take all it said.
    pub(super) const fn is_lingering(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                host: Half::Done,
                guest: Half::FinSeen | Half::FinSent
            }
        )
    }

    /// Whether both streams have ended: nothing but the last acknowledgement is owed to the guest.
    pub fn is_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                host: Half::Done,
                guest: Half::Done
            }
        )
    }
}
