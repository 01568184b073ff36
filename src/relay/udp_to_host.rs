//! Datagrams from the guest to the host: those of one flow that follow one another in the burst leave by one call, and those of
//! one size among them as one message that the kernel cuts (UDP_SEGMENT, udp(7)).

use std::{io, os::fd::AsFd};

use super::{
    errors::{Fault, QUOTED},
    flow::{Flow, Packet, UdpFlow},
    run::{Piece, message},
    state::Relay,
    tftp,
    udp::HEADER,
};
use crate::{
    flow::{self, Id, Key},
    host::socket::{self, Manner},
    link::{Frame, Inbox, Outbox, Slot},
    net::{Now, Protocol, Why},
    sys::{Part, msg, sockopt},
    wire::{
        build::{UDP_SEGMENTS_MAX, ip_len},
        frame::{Datagram, Ip},
    },
};

/// Cuts a payload into the datagrams it stands for, of `size` octets each but for the last: at least one.
fn cut(
    inbox: &Inbox,
    payload: Slot,
    size: usize,
    whole: Packet,
) -> impl Iterator<Item = Piece> + use<'_> {
    let count = payload.len().div_ceil(size).max(1);
    (0..count).map(move |n| {
        let (mut packet, one) = (whole, payload.part(&(n * size..(n + 1) * size)));
        if count > 1 {
            // Each has a checksum of its own, which nobody has computed.
            (packet.len, packet.checksum) = ((HEADER + one.len()) as u16, 0);
        }
        inbox.copy_start(one, &mut packet.start);
        Piece {
            payload: one,
            packet,
        }
    })
}

/// The first message of a run could not be sent.
struct Refused {
    error: io::Error,
    /// Whether it was several datagrams.
    several: bool,
}

