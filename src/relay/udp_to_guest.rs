//! Datagrams from the host to the guest: as many by one call as there is room for, each in the manner it came.

use std::{io, os::fd::AsFd};

use super::{
    flow::Flow,
    fragments::numbers,
    state::{FAILURES, Relay},
    tftp,
    udp::HEADER,
};
use crate::{
    flow::{Id, Key},
    host::socket,
    link::{Flushed, Outbox, Rooms},
    net::{Now, number::UDP},
    sys::{
        Marks, is_shortage,
        msg::{self, RECEIVE_MANY, Received},
    },
    wire::{
        checksum::Sum,
        fragment::may_be_cut,
        headers::{TTL, Template},
    },
};

/// Octets that one flow may hand to the guest before it is another's turn, and datagrams and calls together.
const TURN: usize = 256 * 1024;
const TURN_WORK: usize = 256;

/// Octets, or datagrams, that waited in a socket together, by which it is known to be crowded: as many again do not fit into
/// the kernel's usual buffer, with what each takes besides.
const CROWD: usize = 64 * 1024;
const CROWD_DATAGRAMS: usize = 64;

/// Sockets that hold more than is usual, at most.
const ROOMY_SOCKETS: usize = 64;

/// The smallest MTU at which the fragments of all that was received in a room fit it.
const ROOMY_MTU: u16 = 1280;

impl Relay {
    /// Hands waiting datagrams to the guest.
    pub(super) fn udp_pull(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(key) = self.flows.key(id) else {
            return;
        };
        if key.remote.port == tftp::UNKNOWN {
            return self.begin_transfer(id, outbox, now);
        }
        if matches!(self.flows.get(id), Some(Flow::Udp(flow)) if flow.may_bring_strays()) {
            return self.sort_strays(id, outbox, now);
        }
        if !self.deliver_held(id, outbox) {
            return;
        }
        self.doubt_moved(key.guest.addr);
        let template = self.template(&key);
        let (mut octets, mut datagrams, mut calls, mut failures) = (0, 0, 0, 0);
        while octets < TURN && datagrams + calls < TURN_WORK {
            if !matches!(self.flows.get(id), Some(Flow::Udp(flow)) if flow.readable) {
                return;
            }
            let Some(rooms) = self.rooms(&key, outbox) else {
                return self.starve(id);
            };
            let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
                return;
            };
            let mut received = [Received::default(); RECEIVE_MANY];
            let mut scatter = self.iovecs.scatter();
            if !outbox.scatter_many(&rooms, &mut scatter) {
                return;
            }
            match msg::receive_many(flow.socket.as_fd(), &mut scatter, &mut received) {
                Ok(count) => {
                    flow.heard_host(now);
                    // Fewer than there was room for: the socket is empty.
                    flow.readable = count == rooms.count;
                    self.census.touch(id.slot);
                    for (at, datagram) in received.iter().enumerate().take(count) {
                        octets += datagram.len;
                        datagrams += 1;
                        self.udp_deliver(&key, &template, &rooms, at, *datagram, outbox);
                    }
                    self.make_roomy(id, octets, datagrams);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    flow.readable = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_shortage(&error) || failures == FAILURES => {
                    return self.rest(id, now);
                }
                Err(_) => {
                    failures += 1;
                    self.udp_errors(id, outbox);
                }
            }
            calls += 1;
        }
        self.starve(id);
    }

    /// Room on the link for what waits in a flow's socket. `None` if the link is full.
    fn rooms(&self, key: &Key, outbox: &mut Outbox) -> Option<Rooms> {
        let small = self.net.mtu < ROOMY_MTU;
        if small && !self.has_room_for_packet(key.remote.addr.is_ipv4(), outbox) {
            return None;
        }
        let most = if small { 1 } else { RECEIVE_MANY };
        match outbox.reserve_many(most) {
            None if outbox.flush() == Flushed::Done && outbox.has_guest() => {
                outbox.reserve_many(most)
            }
            rooms => rooms,
        }
    }

