//! Memory that may vanish: who shares a file may also cut it off, and reading behind its end raises SIGBUS. The process must
//! not die of it. The handler puts empty memory of our own where the file was, and notes it; who used it goes on with
//! zeros and finds out later.
//!
//! A signal handler reaches nothing but globals, so the places are one: a few words each, changed by whoever maps.

use std::{
    io, mem, ptr,
    sync::{
        Once,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Mappings at a time: two tables of memory regions, as one replaces the other, and logs.
const PLACES: usize = 160;

struct Place {
    base: AtomicUsize,
    /// Octets; 0 while it is free.
    len: AtomicUsize,
    vanished: AtomicBool,
}

static PLACES_KNOWN: [Place; PLACES] = [const {
    Place {
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        vanished: AtomicBool::new(false),
    }
}; PLACES];

/// A mapping the handler knows of, until this is dropped.
#[derive(Debug)]
pub(super) struct Watched(usize);

impl Watched {
    /// Has the mapping at `base` of `len` octets replaced should its file vanish.
    ///
    /// # Errors
    /// Those of sigaction(2); `OutOfMemory` if there are too many.
    pub(super) fn new(base: usize, len: usize) -> io::Result<Self> {
        handle()?;
        let free = PLACES_KNOWN.iter().position(|place| {
            place
                .base
                .compare_exchange(0, base, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        let at = free.ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(place) = PLACES_KNOWN.get(at) {
            place.vanished.store(false, Ordering::Release);
            place.len.store(len, Ordering::Release);
        }
        Ok(Self(at))
    }

    /// Whether the file was cut off, and what was read since is not what it held.
    pub(super) fn has_vanished(&self) -> bool {
        PLACES_KNOWN
            .get(self.0)
            .is_some_and(|place| place.vanished.load(Ordering::Acquire))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(place) = PLACES_KNOWN.get(self.0) {
            place.len.store(0, Ordering::Release);
            place.base.store(0, Ordering::Release);
        }
    }
}

/// Installs the handler, once.
fn handle() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = 0;
    INSTALLED.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction`: an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = replace;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is whole, and its handler does only what a handler may.
        result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    });
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The handler: replaces the mapping that was touched, or has the process die as it would have without.
extern "C" fn replace(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a whole `siginfo_t`, and SIGBUS comes with an address.
    let addr = unsafe { (*info).si_addr() } as usize;
    for place in &PLACES_KNOWN {
        let base = place.base.load(Ordering::Acquire);
        let len = place.len.load(Ordering::Acquire);
        if base == 0 || addr < base || addr - base >= len {
            continue;
        }
        // SAFETY: the place is a mapping of ours over which nobody holds a reference but atomics, valid in either memory;
        // mmap(2) is a bare system call.
        let mapped = unsafe {
            libc::mmap(
                base as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            place.vanished.store(true, Ordering::Release);
            return;
        }
    }
    // SAFETY: back to the default; the instruction is repeated and the process ends by it.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}
