//! UDP, carried: each pair of endpoints has a connected socket of its own.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use super::{
    errors::{Fault, Quote},
    flow::{Flow, UdpFlow},
    request::Ready,
    state::Relay,
};
use crate::{
    flow::{self, Id, Key},
    host::socket::{self, Peer},
    link::{Flushed, Inbox, Outbox, Slot},
    net::{Now, Protocol, Why},
    sys::{Iovecs, errqueue, msg},
    wire::frame::{Datagram, Ip},
};

/// The largest payload of a datagram, in octets.
const LARGEST: usize = 65_535;

/// Datagrams one flow may hand to the guest before it is another's turn.
const TURN: usize = 64;

/// Errors taken from a socket's queue at a time.
const ERRORS: usize = 16;

/// Octets of a datagram at fault that are quoted: the least of an IPv6 error's room.
const QUOTED: usize = 1280;

impl Relay {
    /// A datagram from the guest; `frame` is where it lies.
    pub(super) fn udp_datagram(
        &mut self,
        ip: &Ip,
        datagram: &Datagram,
        frame: Slot,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let key = Key {
            protocol: Protocol::Udp,
            guest: ip.source(datagram.src_port),
            remote: ip.destination(datagram.dst_port),
        };
        let payload = frame.part(&datagram.payload);
        let id = match self.find(&key) {
            Some(id) => id,
            None => self.udp_open(key, datagram, outbox, now)?,
        };
        // An error of an earlier datagram is reported by the next call and clears with it (udp(7)): then once more.
        for _ in 0..2 {
            let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
                return Err(Why::NoFlow);
            };
            flow.last = now;
            flow.header = (datagram.len, datagram.checksum);
            flow.seen.0 = flow.seen.0.saturating_add(1).min(2);
            match send(&mut self.iovecs, flow.socket.as_fd(), inbox, payload) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Why::HostFull);
                }
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    return Err(Why::TooBig);
                }
                Err(_) => self.udp_errors(id, outbox),
            }
        }
        Err(Why::Socket)
    }

    fn udp_open(
        &mut self,
        key: Key,
        datagram: &Datagram,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<Id, Why> {
        self.check_source(key.guest.addr)?;
        let target = flow::outbound(&self.net, Protocol::Udp, key.remote)?;
        if key.guest.port == 0 {
            return Err(Why::PortZero);
        }
        let peer = Peer {
            endpoint: target.addr,
            scope: target.scope,
        };
        let socket = match socket::udp(peer, &self.net.outbound, key.guest.port) {
            Ok(socket) => socket,
            Err(error) => {
                self.unreachable(&key, datagram, &error, outbox);
                return Err(Why::Socket);
            }
        };
        let raw = socket.as_raw_fd();
        let flow = UdpFlow {
            socket,
            last: now,
            seen: (0, 0),
            header: (0, 0),
            readable: false,
            starved: false,
            waits: false,
        };
        let timeout = flow.timeout();
        self.insert(key, Flow::Udp(flow), raw)
            .inspect(|&id| self.wheel.arm(id.slot, now + timeout))
    }

    pub(super) fn udp_ready(&mut self, id: Id, ready: Ready, outbox: &mut Outbox, now: Now) {
        if ready.error {
            self.udp_errors(id, outbox);
        }
        if let Some(Flow::Udp(flow)) = self.flows.get_mut(id) {
            flow.readable |= ready.readable;
        }
        self.udp_pull(id, outbox, now);
    }

    /// Hands waiting datagrams to the guest.
    pub(super) fn udp_pull(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        if !self.deliver_held(id, outbox) {
            return;
        }
        let template = self.template(&key);
        let largest = usize::from(self.net.mtu).saturating_sub(template.udp_overhead());
        for _ in 0..TURN {
            let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
                return;
            };
            if !flow.readable {
                return;
            }
            let room = match outbox.reserve(LARGEST, LARGEST) {
                None if outbox.flush() == Flushed::Done && outbox.has_guest() => {
                    outbox.reserve(LARGEST, LARGEST)
                }
                room => room,
            };
            let Some(room) = room else {
                return self.starve(id);
            };
            let mut scatter = self.iovecs.scatter();
            if !outbox.scatter(&room, &mut scatter) {
                return;
            }
            match msg::receive(flow.socket.as_fd(), &mut scatter) {
                Ok(octets) if octets > largest => self.drops.count(Why::TooBig),
                Ok(octets) => {
                    flow.last = now;
                    flow.seen.1 = flow.seen.1.saturating_add(1).min(2);
                    outbox.commit(room, octets, LARGEST, |piece, headers| {
                        template.udp(headers, piece.len, piece.sum)
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    flow.readable = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.udp_errors(id, outbox),
            }
        }
        self.starve(id);
    }

    /// Tells the guest of errors its datagrams met.
    fn udp_errors(&mut self, id: Id, outbox: &mut Outbox) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        for _ in 0..ERRORS {
            let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
                return;
            };
            let mut upper = [0; 8 + QUOTED];
            let Ok(error) = errqueue::take(flow.socket.as_fd(), &mut upper[8..]) else {
                // Whatever is pending besides the queue would be reported for ever.
                let _ = socket::outcome(&flow.socket);
                return;
            };
            if error.v6 != key.remote.addr.is_ipv6() {
                continue;
            }
            let known = 8 + error.quoted;
            let (len, checksum) = flow.header;
            // Of a datagram before the last, length and checksum are known only as far as all of it came back.
            let (len, checksum) = if known <= usize::from(len) {
                (len, checksum)
            } else {
                (known as u16, 0)
            };
            let upper = upper.get_mut(..known).unwrap_or_default();
            write_header(upper, &key, len, checksum);
            let len = usize::from(len);
            let quote = Quote { upper, len };
            self.icmp_error(&key, Fault::of(&error), quote, outbox);
        }
    }

    /// A datagram for which no socket could be had: unreachable, if that is why.
    fn unreachable(
        &mut self,
        key: &Key,
        datagram: &Datagram,
        error: &io::Error,
        outbox: &mut Outbox,
    ) {
        let (code4, code6) = match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::ENETDOWN) => (0, 0),
            Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => (1, 3),
            _ => return,
        };
        let mut upper = [0; 8];
        write_header(&mut upper, key, datagram.len, datagram.checksum);
        let fault = Fault::unreachable(key.guest.addr.is_ipv4(), code4, code6);
        let quote = Quote {
            upper: &upper,
            len: usize::from(datagram.len),
        };
        self.icmp_error(key, fault, quote, outbox);
    }
}

/// Writes the UDP header of a datagram of the guest.
fn write_header(upper: &mut [u8], key: &Key, len: u16, checksum: u16) {
    let fields = [key.guest.port, key.remote.port, len, checksum];
    for (octets, field) in upper.chunks_exact_mut(2).zip(fields) {
        octets.copy_from_slice(&field.to_be_bytes());
    }
}

fn send(
    iovecs: &mut Iovecs,
    socket: BorrowedFd<'_>,
    inbox: &Inbox,
    payload: Slot,
) -> io::Result<usize> {
    let mut gather = iovecs.gather();
    if !inbox.gather(payload, &mut gather) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    msg::send(socket, &gather)
}
