//! Processes and inherited descriptors.

use std::{
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use libc::{c_int, c_uint};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::{self, SigHandler, Signal},
    unistd::{ForkResult, Pid, fork as fork_process},
};

/// Which of the two processes goes on after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    Parent { child: Pid },
    Child,
}

/// Splits this process in two.
///
/// # Errors
/// Those of fork(2), and `Unsupported` once the process has more than one thread: what the others hold would stay held in
/// the child for ever.
pub fn fork() -> io::Result<Forked> {
    // Without /proc there is nothing to count; threads are started after this point of the start-up only.
    if fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    // SAFETY: this is the only thread, so no lock or allocator state is caught half-way in the child.
    match unsafe { fork_process() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent { child }),
        ForkResult::Child => Ok(Forked::Child),
    }
}

/// Closes every descriptor above the three standard ones, except `keep`. For the very start of the process only: whoever
/// owns a descriptor by then loses it.
pub fn close_inherited(keep: Option<RawFd>) {
    let keep = keep.and_then(|fd| c_uint::try_from(fd).ok());
    let closed = match keep {
        Some(fd) if fd > 2 => {
            (fd == 3 || close_range(3, fd - 1).is_ok()) && close_range(fd + 1, c_uint::MAX).is_ok()
        }
        _ => close_range(3, c_uint::MAX).is_ok(),
    };
    if !closed {
        close_listed(keep);
    }
}

fn close_range(first: c_uint, last: c_uint) -> io::Result<()> {
    // SAFETY: the call touches no memory of ours; nothing in this process owns a descriptor above 2 yet.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The same one by one, where a filter forbids close_range(2).
fn close_listed(keep: Option<c_uint>) {
    let Ok(listing) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = listing
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open {
        if fd > 2 && c_uint::try_from(fd).ok() != keep {
            // SAFETY: a number from the list, owned by nobody here; the list's own descriptor is closed already and
            // closing it again fails harmlessly.
            unsafe { libc::close(fd) };
        }
    }
}

/// Undoes what a caller may have had in mind for itself: signals that end us are not ignored, or nobody would hear of them
/// (signalfd(2)); and a file that may not grow is an error like any other.
pub fn settle_signals() {
    for (signal, handler) in [
        (Signal::SIGTERM, SigHandler::SigDfl),
        (Signal::SIGQUIT, SigHandler::SigDfl),
        (Signal::SIGUSR1, SigHandler::SigDfl),
        (Signal::SIGXFSZ, SigHandler::SigIgn),
    ] {
        // SAFETY: neither disposition runs any code of ours.
        let _ = unsafe { signal::signal(signal, handler) };
    }
}

/// Whether a caller has the signal ignored.
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the old one, to memory of ours.
    let asked = unsafe { libc::sigaction(signal as c_int, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a value of plain integers and an empty pointer, if the call wrote none.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Takes over the inherited descriptor `fd`: moves it above the standard ones, closed on exec, and frees its old number
/// (standard ones stay open, at /dev/null).
///
/// # Errors
/// Those of fcntl(2): `EBADF` if it is not open.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only borrowed for the duplication; a number that is not open makes fcntl fail.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    let moved = fcntl(inherited, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: fcntl just made it and nobody else knows it.
    let moved = unsafe { OwnedFd::from_raw_fd(moved) };
    if fd > 2 {
        // SAFETY: the caller passed this descriptor to us by the command line and nothing of ours owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    } else {
        let null = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        // SAFETY: both are open descriptors; dup2 replaces the standard one in one step.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::IntoRawFd, unix::net::UnixStream};

    use super::*;

    #[test]
    fn an_adopted_descriptor_moves_and_its_number_is_free() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let number = ours.into_raw_fd();
        let adopted = UnixStream::from(adopt(number).unwrap());
        assert!(adopted.peer_addr().is_ok());
        drop(adopted);
        drop(theirs);
        assert_eq!(adopt(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(
            adopt(999_999).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
    }

    #[test]
    fn a_process_of_several_threads_does_not_fork() {
        let (_hold, wait) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || wait.recv());
        assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
