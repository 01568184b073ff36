//! A connection begins: the guest's SYN becomes a connect() on the host, and the host's answer becomes the guest's.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
};

use super::super::{
    errors::{Fault, Quote},
    flow::{Flow, Syn, TcpFlow},
    request::Ready,
    state::Relay,
};
use crate::{
    flow::{Id, Key},
    host::{
        ends::Peer,
        socket::{self, Manner},
    },
    link::Outbox,
    net::{Now, Seq, Why},
    proto::tcp::{Conn, reset_for},
    sys::{errqueue, is_shortage},
    wire::{
        build::{TCP_LEN, ip_len},
        frame::{Ip, Segment},
        headers::TcpFields,
        tcp::Flags,
    },
};

/// How a failed connect() appears to the guest, so that its own connect() fails with the same error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Reset,
    /// ICMP or ICMPv6 destination unreachable, most often.
    Error(Fault),
    /// Nothing: the guest's own timer says it.
    Silence,
}

impl Refusal {
    /// `told` is the ICMP error behind it, where there was one: the guest hears it in the same words.
    fn of(v4: bool, error: &io::Error, told: Option<Fault>) -> Self {
        match error.raw_os_error() {
            Some(libc::ETIMEDOUT) => Self::Silence,
            // Ours to bear: when the guest repeats its SYN, a flow that was given up has made room.
            _ if is_shortage(error) => Self::Silence,
            _ => told
                .or_else(|| Fault::of_send(v4, error))
                .map_or(Self::Reset, Self::Error),
        }
    }
}

/// Refuses a connection whose socket the kernel gave the very port that it asks for: it is with itself, and nobody listens.
fn not_with_itself(socket: &OwnedFd, peer: Peer) -> io::Result<()> {
    if socket::is_own_peer(socket, peer) {
        // Whoever comes to listen there is to find the port free.
        socket::reset_on_close(socket);
        return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    }
    Ok(())
}

impl Relay {
    /// The first segment of something unknown.
    pub(in super::super) fn tcp_unknown(
        &mut self,
        key: Key,
        ip: &Ip,
        segment: &Segment,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        if segment.flags.has(Flags::RST) {
            return Err(Why::OutOfWindow);
        }
        if !segment.flags.has(Flags::SYN) || segment.flags.has(Flags::ACK) {
            self.say_to(&key, reset_for(segment), outbox);
            return Err(Why::OutOfWindow);
        }
        // No stack sends such a thing in earnest (RFC 9293, section 3.10.7.4 gives it no meaning here).
        if segment.flags.has(Flags::FIN) {
            return Err(Why::Malformed);
        }
        self.tcp_open(key, ip, segment, outbox, now)
    }

