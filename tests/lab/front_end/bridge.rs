//! A guest that knows only the stream framing, behind a vhost-user front-end: frames are carried from one to the other.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Driver, FrontEnd, RX, cut::cut};

/// Frames the guest may have coming before more are taken.
const PENDING: usize = 256 * 1024;

/// The guest's end of a wire to the back end at `socket`. Either end closes the other.
pub fn bridge(socket: UnixStream, driver: Driver) -> UnixStream {
    let (guests, ours) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("nonblocking");
    thread::spawn(move || Bridge::new(FrontEnd::start(socket, driver), ours).run());
    guests
}

struct Bridge {
    front_end: FrontEnd,
    stream: UnixStream,
    /// Octets of frames from the guest, and to it.
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Bridge {
    const fn new(front_end: FrontEnd, stream: UnixStream) -> Self {
        Self {
            front_end,
            stream,
            from: Vec::new(),
            to: Vec::new(),
        }
    }

    fn run(mut self) {
        while self.wait() && self.read() {
            while self.to.len() < PENDING
                && let Some(arrival) = self.front_end.try_receive()
            {
                for frame in cut(&arrival) {
                    self.to.extend((frame.len() as u32).to_be_bytes());
                    self.to.extend(frame);
                }
            }
            if !self.write() {
                return;
            }
        }
    }

    /// Waits for anything to do; `false` when the back end has closed.
    fn wait(&self) -> bool {
        let mut stream = PollFlags::POLLIN;
        stream.set(PollFlags::POLLOUT, !self.to.is_empty());
        let call = self.front_end.called(RX);
        let mut fds = vec![
            PollFd::new(self.stream.as_fd(), stream),
            PollFd::new(self.front_end.socket.as_fd(), PollFlags::POLLIN),
        ];
        if self.to.len() < PENDING {
            fds.push(PollFd::new(call.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut fds, PollTimeout::NONE);
        let closed = fds.get(1).is_some_and(|fd| fd.any() == Some(true));
        let _ = call.read();
        !closed
    }

    /// Hands on what the guest sent; `false` when it has left.
    fn read(&mut self) -> bool {
        let mut octets = [0; 0x1_0000];
        match self.stream.read(&mut octets) {
            Ok(0) => return false,
            Ok(len) => self.from.extend_from_slice(&octets[..len]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        let header = vec![0; self.front_end.driver.header()];
        let mut at = 0;
        while let Some(prefix) = self.from[at..].first_chunk::<4>() {
            let end = at + 4 + u32::from_be_bytes(*prefix) as usize;
            let Some(frame) = self.from.get(at + 4..end) else {
                break;
            };
            self.front_end.transmit(&header, frame, 1);
            at = end;
        }
        self.from.drain(..at);
        true
    }

    fn write(&mut self) -> bool {
        while !self.to.is_empty() {
            match self.stream.write(&self.to) {
                Ok(len) => self.to.drain(..len),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            };
        }
        true
    }
}
