//! The state of a guest that moves, as one string of octets: from the passt it leaves to the one it comes to, by way of the
//! device state of vhost-user.
//!
//! ```text
//! magic      8 octets, "passt-rs"
//! version    u16, 2; a reader knows its own and those before
//! records    kind u8, length u32, as many octets:
//!              1  guest: its MAC address, the addresses it was heard at and is reached at, and what it was told of its
//!                 network; once, the first
//!              2  a UDP flow: its key, the host's ends, what was seen; since version 2 the interface it is bound to
//!              3  a TCP connection: its key, the numbers of the guest's side, and what the host's kernel knew of it, with
//!                 the octets in its queues; since version 2 what its socket was told: time to live, type of service,
//!                 keepalive, and the interface it is bound to
//!              0  the end, with a checksum (u64) of everything before this record
//! ```
//!
//! Integers are in network order; an optional value stands behind an octet that is 1, or is an octet 0. A reader refuses
//! what it does not know in whole: half a state is worse than none.

mod octets;

mod flows;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub use flows::{Carried, HostSide, KEEPALIVE_MAX, QUEUE_MAX, SocketOptions, Tcp, Udp};

use crate::net::Mac;
use flows::{read_tcp, read_udp, write_tcp, write_udp};
use octets::{Reader, Writer};

/// Octets of a state at most: what a target is willing to hold.
pub const STATE_MAX: usize = 256 << 20;

const MAGIC: [u8; 8] = *b"passt-rs";
const VERSION: u16 = 2;

const END: u8 = 0;
const GUEST: u8 = 1;
const UDP: u8 = 2;
const TCP: u8 = 3;

/// Addresses a guest was heard at, at most.
const HEARD_MAX: usize = 64;

/// What the guest has shown of itself, and what it was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visitor {
    /// `None` if it was never heard.
    pub mac: Option<Mac>,
    /// Where it is reached.
    pub addr4: Option<Ipv4Addr>,
    pub addr6: Option<Ipv6Addr>,
    pub link_local6: Option<Ipv6Addr>,
    /// Addresses it was heard at, latest first.
    pub heard: Vec<IpAddr>,
    /// Our MAC address on its link, and the MTU.
    pub our_mac: Mac,
    pub mtu: u16,
    pub told4: Option<Told4>,
    pub told6: Option<Told6>,
}

/// What the guest was told of its IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told4 {
    pub addr: Ipv4Addr,
    pub prefix: u8,
    pub router: Option<Ipv4Addr>,
    pub ours: Ipv4Addr,
}

/// What the guest was told of its IPv6 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told6 {
    pub addr: Option<Ipv6Addr>,
    pub router: Option<Ipv6Addr>,
    pub ours: Ipv6Addr,
}

/// Everything that moves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub guest: Visitor,
    pub udp: Vec<Udp>,
    pub tcp: Vec<Tcp>,
}

/// Why a state is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Somebody else's, or nothing at all.
    Foreign,
    /// Of a version we do not know.
    Newer(u16),
    /// It ends too early.
    Truncated,
    /// It is not what was written.
    Damaged,
    /// It says what cannot be.
    Unsound,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("it is not of passt-rs"),
            Self::Newer(version) => write!(f, "its version {version} is not known"),
            Self::Truncated => f.write_str("it is truncated"),
            Self::Damaged => f.write_str("it is damaged"),
            Self::Unsound => f.write_str("it contradicts itself"),
        }
    }
}

impl State {
    /// The state as octets. TCP connections that would make more than [`STATE_MAX`] of it are written as lost.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.0.extend(MAGIC);
        to.u16(VERSION);
        record(&mut to, GUEST, |to| write_guest(to, &self.guest));
        for udp in &self.udp {
            record(&mut to, UDP, |to| write_udp(to, udp));
        }
        for tcp in &self.tcp {
            let start = to.0.len();
            record(&mut to, TCP, |to| write_tcp(to, tcp));
            // The longest end, and every connection yet to come as lost, still fit.
            if to.0.len() > STATE_MAX - STATE_MAX / 8 {
                to.0.truncate(start);
                let lost = Tcp {
                    host: HostSide::Lost,
                    ..tcp.clone()
                };
                record(&mut to, TCP, |to| write_tcp(to, &lost));
            }
        }
        seal(to.0)
    }

    /// Reads what [`State::encode`] wrote, and nothing else.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn decode(octets: &[u8]) -> Result<Self, Refused> {
        let mut from = Reader(octets);
        if from.array() != Some(MAGIC) {
            return Err(Refused::Foreign);
        }
        let version = match from.u16() {
            Some(version @ 1..=VERSION) => version,
            Some(version) => return Err(Refused::Newer(version)),
            None => return Err(Refused::Truncated),
        };
        check(octets, from)?;
        let mut state = Self::default();
        let mut known = false;
        loop {
            let (Some(kind), Some(mut body)) = (from.u8(), from.list(STATE_MAX).map(Reader)) else {
                return Err(Refused::Unsound);
            };
            let read = match (kind, known) {
                (END, true) => return Ok(state),
                (GUEST, false) => read_guest(&mut body).map(|guest| state.guest = guest),
                (UDP, true) => read_udp(&mut body, version).map(|udp| state.udp.push(udp)),
                (TCP, true) => read_tcp(&mut body, version).map(|tcp| state.tcp.push(tcp)),
                _ => None,
            };
            known = true;
            if read.is_none() || !body.0.is_empty() {
                return Err(Refused::Unsound);
            }
        }
    }
}

