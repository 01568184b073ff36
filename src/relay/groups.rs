//! Multicast and broadcast. What the guest sends to a group leaves by a socket that is not connected, so that answers from
//! anyone come back; of a group it has joined it hears what is sent to some ports, by one socket each. Nothing that was heard
//! is ever sent again, and what we sent ourselves is not heard.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use super::{
    flow::{Flow, GroupFlow},
    group_state::{ASK, MEMBERS, SENDERS},
    request::Ready,
    run::Piece,
    state::{FAILURES, Relay},
    udp::HEADER,
    udp_to_guest,
};
use crate::{
    flow::{self, Id, Key},
    host::{
        ends::{self, Peer},
        group,
        socket::{self, Manner},
    },
    link::{Inbox, Outbox},
    net::{Endpoint, Mac, Now, Protocol, Span, Why, number::UDP},
    service::multicast::{self, Record},
    sys::{
        is_shortage,
        msg::{self, Received},
    },
    wire::build::Ends,
};

/// Datagrams one socket may hand to the guest before it is another's turn.
const TURN: usize = 64;

/// How long after its first frame a guest is asked for its groups, if there was one before that was in some.
const SETTLE: Span = Span::secs(1);

const MDNS: u16 = 5353;
const LLMNR: u16 = 5355;

impl Relay {
    const fn carries_groups(&self) -> bool {
        self.net.serve.multicast && self.net.serve.udp
    }

    const fn has_family(&self, v4: bool) -> bool {
        if v4 {
            self.net.v4.is_some()
        } else {
            self.net.v6.is_some()
        }
    }

    /// A guest moved here, with groups that it does not tell of by itself.
    pub(super) fn expect_groups_of_visitor(&mut self, now: Now) {
        if self.carries_groups() {
            self.groups.ask = Some(now + SETTLE);
        }
    }

    /// A guest came.
    pub(super) fn expect_groups(&mut self, now: Now) {
        if std::mem::take(&mut self.groups.left) {
            self.groups.ask = Some(now + SETTLE);
        }
    }

    /// Asks the guest which groups it is in, if that is due; groups of which it says nothing end.
    pub(super) fn ask_for_groups(&mut self, outbox: &mut Outbox, heard: Now, now: Now) {
        if self.groups.ask.is_none_or(|at| at > now) {
            return;
        }
        // Silence says nothing of a guest that could not be asked.
        if !self.query_groups(outbox) {
            self.groups.unasked = true;
            self.groups.ask = Some(now + SETTLE);
            return;
        }
        if !std::mem::take(&mut self.groups.unasked) {
            self.groups.forget_old(heard);
            self.follow_groups(now);
        }
        // Without any the next report starts over.
        self.groups.ask = (!self.groups.is_empty()).then_some(now + ASK);
    }

    /// Asks the guest for its groups; `false` if there is no room for that, or no guest on the link.
    fn query_groups(&mut self, outbox: &mut Outbox) -> bool {
        for query in [multicast::query4, multicast::query6] {
            if query(&self.net, &mut self.scratch)
                && let Err(why) = outbox.copy(&self.scratch)
            {
                if outbox.has_guest() {
                    self.count(why);
                }
                return false;
            }
        }
        true
    }

