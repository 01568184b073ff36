//! What comes to the forwarded ports of the host: connections, and the first datagrams of new clients.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::RawFd,
};

use super::{
    flow::{Bound, Flow, Fresh, UdpFlow},
    state::{FAILURES, Relay, STRAYS},
    udp_to_guest,
};
use crate::{
    flow::{self, Chain, ClaimSlot, Id, Key},
    host::{
        listen::{Forward, Ports},
        socket::{self, Arrival},
    },
    link::Outbox,
    net::{Endpoint, Now, Protocol, Span, Why},
    proto::tcp::SynRetries,
    sys::{Marks, is_shortage},
};

/// Connections or datagrams taken from one port before it is another's turn.
const TURN: usize = 16;

/// How long a port rests whose next connection the system has no descriptor for.
const REST: Span = Span::millis(500);

/// Ports tried where two peers look the same to the guest.
const TRIES: u16 = 64;

/// What one look at a port brought.
enum Taken {
    One,
    /// Nothing waits.
    Empty,
    /// The call failed, which took nothing or what was broken.
    Failed,
    /// The system has no descriptor or memory for it.
    Exhausted,
}

impl Relay {
    /// Takes over the forwarded ports.
    pub fn forward(&mut self, ports: Ports, syn_retries: SynRetries) {
        self.ports = ports;
        self.syn_retries = syn_retries;
    }

