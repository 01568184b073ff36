//! Frames from the guest over a stream socket: each behind its length, four octets in network order (the framing of QEMU's
//! `-netdev stream`), or in the queue of a vhost-user front-end.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::{
    slot::{FRAME_MAX, FRAME_MIN, Slot},
    vhost::{
        intake::{Fetched, Intake, Look},
        ring::Broken,
    },
};
use crate::sys::{Gather, msg};

/// The framing before each frame, in octets.
pub(super) const PREFIX: usize = 4;

/// What one read asks for.
const BURST: usize = 256 * 1024;

/// A frame from the guest: what may be read of it, and where all of it lies.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Private memory, the first octets of the frame: all headers, and the whole of a message to a service.
    pub head: &'a [u8],
    /// The whole frame, for the kernel.
    pub whole: Slot,
    /// The payload octets of each datagram, if it stands for several.
    pub segment: Option<u16>,
    /// Where checksumming starts and where behind that the checksum goes, if the guest has left it to us.
    pub checksum: Option<(u16, u16)>,
}

/// How a read went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// There may be frames, and more to read.
    Burst,
    /// There may be frames; the socket is empty, and an edge will tell of more.
    Last,
    /// Nothing to read until the socket is readable again.
    Blocked,
    /// The system is short of memory: nothing was read, and no edge tells when to try again.
    Short,
    /// The guest is gone.
    Closed,
    /// A frame length no link has; what follows cannot be told apart any more.
    BadLength(u32),
    /// A queue that cannot be served any more.
    Broken(Broken),
}

/// The receiving half of the link: of a stream socket, or of a queue.
#[derive(Debug)]
pub struct Inbox {
    socket: Option<OwnedFd>,
    intake: Option<Intake>,
    /// Whether the guest is asked to kick only when somebody says so.
    quiet: bool,
    buffer: Box<[u8]>,
    /// Where the octets not yet handed out as frames begin and end.
    start: usize,
    end: usize,
    frames: Vec<Fetched>,
}

impl Inbox {
    pub fn new() -> Self {
        let buffer = vec![0; BURST + PREFIX + FRAME_MAX].into_boxed_slice();
        let frames = Vec::with_capacity((BURST + FRAME_MAX) / (PREFIX + FRAME_MIN) + 1);
        Self {
            socket: None,
            intake: None,
            quiet: false,
            buffer,
            start: 0,
            end: 0,
            frames,
        }
    }

    /// One that holds a single frame, received by no socket.
    pub fn holding() -> Self {
        Self {
            socket: None,
            intake: None,
            quiet: false,
            buffer: vec![0; FRAME_MAX].into_boxed_slice(),
            start: 0,
            end: 0,
            frames: Vec::with_capacity(1),
        }
    }

    /// Holds this frame as the only one of a burst, as far as it is no longer than frames can be.
    pub fn hold(&mut self, frame: &[u8]) {
        self.frames.clear();
        if let Some(place) = self.buffer.get_mut(..frame.len()) {
            place.copy_from_slice(frame);
            let whole = Slot::ours(0, frame.len());
            self.frames.push(Fetched::plain(whole));
        }
    }

    /// Holds no frames, to hold some of others next.
    pub fn hold_none(&mut self) {
        self.frames.clear();
        self.end = 0;
    }

    /// Whether there is room for a frame of so many octets behind those it holds.
    pub fn can_hold(&self, len: usize) -> bool {
        self.end + len <= self.buffer.len() && self.frames.len() < self.frames.capacity()
    }

    /// Holds a frame of so many octets, which `fill` writes, behind those it holds; there must be room.
    pub fn hold_next(
        &mut self,
        len: usize,
        segment: Option<u16>,
        checksum: Option<(u16, u16)>,
        fill: impl FnOnce(&mut [u8]),
    ) {
        if let Some(place) = self.buffer.get_mut(self.end..self.end + len) {
            fill(place);
            let whole = Slot::ours(self.end, len);
            self.frames.push(Fetched {
                head: whole,
                whole,
                segment,
                checksum,
            });
            self.end = (self.end + len).next_multiple_of(64).min(self.buffer.len());
        }
    }