    /// A socket that so much has waited in gets more room: what comes faster than we have a processor is lost there.
    fn make_roomy(&mut self, id: Id, octets: usize, datagrams: usize) {
        let crowded = octets >= CROWD || datagrams >= CROWD_DATAGRAMS;
        if crowded
            && self.roomy < ROOMY_SOCKETS
            && let Some(Flow::Udp(flow)) = self.flows.get_mut(id)
            && !flow.roomy
        {
            socket::make_roomy(&flow.socket);
            flow.roomy = true;
            self.roomy += 1;
        }
    }

    /// Hands over what one room has received.
    fn udp_deliver(
        &mut self,
        key: &Key,
        template: &Template,
        rooms: &Rooms,
        at: usize,
        received: Received,
        outbox: &mut Outbox,
    ) {
        let Received { len, marks } = received;
        let template = template
            .clone()
            .with_ttl(marks.ttl.unwrap_or(TTL))
            .with_tos(marks.tos.unwrap_or(0));
        let size = marks.segment.map_or(len, usize::from).max(1);
        let packet = size + template.udp_overhead();
        if packet <= usize::from(self.net.mtu) {
            // Who cuts what was received as one counts on from the first one's number.
            let first = may_be_cut(key.remote.addr.is_ipv4(), packet)
                .then(|| numbers(&self.fragment_ids, len.div_ceil(size)));
            return outbox.commit_one(rooms, at, len, size, |part, headers| match first {
                None => template.udp(headers, part.len, part.sum),
                Some(first) => {
                    let id = first.wrapping_add((part.at / size) as u32) as u16;
                    let template = template.clone().with_id(id);
                    template.udp(headers, part.len, part.sum)
                }
            });
        }
        // Parts are written where the room lies, and would write over datagrams that are still to be cut.
        let octets = outbox.received(rooms, at, 0..len);
        let len = len.min(octets.len()).min(self.large.len());
        self.large[..len].copy_from_slice(&octets[..len]);
        for start in (0..len).step_by(size) {
            let end = len.min(start + size);
            let octets = self.large.get(start..end).unwrap_or_default();
            let whole = datagram(&mut self.message, key, octets);
            self.udp_packet(key, whole, marks, outbox);
        }
    }

    /// Hands over the datagram of so many octets in `self.message`, in parts if the link takes no more.
    pub(super) fn udp_packet(&mut self, key: &Key, len: usize, marks: Marks, outbox: &mut Outbox) {
        self.hand_over(key, self.ends(key), UDP, len, marks, outbox);
    }
}

/// Writes a datagram of this payload for the guest, and returns its octets.
pub(super) fn datagram(out: &mut [u8], key: &Key, payload: &[u8]) -> usize {
    let len = HEADER + payload.len();
    let Some(out) = out.get_mut(..len) else {
        return 0;
    };
    let fields = [key.remote.port, key.guest.port, len as u16, 0];
    out[..HEADER].copy_from_slice(fields.map(u16::to_be_bytes).as_flattened());
    out[HEADER..].copy_from_slice(payload);
    let pseudo = Sum::pseudo(key.remote.addr, key.guest.addr, UDP, len);
    let sum = pseudo.bytes(out).finish_datagram();
    out[6..HEADER].copy_from_slice(&sum.to_be_bytes());
    len
}

#[cfg(test)]
mod tests {
    use super::super::{fixture, flow::UdpFlow};
    use super::*;
    use crate::{
        config::{LEAST_MTU4, LEAST_MTU6},
        net::{Endpoint, Protocol},
        service,
    };
    use std::os::unix::net::UnixDatagram;

    const LEN: usize = 65_000;

