//! A vhost-user front-end and the driver behind it, as small as they can be: guest memory is a file, rings are read and
//! written by the system, so no machine and no unsafe code is needed.

use std::{
    fs::File,
    io::{self, IoSlice, Read},
    net::Shutdown,
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
    unistd::ftruncate,
};

use super::{LONG, uninterrupted};

mod bridge;
pub mod cut;
mod driver;
mod state;
mod words;

pub use bridge::{Bridge, Movable, bridge};
pub use driver::{Arrival, Driver};
pub use words::*;

use driver::Ring;

/// Guest memory lies at two guest addresses, as a PC's does.
pub const MEMORY: u64 = 32 << 20;
const LOW: u64 = 16 << 20;
pub const HIGH_AT: u64 = 1 << 32;
/// What the front-end's own addresses begin with.
pub const USER: u64 = 0x7f12_0000_0000;

/// Receive and transmit queue of the first pair; those of the second follow.
pub const RX: usize = 0;
pub const TX: usize = 1;

/// Where the rings lie, and the indirect tables of each pair.
const RINGS: [u64; 4] = [0x1_0000, 0x3_0000, 0x8_0000, 0x9_0000];
const TABLES: [u64; 2] = [0x6_0000, 0xa_0000];

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[derive(Debug)]
pub struct FrontEnd {
    pub socket: UnixStream,
    pub memory: File,
    pub driver: Driver,
    rings: Vec<Ring>,
    pub offered: u64,
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        // The close alone says nothing while a program that another test is about to start has the socket too.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl FrontEnd {
    /// Says all that QEMU does until the guest's driver runs.
    pub fn start(socket: UnixStream, driver: Driver) -> Self {
        let mut front_end = Self::greet(socket, driver);
        front_end.share_memory();
        front_end.start_rings(0, 0);
        front_end
    }

    /// What QEMU says before the guest's driver runs.
    pub fn greet(socket: UnixStream, driver: Driver) -> Self {
        socket.set_read_timeout(Some(LONG)).expect("timeout");
        let mut flags = MFdFlags::MFD_CLOEXEC;
        flags.set(MFdFlags::MFD_HUGETLB, driver.huge);
        let memory = memfd_create("guest", flags).expect("memfd");
        ftruncate(&memory, MEMORY.cast_signed()).expect("ftruncate");
        let mut this = Self {
            socket,
            memory: memory.into(),
            driver,
            rings: RINGS[..2 * driver.pairs]
                .iter()
                .map(|&at| Ring::new(at, driver.entries))
                .collect(),
            offered: 0,
        };
        this.ask(request::GET_FEATURES, &[]);
        let protocol = this.ask(request::GET_PROTOCOL_FEATURES, &[])[0];
        let several = u64::from(driver.pairs > 1);
        this.tell(
            request::SET_PROTOCOL_FEATURES,
            &[protocol & (0x9_000e | several)],
            &[],
        );
        this.tell(request::SET_OWNER, &[], &[]);
        this.offered = this.ask(request::GET_FEATURES, &[])[0];
        for index in 0..this.rings.len() as u64 {
            this.call(index, request::SET_VRING_CALL);
            this.call(index, request::SET_VRING_ERR);
        }
        this.enable(0..this.rings.len(), true);
        this
    }

    /// Tells the features the driver takes, and shares the memory.
    pub fn share_memory(&mut self) {
        let features = self.driver.features & self.offered | PROTOCOL_FEATURES;
        self.driver.features = features;
        self.told(request::SET_FEATURES, &[features], &[]);
        self.share_table(&[[0, LOW, USER, 0], [HIGH_AT, MEMORY - LOW, USER + LOW, LOW]]);
    }

    /// Shares memory by a table of guest address, length, our address, offset.
    pub fn share_table(&self, regions: &[[u64; 4]]) {
        let words: Vec<u64> = std::iter::once(regions.len() as u64)
            .chain(regions.iter().flatten().copied())
            .collect();
        let fds = vec![self.memory.as_raw_fd(); regions.len()];
        self.told(request::SET_MEM_TABLE, &words, &fds);
    }

    /// Enables or disables these rings.
    pub fn enable(&self, rings: Range<usize>, on: bool) {
        for index in rings {
            let words = [index as u64 | u64::from(on) << 32];
            self.told(request::SET_VRING_ENABLE, &words, &[]);
        }
    }

