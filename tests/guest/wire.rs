//! The guest's end of the UNIX socket: each frame follows its length, four octets, big-endian.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use crate::lab::LONG;

/// Frames in and out, one after the other; every wait ends.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    inner: RefCell<Inner>,
    read_size: Cell<usize>,
    /// Whom frames sent are from, if not from whom they say.
    source: Cell<Option<[u8; 6]>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Octets read that are not yet a whole frame.
    partial: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
    closed: bool,
}

impl Wire {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_write_timeout(Some(LONG)).expect("timeout");
        Self {
            stream,
            inner: RefCell::default(),
            read_size: Cell::new(1 << 18),
            source: Cell::new(None),
        }
    }

    /// Sends from this MAC address from now on.
    pub fn speak_as(&self, mac: [u8; 6]) {
        self.source.set(Some(mac));
    }

    /// Reads at most so many octets at a time.
    pub fn set_read_size(&self, size: usize) {
        self.read_size.set(size);
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        let mut frame = framed(frame);
        if let Some(mac) = self.source.get() {
            frame[10..16].copy_from_slice(&mac);
        }
        self.send_raw(&frame);
    }

    /// Sends octets as they are.
    pub fn send_raw(&self, bytes: &[u8]) {
        (&self.stream).write_all(bytes).expect("write to the link");
    }

    /// The next frame; `None` when none comes in time or the link is closed.
    pub fn recv(&self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut inner = self.inner.borrow_mut();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.frames.is_empty() && !inner.closed {
                self.read(&mut inner, left);
            }
            let frame = inner.frames.pop_front();
            if frame.is_some() || inner.closed || left.is_zero() {
                return frame;
            }
        }
    }

    /// The next frame for which `wanted` gives something; others are passed over.
    pub fn expect<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        let mut others = Vec::new();
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Some(frame) = self.recv(left) else { break };
            if let Some(found) = wanted(&frame) {
                return found;
            }
            others.push(format!("{:02x?}", &frame[..frame.len().min(80)]));
        }
        let closed = self.inner.borrow().closed;
        panic!(
            "no {what} came (link closed: {closed}), but\n{}",
            others.join("\n")
        );
    }

    /// The same of answers to a request, which is sent again each second: what is on its way to it may be lost.
    pub fn ask<T>(&self, what: &str, request: &[u8], wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        while Instant::now() < deadline {
            self.send(request);
            let again = Instant::now() + Duration::from_secs(1);
            while let Some(left) = again.checked_duration_since(Instant::now())
                && let Some(frame) = self.recv(left)
            {
                if let Some(found) = wanted(&frame) {
                    return found;
                }
            }
        }
        panic!("no {what} came");
    }

    /// The test fails if within `patience` a frame comes for which `unwanted` gives something.
    pub fn never<T>(
        &self,
        patience: Duration,
        what: &str,
        mut unwanted: impl FnMut(&[u8]) -> Option<T>,
    ) {
        let deadline = Instant::now() + patience;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Some(frame) = self.recv(left) else { break };
            assert!(unwanted(&frame).is_none(), "{what} came: {frame:02x?}");
        }
        assert!(!self.inner.borrow().closed, "the link was closed");
    }

    /// Whether the other side closes the link in time.
    pub fn closes(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut inner = self.inner.borrow_mut();
        while !inner.closed {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break;
            };
            self.read(&mut inner, left);
        }
        inner.closed
    }

    fn read(&self, inner: &mut Inner, patience: Duration) {
        let patience = patience.max(Duration::from_millis(1));
        self.stream
            .set_read_timeout(Some(patience))
            .expect("timeout");
        let mut bytes = vec![0; self.read_size.get()];
        match (&self.stream).read(&mut bytes) {
            Ok(0) => inner.closed = true,
            Ok(n) => {
                inner.partial.extend_from_slice(&bytes[..n]);
                split(&mut inner.partial, &mut inner.frames);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => inner.closed = true,
            Err(e) => panic!("read from the link: {e}"),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // A process that another test starts holds a copy of the socket for a moment: closing alone would not end it at once.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A frame with its length before it.
pub fn framed(frame: &[u8]) -> Vec<u8> {
    let len = u32::try_from(frame.len()).expect("a length");
    [&len.to_be_bytes()[..], frame].concat()
}

/// Moves the whole frames at the start of `bytes` to `frames`.
pub fn split(bytes: &mut Vec<u8>, frames: &mut VecDeque<Vec<u8>>) {
    let mut at = 0;
    while let Some((head, rest)) = bytes[at..].split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*head) as usize;
        assert!(
            (14..=65_549).contains(&len),
            "frame of {len} octets to the guest"
        );
        let Some(frame) = rest.get(..len) else { break };
        frames.push_back(frame.to_vec());
        at += 4 + len;
    }
    bytes.drain(..at);
}
