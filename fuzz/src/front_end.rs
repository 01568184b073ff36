//! A vhost-user front-end and the driver behind it, with rings and buffers in memory that both share: over real descriptors,
//! as only sockets of the Internet are scripted.

use std::{
    collections::HashMap,
    fs::File,
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    memfd::{MFdFlags, memfd_create},
    socket::{ControlMessage, MsgFlags, sendmsg},
};
use passt_rs::{
    config::vhost_bits as bits,
    link::{RECEIVE, TRANSMIT},
};

use crate::guest;

/// Entries of each ring.
const SIZE: u16 = 64;

/// Where rings lie in the shared memory, one behind the other, and where indirect tables do.
const RING: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x8000;

/// Buffers: one for each entry of both rings.
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u64 = 0x1_1800;
const TOTAL: u64 = BUFFERS + BUFFER * 2 * SIZE as u64;

/// Where the second of two regions begins: in the midst of a buffer.
const SECOND: u64 = BUFFERS + BUFFER * 40 + 0x1000 - BUFFERS % 0x1000;

/// The guest's physical address of all, and the front-end's own of either region.
const GUEST: u64 = 0x4000_0000;
const USER: [u64; 2] = [0x7f00_0000_0000, 0x7e00_0000_0000];

/// Descriptor flags (virtio 1.2, section 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What a frame from the back end says of itself besides its octets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The guest itself cuts it into segments of so many octets.
    pub cut: u16,
    pub checksum: Option<(u16, u16)>,
}

impl Offload {
    /// Writes the checksum that was left to the guest (virtio 1.2, section 5.1.6.4).
    pub fn complete(self, frame: &mut [u8]) {
        let Some((start, offset)) = self.checksum else {
            return;
        };
        let (start, at) = (usize::from(start), usize::from(start + offset));
        let sum = guest::checksum(&frame[start..]);
        frame[at..at + 2].copy_from_slice(&sum);
    }
}

#[derive(Debug)]
pub struct FrontEnd {
    socket: UnixStream,
    memory: File,
    kicks: [EventFd; 2],
    features: u64,
    /// Descriptors that are free to send with, and those of each chain that is under way.
    free: Vec<u16>,
    sending: HashMap<u16, Vec<u16>>,
    /// Buffers lent for receiving, with their length.
    lent: [Option<u32>; SIZE as usize],
    /// Available and used index of each ring, as the driver counts.
    available: [u16; 2],
    used: [u16; 2],
    /// Whether rings are as a driver writes them.
    pub sane: bool,
}

impl FrontEnd {
    /// Has everything said, and the queues running; the back end's socket is to be served before frames move.
    pub fn new(features: u64) -> (Self, OwnedFd) {
        let (socket, back) = UnixStream::pair().expect("sockets");
        for end in [&socket, &back] {
            end.set_nonblocking(true).expect("a socket");
        }
        let memory = memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("memory");
        let memory = File::from(memory);
        memory.set_len(TOTAL).expect("memory");
        let kick = || EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("a counter");
        let mut front = Self {
            socket,
            memory,
            kicks: [kick(), kick()],
            features,
            free: (0..SIZE).rev().collect(),
            sending: HashMap::new(),
            lent: [None; SIZE as usize],
            available: [0; 2],
            used: [0; 2],
            sane: true,
        };
        front.negotiate();
        (front, back.into())
    }

    fn negotiate(&mut self) {
        self.say(1, &[], &[]);
        self.say(2, &[self.features], &[]);
        let region = |at: u64, len: u64, user: u64| [GUEST + at, len, user, at];
        let regions = [
            region(0, SECOND, USER[0]),
            region(SECOND, TOTAL - SECOND, USER[1]),
        ];
        let memory = self.memory.as_raw_fd();
        let table = [[2].as_slice(), regions.as_flattened()].concat();
        self.say(5, &table, &[memory, memory]);
        for (ring, at) in [(RECEIVE as u64, 0), (TRANSMIT as u64, RING)] {
            self.say(8, &[ring | u64::from(SIZE) << 32], &[]);
            let user = USER[0] + at;
            self.say(9, &[ring, user, user + USED, user + AVAILABLE, 0], &[]);
            let kick = self.kicks[ring as usize].as_raw_fd();
            self.say(12, &[ring], &[kick]);
            self.say(13, &[ring], &[kick]);
            self.say(18, &[ring | 1 << 32], &[]);
        }
    }