    /// Puts the last `count` frames of the current burst back into the queue they came from, to be received again.
    pub fn put_back(&mut self, count: usize) {
        if let Some(intake) = &mut self.intake {
            intake.put_back(count);
            self.frames.truncate(self.frames.len() - count);
        }
    }

    /// Serves another client, or none; what was left of the last is forgotten.
    pub fn attach(&mut self, socket: Option<OwnedFd>) {
        self.socket = socket;
        (self.start, self.end) = (0, 0);
        self.frames.clear();
    }

    /// The queue frames come from, where they do.
    pub const fn intake(&mut self) -> &mut Option<Intake> {
        &mut self.intake
    }

    /// Has the guest of a queue kick only after [`Inbox::ask_for_kicks`].
    pub const fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// Whether there is something in the queue, if frames come by one.
    pub fn has_more(&self) -> bool {
        self.intake.as_ref().is_some_and(Intake::has_more)
    }

    /// Has the guest kick when there is something in the queue. `true` if there is already.
    pub fn ask_for_kicks(&mut self) -> bool {
        self.intake.as_mut().is_some_and(Intake::ask_for_kicks)
    }

    /// Whether the memory that the queue lies in has vanished.
    pub fn has_vanished(&self) -> bool {
        self.intake.as_ref().is_some_and(Intake::has_vanished)
    }

    /// Hands a burst that was worked off back to the guest; its slots become void.
    pub fn release(&mut self) {
        if let Some(intake) = &mut self.intake {
            self.frames.clear();
            intake.release();
        }
    }

