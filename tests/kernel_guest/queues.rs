//! The wire of a guest behind a vhost-user front-end: the TAP device on one side, virtqueues in shared memory on the other.
//!
//! As with a driver in a machine, frames are read straight into buffers of the queue, and written straight out of them.
//! Checksums and segments are left to either side as far as it was agreed: the device speaks virtio-net's own header.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering, fence},
    },
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    relay::{Counters, Worker},
    tap::Tap,
};
use crate::lab::front_end::{EVENT_IDX, FrontEnd, MEMORY, RX, TX, cut, duplicate};

/// Octets of the header before each frame.
const HEADER: usize = 12;

/// The largest frame, with its header, and the octets of a buffer to the guest.
const LARGEST: usize = 80 << 10;
const BUFFER: u32 = 4096;

/// Buffers for frames from the guest, which lie in the upper half of the memory.
const SLOTS: u16 = 200;

/// Frames carried before their buffers go back.
const TURN: usize = 64;

const WRITE: u16 = 2;
const DATA_VALID: u8 = 2;

/// The memory a guest shares.
struct Memory {
    base: usize,
    _file: File,
}

impl Memory {
    fn map(file: File) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MEMORY as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base as usize;
        Ok(Self { base, _file: file })
    }

    fn half(&self, at: u64) -> &AtomicU16 {
        assert!(at.is_multiple_of(2) && at < MEMORY);
        // SAFETY: inside the mapping, aligned.
        unsafe { &*((self.base + at as usize) as *const AtomicU16) }
    }

    fn load(&self, at: u64) -> u16 {
        self.half(at).load(Ordering::Acquire)
    }

    fn store(&self, at: u64, value: u16) {
        self.half(at).store(value, Ordering::Release);
    }

    fn store32(&self, at: u64, value: u32) {
        self.store(at, value as u16);
        self.store(at + 2, (value >> 16) as u16);
    }

    fn copy<const N: usize>(&self, at: u64) -> [u8; N] {
        assert!(at as usize + N <= MEMORY as usize);
        // SAFETY: inside the mapping; any octets are valid.
        unsafe { *((self.base + at as usize) as *const [u8; N]) }
    }

    fn write<const N: usize>(&self, at: u64, octets: [u8; N]) {
        assert!(at as usize + N <= MEMORY as usize);
        // SAFETY: inside the mapping, which nobody holds a reference into.
        unsafe { *((self.base + at as usize) as *mut [u8; N]) = octets };
    }

    fn iovec(&self, at: u64, len: usize) -> libc::iovec {
        assert!(at as usize + len <= MEMORY as usize);
        libc::iovec {
            iov_base: (self.base + at as usize) as *mut libc::c_void,
            iov_len: len,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: what `map` has mapped, and nobody uses any more.
        unsafe { libc::munmap(self.base as *mut libc::c_void, MEMORY as usize) };
    }
}

/// One queue, from the driver's side.
struct Queue {
    memory: Arc<Memory>,
    at: [u64; 3],
    entries: u16,
    event_index: bool,
    available: u16,
    published: u16,
    used: u16,
    kick: OwnedFd,
    call: OwnedFd,
    socket: UnixStream,
}

impl Queue {
    fn new(front_end: &FrontEnd, memory: &Arc<Memory>, queue: usize) -> io::Result<Self> {
        Ok(Self {
            memory: memory.clone(),
            at: front_end.places(queue),
            entries: front_end.driver.entries,
            event_index: front_end.driver.features & EVENT_IDX != 0,
            available: 0,
            published: 0,
            used: 0,
            kick: duplicate(front_end.kicked(queue)),
            call: duplicate(front_end.called(queue)),
            socket: front_end.socket.try_clone()?,
        })
    }

    fn describe(&self, index: u16, guest: u64, len: u32, flags: u16) {
        let at = self.at[0] + 16 * u64::from(index);
        self.memory.store32(at, guest as u32);
        self.memory.store32(at + 4, (guest >> 32) as u32);
        self.memory.store32(at + 8, len);
        self.memory.store(at + 12, flags);
        self.memory.store(at + 14, 0);
    }

