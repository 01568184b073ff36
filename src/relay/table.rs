//! Flows come into the table and go: room is made for new ones in favour of which others end, and what was kept for one that
//! ends is given back.

use std::{io, net::IpAddr, os::fd::AsRawFd};

use super::{
    flow::{Bound, Flow, TcpFlow},
    request::Request,
    share::Share,
    state::{Relay, longest_line},
};
use crate::{
    config::Net,
    flow::{Id, Key},
    host::socket,
    net::{Now, Span, Why},
    proto::tcp::Phase,
    sys::{is_shortage, reason},
};

/// Flows looked at for one that a new one from outside may replace.
const REPLACED: usize = 64;

/// Flows from outside that one forwarded UDP port has at most: each has a socket there, and the kernel goes through all of them
/// to bind another. Of so many one is looked for that may end, after so long a silence.
const VISITORS: usize = 4096;
const VISITORS_SEEN: usize = 16;
const VISITOR_IDLE: Span = Span::millis(250);

impl Relay {
    /// Finds a flow by its key.
    pub(super) fn find(&mut self, key: &Key) -> Option<Id> {
        if let Some((last, id)) = &self.last
            && last == key
            && self.flows.get(*id).is_some()
        {
            return Some(*id);
        }
        let id = self.flows.find(key)?;
        let before = self.last.replace((*key, id));
        if before.is_some_and(|(_, before)| self.flows.get(before).is_some()) {
            self.company.joined(self.turn);
        }
        Some(id)
    }

    /// Adds a flow of the guest's own and has its socket watched.
    pub(super) fn insert(&mut self, key: Key, flow: Flow) -> Result<Id, Why> {
        self.insert_of(None, key, flow)
    }

    /// Adds a flow that its peer began, once [`Relay::admit_peer`] has let it in.
    pub(super) fn insert_inbound(&mut self, key: Key, flow: Flow) -> Result<Id, Why> {
        self.insert_of(Some(key.remote.addr), key, flow)
    }

    /// Adds a flow that this peer began, or else the guest.
    pub(super) fn insert_of(
        &mut self,
        peer: Option<IpAddr>,
        key: Key,
        flow: Flow,
    ) -> Result<Id, Why> {
        let raw = flow.socket().as_raw_fd();
        let connects = matches!(&flow, Flow::Tcp(flow) if flow.conn.phase() == Phase::Connecting);
        let of_group = flow.is_of_group();
        let (bound, roomy) = flow.socket_kind();
        let inserted = if self.find_room() {
            let inserted = self.flows.insert(key, flow);
            if let (Err(_), Some(share)) = (&inserted, &self.share) {
                share.give_room_back();
            }
            inserted
        } else {
            Err(flow)
        };
        match inserted {
            Ok(id) => {
                if let Some(share) = &self.share {
                    share.opened(&key, of_group);
                }
                log::debug!("flow {}: {:?} {key}", id.slot, key.protocol);
                self.census.enter(id.slot, peer);
                self.roomy += usize::from(roomy);
                match bound {
                    Bound::Guest => self.count_sharing(&key, |count| count + 1),
                    Bound::Forwarded { port, .. } => self.visitors.enter(port, id.slot),
                    Bound::Elsewhere => {}
                }
                self.enter_pair(id);
                self.requests.push(if connects {
                    Request::Watch(raw, id)
                } else {
                    Request::Hear(raw, id)
                });
                Ok(id)
            }
            Err(flow) => {
                self.turn_away(flow);
                Err(Why::NoFlow)
            }
        }
    }

    /// Gives up a flow that there is no room for.
    fn turn_away(&mut self, mut flow: Flow) {
        if let Flow::Tcp(flow) = &mut flow {
            // In order, its peer would take what it has for all there is.
            socket::reset_on_close(&flow.socket);
            self.pool.release(std::mem::take(&mut flow.spill));
        }
        self.requests.push(Request::Close(flow.into_socket()));
    }

