//! Frames to the guest, over a stream socket or by a queue: reserve room, let the kernel fill it, commit it as frames, flush.
//!
//! Payloads of neighbouring frames are contiguous and the headers lie apart, so one read from a socket fills many frames and
//! one write sends them as header and payload pairs. A frame once begun is always finished.
//!
//! With a queue, room for a stream's octets is the guest's own memory; all else waits here until it is copied there.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use super::{
    capture::Capture,
    inbox::{Inbox, PREFIX},
    queued::{HEAD, Queued, fill, list},
    slot::{Passed, Portion},
    tape::Tape,
    vhost::{
        outlet::{Copied, Outlet},
        ring::Broken,
    },
};
use crate::{
    net::Why,
    sys::{Iovecs, Scatter, msg},
    wire::{
        build::{IPV4_LEN, PACKET_MAX, UDP_LEN, UDP_SEGMENTS_MAX},
        checksum::Sum,
        headers::HEADERS_MAX,
        vnet::{self, Cut, Vnet},
    },
};

/// Payload memory, in octets.
const ARENA: usize = 1024 * 1024;

/// What is kept of it for answers of services, however much flows would like to have.
const ARENA_KEPT: usize = 16 * 1024;

/// Frames that may wait, and how many of these are kept for segments without payload and answers of services.
const FRAMES: usize = 2048;
const FRAMES_KEPT: usize = 256;

/// What separates rooms for datagrams: all that can be received in one, in fragments with their headers, and not quite a
/// multiple of a page, so that small ones do not crowd each other out of the processor's cache. The most is what 53 datagrams
/// of 1,233 octets take at an MTU of 1280 over IPv6, in two fragments each: 78,272 octets.
const STRIDE: usize = 79_104;

/// Octets of such a room.
const ROOM: usize = 65_536;

/// The largest datagram that stands for several: what the length field of an IPv4 header can say, less the headers.
const DATAGRAM_MAX: usize = PACKET_MAX - IPV4_LEN - UDP_LEN;

/// Queued octets from which a flush pays before more is fetched.
const FULL: usize = 256 * 1024;

/// Room for payload; a value that is given back with `commit` or forgotten.
#[derive(Debug)]
pub struct Room {
    at: usize,
    /// Octets.
    pub len: usize,
    /// Octets of the headers that room was left for, if it is the guest's memory.
    lent: Option<usize>,
}

/// Rooms of equal size for a datagram each, or for several that are received as one.
#[derive(Debug)]
pub struct Rooms {
    at: usize,
    pub count: usize,
}

/// How a flush went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits any more.
    Done,
    /// The rest waits until the socket is writable, or the guest has buffers for it.
    Blocked,
}

/// The sending half of the link: of a stream socket, or of a queue.
#[derive(Debug)]
pub struct Outbox {
    socket: Option<OwnedFd>,
    outlet: Option<Outlet>,
    /// Whether frames go to a queue, though it may not run now.
    queued: bool,
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
    short: bool,
    passed: Passed,
    /// Frames that no buffers of the guest's would have held.
    pub too_long: u64,
    tape: Tape,
}

impl Outbox {
    pub fn new() -> Self {
        Self {
            socket: None,
            outlet: None,
            queued: false,
            heads: vec![[0; HEAD]; FRAMES].into_boxed_slice(),
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            frames: Vec::with_capacity(FRAMES),
            first: 0,
            sent: 0,
            full: false,
            iovecs: Iovecs::new(),
            short: false,
            passed: Passed::default(),
            too_long: 0,
            tape: Tape::default(),
        }
    }

    /// Captures what passes from now on.
    pub fn set_capture(&mut self, capture: Option<Capture>) {
        self.tape.set(capture);
    }

