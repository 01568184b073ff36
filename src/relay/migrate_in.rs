//! The guest arrives: its flows go on on sockets of this host. It keeps its addresses, whatever this host's are.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use super::{
    flow::{Flow, Fresh, Syn, TcpFlow, UdpFlow},
    state::Relay,
};
use crate::{
    config::{LEAST_MTU4, LEAST_MTU6},
    flow::{self, Chain, Key},
    host::{ends::Peer, moving, repair::Helper, socket},
    link::Outbox,
    net::{Now, Protocol},
    proto::{
        repair::Command,
        state::{Carried, HostSide, QUEUE_MAX, State, Tcp, Udp, Visitor},
        tcp::{Conn, Half, Stage},
    },
    sys::reason,
};

/// Connections that are named in a warning.
const NAMED: usize = 8;

/// Connections that did not arrive.
#[derive(Debug, Default)]
struct Lost {
    count: usize,
    named: Vec<String>,
}

impl Lost {
    fn note(&mut self, key: &Key, why: &str) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{key}: {why}"));
        }
    }

    fn warn(&self, of: usize) {
        if self.count == 0 {
            return;
        }
        let more = self.count - self.named.len();
        let more = match more {
            0 => String::new(),
            _ => format!("; and {more} more"),
        };
        log::warn!(
            "{} of {of} TCP connections of the guest are reset: {}{more}",
            self.count,
            self.named.join("; ")
        );
    }
}

