//! The wire between the TAP device and the translator's socket: each frame follows its length, 4 bytes, big endian.
//!
//! Two threads, one a direction, both blocking: frames are read from the device only when the socket took the ones before,
//! and many frames travel in one `send` or `recv`, as they do with QEMU.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{queues, tap::Tap};
use crate::lab::front_end::{Driver, FrontEnd};

/// Bytes of a frame's length on the socket.
const LENGTH: usize = 4;

/// The longest frame the framing allows; QEMU's own limit.
const LONGEST_FRAME: usize = 69_632;

/// Frames are gathered until this many bytes are in hand or the device is empty.
const BURST: usize = 256 * 1024;

/// What went over the wire, in frames and bytes without the length words.
#[derive(Debug, Default)]
pub struct Counters {
    pub frames_from_guest: AtomicU64,
    pub bytes_from_guest: AtomicU64,
    pub frames_to_guest: AtomicU64,
    pub bytes_to_guest: AtomicU64,
    /// Of a million frames, so many are lost on the wire, either way.
    pub loss: AtomicU64,
    /// Frames the guest's kernel would not take.
    pub refused_by_guest: AtomicU64,
    /// Nothing passes, and nobody reads: the machine that the wire runs in stands still.
    pub frozen: AtomicBool,
}

impl Counters {
    /// Waits until the wire is not frozen.
    fn thaw(&self) {
        while self.frozen.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the wire loses this frame, by a number that looks random (xorshift64).
    fn loses(&self, dice: &mut u64) -> bool {
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        (*dice >> 20) % 1_000_000 < self.loss.load(Ordering::Relaxed)
    }
}

pub(super) struct Relay {
    tap: Arc<Tap>,
    socket: UnixStream,
    counters: Arc<Counters>,
    threads: Vec<Worker>,
    /// Closes the link when it goes.
    _front_end: Option<FrontEnd>,
}

/// One direction's thread, with its id in the kernel for its CPU time.
pub(super) struct Worker {
    pub(super) thread: Option<JoinHandle<()>>,
    kernel_id: i32,
}

impl Relay {
    pub(super) fn start(tap: Arc<Tap>, socket: UnixStream) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let up = {
            let (tap, counters, socket) = (tap.clone(), counters.clone(), socket.try_clone()?);
            Worker::start("guest-to-socket", socket, move |socket| {
                carry_up(&tap, socket, &counters)
            })?
        };
        let down = {
            let (tap, counters, socket) = (tap.clone(), counters.clone(), socket.try_clone()?);
            Worker::start("socket-to-guest", socket, move |socket| {
                carry_down(&tap, socket, &counters)
            })?
        };
        Ok(Self {
            tap,
            socket,
            counters,
            threads: vec![up, down],
            _front_end: None,
        })
    }

    /// The same between the queues of the device and virtqueues, behind a front-end whose driver behaves so.
    pub(super) fn by_queues(
        taps: &[Arc<Tap>],
        socket: UnixStream,
        mut driver: Driver,
    ) -> io::Result<Self> {
        // Buffers are posted by those who carry the frames.
        driver.buffers = 0;
        let front_end = FrontEnd::start(socket, driver);
        let counters = Arc::new(Counters::default());
        Ok(Self {
            tap: taps[0].clone(),
            socket: front_end.socket.try_clone()?,
            threads: queues::start(taps, &front_end, &counters)?,
            counters,
            _front_end: Some(front_end),
        })
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn cpu(&self) -> Duration {
        self.threads.iter().map(Worker::cpu).sum()
    }

    pub(super) fn running(&self) -> bool {
        self.threads
            .iter()
            .all(|worker| worker.thread.as_ref().is_some_and(|t| !t.is_finished()))
    }
}

impl Relay {
    /// Cuts the wire; the device stays, to be plugged in elsewhere.
    pub(super) fn cut(&mut self) -> Arc<Tap> {
        // Ends both threads: one reads the end of the stream, the other is polling for the hang-up.
        let _ = self.socket.shutdown(Shutdown::Both);
        for worker in &mut self.threads {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
        self.tap.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Worker {
    /// Run `carry` until the wire is cut, and cut it for the other direction too.
    pub(super) fn start(
        name: &str,
        socket: UnixStream,
        carry: impl FnOnce(&UnixStream) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _ = tell.send(nix::unistd::gettid().as_raw());
                if let Err(error) = carry(&socket)
                    && !is_hang_up(&error)
                {
                    eprintln!("the wire broke: {error}");
                }
                let _ = socket.shutdown(Shutdown::Both);
            })?;
        Ok(Self {
            thread: Some(thread),
            kernel_id: told.recv().map_err(io::Error::other)?,
        })
    }

    pub(super) fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.kernel_id);
        let text = fs::read_to_string(path).unwrap_or_default();
        let first = text.split(' ').next().and_then(|word| word.parse().ok());
        Duration::from_nanos(first.unwrap_or(0))
    }
}