    /// The forwarded ports' sockets, to be watched under their places.
    pub fn forwarded(&self) -> impl Iterator<Item = (u32, RawFd)> + '_ {
        self.ports.sockets()
    }

    /// Something waits at a forwarded port.
    pub fn knock(&mut self, place: u32) {
        if self.ports.queue(place) {
            self.knocks.push_back(place);
        }
    }

    /// Answers the knocks, each port for one turn. `true` if some still wait.
    pub(super) fn answer_knocks(&mut self, outbox: &mut Outbox, now: Now) -> bool {
        for _ in 0..self.knocks.len() {
            if self.looks == 0 || !outbox.has_room() {
                break;
            }
            self.looks -= 1;
            let Some(place) = self.knocks.pop_front() else {
                break;
            };
            match self.answer_knock(place, outbox, now) {
                Taken::One | Taken::Failed => self.knocks.push_back(place),
                Taken::Empty => self.ports.unqueue(place),
                Taken::Exhausted => {
                    self.resting.push(place);
                    self.rested.get_or_insert(now + REST);
                }
            }
        }
        !self.knocks.is_empty()
    }

    /// Lets a datagram flow rest whose socket cannot be read for now.
    pub(super) fn rest(&mut self, id: Id, now: Now) {
        let flow = self.flows.get_mut(id);
        if flow.is_some_and(|flow| !std::mem::replace(flow.starved(), true)) {
            self.weary.push(id);
            self.rested.get_or_insert(now + REST);
        }
    }

    /// Has the ports and flows that rested tried again.
    pub(super) fn wake_rested(&mut self, now: Now) {
        if self.rested.is_some_and(|at| at <= now) {
            self.rested = None;
            self.knocks.extend(self.resting.drain(..));
            self.starved.extend(self.weary.drain(..));
        }
    }

    fn answer_knock(&mut self, place: u32, outbox: &mut Outbox, now: Now) -> Taken {
        let mut failures = 0;
        for _ in 0..TURN {
            match self.take_one(place, outbox, now) {
                Taken::One => {}
                Taken::Failed => failures += 1,
                other => return other,
            }
        }
        // What fails every time would keep us busy for ever.
        if failures < TURN {
            Taken::One
        } else {
            Taken::Exhausted
        }
    }

    fn take_one(&mut self, place: u32, outbox: &mut Outbox, now: Now) -> Taken {
        let Some((socket, forward)) = self.ports.get(place) else {
            return Taken::Empty;
        };
        let taken = match forward.protocol {
            Protocol::Tcp => match socket::accept(socket) {
                Ok((socket, peer)) => Ok(self.tcp_accepted(socket, peer, forward, outbox, now)),
                Err(error) => Err(error),
            },
            Protocol::Udp => match socket::receive_from(socket, &mut self.message) {
                Ok(arrival) => Ok(self.udp_arrived(place, forward, arrival, outbox, now)),
                Err(error) => Err(error),
            },
            Protocol::Echo => return Taken::Empty,
        };
        match taken {
            Ok(Ok(())) => Taken::One,
            Ok(Err(why)) => {
                self.count(why);
                Taken::One
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Taken::Empty,
            Err(error) if is_shortage(&error) => {
                self.make_do(&error);
                Taken::Exhausted
            }
            // accept(2): errors of the connection itself, which is gone; recvmsg(2): of an earlier reply.
            Err(_) => Taken::Failed,
        }
    }

    /// The key of a flow from outside: the peer's address as the guest is to see it, and its port where that is free.
    ///
    /// # Errors
    /// [`Why::Disabled`] where the peer's family is off, and [`Why::PortZero`].
    pub(super) fn peer_key(
        &self,
        protocol: Protocol,
        guest: Endpoint,
        peer: SocketAddr,
    ) -> Result<Key, Why> {
        let addr = flow::inbound_source(&self.net, peer.ip(), &self.guest).ok_or(Why::Disabled)?;
        if guest.port == 0 || peer.port() == 0 {
            return Err(Why::PortZero);
        }
        if addr.is_ipv4() != guest.addr.is_ipv4() {
            return Err(Why::Disabled);
        }
        Ok(Key {
            protocol,
            guest,
            remote: Endpoint::new(addr, peer.port()),
        })
    }

    /// This key, or one like it that no flow has which is not `theirs`, and that can be this relay's. It counts on the slot, if
    /// there is one, until it has been looked at.
    ///
    /// # Errors
    /// [`Why::Alike`] where too many peers look the same.
    pub(super) fn free_key(
        &self,
        first: Key,
        theirs: impl Fn(&UdpFlow) -> bool,
    ) -> Result<(Key, Option<ClaimSlot>), Why> {
        let port = first.remote.port;
        // Two peers behind one address, as all of the host's loopback is, or one that asks at two addresses or ports of the
        // host: another port tells them apart.
        let others = (1..TRIES).map(|n| port.wrapping_add(n.wrapping_mul(977)) | 0x8000);
        std::iter::once(port)
            .chain(others)
            .map(|port| Key {
                remote: Endpoint::new(first.remote.addr, port),
                ..first
            })
            .filter(|key| {
                let known = self.flows.find(key).and_then(|id| self.flows.get(id));
                known.is_none_or(|flow| matches!(flow, Flow::Udp(flow) if theirs(flow)))
            })
            .find_map(|key| self.claim(&key).map(|slot| (key, slot)))
            .ok_or(Why::Alike)
    }

    /// A datagram that no flow's own socket took; its payload is in `message`.
    fn udp_arrived(
        &mut self,
        place: u32,
        forward: Forward,
        arrival: Arrival,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let (id, fresh) = self.udp_flow_of(place, forward, arrival, now)?;
        self.hold(id, arrival.len, arrival.marks);
        if fresh {
            self.sort_strays(id, outbox, now);
        } else {
            self.udp_pull(id, outbox, now);
        }
        Ok(())
    }

    /// The flow of a datagram from outside, made if there is none: the flag tells.
    fn udp_flow_of(
        &mut self,
        place: u32,
        forward: Forward,
        arrival: Arrival,
        now: Now,
    ) -> Result<(Id, bool), Why> {
        let peer = arrival.from;
        let addr = forward
            .target
            .or_else(|| self.guest.address_for(peer.ip()))
            .ok_or(Why::NoGuest)?;
        let first = self.peer_key(Protocol::Udp, Endpoint::new(addr, forward.guest), peer)?;
        // The guest's ends of these ports are the first relay's, without slots.
        let (key, _) = self.free_key(first, |flow| is_of(flow, arrival, forward.host))?;
        if let Some(id) = self.flows.find(&key) {
            return Ok((id, false));
        }
        self.admit_visitor(forward.host, key.remote.addr, now)?;
        self.admit_peer(key.remote.addr)?;
        let any = || match peer {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut local = arrival.to.unwrap_or_else(any);
        local.set_port(forward.host);
        let interface = self.ports.interface(place);
        let socket =
            socket::udp_reply(local, peer, interface, self.ports.freebind()).map_err(|error| {
                self.make_do(&error);
                Why::Socket
            })?;
        let known = self.guest.is_at(addr);
        let flow = UdpFlow {
            seen: (0, 1),
            waits: !known,
            bound: Bound::Forwarded {
                port: forward.host,
                place,
            },
            fresh: Some(Fresh::since(now)),
            ..UdpFlow::new(socket, now)
        };
        let timeout = self.udp_timeout(&flow);
        let id = self.insert_inbound(key, Flow::Udp(flow))?;
        self.wheel.arm(id.slot, now + timeout);
        if !known {
            let visitor = forward.target.is_none().then(|| peer.ip());
            self.wait_for_guest(id, visitor, now);
        }
        Ok((id, true))
    }

    /// Hands over what a new flow's socket holds, some of which may be of others: that goes to flows of their own, as the
    /// forwarded port that takes what they sent would give them.
    pub(super) fn sort_strays(&mut self, first: Id, outbox: &mut Outbox, now: Now) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.push(first);
        for _ in 0..STRAYS {
            let Some(&id) = fresh.last() else { break };
            match self.sort_until_new(id, outbox, now) {
                Some(new) => fresh.push(new),
                None => _ = fresh.pop(),
            }
        }
        // The others have their turn later.
        for id in fresh.drain(..) {
            self.starve(id);
        }
        self.fresh = fresh;
    }

    /// The same of one socket, until something comes that takes a new flow, which is returned.
    fn sort_until_new(&mut self, id: Id, outbox: &mut Outbox, now: Now) -> Option<Id> {
        let key = self.flows.key(id)?;
        let ends = match self.flows.get(id)? {
            Flow::Udp(flow) => socket::ends(&flow.socket)?,
            Flow::Tcp(_) | Flow::Echo(_) | Flow::Group(_) => return None,
        };
        let mut failures = 0;
        for _ in 0..STRAYS {
            if !self.deliver_held(id, outbox) {
                return None;
            }
            // What the guest has no room for stays in the socket.
            if !self.has_room_for_packet(key.remote.addr.is_ipv4(), outbox) {
                break;
            }
            let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
                return None;
            };
            if !may_be_stray(flow, now) {
                break;
            }
            match socket::receive_from(&flow.socket, &mut self.message) {
                Ok(arrival) if arrival.from == ends.1 => {
                    flow.heard_host(now);
                    self.census.touch(id.slot);
                    self.pass_on(&key, arrival, outbox);
                }
                Ok(mut arrival) => {
                    // Whatever is beside a forwarded port is bound to the very address.
                    arrival.to = Some(ends.0);
                    let place = match flow.bound {
                        Bound::Forwarded { place, .. } => Some(place),
                        // One that the guest has opened is not held to an interface.
                        bound => self.ports.udp_place(ends.0, bound != Bound::Guest),
                    };
                    let new = self.take_stray(place, arrival, outbox, now);
                    if new.is_some() {
                        return new;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    flow.readable = false;
                    found_empty(flow, now);
                    return None;
                }
                Err(error) if is_shortage(&error) || failures == FAILURES => {
                    self.rest(id, now);
                    return None;
                }
                Err(_) => {
                    failures += 1;
                    self.udp_errors(id, outbox);
                }
            }
        }
        self.starve(id);
        None
    }

    /// Gives the datagram in `self.message` to the flow whose it is; one that begins by it is returned.
    fn take_stray(
        &mut self,
        place: Option<u32>,
        arrival: Arrival,
        outbox: &mut Outbox,
        now: Now,
    ) -> Option<Id> {
        match self.stray_flow(place, arrival, now) {
            Ok((owner, is_new)) => {
                self.hold(owner, arrival.len, arrival.marks);
                // No event tells of what its socket does not hold.
                self.deliver_held(owner, outbox);
                is_new.then_some(owner)
            }
            Err(why) => {
                self.count(why);
                None
            }
        }
    }

    /// Hands the guest a datagram of the flow in whose socket it was.
    fn pass_on(&mut self, key: &Key, arrival: Arrival, outbox: &mut Outbox) {
        let payload = self.message.get(..arrival.len).unwrap_or_default();
        self.scratch.clear();
        self.scratch.extend_from_slice(payload);
        self.udp_scratch(key, arrival.marks, outbox);
    }

    /// The flow of a datagram that another's socket has caught.
    fn stray_flow(
        &mut self,
        place: Option<u32>,
        arrival: Arrival,
        now: Now,
    ) -> Result<(Id, bool), Why> {
        let place = place.ok_or(Why::NotForUs)?;
        let (_, forward) = self.ports.get(place).ok_or(Why::NotForUs)?;
        self.udp_flow_of(place, forward, arrival, now)
    }

    /// Sends the guest a datagram that was held.
    pub(super) fn udp_held(&mut self, id: Id, chain: &Chain, marks: Marks, outbox: &mut Outbox) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        self.scratch.clear();
        for piece in self.pool.pieces(chain) {
            self.scratch.extend_from_slice(piece);
        }
        self.udp_scratch(&key, marks, outbox);
    }

    /// Sends the guest a datagram whose payload is in `scratch`.
    fn udp_scratch(&mut self, key: &Key, marks: Marks, outbox: &mut Outbox) {
        self.doubt_moved(key.guest.addr);
        let len = udp_to_guest::datagram(&mut self.message, key, &self.scratch);
        self.udp_packet(key, len, marks, outbox);
    }
}