    /// At the smallest MTU a large datagram takes more frames than are free.
    #[test]
    fn a_datagram_stays_in_the_socket_while_there_is_no_room_for_all_its_parts() {
        let mut net = service::fixture::net();
        (net.mtu, net.v6) = (LEAST_MTU4, None);
        let mut relay = fixture::relay_of(net, 16);
        let (mut outbox, mut guest) = fixture::link();
        while outbox.flush() == Flushed::Done {
            outbox.copy(&[0; 20_000]).unwrap();
        }
        for _ in 0..1000 {
            outbox.bare(|_| 54).unwrap();
        }
        let (kernel, socket) = UnixDatagram::pair().unwrap();
        kernel.send(&[7; LEN]).unwrap();
        let mut flow = UdpFlow::new(socket.into(), Now(0));
        flow.readable = true;
        let key = fixture::key(Protocol::Udp, 7);
        let id = relay.insert(key, Flow::Udp(flow)).unwrap();
        relay.udp_pull(id, &mut outbox, Now(1));
        for now in [Now(2), Now(3)] {
            guest.read_all(&mut outbox);
            relay.begin_turn(now);
            relay.resume(&mut outbox, now);
        }
        // Of each part, what is behind its IP header.
        let parts = guest.frames(outbox).into_iter().filter(|f| f[23] == UDP);
        let octets = parts.map(|f| usize::from(u16::from_be_bytes([f[16], f[17]])) - 20);
        assert_eq!(octets.sum::<usize>(), HEADER + LEN);
    }

    #[test]
    fn each_of_large_datagrams_received_as_one_has_its_own_number() {
        const SIZE: usize = 2000;
        let mut net = service::fixture::net();
        net.mtu = 65_520;
        let mut relay = fixture::relay_of(net, 16);
        let key = fixture::key(Protocol::Udp, 7);
        let template = relay.template(&key);
        let (mut outbox, guest) = fixture::link();
        let rooms = outbox.reserve_many(2).unwrap();
        for at in 0..2 {
            let mut received = Received::default();
            (received.len, received.marks.segment) = (10 * SIZE - 1, Some(SIZE as u16));
            relay.udp_deliver(&key, &template, &rooms, at, received, &mut outbox);
        }
        let frames = guest.frames(outbox);
        let number = |frame: &Vec<u8>| u16::from_be_bytes([frame[18], frame[19]]);
        let first = number(&frames[0]);
        assert!(frames.iter().all(|frame| frame[20] == 0), "not to be cut");
        assert!(
            (0..20)
                .map(|n| first.wrapping_add(n))
                .eq(frames.iter().map(number))
        );
    }

    /// Datagrams a little larger than the MTU take the most room of all that can be received as one.
    #[test]
    fn parts_of_what_was_received_as_one_leave_the_next_room_alone() {
        const SIZE: usize = 1233;
        const ALL: usize = 65_535 / SIZE * SIZE;
        const ROOMS: usize = 2;
        let mut net = service::fixture::net();
        net.mtu = LEAST_MTU6;
        let mut relay = fixture::relay_of(net, 16);
        let key = Key {
            protocol: Protocol::Udp,
            guest: Endpoint::new("2001:db8::15".parse().unwrap(), 7),
            remote: Endpoint::new("2001:db8:51::1".parse().unwrap(), 7),
        };
        let (mut outbox, guest) = fixture::link();
        let rooms = outbox.reserve_many(ROOMS).unwrap();
        assert_eq!(rooms.count, ROOMS);
        let (kernel, socket) = UnixDatagram::pair().unwrap();
        let mut received = [Received::default(); RECEIVE_MANY];
        let mut scatter = relay.iovecs.scatter();
        assert!(outbox.scatter_many(&rooms, &mut scatter));
        (1..=ROOMS as u8).for_each(|n| assert!(kernel.send(&[n; ALL]).is_ok()));
        let count = msg::receive_many(socket.as_fd(), &mut scatter, &mut received).unwrap();
        assert_eq!(count, ROOMS);
        let template = relay.template(&key);
        for (at, datagrams) in received.iter_mut().enumerate().take(ROOMS) {
            datagrams.marks.segment = Some(SIZE as u16);
            relay.udp_deliver(&key, &template, &rooms, at, *datagrams, &mut outbox);
        }
        // Behind the headers of the link, IP and fragment, and in first parts that of UDP.
        let payload = |frame: Vec<u8>| {
            let first = u16::from_be_bytes([frame[56], frame[57]]) >> 3 == 0;
            let start = if first { 62 + HEADER } else { 62 };
            frame[start..].to_vec()
        };
        let octets: Vec<u8> = guest.frames(outbox).into_iter().flat_map(payload).collect();
        let wanted: Vec<u8> = (1..=ROOMS as u8).flat_map(|n| [n; ALL]).collect();
        assert!(octets == wanted, "{} octets", octets.len());
    }
}
