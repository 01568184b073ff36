//! Frames to the guest over a stream socket: reserve room, let the kernel fill it, commit it as frames, flush.
//!
//! Payloads of neighbouring frames are contiguous and the headers lie apart, so one read from a socket fills many frames and
//! one write sends them as header and payload pairs. A frame once begun is always finished.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    capture::Capture,
    inbox::{Inbox, PREFIX},
};
use crate::{
    net::Why,
    sys::{Gather, Iovecs, Scatter, msg, reason},
    wire::{checksum::Sum, headers::HEADERS_MAX},
};

/// Payload memory, in octets.
const ARENA: usize = 1024 * 1024;

/// What is kept of it for answers of services, however much flows would like to have.
const ARENA_KEPT: usize = 16 * 1024;

/// Frames that may wait, and how many of these are kept for segments without payload and answers of services.
const FRAMES: usize = 2048;
const FRAMES_KEPT: usize = 256;

/// What separates rooms for datagrams: the largest, in fragments with their headers, and not quite a multiple of a page, so
/// that small ones do not crowd each other out of the processor's cache.
const STRIDE: usize = 75_264;

/// Octets of such a room.
const ROOM: usize = 65_536;

/// Datagrams that may be received as one (UDP_MAX_SEGMENTS, linux/udp.h).
const SEGMENTS: usize = 128;

/// Queued octets from which a flush pays before more is fetched.
const FULL: usize = 256 * 1024;

/// Memory of one frame's prefix and headers, and of a payload that fits behind them.
const HEAD: usize = 128;

/// The shortest Ethernet frame without its checksum (IEEE 802.3); shorter ones are padded, some drivers insist.
const PADDED: usize = 60;

/// Room for payload; a value that is given back with `commit` or forgotten.
#[derive(Debug)]
pub struct Room {
    at: usize,
    /// Octets.
    pub len: usize,
}

/// Rooms of equal size for a datagram each, or for several that are received as one.
#[derive(Debug)]
pub struct Rooms {
    at: usize,
    pub count: usize,
}

/// One frame's payload, when its headers are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Octets of the committed payload before this piece.
    pub at: usize,
    pub len: usize,
    pub sum: Sum,
    /// Whether no piece follows.
    pub last: bool,
}

/// How a flush went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits any more.
    Done,
    /// The rest waits until the socket is writable.
    Blocked,
}

#[derive(Debug, Clone, Copy)]
struct Queued {
    /// Octets in its head: prefix, headers, a short payload, padding.
    head: usize,
    /// Payload in the arena.
    at: usize,
    len: usize,
}

/// The sending half of a stream link.
#[derive(Debug)]
pub struct Outbox {
    socket: Option<OwnedFd>,
    heads: Box<[[u8; HEAD]]>,
    arena: Box<[u8]>,
    used: usize,
    frames: Vec<Queued>,
    /// The first frame not wholly sent, and how many octets of it are.
    first: usize,
    sent: usize,
    /// The socket took no more; there is no use in trying before something happens.
    full: bool,
    iovecs: Iovecs,
    capture: Option<Capture>,
}

impl Outbox {
    pub fn new() -> Self {
        Self {
            socket: None,
            heads: vec![[0; HEAD]; FRAMES].into_boxed_slice(),
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            frames: Vec::with_capacity(FRAMES),
            first: 0,
            sent: 0,
            full: false,
            iovecs: Iovecs::new(),
            capture: None,
        }
    }

    /// Captures what passes from now on.
    pub fn set_capture(&mut self, capture: Option<Capture>) {
        self.capture = capture;
    }

    /// Captures the frames of a burst from the guest: both directions share one file, in the order they passed.
    pub fn capture_burst(&mut self, inbox: &Inbox) {
        if self.capture.is_some() {
            for frame in (0..inbox.frames()).filter_map(|index| inbox.frame(index)) {
                capture(&mut self.capture, |file, at| file.record(at, &[frame.head]));
            }
            capture(&mut self.capture, |file, _| file.flush());
        }
    }

    /// Serves another client, or none; what waited for the last is forgotten.
    pub fn attach(&mut self, socket: Option<OwnedFd>) {
        self.socket = socket;
        self.full = false;
        self.clear();
    }

    /// Something has happened on the link: it may take more.
    pub const fn stirred(&mut self) {
        self.full = false;
    }

    /// Whether somebody is there to receive.
    pub const fn has_guest(&self) -> bool {
        self.socket.is_some()
    }

