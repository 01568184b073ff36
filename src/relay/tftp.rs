//! TFTP: a server answers from a port that it chooses for the transfer, and not from the one it was asked at (RFC 1350, section
//! 4). The connected socket that asks does not hear that. So there is another at the same port of ours, connected to the server
//! but to port 0: it hears whatever else the server sends. Until that names its port it is a flow of the server's port 0, and
//! then one like any other.

use std::{io, net::SocketAddr};

use super::{
    flow::{Flow, Fresh, UdpFlow},
    state::{Relay, STRAYS},
};
use crate::{
    config::Net,
    flow::{self, Id, Key},
    host::socket,
    link::Outbox,
    net::{Endpoint, Now, Protocol, Why},
    sys::is_shortage,
};

/// Where servers are asked.
pub const PORT: u16 = 69;

/// The server's port as long as it is not known.
pub const UNKNOWN: u16 = 0;

impl Relay {
    /// Has the answer to a request of this flow's heard, which is about to leave.
    ///
    /// # Errors
    /// Those of a new flow.
    pub(super) fn expect_transfer(&mut self, asking: Id, now: Now) -> Result<(), Why> {
        let (Some(asked), Some(Flow::Udp(flow))) = (self.flows.key(asking), self.flows.get(asking))
        else {
            return Err(Why::Gone);
        };
        let key = at_port(&asked, UNKNOWN);
        if self.flows.find(&key).is_some() {
            return Ok(());
        }
        let (local, mut server) = socket::ends(&flow.socket).ok_or(Why::Socket)?;
        server.set_port(UNKNOWN);
        let interface = socket::device(&flow.socket, server.ip());
        self.begin(&key, now)?;
        // Where it would be another relay's, only what comes from the port that was asked is heard.
        let Some(slot) = self.claim(&key) else {
            return Ok(());
        };
        let open = |_: &Net| socket::udp_reply(local, server, interface.as_deref(), false);
        let inserted = match self.open_socket(&key, now, open) {
            Ok(socket) => self.insert(key, Flow::Udp(UdpFlow::new(socket, now))),
            Err(error) => {
                self.make_do(&error);
                Err(Why::Socket)
            }
        };
        self.looked_at(slot);
        self.wheel.arm(inserted?.slot, now + self.limits.udp);
        Ok(())
    }

    /// Looks for the first datagram of a transfer.
    pub(super) fn begin_transfer(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        for _ in 0..STRAYS {
            let Some(Flow::Udp(flow)) = self.flows.get_mut(id).filter(|_| outbox.has_room()) else {
                return self.starve(id);
            };
            match socket::receive_from(&flow.socket, &mut self.message) {
                Ok(arrival) => {
                    if self.name_server(id, arrival.from, now) {
                        self.hold(id, arrival.len, arrival.marks);
                        return self.udp_pull(id, outbox, now);
                    }
                    // Of somebody else, from before the socket was connected.
                    self.count(Why::NotForUs);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    flow.readable = false;
                    return;
                }
                Err(error) if is_shortage(&error) => return self.rest(id, now),
                // It clears with being told.
                Err(_) => {}
            }
        }
        self.starve(id);
    }

    /// Has a flow whose server spoke from this port go on with it. `false` if it is not the server, or the port is another's.
    fn name_server(&mut self, id: Id, from: SocketAddr, now: Now) -> bool {
        let Some(key) = self.flows.key(id).map(|key| at_port(&key, from.port())) else {
            return false;
        };
        let server = flow::outbound(&self.net, Protocol::Udp, key.remote);
        if server.is_ok_and(|server| server.addr == from.into())
            && let Some(slot) = self.claim(&key)
        {
            let is_renamed = self.rename(id, key);
            self.looked_at(slot);
            return is_renamed && self.connect_to(id, from, now);
        }
        false
    }

    fn connect_to(&mut self, id: Id, server: SocketAddr, now: Now) -> bool {
        let Some(Flow::Udp(flow)) = self.flows.get_mut(id) else {
            return false;
        };
        if socket::connect(&flow.socket, server).is_err() {
            // It would send to port 0.
            self.remove(id);
            return false;
        }
        flow.heard_host(now);
        // What the server has sent from other ports may lie before.
        flow.fresh = Some(Fresh::since(now));
        self.census.touch(id.slot);
        self.enter_pair(id);
        true
    }
}

/// The same of the server at this port.
const fn at_port(key: &Key, port: u16) -> Key {
    Key {
        remote: Endpoint::new(key.remote.addr, port),
        ..*key
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use std::net::{Ipv4Addr, UdpSocket};

    /// A socket is bound before it is connected.
    #[test]
    fn what_others_have_sent_is_not_the_transfer() {
        let mut relay = fixture::relay(16);
        let (mut outbox, guest) = fixture::link();
        let gateway = relay.net().v4.as_ref().unwrap().map_host_loopback.unwrap();
        let [ours, server, other] =
            [1, 1, 2].map(|n| UdpSocket::bind((Ipv4Addr::new(127, 0, 0, n), 0)).unwrap());
        for (from, payload) in [
            (&other, b"not you"),
            (&server, b"block 1"),
            (&server, b"block 2"),
        ] {
            from.send_to(payload, ours.local_addr().unwrap()).unwrap();
        }
        let flow = UdpFlow {
            readable: true,
            ..UdpFlow::new(ours.into(), Now(0))
        };
        let key = Key {
            remote: Endpoint::new(gateway.into(), UNKNOWN),
            ..fixture::key(Protocol::Udp, 7)
        };
        let id = relay.insert(key, Flow::Udp(flow)).unwrap();
        relay.udp_pull(id, &mut outbox, Now(1));
        let port = server.local_addr().unwrap().port();
        assert_eq!(relay.flows.key(id), Some(at_port(&key, port)));
        let frames = guest.frames(outbox);
        let payloads: Vec<_> = frames.iter().map(|frame| &frame[42..49]).collect();
        assert_eq!(payloads, [b"block 1", b"block 2"]);
    }
}
