//! Multicast and broadcast. What the guest sends to a group leaves by a socket that is not connected, so that answers from
//! anyone come back; of a group it has joined it hears what is sent to some ports, by one socket each. Nothing that was heard
//! is ever sent again, and what we sent ourselves is not heard.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use super::{
    flow::{Flow, GroupFlow, Packet},
    fragments,
    request::Ready,
    state::Relay,
    udp::HEADER,
    udp_in,
};
use crate::{
    flow::{self, Id, Key},
    host::{group, socket::Peer},
    link::{Inbox, Outbox, Slot},
    net::{Endpoint, Mac, Now, Protocol, Why},
    service::multicast::{self, Change},
    sys::msg::{self, Received},
    wire::{build::Ends, frame::Ip, headers::TTL},
};

/// Ports heard of every group: mDNS (RFC 6762), SSDP (UPnP), LLMNR (RFC 4795), WS-Discovery. Of groups of the link only these
/// are sent to as well.
const PORTS: [u16; 4] = [5353, 1900, 5355, 3702];

/// Groups the guest may be in, further ports it may use with them, and sockets that send.
const GROUPS: usize = 32;
const MORE_PORTS: usize = 4;
const SENDERS: usize = 64;

/// Datagrams one socket may hand to the guest before it is another's turn.
const TURN: usize = 64;

const UDP: u8 = 17;

impl Relay {
    /// A report of the guest's, about groups.
    pub(super) fn membership(&mut self, message: &[u8], v4: bool, now: Now) -> Result<(), Why> {
        if !self.net.serve.multicast || !self.net.serve.udp {
            return Err(Why::Disabled);
        }
        let mut groups = std::mem::take(&mut self.groups.joined);
        let each = |group: IpAddr, change| match change {
            Change::Join if can_be_joined(group) && !groups.contains(&group) => {
                if groups.len() < GROUPS {
                    groups.push(group);
                }
            }
            Change::Join => {}
            Change::Leave => groups.retain(|known| *known != group),
        };
        let read = if v4 {
            multicast::igmp(message, each)
        } else {
            multicast::mld(message, each)
        };
        self.groups.joined = groups;
        self.follow_groups(now);
        read
    }

    /// Opens and closes members as groups and ports have it.
    fn follow_groups(&mut self, now: Now) {
        let mut members = std::mem::take(&mut self.groups.members);
        members.retain(|&id| {
            let Some(key) = self.flows.key(id) else {
                return false;
            };
            let Endpoint { addr, port } = key.guest;
            let heard = PORTS.contains(&port) || self.groups.ports.contains(&port);
            let wanted = heard && self.groups.joined.contains(&addr);
            if !wanted {
                self.remove(id);
            }
            wanted
        });
        for at in 0..self.groups.joined.len() {
            let Some(&group) = self.groups.joined.get(at) else {
                break;
            };
            let more = self.groups.ports.clone();
            for port in PORTS.into_iter().chain(more) {
                let key = Key {
                    protocol: Protocol::Udp,
                    guest: Endpoint::new(group, port),
                    remote: Endpoint::new(unspecified(group), 0),
                };
                if self.flows.find(&key).is_some() {
                    continue;
                }
                let scope = self.net.v6.as_ref().map_or(0, |v6| v6.scope);
                match group::member(group, port, scope, &self.net.outbound) {
                    Ok(socket) => members.extend(self.add_group(key, socket, None, now)),
                    Err(error) => log::debug!("cannot listen to {}: {error}", key.guest),
                }
            }
        }
        self.groups.members = members;
    }

    fn add_group(
        &mut self,
        key: Key,
        socket: OwnedFd,
        own: Option<SocketAddr>,
        now: Now,
    ) -> Option<Id> {
        let raw = socket.as_raw_fd();
        let flow = GroupFlow {
            socket,
            own,
            member: key.remote.port == 0,
            ttl: None,
            last: now,
            readable: false,
            starved: false,
        };
        self.insert(key, Flow::Group(flow), raw).ok()
    }

