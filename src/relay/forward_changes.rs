//! Forwarded ports that change while they are served: interfaces come back, rules are replaced.

use std::{os::fd::AsRawFd, sync::Arc};

use super::{
    flow::{Bound, Flow},
    request::Request,
    share::Forwarded,
    state::Relay,
    takeover::Moved,
};
use crate::{config::Rule, net::PortSet};

impl Relay {
    /// Opens the ports of interfaces anew that went and came back; `index` tells the index of an interface there is.
    pub fn follow_interfaces(&mut self, index: impl Fn(&str) -> Option<u32>) {
        let opened = self.ports.follow_interfaces(index);
        self.listen_at(opened);
    }

    /// Serves these rules from now on, and no others; flows that came by others go on. `ours` are the ports that datagram flows
    /// of all relays have, `index` tells the index of an interface there is. Returns a warning for the log. To be called when no
    /// request waits that is about a port's socket.
    ///
    /// # Errors
    /// One line: what they ask for cannot be had, and all is as it was.
    pub fn replace_forwards(
        &mut self,
        rules: &[Rule],
        ours: PortSet,
        index: impl Fn(&str) -> Option<u32>,
    ) -> Result<Option<String>, String> {
        let (opened, done) = self.ports.replace(rules, ours, index);
        self.listen_at(opened);
        done
    }

    /// Notes the host's ports that datagram flows have, but for those that the kernel chose.
    pub fn note_ports(&self, ports: &mut PortSet) {
        for id in self.flows.ids() {
            if let (Some(key), Some(Flow::Udp(flow))) = (self.flows.key(id), self.flows.get(id)) {
                match flow.bound {
                    Bound::Guest => ports.insert(key.guest.port),
                    Bound::Forwarded { port, .. } => ports.insert(port),
                    Bound::Elsewhere => {}
                }
            }
        }
    }

    /// Has the new sockets at these places watched. What was there before is closed by now.
    fn listen_at(&mut self, places: Vec<u32>) {
        for place in places {
            if let Some((socket, _)) = self.ports.get(place) {
                self.requests
                    .push(Request::Listen(socket.as_raw_fd(), place));
            }
        }
    }

    /// The rules that are served.
    pub fn rules(&self) -> &[Rule] {
        self.ports.rules()
    }

    /// The guest's ends of the ports that are forwarded, as far as they stay with this relay.
    pub fn forwarded_ports(&self) -> Forwarded {
        let places = self
            .forwarded()
            .filter_map(|(place, _)| self.ports.get(place));
        places
            // The host's end as well: a socket of the guest's own flow there hears strangers for a moment.
            .flat_map(|(_, forward)| {
                [forward.guest, forward.host].map(|port| (forward.protocol, port))
            })
            .collect()
    }

    /// The same as all that serve a guest together know it.
    pub fn known_forwarded(&self) -> Option<Arc<Forwarded>> {
        let share = self.share.as_ref()?;
        Some(Arc::clone(share.forwarded()))
    }

    /// Gives away the next flow whose end at the guest is one of these; `slot` is where to look on. Nobody else runs meanwhile.
    pub fn give_forwarded(&mut self, forwarded: &Forwarded, slot: &mut u32) -> Option<Moved> {
        while let Some(id) = self.flows.from(*slot) {
            *slot = id.slot + 1;
            if self.flows.key(id).is_some_and(|key| forwarded.has(&key)) {
                return self.give_up(id, Some(self.guest));
            }
        }
        None
    }

    /// These are the first relay's from now on, which has all flows of theirs. Nobody else runs meanwhile.
    pub fn set_forwarded(&mut self, forwarded: &Arc<Forwarded>) {
        let Some(share) = &mut self.share else {
            return;
        };
        let flows = self.flows.ids().filter_map(|id| {
            let of_group = self.flows.get(id)?.is_of_group();
            self.flows.key(id).filter(|_| !of_group)
        });
        share.set_forwarded(forwarded, flows);
    }
}
