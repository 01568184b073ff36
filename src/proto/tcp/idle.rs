//! The end of connections whose guest is gone without a word.

use crate::net::{Now, Span};

/// One unit of [`Idle`]'s clock, about a second: 2^20 microseconds.
const UNIT: u32 = 20;

/// Silence after which the guest is asked whether it still knows the connection, and again after as much. A guest that was
/// started anew answers with a reset.
const ASK: u32 = 300;

/// Questions without an answer that end the connection: two hours and a quarter, as with Linux's tcp_keepalive_time. A guest
/// may have been suspended.
const QUESTIONS: u8 = 26;

/// How long a guest has been silent while nothing was outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Idle {
    /// When it was last heard.
    heard: u32,
    /// For how long before that it had nothing but answered questions.
    quiet: u16,
    /// Questions asked since.
    asked: u8,
}

impl Idle {
    pub const fn heard(&mut self, now: Now) {
        self.heard = (now.0 >> UNIT) as u32;
        (self.quiet, self.asked) = (0, 0);
    }

    /// An answer to a question of ours.
    pub fn answered(&mut self, now: Now) {
        let quiet = u16::try_from(self.unasked(now).0 >> UNIT).unwrap_or(u16::MAX);
        self.heard(now);
        self.quiet = quiet;
    }

    /// Time since the guest was last heard, roughly.
    pub const fn silence(self, now: Now) -> Span {
        Span(((now.0 >> UNIT).saturating_sub(self.heard as u64)) << UNIT)
    }

    /// Time since it was last heard without having been asked.
    pub const fn unasked(self, now: Now) -> Span {
        Span(self.silence(now).0 + ((self.quiet as u64) << UNIT))
    }

    /// When to ask, or to give up.
    pub const fn deadline(self) -> Now {
        Now((self.heard as u64 + ASK as u64 * (self.asked as u64 + 1)) << UNIT)
    }

    /// When it was silent for as long as anybody is asked.
    pub const fn end(self) -> Now {
        Now((self.heard as u64 + ASK as u64 * (QUESTIONS as u64 + 1)) << UNIT)
    }

    /// The deadline has come: `false` if the guest was asked often enough.
    pub fn ask(&mut self, now: Now) -> bool {
        let again = self.asked < QUESTIONS;
        if again {
            self.asked += 1;
            // A timer that comes late is no silence of the guest's: there is as much time for each answer.
            let on_time = ((now.0 >> UNIT) as u32).saturating_sub(ASK * u32::from(self.asked));
            self.heard = self.heard.max(on_time);
        }
        again
    }

    /// Whether it was asked since it was heard.
    pub const fn is_asked(self) -> bool {
        self.asked > 0
    }

    /// Whether the guest was asked but once.
    pub const fn asked_once(self) -> bool {
        self.asked == 1
    }
}