    /// Makes room for a frame without payload, if that takes a flush. `false` if the link is full; where no guest is connected
    /// everything finds room, as nothing has to arrive.
    pub fn has_room(&mut self) -> bool {
        self.socket.is_none() || self.frames.len() < FRAMES || self.flush() == Flushed::Done
    }

    /// Room for up to `want` octets of payload, to be cut into frames of `cut` octets. `None` when the link is full: flush,
    /// or wait until it is writable.
    pub fn reserve(&mut self, want: usize, cut: usize) -> Option<Room> {
        if self.socket.is_none() || self.used >= FULL {
            return None;
        }
        let frames = (FRAMES - FRAMES_KEPT).saturating_sub(self.frames.len());
        let len = want
            .min(ARENA - ARENA_KEPT - self.used)
            .min(frames.saturating_mul(cut));
        (len >= want.min(cut) && len > 0).then_some(Room { at: self.used, len })
    }

    /// Lists reserved room for the kernel to write.
    #[must_use]
    pub fn scatter<'a>(&'a mut self, room: &Room, scatter: &mut Scatter<'_, 'a>) -> bool {
        self.arena
            .get_mut(room.at..room.at + room.len)
            .is_some_and(|memory| scatter.push(memory))
    }

    /// Queues the first `len` octets of `room` as frames of `cut` octets payload each; `stamp` writes the headers of each.
    pub fn commit(
        &mut self,
        room: Room,
        len: usize,
        cut: usize,
        mut stamp: impl FnMut(Piece, &mut [u8; HEADERS_MAX]) -> usize,
    ) {
        let len = len.min(room.len);
        let Some(memory) = self.arena.get(room.at..room.at + len) else {
            return;
        };
        let mut at = 0;
        loop {
            let octets = memory.get(at..len.min(at + cut)).unwrap_or_default();
            let piece = Piece {
                at,
                len: octets.len(),
                sum: Sum::new().bytes(octets),
                last: at + octets.len() >= len,
            };
            let Some(head) = self.heads.get_mut(self.frames.len()) else {
                return;
            };
            let (head, at_arena) = fill(head, octets, |headers| stamp(piece, headers));
            let len = if at_arena { piece.len } else { 0 };
            self.frames.push(Queued {
                head,
                at: room.at + at,
                len,
            });
            at += piece.len;
            if piece.last {
                break;
            }
        }
        // What follows starts on its own cache line.
        self.used = (room.at + len).next_multiple_of(64).min(ARENA);
    }

    /// Up to `most` rooms of 64 KiB. `None` when the link is full, as of [`Outbox::reserve`].
    pub fn reserve_many(&mut self, most: usize) -> Option<Rooms> {
        if self.socket.is_none() || self.used >= FULL {
            return None;
        }
        let frames = (FRAMES - FRAMES_KEPT).saturating_sub(self.frames.len()) / SEGMENTS;
        let rooms = (ARENA - ARENA_KEPT - self.used) / STRIDE;
        let count = most.min(frames).min(rooms);
        let at = self.used;
        (count > 0).then_some(Rooms { at, count })
    }

    /// Lists reserved rooms for the kernel to write, one piece each.
    #[must_use]
    pub fn scatter_many<'a>(&'a mut self, rooms: &Rooms, scatter: &mut Scatter<'_, 'a>) -> bool {
        let memory = self.arena.get_mut(rooms.at..).unwrap_or_default();
        let mut pieces = memory.chunks_exact_mut(STRIDE).take(rooms.count);
        pieces.all(|piece| piece.get_mut(..ROOM).is_some_and(|room| scatter.push(room)))
    }

    /// What a room has received. Rooms before it may have been committed, none behind it.
    pub fn received(&self, rooms: &Rooms, at: usize, range: Range<usize>) -> &[u8] {
        let start = rooms.at + at * STRIDE;
        self.arena
            .get(start + range.start..start + range.end)
            .unwrap_or_default()
    }

    /// Queues the first `len` octets of a room as frames of `cut` octets payload each, like [`Outbox::commit`]. Rooms are
    /// committed or left out in their order.
    pub fn commit_one(
        &mut self,
        rooms: &Rooms,
        at: usize,
        len: usize,
        cut: usize,
        stamp: impl FnMut(Piece, &mut [u8; HEADERS_MAX]) -> usize,
    ) {
        let start = rooms.at + at * STRIDE;
        let gap = start.saturating_sub(self.used);
        // Short ones move up, so that few of them do not fill the arena.
        let at = if len <= gap && start + len <= self.arena.len() {
            self.arena.copy_within(start..start + len, self.used);
            self.used
        } else {
            start
        };
        self.commit(Room { at, len }, len, cut, stamp);
    }

    /// Queues a frame without payload.
    ///
    /// # Errors
    /// [`Why::LinkFull`] when no more frames may wait, [`Why::NoGuest`] when nobody is connected.
    pub fn bare(&mut self, stamp: impl FnOnce(&mut [u8; HEADERS_MAX]) -> usize) -> Result<(), Why> {
        if self.socket.is_none() {
            return Err(Why::NoGuest);
        }
        let head = self.heads.get_mut(self.frames.len()).ok_or(Why::LinkFull)?;
        let (head, _) = fill(head, &[], stamp);
        self.frames.push(Queued {
            head,
            at: 0,
            len: 0,
        });
        Ok(())
    }

    /// Queues a whole frame by copying it: what services say.
    ///
    /// # Errors
    /// [`Why::LinkFull`] when there is no room, [`Why::NoGuest`] when nobody is connected.
    pub fn copy(&mut self, frame: &[u8]) -> Result<(), Why> {
        if self.socket.is_none() {
            return Err(Why::NoGuest);
        }
        let memory = self
            .arena
            .get_mut(self.used..self.used + frame.len())
            .ok_or(Why::LinkFull)?;
        let head = self.heads.get_mut(self.frames.len()).ok_or(Why::LinkFull)?;
        memory.copy_from_slice(frame);
        head[..PREFIX].copy_from_slice(&(frame.len() as u32).to_be_bytes());
        self.frames.push(Queued {
            head: PREFIX,
            at: self.used,
            len: frame.len(),
        });
        self.used = (self.used + frame.len()).next_multiple_of(64).min(ARENA);
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self) -> Flushed {
        while self.first < self.frames.len()
            && let Some(socket) = &self.socket
        {
            if self.full {
                return Flushed::Blocked;
            }
            let mut gather = self.iovecs.gather();
            list(
                &mut gather,
                &self.heads,
                &self.arena,
                &self.frames,
                self.first,
                self.sent,
            );
            match msg::send(socket.as_fd(), &gather) {
                Ok(octets) => self.advance_by(octets),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full = true;
                    return Flushed::Blocked;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The guest is gone: reading will tell, and nothing of this can arrive.
                Err(error) if is_gone(&error) => break,
                // The system is short of memory: the frame that was begun is finished later.
                Err(_) => return Flushed::Blocked,
            }
        }
        if !self.frames.is_empty() {
            capture(&mut self.capture, |file, _| file.flush());
        }
        self.clear();
        Flushed::Done
    }

    /// Notes that `octets` more were sent, and captures the frames that are complete.
    fn advance_by(&mut self, octets: usize) {
        self.sent += octets;
        while let Some(frame) = self.frames.get(self.first) {
            if self.sent < frame.head + frame.len {
                break;
            }
            self.sent -= frame.head + frame.len;
            if let Some(head) = self.heads.get(self.first) {
                let payload = &self.arena[frame.at..frame.at + frame.len];
                capture(&mut self.capture, |file, at| {
                    file.record(at, &[&head[PREFIX..frame.head], payload])
                });
            }
            self.first += 1;
        }
    }

    fn clear(&mut self) {
        self.frames.clear();
        (self.first, self.sent, self.used) = (0, 0, 0);
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// Does something with the capture, if there is one. It ends with its first error.
fn capture(
    capture: &mut Option<Capture>,
    act: impl FnOnce(&mut Capture, Duration) -> io::Result<()>,
) {
    let Some(file) = capture else { return };
    // A clock before 1970 is as good as none.
    let at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    if let Err(error) = act(file, at) {
        log::warn!("Capture ends here: {}", reason(&error));
        *capture = None;
    }
}

/// Writes prefix and headers of one frame; a payload that fits joins them. Returns the octets used, and whether the payload
/// stays in the arena.
fn fill(
    head: &mut [u8; HEAD],
    payload: &[u8],
    stamp: impl FnOnce(&mut [u8; HEADERS_MAX]) -> usize,
) -> (usize, bool) {
    let (prefix, rest) = head.split_at_mut(PREFIX);
    let mut headers = 0;
    if let Some(space) = rest.first_chunk_mut() {
        headers = stamp(space);
    }
    let inside = headers + payload.len() <= rest.len();
    let mut used = headers;
    if inside {
        rest[headers..headers + payload.len()].copy_from_slice(payload);
        used += payload.len();
        if used < PADDED {
            rest[used..PADDED].fill(0);
            used = PADDED;
        }
    }
    let frame = if inside {
        used
    } else {
        headers + payload.len()
    };
    prefix.copy_from_slice(&(frame as u32).to_be_bytes());
    (PREFIX + used, !inside)
}

/// Lists the frames from `first` on, less the octets of it that were sent, as far as the list takes them.
fn list<'a>(
    gather: &mut Gather<'_, 'a>,
    heads: &'a [[u8; HEAD]],
    arena: &'a [u8],
    frames: &[Queued],
    first: usize,
    sent: usize,
) {
    let mut skip = sent;
    for (frame, head) in frames.iter().zip(heads).skip(first) {
        let parts = [
            &head[..frame.head],
            arena
                .get(frame.at..frame.at + frame.len)
                .unwrap_or_default(),
        ];
        for part in parts {
            let (gone, part) = part.split_at(skip.min(part.len()));
            skip -= gone.len();
            if !part.is_empty() && !gather.push(part) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    fn outbox() -> (Outbox, UnixStream) {
        let (guest, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::new();
        outbox.attach(Some(ours.into()));
        (outbox, guest)
    }

    fn read_frame(guest: &mut UnixStream) -> Vec<u8> {
        let mut prefix = [0; PREFIX];
        guest.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        guest.read_exact(&mut frame).unwrap();
        frame
    }

    fn source(octets: &[u8]) -> UnixStream {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        writer.write_all(octets).unwrap();
        reader
    }

    /// Fills a room from a socket and commits it as frames with a header of their offset.
    fn send(outbox: &mut Outbox, octets: &[u8], cut: usize) {
        let room = outbox.reserve(octets.len(), cut).unwrap();
        let mut iovecs = Iovecs::new();
        let mut scatter = iovecs.scatter();
        assert!(outbox.scatter(&room, &mut scatter));
        let len = msg::receive(source(octets).as_fd(), &mut scatter).unwrap();
        outbox.commit(room, len, cut, |piece, headers| {
            headers[..54].fill(7);
            headers[..4].copy_from_slice(&(piece.at as u32).to_be_bytes());
            54
        });
    }

    #[test]
    fn one_read_becomes_frames_with_headers_of_their_own() {
        let (mut outbox, mut guest) = outbox();
        let octets: Vec<u8> = (0..2500_u32).map(|i| i as u8).collect();
        send(&mut outbox, &octets, 1000);
        assert_eq!(outbox.flush(), Flushed::Done);
        for (at, len) in [(0, 1000), (1000, 1000), (2000, 500)] {
            let frame = read_frame(&mut guest);
            assert_eq!(frame[..4], (at as u32).to_be_bytes());
            assert_eq!(frame[54..], octets[at..at + len]);
        }
    }

    #[test]
    fn short_frames_are_padded_to_sixty_octets() {
        let (mut outbox, mut guest) = outbox();
        send(&mut outbox, b"x", 1000);
        outbox
            .bare(|headers| {
                headers[..54].fill(9);
                54
            })
            .unwrap();
        outbox.copy(&[5; 70]).unwrap();
        assert_eq!(outbox.flush(), Flushed::Done);
        let frame = read_frame(&mut guest);
        assert_eq!(
            (frame.len(), frame[54], &frame[55..]),
            (60, b'x', &[0; 5][..])
        );
        assert_eq!(read_frame(&mut guest)[53..], [9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read_frame(&mut guest), [5; 70]);
    }

    #[test]
    fn a_slow_reader_gets_every_frame_whole() {
        let (mut outbox, mut guest) = outbox();
        let octets: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
        let mut rounds = 0;
        loop {
            send(&mut outbox, &octets, 60_000);
            rounds += 1;
            if outbox.flush() == Flushed::Blocked {
                break;
            }
        }
        for frame in 0..2 * rounds {
            let want = if frame % 2 == 0 {
                &octets[..60_000]
            } else {
                &octets[60_000..]
            };
            if frame + 2 >= 2 * rounds {
                assert_eq!(outbox.flush(), Flushed::Done);
            }
            assert_eq!(&read_frame(&mut guest)[54..], want);
        }
    }

    #[test]
    fn flows_find_no_room_before_services_do() {
        let (mut outbox, _guest) = outbox();
        while let Some(room) = outbox.reserve(1, 1) {
            outbox.commit(room, 1, 1, |_, _| 54);
        }
        assert_eq!(outbox.copy(&[0; 1500]), Ok(()));
        while outbox.bare(|_| 54).is_ok() {}
        assert_eq!(outbox.copy(&[0; 1500]), Err(Why::LinkFull));
        outbox.attach(None);
        assert_eq!(outbox.copy(&[0; 60]), Err(Why::NoGuest));
        assert!(outbox.reserve(1, 1).is_none());
    }
}
