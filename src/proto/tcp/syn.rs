//! A connection towards the guest: the host's peer is accepted already, and our SYN asks the guest.

use crate::{
    net::{Seq, Span},
    wire::{frame::Segment, tcp::Flags},
};

/// The time before the first repetition of a SYN (RFC 6298, section 2.1).
const INTERVAL: Span = Span::secs(1);

/// The most that it backs off to: Linux's TCP_RTO_MAX.
const LONGEST: Span = Span::secs(120);

/// How often a SYN is repeated: some times at a constant interval, then at ones that double.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynRetries {
    pub linear: u8,
    pub doubling: u8,
}

impl Default for SynRetries {
    /// Linux's.
    fn default() -> Self {
        Self {
            linear: 4,
            doubling: 6,
        }
    }
}

/// Our SYN, while it is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    retries: SynRetries,
    /// Repetitions so far.
    repeated: u8,
}

impl Asking {
    /// Begins with the first SYN.
    pub const fn new(retries: SynRetries) -> Self {
        Self {
            retries,
            repeated: 0,
        }
    }

    /// The time from the SYN sent last to the next.
    pub fn interval(self) -> Span {
        let doublings = self.repeated.saturating_sub(self.retries.linear).min(16);
        Span(INTERVAL.0 << doublings).min(LONGEST)
    }

    /// Counts a repetition; `None` when there were enough.
    pub fn again(mut self) -> Option<Self> {
        let most = self.retries.linear.saturating_add(self.retries.doubling);
        if self.repeated >= most {
            return None;
        }
        self.repeated += 1;
        Some(self)
    }
}

/// What a segment says to our SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// SYN,ACK: the connection is there.
    Accepted,
    /// SYN alone: the guest asks at the same time.
    Crossed,
    /// RST.
    Refused,
    /// It acknowledges something else: a connection of the past, to be reset.
    Stale,
    /// Nothing that matters.
    Nothing,
}

/// Judges a segment while our SYN, which ends before `nxt`, is outstanding (RFC 9293, section 3.10.7.3).
pub fn answer(segment: &Segment, nxt: Seq) -> Answer {
    let (syn, ack, rst) = (
        segment.flags.has(Flags::SYN),
        segment.flags.has(Flags::ACK),
        segment.flags.has(Flags::RST),
    );
    let ours = ack && segment.ack == nxt;
    match (rst, ours) {
        (true, true) => Answer::Refused,
        (true, false) => Answer::Nothing,
        (false, true) if syn => Answer::Accepted,
        (false, false) if ack => Answer::Stale,
        (false, false) if syn => Answer::Crossed,
        (false, _) => Answer::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regressions T30 and X17: as the kernel does, and as often as it is told to.
    #[test]
    fn a_syn_is_repeated_at_the_intervals_of_the_kernel() {
        let mut asking = Asking::new(SynRetries::default());
        let mut at = Span::ZERO;
        let mut seconds = Vec::new();
        loop {
            at = Span(at.0 + asking.interval().0);
            seconds.push(at.0 / 1_000_000);
            match asking.again() {
                Some(next) => asking = next,
                None => break,
            }
        }
        assert_eq!(seconds, [1, 2, 3, 4, 5, 7, 11, 19, 35, 67, 131]);
    }

    /// A host may be told to ask for long (tcp_syn_retries).
    #[test]
    fn a_syn_is_never_further_from_the_next_than_the_kernels() {
        let mut asking = Asking::new(SynRetries {
            linear: 0,
            doubling: 127,
        });
        while let Some(next) = asking.again() {
            asking = next;
            assert!(asking.interval() <= Span::secs(120), "{asking:?}");
        }
    }
}
