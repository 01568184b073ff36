//! Acknowledgements that wait a moment for the host's answer to travel with (RFC 9293, section 3.8.6.3).

use crate::net::{Now, Span};

/// One unit of [`Delay`]'s clock, about a millisecond: 2^10 microseconds.
const UNIT: u32 = 10;

/// Units that an acknowledgement may wait.
const PATIENCE: u16 = 5;

/// How long an acknowledgement may wait. A guest that writes more meanwhile may wait as long, by Nagle's algorithm; Linux has
/// it wait for 40 ms. Less than the kernel's tick would have it set the CPU's alarm each time, which costs what is saved.
pub const DELAY: Span = Span((PATIENCE as u64) << UNIT);

/// Answers in time that make the next one worth waiting for. One that was late makes as many necessary again.
const TRUST: u8 = 4;

/// Octets of a segment that asks for an answer rather than being part of many.
const QUESTION: u32 = 1024;

/// Whether the guest asks, and what is not acknowledged yet is a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delay {
    /// When the last question came.
    since: u16,
    /// How many answers came in time, and two flags.
    bits: u8,
}

/// What is not acknowledged yet is one small segment.
const ASKS: u8 = 0x80;

/// It was not answered yet.
const OPEN: u8 = 0x40;

impl Delay {
    const fn trust(self) -> u8 {
        self.bits & !(ASKS | OPEN)
    }

    const fn age(self, now: Now) -> u16 {
        ((now.0 >> UNIT) as u16).wrapping_sub(self.since)
    }

    /// A segment with so many octets came; `first` tells whether all before were acknowledged.
    pub const fn took(&mut self, octets: u32, first: bool) {
        let asks = first && octets <= QUESTION;
        self.bits = if asks {
            self.bits | ASKS
        } else {
            self.bits & !ASKS
        };
    }

    /// Whether the acknowledgement may wait for [`DELAY`] from now on.
    pub const fn may_wait(&mut self, now: Now) -> bool {
        self.since = (now.0 >> UNIT) as u16;
        let asks = self.bits & ASKS != 0;
        if asks {
            self.bits |= OPEN;
        }
        asks && self.trust() >= TRUST
    }

    /// Something went to the guest.
    pub const fn answered(&mut self, now: Now) {
        let open = self.bits & OPEN != 0;
        self.bits &= !OPEN;
        if open && self.age(now) <= PATIENCE && self.trust() < TRUST {
            self.bits += 1;
        }
    }

    /// Whether the last question came then.
    pub const fn is_since(self, at: Now) -> bool {
        self.age(at) == 0
    }

    /// There was no answer in time.
    pub const fn in_vain(&mut self) {
        self.bits &= ASKS | OPEN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Span = Span::millis(7);

    fn asked(delay: &mut Delay, at: Now) -> bool {
        delay.took(100, true);
        delay.may_wait(at)
    }

    fn trusting() -> Delay {
        let mut delay = Delay::default();
        for n in 0..4 {
            assert!(!asked(&mut delay, Now(n * 50)));
            delay.answered(Now(n * 50 + 40));
        }
        delay
    }

    #[test]
    fn only_a_lone_small_segment_waits() {
        let mut delay = trusting();
        assert!(asked(&mut delay, Now(500)));
        delay.took(100, false);
        assert!(!delay.may_wait(Now(600)));
        delay.took(QUESTION + 1, true);
        assert!(!delay.may_wait(Now(700)));
    }

    #[test]
    fn who_waited_in_vain_waits_again_after_several_answers_in_time() {
        let mut delay = trusting();
        let mut now = Now(1_000_000);
        assert!(asked(&mut delay, now));
        assert!(delay.is_since(now) && !delay.is_since(now + DELAY));
        delay.in_vain();
        for late in [true, false, false, false, false] {
            now = now + LATE;
            assert!(!asked(&mut delay, now));
            delay.answered(now + if late { LATE } else { Span(50) });
            // What follows is no answer.
            delay.answered(now + Span(60));
        }
        assert!(asked(&mut delay, now + LATE));
    }
}
