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
    /// Questions asked since.
    asked: u8,
}

impl Idle {
    pub const fn heard(&mut self, now: Now) {
        self.heard = (now.0 >> UNIT) as u32;
        self.asked = 0;
    }

    /// Time since the guest was last heard, roughly.
    pub const fn silence(self, now: Now) -> Span {
        Span(((now.0 >> UNIT).saturating_sub(self.heard as u64)) << UNIT)
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
    pub const fn ask(&mut self) -> bool {
        let again = self.asked < QUESTIONS;
        self.asked += again as u8;
        again
    }

    /// Whether the guest was asked but once.
    pub const fn asked_once(self) -> bool {
        self.asked == 1
    }
}