impl Relay {
    /// A datagram from the guest, or several that are one until they are cut; `frame` is where it lies.
    pub(super) fn udp_datagram(
        &mut self,
        ip: &Ip,
        datagram: &Datagram,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let key = Key {
            protocol: Protocol::Udp,
            guest: ip.source(datagram.src_port),
            remote: ip.destination(datagram.dst_port),
        };
        let payload = frame.whole.part(&datagram.payload);
        let size = frame.segment.map_or(payload.len(), usize::from).max(1);
        if payload.len() > size * UDP_SEGMENTS_MAX {
            return Err(Why::Malformed);
        }
        let mut packet = Packet {
            id: ip.id,
            manner: Manner::of(ip),
            len: datagram.len,
            checksum: datagram.checksum,
            start: [0; 4],
        };
        inbox.copy_start(payload, &mut packet.start);
        let mut pieces = cut(inbox, payload, size, packet);
        if flow::is_group(&self.net, ip.dst) {
            return pieces.try_for_each(|piece| {
                self.group_datagram(key.guest, key.remote, piece, inbox, now)
            });
        }
        // There is a flow of that name where the server's port is not known yet.
        if key.remote.port == tftp::UNKNOWN {
            return Err(Why::PortZero);
        }
        let id = match self.find(&key) {
            Some(id) => id,
            None => {
                let peer = self.begin_toward(&key, now)?;
                // It may be that another address's flow goes on with this one.
                self.send_run(inbox, outbox);
                self.udp_open(key, peer, packet, outbox, now)?
            }
        };
        if key.remote.port == tftp::PORT {
            // Another flow may end in favour of the transfer's.
            self.send_run(inbox, outbox);
            self.expect_transfer(id, now)?;
        }
        let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
            return Err(Why::Gone);
        };
        flow.heard_guest(now);
        self.census.touch(id.slot);
        for piece in pieces {
            self.udp_line_up(id, piece, inbox, outbox);
        }
        Ok(())
    }

    /// Puts a datagram behind those it may leave with.
    fn udp_line_up(&mut self, id: Id, piece: Piece, inbox: &Inbox, outbox: &mut Outbox) {
        if !self.run.takes(id, piece.packet.manner) {
            self.send_run(inbox, outbox);
        }
        if let Some(Flow::Udp(flow)) = self.flows.get_mut(id) {
            flow.sent.note(piece.packet);
            self.run.push(id, piece);
        }
    }

    /// Sends a run of datagrams.
    pub(super) fn send_run(&mut self, inbox: &Inbox, outbox: &mut Outbox) {
        let Some((id, manner, list)) = self.run.take() else {
            return;
        };
        self.send_row(id, manner, &list, inbox, outbox);
        self.run.put_back(list);
    }

    fn send_row(
        &mut self,
        id: Id,
        manner: Manner,
        mut run: &[Piece],
        inbox: &Inbox,
        outbox: &mut Outbox,
    ) {
        let Some(key) = self.flows.key(id) else {
            return run.iter().for_each(|_| self.count(Why::Gone));
        };
        if let Some(Flow::Udp(flow)) = self.flows.get_mut(id) {
            let v6 = key.remote.addr.is_ipv6();
            socket::set_manner(&flow.socket, v6, &mut flow.manner, manner);
        }
        let mut failed = false;
        while let Some((first, rest)) = run.split_first() {
            let refused = match self.send_some(id, &key, run, inbox) {
                Ok(0) => {
                    // In more pieces than any list has entries.
                    self.count(Why::Malformed);
                    (run, failed) = (rest, false);
                    continue;
                }
                Ok(sent) => {
                    run = run.get(sent..).unwrap_or_default();
                    failed = false;
                    continue;
                }
                Err(refused) => refused,
            };
            match refused.error.raw_os_error() {
                _ if refused.error.kind() == io::ErrorKind::WouldBlock => {
                    return run.iter().for_each(|_| self.count(Why::HostFull));
                }
                // An error of an earlier datagram is reported by the next call and clears with it (udp(7)): then once more.
                _ if !failed => {
                    self.udp_errors(id, outbox);
                    failed = true;
                    continue;
                }
                Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)
                    if refused.several =>
                {
                    if let Some(Flow::Udp(flow)) = self.flows.get_mut(id) {
                        flow.segment = Some(0);
                    }
                    continue;
                }
                Some(libc::EMSGSIZE) => self.too_big(id, &key, first, inbox, outbox),
                _ => {
                    let mut payload = [0; QUOTED];
                    let len = inbox.copy_start(first.payload, &mut payload);
                    self.unreachable(&key, first.packet, &payload[..len], &refused.error, outbox);
                    self.count(Why::Unsent);
                }
            }
            (run, failed) = (rest, false);
        }
    }

    /// Sends datagrams from the front of a run, and returns how many.
    fn send_some(
        &mut self,
        id: Id,
        key: &Key,
        run: &[Piece],
        inbox: &Inbox,
    ) -> Result<usize, Refused> {
        let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
            return Ok(run.len());
        };
        let largest = largest(flow, key, run);
        let mut parts = [Part::default(); msg::SEND_MANY];
        let mut counts = [0; msg::SEND_MANY];
        let mut gather = self.iovecs.gather();
        let (mut used, mut rest) = (0, run);
        for (part, count) in parts.iter_mut().zip(&mut counts) {
            let Some(first) = rest.first() else { break };
            *count = message(rest, largest);
            part.start = gather.part();
            let most = *count;
            *count = 0;
            // As many as the list has entries for.
            for piece in rest.iter().take(most) {
                if !inbox.gather(piece.payload, &mut gather) {
                    break;
                }
                part.end = gather.part();
                *count += 1;
            }
            if *count == 0 {
                break;
            }
            part.segment = (*count > 1).then_some(first.payload.len() as u16);
            rest = rest.get(*count..).unwrap_or_default();
            used += 1;
        }
        let parts = parts.get(..used).unwrap_or_default();
        match msg::send_many(flow.socket.as_fd(), &gather, parts) {
            Ok(sent) => Ok(counts.iter().take(sent).sum()),
            Err(error) => Err(Refused {
                error,
                several: counts[0] > 1,
            }),
        }
    }

    /// A datagram that must not be fragmented, and would have to be.
    fn too_big(&mut self, id: Id, key: &Key, piece: &Piece, inbox: &Inbox, outbox: &mut Outbox) {
        self.count(Why::TooBig);
        let Some(Flow::Udp(flow)) = self.flows.get(id) else {
            return;
        };
        let v4 = key.remote.addr.is_ipv4();
        let Ok(mtu) = sockopt::mtu(flow.socket.as_fd(), !v4) else {
            return;
        };
        let headers = ip_len(v4);
        // It fits the path: the kernel refused it for another reason, of which nothing can be said.
        if usize::from(piece.packet.len) + headers <= mtu as usize {
            return;
        }
        let mut payload = [0; QUOTED];
        let len = inbox.copy_start(piece.payload, &mut payload);
        let fault = Fault::too_big(v4, mtu);
        self.udp_fault_about(key, fault, piece.packet, &payload[..len], outbox);
    }
}

/// The largest datagrams that may leave several in one message: such as fit the route as they are.
fn largest(flow: &mut UdpFlow, key: &Key, run: &[Piece]) -> usize {
    if run.len() < 2 {
        return 0;
    }
    let v6 = key.remote.addr.is_ipv6();
    let segment = *flow.segment.get_or_insert_with(|| {
        let headers = (ip_len(!v6) + HEADER) as u32;
        sockopt::mtu(flow.socket.as_fd(), v6).map_or(0, |mtu| {
            mtu.saturating_sub(headers).min(u32::from(u16::MAX)) as u16
        })
    });
    usize::from(segment)
}
