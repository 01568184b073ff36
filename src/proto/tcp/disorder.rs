//! What a connection remembers while its streams have gaps; few have any at a time.

use super::{
    flight::{Flight, Stamp},
    ranges::Ranges,
};
use crate::net::{Now, Seq, Span};

/// Stretches sent again that are told apart.
const RESENT: usize = 48;

/// Gaps of both streams of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disorder {
    /// What we hold of the guest's stream behind a gap.
    pub held: Ranges,
    /// What the guest holds of the host's stream behind a gap.
    pub sacked: Ranges,
    /// What was sent again, in the order it was.
    resent: [(Seq, Seq, Stamp); RESENT],
    resent_len: usize,
    /// Of what arrived, the octets that left last, as far as is known when (RACK.xmit_ts and RACK.end_seq of RFC 8985, section
    /// 5.2).
    rack: Option<(Stamp, Seq)>,
    /// The furthest of what was sent but once and arrived: all before it was sent first before that.
    furthest: Option<Seq>,
    /// RACK.rtt.
    rtt: Span,
}

/// What is known of the octets from some point on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// These are lost.
    Lost(Seq, Seq),
    /// There will be something to say of them after this time.
    Wait(Span),
    /// Nothing is known to be lost.
    None,
}

impl Default for Disorder {
    fn default() -> Self {
        Self {
            held: Ranges::default(),
            sacked: Ranges::default(),
            resent: [(Seq(0), Seq(0), Stamp::default()); RESENT],
            resent_len: 0,
            rack: None,
            furthest: None,
            rtt: Span::ZERO,
        }
    }
}

impl Disorder {
    /// Whether there is nothing to remember.
    pub const fn is_over(&self) -> bool {
        self.held.is_empty() && self.sacked.is_empty()
    }

    /// Whether the host's stream has no gap that is known.
    pub const fn no_holes(&self) -> bool {
        self.sacked.is_empty()
    }

    fn resent(&self) -> &[(Seq, Seq, Stamp)] {
        self.resent.get(..self.resent_len).unwrap_or_default()
    }

    /// When an octet was sent again, and up to where others were with it.
    fn resent_at(&self, seq: Seq) -> Option<(Stamp, Seq)> {
        let mut found = self.resent().iter().rev();
        let &(_, end, at) =
            found.find(|(start, end, _)| !seq.before(*start) && seq.before(*end))?;
        Some((at, end))
    }

    /// Whether an octet was sent again.
    pub fn was_resent(&self, seq: Seq) -> bool {
        self.resent_at(seq).is_some()
    }

    /// Notes what was sent again.
    pub fn note_resent(&mut self, start: Seq, end: Seq, now: Now) {
        if let Some(place) = self.resent.get_mut(self.resent_len) {
            *place = (start, end, Stamp::of(now));
            self.resent_len += 1;
        }
    }

    /// Notes that an octet arrived, in `flight` if it was sent but once (RFC 8985, section 6.2, step 2).
    pub fn arrived(&mut self, seq: Seq, flight: &Flight, least: Span, now: Now) {
        let again = self.resent_at(seq);
        let Some((left, end)) = again.or_else(|| flight.left(seq)) else {
            return;
        };
        if again.is_some() && left.age(now) < least {
            // That was the first one, not lost after all.
            return;
        }
        if again.is_none() {
            let end = seq + 1;
            self.furthest = Some(self.furthest.map_or(end, |furthest| furthest.max(end)));
        }
        // Never later than it did: what was sent again in between would seem to be lost.
        let known = again.map_or_else(|| flight.left_since(seq), |(at, _)| Some(at));
        let later = known.filter(|&at| {
            self.rack
                .is_none_or(|(last, until)| at.after(last) || at == last && (seq + 1).after(until))
        });
        if let Some(at) = later {
            self.rack = Some((at, (seq + 1).min(end)));
        }
        if later.is_some() || self.rack.is_none() {
            self.rtt = known.unwrap_or(left).age(now);
        }
    }

    /// Forgets what lies before `una`, which the guest has acknowledged.
    pub fn acknowledged(&mut self, una: Seq) {
        self.sacked.forget(una);
        let mut kept = 0;
        for at in 0..self.resent_len {
            if self.resent[at].1.after(una) {
                self.resent[kept] = self.resent[at];
                kept += 1;
            }
        }
        self.resent_len = kept;
        if self.sacked.is_empty() {
            self.resent_len = 0;
            (self.rack, self.furthest) = (None, None);
        }
    }

