//! Finding the guest: what comes from outside may come before the guest has said a word, so we ask for it (ARP, neighbour
//! discovery) and hold what cannot wait in a socket.

use std::net::IpAddr;

use super::{
    flow::Flow,
    state::Relay,
    waiting::{ASKED, Waiter},
};
use crate::{
    flow::{Chain, Id, Key},
    link::{Flushed, Outbox},
    net::{Endpoint, Now, Span, Why},
    service::{arp, ndp},
    sys::Marks,
};

/// How often the guest is asked for (RFC 4861, section 10: RETRANS_TIMER).
const INTERVAL: Span = Span::secs(1);

/// How long a datagram waits for the guest.
const PATIENCE: Span = Span::secs(10);

/// Datagrams held, of one flow and in all, and their octets.
const HELD_FLOW: usize = 16;
const HELD: usize = 1024;
const OCTETS_FLOW: usize = 64 * 1024;
const OCTETS: usize = 1 << 20;

impl Relay {
    /// Lets a flow wait until the guest is found at its address, or, if it is this peer's, at another that it may go to.
    pub(super) fn wait_for_guest(&mut self, id: Id, peer: Option<IpAddr>, now: Now) {
        let since = now;
        self.waiting.flows.push(Waiter { id, since, peer });
        self.waiting.ask.get_or_insert(now);
    }

    /// The addresses that the guest may be found at by what waits: the flow's own, and the one it would have now.
    fn sought(&self, waiter: &Waiter) -> impl Iterator<Item = IpAddr> + use<> {
        let own = self.flows.key(waiter.id).map(|key| key.guest.addr);
        let now = waiter.peer.and_then(|peer| self.guest.address_for(peer));
        own.into_iter().chain(now)
    }

    /// The guest does not answer a flow: it may have another MAC address by now, and have said nothing since.
    pub(super) fn doubt_guest(&mut self, id: Id, now: Now) {
        if let Some(key) = self.flows.key(id) {
            self.doubt(key.guest.addr, now);
        }
    }

    /// Datagrams go to this address, and none of them misses an answer.
    pub(super) fn doubt_moved(&mut self, addr: IpAddr) {
        if self.guest.may_have_moved(addr) {
            self.doubt(addr, self.turn);
        }
    }

    fn doubt(&mut self, addr: IpAddr, now: Now) {
        let doubts = &mut self.waiting.doubts;
        if doubts.len() < ASKED && !doubts.contains(&addr) {
            doubts.push(addr);
            self.waiting.ask.get_or_insert(now);
        }
    }

    /// Asks for the guest, where that is due, and gives up what has waited too long.
    pub(super) fn ask_for_guest(&mut self, outbox: &mut Outbox, heard: Now, now: Now) {
        if self.waiting.ask.is_none_or(|at| at > now) {
            return;
        }
        let flows = std::mem::take(&mut self.waiting.flows);
        let mut asked = std::mem::take(&mut self.waiting.doubts);
        for waiter in flows {
            let tired = match self.flows.get(waiter.id) {
                Some(Flow::Udp(_)) => heard.since(waiter.since) >= PATIENCE,
                // Connections count the repetitions of their SYN.
                Some(Flow::Tcp(_)) => false,
                Some(Flow::Echo(_) | Flow::Group(_)) | None => continue,
            };
            if tired {
                self.remove(waiter.id);
                continue;
            }
            self.waiting.flows.push(waiter);
            for addr in self.sought(&waiter) {
                if asked.len() < ASKED && !asked.contains(&addr) {
                    asked.push(addr);
                }
            }
        }
        for addr in &asked {
            self.solicit(*addr, outbox);
        }
        // Whoever is in doubt meanwhile waits until then.
        let any = !self.waiting.flows.is_empty() || !asked.is_empty();
        self.waiting.ask = any.then(|| now + INTERVAL);
        asked.clear();
        self.waiting.doubts = asked;
    }

    /// Asks who has an address.
    fn solicit(&mut self, addr: IpAddr, outbox: &mut Outbox) {
        match (addr, &self.net.v4) {
            (IpAddr::V4(addr), Some(v4)) => arp::request(v4, self.net.mac, addr, &mut self.scratch),
            (IpAddr::V4(_), None) => return,
            (IpAddr::V6(addr), _) => {
                if !ndp::solicit(&self.net, addr, &mut self.scratch) {
                    return;
                }
            }
        }
        // Without room or guest the next second brings another.
        let _ = outbox.copy(&self.scratch);
    }

