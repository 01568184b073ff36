//! Round trip times and the retransmission timeout (RFC 6298).

use crate::net::Span;

/// The least timeout: Linux's, where RFC 6298 (2.4) says one second. The guest is one virtual wire away.
const MIN: Span = Span::millis(200);

/// The timeout before any measurement (2.1).
const INITIAL: Span = Span::secs(1);

/// The most a timeout backs off to (2.5).
const MAX: Span = Span::secs(120);

/// The least time before a probe of the tail: a guest and its machine have more to do than to answer at once.
const PROBE: Span = Span::millis(20);

/// How long acknowledgements are put off at most (WCDelAckT, RFC 8985, section 7.2).
const DELAYED: Span = Span::millis(200);

/// A smoothed round trip below this many microseconds is one virtual wire, with queues.
const NEAR: u32 = 4_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rtt {
    /// Microseconds; zero before the first measurement.
    smoothed: u32,
    variation: u32,
    least: u32,
}

impl Rtt {
    /// Takes a measurement into account (2.2, 2.3).
    pub fn measured(&mut self, rtt: Span) {
        let rtt = u32::try_from(rtt.0)
            .unwrap_or(u32::MAX / 8)
            .clamp(1, u32::MAX / 8);
        if self.smoothed == 0 {
            (self.smoothed, self.variation) = (rtt, rtt / 2);
            self.least = rtt;
        } else {
            self.least = self.least.min(rtt);
            self.variation = self.variation / 4 * 3 + self.smoothed.abs_diff(rtt) / 4;
            self.smoothed = (self.smoothed / 8 * 7 + rtt / 8).max(1);
        }
    }

    /// A round trip took no longer than this, which counts where one was measured.
    pub fn took_at_most(&mut self, rtt: Span) {
        let rtt = u32::try_from(rtt.0).unwrap_or(u32::MAX);
        self.least = self.least.min(rtt);
    }

    /// Whether the guest itself answers, and not somebody behind it.
    pub const fn is_near(&self) -> bool {
        self.smoothed < NEAR
    }

    /// Whether it was never near: somebody behind the guest answers, or a slow guest. A long queue on the wire passes.
    pub const fn is_far(&self) -> bool {
        self.least >= NEAR
    }

    /// The shortest measured.
    pub const fn least(&self) -> Span {
        Span(self.least as u64)
    }

    /// The smoothed round trip; zero before the first measurement.
    pub const fn smoothed(&self) -> Span {
        Span(self.smoothed as u64)
    }

    /// How long the guest may take to tell of the end of what was sent before that is sent again (PTO, RFC 8985, section
    /// 7.2), if that is before the timeout; `alone` if it is one segment, of which a guest tells when it likes.
    pub fn probe(&self, alone: bool) -> Option<Span> {
        let usual = Span((2 * u64::from(self.smoothed)).max(PROBE.0));
        let usual = Span(usual.0 + if alone { DELAYED.0 } else { 0 });
        (self.smoothed > 0 && usual < self.timeout(0)).then_some(usual)
    }

    /// The timeout after `backoff` doublings (2.3, 2.4). A machine that pauses makes one round trip seconds long, and four
    /// times its variation would keep what is lost next waiting for as many: a second is added to the usual one at most, or as
    /// much again.
    pub fn timeout(&self, backoff: u8) -> Span {
        let smoothed = Span(u64::from(self.smoothed));
        let slack = Span(4 * u64::from(self.variation)).min(INITIAL.max(smoothed));
        let base = if smoothed == Span::ZERO {
            INITIAL
        } else {
            Span(smoothed.0 + slack.0).max(MIN)
        };
        Span(base.0 << backoff.min(20)).min(MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_start_at_a_second_and_double_up_to_two_minutes() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(0), Span::secs(1));
        rtt.measured(Span(80));
        assert_eq!(rtt.timeout(0), Span::millis(200));
        assert_eq!(rtt.timeout(3), Span::millis(1600));
        assert_eq!(rtt.timeout(30), Span::secs(120));
    }

    /// A machine that paused makes one measurement long, and not the wait for what is lost next.
    #[test]
    fn one_long_round_trip_makes_no_long_timeouts() {
        let mut rtt = Rtt::default();
        for _ in 0..100 {
            rtt.measured(Span(80));
        }
        rtt.measured(Span::secs(8));
        assert!(rtt.timeout(0) <= Span::millis(2100), "{:?}", rtt.timeout(0));
    }

    #[test]
    fn a_slow_guest_gets_more_time() {
        let mut rtt = Rtt::default();
        for _ in 0..100 {
            rtt.measured(Span::millis(500));
        }
        assert!(rtt.timeout(0) > Span::millis(490) && rtt.timeout(0) < Span::millis(600));
    }
}