impl Relay {
    /// Goes on with what moved here with a guest. A helper is asked for if one is needed.
    ///
    /// # Errors
    /// One line: the state is refused. The guest is served as if it had no flows.
    pub fn settle<'a>(
        &mut self,
        state: &[u8],
        helper: impl FnOnce() -> Option<&'a Helper>,
        now: Now,
    ) -> Result<(), String> {
        let state = State::decode(state)
            .map_err(|refused| format!("The guest's state is not taken over: {refused}"))?;
        self.welcome(&state.guest);
        self.expect_groups_of_visitor(now);
        let all = state.tcp.len();
        let mut lost = Lost::default();
        let before = self.flows.len();
        for udp in &state.udp {
            self.settle_udp(udp, now);
        }
        let udp = self.flows.len().saturating_sub(before);
        let needed = state.tcp.iter().any(takes_helper);
        let helper = if needed { helper() } else { None };
        self.settle_connections(state.tcp, helper, &mut lost, now);
        lost.warn(all);
        log::info!(
            "Guest arrived with {} of {all} TCP connections and {udp} UDP flows",
            all - lost.count
        );
        Ok(())
    }

    /// The guest is where it was, as far as it can tell.
    fn welcome(&mut self, visitor: &Visitor) {
        // Which of its machines has which of these will be seen.
        for &addr in visitor.heard.iter().rev() {
            self.guest.saw_addr(addr);
        }
        if let Some(mac) = visitor.mac {
            self.guest.saw_mac(mac);
            self.met = true;
        }
        self.guest.addr4 = visitor.addr4.or(self.guest.addr4);
        self.guest.addr6 = visitor.addr6.or(self.guest.addr6);
        self.guest.link_local6 = visitor.link_local6;
        let v6 = self.net.v6.is_some();
        let least = if v6 { LEAST_MTU6 } else { LEAST_MTU4 };
        if visitor.mtu >= least {
            self.net.mtu = visitor.mtu;
        }
        self.net.mac = visitor.our_mac;
        if let (Some(v4), Some(told)) = (&mut self.net.v4, visitor.told4) {
            (v4.addr, v4.prefix) = (told.addr, told.prefix);
            (v4.router, v4.ours) = (told.router, told.ours);
        }
        if let (Some(v6), Some(told)) = (&mut self.net.v6, visitor.told6) {
            (v6.addr, v6.router, v6.ours) = (told.addr, told.router, told.ours);
        }
    }

    fn scope(&self) -> u32 {
        self.net.v6.as_ref().map_or(0, |v6| v6.scope)
    }

    /// Whether a flow is with the resolver of another host, where the guest asks that of the one it is at: its next datagram is
    /// to open it anew.
    fn asks_elsewhere(&self, udp: &Udp) -> bool {
        let target = flow::outbound(&self.net, Protocol::Udp, udp.key.remote);
        target.is_ok_and(|target| target.dns && target.addr != udp.peer.into())
    }

    fn settle_udp(&mut self, udp: &Udp, now: Now) {
        if self.asks_elsewhere(udp) {
            return;
        }
        let peer = Peer {
            endpoint: udp.peer.into(),
            scope: self.scope(),
        };
        match socket::udp_again(udp.local, peer, udp.device.as_deref(), &self.net.outbound) {
            Ok(socket) => {
                let mut flow = UdpFlow::new(socket, now);
                flow.seen = udp.seen;
                flow.fresh = Some(Fresh::since(now));
                let timeout = self.udp_timeout(&flow);
                if let Ok(id) = self.insert(udp.key, Flow::Udp(flow)) {
                    self.wheel.arm(id.slot, now + timeout);
                }
            }
            // The next datagram opens it anew.
            Err(error) => log::debug!("flow {}: {error}", udp.key),
        }
    }

    fn settle_connections(
        &mut self,
        list: Vec<Tcp>,
        helper: Option<&Helper>,
        lost: &mut Lost,
        now: Now,
    ) {
        let scope = self.scope();
        let mut open: Vec<(Tcp, OwnedFd)> = Vec::with_capacity(list.len());
        for tcp in list {
            match socket_for(&tcp, helper) {
                Ok(socket) => open.push((tcp, socket)),
                Err(why) => self.lose(&tcp, &why, lost, now),
            }
        }
        let (over, open): (Vec<_>, Vec<_>) = open
            .into_iter()
            .partition(|(tcp, _)| matches!(tcp.host, HostSide::Over(_)));
        let open = self.ordered(Command::On, open, helper, lost, now);
        // All of them first have their place: whoever sends already is not to meet a reset.
        let claimed = self.each(open, lost, now, |socket, carried| {
            moving::claim(socket, carried, scope)
        });
        let restored = self.each(claimed, lost, now, moving::restore);
        let restored = self.ordered(Command::Off, restored, helper, lost, now);
        for (tcp, socket) in over.into_iter().chain(restored) {
            if let Err(why) = self.settle_tcp(&tcp, socket, now) {
                self.lose(&tcp, why, lost, now);
            }
        }
    }

    /// Does something about each of these sockets; returns those where it worked.
    fn each(
        &mut self,
        mut list: Vec<(Tcp, OwnedFd)>,
        lost: &mut Lost,
        now: Now,
        work: impl Fn(&OwnedFd, &Carried) -> io::Result<()>,
    ) -> Vec<(Tcp, OwnedFd)> {
        list.retain(|(tcp, socket)| {
            let done = match &tcp.host {
                HostSide::Open(carried) => work(socket, carried),
                HostSide::Lost | HostSide::Over(_) => Ok(()),
            };
            done.map_err(|error| self.lose(tcp, &reason(&error), lost, now))
                .is_ok()
        });
        list
    }

    /// Has all of these sockets set; returns those that are.
    fn ordered(
        &mut self,
        command: Command,
        mut list: Vec<(Tcp, OwnedFd)>,
        helper: Option<&Helper>,
        lost: &mut Lost,
        now: Now,
    ) -> Vec<(Tcp, OwnedFd)> {
        let sockets: Vec<RawFd> = list.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
        let Some(helper) = helper else {
            return list;
        };
        if let Err((done, error)) = helper.order(command, &sockets) {
            let why = format!("passt-repair: {}", reason(&error));
            for (tcp, socket) in list.split_off(done.min(list.len())) {
                socket::reset_on_close(&socket);
                self.lose(&tcp, &why, lost, now);
            }
        }
        list
    }

    /// A flow again.
    fn settle_tcp(&mut self, tcp: &Tcp, socket: OwnedFd, now: Now) -> Result<(), &'static str> {
        // Until there is a flow behind it.
        socket::reset_on_close(&socket);
        let carried = match &tcp.host {
            HostSide::Open(carried) => Some(&**carried),
            HostSide::Lost | HostSide::Over(_) => None,
        };
        let mut saved = tcp.conn;
        // The kernel has to be told again that the guest's stream has ended, once all of it is there.
        if let Stage::Open { guest, .. } = &mut saved.stage
            && carried.is_some_and(|carried| carried.shut)
        {
            *guest = Half::FinSeen;
        }
        let conn = Conn::restored(&saved, self.syn_retries, now)
            .ok_or("its saved state contradicts itself")?;
        let peeks = self.features.peek_offset(tcp.key.remote.addr);
        let mut spill = Chain::default();
        let unsent = carried.map_or(&[][..], |carried| &carried.unsent);
        if self.pool.append(&mut spill, unsent, QUEUE_MAX) < unsent.len() {
            self.pool.release(spill);
            return Err("no room for what the peer was not sent");
        }
        socket::close_in_order(&socket);
        let mut flow = TcpFlow::new(socket, conn, Syn::default(), peeks);
        flow.spill = spill;
        flow.state.readable = true;
        flow.state.ended = carried.is_some_and(|carried| carried.ended);
        flow.state.owes_ack = !flow.conn.phase().is_handshake();
        let id = self
            .insert(tcp.key, Flow::Tcp(flow))
            .map_err(|_| "no room for another flow")?;
        self.drain_spill(id);
        self.shut_down_if_due(id);
        // The guest hears of us as soon as it can, and we of what it has heard.
        self.space(id);
        self.starve(id);
        self.schedule(id);
        Ok(())
    }

    /// Has the guest told that a connection is gone.
    fn lose(&mut self, tcp: &Tcp, why: &str, lost: &mut Lost, now: Now) {
        lost.note(&tcp.key, why);
        if let Some(mut conn) = Conn::restored(&tcp.conn, self.syn_retries, now) {
            self.away.farewells.push((tcp.key, conn.reset()));
        }
    }

    /// Tells the guest of connections that are gone, as far as there is room.
    pub(super) fn say_farewells(&mut self, outbox: &mut Outbox) {
        while outbox.has_guest() && outbox.has_room() {
            let Some((key, fields)) = self.away.farewells.pop() else {
                return;
            };
            self.say_to(&key, fields, outbox);
        }
    }
}