/// Whether the other end hung up, as all do at last.
fn is_hang_up(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Device to socket.
fn carry_up(tap: &Tap, mut socket: &UnixStream, counters: &Counters) -> io::Result<()> {
    let mut burst = vec![0; BURST + LENGTH + LONGEST_FRAME];
    let mut dice = 0x9e37_79b9_7f4a_7c15;
    loop {
        let (mut filled, mut frames) = (0, 0);
        while filled < BURST {
            match tap.read(&mut burst[filled + LENGTH..]) {
                Ok(_) if counters.loses(&mut dice) => {}
                Ok(length) => {
                    burst[filled..filled + LENGTH].copy_from_slice(&(length as u32).to_be_bytes());
                    filled += LENGTH + length;
                    frames += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if frames == 0 {
            wait_for_frame(tap, socket)?;
            continue;
        }
        counters.thaw();
        socket.write_all(&burst[..filled])?;
        counters
            .frames_from_guest
            .fetch_add(frames, Ordering::Relaxed);
        counters
            .bytes_from_guest
            .fetch_add(filled as u64 - LENGTH as u64 * frames, Ordering::Relaxed);
    }
}

/// Sleep until the device has a frame; an error once the socket has hung up.
fn wait_for_frame(tap: &Tap, socket: &UnixStream) -> io::Result<()> {
    let mut waits = [
        PollFd::new(tap.as_fd(), PollFlags::POLLIN),
        PollFd::new(socket.as_fd(), PollFlags::empty()),
    ];
    match poll(&mut waits, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    match waits[1].any() {
        Some(false) => Ok(()),
        _ => Err(ErrorKind::BrokenPipe.into()),
    }
}

/// Socket to device.
fn carry_down(tap: &Tap, mut socket: &UnixStream, counters: &Counters) -> io::Result<()> {
    let mut buffer = vec![0; 2 * BURST + LENGTH + LONGEST_FRAME];
    let mut filled = 0;
    let mut dice = 0xd1b5_4a32_d192_ed03;
    loop {
        match socket.read(&mut buffer[filled..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            more => filled += more,
        }
        counters.thaw();
        let mut at = 0;
        while let Some(length) = length_at(&buffer[at..filled])? {
            let frame = at + LENGTH;
            if !counters.loses(&mut dice) && tap.write(&buffer[frame..frame + length]).is_err() {
                counters.refused_by_guest.fetch_add(1, Ordering::Relaxed);
            }
            counters.frames_to_guest.fetch_add(1, Ordering::Relaxed);
            counters
                .bytes_to_guest
                .fetch_add(length as u64, Ordering::Relaxed);
            at = frame + length;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// The length of the frame that starts here; `None` while part of it is still to come.
fn length_at(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some((word, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*word) as usize;
    if length > LONGEST_FRAME {
        return Err(io::Error::other(format!("frame of {length} bytes")));
    }
    Ok((rest.len() >= length).then_some(length))
}