    /// Whether there is room or a descriptor for another flow only where one ends.
    pub(super) fn is_full(&self) -> bool {
        let all = self.flows.capacity();
        let room = self.share.as_ref().map_or(all, Share::room);
        self.flows.len() >= self.scarce.unwrap_or(all).min(room).min(all)
    }

    /// Whether this flow of the guest's may begin in place of another now.
    pub(super) fn may_replace(&mut self, key: &Key, now: Now) -> bool {
        if self.turnover.admits(key, now) {
            return true;
        }
        if self.warned_turnover.is_due(self.turn) {
            let flows = self.flows.len();
            log::warn!(
                "Too many new flows of the guest in place of others ({flows} flows): some are lost or have to be asked for again"
            );
        }
        false
    }

    /// Takes room for another flow, for which an older one ends if need be. `false` if there is none.
    fn find_room(&mut self) -> bool {
        let free = |relay: &Self| relay.flows.len() < relay.flows.capacity();
        if free(self) && self.share.as_ref().is_none_or(Share::take_room) {
            return true;
        }
        let made = self.make_room() && free(self);
        // The one for the other: though all relays together may have too many, this does not make them more.
        if made && let Some(share) = &self.share {
            share.keep_room();
        }
        made
    }

    fn make_room(&mut self) -> bool {
        let flows = self.flows.len();
        let made = self.evict();
        let outcome = if made {
            "those idle or half-open for longest make way"
        } else {
            "new flows are refused"
        };
        if self.warned_full.is_due(self.turn) {
            log::warn!("Flow table full ({flows} flows): {outcome}");
        }
        made
    }

    /// Ends a flow in favour of another: of the guest's or of its peers', whichever are more, the datagram flow that was
    /// idle for longest or the connection that was half-open for longest. So a flood pushes out itself. `false` if there is none.
    fn evict(&mut self) -> bool {
        while let Some(id) = self.census.oldest().and_then(|slot| self.flows.at(slot)) {
            if self.makes_room(id) {
                return true;
            }
        }
        false
    }

    /// Ends a flow in favour of another, if it may be ended.
    fn makes_room(&mut self, id: Id) -> bool {
        match self.flows.get(id) {
            Some(Flow::Tcp(flow)) if flow.conn.phase().is_handshake() => self.abort(id),
            Some(Flow::Udp(_) | Flow::Echo(_)) => self.remove(id),
            // It has come through since, or the guest has asked for it: it stays.
            Some(Flow::Tcp(_) | Flow::Group(_)) | None => {
                self.census.forget(id.slot);
                return false;
            }
        }
        log::debug!("flow {}: makes room", id.slot);
        true
    }

    /// Lets a peer begin another flow, in favour of which an older one may have to end.
    ///
    /// # Errors
    /// [`Why::Share`] where the peer, or all of them together, have as many as they may.
    pub(super) fn admit_peer(&mut self, peer: IpAddr) -> Result<(), Why> {
        let all = self.flows.capacity();
        let room = self.share.as_ref().map_or(all, Share::room);
        self.census.set_capacity(room.min(all));
        if self.census.admits(peer) {
            return Ok(());
        }
        let replaced = self.replace_idle(peer);
        if self.warned_share.is_due(self.turn) {
            let (peers, all) = (self.census.peers(), room.min(all));
            let outcome = if replaced {
                "those idle or half-open for longest make way"
            } else {
                "it gets no more"
            };
            log::warn!("Peers have {peers} flows of {all}, too many for one of {peer}: {outcome}");
        }
        if replaced { Ok(()) } else { Err(Why::Share) }
    }

    /// Ends one of the flows from outside that are idle for longest, if there is one a flow of this peer may replace.
    fn replace_idle(&mut self, peer: IpAddr) -> bool {
        let mut next = self.census.oldest_of_peers();
        for _ in 0..REPLACED {
            let Some(slot) = next else { break };
            next = self.census.next_of_peers(slot);
            let Some(id) = self.flows.at(slot) else { break };
            let theirs = self.flows.key(id).map_or(peer, |key| key.remote.addr);
            if self.census.may_replace(theirs, peer) && self.makes_room(id) {
                return true;
            }
        }
        false
    }

