//! A guest's memory, shared with us by a vhost-user front-end. The guest writes to it whenever it likes, so nothing here
//! hands out a reference into it: octets are copied in and out, or listed for the kernel.

use std::{
    io,
    mem::MaybeUninit,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
};

use super::vanish::Watched;

/// Octets of a page in a dirty log (vhost-user, "Migration").
const LOG_PAGE: u64 = 4096;

/// A mapping, unmapped on drop. The address is kept as a number: nobody dereferences it but the functions below.
#[derive(Debug)]
struct Mapping {
    base: usize,
    len: usize,
    /// Where in it that begins which was asked for.
    skip: usize,
    watched: Option<Watched>,
}

impl Mapping {
    /// Maps `len` octets of a file from `offset` on, in whole (huge) pages of it.
    fn new(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let stat = stat(file)?;
        let end = offset.checked_add(len).ok_or_else(invalid)?;
        let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        // Beyond the end of a file there is nothing but SIGBUS.
        if len == 0 || regular && u64::try_from(stat.st_size).is_ok_and(|size| size < end) {
            return Err(invalid());
        }
        let page = u64::try_from(stat.st_blksize).unwrap_or(0).max(4096);
        if !page.is_power_of_two() {
            return Err(invalid());
        }
        let start = offset & !(page - 1);
        let skip = usize::try_from(offset - start).map_err(|_| invalid())?;
        let whole = (end - start)
            .checked_next_multiple_of(page)
            .ok_or_else(invalid)?;
        let whole = usize::try_from(whole).map_err(|_| invalid())?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                whole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                libc::off_t::try_from(start).map_err(|_| invalid())?,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut mapping = Self {
            base: base as usize,
            len: whole,
            skip,
            watched: None,
        };
        mapping.watched = Some(Watched::new(mapping.base, whole)?);
        Ok(mapping)
    }

    fn has_vanished(&self) -> bool {
        self.watched.as_ref().is_some_and(Watched::has_vanished)
    }
}

/// fstat(2) itself: the C library may make it a call by path, which the sandbox answers with an error.
fn stat(file: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the call writes no more than a `stat` of the kernel's, which the C library's is on 64-bit machines.
    let done = unsafe { libc::syscall(libc::SYS_fstat, file.as_raw_fd(), stat.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled it.
    Ok(unsafe { stat.assume_init() })
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // What comes to lie there next is not to be replaced.
        self.watched = None;
        // SAFETY: exactly what `new` has mapped; whoever used it borrowed the memory this belongs to.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.len) };
    }
}

/// What a front-end says of a region: guest physical and front-end virtual address, length, and where it lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo {
    pub guest: u64,
    pub user: u64,
    pub len: u64,
    pub offset: u64,
}

#[derive(Debug)]
struct Region {
    info: RegionInfo,
    mapping: Mapping,
}

impl Region {
    /// Where `len` octets from an address on lie in it, given where it starts in the same address space.
    fn offset(&self, start: u64, addr: u64) -> Option<usize> {
        let at = addr.checked_sub(start)?;
        (at < self.info.len).then_some(at as usize)
    }
}

/// A stretch of guest memory, found once; every use is checked against the memory again, which costs next to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    region: u32,
    len: u32,
    at: usize,
}

impl Stretch {
    /// Octets.
    pub const fn len(self) -> usize {
        self.len as usize
    }

    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part that a range of its octets names, as far as it has them.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        let start = range.start.min(self.len());
        let end = range.end.clamp(start, self.len());
        Self {
            region: self.region,
            len: (end - start) as u32,
            at: self.at + start,
        }
    }
}