    /// A report of the guest's, about groups.
    pub(super) fn membership(&mut self, message: &[u8], v4: bool, now: Now) -> Result<(), Why> {
        if !self.carries_groups() || !self.has_family(v4) {
            return Err(Why::Disabled);
        }
        if self.is_late() {
            return Err(Why::Backlog);
        }
        let groups = &mut self.groups;
        let each = |record: Record<'_>| {
            if can_be_joined(record.group) {
                groups.follow(&record, now);
            }
        };
        let read = if v4 {
            multicast::igmp(message, each)
        } else {
            multicast::mld(message, each)
        };
        if !self.groups.is_empty() {
            self.groups.ask.get_or_insert(now + ASK);
        }
        self.follow_groups(now);
        read
    }

    /// Begins anew after the host's network changed.
    pub fn renew_groups(&mut self, now: Now) {
        for id in std::mem::take(&mut self.groups.members) {
            self.remove(id);
        }
        for id in std::mem::take(&mut self.groups.senders) {
            self.remove(id);
        }
        self.follow_groups(now);
    }

    /// Opens and closes members as groups and ports have it, which counts as all other flows of the turn: as many sockets may
    /// change.
    fn follow_groups(&mut self, now: Now) {
        let mut members = std::mem::take(&mut self.groups.members);
        members.retain(|&id| {
            let Some(key) = self.flows.key(id) else {
                return false;
            };
            let Endpoint { addr, port } = key.guest;
            let wanted = self.groups.hears(&self.net.multicast, addr, port);
            if !wanted {
                self.remove(id);
                self.beginnings = 0;
            }
            wanted
        });
        self.open_members(&mut members, now);
        self.groups.members = members;
    }

    /// Opens the members that are wanted and not there; returns how many sockets that took.
    fn open_members(&mut self, members: &mut Vec<Id>, now: Now) -> usize {
        let (mut tries, mut unreachable) = (0, None);
        let wanted: Vec<_> = self.groups.wanted(&self.net.multicast).collect();
        for (group, host, guest) in wanted {
            let key = unconnected(Endpoint::new(group, guest));
            if members.len() >= MEMBERS || tries >= MEMBERS {
                break;
            }
            if unreachable == Some(group) || self.flows.find(&key).is_some() {
                continue;
            }
            self.beginnings = 0;
            tries += 1;
            let peer = self.group_peer(Endpoint::new(group, host));
            match group::member(peer, &self.net.outbound) {
                Ok(socket) => members.extend(self.add_group(key, socket, true, now)),
                // Where there is no such interface now there may be one later.
                Err(error) => {
                    log::debug!("cannot hear {}: {error}", peer.endpoint);
                    unreachable = Some(group).filter(|_| !ends::is_of_port(&error));
                }
            }
        }
        tries
    }

    fn add_group(&mut self, key: Key, socket: OwnedFd, member: bool, now: Now) -> Option<Id> {
        let flow = GroupFlow {
            socket,
            member,
            manner: None,
            seen_as: None,
            last: now,
            readable: false,
            starved: false,
        };
        self.insert(key, Flow::Group(flow)).ok()
    }

    /// A group, with the interface it is reached through.
    fn group_peer(&self, endpoint: Endpoint) -> Peer {
        let scope = if endpoint.addr.is_ipv6() {
            self.net.v6.as_ref().map(|v6| v6.scope)
        } else {
            self.net.v4.as_ref().map(|v4| v4.interface)
        };
        let scope = scope.unwrap_or(0);
        Peer { endpoint, scope }
    }

    /// A datagram of the guest to a group or broadcast address.
    pub(super) fn group_datagram(
        &mut self,
        source: Endpoint,
        group: Endpoint,
        datagram: Piece,
        inbox: &Inbox,
        now: Now,
    ) -> Result<(), Why> {
        if !self.has_family(group.addr.is_ipv4()) {
            return Err(Why::Disabled);
        }
        if !self.net.serve.multicast || !self.may_leave(group) {
            return Err(Why::Multicast);
        }
        self.check_source(source.addr)?;
        if source.port == 0 || group.port == 0 {
            return Err(Why::PortZero);
        }
        let peer = self.group_peer(group);
        let id = match self.find(&unconnected(source)) {
            Some(id) => id,
            None => {
                self.begin(&unconnected(source), now)?;
                self.group_open(source, peer, now)?
            }
        };
        if group.addr.is_multicast() {
            let ports = [group.port, source.port];
            if !self.groups.is_empty() && !ports.iter().all(|&port| self.groups.uses(port)) {
                self.begin(&unconnected(source), now)?;
            }
            let fresh = ports.map(|port| self.groups.use_port(port));
            if fresh.contains(&true) {
                self.follow_groups(now);
            }
        }
        let Some(Flow::Group(flow)) = self.flows.get_mut(id) else {
            return Err(Why::Gone);
        };
        flow.last = now;
        let message = &mut self.message;
        let len = inbox.copy_start(datagram.payload, message);
        let octets = message.get(..len).unwrap_or_default();
        prepare(flow, peer, datagram.packet.manner);
        if flow.seen_as.is_none_or(|(to, _)| to != group.addr) {
            flow.seen_as = group::seen_as(&flow.socket, peer, &self.net.outbound)
                .map(|from| (group.addr, from));
        }
        match group::send(&flow.socket, peer, octets) {
            Ok(_) => {
                if let Some((_, from)) = flow.seen_as {
                    self.groups.sent(from, octets, now);
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Why::HostFull),
            Err(_) => Err(Why::Unsent),
        }
    }

    fn group_open(&mut self, source: Endpoint, peer: Peer, now: Now) -> Result<Id, Why> {
        let mut senders = std::mem::take(&mut self.groups.senders);
        senders.retain(|&id| self.flows.get(id).is_some());
        if senders.len() >= SENDERS {
            self.remove(senders.remove(0));
        }
        self.groups.senders = senders;
        // A port that is forwarded to another would be taken from that.
        let heard = &self.net.multicast.heard;
        let is_taken = |&(host, guest): &(u16, u16)| host == source.port && guest != source.port;
        let port = if heard.iter().any(is_taken) {
            0
        } else {
            source.port
        };
        let key = unconnected(source);
        let socket = self.open_socket(&key, now, |net| group::sender(peer, &net.outbound, port));
        let socket = socket.map_err(|error| {
            self.make_do(&error);
            Why::Socket
        })?;
        let id = self.add_group(key, socket, false, now);
        let id = id.ok_or(Why::NoFlow)?;
        self.groups.senders.push(id);
        self.wheel.arm(id.slot, now + self.limits.udp_stream);
        Ok(id)
    }

    /// Whether a datagram to a group may leave: of the link's own groups only what finds services.
    fn may_leave(&self, group: Endpoint) -> bool {
        let of_link = match group.addr {
            IpAddr::V4(v4) => matches!(v4.octets(), [224, 0, 0, _]),
            IpAddr::V6(v6) => v6.is_multicast() && v6.segments()[0] & 0xf <= 2,
        };
        let listed = &self.net.multicast.listed;
        !of_link || matches!(group.port, MDNS | LLMNR) || listed.contains(&group.port)
    }

    pub(super) fn group_ready(&mut self, id: Id, ready: Ready, outbox: &mut Outbox, now: Now) {
        if let Some(Flow::Group(flow)) = self.flows.get_mut(id) {
            flow.readable |= ready.readable;
            if ready.error {
                let _ = socket::outcome(&flow.socket);
            }
        }
        self.group_pull(id, outbox, now);
    }

    /// Hands over what came to a group's socket.
    pub(super) fn group_pull(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        let mut failures = 0;
        for _ in 0..TURN {
            if !matches!(self.flows.get(id), Some(Flow::Group(flow)) if flow.readable) {
                return;
            }
            if !self.has_room_for_packet(key.guest.addr.is_ipv4(), outbox) {
                break;
            }
            let Some(Flow::Group(flow)) = self.flows.get_mut(id) else {
                return;
            };
            let message = &mut self.large[..];
            match msg::receive_from(flow.socket.as_fd(), message) {
                Ok((received, from)) => {
                    flow.last = now;
                    self.group_deliver(&key, received, from, outbox, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.readable = false,
                Err(error) if is_shortage(&error) || failures == FAILURES => {
                    return self.rest(id, now);
                }
                Err(_) => failures += 1,
            }
        }
        self.starve(id);
    }

    /// Hands over one datagram, which lies in `self.large`.
    fn group_deliver(
        &mut self,
        key: &Key,
        received: Received,
        from: Option<SocketAddr>,
        outbox: &mut Outbox,
        now: Now,
    ) {
        let payload = self.large.get(..received.len).unwrap_or_default();
        let Some(from) = from.filter(|from| !self.groups.is_own(*from, payload, now)) else {
            return;
        };
        let seen = flow::inbound_source(&self.net, from.ip(), &self.guest);
        let Some(seen) = seen.filter(|seen| seen.is_ipv4() == key.guest.addr.is_ipv4()) else {
            return;
        };
        let group = key.guest.addr;
        if group.is_multicast() && !self.groups.wants(group, seen) {
            return;
        }
        let key = Key {
            remote: Endpoint::new(seen, from.port()),
            ..*key
        };
        let len = udp_to_guest::datagram(&mut self.message, &key, payload);
        if len < HEADER {
            return;
        }
        let ends = Ends {
            src: self.net.mac,
            dst: match key.guest.addr {
                IpAddr::V4(group) if group.is_multicast() => Mac::of_group4(group),
                IpAddr::V6(group) if group.is_multicast() => Mac::of_group6(group),
                addr => self.guest.mac_at(addr),
            },
        };
        self.hand_over(&key, ends, UDP, len, received.marks, outbox);
    }
}

/// Whether membership of a group is more than the guest's own affair.
fn can_be_joined(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(v4) => v4.is_multicast() && !matches!(v4.octets(), [224, 0, 0, 1 | 2 | 22]),
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            // Of this node, all nodes and routers, and those of neighbour discovery (RFC 4291, section 2.7.1).
            let own = matches!(
                segments,
                [0xff00..0xff02, ..] | [0xff02, 0, 0, 0, 0, 0, 0, 1 | 2 | 0x16]
            );
            let solicited = matches!(segments, [0xff02, 0, 0, 0, 0, 1, 0xff00..=0xffff, _]);
            v6.is_multicast() && !own && !solicited
        }
    }
}

/// Has a socket send as the guest did. Its fragments are ours to make: nobody is told of a path's MTU to many.
fn prepare(flow: &mut GroupFlow, peer: Peer, manner: Manner) {
    let v6 = peer.endpoint.addr.is_ipv6();
    if flow.manner.is_none_or(|now| now.ttl != manner.ttl) {
        // It is of the right range.
        let _ = group::set_reach(&flow.socket, v6, manner.ttl);
    }
    let manner = Manner {
        whole: false,
        ..manner
    };
    socket::set_manner(&flow.socket, v6, &mut flow.manner, manner);
}

/// What a socket is found by that has no peer.
const fn unconnected(guest: Endpoint) -> Key {
    let any = match guest.addr {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Key {
        protocol: Protocol::Udp,
        guest,
        remote: Endpoint::new(any, 0),
    }
}

#[cfg(test)]
mod tests;
