//! Flows as octets.

use std::net::SocketAddr;

use super::super::tcp::{Half, Saved, SavedReceiver, SavedSender, Stage, Terms};
use super::octets::{Reader, Writer};
use crate::{flow::Key, net::Protocol};

/// Octets of one queue of a connection, at most.
pub const QUEUE_MAX: usize = 64 << 20;

/// Octets of an interface's name at most (IFNAMSIZ, less the one that ends it; net/if.h).
const DEVICE_MAX: usize = 15;

/// Seconds of a keepalive at most (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL in net/tcp.h).
pub const KEEPALIVE_MAX: u16 = 32_767;

/// A UDP flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    pub key: Key,
    /// The host's ends.
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Datagrams seen from the guest and from the host, up to two each.
    pub seen: (u8, u8),
    /// The interface its socket is bound to.
    pub device: Option<String>,
}

/// A TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    pub key: Key,
    pub conn: Saved,
    pub host: HostSide,
}

/// What is known of the connection on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostSide {
    /// It could not be taken along: the guest is to be told by a reset.
    Lost,
    /// Both its streams have ended, and the peer is done: these octets are left, which the guest has not acknowledged.
    Over(Vec<u8>),
    Open(Box<Carried>),
}

/// A connection of one kernel, to be carried on by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Number of the first octet of `unacked`, and that behind the last of `received`, the peer's FIN included.
    pub send_seq: u32,
    pub receive_seq: u32,
    /// The segment size the peer announced.
    pub mss: u16,
    /// Shifts of the peer's windows and of ours.
    pub scales: Option<(u8, u8)>,
    pub sack: bool,
    /// What the kernel's timestamps showed.
    pub timestamp: Option<u32>,
    /// `struct tcp_repair_window` (linux/tcp.h): SND.WL1, SND.WND, the largest of it, RCV.WND, RCV.WUP.
    pub window: [u32; 5],
    /// The peer's stream has ended behind `received`; ours behind `unsent`, and the peer is to be told (again).
    pub ended: bool,
    pub shut: bool,
    pub options: SocketOptions,
    /// Octets the peer has not acknowledged, those it was not sent, and those the guest has not acknowledged.
    pub unacked: Vec<u8>,
    pub unsent: Vec<u8>,
    pub received: Vec<u8>,
}

/// What the socket was told of packets and silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// Time to live, or hop limit; 1 at least.
    pub ttl: u8,
    /// Type of service, or traffic class, without the two bits that are the kernel's.
    pub tos: u8,
    /// After how many seconds of silence the peer is asked whether it is still there, and how often then: 1 to 32,767.
    pub keepalive: Option<(u16, u16)>,
    /// The interface it is bound to.
    pub device: Option<String>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            ttl: 64,
            tos: 0,
            keepalive: None,
            device: None,
        }
    }
}

pub fn write_udp(to: &mut Writer, udp: &Udp) {
    write_key(to, &udp.key);
    to.socket(udp.local);
    to.socket(udp.peer);
    to.u8(udp.seen.0);
    to.u8(udp.seen.1);
    write_device(to, udp.device.as_deref());
}

/// A flow as that version has it.
pub fn read_udp(from: &mut Reader<'_>, version: u16) -> Option<Udp> {
    let key = read_key(from, Protocol::Udp)?;
    let (local, peer) = (from.socket()?, from.socket()?);
    let seen = (from.u8()?, from.u8()?);
    let device = match version {
        1 => None,
        _ => read_device(from)?,
    };
    let sound = seen.0 <= 2 && seen.1 <= 2 && peer.port() > 0;
    (sound && local.is_ipv4() == peer.is_ipv4()).then_some(Udp {
        key,
        local,
        peer,
        seen,
        device,
    })
}

fn write_device(to: &mut Writer, name: Option<&str>) {
    to.option(name, |to, name| to.list(name.as_bytes()));
}

