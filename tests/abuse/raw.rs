//! Frames put on a device as they are, past the stack of its host.

use std::{
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{ifaddrs::getifaddrs, sys::socket::bind};
use socket2::{Domain, Socket, Type};

use crate::lab::Host;

/// Frames sent in a row before the pace is looked at.
const ROW: u64 = 32;

/// A device of a host, to send on.
pub struct Raw(Socket);

impl Raw {
    pub fn open(host: &Host, device: &str) -> Self {
        host.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("packet socket");
            let addr = getifaddrs()
                .expect("devices")
                .filter(|entry| entry.interface_name == device)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .expect(device);
            bind(socket.as_raw_fd(), &addr).expect("bind");
            Self(socket)
        })
    }

    /// Sends what `frame` makes of each number at `rate` frames a second until told to stop. Returns how many.
    pub fn flood(
        &self,
        rate: u64,
        stop: &AtomicBool,
        mut frame: impl FnMut(u64) -> Vec<u8>,
    ) -> u64 {
        let start = Instant::now();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let due = Duration::from_micros(sent * 1_000_000 / rate);
            if let Some(early) = due.checked_sub(start.elapsed()) {
                thread::sleep(early.min(Duration::from_millis(50)));
                continue;
            }
            for _ in 0..ROW {
                // A full queue is the attacker's trouble.
                let _ = self.0.send(&frame(sent));
                sent += 1;
            }
        }
        sent
    }
}