/// Ends a state whose beginning and records these are.
pub fn seal(octets: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&octets);
    let mut to = Writer(octets);
    record(&mut to, END, |to| to.u64(sum));
    to.0
}

/// Whether the records are whole up to the last, which ends the state and fits what is before it.
fn check(octets: &[u8], mut from: Reader<'_>) -> Result<(), Refused> {
    loop {
        let before = octets.len() - from.0.len();
        let (Some(kind), Some(body)) = (from.u8(), from.list(STATE_MAX)) else {
            return Err(Refused::Truncated);
        };
        if kind == END {
            let sum = Reader(body).u64();
            let whole = body.len() == 8 && from.0.is_empty();
            let right = sum == Some(checksum(octets.get(..before).unwrap_or_default()));
            return if whole && right {
                Ok(())
            } else {
                Err(Refused::Damaged)
            };
        }
    }
}

fn record(to: &mut Writer, kind: u8, write: impl FnOnce(&mut Writer)) {
    to.u8(kind);
    let at = to.0.len();
    to.u32(0);
    write(to);
    let len = (to.0.len() - at - 4) as u32;
    if let Some(place) = to.0.get_mut(at..at + 4) {
        place.copy_from_slice(&len.to_be_bytes());
    }
}

/// After FNV-1a, but over words of eight octets and then the rest one by one, and with a rotation so that high bits count: it
/// shows damage, it does not protect from anybody.
fn checksum(octets: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let step = |sum: u64, value: u64| (sum ^ value).wrapping_mul(PRIME).rotate_left(29);
    let (words, rest) = octets.as_chunks::<8>();
    let sum = words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| {
        step(sum, u64::from_be_bytes(*word))
    });
    rest.iter().fold(sum, |sum, &octet| step(sum, octet.into()))
}

fn write_guest(to: &mut Writer, guest: &Visitor) {
    to.option(guest.mac, |to, mac| to.0.extend(mac.0));
    to.option(guest.addr4, Writer::v4);
    to.option(guest.addr6, Writer::v6);
    to.option(guest.link_local6, Writer::v6);
    let heard = guest.heard.get(..HEARD_MAX).unwrap_or(&guest.heard);
    to.u8(heard.len() as u8);
    for &addr in heard {
        to.addr(addr);
    }
    to.0.extend(guest.our_mac.0);
    to.u16(guest.mtu);
    to.option(guest.told4, |to, told| {
        to.v4(told.addr);
        to.u8(told.prefix);
        to.option(told.router, Writer::v4);
        to.v4(told.ours);
    });
    to.option(guest.told6, |to, told| {
        to.option(told.addr, Writer::v6);
        to.option(told.router, Writer::v6);
        to.v6(told.ours);
    });
}

fn read_guest(from: &mut Reader<'_>) -> Option<Visitor> {
    let mut guest = Visitor {
        mac: from.option(|from| from.array().map(Mac))?,
        addr4: from.option(Reader::v4)?,
        addr6: from.option(Reader::v6)?,
        link_local6: from.option(Reader::v6)?,
        ..Visitor::default()
    };
    let heard = usize::from(from.u8()?);
    if heard > HEARD_MAX {
        return None;
    }
    for _ in 0..heard {
        guest.heard.push(from.addr()?);
    }
    guest.our_mac = from.array().map(Mac)?;
    guest.mtu = from.u16()?;
    guest.told4 = from.option(|from| {
        Some(Told4 {
            addr: from.v4()?,
            prefix: from.u8()?,
            router: from.option(Reader::v4)?,
            ours: from.v4()?,
        })
    })?;
    guest.told6 = from.option(|from| {
        Some(Told6 {
            addr: from.option(Reader::v6)?,
            router: from.option(Reader::v6)?,
            ours: from.v6()?,
        })
    })?;
    let sound = guest
        .told4
        .is_none_or(|told| (1..=32).contains(&told.prefix))
        && guest.mac.is_none_or(|mac| !mac.is_multicast())
        && !guest.our_mac.is_multicast();
    sound.then_some(guest)
}
