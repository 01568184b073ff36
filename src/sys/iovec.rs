//! Lists of memory for the kernel to read from or write to, built without an allocation a call.

use std::marker::PhantomData;

use super::guestmem::{GuestMemory, Stretch};

/// The most entries one call takes (`IOV_MAX`, limits.h).
const MAX: usize = 1024;

/// One entry, laid out as `struct iovec` (readv(2)). Addresses are kept as numbers, so that a list can rest in a reactor
/// between calls without claiming to borrow anything.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Iovec {
    base: usize,
    len: usize,
}

/// Space for a list of up to 1,024 entries, used again and again.
#[derive(Debug)]
pub struct Iovecs(Vec<Iovec>);

impl Iovecs {
    pub fn new() -> Self {
        Self(Vec::with_capacity(MAX))
    }

    /// Starts a list of memory to be read.
    pub fn gather<'a>(&mut self) -> Gather<'_, 'a> {
        self.0.clear();
        Gather {
            list: &mut self.0,
            octets: 0,
            closed: 0,
            memory: PhantomData,
        }
    }

    /// Starts a list of memory to be written.
    pub fn scatter<'a>(&mut self) -> Scatter<'_, 'a> {
        self.0.clear();
        Scatter {
            list: &mut self.0,
            octets: 0,
            memory: PhantomData,
        }
    }
}

impl Default for Iovecs {
    fn default() -> Self {
        Self::new()
    }
}

/// Memory the kernel will read, borrowed for `'a`.
#[derive(Debug)]
pub struct Gather<'s, 'a> {
    list: &'s mut Vec<Iovec>,
    octets: usize,
    /// Entries that nothing is joined to any more.
    closed: usize,
    memory: PhantomData<&'a [u8]>,
}

/// Entries of a list that are one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// The first entry, and the first behind the last.
    pub start: usize,
    pub end: usize,
    /// Octets of the datagrams that the kernel is to cut the message into (UDP_SEGMENT, udp(7)), if there are several.
    pub segment: Option<u16>,
}

impl<'a> Gather<'_, 'a> {
    /// Adds a piece; `false` if the list is full. A piece that follows its neighbour in memory is joined to it.
    #[must_use]
    pub fn push(&mut self, piece: &'a [u8]) -> bool {
        self.add(piece.as_ptr() as usize, piece.len())
    }

    /// Adds a piece of a guest's memory, as [`Gather::push`] does; `false` too if it is not mapped.
    #[must_use]
    pub fn push_guest(&mut self, memory: &'a GuestMemory, place: Stretch) -> bool {
        memory
            .address(place, 0, place.len())
            .is_some_and(|base| self.add(base, place.len()))
    }

    fn add(&mut self, base: usize, len: usize) -> bool {
        let full = self.list.len() == MAX;
        let open = self.list.len() > self.closed;
        match self.list.last_mut() {
            Some(last) if open && last.base + last.len == base => last.len += len,
            _ if full => return false,
            _ => self.list.push(Iovec { base, len }),
        }
        self.octets += len;
        true
    }

    /// Whether so many pieces more fit.
    pub const fn has_room(&self, pieces: usize) -> bool {
        self.list.len() + pieces <= MAX
    }

    /// Ends a message: what follows is never joined to what stands here. Returns where the next one starts.
    pub const fn part(&mut self) -> usize {
        self.closed = self.list.len();
        self.closed
    }

    /// Octets in the list.
    pub const fn octets(&self) -> usize {
        self.octets
    }

    pub const fn is_empty(&self) -> bool {
        self.octets == 0
    }

    pub(super) fn raw(&self) -> (*const libc::iovec, usize) {
        (self.list.as_ptr().cast(), self.list.len())
    }
}

