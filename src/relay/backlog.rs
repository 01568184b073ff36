//! First packets of new flows that came too many at a time. To begin a flow takes a dozen system calls, so that a flood of them
//! would hold up everybody: a few have their turn at once, the others wait here, and packets of flows there are pass them by.
//!
//! Where several relays serve a guest each has its own line. What waits counts on its slot, so that the flow is this relay's
//! when its turn comes, and what follows it, by whichever queue, comes to stand behind it.

use std::collections::VecDeque;

use super::label::Label;
use crate::link::{Frame, Inbox};

/// Octets that may wait: some ten thousand segments that open connections.
const OCTETS: usize = 1 << 20;

/// Frames that wait, first come first.
#[derive(Debug)]
pub struct Backlog {
    octets: Box<[u8]>,
    frames: VecDeque<Entry>,
    end: usize,
    /// What one is read from; not here while it is.
    pub held: Option<Inbox>,
}

/// Where a frame starts, how long it is, and what is known of it.
#[derive(Debug)]
struct Entry {
    start: usize,
    len: usize,
    label: Label,
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
    pub fn push(&mut self, inbox: &Inbox, frame: Frame<'_>, label: Label) -> bool {
        let (start, len) = (self.end, frame.whole.len());
        if len == 0
            || start + len > self.octets.len()
            || self.frames.len() == self.frames.capacity()
        {
            return false;
        }
        let (octets, end) = (&mut self.octets, &mut self.end);
        let mut put = |part: &[u8]| {
            if let Some(place) = octets.get_mut(*end..*end + part.len()) {
                place.copy_from_slice(part);
                *end += part.len();
            }
        };
        // What was read of it stays what it was, whatever the guest writes meanwhile.
        put(frame.head);
        inbox.copy(frame.whole.part(&(frame.head.len()..len)), put);
        let len = self.end - start;
        self.frames.push_back(Entry { start, len, label });
        true
    }

    /// Moves the first frame to where it can be read, and tells what is known of it.
    pub fn pop(&mut self, held: &mut Inbox) -> Option<Label> {
        let Entry { start, len, label } = self.frames.pop_front()?;
        held.hold_none();
        held.hold_next(len, label.segment, label.checksum, |out| {
            out.copy_from_slice(self.octets.get(start..start + len).unwrap_or_default());
        });
        match self.frames.front().map(|next| next.start) {
            None => self.end = 0,
            // Rarely: half of it is free.
            Some(first) if first >= OCTETS / 2 => {
                self.octets.copy_within(first..self.end, 0);
                self.end -= first;
                for frame in &mut self.frames {
                    frame.start -= first;
                }
            }
            Some(_) => {}
        }
        Some(label)
    }

    /// Looks at each frame, and at what is known of it.
    pub fn each(&mut self, mut look: impl FnMut(&[u8], &mut Label)) {
        for Entry { start, len, label } in &mut self.frames {
            look(
                self.octets.get(*start..*start + *len).unwrap_or_default(),
                label,
            );
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
    use crate::wire::frame::Body;

    fn frame(n: usize) -> Vec<u8> {
        (0..60 + n % 1400).map(|at| (n + at) as u8).collect()
    }

    fn push(backlog: &mut Backlog, n: usize) -> bool {
        let mut from = Inbox::holding();
        from.hold(&frame(n));
        let frame = Frame {
            segment: Some(n as u16),
            ..from.frame(0).unwrap()
        };
        let label = Label::new(None, &Body::Arp, frame);
        backlog.push(&from, frame, label)
    }

    fn pop(backlog: &mut Backlog) -> Vec<u8> {
        let mut held = Inbox::holding();
        let label = backlog.pop(&mut held).unwrap();
        let frame = held.frame(0).unwrap();
        assert_eq!(frame.segment, label.segment);
        frame.head.to_vec()
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