    /// The guest was heard: what waited for that goes on.
    pub(super) fn release_waiting(&mut self, outbox: &mut Outbox, now: Now) {
        let news = self.waiting.news.replace(self.guest.news());
        if self.waiting.flows.is_empty() || news == self.waiting.news {
            return;
        }
        let mut at = 0;
        while let Some(&waiter) = self.waiting.flows.get(at) {
            let Waiter { id, .. } = waiter;
            if !self.has_found(&waiter) {
                at += 1;
                continue;
            }
            self.waiting.flows.swap_remove(at);
            match self.flows.get_mut(id) {
                Some(Flow::Tcp(_)) => self.send_syn(id, outbox, now),
                Some(Flow::Udp(flow)) => {
                    flow.waits = false;
                    self.udp_pull(id, outbox, now);
                }
                Some(Flow::Echo(_) | Flow::Group(_)) | None => {}
            }
        }
    }

    /// Whether the guest is where a flow waits for it. One that may have it anywhere goes on with the address it turned up at.
    fn has_found(&mut self, waiter: &Waiter) -> bool {
        let Some(key) = self.flows.key(waiter.id) else {
            return true;
        };
        // Where the client on the host has the guest's address, that is not where it goes.
        let mut sought = self.sought(waiter).filter(|&addr| addr != key.remote.addr);
        let Some(addr) = sought.find(|&addr| self.guest.is_at(addr)) else {
            return false;
        };
        if addr == key.guest.addr {
            return true;
        }
        let guest = Endpoint::new(addr, key.guest.port);
        let Ok((key, slot)) = self.free_key(Key { guest, ..key }, |_| false) else {
            return false;
        };
        let renamed = self.rename(waiter.id, key);
        self.looked_at(slot);
        renamed
    }

    /// Holds a datagram for the guest, behind others of its flow.
    pub(super) fn hold(&mut self, id: Id, len: usize, marks: Marks) {
        let held = self.waiting.held.iter().filter(|(owner, ..)| *owner == id);
        let (count, octets) =
            held.fold((0, 0), |(n, sum), (_, chain, _)| (n + 1, sum + chain.len()));
        let fits = count < HELD_FLOW
            && (octets + len <= OCTETS_FLOW || count == 0)
            && self.waiting.held.len() < HELD
            && self.waiting.octets + len <= OCTETS;
        let mut chain = Chain::default();
        let payload = self.message.get(..len).unwrap_or_default();
        if !fits || self.pool.append(&mut chain, payload, len) < len {
            self.pool.release(chain);
            return self.count(Why::NoGuest);
        }
        self.waiting.octets += len;
        self.waiting.held.push((id, chain, marks));
    }

    /// Hands the guest what is held for a flow. `false` if the flow is not to go on now: the guest is not found, or the link
    /// is full.
    pub(super) fn deliver_held(&mut self, id: Id, outbox: &mut Outbox) -> bool {
        match self.flows.get(id) {
            Some(Flow::Udp(flow)) if !flow.waits => {}
            _ => return false,
        }
        while let Some(at) = self.waiting.of(id) {
            if !outbox.has_room() || outbox.flush() == Flushed::Blocked {
                self.starve(id);
                return false;
            }
            let (chain, marks) = self.waiting.take(at);
            self.udp_held(id, &chain, marks, outbox);
            self.pool.release(chain);
        }
        true
    }