    fn tcp_open(
        &mut self,
        key: Key,
        ip: &Ip,
        segment: &Segment,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let peer = self.begin_toward(&key, now)?;
        let syn = Syn {
            seq: segment.seq,
            len: segment.len as u16,
            id: ip.id,
            manner: Manner::of(ip),
        };
        let opened = self.open_socket(&key, now, |net| {
            let (socket, connected) = socket::tcp(peer, &net.outbound, syn.manner)?;
            not_with_itself(&socket, peer)?;
            Ok((socket, connected))
        });
        let (socket, connected) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.make_do(&error);
                self.refuse(&key, syn, &error, None, outbox);
                return Err(Why::Socket);
            }
        };
        let mss = self.segment_size(key.remote.addr);
        let mut conn = Conn::new(segment, self.origin(&key, now), mss);
        if connected {
            conn.connected(now);
        }
        let peeks = self.features.peek_offset(key.remote.addr);
        let flow = TcpFlow::new(socket, conn, syn, peeks);
        let id = match self.insert(key, Flow::Tcp(flow)) {
            Ok(id) => id,
            Err(why) => {
                self.say_to(&key, reset_for(segment), outbox);
                return Err(why);
            }
        };
        if connected {
            self.send_syn_ack(id, outbox, now);
            self.schedule(id);
        }
        Ok(())
    }

    /// Octets of payload a segment on the link may have, between the guest and `remote`.
    pub(in super::super) fn segment_size(&self, remote: IpAddr) -> u16 {
        // Options are not counted (RFC 9293, section 3.7.1).
        let headers = ip_len(remote.is_ipv4()) + TCP_LEN;
        self.net.mtu.saturating_sub(headers as u16).max(1)
    }

    /// The host's connect() has come to an end.
    pub(in super::super) fn tcp_outcome(
        &mut self,
        id: Id,
        ready: Ready,
        outbox: &mut Outbox,
        now: Now,
    ) {
        let Some(Flow::Tcp(flow)) = self.flows.get(id) else {
            return;
        };
        let outcome = if ready.error || ready.ended {
            socket::outcome(&flow.socket)
        } else {
            Ok(())
        };
        match outcome {
            Ok(()) if ready.writable => self.tcp_connected(id, outbox, now),
            // An error that passes.
            Ok(()) => {}
            Err(error) => {
                let (syn, told) = (flow.syn, errqueue::take(flow.socket.as_fd(), &mut []).ok());
                if let Some(key) = self.flows.key(id) {
                    log::debug!("flow {}: {key}: {error}", id.slot);
                    let told = told.filter(|told| told.v6 == key.remote.addr.is_ipv6());
                    self.refuse(&key, syn, &error, told.as_ref().map(Fault::of), outbox);
                }
                self.remove(id);
            }
        }
    }

    fn tcp_connected(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let v6 = self
            .flows
            .key(id)
            .is_some_and(|key| key.remote.addr.is_ipv6());
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        socket::ignore_passing_errors(&flow.socket, v6);
        if flow.conn.connected(now).syn_ack {
            self.send_syn_ack(id, outbox, now);
            self.schedule(id);
        }
    }

    pub(in super::super) fn send_syn_ack(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let free = self.space(id);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        let fields = flow.conn.syn_ack(free, now);
        // Without room it is sent again by the timer, or when the guest repeats its SYN.
        self.say(id, fields, outbox);
    }

    /// Lets the guest's connect() fail as the host's did; `told` is the ICMP error behind it, where there was one.
    fn refuse(
        &mut self,
        key: &Key,
        syn: Syn,
        error: &io::Error,
        told: Option<Fault>,
        outbox: &mut Outbox,
    ) {
        match Refusal::of(key.guest.addr.is_ipv4(), error, told) {
            Refusal::Silence => {}
            Refusal::Reset => {
                let flags = Flags::RST | Flags::ACK;
                let fields = TcpFields {
                    seq: Seq(0),
                    ack: syn.seq + 1,
                    flags,
                    window: 0,
                    options: None,
                };
                self.say_to(key, fields, outbox);
            }
            Refusal::Error(fault) => {
                // What is known of its header is what its stack looks at: ports and sequence number.
                let mut upper = [0; 8];
                upper[0..2].copy_from_slice(&key.guest.port.to_be_bytes());
                upper[2..4].copy_from_slice(&key.remote.port.to_be_bytes());
                upper[4..8].copy_from_slice(&syn.seq.0.to_be_bytes());
                let quote = Quote {
                    id: syn.id,
                    manner: syn.manner,
                    upper: &upper,
                    len: usize::from(syn.len),
                };
                self.icmp_error(key, fault, quote, outbox);
            }
        }
    }

    /// Sends a segment without payload outside of any flow.
    pub(in super::super) fn say_to(&mut self, key: &Key, fields: TcpFields, outbox: &mut Outbox) {
        let template = self.template(key);
        let queued = outbox
            .bare(|headers| template.tcp(headers, fields, 0, crate::wire::checksum::Sum::new()));
        if let Err(why) = queued {
            self.count(why);
        }
    }
}
