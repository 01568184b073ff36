//! A queue of frames from one reactor to another: bounded, in order, without locks. Whoever is asleep when something becomes
//! possible is to be woken by the other side, which is told so.
//!
//! It is made of words that both sides read and write as atomics, which costs no more than plain ones and needs nothing
//! unsafe. Positions count words and never go back; a place is a position modulo the size.

#[cfg(loom)]
use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

use crate::sys::zeroed;

/// Octets of a word.
const WORD: usize = 8;

/// Words before each frame: its length, and two of the sender's.
const HEADER: usize = 3;

/// Both ends' memory.
#[derive(Debug)]
struct Shared {
    words: Box<[AtomicU64]>,
    /// Where the next frame is written, and where the next one is read.
    tail: AtomicUsize,
    head: AtomicUsize,
    /// The sender found no room, and waits.
    waits: AtomicBool,
}

impl Shared {
    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.words.get(at & (self.words.len() - 1))
    }

    fn load(&self, at: usize) -> u64 {
        self.word(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn store(&self, at: usize, value: u64) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// The end that frames go in at.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    tail: usize,
    /// The other end's position when it was last looked at.
    head: usize,
}

/// The end that they come out of.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    head: usize,
}

/// What is said of a frame that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// Octets.
    pub len: usize,
    /// What the sender said of it.
    pub words: [u64; 2],
}

/// A queue of `size` octets, a power of two.
pub fn ring(size: usize) -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        words: zeroed::words(size / WORD),
        tail: AtomicUsize::new(0),
        head: AtomicUsize::new(0),
        waits: AtomicBool::new(false),
    });
    let sender = Sender {
        shared: Arc::clone(&shared),
        tail: 0,
        head: 0,
    };
    (sender, Receiver { shared, head: 0 })
}

impl Sender {
    /// Whether there is room for a frame of `len` octets. If not, the receiver will say when there is more.
    pub fn has_room(&mut self, len: usize) -> bool {
        let want = HEADER + len.div_ceil(WORD);
        let fits = |sender: &Self| {
            let used = sender.tail.wrapping_sub(sender.head);
            want <= sender.shared.words.len() - used
        };
        if fits(self) {
            return true;
        }
        self.head = self.shared.head.load(Ordering::Acquire);
        if fits(self) {
            return true;
        }
        self.shared.waits.store(true, Ordering::Relaxed);
        // Either the receiver sees that we wait, or we see what it has made room for.
        fence(Ordering::SeqCst);
        self.head = self.shared.head.load(Ordering::Acquire);
        fits(self)
    }

    /// Sends a frame of `len` octets, which `write` hands over piece by piece; there must be room for it. `true` if the
    /// receiver is to be woken: it had nothing left.
    pub fn send(
        &mut self,
        len: usize,
        words: [u64; 2],
        write: impl FnOnce(&mut dyn FnMut(&[u8])),
    ) -> bool {
        let start = self.tail;
        for (at, word) in [len as u64, words[0], words[1]].into_iter().enumerate() {
            self.shared.store(start.wrapping_add(at), word);
        }
        let mut writer = Writer {
            shared: &self.shared,
            at: start.wrapping_add(HEADER),
            left: len,
            begun: [0; WORD],
            filled: 0,
        };
        write(&mut |octets| writer.put(octets));
        writer.finish();
        self.tail = start.wrapping_add(HEADER + len.div_ceil(WORD));
        self.shared.tail.store(self.tail, Ordering::Release);
        // Either the receiver sees this frame before it rests, or we see that it has taken all before.
        fence(Ordering::SeqCst);
        self.head = self.shared.head.load(Ordering::Acquire);
        self.head == start
    }
}

/// Puts octets into words.
struct Writer<'a> {
    shared: &'a Shared,
    at: usize,
    /// Octets still expected; more are left out.
    left: usize,
    begun: [u8; WORD],
    filled: usize,
}

impl Writer<'_> {
    fn put(&mut self, octets: &[u8]) {
        let mut octets = octets.get(..self.left).unwrap_or(octets);
        self.left -= octets.len();
        if self.filled > 0 {
            let (now, rest) = octets.split_at(octets.len().min(WORD - self.filled));
            self.begin(now);
            octets = rest;
        }
        let (whole, rest) = octets.as_chunks::<WORD>();
        for word in whole {
            self.store(*word);
        }
        self.begin(rest);
    }

    fn begin(&mut self, octets: &[u8]) {
        for &octet in octets {
            if let Some(place) = self.begun.get_mut(self.filled) {
                *place = octet;
            }
            self.filled += 1;
        }
        if self.filled == WORD {
            self.filled = 0;
            self.store(self.begun);
        }
    }

    fn store(&mut self, word: [u8; WORD]) {
        self.shared.store(self.at, u64::from_ne_bytes(word));
        self.at = self.at.wrapping_add(1);
    }

    fn finish(mut self) {
        if self.filled > 0 {
            self.store(self.begun);
        }
    }
}

