//! passt-repair, as seen from here: it sets repair mode for us, which we have not the right to.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use crate::{
    proto::repair::{Command, Order, Step},
    sys::{repair, rights},
};

/// How long a helper may take for a batch of sockets.
const PATIENCE: Duration = Duration::from_secs(5);

/// A helper that is connected.
#[derive(Debug)]
pub struct Helper(OwnedFd);

impl Helper {
    /// The helper that connected first and is still there, or does so within `patience`.
    pub fn accept(listener: &impl AsFd, patience: Duration) -> Option<Self> {
        let mut waited = false;
        loop {
            match SockRef::from(listener).accept() {
                Ok((socket, _)) => {
                    let helper = Self(socket.into());
                    if !helper.is_gone() {
                        return Some(helper);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    wait(listener.as_fd(), PollFlags::POLLIN, patience);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Sends helpers away that wait for nothing.
    pub fn dismiss(listener: &impl AsFd) {
        while SockRef::from(listener).accept().is_ok() {}
    }

    /// Whether it has closed its end.
    pub fn is_gone(&self) -> bool {
        let seen = wait(self.0.as_fd(), PollFlags::empty(), Duration::ZERO);
        seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
    }

    /// Has sockets set.
    ///
    /// # Errors
    /// For how many sockets it was done for sure, and why not for the others: those of the next batch may be set or not.
    pub fn order(&self, command: Command, sockets: &[RawFd]) -> Result<(), (usize, io::Error)> {
        let mut order = Order::new(command, sockets.len());
        loop {
            let done = match order.step() {
                Step::Done => return Ok(()),
                Step::Send { from, to } => {
                    let batch = sockets.get(from..to).unwrap_or_default();
                    repair::send_with(self.0.as_fd(), command.octet(), batch).map(|()| order.sent())
                }
                Step::Await => self.answer().and_then(|octet| {
                    if order.answered(octet) {
                        Ok(())
                    } else {
                        Err(io::ErrorKind::InvalidData.into())
                    }
                }),
            };
            done.map_err(|error| (order.confirmed(), error))?;
        }
    }

    fn answer(&self) -> io::Result<u8> {
        wait(self.0.as_fd(), PollFlags::POLLIN, PATIENCE);
        let mut octet = [0];
        match rights::receive(self.0.as_fd(), &mut octet, &mut Vec::new()) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(octet[0]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error),
        }
    }
}

/// Waits for events, and returns those that came.
fn wait(fd: BorrowedFd<'_>, events: PollFlags, patience: Duration) -> PollFlags {
    let mut fds = [PollFd::new(fd, events)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, patience) {
        Ok(1..) => fds[0].revents().unwrap_or(PollFlags::empty()),
        _ => PollFlags::empty(),
    }
}
