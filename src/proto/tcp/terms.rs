//! What the two ends of a connection agree on in the handshake.

use crate::{
    net::{Now, Seq, Span},
    wire::tcp::{Options, Timestamps},
};

/// Window scale we offer: windows up to 16 MiB in steps of 256 octets.
pub const SCALE: u8 = 8;

/// The segment size to assume of a guest that says nothing (RFC 9293, section 3.7.1), and the least we believe.
const MSS_DEFAULT: u16 = 536;
const MSS_LEAST: u16 = 64;

/// Octets the timestamps take of every segment, with their padding (RFC 7323, appendix A).
const STAMPED: u16 = 12;

/// The options in use. An end offers all it can in its SYN; the other answers with what it can as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The segment size we announce: the link's.
    pub mss: u16,
    pub scaling: bool,
    pub sack: bool,
    pub timestamps: bool,
}

impl Terms {
    /// All we can; `mss` is the link's.
    pub const fn ours(mss: u16) -> Self {
        Self {
            mss,
            scaling: true,
            sack: true,
            timestamps: true,
        }
    }

    /// What is left of it with a guest whose SYN or SYN,ACK has these options.
    #[must_use]
    pub const fn with(self, theirs: &Options) -> Self {
        Self {
            mss: self.mss,
            scaling: self.scaling && theirs.window_scale.is_some(),
            sack: self.sack && theirs.sack_permitted,
            timestamps: self.timestamps && theirs.timestamps.is_some(),
        }
    }

    /// Octets of options in every segment.
    pub const fn overhead(self) -> u16 {
        if self.timestamps { STAMPED } else { 0 }
    }

    /// Octets of payload in a segment to a guest with these options: the MSS does not count them (RFC 6691).
    pub fn segment_to(self, theirs: &Options) -> u16 {
        let mss = theirs.mss.unwrap_or(MSS_DEFAULT).max(MSS_LEAST);
        mss.min(self.mss).saturating_sub(self.overhead()).max(1)
    }

    /// Options of our SYN or SYN,ACK.
    pub fn options(self, timestamps: Option<Timestamps>) -> Options {
        Options {
            mss: Some(self.mss),
            window_scale: self.scaling.then_some(SCALE),
            sack_permitted: self.sack,
            timestamps,
            ..Options::default()
        }
    }
}

/// Where our numbers of a connection begin. None can be guessed by others; those of the same ends go on from one connection to
/// the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The initial sequence number (RFC 6528).
    pub iss: Seq,
    /// What our clock shows beyond the time: for the same ends always the same (RFC 7323, section 5.4).
    pub clock: u32,
}

/// The timestamps of a connection (RFC 7323): our clock, and the guest's as last heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clock {
    /// What our clock shows beyond the time: a guest cannot tell one from the other how long we run (section 5.4).
    offset: u32,
    /// TS.Recent.
    recent: u32,
}

impl Clock {
    /// A clock that shows so much beyond the time; `recent` is of the guest's SYN or SYN,ACK.
    pub fn new(offset: u32, recent: Option<Timestamps>) -> Self {
        Self {
            offset,
            recent: recent.map_or(0, |stamps| stamps.value),
        }
    }

    /// A clock that shows `value` now; `recent` is the guest's.
    pub const fn showing(value: u32, recent: u32, now: Now) -> Self {
        Self {
            offset: value.wrapping_sub((now.0 / 1_000) as u32),
            recent,
        }
    }

    /// The timestamps of a segment sent now; our clock counts milliseconds.
    pub const fn stamp(self, now: Now) -> Timestamps {
        Timestamps {
            value: self.offset.wrapping_add((now.0 / 1_000) as u32),
            echo: self.recent,
        }
    }

    /// How long ago at most we sent what these echo.
    pub fn age_at_most(self, stamps: Timestamps, now: Now) -> Span {
        let units = self.stamp(now).value.wrapping_sub(stamps.echo);
        Span::millis(u64::from(units) + 1)
    }

    /// Whether a segment is older than what was heard (PAWS, section 5.3, R1).
    pub const fn is_old(self, stamps: Timestamps) -> bool {
        (stamps.value.wrapping_sub(self.recent) as i32) < 0
    }

    /// Takes the clock of an acceptable segment that begins at or before what we last acknowledged (R3).
    pub const fn heard(&mut self, stamps: Timestamps) {
        if !self.is_old(stamps) {
            self.recent = stamps.value;
        }
    }

    /// Takes the clock of a segment whatever was heard before: that was too long ago (section 5.5).
    pub const fn outlived(&mut self, stamps: Timestamps) {
        self.recent = stamps.value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_both_ends_can_is_agreed_on() {
        let all = Options {
            mss: Some(1400),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps::default()),
            ..Options::default()
        };
        assert_eq!(Terms::ours(1460).with(&all), Terms::ours(1460));
        assert_eq!(Terms::ours(1460).segment_to(&all), 1388);
        let nothing = Options::default();
        let terms = Terms::ours(1460).with(&nothing);
        assert!(!terms.scaling && !terms.sack && !terms.timestamps);
        assert_eq!(terms.segment_to(&nothing), 536);
        assert_eq!(terms.options(None).window_scale, None);
    }

    #[test]
    fn a_clock_that_wraps_is_not_old() {
        let stamps = |value| Timestamps { value, echo: 0 };
        let mut clock = Clock::new(1, Some(stamps(u32::MAX)));
        assert!(clock.is_old(stamps(u32::MAX - 1)) && !clock.is_old(stamps(u32::MAX)));
        clock.heard(stamps(3));
        assert!(clock.is_old(stamps(u32::MAX)));
        assert_eq!(clock.stamp(Now(0)).echo, 3);
    }
}
