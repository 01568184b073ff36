//! Several relays that serve one guest: how they come together, and how one takes over what another has.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use super::{
    flow::{ECHO_TIMEOUT, Flow, State, TcpFlow},
    handoff::Accepted,
    share::Share,
    state::Relay,
};
use crate::{
    flow::{Guest, Id, Key},
    link::{Inbox, Outbox},
    net::{Now, Why},
    proto::{state::QUEUE_MAX, tcp::Conn},
    wire::frame::classify,
};

/// Connections taken from another relay before it is others' turn.
const ACCEPTED: usize = 64;

/// A flow on its way from one relay to another.
#[derive(Debug)]
pub struct Moved {
    key: Key,
    /// Who began it, if that was not the guest.
    peer: Option<IpAddr>,
    flow: Flow,
    /// What its connection had taken from the guest.
    held: Vec<u8>,
    /// What its relay knows of the guest, if that stays where it is: nothing that was for it is lost, and the connection goes
    /// on as it is.
    guest: Option<Guest>,
}

impl Moved {
    /// Its socket.
    pub fn socket(&self) -> RawFd {
        self.flow.socket().as_raw_fd()
    }
}

impl Relay {
    /// Serves the guest together with others from now on. Its flows, and what waits for its turn, stay here.
    pub fn join(&mut self, share: Share) {
        for id in self.flows.ids() {
            if let (Some(key), Some(flow)) = (self.flows.key(id), self.flows.get(id)) {
                share.brings(&key, flow.is_of_group());
            }
        }
        let net = &self.net;
        self.backlog.each(|frame, label| {
            let read = classify(frame, frame.len()).ok();
            label.slot = read.and_then(|read| share.count_on(net, &read.body, frame));
        });
        self.share = Some(share);
    }

    /// Serves the guest alone from now on.
    pub fn part(&mut self) -> Option<Share> {
        self.release_line();
        self.reassembly.release_slots();
        self.forget_parts();
        let share = self.share.take()?;
        for id in self.flows.ids() {
            if let (Some(key), Some(flow)) = (self.flows.key(id), self.flows.get(id)) {
                share.closed(&key, flow.is_of_group());
            }
        }
        Some(share)
    }

    /// What waits for its turn counts on nothing any more.
    pub(super) fn release_line(&mut self) {
        if let Some(share) = &self.share {
            self.backlog.each(|_, label| {
                if let Some(slot) = label.slot.take() {
                    share.looked_at(slot);
                }
            });
        }
    }

    /// Whether new flows may be this relay's, where several share a guest.
    pub fn set_able(&mut self, able: bool) {
        if let Some(share) = &mut self.share {
            share.set_able(able);
        }
    }

    /// Splits the room for flows among the relays that have a queue, a bit each, while nobody else runs.
    pub fn divide_room(&self, able: u32) {
        if let Some(share) = &self.share {
            share.divide_room(able);
        }
    }

    /// Whether other relays have handed over frames or connections.
    pub fn has_handed(&self) -> bool {
        self.share.as_ref().is_some_and(Share::has_handed)
    }

    /// The relays that are to be woken by now, a bit each.
    pub fn wakes(&mut self) -> u32 {
        let share = self.share.as_mut();
        share.map_or(0, Share::wakes)
    }

    /// Hands a peer's connection to another relay, if it is that one's turn.
    ///
    /// # Errors
    /// The connection, if it stays here: always where it is not known yet where the guest is, as that is found out here.
    pub(super) fn hand_on(
        &mut self,
        socket: OwnedFd,
        peer: SocketAddr,
        key: Key,
    ) -> Result<(), OwnedFd> {
        match &mut self.share {
            Some(share) if self.guest.is_at(key.guest.addr) => {
                share.hand_on(socket, peer, key, self.guest)
            }
            _ => Err(socket),
        }
    }

    /// Takes over connections that another relay has accepted.
    pub(super) fn take_accepted(&mut self, outbox: &mut Outbox, now: Now) {
        for _ in 0..ACCEPTED {
            let Some(accepted) = self.share.as_ref().and_then(Share::take_accepted) else {
                return;
            };
            self.learn_of_guest(&accepted.guest);
            let Accepted {
                socket, peer, key, ..
            } = accepted;
            if let Err(why) = self.tcp_inbound(socket, (peer, false), key, outbox, now) {
                self.count(why);
            }
            self.looked_at(Some(accepted.slot));
            self.release_waiting(outbox, now);
        }
    }

    /// What another relay knows of the guest is known here.
    fn learn_of_guest(&mut self, guest: &Guest) {
        self.met = true;
        self.guest.hear_of(guest);
    }

