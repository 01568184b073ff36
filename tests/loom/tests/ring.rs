//! The queue between two reactors: frames arrive whole and in order, and nobody sleeps for ever.

use loom::{
    model::Builder,
    sync::{Arc, Notify},
    thread,
};
use passt_loom::ring::{Receiver, Sender, ring};

/// How often the order may be another than that in which a thread would run on by itself.
const PREEMPTIONS: usize = 3;

/// Octets of a ring that has room for two frames of one word.
const SIZE: usize = 64;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

fn push(sender: &mut Sender, n: u64) -> bool {
    sender.send(8, [n, !n], |put| put(&(n * 3).to_ne_bytes()))
}

/// The frame that is next must be this one.
fn pull(receiver: &mut Receiver, n: u64) -> bool {
    let Some(frame) = receiver.next() else {
        return false;
    };
    assert_eq!((frame.len, frame.words), (8, [n, !n]));
    let mut octets = [0; 8];
    receiver.take(frame, &mut octets);
    assert_eq!(u64::from_ne_bytes(octets), n * 3);
    true
}

/// Takes so many frames, and sleeps whenever it may.
fn consume(mut receiver: Receiver, frames: u64, own: &Notify, others: &Notify) {
    let mut expected = 0;
    while expected < frames {
        while pull(&mut receiver, expected) {
            expected += 1;
        }
        if receiver.release() {
            others.notify();
        }
        if expected < frames && receiver.next().is_none() {
            own.wait();
        }
    }
}

fn exchange(frames: u64) {
    let (mut sender, receiver) = ring(SIZE);
    // They are as eventfds are: who is woken before it sleeps does not sleep.
    let [senders, receivers] = [(); 2].map(|()| Arc::new(Notify::new()));
    let consumer = thread::spawn({
        let (own, others) = (receivers.clone(), senders.clone());
        move || consume(receiver, frames, &own, &others)
    });
    for n in 0..frames {
        while !sender.has_room(8) {
            senders.wait();
        }
        if push(&mut sender, n) {
            receivers.notify();
        }
    }
    consumer.join().unwrap();
}

/// A reader that rests while a frame comes is woken.
#[test]
fn a_reader_that_sleeps_is_woken_and_finds_the_frame_whole() {
    check(|| exchange(2));
}

/// A third frame has no room: whoever is full sleeps too, and is woken.
#[test]
fn a_writer_that_found_no_room_is_woken() {
    check(|| exchange(3));
}