    /// A datagram of the guest to a group or broadcast address.
    pub(super) fn group_datagram(
        &mut self,
        key: Key,
        packet: Packet,
        payload: Slot,
        inbox: &Inbox,
        now: Now,
    ) -> Result<(), Why> {
        if !self.net.serve.multicast || !may_leave(key.remote) {
            return Err(Why::Multicast);
        }
        let v6 = key.remote.addr.is_ipv6();
        let scope = self.net.v6.as_ref().map_or(0, |v6| v6.scope);
        let peer = Peer {
            endpoint: key.remote,
            scope: if v6 { scope } else { 0 },
        };
        let id = match self.find(&key) {
            Some(id) => id,
            None => self.group_open(key, peer, now)?,
        };
        let Some(Flow::Group(flow)) = self.flows.get_mut(id).filter(|_| key.remote.port != 0)
        else {
            return Err(Why::Multicast);
        };
        flow.last = now;
        let ttl = packet.manner.ttl;
        if flow.ttl != Some(ttl) {
            // It is the right range.
            let _ = group::set_ttl(&flow.socket, v6, ttl);
            flow.ttl = Some(ttl);
        }
        let mut sent = Err(io::ErrorKind::InvalidInput.into());
        inbox.copy(payload, |octets| {
            sent = group::send(&flow.socket, peer, octets);
        });
        match sent {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Why::HostFull),
            Err(_) => Err(Why::Socket),
        }
    }

    fn group_open(&mut self, key: Key, peer: Peer, now: Now) -> Result<Id, Why> {
        self.check_source(key.guest.addr)?;
        if key.guest.port == 0 || key.remote.port == 0 {
            return Err(Why::PortZero);
        }
        let mut senders = std::mem::take(&mut self.groups.senders);
        senders.retain(|&id| self.flows.get(id).is_some());
        if senders.len() >= SENDERS {
            self.remove(senders.remove(0));
        }
        self.groups.senders = senders;
        let sender = group::sender(peer, &self.net.outbound, key.guest.port);
        let sender = sender.map_err(|_| Why::Socket)?;
        let id = self.add_group(key, sender.socket, sender.own, now);
        let id = id.ok_or(Why::NoFlow)?;
        self.groups.senders.push(id);
        self.wheel.arm(id.slot, now + self.limits.udp_stream);
        for port in [key.remote.port, key.guest.port] {
            let ports = &mut self.groups.ports;
            if key.remote.addr.is_multicast() && !PORTS.contains(&port) && !ports.contains(&port) {
                if ports.len() == MORE_PORTS {
                    ports.remove(0);
                }
                ports.push(port);
                self.follow_groups(now);
            }
        }
        Ok(id)
    }

    pub(super) fn group_ready(&mut self, id: Id, ready: Ready, outbox: &mut Outbox, now: Now) {
        if let Some(Flow::Group(flow)) = self.flows.get_mut(id) {
            flow.readable |= ready.readable;
            if ready.error {
                let _ = crate::host::socket::outcome(&flow.socket);
            }
        }
        self.group_pull(id, outbox, now);
    }

    /// Hands over what came to a group's socket.
    pub(super) fn group_pull(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        for _ in 0..TURN {
            let Some(Flow::Group(flow)) = self.flows.get_mut(id) else {
                return;
            };
            if !flow.readable {
                return;
            }
            if !outbox.has_room() {
                break;
            }
            let message = self.waste.get_mut(..).unwrap_or_default();
            match msg::receive_from(flow.socket.as_fd(), message) {
                Ok((received, from)) => {
                    flow.last = now;
                    self.group_deliver(&key, received, from, outbox);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.readable = false,
                Err(_) => {}
            }
        }
        self.starve(id);
    }

    /// Hands over one datagram, which lies in `self.waste`.
    fn group_deliver(
        &mut self,
        key: &Key,
        received: Received,
        from: Option<SocketAddr>,
        outbox: &mut Outbox,
    ) {
        let Some(from) = from.filter(|from| !self.is_own(*from)) else {
            return;
        };
        let seen = flow::inbound_source(&self.net, from.ip(), &self.guest);
        let Some(seen) = seen.filter(|seen| seen.is_ipv4() == key.guest.addr.is_ipv4()) else {
            return;
        };
        let key = Key {
            remote: Endpoint::new(seen, from.port()),
            ..*key
        };
        let payload = self.waste.get(..received.len).unwrap_or_default();
        let len = udp_in::datagram(&mut self.message, &key, payload);
        if len < HEADER {
            return;
        }
        let ip = Ip {
            src: key.remote.addr,
            dst: key.guest.addr,
            ttl: received.marks.ttl.unwrap_or(TTL),
            tos: received.marks.tos.unwrap_or(0),
            id: 0,
            whole: true,
        };
        let ends = Ends {
            src: self.net.mac,
            dst: match key.guest.addr {
                IpAddr::V4(group) if group.is_multicast() => Mac::of_group4(group),
                IpAddr::V6(group) if group.is_multicast() => Mac::of_group6(group),
                _ => self.guest.mac,
            },
        };
        self.fragment_id = self.fragment_id.wrapping_add(1);
        let upper = self.message.get(..len).unwrap_or_default();
        let packet = (&ip, UDP, self.fragment_id);
        let mtu = usize::from(self.net.mtu);
        if !fragments::send(&mut self.scratch, ends, packet, upper, mtu, outbox) {
            self.count(Why::LinkFull);
        }
    }

    /// Whether a datagram was sent by ourselves.
    fn is_own(&self, from: SocketAddr) -> bool {
        self.groups.senders.iter().any(|&id| {
            matches!(self.flows.get(id), Some(Flow::Group(flow))
                if flow.own.is_some_and(|own| own.ip() == from.ip() && own.port() == from.port()))
        })
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

/// Whether a datagram to a group may leave: of the link's own groups only what finds services.
fn may_leave(remote: Endpoint) -> bool {
    let of_link = match remote.addr {
        IpAddr::V4(v4) => matches!(v4.octets(), [224, 0, 0, _]),
        IpAddr::V6(v6) => v6.segments()[0] & 0xf <= 2,
    };
    !remote.addr.is_multicast() || !of_link || PORTS.contains(&remote.port)
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}
