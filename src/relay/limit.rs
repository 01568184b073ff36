//! Keeps the log from being filled by what the guest can repeat at will: five times a second, or once a minute.

use std::fmt;

use log::Level;

use crate::net::{Now, Span};

/// Messages of a kind in a period that are said: the guest must not be able to fill the log.
const BURST: u32 = 5;
const PERIOD: Span = Span::secs(1);

/// Keeps one kind of message from being repeated without end.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateLimit {
    since: Now,
    said: u32,
    suppressed: u64,
}

/// What may be said of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Say {
    Nothing,
    /// The message, after word of how many were left out, and before word that the next will be.
    Message {
        left_out: u64,
        last: bool,
    },
}

impl RateLimit {
    /// Tells of an event at `now`, unless five of the kind were told within the second.
    pub fn log(&mut self, level: Level, now: Now, message: fmt::Arguments<'_>) {
        let Say::Message { left_out, last } = self.admit(now) else {
            return;
        };
        if left_out > 0 {
            log::log!(level, "(suppressed {left_out} similar messages)");
        }
        log::log!(level, "{message}");
        if last {
            log::log!(level, "(suppressing further similar messages)");
        }
    }

    fn admit(&mut self, now: Now) -> Say {
        let mut left_out = 0;
        if now.since(self.since) >= PERIOD {
            left_out = self.suppressed;
            *self = Self {
                since: now,
                ..Self::default()
            };
        }
        if self.said >= BURST {
            self.suppressed += 1;
            return Say::Nothing;
        }
        self.said += 1;
        Say::Message {
            left_out,
            last: self.said == BURST,
        }
    }
}

/// How long nothing is said of what was warned of.
const QUIET: Span = Span::secs(60);

/// When something was warned of that the guest can bring about as often as it likes.
#[derive(Debug, Clone, Copy, Default)]
pub struct OncePerMinute(Option<Now>);

impl OncePerMinute {
    /// Whether it is to be warned of now.
    pub fn is_due(&mut self, now: Now) -> bool {
        let due = self.0.is_none_or(|last| now.since(last) >= QUIET);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_warned_of_once_a_minute() {
        let mut last = OncePerMinute::default();
        let warned = (0..200).filter(|&n| last.is_due(Now(0) + Span::secs(n)));
        assert_eq!(warned.collect::<Vec<_>>(), [0, 60, 120, 180]);
    }

    #[test]
    fn a_storm_of_warnings_is_said_five_times_a_second() {
        let mut limit = RateLimit::default();
        let start = Now(5_000_000);
        let said: Vec<Say> = (0..7).map(|n| limit.admit(Now(start.0 + n))).collect();
        let message = |left_out, last| Say::Message { left_out, last };
        assert_eq!(said[..4], [message(0, false); 4]);
        assert_eq!(said[4..], [message(0, true), Say::Nothing, Say::Nothing]);
        let later = start + Span::secs(1);
        assert_eq!(limit.admit(later), message(2, false));
        assert_eq!(limit.admit(later), message(0, false));
    }
}
