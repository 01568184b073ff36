//! The host's network changes: flows of datagrams and echo requests whose sockets lead nowhere any more end, so that what the
//! guest sends next begins them anew. A guest may send from one port for ever, and cannot know.

use super::{flow::Flow, state::Relay};
use crate::{
    config::{Net, Places},
    flow::{self, Key},
    host::socket,
};

impl Relay {
    /// Ends the flows whose own end is one of these, which are gone. Those of connections end when their peers are heard of
    /// no more.
    pub fn leave(&mut self, gone: &Places) {
        self.leave_flows(|_, flow| {
            let socket = flow.socket();
            socket::local(socket).is_some_and(|local| gone.has(local))
                || gone.has_interfaces() && socket::has_lost_interface(socket)
        });
    }

    /// Ends the flows with another target than they had by this.
    pub(super) fn leave_targets(&mut self, before: &Net) {
        if *before == self.net {
            return;
        }
        let net = self.net.clone();
        let target = |net, key: &Key| flow::outbound(net, key.protocol, key.remote);
        self.leave_flows(|key, _| target(before, key) != target(&net, key));
    }

    fn leave_flows(&mut self, leads_nowhere: impl Fn(&Key, &Flow) -> bool) {
        let mut slot = 0;
        while let Some(id) = self.flows.from(slot) {
            slot = id.slot + 1;
            if let Some(key) = self.flows.key(id)
                && let Some(flow @ (Flow::Udp(_) | Flow::Echo(_))) = self.flows.get(id)
                && leads_nowhere(&key, flow)
            {
                self.remove(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{fixture, flow::UdpFlow};
    use super::*;
    use crate::{
        net::{Endpoint, Now, Protocol},
        service,
    };
    use std::{net::Ipv4Addr, os::unix::net::UnixDatagram};

    /// A network whose resolver is there.
    fn net(resolver: Ipv4Addr) -> Net {
        let mut net = service::fixture::net();
        if let Some(v4) = &mut net.v4 {
            v4.dns_forward = Some([192, 0, 2, 3].into());
            v4.dns_host = Some(resolver);
        }
        net
    }

    #[test]
    fn questions_go_to_another_resolver_when_the_host_has_another() {
        let mut relay = fixture::relay_of(net([198, 51, 100, 53].into()), 16);
        let elsewhere = fixture::key(Protocol::Udp, 7);
        let question = Key {
            remote: Endpoint::new([192, 0, 2, 3].into(), 53),
            ..elsewhere
        };
        for key in [elsewhere, question] {
            let socket = UnixDatagram::unbound().unwrap().into();
            let flow = Flow::Udp(UdpFlow::new(socket, Now(0)));
            relay.insert(key, flow).unwrap();
        }
        relay.set_net(net([198, 51, 100, 53].into()));
        assert!(relay.flows.find(&question).is_some());
        relay.set_net(net([198, 51, 100, 54].into()));
        assert!(relay.flows.find(&question).is_none());
        assert!(relay.flows.find(&elsewhere).is_some());
    }
}