    /// Takes what other relays have handed over for as long as it fits at once; its frames are in the inbox, which is to be
    /// given back.
    pub(super) fn take_held(&mut self) -> Option<Inbox> {
        self.share.as_mut()?.take()
    }

    /// What was taken has been looked at.
    pub(super) fn put_held(&mut self, held: Inbox) {
        if let Some(share) = &mut self.share {
            share.put(held);
        }
    }

    /// Notes that something is known of the guest that the other relays may not know.
    pub(super) const fn note_news(&mut self, news: bool) {
        if let Some(share) = &mut self.share {
            share.news |= news;
        }
    }

    /// Whether [`Relay::take_news`] has something to say.
    pub fn has_news(&self) -> bool {
        self.share.as_ref().is_some_and(|share| share.news)
    }

    /// What is known of the guest, if that is more than when it was last asked for.
    pub fn take_news(&mut self) -> Option<Guest> {
        let share = self.share.as_mut()?;
        std::mem::take(&mut share.news).then_some(self.guest)
    }

    /// Another relay knows this of the guest.
    pub fn hear_of_guest(&mut self, guest: &Guest, outbox: &mut Outbox, now: Now) {
        if !self.guest.is_heard() {
            self.expect_groups(now);
        }
        self.learn_of_guest(guest);
        self.release_waiting(outbox, now);
    }

    /// Takes over what another relay knows of the host.
    pub fn learn_from(&mut self, other: &Self) {
        self.set_net(other.net.clone());
        self.neighbours.clone_from(&other.neighbours);
    }

    /// Whether there is no flow, and nothing that waits to begin one.
    pub fn is_idle(&self) -> bool {
        self.flows.is_empty() && self.backlog.is_empty()
    }

    /// Whether parts of packets wait for others.
    pub fn has_parts(&self) -> bool {
        !self.reassembly.is_empty()
    }

    /// Takes over what waits at another relay to begin flows. Nobody else runs meanwhile.
    pub fn take_over_line(&mut self, other: &mut Self) {
        let Some(mut held) = other.backlog.held.take() else {
            return;
        };
        while let Some(label) = other.backlog.pop(&mut held) {
            if let (Some(slot), Some(share)) = (label.slot, &self.share) {
                share.takes_over(slot);
            }
            let frame = held.frame(0);
            if !frame.is_some_and(|frame| self.backlog.push(&held, frame, label)) {
                self.count(Why::Backlog);
                self.looked_at(label.slot);
            }
        }
        other.backlog.held = Some(held);
    }

    /// Gives away the first flow from a slot on, which is moved on, and what counts on it.
    pub fn give(&mut self, slot: &mut u32) -> Option<Moved> {
        let id = self.flows.from(*slot)?;
        *slot = id.slot + 1;
        self.give_up(id, None)
    }