    /// Reads once, and finds the frames that are complete now. Slots of the burst before become void.
    pub fn receive(&mut self) -> Received {
        self.frames.clear();
        if let Some(intake) = &mut self.intake {
            return match intake.fetch(&mut self.buffer, &mut self.frames, self.quiet) {
                Ok(Look::More) => Received::Burst,
                Ok(Look::Last) => Received::Last,
                Err(broken) => Received::Broken(broken),
            };
        }
        let Some(socket) = &self.socket else {
            return Received::Closed;
        };
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        let len = free.len().min(BURST);
        let octets = match msg::receive_into(socket.as_fd(), &mut free[..len]) {
            Ok(0) => return Received::Closed,
            Ok(octets) => octets,
            Err(error) => {
                return match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::WouldBlock, _) => Received::Blocked,
                    (io::ErrorKind::Interrupted, _) => Received::Burst,
                    (_, Some(libc::ENOMEM | libc::ENOBUFS)) => Received::Short,
                    _ => Received::Closed,
                };
            }
        };
        self.end += octets;
        self.find_frames(if octets < len {
            Received::Last
        } else {
            Received::Burst
        })
    }

    /// Finds the complete frames; `whole` is the answer if all is well.
    fn find_frames(&mut self, whole: Received) -> Received {
        while let Some(prefix) = self
            .buffer
            .get(self.start..self.end)
            .and_then(<[u8]>::first_chunk::<PREFIX>)
        {
            let len = u32::from_be_bytes(*prefix);
            if !(FRAME_MIN..=FRAME_MAX).contains(&(len as usize)) {
                return Received::BadLength(len);
            }
            let at = self.start + PREFIX;
            let next = at + len as usize;
            if next > self.end {
                break;
            }
            let whole = Slot::ours(at, len as usize);
            self.frames.push(Fetched::plain(whole));
            self.start = next;
        }
        whole
    }

    /// Whether frames of the current burst are to go nowhere, as their queue is disabled.
    pub fn discards(&self) -> bool {
        self.intake.as_ref().is_some_and(Intake::discards)
    }

    /// Frames in the current burst.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// One frame of the current burst.
    pub fn frame(&self, index: usize) -> Option<Frame<'_>> {
        let frame = *self.frames.get(index)?;
        Some(Frame {
            head: self.octets(frame.head),
            whole: frame.whole,
            segment: frame.segment,
            checksum: frame.checksum,
        })
    }

    /// Lists a stretch of the current burst for the kernel to read; `false` if the list is full.
    #[must_use]
    pub fn gather<'a>(&'a self, slot: Slot, gather: &mut Gather<'_, 'a>) -> bool {
        if let (Some(intake), Some(_)) = (&self.intake, slot.piece()) {
            return intake.gather(slot, gather);
        }
        gather.push(self.octets(slot))
    }

    /// Copies a stretch of the current burst out, piece by piece.
    pub fn copy(&self, slot: Slot, mut take: impl FnMut(&[u8])) {
        if let (Some(intake), Some(_)) = (&self.intake, slot.piece()) {
            return intake.copy(slot, take);
        }
        take(self.octets(slot));
    }

    /// Copies as much of a stretch's start as fits `start`, and returns how much of that it fills.
    pub fn copy_start(&self, slot: Slot, start: &mut [u8]) -> usize {
        let mut filled = 0;
        self.copy(slot.part(&(0..start.len())), |octets| {
            if let Some(place) = start.get_mut(filled..filled + octets.len()) {
                place.copy_from_slice(octets);
                filled += octets.len();
            }
        });
        filled
    }

    fn octets(&self, slot: Slot) -> &[u8] {
        self.buffer
            .get(slot.at()..slot.at() + slot.len())
            .unwrap_or_default()
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{io::Write, os::unix::net::UnixStream};

    fn framed(frames: &[Vec<u8>]) -> Vec<u8> {
        frames
            .iter()
            .flat_map(|f| {
                (f.len() as u32)
                    .to_be_bytes()
                    .into_iter()
                    .chain(f.iter().copied())
            })
            .collect()
    }

    fn all(inbox: &Inbox) -> Vec<Vec<u8>> {
        (0..inbox.frames())
            .map(|i| inbox.frame(i).unwrap().head.to_vec())
            .collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_split_of_reads(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), FRAME_MIN..200), 1..20),
            cuts in proptest::collection::vec(1_usize..300, 1..40),
        ) {
            let (mut guest, ours) = UnixStream::pair().unwrap();
            let mut inbox = Inbox::new();
            inbox.attach(Some(ours.into()));
            let stream = framed(&frames);
            let (mut sent, mut got, mut cuts) = (0, Vec::new(), cuts.into_iter().cycle());
            while sent < stream.len() {
                let end = stream.len().min(sent + cuts.next().unwrap());
                guest.write_all(&stream[sent..end]).unwrap();
                sent = end;
                prop_assert_eq!(inbox.receive(), Received::Last);
                got.extend(all(&inbox));
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(inbox.receive(), Received::Blocked);
        }
    }

    #[test]
    fn lengths_outside_14_to_69632_are_refused() {
        for (len, good) in [
            (13_u32, false),
            (14, true),
            (69_632, true),
            (69_633, false),
            (0, false),
            (u32::MAX, false),
        ] {
            let (mut guest, ours) = UnixStream::pair().unwrap();
            let mut inbox = Inbox::new();
            inbox.attach(Some(ours.into()));
            guest.write_all(&len.to_be_bytes()).unwrap();
            assert_eq!(
                inbox.receive(),
                if good {
                    Received::Last
                } else {
                    Received::BadLength(len)
                }
            );
        }
    }

    #[test]
    fn the_longest_frame_fits_behind_a_partial_one() {
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new();
        inbox.attach(Some(ours.into()));
        let frames = vec![vec![1; FRAME_MAX]; 9];
        let stream = framed(&frames);
        let writer = std::thread::spawn(move || guest.write_all(&stream).unwrap());
        let mut got = Vec::new();
        while got.len() < frames.len() {
            match inbox.receive() {
                Received::Burst | Received::Last => got.extend(all(&inbox)),
                Received::Blocked => std::thread::yield_now(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, frames);
        writer.join().unwrap();
        assert_eq!(inbox.receive(), Received::Closed);
    }
}