    /// Makes a descriptor available; the device sees it after [`Self::publish`].
    fn offer(&mut self, index: u16) {
        let entry = u64::from(self.available % self.entries);
        self.memory.store(self.at[1] + 4 + 2 * entry, index);
        self.available = self.available.wrapping_add(1);
    }

    fn publish(&mut self) {
        let (old, new) = (self.published, self.available);
        if old == new {
            return;
        }
        self.memory.store(self.at[1] + 2, new);
        self.published = new;
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self
                .memory
                .load(self.at[2] + 4 + 8 * u64::from(self.entries));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load(self.at[2]) & 1 == 0
        };
        if wanted {
            let _ = nix::unistd::write(&self.kick, &1_u64.to_ne_bytes());
        }
    }

    /// What the device has given back next: a descriptor, and how many octets it wrote.
    fn collect(&mut self) -> Option<(u16, usize)> {
        if self.memory.load(self.at[2] + 2) == self.used {
            return None;
        }
        let at = self.at[2] + 4 + 8 * u64::from(self.used % self.entries);
        self.used = self.used.wrapping_add(1);
        let len = u32::from(self.memory.load(at + 4)) | u32::from(self.memory.load(at + 6)) << 16;
        Some((self.memory.load(at), len as usize))
    }

    /// Has the device call when it gives back one more, or not.
    fn ask_for_calls(&self, wanted: bool) {
        if self.event_index {
            if wanted {
                let at = self.at[1] + 4 + 2 * u64::from(self.entries);
                self.memory.store(at, self.used);
            }
        } else {
            self.memory.store(self.at[1], u16::from(!wanted));
        }
        fence(Ordering::SeqCst);
    }

    /// Sleeps until the device calls, or `other` is readable. An error once the back end has closed.
    fn sleep(&self, other: Option<&Tap>) -> io::Result<()> {
        let mut fds = vec![
            PollFd::new(self.socket.as_fd(), PollFlags::empty()),
            match other {
                Some(tap) => PollFd::new(tap.as_fd(), PollFlags::POLLIN),
                None => PollFd::new(self.call.as_fd(), PollFlags::POLLIN),
            },
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[0].any() != Some(false) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if other.is_none() {
            let _ = nix::unistd::read(&self.call, &mut [0; 8]);
        }
        Ok(())
    }
}

/// Carries frames between each queue of the device and the pair of virtqueues it stands for.
pub(super) fn start(
    taps: &[Arc<Tap>],
    front_end: &FrontEnd,
    counters: &Arc<Counters>,
) -> io::Result<Vec<Worker>> {
    let memory = Arc::new(Memory::map(front_end.memory.try_clone()?)?);
    let mut threads = Vec::new();
    for (pair, tap) in taps.iter().enumerate() {
        tap.offload(front_end.driver.features)?;
        let receive = Queue::new(front_end, &memory, RX + 2 * pair)?;
        let transmit = Queue::new(front_end, &memory, TX + 2 * pair)?;
        let slots = SLOTS / taps.len() as u16;
        let first = MEMORY / 2 + LARGEST as u64 * u64::from(slots) * pair as u64;
        let (to, count) = (tap.clone(), counters.clone());
        let socket = front_end.socket.try_clone()?;
        threads.push(Worker::start("guest-to-queue", socket, move |_| {
            carry_up(&to, transmit, (first, slots), &count)
        })?);
        let first = (1 + pair as u64) << 20;
        let (from, count) = (tap.clone(), counters.clone());
        let socket = front_end.socket.try_clone()?;
        threads.push(Worker::start("queue-to-guest", socket, move |_| {
            carry_down(&from, receive, first, &count)
        })?);
    }
    Ok(threads)
}

