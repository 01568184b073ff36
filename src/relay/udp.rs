//! UDP, carried: each pair of endpoints has a connected socket of its own. [`udp_to_host`](super::udp_to_host) takes datagrams from
//! the guest to the host, [`udp_to_guest`](super::udp_to_guest) the other way.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::{
    errors::{Fault, QUOTED, Quote},
    flow::{Bound, Flow, Fresh, Packet, UdpFlow},
    request::Ready,
    state::Relay,
};
use crate::{
    flow::{Id, Key},
    host::{ends::Peer, socket},
    link::Outbox,
    net::{Endpoint, Now, Why},
    sys::errqueue,
    wire::build::UDP_LEN,
};

/// Octets of a UDP header.
pub const HEADER: usize = UDP_LEN;

/// Errors taken from a socket's queue at a time.
const ERRORS: usize = 16;

/// Sockets bound to one port of the host: the kernel goes through all of them to bind another, so that a guest which talks to
/// very many peers from one port would be slowed down, and everybody with it. What is more has a port of the kernel's choice.
const SHARING: u16 = 1024;

/// How often another port is asked for where the kernel has chosen one that another flow talks to the same peer from.
const DRAWS: usize = 4;

impl Relay {
    /// How many flows' sockets are bound to a port, as the guest is.
    fn sharing(&self, port: u16) -> u16 {
        self.sharing
            .get(usize::from(port))
            .copied()
            .unwrap_or_default()
    }

    /// A flow for the first datagram of a pair of endpoints.
    pub(super) fn udp_open(
        &mut self,
        key: Key,
        peer: Peer,
        packet: Packet,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<Id, Why> {
        let twin = self.flow_between(key.guest.port, peer.endpoint);
        if let Some(id) = self.take_over_visitor(twin, &key) {
            return Ok(id);
        }
        // At the guest's port, unless it would hear another flow's peer there.
        let bound = if twin.is_none() && self.sharing(key.guest.port) < SHARING {
            Bound::Guest
        } else {
            Bound::Elsewhere
        };
        let (socket, bound) = match self.udp_socket(&key, peer, bound, now) {
            Ok(opened) => opened,
            Err(error) => {
                self.make_do(&error);
                self.unreachable(&key, packet, &[], &error, outbox);
                return Err(Why::Socket);
            }
        };
        let is_bound = bound == Bound::Guest;
        if !is_bound {
            socket::receive_segments(&socket);
        }
        let flow = UdpFlow {
            bound,
            fresh: is_bound.then(|| Fresh::since(now)),
            ..UdpFlow::new(socket, now)
        };
        let timeout = self.udp_timeout(&flow);
        let id = self.insert(key, Flow::Udp(flow))?;
        self.wheel.arm(id.slot, now + timeout);
        Ok(id)
    }

    /// Opens the socket of a new flow, bound so if it can be.
    fn udp_socket(
        &mut self,
        key: &Key,
        peer: Peer,
        mut bound: Bound,
        now: Now,
    ) -> io::Result<(OwnedFd, Bound)> {
        let mut draws = 0..DRAWS;
        loop {
            let port = match bound {
                Bound::Guest => key.guest.port,
                Bound::Forwarded { .. } | Bound::Elsewhere => 0,
            };
            let beside = port != 0 && self.ports.takes_udp(port);
            let socket = self.open_socket(key, now, |net| {
                socket::udp(peer, &net.outbound, port, beside)
            })?;
            // Ports that are shared are the kernel's to choose like others.
            let own = socket::local(&socket).map(Endpoint::from);
            let number = own.map_or(0, |own| own.port);
            let is_free = number == port || self.flow_between(number, peer.endpoint).is_none();
            if is_free && own != Some(peer.endpoint) || draws.next().is_none() {
                return Ok((socket, bound));
            }
            bound = Bound::Elsewhere;
        }
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

    /// Tells the guest of errors its datagrams met.
    pub(super) fn udp_errors(&mut self, id: Id, outbox: &mut Outbox) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        for taken in 0..ERRORS {
            let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
                return;
            };
            let mut upper = [0; HEADER + QUOTED];
            let Ok(error) = errqueue::take(flow.socket.as_fd(), &mut upper[HEADER..]) else {
                // An error that is pending outside the queue would be reported for ever; taking one from the queue clears its own.
                if taken == 0 {
                    let _ = socket::outcome(&flow.socket);
                }
                return;
            };
            if error.v6 != key.remote.addr.is_ipv6() {
                continue;
            }
            let known = HEADER + error.quoted;
            let start = upper.get(HEADER..known.min(HEADER + 4)).unwrap_or_default();
            let packet = flow.sent.at_fault(start, known, !error.v6);
            let known = known.min(usize::from(packet.len));
            let upper = upper.get_mut(..known).unwrap_or_default();
            self.udp_fault(&key, Fault::of(&error), packet, upper, outbox);
        }
    }

    /// A datagram that cannot be sent: unreachable, if that is why.
    pub(super) fn unreachable(
        &mut self,
        key: &Key,
        packet: Packet,
        payload: &[u8],
        error: &io::Error,
        outbox: &mut Outbox,
    ) {
        if let Some(fault) = Fault::of_send(key.guest.addr.is_ipv4(), error) {
            self.udp_fault_about(key, fault, packet, payload, outbox);
        }
    }

    /// Tells of an error about a datagram whose payload starts with `payload`.
    pub(super) fn udp_fault_about(
        &mut self,
        key: &Key,
        fault: Fault,
        packet: Packet,
        payload: &[u8],
        outbox: &mut Outbox,
    ) {
        let mut upper = [0; HEADER + QUOTED];
        let len = payload.len().min(QUOTED);
        upper[HEADER..HEADER + len].copy_from_slice(&payload[..len]);
        self.udp_fault(key, fault, packet, &mut upper[..HEADER + len], outbox);
    }

    /// Tells of an error; `upper` has room for the UDP header in front of the payload.
    fn udp_fault(
        &mut self,
        key: &Key,
        fault: Fault,
        packet: Packet,
        upper: &mut [u8],
        outbox: &mut Outbox,
    ) {
        let fields = [key.guest.port, key.remote.port, packet.len, packet.checksum];
        for (octets, field) in upper.chunks_exact_mut(2).zip(fields) {
            octets.copy_from_slice(&field.to_be_bytes());
        }
        let quote = Quote {
            id: packet.id,
            manner: packet.manner,
            upper,
            len: usize::from(packet.len),
        };
        self.icmp_error(key, fault, quote, outbox);
    }
}