/// Whether a datagram is of this flow's peer, and came to the address and port that the flow's answers leave from.
fn is_of(flow: &UdpFlow, arrival: Arrival, port: u16) -> bool {
    socket::ends(&flow.socket).is_some_and(|(local, peer)| {
        let came_there = |to: SocketAddr| to.ip().is_unspecified() || to.ip() == local.ip();
        (peer, local.port()) == (arrival.from, port) && arrival.to.is_none_or(came_there)
    })
}

/// Whether the next datagram in a flow's socket may be another's.
fn may_be_stray(flow: &mut UdpFlow, now: Now) -> bool {
    let most = || socket::most_held(&flow.socket);
    let fresh = flow.fresh.and_then(|fresh| fresh.next(now, most));
    set_fresh(flow, fresh)
}

/// A flow's socket is empty.
fn found_empty(flow: &mut UdpFlow, now: Now) {
    let fresh = flow.fresh.and_then(|fresh| fresh.after_all(now));
    set_fresh(flow, fresh);
}

/// From when nothing of others can come any more, datagrams may come together.
fn set_fresh(flow: &mut UdpFlow, fresh: Option<Fresh>) -> bool {
    flow.fresh = fresh;
    if fresh.is_none() {
        socket::receive_segments(&flow.socket);
    }
    fresh.is_some()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::net::Protocol;
    use std::net::UdpSocket;

    /// What others sent lies before what comes later, however much that is.
    #[test]
    fn a_socket_that_is_never_empty_is_read_as_any_other_in_the_end() {
        const LATER: Now = Now(1_000_000_000);
        let mut relay = fixture::relay(16);
        let (mut outbox, mut guest) = fixture::link();
        let any = (Ipv4Addr::LOCALHOST, 0);
        let (ours, theirs) = (UdpSocket::bind(any), UdpSocket::bind(any));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        ours.connect(theirs.local_addr().unwrap()).unwrap();
        theirs.connect(ours.local_addr().unwrap()).unwrap();
        let rounds = socket::most_held(&ours) / STRAYS + 2;
        let flow = UdpFlow {
            fresh: Some(Fresh::since(Now(0))),
            readable: true,
            ..UdpFlow::new(ours.into(), Now(0))
        };
        let key = fixture::key(Protocol::Udp, 7);
        let id = relay.insert(key, Flow::Udp(flow)).unwrap();
        let mut is_fresh = |now| {
            for _ in 0..=STRAYS {
                theirs.send(b"more").unwrap();
            }
            relay.sort_strays(id, &mut outbox, now);
            guest.read_all(&mut outbox);
            matches!(relay.flows.get(id), Some(Flow::Udp(flow)) if flow.may_bring_strays())
        };
        assert!((0..rounds).all(|_| is_fresh(Now(1))));
        assert!(is_fresh(LATER));
        assert!(!(1..rounds).all(|_| is_fresh(LATER)));
    }
}
