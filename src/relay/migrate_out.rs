//! The guest leaves: what is known of it and its flows becomes a [`State`]. Its connections fall silent, so that no peer
//! hears of it; whether they live on here or elsewhere is decided later.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::{
    flow::{Flow, Peeks},
    request::Request,
    state::Relay,
};
use crate::{
    flow::Id,
    host::{moving, repair::Helper, socket},
    net::Now,
    proto::{
        repair::Command,
        state::{HostSide, State, Tcp, Told4, Told6, Udp, Visitor},
    },
    sys::{reason, sockopt},
};

impl Relay {
    /// Everything that moves with the guest, which must stand still by now. Without a helper, or where it fails, connections
    /// are listed as lost. Until [`Relay::stay`] or [`Relay::guest_left`] says how it ended nothing else happens.
    pub fn depart(&mut self, helper: Option<&Helper>, now: Now) -> Vec<u8> {
        let flows = self.connections();
        let failed: Vec<Tcp> = self.failed(now).collect();
        let moving = match self.fall_silent(&flows, helper) {
            Ok(()) => flows.len(),
            Err(why) => {
                log::warn!(
                    "The guest migrates, its {} connections cannot: {why}",
                    flows.len()
                );
                0
            }
        };
        self.away.on_the_way = true;
        let mut state = State {
            guest: self.visitor(),
            tcp: failed,
            ..State::default()
        };
        let mut left = Vec::new();
        for (at, id) in flows.into_iter().enumerate() {
            state.tcp.extend(self.take(id, at < moving, &mut left, now));
        }
        if let Some(helper) = helper {
            self.speak(&left, helper);
        }
        for id in self.flows.ids() {
            if let (Some(key), Some(Flow::Udp(flow))) = (self.flows.key(id), self.flows.get(id))
                && let Some((local, peer)) = socket::ends(&flow.socket)
            {
                state.udp.push(Udp {
                    key,
                    local,
                    peer,
                    seen: flow.seen,
                    device: socket::device(&flow.socket, peer.ip()),
                });
            }
        }
        log::info!(
            "Guest leaves with {} of {} TCP connections and {} UDP flows",
            self.away.flows.len(),
            state.tcp.len(),
            state.udp.len()
        );
        state.encode()
    }

    /// Connections whose end on the host is gone, of which the guest is not told yet.
    fn failed(&self, now: Now) -> impl Iterator<Item = Tcp> {
        self.flows.ids().filter_map(move |id| {
            let (key, Flow::Tcp(flow)) = (self.flows.key(id)?, self.flows.get(id)?) else {
                return None;
            };
            let conn = flow.conn.save(now).filter(|_| flow.state.failed)?;
            let host = HostSide::Lost;
            Some(Tcp { key, conn, host })
        })
    }

    /// Whether there is a connection that moving takes a helper for.
    pub fn has_connections(&self) -> bool {
        !self.connections().is_empty()
    }

    /// Whether the guest stands still, and it is not decided where it will go on.
    pub const fn is_leaving(&self) -> bool {
        self.away.on_the_way
    }

