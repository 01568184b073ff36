//! Echo requests, carried by ping sockets (icmp(7)): one for each identifier and destination. The kernel chooses an identifier
//! of its own on the wire; the guest's is put back into the replies.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsFd,
};

use super::{
    errors::{Fault, QUOTED, Quote},
    flow::{ECHO_TIMEOUT, EchoFlow, Flow, Packet, Sent},
    kinds::is_error,
    request::Ready,
    state::{FAILURES, Relay},
};
use crate::{
    flow::{Id, Key},
    host::{
        ends::Peer,
        socket::{self, Manner},
    },
    link::{Inbox, Outbox, Slot},
    net::{
        Now, Protocol, Why,
        number::{ICMP, ICMPV6},
    },
    sys::{
        errqueue, is_shortage,
        msg::{self, RECEIVE_MANY, Received},
        reason, sockopt,
    },
    wire::{
        build::ip_len,
        frame::{IcmpMessage, Ip},
        icmp::renumber,
        quote,
    },
};

/// Types of requests and replies (RFC 792; RFC 4443, section 4).
const REQUEST4: u8 = 8;
const REPLY4: u8 = 0;
const REQUEST6: u8 = 128;
const REPLY6: u8 = 129;

/// Octets of an echo message before its payload.
const HEADER: usize = 8;

/// Replies one flow may hand to the guest before it is another's turn.
const TURN: usize = 64;

impl Relay {
    /// An ICMP message of the guest that is not for a service.
    pub(super) fn icmp_message(
        &mut self,
        ip: &Ip,
        message: &IcmpMessage,
        frame: Slot,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let v4 = ip.src.is_ipv4();
        let octets = frame.part(&message.octets);
        if is_error(v4, message.kind) {
            let mut start = [0; quote::START];
            let len = inbox.copy_start(octets, &mut start);
            // What the guest sent before may belong to the flow that ends.
            self.send_run(inbox, outbox);
            let start = start.get(..len).unwrap_or_default();
            let what = (message.kind, message.code);
            self.guest_error(v4, what, start);
            return Ok(());
        }
        let request = if v4 { REQUEST4 } else { REQUEST6 };
        if (message.kind, message.code) != (request, 0) {
            return Err(Why::IcmpType);
        }
        let mut header = [0; HEADER];
        inbox.copy_start(octets, &mut header);
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        let key = Key {
            protocol: Protocol::Echo,
            guest: ip.source(identifier),
            remote: ip.destination(identifier),
        };
        let packet = Packet {
            id: ip.id,
            manner: Manner::of(ip),
            len: octets.len() as u16,
            checksum: 0,
            start: [header[6], header[7], 0, 0],
        };
        let id = match self.find(&key) {
            Some(id) => id,
            None => {
                let peer = self.begin_toward(&key, now)?;
                match self.echo_open(key, peer, now)? {
                    Ok(id) => id,
                    Err(fault) => {
                        self.echo_refused(&key, fault, packet, octets, inbox, outbox);
                        return Err(Why::Socket);
                    }
                }
            }
        };
        self.echo_send(id, &key, packet, octets, inbox, outbox, now)
    }