    /// Everything not known to have arrived will be sent again. The guest may have broken its word on what had (RFC 2018,
    /// section 8): `all` then.
    pub fn restart(&mut self, una: Seq, all: bool) {
        self.resent_len = 0;
        (self.rack, self.furthest) = (None, None);
        if all || self.sacked.containing(una).is_some() {
            self.sacked.clear();
        }
    }

    /// Whether something arrived that left after an octet, which did at this time, for the first time or `again`.
    fn is_overtaken(&self, seq: Seq, at: Stamp, again: bool) -> bool {
        let passed = |until: Option<Seq>| until.is_some_and(|until| until.after(seq));
        let by = |(last, until): (Stamp, Seq)| {
            last.after(at) || again && last == at && passed(Some(until))
        };
        self.rack.is_some_and(by) || !again && passed(self.furthest)
    }

    /// The first octets from `una` on that are lost: those sent before something that arrived, and `patience` ago (RFC 8985,
    /// section 6.2, step 5).
    pub fn loss(&self, una: Seq, flight: &Flight, patience: Span, now: Now) -> Loss {
        let Some(top) = self.sacked.end() else {
            return Loss::None;
        };
        if self.resent_len == RESENT {
            return Loss::None;
        }
        let (mut seq, mut wait) = (una, None::<Span>);
        while seq.before(top) {
            if let Some((_, end)) = self.sacked.containing(seq) {
                seq = end;
                continue;
            }
            let again = self.resent_at(seq);
            let Some((at, run)) = again.or_else(|| flight.left(seq)) else {
                break;
            };
            // What was sent again in parts is told apart at their beginnings as well.
            let parts = self.resent().iter().map(|&(start, _, _)| start);
            let end = parts
                .chain(self.sacked.next(seq))
                .filter(|start| start.after(seq))
                .fold(run.min(top), Seq::min);
            if self.is_overtaken(seq, at, again.is_some()) {
                let due = Span(self.rtt.0 + patience.0);
                let age = at.age(now);
                if patience == Span::ZERO || age >= due {
                    return Loss::Lost(seq, end);
                }
                let left = Span(due.0 - age.0);
                wait = Some(wait.map_or(left, |wait| wait.min(left)));
            }
            seq = end;
        }
        wait.map_or(Loss::None, Loss::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten octets each at 1 and 2 ms.
    fn flight() -> Flight {
        let mut flight = Flight::default();
        flight.sent(Seq(10), Now(1_000));
        flight.sent(Seq(20), Now(2_000));
        flight
    }

    #[test]
    fn what_left_before_something_that_arrived_is_lost() {
        let (mut disorder, flight) = (Disorder::default(), flight());
        disorder.sacked.insert(Seq(12), Seq(15));
        disorder.arrived(Seq(14), &flight, Span(1), Now(2_500));
        let loss = |disorder: &Disorder, una, patience| {
            disorder.loss(Seq(una), &flight, Span(patience), Now(2_600))
        };
        assert_eq!(loss(&disorder, 0, 0), Loss::Lost(Seq(0), Seq(10)));
        assert_eq!(loss(&disorder, 10, 0), Loss::Lost(Seq(10), Seq(12)));
        assert_eq!(loss(&disorder, 12, 0), Loss::None);
        assert_eq!(loss(&disorder, 10, 300), Loss::Wait(Span(200)));
    }

    #[test]
    fn what_was_sent_again_is_lost_again_only_by_something_sent_later() {
        let (mut disorder, mut flight) = (Disorder::default(), flight());
        disorder.sacked.insert(Seq(12), Seq(15));
        disorder.arrived(Seq(14), &flight, Span(1), Now(2_500));
        disorder.note_resent(Seq(0), Seq(10), Now(2_600));
        disorder.note_resent(Seq(10), Seq(12), Now(2_600));
        let loss = |disorder: &Disorder, flight: &Flight| {
            disorder.loss(Seq(0), flight, Span::ZERO, Now(9_000))
        };
        assert_eq!(loss(&disorder, &flight), Loss::None);
        flight.sent(Seq(30), Now(3_000));
        disorder.sacked.insert(Seq(20), Seq(30));
        disorder.arrived(Seq(29), &flight, Span(1), Now(3_500));
        assert_eq!(loss(&disorder, &flight), Loss::Lost(Seq(0), Seq(10)));
    }

    /// RFC 2018, section 8.
    #[test]
    fn a_guest_that_breaks_its_word_is_sent_everything() {
        let mut disorder = Disorder::default();
        disorder.sacked.insert(Seq(12), Seq(15));
        disorder.restart(Seq(0), false);
        assert!(!disorder.no_holes());
        disorder.restart(Seq(12), false);
        assert!(disorder.no_holes());
    }
}