fn read_device(from: &mut Reader<'_>) -> Option<Option<String>> {
    from.option(|from| {
        let name = str::from_utf8(from.list(DEVICE_MAX)?).ok()?;
        (!name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
    })
}

fn write_key(to: &mut Writer, key: &Key) {
    to.endpoint(key.guest);
    to.endpoint(key.remote);
}

fn read_key(from: &mut Reader<'_>, protocol: Protocol) -> Option<Key> {
    let (guest, remote) = (from.endpoint()?, from.endpoint()?);
    let one_family = guest.addr.is_ipv4() == remote.addr.is_ipv4();
    one_family.then_some(Key {
        protocol,
        guest,
        remote,
    })
}

pub fn write_tcp(to: &mut Writer, tcp: &Tcp) {
    write_key(to, &tcp.key);
    write_saved(to, &tcp.conn);
    match &tcp.host {
        HostSide::Lost => to.u8(0),
        HostSide::Over(received) => {
            to.u8(1);
            to.list(received);
        }
        HostSide::Open(carried) => {
            to.u8(2);
            write_carried(to, carried);
        }
    }
}

/// A connection as that version has it.
pub fn read_tcp(from: &mut Reader<'_>, version: u16) -> Option<Tcp> {
    let key = read_key(from, Protocol::Tcp)?;
    let conn = read_saved(from)?;
    let host = match from.u8()? {
        0 => HostSide::Lost,
        1 => HostSide::Over(from.list(QUEUE_MAX)?.to_vec()),
        2 => HostSide::Open(Box::new(read_carried(from, version)?)),
        _ => return None,
    };
    Some(Tcp { key, conn, host })
}

fn write_carried(to: &mut Writer, carried: &Carried) {
    to.socket(carried.local);
    to.socket(carried.peer);
    to.u32(carried.send_seq);
    to.u32(carried.receive_seq);
    to.u16(carried.mss);
    to.option(carried.scales, |to, (theirs, ours)| {
        to.u8(theirs);
        to.u8(ours);
    });
    to.flag(carried.sack);
    to.option(carried.timestamp, Writer::u32);
    for value in carried.window {
        to.u32(value);
    }
    to.flag(carried.ended);
    to.flag(carried.shut);
    write_options(to, &carried.options);
    for queue in [&carried.unacked, &carried.unsent, &carried.received] {
        to.list(queue);
    }
}

fn read_carried(from: &mut Reader<'_>, version: u16) -> Option<Carried> {
    let carried = Carried {
        local: from.socket()?,
        peer: from.socket()?,
        send_seq: from.u32()?,
        receive_seq: from.u32()?,
        mss: from.u16()?,
        scales: from.option(|from| Some((from.u8()?, from.u8()?)))?,
        sack: from.flag()?,
        timestamp: from.option(Reader::u32)?,
        window: read_window(from)?,
        ended: from.flag()?,
        shut: from.flag()?,
        options: match version {
            1 => SocketOptions::default(),
            _ => read_options(from)?,
        },
        unacked: from.list(QUEUE_MAX)?.to_vec(),
        unsent: from.list(QUEUE_MAX)?.to_vec(),
        received: from.list(QUEUE_MAX)?.to_vec(),
    };
    let scaled = carried
        .scales
        .is_none_or(|(theirs, ours)| theirs <= 14 && ours <= 14);
    let (local, peer) = (carried.local, carried.peer);
    let sound = local.is_ipv4() == peer.is_ipv4() && local.port() > 0 && peer.port() > 0;
    (scaled && sound && carried.mss > 0).then_some(carried)
}

fn write_options(to: &mut Writer, options: &SocketOptions) {
    to.u8(options.ttl);
    to.u8(options.tos);
    to.option(options.keepalive, |to, (silence, pause)| {
        to.u16(silence);
        to.u16(pause);
    });
    write_device(to, options.device.as_deref());
}

fn read_options(from: &mut Reader<'_>) -> Option<SocketOptions> {
    let options = SocketOptions {
        ttl: from.u8()?,
        tos: from.u8()?,
        keepalive: from.option(|from| Some((from.u16()?, from.u16()?)))?,
        device: read_device(from)?,
    };
    let times = 1..=KEEPALIVE_MAX;
    let sound = options.ttl > 0
        && options.tos & 3 == 0
        && options
            .keepalive
            .is_none_or(|(silence, pause)| times.contains(&silence) && times.contains(&pause));
    sound.then_some(options)
}

fn read_window(from: &mut Reader<'_>) -> Option<[u32; 5]> {
    let mut window = [0; 5];
    for value in &mut window {
        *value = from.u32()?;
    }
    Some(window)
}

fn write_saved(to: &mut Writer, saved: &Saved) {
    let (stage, host, guest) = match saved.stage {
        Stage::SynSent => (0, Half::Open, Half::Open),
        Stage::SynReceived => (1, Half::Open, Half::Open),
        Stage::Open { host, guest } => (2, host, guest),
    };
    to.u8(stage);
    to.u8(half(host));
    to.u8(half(guest));
    let (send, receive) = (&saved.send, &saved.receive);
    for seq in [send.una, send.max, send.wl1, send.wl2] {
        to.seq(seq);
    }
    to.u32(send.window);
    to.u32(send.largest);
    to.u16(send.mss);
    to.u8(send.scale);
    to.option(send.fin, Writer::seq);
    for seq in [receive.nxt, receive.edge, receive.shown, receive.acked] {
        to.seq(seq);
    }
    to.u16(receive.mss);
    to.option(receive.fin, Writer::seq);
    to.u16(saved.terms.mss);
    to.flag(saved.terms.scaling);
    to.flag(saved.terms.sack);
    to.flag(saved.terms.timestamps);
    to.u32(saved.clock);
    to.u32(saved.recent);
}

fn read_saved(from: &mut Reader<'_>) -> Option<Saved> {
    let (stage, host, guest) = (from.u8()?, read_half(from)?, read_half(from)?);
    let stage = match (stage, host, guest) {
        (0, Half::Open, Half::Open) => Stage::SynSent,
        (1, Half::Open, Half::Open) => Stage::SynReceived,
        (2, host, guest) => Stage::Open { host, guest },
        _ => return None,
    };
    let (una, max, wl1, wl2) = (from.seq()?, from.seq()?, from.seq()?, from.seq()?);
    let send = SavedSender {
        una,
        max,
        wl1,
        wl2,
        window: from.u32()?,
        largest: from.u32()?,
        mss: from.u16()?,
        scale: from.u8()?,
        fin: from.option(Reader::seq)?,
    };
    let (nxt, edge, shown, acked) = (from.seq()?, from.seq()?, from.seq()?, from.seq()?);
    let receive = SavedReceiver {
        nxt,
        edge,
        shown,
        acked,
        mss: from.u16()?,
        fin: from.option(Reader::seq)?,
    };
    let terms = Terms {
        mss: from.u16()?,
        scaling: from.flag()?,
        sack: from.flag()?,
        timestamps: from.flag()?,
    };
    let saved = Saved {
        stage,
        send,
        receive,
        terms,
        clock: from.u32()?,
        recent: from.u32()?,
    };
    saved.is_sound().then_some(saved)
}

const fn half(half: Half) -> u8 {
    match half {
        Half::Open => 0,
        Half::FinSeen => 1,
        Half::FinSent => 2,
        Half::Done => 3,
    }
}

fn read_half(from: &mut Reader<'_>) -> Option<Half> {
    Some(match from.u8()? {
        0 => Half::Open,
        1 => Half::FinSeen,
        2 => Half::FinSent,
        3 => Half::Done,
        _ => return None,
    })
}