/// Device to queue, by so many buffers from a place in memory on.
fn carry_up(
    tap: &Tap,
    mut queue: Queue,
    (first, slots): (u64, u16),
    counters: &Counters,
) -> io::Result<()> {
    let mut free: Vec<u16> = (0..slots).collect();
    let place = |slot: u16| first + LARGEST as u64 * u64::from(slot);
    queue.ask_for_calls(false);
    loop {
        while let Some((slot, _)) = queue.collect() {
            free.push(slot);
        }
        let mut empty = false;
        for _ in 0..TURN {
            let Some(&slot) = free.last() else { break };
            let mut room = [queue.memory.iovec(place(slot), LARGEST)];
            match tap.read_to(&mut room) {
                Ok(len) => {
                    let guest = FrontEnd::guest(place(slot));
                    queue.describe(slot, guest, len as u32, 0);
                    queue.offer(slot);
                    free.pop();
                    counters.frames_from_guest.fetch_add(1, Ordering::Relaxed);
                    let octets = (len - HEADER) as u64;
                    counters
                        .bytes_from_guest
                        .fetch_add(octets, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    empty = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        queue.publish();
        if empty {
            queue.sleep(Some(tap))?;
        } else if free.is_empty() {
            queue.ask_for_calls(true);
            if let Some((slot, _)) = queue.collect() {
                free.push(slot);
            } else {
                queue.sleep(None)?;
            }
            queue.ask_for_calls(false);
        }
    }
}

/// Octets of the headers of a frame that fit any.
const HEADERS: usize = 96;

/// A TAP device knows of checksums to be completed, and not of those that are said to be good: makes one of the other.
fn vouch(memory: &Memory, at: u64, len: usize) {
    let mut header: [u8; HEADER] = memory.copy(at);
    if header[0] != DATA_VALID {
        return;
    }
    let mut frame: [u8; HEADERS] = memory.copy(at + HEADER as u64);
    let (start, offset) = cut::leave_checksum_of(&mut frame, len);
    header[0] = 1;
    header[6..8].copy_from_slice(&(start as u16).to_le_bytes());
    header[8..10].copy_from_slice(&(offset as u16).to_le_bytes());
    memory.write(at + HEADER as u64, frame);
    memory.write(at, header);
}

/// Queue to device, by buffers from a place in memory on.
fn carry_down(tap: &Tap, mut queue: Queue, first: u64, counters: &Counters) -> io::Result<()> {
    let place = |index: u16| first + u64::from(BUFFER) * u64::from(index);
    for index in 0..queue.entries {
        queue.describe(index, FrontEnd::guest(place(index)), BUFFER, WRITE);
        queue.offer(index);
    }
    queue.publish();
    let (mut frame, mut heads) = (Vec::new(), Vec::new());
    loop {
        queue.ask_for_calls(false);
        while let Some((index, len)) = queue.collect() {
            frame.push(queue.memory.iovec(place(index), len));
            heads.push(index);
            let buffers = queue.memory.load(place(index) + 10).max(1);
            let mut octets = len;
            for _ in 1..buffers {
                let (index, len) = queue.collect().expect("all buffers at once");
                frame.push(queue.memory.iovec(place(index), len));
                heads.push(index);
                octets += len;
            }
            vouch(&queue.memory, place(heads[0]), octets - HEADER);
            if tap.write_from(&frame).is_err() {
                counters.refused_by_guest.fetch_add(1, Ordering::Relaxed);
            }
            frame.clear();
            counters.frames_to_guest.fetch_add(1, Ordering::Relaxed);
            let octets = (octets - HEADER) as u64;
            counters.bytes_to_guest.fetch_add(octets, Ordering::Relaxed);
            for index in heads.drain(..) {
                queue.offer(index);
            }
            if queue.available.wrapping_sub(queue.published) >= queue.entries / 4 {
                queue.publish();
            }
        }
        queue.publish();
        queue.ask_for_calls(true);
        if queue.memory.load(queue.at[2] + 2) == queue.used {
            queue.sleep(None)?;
        }
    }
}
