//! What the host does.

use std::os::fd::RawFd;

use passt_rs::{
    config::{Config, resolve},
    flow::Neighbour,
    net::Mac,
    relay::Ready,
};

use super::{Play, script::Script};
use crate::kernel::{self, Kind, Waiting};

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
                    _ if socket.waiting.len() < 64 => socket.waiting.push_back(datagram(octets)),
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
            urgent: how & 0x80 != 0,
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

    /// The host's network is another: new addresses, none of a family, another MTU.
    pub(super) fn host_changes(&mut self, script: &mut Script<'_>) {
        let how = script.byte();
        let mut facts = crate::facts();
        if how & 1 != 0 {
            facts.addresses.retain(|address| address.addr.is_ipv4());
        }
        if how & 2 != 0 {
            facts.addresses.retain(|address| address.addr.is_ipv6());
        }
        if how & 4 != 0 {
            facts.routes.clear();
        }
        if let Ok(resolved) = resolve(&Config::default(), &facts) {
            let mut net = resolved.net;
            net.mtu = [65_520, 1500, 1280, 576][usize::from(how >> 3 & 3)];
            self.mtu = self.mtu.max(net.mtu);
            self.relay.set_net(net);
            self.relay.advertise(&mut self.outbox);
        }
        self.relay.follow_interfaces(|_| None);
        let neighbour = Neighbour {
            interface: 2,
            addr: [192, 0, 2, how].into(),
            mac: (how & 0x20 == 0).then_some(Mac([2, 0, 0, 0, 1, how])),
            router: how & 0x40 != 0,
        };
        if how & 0x80 == 0 {
            self.relay.neighbour(&neighbour, &mut self.outbox);
        } else {
            self.relay.all_neighbours(&[neighbour], &mut self.outbox);
        }
        assert!(!self.relay.report(&self.outbox).to_string().is_empty());
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
                let ports = (0..count).map(|n| 0x9000 + u16::from(which >> 3) + u16::from(n));
                socket.waiting.extend(ports.map(|port| Waiting {
                    port,
                    ..datagram(u32::from(which) * u32::from(count))
                }));
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

/// A datagram of so many octets; large ones are several in one, at times.
fn datagram(octets: u32) -> Waiting {
    let len = octets.min(65_507);
    let segment = match octets >> 5 & 63 {
        n @ 1..=40 if len > 2000 => len / n,
        _ => 0,
    };
    Waiting {
        port: 0x9100,
        len: len as u16,
        segment: segment as u16,
        ttl: 60 + (octets & 3) as u8,
        tos: (octets & 7) as u8,
        stray: false,
    }
}