/// A socket for a connection, if it can go on at all.
fn socket_for(tcp: &Tcp, helper: Option<&Helper>) -> Result<OwnedFd, String> {
    let opened = match &tcp.host {
        HostSide::Lost => return Err("it could not be taken along".to_owned()),
        HostSide::Over(received) => moving::remains(received),
        HostSide::Open(carried) if is_local(carried) => {
            return Err("its peer stays behind".to_owned());
        }
        HostSide::Open(_) if helper.is_none() => {
            return Err("no passt-repair is connected".to_owned());
        }
        HostSide::Open(carried) => moving::open(carried.peer),
    };
    opened.map_err(|error: io::Error| reason(&error))
}

/// Whether a connection can go on with a helper, and without one cannot.
fn takes_helper(tcp: &Tcp) -> bool {
    matches!(&tcp.host, HostSide::Open(carried) if !is_local(carried))
}

/// Whether a connection never left the host.
fn is_local(carried: &Carried) -> bool {
    carried.peer.ip().is_loopback() || carried.peer.ip() == carried.local.ip()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::{net::Endpoint, service};
    use std::{cell::Cell, net::UdpSocket};

    /// A helper that is not there yet is waited for, while the guest stands still.
    #[test]
    fn a_guest_without_connections_arrives_without_a_helper() {
        let mut source = fixture::relay(16);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:9").unwrap();
        let flow = Flow::Udp(UdpFlow::new(socket.into(), Now(0)));
        source.insert(fixture::key(Protocol::Udp, 7), flow).unwrap();
        let (_, _theirs) = fixture::connection(&mut source, Now(0));
        let state = source.depart(None, Now(1));
        let (mut target, asked) = (fixture::relay(16), Cell::new(false));
        let helper = || {
            asked.set(true);
            None
        };
        target.settle(&state, helper, Now(1)).unwrap();
        assert!(!asked.get());
    }

    /// The forwarding address stands for the resolver of the host where the guest is.
    #[test]
    fn questions_go_to_the_resolver_of_this_host() {
        let net = |last| {
            let mut net = service::fixture::net();
            if let Some(v4) = &mut net.v4 {
                v4.dns_forward = Some([192, 0, 2, 3].into());
                v4.dns_host = Some([127, 0, 0, last].into());
            }
            net
        };
        let question = Key {
            remote: Endpoint::new([192, 0, 2, 3].into(), 53),
            ..fixture::key(Protocol::Udp, 7)
        };
        let elsewhere = Key {
            remote: Endpoint::new([192, 0, 2, 3].into(), 9),
            ..question
        };
        let mut source = fixture::relay_of(net(1), 16);
        for (key, peer) in [(question, "127.0.0.1:53"), (elsewhere, "127.0.0.1:9")] {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(peer).unwrap();
            let flow = UdpFlow::new(socket.into(), Now(0));
            source.insert(key, Flow::Udp(flow)).unwrap();
        }
        let state = source.depart(None, Now(1));
        for (resolver, stays) in [(1, true), (2, false)] {
            let mut target = fixture::relay_of(net(resolver), 16);
            target.settle(&state, || None, Now(1)).unwrap();
            assert_eq!(target.flows.find(&question).is_some(), stays);
            assert!(target.flows.find(&elsewhere).is_some());
        }
    }
}