    /// Gives away a flow; to one that is to know this of the `guest`, if what was said to that reaches it.
    pub(super) fn give_up(&mut self, id: Id, guest: Option<Guest>) -> Option<Moved> {
        let key = self.flows.key(id)?;
        let mut held = Vec::new();
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
            flow.forget_all();
            held.extend(self.pool.pieces(&flow.spill).flatten());
        }
        let peer = self.census.is_foreign(id.slot).then_some(key.remote.addr);
        let flow = self.take_out(id)?;
        Some(Moved {
            key,
            peer,
            flow,
            held,
            guest,
        })
    }

    /// Takes a flow of another relay's over; it goes on here as one does that has come from another machine. One there is no
    /// room for ends. Nobody else runs meanwhile.
    pub fn adopt(&mut self, moved: Moved, now: Now) {
        let Moved {
            key,
            peer,
            flow,
            held,
            guest,
        } = moved;
        if let Some(guest) = &guest {
            self.learn_of_guest(guest);
        }
        let intact = guest.is_some();
        if let Some(share) = &self.share {
            share.moves(&key);
        }
        let due = match flow {
            Flow::Tcp(flow) => return self.adopt_tcp(peer, key, flow, &held, intact, now),
            Flow::Udp(ref flow) => flow.last + self.udp_timeout(flow),
            Flow::Echo(ref flow) => flow.last + ECHO_TIMEOUT,
            // The first relay has had these from their start.
            Flow::Group(_) => return,
        };
        let Ok(id) = self.insert_of(peer, key, flow) else {
            return;
        };
        self.wheel.arm(id.slot, due);
        // What its socket holds is told of when it is watched.
        match self.flows.get_mut(id) {
            Some(Flow::Udp(flow)) => flow.starved = false,
            Some(Flow::Echo(flow)) => flow.starved = false,
            Some(Flow::Tcp(_) | Flow::Group(_)) | None => {}
        }
        self.starve(id);
    }

    fn adopt_tcp(
        &mut self,
        peer: Option<IpAddr>,
        key: Key,
        flow: TcpFlow,
        held: &[u8],
        intact: bool,
        now: Now,
    ) {
        let TcpFlow {
            socket,
            conn,
            syn,
            peeks,
            forget,
            state: before,
            ..
        } = flow;
        // What came ahead of a gap is forgotten, and sent again.
        let conn = match conn.save(now).filter(|_| !intact) {
            Some(saved) => Conn::restored(&saved, self.syn_retries, now).unwrap_or(conn),
            None => conn,
        };
        let mut flow = TcpFlow::new(socket, conn, syn, false);
        (flow.peeks, flow.forget) = (peeks, forget);
        flow.state = State {
            readable: true,
            ended: before.ended,
            urgent: before.urgent,
            failed: before.failed,
            lost: before.lost,
            owes_ack: !conn.phase().is_handshake(),
            writes: before.writes,
            ..State::default()
        };
        let whole = self.pool.append(&mut flow.spill, held, QUEUE_MAX) == held.len();
        let Ok(id) = self.insert_of(peer, key, Flow::Tcp(flow)) else {
            return;
        };
        if !whole {
            return self.abort(id);
        }
        self.drain_spill(id);
        self.shut_down_if_due(id);
        self.seek(id);
        self.space(id);
        self.starve(id);
        self.schedule(id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        fixture::{self, GUEST, REMOTE},
        label::Label,
    };
    use super::*;
    use crate::{net::Protocol, wire::checksum::Sum};

    /// Guests' ports, of which each begins a flow.
    const PORTS: std::ops::Range<u16> = 5000..5020;

    /// Flows of all relays together.
    const FLOWS: usize = 64;

    /// A datagram without payload or checksum.
    fn frame(port: u16) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        ip.extend([GUEST, REMOTE].map(|addr| addr.octets()).as_flattened());
        let sum = Sum::new().bytes(&ip).finish();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        frame.extend(ip);
        frame.extend([port, 53, 8, 0].map(u16::to_be_bytes).as_flattened());
        frame
    }

    /// Has datagrams from all ports wait for their turn.
    fn line_up(relay: &mut Relay) {
        let mut inbox = Inbox::holding();
        for port in PORTS {
            let octets = frame(port);
            inbox.hold(&octets);
            let body = classify(&octets, octets.len()).unwrap().body;
            let frame = inbox.frame(0).unwrap();
            let label = Label::new(None, &body, frame);
            assert!(relay.backlog.push(&inbox, frame, label));
        }
    }

    /// The ports of those that wait, in their order, and how many count on a slot.
    fn line(relay: &mut Relay) -> (Vec<u16>, usize) {
        let (mut ports, mut counting) = (Vec::new(), 0);
        relay.backlog.each(|frame, label| {
            ports.push(u16::from_be_bytes([frame[34], frame[35]]));
            counting += usize::from(label.slot.is_some());
        });
        (ports, counting)
    }

    /// Whether a flow of each port can be this relay's.
    fn can_have(relay: &Relay) -> impl Iterator<Item = bool> {
        let share = relay.share.as_ref().unwrap();
        PORTS.map(|port| {
            let slot = share.claim(&fixture::key(Protocol::Udp, port));
            slot.flatten()
                .inspect(|&slot| share.looked_at(slot))
                .is_some()
        })
    }

    #[test]
    fn what_waits_for_its_turn_keeps_its_flows_here_while_relays_join_and_part() {
        let (mut first, mut second) = (fixture::relay(FLOWS), fixture::relay(FLOWS));
        line_up(&mut second);
        for _ in 0..2 {
            let mut shares = Share::among(2, FLOWS, std::iter::empty().collect());
            second.join(shares.pop().unwrap());
            first.join(shares.pop().unwrap());
            assert_eq!(line(&mut second), (PORTS.collect(), PORTS.len()));
            assert!(can_have(&first).all(|can| !can));
            second.part();
            assert_eq!(line(&mut second), (PORTS.collect(), 0));
            assert!(can_have(&first).all(|can| can));
            first.part();
        }
    }

    #[test]
    fn what_waits_for_its_turn_is_taken_over_in_order_and_its_flows_with_it() {
        let (mut first, mut second) = (fixture::relay(FLOWS), fixture::relay(FLOWS));
        let mut shares = Share::among(2, FLOWS, std::iter::empty().collect());
        line_up(&mut second);
        second.join(shares.pop().unwrap());
        first.join(shares.pop().unwrap());
        first.take_over_line(&mut second);
        assert!(second.is_idle());
        assert_eq!(line(&mut first), (PORTS.collect(), PORTS.len()));
        assert!(can_have(&second).all(|can| !can));
        first.release_line();
        assert!(can_have(&second).all(|can| can));
    }
}