/// All regions of a guest's memory.
#[derive(Debug, Default, Clone)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// The same with one more region.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` for a region that is empty, overlaps another, wraps around or ends behind its file.
    pub fn with(&self, info: RegionInfo, file: BorrowedFd<'_>) -> io::Result<Self> {
        let overlaps = |other: &Arc<Region>| {
            let meet = |a: u64, b: u64| a < b + other.info.len && b < a + info.len;
            meet(info.guest, other.info.guest) || meet(info.user, other.info.user)
        };
        let wraps = info.guest.checked_add(info.len).is_none()
            || info.user.checked_add(info.len).is_none()
            || usize::try_from(info.len).is_err();
        if wraps || self.regions.iter().any(overlaps) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mapping = Mapping::new(file, info.offset, info.len)?;
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region { info, mapping }));
        Ok(Self { regions })
    }

    /// The same without a region; `None` if there is no such region.
    pub fn without(&self, info: RegionInfo) -> Option<Self> {
        let same = |region: &Arc<Region>| {
            let RegionInfo {
                guest, user, len, ..
            } = region.info;
            (guest, user, len) == (info.guest, info.user, info.len)
        };
        let at = self.regions.iter().position(same)?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Some(Self { regions })
    }

    /// Whether a region's file was cut off: what is read there is nothing any more.
    pub fn has_vanished(&self) -> bool {
        self.regions
            .iter()
            .any(|region| region.mapping.has_vanished())
    }

    pub const fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Finds `len` octets from a guest physical address on, and adds where they lie: in several pieces if they span regions.
    /// `false` if not all of them exist.
    #[must_use]
    pub fn find(&self, guest: u64, len: u32, pieces: &mut Vec<Stretch>) -> bool {
        let (mut addr, mut left) = (guest, len);
        while left > 0 {
            let found = self.regions.iter().enumerate().find_map(|(index, region)| {
                let at = region.offset(region.info.guest, addr)?;
                let here = (region.info.len as usize - at).min(left as usize) as u32;
                Some(Stretch {
                    region: index as u32,
                    len: here,
                    at,
                })
            });
            let Some(place) = found else {
                return false;
            };
            pieces.push(place);
            left -= place.len;
            match addr.checked_add(u64::from(place.len)) {
                Some(next) => addr = next,
                None => return left == 0,
            }
        }
        true
    }

    /// Finds `len` octets from a guest physical address on, inside one region.
    pub fn find_one(&self, guest: u64, len: u32) -> Option<Stretch> {
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let at = region.offset(region.info.guest, guest)?;
            (len as usize <= region.info.len as usize - at).then_some(Stretch {
                region: index as u32,
                len,
                at,
            })
        })
    }

    /// Finds `len` octets from an address of the front-end's on, inside one region and aligned.
    pub fn find_user(&self, user: u64, len: u32, align: usize) -> Option<Stretch> {
        let (index, region, at) = self
            .regions
            .iter()
            .enumerate()
            .find_map(|(index, region)| {
                Some((index, region, region.offset(region.info.user, user)?))
            })?;
        let place = Stretch {
            region: index as u32,
            len,
            at,
        };
        let fits = len as usize <= region.info.len as usize - at;
        (fits && self.address(place, 0, len as usize)? % align == 0).then_some(place)
    }

    /// The guest physical address of a place.
    pub fn guest_address(&self, place: Stretch) -> Option<u64> {
        let region = self.regions.get(place.region as usize)?;
        Some(region.info.guest + place.at as u64)
    }

    /// The address of `len` octets of a place, if they are mapped.
    pub(super) fn address(&self, place: Stretch, at: usize, len: usize) -> Option<usize> {
        let region = self.regions.get(place.region as usize)?;
        let inside = at.checked_add(len)? <= place.len()
            && place.at.checked_add(place.len())? <= region.info.len as usize;
        inside.then_some(region.mapping.base + region.mapping.skip + place.at + at)
    }

    fn atomic(&self, place: Stretch, at: usize) -> Option<&AtomicU16> {
        let address = self.address(place, at, 2)?;
        if address % 2 != 0 {
            return None;
        }
        // SAFETY: mapped for as long as `self` is borrowed, aligned; whoever else writes it is not of this program.
        Some(unsafe { &*(address as *const AtomicU16) })
    }

    /// Reads a number of 16 bits in little-endian order; what is read after it is not older. 0 outside the place.
    pub fn load(&self, place: Stretch, at: usize) -> u16 {
        self.atomic(place, at)
            .map_or(0, |word| u16::from_le(word.load(Ordering::Acquire)))
    }

    /// Writes a number of 16 bits in little-endian order, after all that was written before it.
    pub fn store(&self, place: Stretch, at: usize, value: u16) {
        if let Some(word) = self.atomic(place, at) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Copies octets out. `false` if they are not all inside the place.
    #[must_use]
    pub fn read(&self, place: Stretch, at: usize, out: &mut [u8]) -> bool {
        let Some(address) = self.address(place, at, out.len()) else {
            return false;
        };
        // SAFETY: the source is mapped for as long as `self` is borrowed, the destination is private and as long. Should the
        // guest write meanwhile, octets of both are mixed; any octets are valid.
        unsafe { ptr::copy_nonoverlapping(address as *const u8, out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies octets in. `false` if they are not all inside the place.
    #[must_use]
    pub fn write(&self, place: Stretch, at: usize, octets: &[u8]) -> bool {
        let Some(address) = self.address(place, at, octets.len()) else {
            return false;
        };
        // SAFETY: the destination is mapped writable for as long as `self` is borrowed and lies outside of all memory of ours.
        unsafe { ptr::copy_nonoverlapping(octets.as_ptr(), address as *mut u8, octets.len()) };
        true
    }
}

/// Which pages of the guest's memory were written, for a migration: a bit a page, shared with the front-end.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    len: usize,
}

impl DirtyLog {
    /// # Errors
    /// Those of mmap(2); `InvalidInput` if the file is shorter.
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let mapping = Mapping::new(file, offset, len)?;
        Ok(Self {
            mapping,
            len: len as usize,
        })
    }

    /// Whether its file was cut off.
    pub fn has_vanished(&self) -> bool {
        self.mapping.has_vanished()
    }

    /// Marks the pages of `len` octets from a guest physical address on; pages the log has no bit for are left out.
    pub fn mark(&self, guest: u64, len: usize) {
        if len == 0 {
            return;
        }
        let last = guest.saturating_add(len as u64 - 1) / LOG_PAGE;
        for page in guest / LOG_PAGE..=last {
            let at = (page / 8) as usize;
            if at >= self.len {
                return;
            }
            let address = self.mapping.base + self.mapping.skip + at;
            // SAFETY: inside the mapping, which lives as long as `self`; an octet is always aligned.
            let octet = unsafe { &*(address as *const AtomicU8) };
            octet.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd};

    use nix::{
        sys::memfd::{MFdFlags, memfd_create},
        unistd::ftruncate,
    };

    fn file(len: i64) -> File {
        let fd = memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        fd.into()
    }

    const fn info(guest: u64, len: u64, offset: u64) -> RegionInfo {
        RegionInfo {
            guest,
            user: guest + 0x7f00_0000_0000,
            len,
            offset,
        }
    }

    #[test]
    fn octets_written_at_one_end_are_read_at_the_other() {
        let file = file(3 << 12);
        let memory = GuestMemory::default();
        let memory = memory.with(info(0, 0x1000, 0), file.as_fd()).unwrap();
        let memory = memory
            .with(info(0x1000, 0x1800, 0x1234), file.as_fd())
            .unwrap();
        let mut pieces = Vec::new();
        assert!(memory.find(0xff0, 0x20, &mut pieces));
        assert_eq!(pieces.iter().map(|p| p.len()).collect::<Vec<_>>(), [16, 16]);
        assert!(memory.write(pieces[1], 3, b"hello"));
        let mut octets = [0; 5];
        std::os::unix::fs::FileExt::read_at(&file, &mut octets, 0x1234 + 3).unwrap();
        assert_eq!(&octets, b"hello");
        assert!(memory.read(pieces[1].part(3..9), 0, &mut octets));
        assert_eq!(&octets, b"hello");
        assert!(!memory.read(pieces[1].part(12..99), 0, &mut octets));
        assert_eq!(memory.guest_address(pieces[1]), Some(0x1000));
        memory.store(pieces[0], 2, 0x1234);
        assert_eq!(memory.load(pieces[0], 2), 0x1234);
        assert_eq!(memory.load(pieces[0], 15), 0);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let file = file(1 << 13);
        let empty = GuestMemory::default();
        let memory = empty.with(info(0x1000, 0x1000, 0), file.as_fd()).unwrap();
        let mut pieces = Vec::new();
        for (guest, len) in [
            (0, 1),
            (0xfff, 2),
            (0x1fff, 2),
            (u64::MAX, 1),
            (u64::MAX - 1, u32::MAX),
            (0x1000, 0x1001),
        ] {
            assert!(!memory.find(guest, len, &mut pieces), "{guest:x} {len}");
        }
        assert!(memory.find_user(0x7f00_0000_1000, 0x1000, 16).is_some());
        assert!(memory.find_user(0x7f00_0000_1001, 16, 16).is_none());
        assert!(memory.find_user(0x7f00_0000_1000, 0x1001, 16).is_none());
        // A place of one memory means nothing in another.
        assert!(memory.find(0x1000, 16, &mut pieces));
        assert!(!empty.read(*pieces.last().unwrap(), 0, &mut [0; 16]));
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let file = file(1 << 13);
        let memory = GuestMemory::default();
        let memory = memory.with(info(0x1000, 0x1000, 0), file.as_fd()).unwrap();
        for bad in [
            info(0x1fff, 0x1000, 0),
            info(0, 0x1001, 0),
            info(0x4000, 0, 0),
            info(0x4000, 0x1001, 0x1000),
            info(0x4000, 0x1000, u64::MAX),
            RegionInfo {
                guest: u64::MAX - 1,
                ..info(0, 0x1000, 0)
            },
            RegionInfo {
                guest: 0x9000,
                ..info(0x1000, 0x1000, 0)
            },
        ] {
            assert!(memory.with(bad, file.as_fd()).is_err(), "{bad:?}");
        }
        assert_eq!(
            memory.without(info(0x1000, 0x1000, 0)).unwrap().regions(),
            0
        );
        assert!(memory.without(info(0x1000, 0x800, 0)).is_none());
    }

    #[test]
    fn written_pages_are_marked_in_the_log() {
        let file = file(16);
        let log = DirtyLog::new(file.as_fd(), 0, 16).unwrap();
        log.mark(4096 * 7 + 4095, 2);
        log.mark(4096 * 20, 0);
        log.mark(4096 * 1000, 4096);
        let mut bits = [0; 3];
        std::os::unix::fs::FileExt::read_at(&file, &mut bits, 0).unwrap();
        assert_eq!(bits, [0x80, 1, 0]);
    }
}
