//! Files put out of reach for good (landlock(7)).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use libc::{c_long, c_void};

/// `struct landlock_ruleset_attr` as of its first version; later ones are longer.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
}

/// LANDLOCK_CREATE_RULESET_VERSION.
const VERSION: u32 = 1;

/// All rights of files that a version of the interface knows.
const fn rights(version: c_long) -> u64 {
    match version {
        1 => (1 << 13) - 1,
        2 => (1 << 14) - 1,
        3 | 4 => (1 << 15) - 1,
        _ => (1 << 16) - 1,
    }
}

/// Denies this thread, and all it starts, every right over every file that is not open yet. No new privileges must have been
/// given up before.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP on a kernel without, EPERM without `PR_SET_NO_NEW_PRIVS`.
pub fn deny_files() -> io::Result<()> {
    // SAFETY: with this flag the kernel reads no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<c_void>(),
            0_usize,
            VERSION,
        )
    };
    if version < 0 {
        return Err(io::Error::last_os_error());
    }
    let attributes = Ruleset {
        handled_access_fs: rights(version),
    };
    // SAFETY: the kernel reads as many octets as `attributes` has.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attributes,
            size_of::<Ruleset>(),
            0_u32,
        )
    };
    let fd = i32::try_from(made).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it and nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the call touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
