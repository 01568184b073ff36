//! First packets of new flows that came too many at a time. To begin a flow takes a dozen system calls, so that a flood of them
//! would hold up everybody: a few have their turn at once, the others wait here, and packets of flows there are pass them by.

use std::collections::VecDeque;

use crate::link::{Inbox, Slot};

/// Octets that may wait: some ten thousand segments that open connections.
const OCTETS: usize = 1 << 20;

/// Frames that wait, first come first.
#[derive(Debug)]
pub struct Backlog {
    octets: Box<[u8]>,
    /// Where each starts, and how long it is.
    frames: VecDeque<(usize, usize)>,
    end: usize,
    /// What one is read from; not here while it is.
    pub held: Option<Inbox>,
}

impl Backlog {
    pub fn new() -> Self {
        Self {
            octets: vec![0; OCTETS].into_boxed_slice(),
            frames: VecDeque::with_capacity(OCTETS / 40),
            end: 0,
            held: Some(Inbox::holding()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Puts a frame behind the others; `false` if there is no room.
    pub fn push(&mut self, inbox: &Inbox, frame: Slot) -> bool {
        let start = self.end;
        if frame.is_empty()
            || start + frame.len() > self.octets.len()
            || self.frames.len() == self.frames.capacity()
        {
            return false;
        }
        let (octets, end) = (&mut self.octets, &mut self.end);
        inbox.copy(frame, |part| {
            if let Some(place) = octets.get_mut(*end..*end + part.len()) {
                place.copy_from_slice(part);
                *end += part.len();
            }
        });
        self.frames.push_back((start, self.end - start));
        true
    }

    /// Moves the first frame to where it can be read.
    pub fn pop(&mut self, held: &mut Inbox) {
        let Some((start, len)) = self.frames.pop_front() else {
            return;
        };
        held.hold(self.octets.get(start..start + len).unwrap_or_default());
        match self.frames.front() {
            None => self.end = 0,
            // Rarely: half of it is free.
            Some(&(first, _)) if first >= OCTETS / 2 => {
                self.octets.copy_within(first..self.end, 0);
                self.end -= first;
                for (start, _) in &mut self.frames {
                    *start -= first;
                }
            }
            Some(_) => {}
        }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.end = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(n: usize) -> Vec<u8> {
        (0..60 + n % 1400).map(|at| (n + at) as u8).collect()
    }

    fn push(backlog: &mut Backlog, n: usize) -> bool {
        let mut from = Inbox::holding();
        from.hold(&frame(n));
        let slot = from.frame(0).unwrap().payload;
        backlog.push(&from, slot)
    }

    fn pop(backlog: &mut Backlog) -> Vec<u8> {
        let mut held = Inbox::holding();
        backlog.pop(&mut held);
        held.frame(0).unwrap().head.to_vec()
    }

    #[test]
    fn frames_come_out_whole_and_in_order_until_there_is_no_room() {
        let mut backlog = Backlog::new();
        let (mut first, mut next) = (0, 0);
        for _ in 0..4 {
            while push(&mut backlog, next) {
                next += 1;
            }
            assert!(next - first > 200, "{first} to {next}");
            while first < next - 10 {
                assert_eq!(pop(&mut backlog), frame(first));
                first += 1;
            }
        }
        backlog.clear();
        assert!(backlog.is_empty() && push(&mut backlog, 1));
        assert_eq!(pop(&mut backlog), frame(1));
        assert!(backlog.is_empty());
    }
}
