//! How fast flows may make way for others. To end one and begin another costs as much as a hundred frames, so that a guest
//! which begins them without end, though there is no more room, would hold up those that have something to carry.
//!
//! Who was turned away and asks again, as a stack does whose SYN went unanswered, has a rate of its own: a flood that asks as
//! somebody else each time does not use that up. Of datagrams nobody asks again as the same, and flows of theirs cost less: they
//! have a rate eight times as high, which is that of a busy resolver.

use std::hash::{BuildHasher, RandomState};

use super::key::Key;
use crate::net::{Now, Protocol, Span};

/// Flows that may begin in place of others, one in this time, and once more of those that ask again; those of a second at once.
const INTERVAL: Span = Span::millis(2);
const INTERVAL_DATAGRAMS: Span = Span(250);
const BURST: Span = Span::secs(1);

/// How many of those turned away are remembered at most, and how long: those who ask for a second time do so after one second
/// (RFC 6298, section 2; ping), two or three (RFC 1122, section 4.2.3.1).
const PLACES: usize = 1 << 16;
const MEMORY: Span = Span::millis(3_500);

/// What is remembered of one: a part of its hash, and when, in units that come round after some minutes.
const TICK: Span = Span::millis(64);
const TICK_BITS: u32 = 12;
const TICKS: u32 = (1 << TICK_BITS) - 1;

/// Lets flows begin in place of others, so many a second.
#[derive(Debug)]
pub struct Turnover {
    first: Pace,
    again: Pace,
    datagrams: Pace,
    /// Zeroed memory, backed on use.
    turned_away: Vec<u32>,
    hasher: RandomState,
}

impl Default for Turnover {
    fn default() -> Self {
        Self {
            first: Pace::of(INTERVAL),
            again: Pace::of(INTERVAL),
            datagrams: Pace::of(INTERVAL_DATAGRAMS),
            turned_away: vec![0; PLACES],
            hasher: RandomState::new(),
        }
    }
}

impl Turnover {
    /// Whether a flow of this key may begin at another's cost; if not, it may ask again.
    pub fn admits(&mut self, key: &Key, now: Now) -> bool {
        if key.protocol == Protocol::Udp {
            return self.datagrams.admits(now);
        }
        let hash = self.hasher.hash_one(key);
        let tick = (now.0 / TICK.0) as u32 & TICKS;
        let mark = (hash >> 32) as u32 & !TICKS | tick;
        let Some(place) = self.turned_away.get_mut(hash as usize % PLACES) else {
            return false;
        };
        let age = tick.wrapping_sub(*place) & TICKS;
        let known = (*place ^ mark) & !TICKS == 0 && u64::from(age) <= MEMORY.0 / TICK.0;
        let admitted = known && self.again.admits(now) || self.first.admits(now);
        if !admitted {
            *place = mark;
        }
        admitted
    }
}

/// One in an interval, and after a rest as many at once as [`BURST`] has of these.
#[derive(Debug)]
struct Pace {
    interval: Span,
    /// When the next were due if they came evenly.
    next: Now,
}

impl Pace {
    fn of(interval: Span) -> Self {
        let next = Now::default();
        Self { interval, next }
    }

    fn admits(&mut self, now: Now) -> bool {
        let next = self.next.max(now);
        let due = next <= now + BURST;
        if due {
            self.next = next + self.interval;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Endpoint;
    use std::ops::Range;

    const START: Now = Now(60_000_000);

    /// What a second brings.
    const SECOND: usize = 500;

    fn key(n: u32) -> Key {
        Key {
            protocol: Protocol::Tcp,
            guest: Endpoint::new([10, 0, (n >> 24) as u8, (n >> 16) as u8].into(), n as u16),
            remote: Endpoint::new([192, 0, 2, 1].into(), 80),
        }
    }

    /// Asks for each of these flows, with the same time between any two. Returns how many may begin.
    fn ask(turnover: &mut Turnover, names: Range<u32>, from: Now, each: Span) -> usize {
        let first = names.start;
        let at = |n| from + Span(each.0 * u64::from(n - first));
        let admitted = names.filter(|&n| turnover.admits(&key(n), at(n)));
        admitted.count()
    }

    #[test]
    fn those_of_a_second_begin_at_once_and_from_then_on_one_in_two_milliseconds() {
        let mut turnover = Turnover::default();
        assert_eq!(ask(&mut turnover, 0..2000, START, Span(0)), SECOND + 1);
        // A second of ten thousand, and after a rest.
        assert_eq!(
            ask(&mut turnover, 2000..12_000, START, Span(100)),
            SECOND - 1
        );
        let later = START + Span::secs(60);
        assert_eq!(
            ask(&mut turnover, 12_000..14_000, later, Span(0)),
            SECOND + 1
        );
    }

    /// Time begins with the process.
    #[test]
    fn a_process_that_has_just_started_lets_those_of_a_second_begin_too() {
        let mut turnover = Turnover::default();
        let count = ask(&mut turnover, 0..2000, Now(7_000), Span(0));
        assert_eq!(count, SECOND + 1);
    }

    #[test]
    fn datagrams_have_a_rate_of_their_own_eight_times_as_high() {
        let mut turnover = Turnover::default();
        let datagram = |n| Key {
            protocol: Protocol::Udp,
            ..key(n)
        };
        let count = (0..20_000).filter(|&n| turnover.admits(&datagram(n), START));
        assert_eq!(count.count(), 8 * SECOND + 1);
        assert_eq!(ask(&mut turnover, 0..2000, START, Span(0)), SECOND + 1);
        let at = |n| START + Span(100 * u64::from(n));
        let count = (0..10_000).filter(|&n| turnover.admits(&datagram(n), at(n)));
        assert_eq!(count.count(), 8 * SECOND - 1);
    }

    #[test]
    fn who_asks_again_within_three_seconds_is_let_in_beside_a_flood() {
        for seconds in [1, 2, 3] {
            let mut turnover = Turnover::default();
            ask(&mut turnover, 0..2000, START, Span(0));
            assert_eq!(ask(&mut turnover, 3000..3100, START, Span(0)), 0);
            let again = START + Span::secs(seconds);
            ask(&mut turnover, 10_000..20_000, START, Span(100));
            ask(&mut turnover, 20_000..22_000, again, Span(0));
            let known = ask(&mut turnover, 3000..3100, again, Span(0));
            // Some share a place with those of the flood.
            assert!(known >= 60, "{known} of 100 after {seconds} s");
        }
    }

    #[test]
    fn nobody_is_remembered_for_long() {
        for wait in [Span::secs(4), Span::secs(200)] {
            let mut turnover = Turnover::default();
            ask(&mut turnover, 0..2000, START, Span(0));
            let later = START + wait;
            ask(&mut turnover, 5000..6000, later, Span(0));
            // Those of the first time are new again.
            assert_eq!(ask(&mut turnover, 600..2000, later, Span(0)), 0);
        }
    }

    #[test]
    fn those_who_ask_again_have_a_pace_too() {
        let mut turnover = Turnover::default();
        ask(&mut turnover, 0..3000, START, Span(0));
        let again = ask(&mut turnover, 501..3000, START + Span::millis(1), Span(0));
        assert_eq!(again, SECOND + 1);
    }
}
