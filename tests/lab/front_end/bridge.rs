//! A guest that knows only the stream framing, behind a vhost-user front-end: frames are carried from one to the other.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

use super::{Driver, FrontEnd, RX, cut::cut};

/// Frames the guest may have coming before more are taken.
const PENDING: usize = 256 * 1024;

/// The guest's end of a wire to the back end at `socket`. Either end closes the other.
pub fn bridge(socket: UnixStream, driver: Driver) -> UnixStream {
    let (guests, ours) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("nonblocking");
    thread::spawn(move || Bridge::new(FrontEnd::start(socket, driver), ours).carry());
    guests
}

/// A guest that can move: its wire stays, what is behind it changes.
#[derive(Debug)]
pub struct Movable {
    stop: OwnedFd,
    thread: Option<JoinHandle<Bridge>>,
}

impl Movable {
    /// The guest's end of the wire too.
    pub fn new(socket: UnixStream, driver: Driver) -> (Self, UnixStream) {
        let (guests, ours) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("nonblocking");
        let this = Self::run(Bridge::new(FrontEnd::start(socket, driver), ours));
        (this, guests)
    }

    fn run(mut bridge: Bridge) -> Self {
        bridge.stop = EventFd::new().expect("eventfd");
        let stop = bridge.stop.as_fd().try_clone_to_owned().expect("dup");
        let thread = thread::spawn(move || {
            bridge.carry();
            bridge
        });
        let thread = Some(thread);
        Self { stop, thread }
    }

    /// The guest stands still; everything it was sent is before it.
    pub fn halt(mut self) -> Bridge {
        self.end().expect("once").expect("no panic")
    }

    fn end(&mut self) -> Option<thread::Result<Bridge>> {
        let thread = self.thread.take()?;
        nix::unistd::write(&self.stop, &1_u64.to_ne_bytes()).expect("eventfd");
        Some(thread.join())
    }
}

/// Nobody waits for a back end that is gone.
impl Drop for Movable {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Frames on their way between the two.
#[derive(Debug)]
pub struct Bridge {
    pub front_end: FrontEnd,
    stream: UnixStream,
    stop: EventFd,
    /// Octets of frames from the guest, and to it.
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Bridge {
    fn new(front_end: FrontEnd, stream: UnixStream) -> Self {
        Self {
            front_end,
            stream,
            stop: EventFd::new().expect("eventfd"),
            from: Vec::new(),
            to: Vec::new(),
        }
    }

    /// The guest goes on behind another front-end.
    pub fn go_on(mut self, front_end: FrontEnd) -> Movable {
        self.front_end = front_end;
        Movable::run(self)
    }

    /// The guest goes on where it was: its device is started anew, and what it has not [received](Self::receive) is lost.
    pub fn again(mut self) -> Movable {
        self.front_end.reset_driver();
        self.front_end.start_rings(0, 0);
        Movable::run(self)
    }

    fn carry(&mut self) {
        while self.wait() && self.read() {
            self.receive(PENDING);
            if !self.write() {
                return;
            }
        }
    }

    /// Takes what the device has for the guest, as long as no more than that waits.
    pub fn receive(&mut self, most: usize) {
        while self.to.len() < most
            && let Some(arrival) = self.front_end.try_receive()
        {
            for frame in cut(&arrival) {
                self.to.extend((frame.len() as u32).to_be_bytes());
                self.to.extend(frame);
            }
        }
    }

    /// Waits for anything to do; `false` when the back end has closed, or the guest is to stand still.
    fn wait(&self) -> bool {
        let mut stream = PollFlags::POLLIN;
        stream.set(PollFlags::POLLOUT, !self.to.is_empty());
        let call = self.front_end.called(RX);
        let mut fds = vec![
            PollFd::new(self.stream.as_fd(), stream),
            PollFd::new(self.front_end.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        if self.to.len() < PENDING {
            fds.push(PollFd::new(call.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut fds, PollTimeout::NONE);
        let over = fds.iter().skip(1).take(2).any(|fd| fd.any() == Some(true));
        let _ = call.read();
        !over
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