    /// The guest stays after all: connections go on from where they were, for which a helper is asked for. Those that cannot
    /// are reset.
    pub fn stay<'a>(&mut self, helper: impl FnOnce() -> Option<&'a Helper>, now: Now) {
        if !std::mem::take(&mut self.away.on_the_way) {
            return;
        }
        let flows = std::mem::take(&mut self.away.flows);
        let sockets = self.sockets(&flows);
        let helper = if flows.is_empty() { None } else { helper() };
        // Those that stay silent are to answer nobody until they are reset.
        if helper.is_some() {
            self.listen(&flows);
        }
        let back = match helper.map(|helper| helper.order(Command::Off, &sockets)) {
            Some(Ok(())) => flows.len(),
            Some(Err((done, _))) => done,
            None => 0,
        };
        if back < flows.len() {
            log::warn!(
                "The guest stays, but {} of {} connections are lost",
                flows.len() - back,
                flows.len()
            );
        }
        for (at, id) in flows.into_iter().enumerate() {
            let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
                continue;
            };
            flow.state.failed |= at >= back;
            flow.state.owes_ack = true;
            self.seek(id);
            self.starve(id);
        }
        self.look_at_all();
        self.expire_soon(now);
    }

    /// What sockets told of while the guest was leaving was not heard.
    fn look_at_all(&mut self) {
        let flows: Vec<Id> = self.flows.ids().collect();
        for id in flows {
            match self.flows.get_mut(id) {
                Some(Flow::Tcp(flow)) => {
                    flow.forget_all();
                    flow.space = None;
                    let socket = flow.socket.as_raw_fd();
                    self.requests.push(Request::Rewatch(socket, id));
                    continue;
                }
                Some(Flow::Udp(flow)) => flow.readable = true,
                Some(Flow::Echo(flow)) => flow.readable = true,
                Some(Flow::Group(flow)) => flow.readable = true,
                None => continue,
            }
            self.starve(id);
        }
    }

    /// Looks at every flow whose deadline passed while nothing happened.
    fn expire_soon(&mut self, now: Now) {
        let flows: Vec<Id> = self.flows.ids().collect();
        for id in flows {
            if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
                flow.armed = None;
                Self::arm(&mut self.wheel, id, &mut flow.armed, now);
            }
        }
    }

    /// The guest is gone: what moved with it is kept silent from now on.
    pub(super) fn let_go(&mut self) {
        self.away.on_the_way = false;
        self.away.farewells.clear();
        for id in std::mem::take(&mut self.away.flows) {
            if let Some(flow) = self.take_out(id) {
                self.away.silent.push(flow.into_socket());
            }
        }
    }

    /// Closes the sockets of connections that have moved, which the guest may come back with. Nobody hears of it: they are in
    /// repair mode. What still comes for them is answered by resets from now on.
    pub fn end_silence(&mut self) {
        self.away.silent.clear();
    }

    /// Connections that can move.
    fn connections(&self) -> Vec<Id> {
        let can_move = |id: &Id| match self.flows.get(*id) {
            Some(Flow::Tcp(flow)) => flow.conn.save(Now(0)).is_some() && !flow.state.failed,
            _ => false,
        };
        self.flows.ids().filter(can_move).collect()
    }

    fn sockets(&self, flows: &[Id]) -> Vec<RawFd> {
        let socket = |id: &Id| match self.flows.get(*id) {
            Some(Flow::Tcp(flow)) => Some(flow.socket.as_raw_fd()),
            _ => None,
        };
        flows.iter().filter_map(socket).collect()
    }

    /// Puts these connections into repair mode, all or none.
    fn fall_silent(&mut self, flows: &[Id], helper: Option<&Helper>) -> Result<(), String> {
        if flows.is_empty() {
            return Ok(());
        }
        let helper = helper.ok_or("no passt-repair is connected")?;
        let done = self.silence(flows).and_then(|()| {
            let ordered = helper.order(Command::On, &self.sockets(flows));
            ordered.map_err(|(_, error)| format!("passt-repair: {}", reason(&error)))
        });
        if done.is_err() {
            self.speak(flows, helper);
        }
        done
    }

    /// Drops what would be said to the peers of these connections, and what comes from them.
    fn silence(&mut self, flows: &[Id]) -> Result<(), String> {
        for &id in flows {
            self.drain_spill(id);
            if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
                flow.forget_all();
                moving::silence(&flow.socket).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Takes these connections out of repair mode, if they are in it; their peers hear of them again.
    fn speak(&self, flows: &[Id], helper: &Helper) {
        if flows.is_empty() {
            return;
        }
        self.listen(flows);
        // A helper that fails here may have changed the sockets before it did.
        let _ = helper.order(Command::Off, &self.sockets(flows));
    }

    /// Lets these connections hear again; before they are out of repair mode, which asks the peer, and a peer that is gone
    /// answers but once.
    fn listen(&self, flows: &[Id]) {
        for &id in flows {
            if let Some(Flow::Tcp(flow)) = self.flows.get(id) {
                moving::listen(&flow.socket);
            }
        }
    }

    /// What is known of a connection; `whole` if it is in repair mode. What cannot move all the same is one of those `left`.
    fn take(&mut self, id: Id, whole: bool, left: &mut Vec<Id>, now: Now) -> Option<Tcp> {
        let key = self.flows.key(id)?;
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return None;
        };
        let conn = flow.conn.save(now)?;
        let mut host = HostSide::Lost;
        if whole && flow.state.failed {
            // As it fell silent: what its socket would say of its end is no more to be had.
            left.push(id);
        } else if whole {
            let held: Vec<u8> = self.pool.pieces(&flow.spill).flatten().copied().collect();
            match moving::take(&flow.socket, &held) {
                Ok(taken) => {
                    self.away.flows.push(id);
                    host = taken;
                }
                Err(error) => {
                    log::warn!("Connection {key} is left behind: {}", reason(&error));
                    // The socket was asked for it, and tells nobody else.
                    flow.state.failed |= error.raw_os_error().is_some();
                    left.push(id);
                }
            }
            // Should it stay, peeks start where they did.
            if flow.peeks == Peeks::AtOffset {
                let _ = sockopt::set_peek_offset(flow.socket.as_fd(), 0);
            }
        }
        Some(Tcp { key, conn, host })
    }

    fn visitor(&self) -> Visitor {
        let (guest, net) = (&self.guest, &self.net);
        Visitor {
            mac: guest.is_heard().then_some(guest.mac),
            addr4: guest.addr4,
            addr6: guest.addr6,
            link_local6: guest.link_local6,
            heard: guest.heard().collect(),
            our_mac: net.mac,
            mtu: net.mtu,
            told4: net.v4.as_ref().map(|v4| Told4 {
                addr: v4.addr,
                prefix: v4.prefix,
                router: v4.router,
                ours: v4.ours,
            }),
            told6: net.v6.as_ref().map(|v6| Told6 {
                addr: v6.addr,
                router: v6.router,
                ours: v6.ours,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    /// The guest stood still before it could be told.
    #[test]
    fn a_connection_that_was_reset_moves_as_lost() {
        let now = Now(1_000_000);
        let mut relay = fixture::relay(16);
        let (id, _peer) = fixture::connection(&mut relay, now);
        if let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) {
            flow.state.failed = true;
        }
        let octets = relay.depart(None, now);
        let state = State::decode(&octets).unwrap();
        assert!(matches!(
            state.tcp[..],
            [Tcp {
                host: HostSide::Lost,
                ..
            }]
        ));
    }
}