    /// Starts the rings, those of the first pair at these entries.
    pub fn start_rings(&mut self, rx: u16, tx: u16) {
        for index in 0..self.rings.len() {
            let base = [rx, tx].get(index).copied().unwrap_or_default();
            let word = index as u64;
            let ring = &self.rings[index];
            let (descriptors, available, used) = (
                USER + ring.descriptors(),
                USER + ring.available_ring(),
                USER + ring.used_ring(),
            );
            let entries = u64::from(ring.entries);
            self.tell(request::SET_VRING_NUM, &[word | entries << 32], &[]);
            self.tell(
                request::SET_VRING_BASE,
                &[word | u64::from(base) << 32],
                &[],
            );
            self.tell(
                request::SET_VRING_ADDR,
                &[word, descriptors, used, available, 0],
                &[],
            );
            let kick = self.rings[index].kick.as_raw_fd();
            self.tell(request::SET_VRING_KICK, &[word], &[kick]);
            self.call(word, request::SET_VRING_CALL);
        }
        self.enable(0..self.rings.len(), true);
        self.refill();
    }

    /// Stops the rings, as a guest's reboot does; where those of the first pair stood.
    pub fn stop_rings(&mut self) -> [u16; 2] {
        let stop = |index| {
            let [word] = self.ask(request::GET_VRING_BASE, &[index])[..] else {
                panic!("a reply of one word")
            };
            assert_eq!(word & 0xffff_ffff, index);
            (word >> 32) as u16
        };
        let first = [0, 1].map(stop);
        (2..self.rings.len() as u64).for_each(|index| {
            stop(index);
        });
        first
    }

    /// The driver of a guest that has rebooted: empty rings.
    pub fn reset_driver(&mut self) {
        for ring in &mut self.rings {
            ring.available = 0;
            ring.used = 0;
            ring.free = (0..ring.entries).collect();
            let zeros = vec![0; 0x1_0000];
            self.memory.write_all_at(&zeros, ring.at).expect("memory");
        }
    }

    fn call(&self, index: u64, request: u32) {
        let call = self.rings[index as usize].call.as_raw_fd();
        self.tell(request, &[index], &[call]);
    }

    /// Sends a message.
    pub fn tell(&self, request: u32, words: &[u64], fds: &[RawFd]) {
        self.send(request, 1, words, fds);
    }

    /// Sends a message and waits until it is carried out.
    pub fn told(&self, request: u32, words: &[u64], fds: &[RawFd]) {
        self.send(request, 1 | 1 << 3, words, fds);
        assert_eq!(self.reply(request), [0], "request {request}");
    }

    /// Sends a message that has an answer of its own.
    pub fn ask(&self, request: u32, words: &[u64]) -> Vec<u64> {
        self.send(request, 1, words, &[]);
        self.reply(request)
    }

    pub fn send(&self, request: u32, flags: u32, words: &[u64], fds: &[RawFd]) {
        let octets: Vec<u8> = [request, flags, 8 * words.len() as u32]
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .chain(words.iter().flat_map(|word| word.to_ne_bytes()))
            .collect();
        self.send_raw(&octets, fds);
    }

