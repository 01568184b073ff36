//! Echo requests, carried by ping sockets (icmp(7)): one for each identifier and destination. The kernel chooses an identifier
//! of its own on the wire; the guest's is put back into the replies.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use super::{
    errors::{Fault, Quote},
    flow::{ECHO_TIMEOUT, EchoFlow, Flow},
    request::Ready,
    state::Relay,
};
use crate::{
    flow::{self, Id, Key},
    host::socket::{self, Peer},
    link::{Inbox, Outbox, Slot},
    net::{Endpoint, Now, Protocol, Why},
    sys::{errqueue, msg},
    wire::{
        build::Ends,
        checksum::Sum,
        frame::{Ip, Message},
        headers::TTL,
        icmp::{Echo, echo_reply4, echo_reply6},
    },
};

/// Types of requests and replies (RFC 792; RFC 4443, section 4).
const REQUEST4: u8 = 8;
const REPLY4: u8 = 0;
const REQUEST6: u8 = 128;
const REPLY6: u8 = 129;

/// The protocol's number.
const ICMPV6: u8 = 58;

/// Octets of an echo message before its payload.
const HEADER: usize = 8;

/// Replies one flow may hand to the guest before it is another's turn.
const TURN: usize = 64;

impl Relay {
    /// An ICMP message of the guest that is not for a service.
    pub(super) fn icmp_message(
        &mut self,
        ip: &Ip,
        message: &Message,
        frame: Slot,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let request = if ip.src.is_ipv4() { REQUEST4 } else { REQUEST6 };
        if (message.kind, message.code) != (request, 0) {
            return Err(Why::IcmpType);
        }
        let octets = frame.part(&message.octets);
        let mut header = [0; HEADER];
        inbox.copy(octets.part(&(0..HEADER)), |bytes| {
            if let Some(start) = header.get_mut(..bytes.len()) {
                start.copy_from_slice(bytes);
            }
        });
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        let key = Key {
            protocol: Protocol::Echo,
            guest: ip.source(identifier),
            remote: ip.destination(identifier),
        };
        let id = match self.find(&key) {
            Some(id) => id,
            None => self.echo_open(key, now)?,
        };
        for _ in 0..2 {
            let Some(Flow::Echo(flow)) = self.flows.get_mut(id) else {
                return Err(Why::NoFlow);
            };
            flow.last = now;
            let mut gather = self.iovecs.gather();
            if !inbox.gather(octets, &mut gather) {
                return Err(Why::Malformed);
            }
            match msg::send(flow.socket.as_fd(), &gather) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Why::HostFull);
                }
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    return Err(Why::TooBig);
                }
                Err(_) => self.echo_errors(id, outbox),
            }
        }
        Err(Why::Socket)
    }

    fn echo_open(&mut self, key: Key, now: Now) -> Result<Id, Why> {
        self.check_source(key.guest.addr)?;
        let target = flow::outbound(&self.net, Protocol::Echo, key.remote)?;
        let endpoint = Endpoint::new(target.addr.addr, 0);
        let socket = match socket::echo(
            Peer {
                endpoint,
                scope: target.scope,
            },
            &self.net.outbound,
        ) {
            Ok(socket) => socket,
            Err(error) => {
                self.warn_echo(&error);
                return Err(Why::Socket);
            }
        };
        let raw = socket.as_raw_fd();
        let flow = EchoFlow {
            socket,
            last: now,
            readable: false,
            starved: false,
        };
        self.insert(key, Flow::Echo(flow), raw)
            .inspect(|&id| self.wheel.arm(id.slot, now + ECHO_TIMEOUT))
    }

    /// Says once how to let the guest ping.
    fn warn_echo(&mut self, error: &io::Error) {
        if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) && !self.echo_warned {
            self.echo_warned = true;
            log::warn!(
                "Cannot open \"ping\" socket: {error}. You might need to:\n    sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"\n\
                 ...echo requests/replies will fail."
            );
        }
    }

    pub(super) fn echo_ready(&mut self, id: Id, ready: Ready, outbox: &mut Outbox, now: Now) {
        if ready.error {
            self.echo_errors(id, outbox);
        }
        if let Some(Flow::Echo(flow)) = self.flows.get_mut(id) {
            flow.readable |= ready.readable;
        }
        self.echo_pull(id, outbox, now);
    }

    /// Hands waiting replies to the guest.
    pub(super) fn echo_pull(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        for _ in 0..TURN {
            let Some(Flow::Echo(flow)) = self.flows.get_mut(id) else {
                return;
            };
            if !flow.readable {
                return;
            }
            match msg::receive_into(flow.socket.as_fd(), &mut self.message) {
                Ok(len) => {
                    flow.last = now;
                    self.echo_reply(&key, len, outbox);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.readable = false,
                Err(_) => self.echo_errors(id, outbox),
            }
        }
        self.starve(id);
    }

    /// Hands the guest the reply that was received.
    fn echo_reply(&mut self, key: &Key, len: usize, outbox: &mut Outbox) {
        let message = self.message.get(..len).unwrap_or_default();
        let Some((&[kind, _, _, _, _, _, high, low], payload)) = message.split_first_chunk() else {
            return;
        };
        let echo = Echo {
            id: key.guest.port,
            seq: u16::from_be_bytes([high, low]),
            hops: TTL,
            payload,
        };
        let ends = Ends {
            src: self.net.mac,
            dst: self.guest_mac(),
        };
        let headers = match (kind, key.remote.addr, key.guest.addr) {
            (REPLY4, IpAddr::V4(remote), IpAddr::V4(guest)) => {
                echo_reply4(&mut self.scratch, ends, (remote, guest), echo);
                20
            }
            (REPLY6, IpAddr::V6(remote), IpAddr::V6(guest)) => {
                echo_reply6(&mut self.scratch, ends, (remote, guest), echo);
                40
            }
            _ => return,
        };
        let fits = headers + message.len() <= usize::from(self.net.mtu);
        let queued = if fits {
            outbox.copy(&self.scratch)
        } else {
            Err(Why::TooBig)
        };
        if let Err(why) = queued {
            self.drops.count(why);
        }
    }

    /// Tells the guest of errors its requests met.
    fn echo_errors(&mut self, id: Id, outbox: &mut Outbox) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        let Some(Flow::Echo(flow)) = self.flows.get_mut(id) else {
            return;
        };
        // What the queue returns is the message with the kernel's identifier.
        let mut upper = [0; 1280];
        if let Ok(error) = errqueue::take(flow.socket.as_fd(), &mut upper)
            && error.v6 == key.remote.addr.is_ipv6()
            && error.quoted >= HEADER
        {
            upper[4..6].copy_from_slice(&key.guest.port.to_be_bytes());
            // The kernel put its own identifier in: the sum over all of the message is the guest's again.
            let upper = upper.get_mut(..error.quoted).unwrap_or_default();
            restore_checksum(upper, &key);
            let quote = Quote {
                upper,
                len: error.quoted,
            };
            self.icmp_error(&key, Fault::of(&error), quote, outbox);
        }
        if let Some(Flow::Echo(flow)) = self.flows.get_mut(id) {
            let _ = socket::outcome(&flow.socket);
        }
    }
}

/// Computes the checksum of an echo request anew.
fn restore_checksum(message: &mut [u8], key: &Key) {
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    let pseudo = match key.remote.addr {
        IpAddr::V4(_) => Sum::new(),
        IpAddr::V6(_) => Sum::pseudo(key.guest.addr, key.remote.addr, ICMPV6, message.len()),
    };
    let sum = pseudo.bytes(message).finish();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}