impl Receiver {
    /// The frame that is next.
    pub fn next(&self) -> Option<Notice> {
        if self.shared.tail.load(Ordering::Acquire) == self.head {
            return None;
        }
        let word = |n: usize| self.shared.load(self.head.wrapping_add(n));
        Some(Notice {
            len: word(0) as usize,
            words: [word(1), word(2)],
        })
    }

    /// Takes the frame that is next, as far as `out` has room for it.
    pub fn take(&mut self, frame: Notice, out: &mut [u8]) {
        let start = self.head.wrapping_add(HEADER);
        for (at, octets) in out.chunks_mut(WORD).enumerate() {
            let word = self.shared.load(start.wrapping_add(at)).to_ne_bytes();
            octets.copy_from_slice(word.get(..octets.len()).unwrap_or_default());
        }
        self.head = start.wrapping_add(frame.len.div_ceil(WORD));
    }

    /// Lets the sender have the room of what was taken. `true` if it waits for that, and is to be woken.
    pub fn release(&mut self) -> bool {
        self.shared.head.store(self.head, Ordering::Release);
        fence(Ordering::SeqCst);
        self.shared.waits.load(Ordering::Relaxed)
            && self.shared.waits.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::VecDeque, sync::mpsc, thread};

    fn push(sender: &mut Sender, octets: &[u8], cut: usize) -> bool {
        sender.send(octets.len(), [1, 2], |put| {
            for piece in octets.chunks(cut) {
                put(piece);
            }
        })
    }

    fn pull(receiver: &mut Receiver) -> Option<Vec<u8>> {
        let frame = receiver.next()?;
        assert_eq!(frame.words, [1, 2]);
        let mut octets = vec![0; frame.len];
        receiver.take(frame, &mut octets);
        Some(octets)
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            steps in proptest::collection::vec((any::<bool>(), 0_usize..300, 1_usize..40), 1..200),
        ) {
            let (mut sender, mut receiver) = ring(1024);
            let mut model: VecDeque<Vec<u8>> = VecDeque::new();
            for (n, (put, len, cut)) in steps.into_iter().enumerate() {
                if put {
                    let used: usize = model.iter().map(|f| HEADER + f.len().div_ceil(WORD)).sum();
                    let fits = used + HEADER + len.div_ceil(WORD) <= 1024 / WORD;
                    prop_assert_eq!(sender.has_room(len), fits);
                    if fits {
                        let frame: Vec<u8> = (0..len).map(|at| (at + n) as u8).collect();
                        prop_assert_eq!(push(&mut sender, &frame, cut), model.is_empty());
                        model.push_back(frame);
                    }
                } else {
                    prop_assert_eq!(pull(&mut receiver), model.pop_front());
                    receiver.release();
                }
            }
        }
    }

    #[test]
    fn who_finds_no_room_is_told_when_there_is_some() {
        let (mut sender, mut receiver) = ring(256);
        assert!(sender.has_room(232));
        assert!(!sender.has_room(233));
        // There was room all along, and the sender did wait for it.
        assert!(receiver.release());
        assert!(!receiver.release());
        assert!(push(&mut sender, &[7; 200], 9));
        assert!(!sender.has_room(100));
        assert_eq!(pull(&mut receiver), Some(vec![7; 200]));
        assert!(receiver.release());
        assert!(sender.has_room(100));
    }

    /// Two threads that sleep whenever they may: a wake-up that was lost would leave both asleep for ever.
    #[test]
    fn no_wake_up_is_lost() {
        const FRAMES: u32 = if cfg!(miri) { 300 } else { 100_000 };
        let (mut sender, mut receiver) = ring(512);
        let (wake_receiver, woken_receiver) = mpsc::channel::<()>();
        let (wake_sender, woken_sender) = mpsc::channel::<()>();
        let consumer = thread::spawn(move || {
            let mut expected = 0_u32;
            while expected < FRAMES {
                while let Some(octets) = pull(&mut receiver) {
                    assert_eq!(octets[..4], expected.to_ne_bytes());
                    assert!(octets[4..].iter().all(|&octet| octet == expected as u8));
                    expected += 1;
                    if expected.is_multiple_of(3) && receiver.release() {
                        wake_sender.send(()).unwrap();
                    }
                }
                if receiver.release() {
                    wake_sender.send(()).unwrap();
                }
                if expected < FRAMES && receiver.next().is_none() {
                    woken_receiver.recv().unwrap();
                }
            }
        });
        for n in 0..FRAMES {
            let mut frame = n.to_ne_bytes().to_vec();
            frame.resize(4 + (n % 97) as usize, n as u8);
            while !sender.has_room(frame.len()) {
                woken_sender.recv().unwrap();
            }
            if push(&mut sender, &frame, 11) {
                wake_receiver.send(()).unwrap();
            }
        }
        consumer.join().unwrap();
    }
}