    /// Captures the frames of a burst from the guest: both directions share one file, in the order they passed.
    pub fn capture_burst(&mut self, inbox: &Inbox) {
        if self.tape.is_on() {
            for frame in (0..inbox.frames()).filter_map(|index| inbox.frame(index)) {
                self.tape.record(frame.checksum, |whole| {
                    inbox.copy(frame.whole, |octets| whole.extend_from_slice(octets));
                });
            }
            self.tape.flush();
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

    /// Serves a vhost-user front-end from now on, or nobody; what waited is forgotten.
    pub fn attach_queue(&mut self, attached: bool) {
        self.queued = attached;
        self.clear();
    }

    /// The queue frames go to, while it runs.
    pub const fn outlet(&mut self) -> &mut Option<Outlet> {
        &mut self.outlet
    }

    /// What the guest's driver did wrong, if it did.
    pub fn broken(&self) -> Option<Broken> {
        self.outlet.as_ref().and_then(Outlet::broken)
    }

    /// Whether the memory that the queue lies in has vanished.
    pub fn has_vanished(&self) -> bool {
        self.outlet.as_ref().is_some_and(Outlet::has_vanished)
    }

    /// Whether a front-end is there whose queue does not run: what there is to say waits until it does.
    const fn is_paused(&self) -> bool {
        self.queued && self.outlet.is_none()
    }

    /// Whether somebody is there to receive.
    pub const fn has_guest(&self) -> bool {
        self.socket.is_some() || self.outlet.is_some()
    }

    /// Makes room for a frame without payload, if that takes a flush. `false` if the link is full; where no guest is connected
    /// everything finds room, as nothing has to arrive.
    pub fn has_room(&mut self) -> bool {
        self.has_room_for(1, 0)
    }

    /// The same for so many frames, of so many octets together.
    pub fn has_room_for(&mut self, frames: usize, octets: usize) -> bool {
        let fits = self.frames.len() + frames <= FRAMES && self.used + octets <= ARENA;
        !self.is_paused() && (!self.has_guest() || fits || self.flush() == Flushed::Done)
    }

    /// Room for up to `want` octets of payload, to be cut into frames of `cut` octets. `None` when the link is full: flush,
    /// or wait until it is writable.
    pub fn reserve(&mut self, want: usize, cut: usize) -> Option<Room> {
        if !self.has_guest() || self.used >= FULL {
            return None;
        }
        let frames = (FRAMES - FRAMES_KEPT).saturating_sub(self.frames.len());
        let len = want
            .min(ARENA - ARENA_KEPT - self.used)
            .min(frames.saturating_mul(cut));
        (len >= want.min(cut) && len > 0).then_some(Room {
            at: self.used,
            len,
            lent: None,
        })
    }

    /// The same for octets of a stream, behind headers of `headers` octets: of a queue, in the guest's memory, and maybe in
    /// frames that the guest itself will cut.
    pub fn lend(&mut self, want: usize, cut: usize, headers: usize) -> Option<Room> {
        if self.outlet.is_none() {
            return self.reserve(want, cut);
        }
        self.fill_queue();
        if !self.frames.is_empty() {
            return None;
        }
        let len = self.outlet.as_mut()?.lend(want, cut, headers)?;
        Some(Room {
            at: 0,
            len,
            lent: Some(headers),
        })
    }

    /// Lists reserved room for the kernel to write.
    #[must_use]
    pub fn scatter<'a>(&'a mut self, room: &Room, scatter: &mut Scatter<'_, 'a>) -> bool {
        if let Some(headers) = room.lent {
            let outlet = self.outlet.as_ref();
            return outlet.is_some_and(|outlet| outlet.scatter(headers, scatter));
        }
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
        mut stamp: impl FnMut(Portion, &mut [u8; HEADERS_MAX]) -> usize,
    ) {
        let len = len.min(room.len);
        if let Some(headers) = room.lent {
            return self.commit_lent(len, cut, headers, stamp);
        }
        let Some(memory) = self.arena.get(room.at..room.at + len) else {
            return;
        };
        let leaves = self.outlet.as_ref().is_some_and(Outlet::leaves_checksums);
        let mut at = 0;
        loop {
            let octets = memory.get(at..len.min(at + cut)).unwrap_or_default();
            // Short ones are summed up faster than told about.
            let leave = leaves && octets.len() >= HEAD;
            let portion = Portion {
                at,
                len: octets.len(),
                sum: if leave {
                    Sum::new()
                } else {
                    Sum::new().bytes(octets)
                },
                last: at + octets.len() >= len,
            };
            let Some(head) = self.heads.get_mut(self.frames.len()) else {
                return;
            };
            let (used, at_arena) = fill(head, octets, |headers| stamp(portion, headers));
            let len = if at_arena { portion.len } else { 0 };
            let headers = head.get_mut(PREFIX..used).filter(|_| leave);
            self.frames.push(Queued {
                head: used,
                at: room.at + at,
                len,
                left: headers.map_or_else(Vnet::default, |headers| Vnet {
                    checksum: vnet::leave_checksum(headers, len),
                    ..Vnet::default()
                }),
            });
            at += portion.len;
            if portion.last {
                break;
            }
        }
        // What follows starts on its own cache line.
        self.used = (room.at + len).next_multiple_of(64).min(ARENA);
    }

    /// The same for room in the guest's memory; the guest sees the frames with the next flush.
    fn commit_lent(
        &mut self,
        len: usize,
        cut: usize,
        headers: usize,
        stamp: impl FnMut(Portion, &mut [u8; HEADERS_MAX]) -> usize,
    ) {
        let Some(outlet) = &mut self.outlet else {
            return;
        };
        let (tape, passed) = (&mut self.tape, &mut self.passed);
        outlet.commit(len, cut, headers, stamp, |outlet, first, total, header| {
            passed.count(outlet.octets(total));
            tape.record(header.checksum, |whole| {
                outlet.read_back(first, total, whole);
            });
        });
    }

    /// Up to `most` rooms of 64 KiB. `None` when the link is full, as of [`Outbox::reserve`].
    pub fn reserve_many(&mut self, most: usize) -> Option<Rooms> {
        if !self.has_guest() || self.used >= FULL {
            return None;
        }
        let frames = (FRAMES - FRAMES_KEPT).saturating_sub(self.frames.len()) / UDP_SEGMENTS_MAX;
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
        stamp: impl FnMut(Portion, &mut [u8; HEADERS_MAX]) -> usize,
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
        let lent = None;
        let before = self.frames.len();
        let outlet = self.outlet.as_ref();
        // Their checksum is left to the guest (virtio 1.2, section 5.1.6.4.1), which that of few octets is not.
        let several = len > cut && (HEAD..=DATAGRAM_MAX).contains(&len);
        if several && outlet.is_some_and(Outlet::leaves_datagrams) {
            self.commit(Room { at, len, lent }, len, len, stamp);
            if let Some(frame) = self.frames.get_mut(before) {
                frame.left.cut = Cut::Udp(cut as u16);
                frame.left.headers = (frame.head - PREFIX) as u16;
            }
        } else {
            self.commit(Room { at, len, lent }, len, cut, stamp);
        }
    }

    /// Queues a frame without payload.
    ///
    /// # Errors
    /// [`Why::LinkFull`] when no more frames may wait, [`Why::NoGuest`] when nobody is connected.
    pub fn bare(&mut self, stamp: impl FnOnce(&mut [u8; HEADERS_MAX]) -> usize) -> Result<(), Why> {
        if !self.has_guest() {
            return Err(Why::NoGuest);
        }
        let head = self.heads.get_mut(self.frames.len()).ok_or(Why::LinkFull)?;
        let (head, _) = fill(head, &[], stamp);
        self.frames.push(Queued {
            head,
            at: 0,
            len: 0,
            left: Vnet::default(),
        });
        Ok(())
    }

    /// Queues a whole frame by copying it: what services say.
    ///
    /// # Errors
    /// [`Why::LinkFull`] when there is no room, [`Why::NoGuest`] when nobody is connected.
    pub fn copy(&mut self, frame: &[u8]) -> Result<(), Why> {
        if !self.has_guest() {
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
            left: Vnet::default(),
        });
        self.used = (self.used + frame.len()).next_multiple_of(64).min(ARENA);
        Ok(())
    }

