//! The way of a guest's state through a pipe, and who helps with its connections.
//!
//! The guest stands still meanwhile, so these waits keep nobody waiting: they are bounded, and that is all.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};

use crate::{host::repair::Helper, proto::state::STATE_MAX};

/// How long the front-end's end of the pipe may be idle.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a helper that was just started may take to connect, when it is needed.
const LATE: Duration = Duration::from_millis(100);

/// Octets read at a time.
const PIECE: usize = 1 << 16;

/// Helpers, and how far a migration is.
#[derive(Debug, Default)]
pub(super) struct Migration {
    /// Where helpers connect. They wait there until they are needed.
    pub(super) repair: Option<OwnedFd>,
    /// Whether we are to end when the guest has left for good.
    pub(super) exits: bool,
    /// Whether sockets of connections that have moved are kept until the next guest comes.
    pub(super) lingers: bool,
    /// The helper of a migration that is not decided yet.
    helper: Option<Helper>,
}

impl Migration {
    /// The helper of this migration, or another if it is gone.
    pub(super) fn helper(&mut self) -> Option<&Helper> {
        if self.helper.as_ref().is_none_or(Helper::is_gone) {
            let repair = self.repair.as_ref()?;
            self.helper = Helper::accept(repair, LATE);
        }
        self.helper.as_ref()
    }

    /// The migration is decided: helpers are told by the end of their connections.
    pub(super) fn over(&mut self) {
        if self.helper.is_some() {
            self.dismiss();
        }
    }

    /// The same, whether one was needed or not.
    pub(super) fn dismiss(&mut self) {
        self.helper = None;
        if let Some(repair) = &self.repair {
            Helper::dismiss(repair);
        }
    }
}

/// Writes all of a state.
///
/// # Errors
/// Those of write(2); `TimedOut` if nobody reads.
pub(super) fn save(pipe: &OwnedFd, mut state: &[u8]) -> io::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    while !state.is_empty() {
        match write(pipe, state) {
            Ok(octets) => state = state.get(octets..).unwrap_or_default(),
            Err(nix::Error::EAGAIN) => wait(pipe, PollFlags::POLLOUT)?,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads a state to its end.
///
/// # Errors
/// Those of read(2); `TimedOut` if nobody writes; `FileTooLarge` if it does not end.
pub(super) fn load(pipe: &OwnedFd) -> io::Result<Vec<u8>> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut state = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        match read(pipe, &mut piece) {
            Ok(0) => return Ok(state),
            Ok(octets) if state.len() + octets > STATE_MAX => {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(octets) => state.extend(piece.get(..octets).unwrap_or_default()),
            Err(nix::Error::EAGAIN) => wait(pipe, PollFlags::POLLIN)?,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait(pipe: &OwnedFd, events: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(pipe.as_fd(), events)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, patience) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_state_goes_through_a_pipe_whole() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let state: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let sent = state.clone();
        let writer = thread::spawn(move || save(&to, &sent).unwrap());
        assert!(load(&from).unwrap() == state);
        writer.join().unwrap();
        let (from, to) = nix::unistd::pipe().unwrap();
        drop(from);
        assert_eq!(
            save(&to, b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
