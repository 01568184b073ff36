//! Pairs of a port of the host and a peer. What the peer sends there comes to one socket, the newest, whatever others are
//! connected alike: so each datagram flow of the guest's own has a pair that is no other's. Two may want the same: from two
//! addresses of the guest, or to two addresses that are one to the host.

use std::net::Ipv4Addr;

use super::{
    flow::{Bound, Flow},
    state::Relay,
};
use crate::{
    flow::{Id, Key},
    host::socket,
    net::{Endpoint, Protocol},
};

/// The name of a pair: the host's address counts as little as the interface.
fn pair(port: u16, peer: Endpoint) -> Key {
    Key {
        protocol: Protocol::Udp,
        guest: Endpoint::new(Ipv4Addr::UNSPECIFIED.into(), port),
        remote: peer,
    }
}

impl Relay {
    /// The flow whose socket is at this port and connected to this peer.
    pub(super) fn flow_between(&self, port: u16, peer: Endpoint) -> Option<Id> {
        let id = *self.pairs.get(self.pairs.find(&pair(port, peer))?)?;
        self.flows.get(id).map(|_| id)
    }

    /// The flow of a client that knows the guest by one port, where the guest talks to it from another of its addresses: it
    /// goes on with that one, unless a rule names an address. Of the guest's addresses the latest are looked at, and `twin`.
    pub(super) fn take_over_visitor(&mut self, twin: Option<Id>, key: &Key) -> Option<Id> {
        let from = |addr| {
            let guest = Endpoint::new(addr, key.guest.port);
            self.flows.find(&Key { guest, ..*key })
        };
        let heard = self.guest.heard();
        let theirs = heard
            .filter_map(from)
            .chain(twin)
            .find(|&id| self.is_visitor(id, key))?;
        if !self.rename(theirs, *key) {
            return None;
        }
        // It may have waited for the other address.
        self.waiting.news = None;
        Some(theirs)
    }

    /// Whether a flow is a client's, of this peer at this port of the guest's at any of its addresses.
    fn is_visitor(&self, id: Id, key: &Key) -> bool {
        let (Some(known), Some(Flow::Udp(flow))) = (self.flows.key(id), self.flows.get(id)) else {
            return false;
        };
        let Bound::Forwarded { place, .. } = flow.bound else {
            return false;
        };
        (known.guest.port, known.remote) == (key.guest.port, key.remote)
            && !self.has_named_target(place)
    }

    /// Whether the rule of a forwarded port says which of the guest's addresses is asked.
    fn has_named_target(&self, place: u32) -> bool {
        let forward = self.ports.get(place);
        forward.is_some_and(|(_, forward)| forward.target.is_some())
    }

    /// Notes the pair of a new flow.
    pub(super) fn enter_pair(&mut self, id: Id) {
        let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        let Some((local, peer)) = socket::ends(&flow.socket) else {
            return;
        };
        let pair = pair(local.port(), peer.into());
        // Clients may have the same, at two addresses of the host: the last is the one to know of.
        if let Some(known) = self.pairs.find(&pair) {
            self.pairs.remove(known);
        }
        flow.pair = self.pairs.insert(pair, id).ok();
    }

    /// Forgets the pair of a flow that is taken out.
    pub(super) fn leave_pair(&mut self, flow: &mut Flow) {
        if let Flow::Udp(flow) = flow
            && let Some(pair) = flow.pair.take()
        {
            self.pairs.remove(pair);
        }
    }
}
