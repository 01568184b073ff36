//! The neighbours of the host on its link: the guest is told where they are, and frames of theirs come from there.

use std::net::IpAddr;

use super::state::Relay;
use crate::{
    flow::Neighbour,
    link::Outbox,
    net::Mac,
    service::{arp, ndp},
};

impl Relay {
    /// The host's kernel says something of a neighbour.
    pub fn neighbour(&mut self, told: &Neighbour, outbox: &mut Outbox) {
        // The guest would give up an address of its own; where it has left one, it asks.
        let own = self.guest.has(told.addr) || self.guest.is_at(told.addr);
        if self.neighbours.note(&self.net, told)
            && !own
            && let Some(mac) = told.mac
        {
            self.announce(told.addr, mac, told.router, outbox);
        }
    }

    /// These are all that the host's kernel knows.
    pub fn all_neighbours(&mut self, all: &[Neighbour], outbox: &mut Outbox) {
        self.neighbours.keep(&self.net, all);
        for told in all {
            self.neighbour(told, outbox);
        }
    }

    /// Where on the link the sender of a packet is to the guest.
    pub(super) fn mac_of(&self, addr: IpAddr) -> Mac {
        self.neighbours.source(&self.net, addr)
    }

    /// Tells the guest that an address is elsewhere than it may believe.
    fn announce(&mut self, addr: IpAddr, mac: Mac, router: bool, outbox: &mut Outbox) {
        if !outbox.has_guest() {
            return;
        }
        match addr {
            IpAddr::V4(addr) => arp::announce(addr, mac, &mut self.scratch),
            IpAddr::V6(addr) if self.net.serve.ndp => {
                ndp::announce(addr, mac, router, &mut self.scratch);
            }
            IpAddr::V6(_) => return,
        }
        // What the guest believes works all the same: we are reached under any address.
        let _ = outbox.copy(&self.scratch);
    }
}