    /// Where an error means that the system is short of what flows need, says so and gives up a flow for the next one: not for
    /// want of a port, which is of one destination.
    pub(super) fn make_do(&mut self, error: &io::Error) {
        let wants_port = error.raw_os_error() == Some(libc::EADDRNOTAVAIL);
        if !wants_port && !is_shortage(error) {
            return;
        }
        // Sockets are closed at the end of a turn: giving up more before would not help.
        if !wants_port && self.gave_up.replace(self.turn) != Some(self.turn) {
            self.evict();
        }
        if self.warned_full.is_due(self.turn) {
            log::warn!("Cannot open more sockets for flows: {}", reason(error));
        }
    }

    /// Opens a socket for a flow of the guest's that may [`begin`](Relay::begin), and for want of descriptors once more, after a
    /// flow has given up its own.
    pub(super) fn open_socket<T>(
        &mut self,
        key: &Key,
        now: Now,
        open: impl Fn(&Net) -> io::Result<T>,
    ) -> io::Result<T> {
        let was_full = self.is_full();
        let error = match open(&self.net) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                error
            }
            opened => {
                self.scarce.take_if(|flows| self.flows.len() >= *flows);
                return opened;
            }
        };
        self.gave_up = Some(self.turn);
        // Where it was not known before, nobody has asked.
        let replaces = was_full || self.may_replace(key, now);
        if replaces {
            self.evict_at_once();
        }
        self.scarce = Some(self.flows.len());
        if replaces {
            open(&self.net)
        } else {
            Err(error)
        }
    }

    /// Makes room as [`Relay::evict`] does, and closes the flow's socket at once, where no request names its descriptor any
    /// more: the next one has that.
    fn evict_at_once(&mut self) {
        self.evict();
        let Some((Request::Close(socket), before)) = self.requests.split_last() else {
            return;
        };
        let raw = socket.as_raw_fd();
        let names = |request: &Request| match request {
            Request::Watch(fd, _) | Request::Hear(fd, _) | Request::Rewatch(fd, _) => *fd == raw,
            Request::Listen(fd, _) | Request::ShutDown(fd) => *fd == raw,
            Request::Close(_) => false,
        };
        if !before.iter().any(names) {
            self.requests.pop();
        }
    }

    /// Ends a flow with a reset towards the host.
    pub(super) fn abort(&mut self, id: Id) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
            socket::reset_on_close(&flow.socket);
        }
        self.remove(id);
    }

    /// Forgets a flow and closes its socket.
    pub(super) fn remove(&mut self, id: Id) {
        if let Some(flow) = self.take_out(id) {
            if let Flow::Tcp(flow) = &flow
                && !flow.conn.phase().is_handshake()
                && socket::heard_icmp_error(&flow.socket)
            {
                self.count(Why::HostError);
            }
            self.requests.push(Request::Close(flow.into_socket()));
        }
    }

    /// Forgets a flow, with all that was kept for it.
    pub(super) fn take_out(&mut self, id: Id) -> Option<Flow> {
        self.forget_held(id);
        let key = self.flows.key(id);
        let mut flow = self.flows.remove(id)?;
        log::debug!("flow {}: ends", id.slot);
        if let Some(key) = &key {
            self.census.leave(id.slot, key.remote.addr);
            if let Some(share) = &self.share {
                share.closed(key, flow.is_of_group());
            }
        }
        let (bound, roomy) = flow.socket_kind();
        self.roomy = self.roomy.saturating_sub(usize::from(roomy));
        match (bound, key) {
            (Bound::Guest, Some(key)) => self.count_sharing(&key, |count| count.saturating_sub(1)),
            (Bound::Forwarded { port, .. }, _) => self.visitors.leave(port, id.slot),
            (Bound::Guest, None) | (Bound::Elsewhere, _) => {}
        }
        self.leave_pair(&mut flow);
        self.wheel.disarm(id.slot);
        if let Flow::Tcp(TcpFlow { spill, state, .. }) = &mut flow {
            self.pool.release(std::mem::take(spill));
            if let Some(lent) = state.disorder {
                self.disorders.take_back(lent);
            }
        }
        Some(flow)
    }

    /// Has a flow go on with another address of the guest's, and all that is kept for it. `false` if the key is another's.
    pub(super) fn rename(&mut self, id: Id, key: Key) -> bool {
        let Some(before) = self.flows.key(id) else {
            return false;
        };
        if !self.flows.rename(id, key) {
            return false;
        }
        self.last = None;
        if let Some(share) = &self.share {
            share.renamed(&before, &key);
        }
        log::debug!("flow {}: now {key}", id.slot);
        true
    }

    /// Counts flows whose sockets are bound to the guest's port.
    fn count_sharing(&mut self, key: &Key, count: impl Fn(u16) -> u16) {
        if let Some(sharing) = self.sharing.get_mut(usize::from(key.guest.port)) {
            *sharing = count(*sharing);
        }
    }

    /// Lets a peer begin another flow at a forwarded UDP port. Where that has as many as it may, one of them ends that nothing
    /// was heard of for a while: this peer's, if it has one, and else anybody's.
    ///
    /// # Errors
    /// [`Why::Share`] where there is none of those looked at.
    pub(super) fn admit_visitor(&mut self, port: u16, peer: IpAddr, now: Now) -> Result<(), Why> {
        if self.visitors.len(port) < VISITORS {
            return Ok(());
        }
        let mut idlest = None;
        for _ in 0..VISITORS_SEEN {
            let Some(slot) = self.visitors.take_turn(port) else {
                break;
            };
            if let Some(id) = self.flows.at(slot)
                && let (Some(key), Some(Flow::Udp(flow))) = (self.flows.key(id), self.flows.get(id))
                && now.since(flow.last) >= VISITOR_IDLE
            {
                let rank = (key.remote.addr != peer, flow.last);
                if idlest.is_none_or(|(other, _)| rank < other) {
                    idlest = Some((rank, id));
                }
            }
        }
        let (_, id) = idlest.ok_or(Why::Share)?;
        self.makes_room(id);
        Ok(())
    }

    /// Puts a flow in line for room on the link.
    pub(super) fn starve(&mut self, id: Id) {
        let flow = self.flows.get_mut(id);
        if flow.is_some_and(|flow| !std::mem::replace(flow.starved(), true)) {
            // A guest that does not read could make it longer for ever.
            if self.starved.len() >= longest_line(self.flows.capacity()) {
                self.starved.retain(|&id| self.flows.get(id).is_some());
            }
            self.starved.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{fixture, flow::UdpFlow};
    use super::*;
    use crate::net::Protocol;
    use std::os::unix::net::UnixDatagram;

    const FLOWS: usize = 16;

    /// A guest that never reads can have one flow after the other end in line, as long as it likes.
    #[test]
    fn flows_that_end_in_line_for_the_link_do_not_make_it_longer() {
        let mut relay = fixture::relay(FLOWS);
        for port in 1..=1000 {
            let socket = UnixDatagram::unbound().unwrap().into();
            let flow = Flow::Udp(UdpFlow::new(socket, Now(0)));
            let id = relay
                .insert(fixture::key(Protocol::Udp, port), flow)
                .unwrap();
            relay.starve(id);
            relay.requests().clear();
        }
        assert!(relay.starved.len() <= 2 * FLOWS, "{}", relay.starved.len());
        let waiting = relay.starved.iter().filter_map(|&id| relay.flows.key(id));
        let ports: Vec<u16> = waiting.map(|key| key.guest.port).collect();
        let last: Vec<u16> = (1..=1000).skip(1000 - FLOWS).collect();
        assert_eq!(ports, last, "those there are have kept their places");
    }
}
