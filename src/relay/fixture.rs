//! A relay, flows and a guest that reads when it is told to, for the tests of all files beside this one.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
};

use super::{
    flow::{Flow, Syn, TcpFlow},
    state::{Limits, Relay},
};
use crate::{
    config::Net,
    flow::{Id, Key},
    host::socket::Features,
    link::{Flushed, Outbox},
    net::{Endpoint, Now, Protocol, Seq, Span},
    proto::tcp::{Conn, Origin, SynRetries},
    service::fixture,
    wire::{
        frame::{Ip, Segment},
        tcp::{Flags, Options},
    },
};

pub(super) const GUEST: Ipv4Addr = fixture::GUEST;
pub(super) const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Of so many flows at most.
pub(super) fn relay(flows: usize) -> Relay {
    relay_of(fixture::net(), flows)
}

pub(super) fn relay_of(net: Net, flows: usize) -> Relay {
    Relay::new(net, Features::none(), Limits::few(flows))
}

/// From this port of the guest.
pub(super) fn key(protocol: Protocol, port: u16) -> Key {
    Key {
        protocol,
        guest: Endpoint::new(IpAddr::V4(GUEST), port),
        remote: Endpoint::new(IpAddr::V4(REMOTE), 53),
    }
}

/// First sequence numbers: ours, and the guest's.
pub(super) const ISS: Seq = Seq(1000);
pub(super) const IRS: Seq = Seq(5000);

/// A packet of the guest's.
pub(super) fn ip(whole: bool) -> Ip {
    Ip {
        src: GUEST.into(),
        dst: REMOTE.into(),
        ttl: 64,
        tos: 0,
        id: 0,
        whole,
    }
}

/// Of the guest's, without payload.
pub(super) fn segment(seq: Seq, ack: Seq, flags: Flags) -> Segment {
    Segment {
        src_port: 80,
        dst_port: 53,
        seq,
        ack,
        flags,
        window: 65_535,
        options: Options::default(),
        len: 20,
        payload: 54..54,
    }
}

/// A connection that has ended both ways, of which the guest has still to be told, and its other end.
pub(super) fn ended_connection(relay: &mut Relay, now: Now) -> (Id, TcpStream) {
    let (id, theirs) = connection(relay, now);
    let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) else {
        panic!("no connection");
    };
    flow.conn.ended();
    flow.conn.fin_sent(now);
    let fin = segment(IRS + 1, ISS + 2, Flags::FIN | Flags::ACK);
    flow.conn.segment(&fin, None, now);
    flow.conn.shut_down();
    assert!(flow.is_over());
    flow.state.owes_ack = true;
    relay.starve(id);
    (id, theirs)
}

/// A connection that the guest has just accepted, and its other end.
pub(super) fn connection(relay: &mut Relay, now: Now) -> (Id, TcpStream) {
    connection_from(relay, 80, Span::ZERO, now)
}

/// The same, at this port of the guest, with an end that answers after so long.
pub(super) fn connection_from(
    relay: &mut Relay,
    port: u16,
    trip: Span,
    now: Now,
) -> (Id, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    let key = key(Protocol::Tcp, port);
    let origin = Origin { iss: ISS, clock: 0 };
    let mut conn = Conn::toward_guest(origin, 1460, SynRetries::default(), now);
    let mut syn_ack = segment(IRS, ISS + 1, Flags::SYN | Flags::ACK);
    syn_ack.options.mss = Some(1460);
    assert!(conn.segment(&syn_ack, None, now + trip).open);
    let flow = TcpFlow::new(ours.into(), conn, Syn::default(), false);
    let id = relay.insert(key, Flow::Tcp(flow)).unwrap();
    (id, theirs)
}

/// A guest, and what it has read.
#[derive(Debug)]
pub(super) struct Reader {
    stream: UnixStream,
    octets: Vec<u8>,
}

/// A link whose guest reads nothing yet.
pub(super) fn link() -> (Outbox, Reader) {
    let (stream, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut outbox = Outbox::new();
    outbox.attach(Some(ours.into()));
    let octets = Vec::new();
    (outbox, Reader { stream, octets })
}

impl Reader {
    /// Has the guest read until nothing waits for it.
    pub fn read_all(&mut self, outbox: &mut Outbox) {
        let mut part = [0; 4096];
        while outbox.flush() == Flushed::Blocked {
            let len = self.stream.read(&mut part).unwrap();
            self.octets.extend_from_slice(&part[..len]);
            outbox.stirred();
        }
    }

    /// Every frame there was, read to the end of the link.
    pub fn frames(mut self, mut outbox: Outbox) -> Vec<Vec<u8>> {
        self.read_all(&mut outbox);
        drop(outbox);
        self.stream.read_to_end(&mut self.octets).unwrap();
        let (mut rest, mut frames) = (&self.octets[..], Vec::new());
        while let Some((len, behind)) = rest.split_first_chunk() {
            let (frame, later) = behind.split_at(u32::from_be_bytes(*len) as usize);
            frames.push(frame.to_vec());
            rest = later;
        }
        frames
    }
}