    pub fn send_raw(&self, octets: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let socket = self.socket.as_raw_fd();
        // Who is refused half-way has closed its end already.
        let _ = sendmsg::<()>(
            socket,
            &[IoSlice::new(octets)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }

    fn reply(&self, request: u32) -> Vec<u64> {
        let mut header = [0; 12];
        (&self.socket).read_exact(&mut header).expect("a reply");
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four"));
        assert_eq!((field(0), field(4)), (request, 1 | 1 << 2));
        let mut payload = vec![0; field(8) as usize];
        (&self.socket).read_exact(&mut payload).expect("a payload");
        let words = payload.chunks_exact(8);
        words
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight")))
            .collect()
    }

    /// Whether the other side closes the connection in time.
    pub fn closes(&self) -> bool {
        let mut octet = [0];
        match uninterrupted(|| (&self.socket).read(&mut octet)) {
            Ok(0) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            Ok(_) => false,
        }
    }

    /// Guest physical address of an offset in memory.
    pub const fn guest(offset: u64) -> u64 {
        if offset < LOW {
            offset
        } else {
            HIGH_AT + offset - LOW
        }
    }

    pub fn poke(&self, at: u64, octets: &[u8]) {
        self.memory.write_all_at(octets, at).expect("memory");
    }

    pub fn peek<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut octets = [0; N];
        self.memory.read_exact_at(&mut octets, at).expect("memory");
        octets
    }

    fn peek16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.peek(at))
    }

    /// Writes a descriptor.
    pub fn describe(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&addr.to_le_bytes());
        octets[8..12].copy_from_slice(&len.to_le_bytes());
        octets[12..14].copy_from_slice(&flags.to_le_bytes());
        octets[14..].copy_from_slice(&next.to_le_bytes());
        self.poke(table + 16 * u64::from(index), &octets);
    }

    /// The descriptor table of a ring.
    pub fn table(&self, queue: usize) -> u64 {
        self.rings[queue].descriptors()
    }

    /// Makes a chain available, and kicks if the device wants to hear of it.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let event_index = self.driver.has(EVENT_IDX);
        let ring = &mut self.rings[queue];
        let old = ring.available;
        let entry = u64::from(old % ring.entries);
        ring.available = old.wrapping_add(1);
        let (new, at, used) = (ring.available, ring.available_ring(), ring.used_ring());
        let entries = u64::from(ring.entries);
        self.poke(at + 4 + 2 * entry, &head.to_le_bytes());
        self.poke(at + 2, &new.to_le_bytes());
        let wanted = if event_index {
            let event = self.peek16(used + 4 + 8 * entries);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.peek16(used) & 1 == 0
        };
        if wanted {
            self.kick(queue);
        }
    }

    /// Says that more was made available than there is.
    pub fn jump(&mut self, queue: usize, by: u16) {
        let ring = &mut self.rings[queue];
        ring.available = ring.available.wrapping_add(by);
        let (new, at) = (ring.available, ring.available_ring());
        self.poke(at + 2, &new.to_le_bytes());
    }

    pub fn kick(&mut self, queue: usize) {
        self.rings[queue].kicks += 1;
        self.rings[queue].kick.write(1).expect("kick");
    }

    /// How often the device was kicked.
    pub fn kicks(&self, queue: usize) -> u64 {
        self.rings[queue].kicks
    }

    /// The next chain the device has given back: its head and the octets it wrote.
    pub fn collect(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &self.rings[queue];
        let at = ring.used_ring();
        if self.peek16(at + 2) == ring.used {
            return None;
        }
        let entry = u64::from(ring.used % ring.entries);
        let [head, len]: [u32; 2] =
            [0, 4].map(|field| u32::from_le_bytes(self.peek(at + 4 + 8 * entry + field)));
        let (event, next) = (
            ring.available_ring() + 4 + 2 * u64::from(ring.entries),
            ring.used.wrapping_add(1),
        );
        self.rings[queue].used = next;
        // Tell when there is one more.
        self.poke(event, &next.to_le_bytes());
        Some((head as u16, len))
    }

    /// Where descriptor table, available and used ring lie.
    pub fn places(&self, queue: usize) -> [u64; 3] {
        let ring = &self.rings[queue];
        [ring.descriptors(), ring.available_ring(), ring.used_ring()]
    }

    /// What the device is kicked by.
    pub fn kicked(&self, queue: usize) -> &EventFd {
        &self.rings[queue].kick
    }

    /// What the device calls by.
    pub fn called(&self, queue: usize) -> &EventFd {
        &self.rings[queue].call
    }

    /// Waits until the device calls, or for something else to read.
    pub fn wait(&self, queue: usize, other: Option<&impl AsFd>, patience: Duration) {
        let call = &self.rings[queue].call;
        let mut fds = vec![PollFd::new(call.as_fd(), PollFlags::POLLIN)];
        fds.extend(other.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let timeout = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
        let _ = poll(&mut fds, PollTimeout::from(timeout));
        let _ = call.read();
    }

    /// Posts all buffers that are free for frames.
    pub fn refill(&mut self) {
        (0..self.driver.pairs).for_each(|pair| self.refill_pair(RX + 2 * pair));
    }

    fn refill_pair(&mut self, rx: usize) {
        let Driver {
            buffers,
            buffer,
            pieces,
            ..
        } = self.driver;
        let pieces = pieces as u16;
        while self.rings[rx].free.len() > usize::from(self.driver.entries - buffers * pieces) {
            let table = self.table(rx);
            // Chains are made of neighbours, and keep their place.
            let head = self.rings[rx].free.pop_front().expect("free");
            let len = buffer / u32::from(pieces);
            for n in 0..pieces {
                let at = Self::data(rx, head) + u64::from(u32::from(n) * len);
                let flags = WRITE | if n + 1 < pieces { NEXT } else { 0 };
                self.describe(table, head + n, Self::guest(at), len, flags, head + n + 1);
                if n > 0 {
                    self.rings[rx].free.pop_front();
                }
            }
            self.offer(rx, head);
        }
    }

    /// Where the data of a chain lies: the receive queue's behind the rings, the other's in the upper half.
    const fn data(queue: usize, head: u16) -> u64 {
        let head = head as u64;
        match queue {
            RX => (1 << 20) + 2048 * head * 24,
            TX => LOW + (80 << 10) * (head % 128),
            // The second pair has room for less.
            2 => (26 << 20) + (16 << 10) * head,
            _ => (30 << 20) + (32 << 10) * (head % 64),
        }
    }

    /// Sends a frame behind a header, in up to `pieces` descriptors; waits until the device has taken it.
    pub fn transmit(&mut self, header: &[u8], frame: &[u8], pieces: usize) {
        self.transmit_by(0, header, frame, pieces);
    }

    /// The same by a queue pair.
    pub fn transmit_by(&mut self, pair: usize, header: &[u8], frame: &[u8], pieces: usize) {
        let tx = TX + 2 * pair;
        self.post_by(pair, header, frame, pieces);
        let deadline = Instant::now() + LONG;
        while self.collect(tx).is_none() {
            assert!(Instant::now() < deadline, "not taken");
            self.wait(tx, None::<&File>, Duration::from_millis(50));
        }
    }

    /// The same without waiting: the caller sees to it that there is room.
    pub fn post(&mut self, header: &[u8], frame: &[u8], pieces: usize) {
        self.post_by(0, header, frame, pieces);
    }

    /// The same by a queue pair.
    pub fn post_by(&mut self, pair: usize, header: &[u8], frame: &[u8], pieces: usize) {
        let tx = TX + 2 * pair;
        let available = self.rings[tx].available;
        let octets = [header, frame].concat();
        let head = available % (self.driver.entries / 8) * 8;
        let at = Self::data(tx, available);
        let (indirect, table) = if self.driver.has(INDIRECT_DESC) {
            (true, TABLES[pair] + 0x400 * u64::from(available % 128))
        } else {
            (false, self.table(tx) + 16 * u64::from(head))
        };
        let size = octets.len().div_ceil(pieces);
        let count = octets.len().div_ceil(size);
        for n in 0..count {
            let start = n * size;
            let len = size.min(octets.len() - start);
            let flags = if n + 1 < count { NEXT } else { 0 };
            let next = if indirect { 0 } else { head } + n as u16 + 1;
            let place = at + start as u64 + n as u64 * self.driver.gap;
            self.poke(place, &octets[start..start + len]);
            let addr = Self::guest(place);
            self.describe(table, n as u16, addr, len as u32, flags, next);
        }
        if indirect {
            let slot = available % self.driver.entries;
            let len = 16 * count as u32;
            self.describe(self.table(tx), slot, Self::guest(table), len, INDIRECT, 0);
            self.offer(tx, slot);
        } else {
            self.offer(tx, head);
        }
    }

    /// The next frame, if one has come.
    pub fn try_receive(&mut self) -> Option<Arrival> {
        (0..self.driver.pairs).find_map(|pair| self.try_receive_by(pair))
    }

    fn try_receive_by(&mut self, pair: usize) -> Option<Arrival> {
        let rx = RX + 2 * pair;
        let header = self.driver.header();
        let mut octets = Vec::new();
        let (mut left, mut buffers) = (1, 0);
        while left > 0 {
            let taken = self.collect(rx);
            if taken.is_none() && buffers == 0 {
                return None;
            }
            let (head, len) = taken.expect("all buffers of a frame are given back at once");
            let start = octets.len();
            octets.resize(start + len as usize, 0);
            let at = Self::data(rx, head);
            self.memory
                .read_exact_at(&mut octets[start..], at)
                .expect("memory");
            for n in 0..self.driver.pieces as u16 {
                self.rings[rx].free.push_back(head + n);
            }
            if buffers == 0 && self.driver.has(MRG_RXBUF) {
                left = u16::from_le_bytes([octets[10], octets[11]]);
            }
            left -= 1;
            buffers += 1;
        }
        self.refill_pair(rx);
        let frame = octets.split_off(header);
        Some(Arrival {
            header: octets,
            frame,
            buffers,
            pair,
        })
    }

    /// The next frame; `None` when none comes in time.
    pub fn receive(&mut self, patience: Duration) -> Option<Arrival> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(arrival) = self.try_receive() {
                return Some(arrival);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let second = self.rings.get(2).map(|ring| ring.call.as_fd());
            self.wait(RX, second.as_ref(), left.min(Duration::from_secs(1)));
            let _ = self.rings.get(2).map(|ring| ring.call.read());
        }
    }

    /// The next frame for which `wanted` gives something; others are passed over.
    pub fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(&Arrival) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Some(arrival) = self.receive(left) else {
                break;
            };
            if let Some(found) = wanted(&arrival) {
                return found;
            }
        }
        panic!("no {what} came");
    }
}

/// A duplicate of a descriptor.
pub fn duplicate(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().expect("dup")
}