/// Memory the kernel will write, borrowed mutably for `'a`.
#[derive(Debug)]
pub struct Scatter<'s, 'a> {
    list: &'s mut Vec<Iovec>,
    octets: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Scatter<'_, 'a> {
    /// Adds a piece; `false` if the list is full.
    #[must_use]
    pub fn push(&mut self, piece: &'a mut [u8]) -> bool {
        if self.list.len() == MAX {
            return false;
        }
        self.list.push(Iovec {
            base: piece.as_mut_ptr() as usize,
            len: piece.len(),
        });
        self.octets += piece.len();
        true
    }

    /// Adds a piece of a guest's memory; `false` if the list is full or the piece not mapped. One that follows its neighbour
    /// in memory is joined to it: drivers cut many buffers out of one stretch, and each entry costs the kernel some time.
    #[must_use]
    pub fn push_guest(&mut self, memory: &'a GuestMemory, place: Stretch) -> bool {
        let len = place.len();
        let Some(base) = memory.address(place, 0, len) else {
            return false;
        };
        let full = self.list.len() == MAX;
        match self.list.last_mut() {
            Some(last) if last.base + last.len == base => last.len += len,
            _ if full => return false,
            _ => self.list.push(Iovec { base, len }),
        }
        self.octets += len;
        true
    }

    /// Adds octets that are written but not wanted, each entry over the same `waste`, as far as the list goes. Returns how
    /// many of `octets` found room.
    pub fn push_waste(&mut self, waste: &'a mut [u8], octets: usize) -> usize {
        let mut left = octets;
        // Two entries stay free for the memory that is wanted.
        while left > 0 && !waste.is_empty() && self.list.len() < MAX - 2 {
            let len = left.min(waste.len());
            self.list.push(Iovec {
                base: waste.as_mut_ptr() as usize,
                len,
            });
            left -= len;
        }
        self.octets += octets - left;
        octets - left
    }

    /// Octets in the list.
    pub const fn octets(&self) -> usize {
        self.octets
    }

    pub(super) fn raw(&mut self) -> (*mut libc::iovec, usize) {
        (self.list.as_mut_ptr().cast(), self.list.len())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::guestmem::RegionInfo, *};
    use std::os::fd::AsFd;

    use nix::{
        sys::memfd::{MFdFlags, memfd_create},
        unistd::ftruncate,
    };

    #[test]
    fn an_entry_has_the_shape_of_the_kernels() {
        assert_eq!(size_of::<Iovec>(), size_of::<libc::iovec>());
        assert_eq!(align_of::<Iovec>(), align_of::<libc::iovec>());
    }

    #[test]
    fn neighbours_in_memory_are_joined() {
        let mut iovecs = Iovecs::new();
        let data = [1_u8; 10];
        let mut gather = iovecs.gather();
        assert!(gather.push(&data[..4]) && gather.push(&data[4..8]) && gather.push(&data[9..]));
        assert_eq!((gather.raw().1, gather.octets()), (2, 9));
    }

    #[test]
    fn buffers_of_a_guest_that_are_neighbours_are_joined_where_they_are_one_stretch() {
        let file = memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 1 << 13).unwrap();
        let region = |guest, offset| RegionInfo {
            guest,
            user: guest,
            len: 1 << 12,
            offset,
        };
        let memory = GuestMemory::default();
        // What lies in one row for the guest need not do so here.
        let memory = memory.with(region(0, 1 << 12), file.as_fd()).unwrap();
        let memory = memory.with(region(1 << 12, 0), file.as_fd()).unwrap();
        let mut places = Vec::new();
        for (guest, len) in [
            (0x100, 0x200),
            (0x300, 0x100),
            (0x500, 0x100),
            (0x400, 0x100),
        ] {
            assert!(memory.find(guest, len, &mut places));
        }
        let mut iovecs = Iovecs::new();
        let mut scatter = iovecs.scatter();
        assert!(
            places
                .iter()
                .all(|&place| scatter.push_guest(&memory, place))
        );
        assert_eq!((scatter.raw().1, scatter.octets()), (3, 0x500));
        places.clear();
        assert!(memory.find(0xf00, 0x200, &mut places));
        let mut scatter = iovecs.scatter();
        assert!(
            places
                .iter()
                .all(|&place| scatter.push_guest(&memory, place))
        );
        assert_eq!(scatter.octets(), 0x200);
        let adjacent = memory.address(places[0], 0, 0x100).unwrap() + 0x100;
        let is_one = memory.address(places[1], 0, 0x100) == Some(adjacent);
        assert_eq!(scatter.raw().1, if is_one { 1 } else { 2 });
    }

    #[test]
    fn a_list_takes_1024_entries_and_no_more() {
        let mut iovecs = Iovecs::new();
        let data = [0_u8; 2 * MAX + 2];
        let mut gather = iovecs.gather();
        for piece in data.chunks(2).take(MAX) {
            assert!(gather.push(&piece[..1]));
        }
        assert!(!gather.push(&data[2 * MAX..=2 * MAX]));
    }
}
