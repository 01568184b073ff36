//! A connection from outside: the host's kernel has accepted it, and our SYN asks the guest.
//!
//! The peer sees its connection established before the guest has answered: plain sockets cannot hold the answer back. A
//! guest that refuses makes it a reset.

use std::{net::SocketAddr, os::fd::OwnedFd};

use super::super::{
    flow::{Flow, Syn, TcpFlow},
    state::Relay,
};
use crate::{
    flow::{Id, Key},
    host::{listen::Forward, socket},
    link::Outbox,
    net::{Endpoint, Now, Protocol, Why},
    proto::tcp::Conn,
};

impl Relay {
    /// A peer's connection to a forwarded port.
    ///
    /// # Errors
    /// Why it is refused; the peer hears a reset.
    pub(in super::super) fn tcp_accepted(
        &mut self,
        socket: OwnedFd,
        peer: SocketAddr,
        forward: Forward,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        // Until there is a flow behind it.
        socket::reset_on_close(&socket);
        let addr = forward.target.or_else(|| self.guest.address_for(peer.ip()));
        let guest = Endpoint::new(addr.ok_or(Why::NoGuest)?, forward.guest);
        let key = self.peer_key(Protocol::Tcp, guest, peer)?;
        match self.hand_on(socket, peer, key) {
            Ok(()) => Ok(()),
            Err(socket) => {
                let anywhere = forward.target.is_none();
                self.tcp_inbound(socket, (peer, anywhere), key, outbox, now)
            }
        }
    }

    /// A peer's connection that is to be this relay's, under this key if that can be. It is for the guest `anywhere`, or at the
    /// key's address only.
    ///
    /// # Errors
    /// As [`Relay::tcp_accepted`].
    pub(in super::super) fn tcp_inbound(
        &mut self,
        socket: OwnedFd,
        (peer, anywhere): (SocketAddr, bool),
        first: Key,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let (key, slot) = self.free_key(first, |_| false)?;
        let done = self.tcp_toward_guest(socket, (peer, anywhere), key, outbox, now);
        self.looked_at(slot);
        done
    }

    fn tcp_toward_guest(
        &mut self,
        socket: OwnedFd,
        (peer, anywhere): (SocketAddr, bool),
        key: Key,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        self.admit_peer(key.remote.addr)?;
        let mss = self.segment_size(key.remote.addr);
        let origin = self.origin(&key, now);
        socket::close_in_order(&socket);
        let peeks = self.features.peek_offset(peer.ip());
        let conn = Conn::toward_guest(origin, mss, self.syn_retries, now);
        let syn = Syn {
            seq: origin.iss,
            ..Syn::default()
        };
        let flow = TcpFlow::new(socket, conn, syn, peeks);
        let id = self.insert_inbound(key, Flow::Tcp(flow))?;
        if self.guest.is_at(key.guest.addr) {
            self.send_syn(id, outbox, now);
        } else {
            self.wait_for_guest(id, anywhere.then(|| peer.ip()), now);
        }
        self.schedule(id);
        Ok(())
    }

    /// Asks the guest, if it is known where it is.
    pub(in super::super) fn send_syn(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let known = self
            .flows
            .key(id)
            .is_some_and(|key| self.guest.is_at(key.guest.addr));
        let free = self.space(id);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        if known {
            let fields = flow.conn.syn(free, now);
            // Without room it is sent again by the timer.
            self.say(id, fields, outbox);
        }
    }
}