    /// Sends a request; if an error waited in the socket, once more behind it.
    #[expect(clippy::too_many_arguments, reason = "a frame and what it may cause")]
    fn echo_send(
        &mut self,
        id: Id,
        key: &Key,
        packet: Packet,
        octets: Slot,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        self.census.touch(id.slot);
        let v4 = key.remote.addr.is_ipv4();
        for again in [false, true] {
            let Some(Flow::Echo(flow)) = self.flows.get_mut(id) else {
                return Err(Why::Gone);
            };
            flow.last = now;
            flow.sent.note(packet);
            socket::set_manner(&flow.socket, !v4, &mut flow.manner, packet.manner);
            let mut gather = self.iovecs.gather();
            if !inbox.gather(octets, &mut gather) {
                return Err(Why::Malformed);
            }
            match msg::send(flow.socket.as_fd(), &gather) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Why::HostFull);
                }
                Err(error) => {
                    let fault = match self.echo_fault(id, v4, octets.len(), &error) {
                        None if again => Fault::of_send(v4, &error),
                        fault => fault,
                    };
                    let Some(fault) = fault else {
                        self.echo_errors(id, outbox);
                        continue;
                    };
                    self.echo_refused(key, fault, packet, octets, inbox, outbox);
                    return Err(Why::Unsent);
                }
            }
        }
        Err(Why::Unsent)
    }

    /// Tells the guest of a request that was not sent.
    fn echo_refused(
        &mut self,
        key: &Key,
        fault: Fault,
        packet: Packet,
        octets: Slot,
        inbox: &Inbox,
        outbox: &mut Outbox,
    ) {
        let mut upper = [0; QUOTED];
        let len = inbox.copy_start(octets, &mut upper);
        let upper = upper.get(..len).unwrap_or_default();
        let quote = Quote {
            id: packet.id,
            manner: packet.manner,
            upper,
            len: octets.len(),
        };
        self.icmp_error(key, fault, quote, outbox);
    }

    /// What the guest is told of a request that was too big; `None` if the error may be an earlier one's, which is in the
    /// socket's queue.
    fn echo_fault(&self, id: Id, v4: bool, len: usize, error: &io::Error) -> Option<Fault> {
        let Some(Flow::Echo(flow)) = self.flows.get(id) else {
            return None;
        };
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            let mtu = sockopt::mtu(flow.socket.as_fd(), !v4).ok()?;
            return (len + ip_len(v4) > mtu as usize).then(|| Fault::too_big(v4, mtu));
        }
        None
    }

    /// A flow for the first request of an identifier, or what the guest is told where there is no way.
    fn echo_open(&mut self, key: Key, mut peer: Peer, now: Now) -> Result<Result<Id, Fault>, Why> {
        // The kernel's identifier is its own.
        peer.endpoint.port = 0;
        let socket = match self.open_socket(&key, now, |net| socket::echo(peer, &net.outbound)) {
            Ok(socket) => socket,
            Err(error) => {
                self.make_do(&error);
                self.warn_echo(&error);
                let fault = Fault::of_send(key.guest.addr.is_ipv4(), &error);
                return fault.map(Err).ok_or(Why::Socket);
            }
        };
        let flow = EchoFlow {
            socket,
            last: now,
            sent: Sent::default(),
            manner: None,
            readable: false,
            starved: false,
        };
        self.insert(key, Flow::Echo(flow))
            .inspect(|&id| self.wheel.arm(id.slot, now + ECHO_TIMEOUT))
            .map(Ok)
    }

    /// Says once how to let the guest ping. That it may not ping one peer (a route that prohibits it) is nothing to be told.
    fn warn_echo(&mut self, error: &io::Error) {
        let refused = matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM));
        if refused && !self.echo_warned && !socket::may_echo() {
            self.echo_warned = true;
            log::warn!(
                "Cannot open \"ping\" socket: {}. You might need to:\n    sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"\n\
                 ...echo requests/replies will fail.",
                reason(error)
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
        let mut failures = 0;
        for _ in 0..TURN {
            if !matches!(self.flows.get(id), Some(Flow::Echo(flow)) if flow.readable) {
                return;
            }
            // What the guest has no room for stays in the socket.
            if !self.has_room_for_packet(key.remote.addr.is_ipv4(), outbox) {
                break;
            }
            let Some(Flow::Echo(flow)) = self.flows.get_mut(id) else {
                return;
            };
            let mut received = [Received::default(); RECEIVE_MANY];
            let mut scatter = self.iovecs.scatter();
            if !scatter.push(&mut self.message) {
                return;
            }
            match msg::receive_many(flow.socket.as_fd(), &mut scatter, &mut received) {
                Ok(_) => {
                    flow.last = now;
                    self.census.touch(id.slot);
                    self.echo_reply(&key, received[0], outbox);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.readable = false,
                Err(error) if is_shortage(&error) || failures == FAILURES => {
                    return self.rest(id, now);
                }
                Err(_) => {
                    failures += 1;
                    self.echo_errors(id, outbox);
                }
            }
        }
        self.starve(id);
    }

    /// Hands the guest the reply that was received.
    fn echo_reply(&mut self, key: &Key, received: Received, outbox: &mut Outbox) {
        let Received { len, marks } = received;
        let v4 = key.remote.addr.is_ipv4();
        let message = self.message.get_mut(..len).unwrap_or_default();
        let wanted = if v4 { REPLY4 } else { REPLY6 };
        if len < HEADER || message.first() != Some(&wanted) {
            return;
        }
        renumber(
            message,
            key.guest.port,
            pseudo(key.remote.addr, key.guest.addr),
        );
        let protocol = if v4 { ICMP } else { ICMPV6 };
        self.hand_over(key, self.ends(key), protocol, len, marks, outbox);
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
        let mut upper = [0; QUOTED];
        if let Ok(error) = errqueue::take(flow.socket.as_fd(), &mut upper)
            && error.v6 == key.remote.addr.is_ipv6()
            && let Some(upper) = upper
                .get_mut(..error.quoted)
                .filter(|upper| upper.len() >= HEADER)
        {
            let start = [upper[6], upper[7]];
            let packet = flow.sent.at_fault(&start, upper.len(), !error.v6);
            let known = upper.len().min(usize::from(packet.len));
            let upper = upper.get_mut(..known).unwrap_or_default();
            // Over all of the message the sum is the guest's again.
            renumber(
                upper,
                key.guest.port,
                pseudo(key.guest.addr, key.remote.addr),
            );
            let quote = Quote {
                id: packet.id,
                manner: packet.manner,
                upper,
                len: usize::from(packet.len),
            };
            self.icmp_error(&key, Fault::of(&error), quote, outbox);
        }
        if let Some(Flow::Echo(flow)) = self.flows.get_mut(id) {
            let _ = socket::outcome(&flow.socket);
        }
    }
}

/// The addresses that count for an ICMPv6 checksum.
const fn pseudo(src: IpAddr, dst: IpAddr) -> Option<(Ipv6Addr, Ipv6Addr)> {
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => Some((src, dst)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// Replies that wait, and octets of a frame that is none.
    const REPLIES: usize = 8;
    const OTHER: usize = 54;

    /// Where a frame tells what an IPv4 packet carries.
    const PROTOCOL: usize = 23;

    /// A flow over this socket, which has something to read.
    fn flow(relay: &mut Relay, socket: UnixDatagram) -> Id {
        let flow = EchoFlow {
            socket: socket.into(),
            last: Now(0),
            sent: Sent::default(),
            manner: None,
            readable: true,
            starved: false,
        };
        let key = fixture::key(Protocol::Echo, 7);
        relay.insert(key, Flow::Echo(flow)).unwrap()
    }

    /// How many replies of so many octets the guest gets that reads only after `fill` has filled the link.
    fn replies(len: usize, fill: impl Fn(&mut Outbox)) -> usize {
        let (mut outbox, mut guest) = fixture::link();
        fill(&mut outbox);
        let (kernel, socket) = UnixDatagram::pair().unwrap();
        for number in 0..REPLIES {
            let mut reply = vec![0; len];
            reply[..HEADER].copy_from_slice(&[REPLY4, 0, 0, 0, 0, 7, 0, number as u8]);
            kernel.send(&reply).unwrap();
        }
        let mut relay = fixture::relay(16);
        let id = flow(&mut relay, socket);
        relay.echo_pull(id, &mut outbox, Now(1));
        for now in 2..=2 + REPLIES as u64 {
            guest.read_all(&mut outbox);
            relay.begin_turn(Now(now));
            relay.resume(&mut outbox, Now(now));
        }
        let frames = guest.frames(outbox);
        frames
            .iter()
            .filter(|frame| frame[PROTOCOL] == ICMP)
            .count()
    }

    #[test]
    fn replies_stay_in_the_socket_while_the_link_is_full() {
        let full = |outbox: &mut Outbox| {
            while outbox.has_room() {
                outbox.bare(|_| OTHER).unwrap();
            }
        };
        assert_eq!(replies(HEADER, full), REPLIES);
    }

    /// There are frames enough, but no memory.
    #[test]
    fn large_replies_stay_in_the_socket_while_the_link_has_no_room_for_them() {
        let nearly = |outbox: &mut Outbox| while outbox.copy(&[0; 20_000]).is_ok() {};
        assert_eq!(replies(20_001, nearly), REPLIES);
    }
}