    /// What the guest was sent since the start.
    pub const fn passed(&self) -> Passed {
        self.passed
    }

    /// Whether the last flush ended for want of the system's memory: then it has to be tried again.
    pub const fn is_short(&self) -> bool {
        self.short
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self) -> Flushed {
        self.short = false;
        if self.queued {
            return self.flush_queue();
        }
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
                // The system is short of memory: the frame that was begun is finished later, and no event tells when.
                Err(_) => {
                    self.short = true;
                    return Flushed::Blocked;
                }
            }
        }
        if !self.frames.is_empty() {
            self.tape.flush();
        }
        self.clear();
        Flushed::Done
    }

    /// Shows the guest what was committed, as far as it has buffers.
    fn flush_queue(&mut self) -> Flushed {
        self.fill_queue();
        self.tape.flush();
        let Some(outlet) = &mut self.outlet else {
            return Flushed::Blocked;
        };
        outlet.flush();
        if self.frames.is_empty() && !outlet.is_short() {
            Flushed::Done
        } else {
            Flushed::Blocked
        }
    }

    /// Copies frames that wait here into the guest's buffers. They may have been made for another driver, which could do more.
    fn fill_queue(&mut self) {
        let Some(outlet) = &mut self.outlet else {
            return;
        };
        while let Some(frame) = self.frames.get_mut(self.first) {
            let head = self.heads.get_mut(self.first);
            let head = head.and_then(|head| head.get_mut(PREFIX..frame.head));
            let head = head.unwrap_or_default();
            let payload = self.arena.get(frame.at..frame.at + frame.len);
            let payload = payload.unwrap_or_default();
            if !outlet.leaves_checksums() {
                frame.complete(head, payload);
            }
            let parts = [&*head, payload];
            let too_much = matches!(frame.left.cut, Cut::Udp(_)) && !outlet.leaves_datagrams();
            let copied = if too_much {
                Copied::Never
            } else {
                outlet.copy(&parts, frame.left)
            };
            match copied {
                Copied::Whole => {
                    self.passed.count(parts.iter().map(|part| part.len()).sum());
                    self.tape.record(frame.left.checksum, |whole| {
                        whole.extend(parts.iter().copied().flatten());
                    });
                }
                Copied::Never => self.too_long += 1,
                Copied::Later => return,
            }
            self.first += 1;
        }
        self.clear();
    }

    /// Notes that `octets` more were sent, and captures the frames that are complete.
    fn advance_by(&mut self, octets: usize) {
        self.sent += octets;
        while let Some(frame) = self.frames.get(self.first) {
            if self.sent < frame.head + frame.len {
                break;
            }
            self.sent -= frame.head + frame.len;
            self.passed.count(frame.head + frame.len - PREFIX);
            if let Some(head) = self.heads.get(self.first) {
                let payload = &self.arena[frame.at..frame.at + frame.len];
                self.tape.record(None, |whole| {
                    whole.extend_from_slice(&head[PREFIX..frame.head]);
                    whole.extend_from_slice(payload);
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

#[cfg(test)]
mod tests;