    /// Gives up what is held for a flow that ends.
    pub(super) fn forget_held(&mut self, id: Id) {
        while let Some(at) = self.waiting.of(id) {
            let (chain, _) = self.waiting.take(at);
            self.pool.release(chain);
            self.count(Why::NoGuest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        fixture,
        flow::{Syn, TcpFlow, UdpFlow},
        share::Share,
        state::{Limits, SPILL_BLOCK},
    };
    use super::*;
    use crate::{
        host::socket::Features,
        net::{Mac, Protocol},
        proto::tcp::{Conn, Origin, SynRetries},
        service,
    };
    use std::os::unix::net::UnixDatagram;

    /// A relay with datagrams for a guest that is not found, of two flows, one of which has more than are held.
    fn waiting() -> (Relay, [Id; 2]) {
        let limits = Limits {
            spill: 64 * SPILL_BLOCK,
            ..Limits::few(16)
        };
        let mut relay = Relay::new(service::fixture::net(), Features::none(), limits);
        let flows = [3, HELD_FLOW + 1].map(|count| {
            let flow = UdpFlow {
                waits: true,
                ..UdpFlow::new(UnixDatagram::unbound().unwrap().into(), Now(0))
            };
            let key = fixture::key(Protocol::Udp, count as u16);
            let id = relay.insert(key, Flow::Udp(flow)).unwrap();
            relay.wait_for_guest(id, None, Now(0));
            for _ in 0..count {
                relay.hold(id, 100, Marks::default());
            }
            id
        });
        (relay, flows)
    }

    #[test]
    fn each_datagram_that_waited_in_vain_is_counted() {
        let (mut relay, _) = waiting();
        let (mut outbox, _guest) = fixture::link();
        assert_eq!(relay.drops().of(Why::NoGuest), 1);
        let late = Now(0) + PATIENCE;
        relay.ask_for_guest(&mut outbox, late, late);
        assert!(relay.flows.is_empty());
        assert_eq!(relay.drops().of(Why::NoGuest), 3 + HELD_FLOW as u64 + 1);
    }

    #[test]
    fn those_of_a_flow_that_makes_way_are_counted_too() {
        let (mut relay, [few, _]) = waiting();
        relay.remove(few);
        assert_eq!(relay.drops().of(Why::NoGuest), 1 + 3);
        relay.guest_left();
        assert_eq!(relay.drops().of(Why::NoGuest), 1 + 3 + HELD_FLOW as u64);
    }

    /// Thousands may wait, and a guest that is elsewhere sends as fast as it likes.
    #[test]
    fn who_waits_is_looked_at_when_the_guest_says_something_new() {
        let (mut relay, [few, many]) = waiting();
        let (mut outbox, _guest) = fixture::link();
        relay.guest.saw_mac(Mac([2, 0, 0, 0, 0, 1]));
        relay.guest.saw_addr([192, 0, 2, 99].into());
        relay.release_waiting(&mut outbox, Now(1));
        relay.remove(few);
        for _ in 0..3 {
            relay.guest.saw_addr([192, 0, 2, 99].into());
            relay.release_waiting(&mut outbox, Now(2));
            assert_eq!(relay.waiting.flows.len(), 2);
        }
        relay.guest.saw_addr(fixture::GUEST.into());
        relay.release_waiting(&mut outbox, Now(3));
        assert!(relay.waiting.flows.is_empty() && relay.waiting.of(many).is_none());
    }

    /// The client has that address on its side.
    #[test]
    fn a_flow_does_not_go_to_where_it_came_from() {
        let (mut relay, [id, _]) = waiting();
        let (mut outbox, _guest) = fixture::link();
        relay.waiting.flows.clear();
        relay.wait_for_guest(id, Some(fixture::REMOTE.into()), Now(0));
        relay.guest.saw_mac(Mac([2, 0, 0, 0, 0, 1]));
        relay.guest.saw_addr(fixture::REMOTE.into());
        relay.release_waiting(&mut outbox, Now(1));
        assert_eq!(relay.waiting.flows.len(), 1);
        relay.guest.saw_addr(fixture::GUEST.into());
        relay.release_waiting(&mut outbox, Now(2));
        assert!(relay.waiting.flows.is_empty());
    }

    /// Its answer comes under another key than its peer came by, and is to find it.
    #[test]
    fn a_connection_that_goes_where_the_guest_turns_up_counts_there() {
        let [mut first, mut second] = [fixture::relay(16), fixture::relay(16)];
        let mut shares = Share::among(2, 16, std::iter::empty().collect());
        second.join(shares.pop().unwrap());
        first.join(shares.pop().unwrap());
        let can_claim = |key: &Key| {
            let share = second.share.as_ref().unwrap();
            let slot = share.claim(key).flatten();
            slot.inspect(|&slot| share.looked_at(slot)).is_some()
        };
        let origin = Origin {
            iss: fixture::ISS,
            clock: 0,
        };
        let conn = Conn::toward_guest(origin, 1460, SynRetries::default(), Now(0));
        let socket = UnixDatagram::unbound().unwrap().into();
        let flow = TcpFlow::new(socket, conn, Syn::default(), false);
        let before = fixture::key(Protocol::Tcp, 22);
        let id = first.insert_inbound(before, Flow::Tcp(flow)).unwrap();
        first.wait_for_guest(id, Some(fixture::REMOTE.into()), Now(0));
        first.guest.saw_mac(Mac([2, 0, 0, 0, 0, 1]));
        first.guest.saw_addr([192, 0, 2, 99].into());
        let (mut outbox, _guest) = fixture::link();
        first.release_waiting(&mut outbox, Now(1));
        let after = Key {
            guest: Endpoint::new([192, 0, 2, 99].into(), 22),
            ..before
        };
        assert_eq!((first.find(&before), first.find(&after)), (None, Some(id)));
        assert!(!can_claim(&after));
        first.remove(id);
        assert!(can_claim(&before) && can_claim(&after));
    }
}
