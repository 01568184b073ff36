//! What the host does.

use std::os::fd::RawFd;

use passt_rs::relay::Ready;

use super::{Play, script::Script};
use crate::kernel::{self, Kind};

impl Play {
    pub(super) fn pick(&self, script: &mut Script<'_>) -> Option<RawFd> {
        let open = kernel::with(|kernel| kernel.flows());
        let at = usize::from(script.byte()) % open.len().max(1);
        open.get(at).copied()
    }

    pub(super) fn host_sends(&mut self, script: &mut Script<'_>) {
        let octets = script.number();
        let Some(fd) = self.pick(script) else { return };
        kernel::with(|kernel| {
            if let Some(socket) = kernel.socket(fd) {
                match socket.kind {
                    Kind::Tcp if !socket.ended => socket.sent_by_peer += u64::from(octets),
                    Kind::Tcp => {}
                    _ if socket.waiting.len() < 64 => socket.waiting.push_back(octets as u16),
                    _ => {}
                }
            }
        });
        self.ready(
            fd,
            Ready {
                readable: true,
                ..Ready::default()
            },
        );
    }

    pub(super) fn host_event(&mut self, script: &mut Script<'_>) {
        let how = script.byte();
        let Some(fd) = self.pick(script) else { return };
        let errors = [
            libc::ECONNREFUSED,
            libc::ECONNRESET,
            libc::ETIMEDOUT,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::EPIPE,
        ];
        let mut ready = Ready {
            writable: how & 1 != 0,
            ..Ready::default()
        };
        kernel::with(|kernel| {
            let Some(socket) = kernel.socket(fd) else {
                return;
            };
            if how & 1 != 0 {
                socket.connecting = false;
            }
            if how & 2 != 0 {
                (socket.ended, ready.ended, ready.readable) = (true, true, true);
            }
            if how & 4 != 0 {
                socket.error = errors[usize::from(how >> 3) % errors.len()];
                (ready.error, ready.readable) = (true, true);
            }
            if how & 0x40 != 0 {
                socket.errors.push_back((how & 0xf, how >> 3 & 7));
                ready.error = true;
            }
        });
        self.ready(fd, ready);
    }

    pub(super) fn socket_room(&mut self, script: &mut Script<'_>) {
        let room = script.number() as usize * 16;
        let Some(fd) = self.pick(script) else { return };
        kernel::with(|kernel| {
            if let Some(socket) = kernel.socket(fd) {
                socket.room = room;
            }
        });
        self.ready(
            fd,
            Ready {
                writable: room > 0,
                ..Ready::default()
            },
        );
    }

    /// Something comes to a forwarded port.
    pub(super) fn arrivals(&mut self, script: &mut Script<'_>) {
        let (which, count) = (script.byte(), script.byte() % 40);
        let Some(&(place, fd)) = self.ports.get(usize::from(which & 7) % self.ports.len()) else {
            return;
        };
        kernel::with(|kernel| {
            if let Some(socket) = kernel.socket(fd)
                && socket.waiting.len() < 200
            {
                socket
                    .waiting
                    .extend((0..count).map(|n| 0x9000 + u16::from(which >> 3) + u16::from(n)));
            }
        });
        self.relay.knock(place);
    }

    pub(super) fn ready(&mut self, fd: RawFd, ready: Ready) {
        if let Some(&id) = self.watched.get(&fd) {
            self.relay.from_host(id, ready, &mut self.outbox, self.now);
        }
    }
}