    /// Sends a message, of any sense or none.
    pub fn say(&mut self, request: u32, words: &[u64], descriptors: &[RawFd]) {
        let octets = words.iter().flat_map(|word| word.to_ne_bytes());
        self.say_octets(request, 1, &octets.collect::<Vec<_>>(), descriptors);
    }

    pub fn say_octets(&mut self, request: u32, flags: u32, payload: &[u8], descriptors: &[RawFd]) {
        let mut message = [request, flags, payload.len() as u32]
            .map(u32::to_ne_bytes)
            .as_flattened()
            .to_vec();
        message.extend(payload);
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let message = [IoSlice::new(&message)];
        let _ = sendmsg::<()>(self.socket.as_raw_fd(), &message, rights, flags, None);
    }

    /// Sends octets, whatever they mean.
    pub fn say_raw(&mut self, octets: &[u8]) {
        let _ = self.socket.write(octets);
    }

    /// Throws away what the back end has replied.
    pub fn forget_replies(&mut self) {
        while self
            .socket
            .read(&mut [0; 4096])
            .is_ok_and(|octets| octets > 0)
        {}
    }

    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.memory.as_raw_fd(), self.kicks[0].as_raw_fd()]
    }

    /// Octets of the header before each frame.
    fn header(&self) -> u64 {
        if self.features & (bits::VERSION_1 | bits::MRG_RXBUF) == 0 {
            10
        } else {
            12
        }
    }

    pub fn write(&self, at: u64, octets: &[u8]) {
        let end = TOTAL.saturating_sub(at).min(octets.len() as u64) as usize;
        let _ = self.memory.write_all_at(&octets[..end], at);
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut octets = vec![0; len];
        let _ = self.memory.read_exact_at(&mut octets, at);
        octets
    }

    fn number(&self, at: u64) -> u16 {
        let octets = self.read(at, 2);
        u16::from_le_bytes([octets[0], octets[1]])
    }

    fn describe(&self, table: u64, index: u16, (at, len): (u64, u32), flags: u16, next: u16) {
        let mut octets = Vec::with_capacity(16);
        octets.extend((GUEST + at).to_le_bytes());
        octets.extend(len.to_le_bytes());
        octets.extend(flags.to_le_bytes());
        octets.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &octets);
    }

    fn make_available(&mut self, ring: usize, head: u16) {
        let base = if ring == RECEIVE { 0 } else { RING } + AVAILABLE;
        let entry = u64::from(self.available[ring] % SIZE);
        self.write(base + 4 + 2 * entry, &head.to_le_bytes());
        self.available[ring] = self.available[ring].wrapping_add(1);
        self.write(base + 2, &self.available[ring].to_le_bytes());
    }

    /// Puts a frame into the transmit queue; `shape` says in how many pieces. It is lost if there is no room.
    pub fn put(&mut self, header: [u8; 12], frame: &[u8], shape: u8) {
        self.reap();
        let Some(head) = self.free.pop() else { return };
        let at = BUFFERS + BUFFER * u64::from(head);
        let headers = self.header();
        self.write(at, &header[..headers as usize]);
        self.write(at + headers, frame);
        let total = headers as u32 + frame.len() as u32;
        let mut cuts = vec![0, total];
        for n in 0..shape & 3 {
            // In the header, behind it, or in the midst of the frame.
            cuts.push((5 + u32::from(shape >> 2) * u32::from(n * n + 1)).min(total));
        }
        cuts.sort_unstable();
        let pieces: Vec<(u64, u32)> = cuts
            .windows(2)
            .map(|cut| (at + u64::from(cut[0]), cut[1] - cut[0]))
            .collect();
        let mut chain = vec![head];
        let indirect = self.features & bits::INDIRECT_DESC != 0 && shape & 0x40 != 0;
        if indirect {
            let table = TABLES + 128 * u64::from(head);
            for (n, piece) in (0..).zip(&pieces) {
                let last = usize::from(n) + 1 == pieces.len();
                self.describe(table, n, *piece, if last { 0 } else { NEXT }, n + 1);
            }
            let len = 16 * pieces.len() as u32;
            self.describe(RING, head, (table, len), INDIRECT, 0);
        } else {
            while chain.len() < pieces.len() {
                let Some(next) = self.free.pop() else { break };
                chain.push(next);
            }
            if chain.len() < pieces.len() {
                self.free.extend(&chain);
                return;
            }
            for (n, piece) in pieces.iter().enumerate() {
                let next = chain.get(n + 1);
                let flags = next.map_or(0, |_| NEXT);
                self.describe(RING, chain[n], *piece, flags, next.copied().unwrap_or(0));
            }
        }
        self.sending.insert(head, chain);
        self.make_available(TRANSMIT, head);
    }

    /// Takes descriptors back whose frames were taken.
    fn reap(&mut self) {
        let now = self.number(RING + USED + 2);
        while self.used[TRANSMIT] != now {
            let entry = u64::from(self.used[TRANSMIT] % SIZE);
            let head = self.number(RING + USED + 4 + 8 * entry);
            self.used[TRANSMIT] = self.used[TRANSMIT].wrapping_add(1);
            match self.sending.remove(&head) {
                Some(chain) => self.free.extend(chain),
                None => assert!(!self.sane, "a buffer comes back that was not sent"),
            }
            if !self.sane && self.used[TRANSMIT].wrapping_sub(now) > SIZE {
                break;
            }
        }
    }

    /// Lends buffers for receiving, as many as there are up to `count`.
    pub fn lend(&mut self, count: usize, size: u32) {
        let least = if self.features & bits::MRG_RXBUF == 0 {
            BUFFER as u32
        } else {
            64
        };
        let len = size.clamp(least, BUFFER as u32);
        for slot in (0..SIZE)
            .filter(|slot| self.lent[usize::from(*slot)].is_none())
            .take(count)
            .collect::<Vec<_>>()
        {
            let at = BUFFERS + BUFFER * u64::from(SIZE + slot);
            self.describe(0, slot, (at, len), WRITE, 0);
            self.lent[usize::from(slot)] = Some(len);
            self.make_available(RECEIVE, slot);
        }
    }

    /// The frames that came.
    pub fn collect(&mut self) -> Vec<(Offload, Vec<u8>)> {
        self.reap();
        let (mut frames, mut frame) = (Vec::new(), Vec::new());
        let mut missing = 0;
        let now = self.number(USED + 2);
        let mut most = SIZE;
        while self.used[RECEIVE] != now && most > 0 {
            most -= 1;
            let entry = USED + 4 + 8 * u64::from(self.used[RECEIVE] % SIZE);
            let octets = self.read(entry, 8);
            self.used[RECEIVE] = self.used[RECEIVE].wrapping_add(1);
            let slot = u32::from_le_bytes([octets[0], octets[1], octets[2], octets[3]]);
            let len = u32::from_le_bytes([octets[4], octets[5], octets[6], octets[7]]);
            let lent = self.lent.get_mut(slot as usize).and_then(Option::take);
            if !self.sane {
                continue;
            }
            let lent = lent.expect("a buffer that was lent");
            assert!(len <= lent, "{len} octets in a buffer of {lent}");
            let at = BUFFERS + BUFFER * u64::from(u32::from(SIZE) + slot);
            frame.extend(self.read(at, len as usize));
            if missing == 0 {
                missing = self.buffers_of(&frame);
            }
            missing -= 1;
            if missing == 0 {
                frames.push(self.open(&frame));
                frame.clear();
            }
        }
        assert_eq!(missing, 0, "a frame without its end");
        frames
    }

    /// How many buffers a frame takes, of whose header this is the start.
    fn buffers_of(&self, octets: &[u8]) -> u16 {
        assert!(octets.len() as u64 >= self.header(), "no header");
        if self.features & bits::MRG_RXBUF == 0 {
            return 1;
        }
        let count = u16::from_le_bytes([octets[10], octets[11]]);
        assert!(count > 0, "a frame in no buffer");
        count
    }

    fn open(&self, octets: &[u8]) -> (Offload, Vec<u8>) {
        let (header, frame) = octets.split_at(self.header() as usize);
        let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let wanted = [(1, bits::GUEST_TSO4), (4, bits::GUEST_TSO6)];
        let allowed = header[1] == 0
            || wanted
                .iter()
                .any(|(kind, bit)| header[1] == *kind && self.features & bit != 0);
        assert!(allowed, "cut as {} is not for this driver", header[1]);
        assert!(header[0] == 0 || self.features & bits::GUEST_CSUM != 0);
        let offload = Offload {
            cut: if header[1] == 0 { 0 } else { field(4) },
            checksum: (header[0] & 1 != 0).then(|| (field(6), field(8))),
        };
        (offload, frame.to_vec())
    }
}
