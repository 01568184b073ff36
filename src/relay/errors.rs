//! ICMP errors to the guest, about packets it sent.

use std::{io, net::IpAddr};

use super::state::Relay;
use crate::{
    flow::{self, Key},
    host::socket::Manner,
    link::Outbox,
    net::{Protocol, number},
    sys::errqueue::SocketError,
    wire::{
        build::{Ends, HOPS},
        fragment,
        frame::Ip,
        icmp::{Error4, Error6, error4, error6},
    },
};

/// An ICMP error, in the numbers of the flow's family: ICMP for IPv4, ICMPv6 for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub kind: u8,
    pub code: u8,
    /// What the error says beyond type and code: an MTU or a pointer.
    pub info: u32,
    /// Who met it; our own address where nobody is known.
    pub offender: Option<IpAddr>,
    /// Time to live, or hop limit, of the error itself as it came.
    pub ttl: u8,
}

impl Fault {
    /// Destination unreachable, with the code of each family (RFC 792; RFC 4443, section 3.1).
    pub const fn unreachable(v4: bool, code4: u8, code6: u8) -> Self {
        let (kind, code) = if v4 { (3, code4) } else { (1, code6) };
        Self {
            kind,
            code,
            info: 0,
            offender: None,
            ttl: HOPS,
        }
    }

    /// Fragmentation needed, or packet too big (RFC 1191, section 4; RFC 4443, section 3.2).
    pub const fn too_big(v4: bool, mtu: u32) -> Self {
        let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
        Self {
            kind,
            code,
            info: mtu,
            offender: None,
            ttl: HOPS,
        }
    }

    /// What a failed send says, if that is an ICMP error (the codes Linux makes these errors of).
    pub fn of_send(v4: bool, error: &io::Error) -> Option<Self> {
        let (code4, code6) = match error.raw_os_error()? {
            libc::ENETUNREACH | libc::ENETDOWN | libc::ENODEV => (0, 0),
            libc::EHOSTUNREACH | libc::EHOSTDOWN => (1, 3),
            libc::EACCES | libc::EPERM => (13, 1),
            _ => return None,
        };
        Some(Self::unreachable(v4, code4, code6))
    }

    /// Fragment reassembly time exceeded (RFC 792; RFC 4443, section 3.3).
    pub const fn reassembly(v4: bool) -> Self {
        Self {
            kind: if v4 { 11 } else { 3 },
            code: 1,
            info: 0,
            offender: None,
            ttl: HOPS,
        }
    }

    const fn is_time_exceeded(self, v4: bool) -> bool {
        self.kind == if v4 { 11 } else { 3 } && self.code == 0
    }

    /// What a socket's error queue tells.
    pub const fn of(error: &SocketError) -> Self {
        Self {
            kind: error.kind,
            code: error.code,
            info: error.info,
            offender: error.offender,
            ttl: match error.ttl {
                Some(ttl) => ttl,
                None => HOPS,
            },
        }
    }
}

/// Octets of a packet at fault that are quoted: the least of an IPv6 error's room.
pub const QUOTED: usize = 1280;

/// What the packet at fault carried.
#[derive(Debug, Clone, Copy)]
pub struct Quote<'a> {
    /// Identification, or flow label.
    pub id: u32,
    pub manner: Manner,
    /// Octets from the upper layer's header on, as far as they are known: eight at least.
    pub upper: &'a [u8],
    /// How many there were.
    pub len: usize,
}

impl Relay {
    /// Tells the guest that a packet of this flow met an error. The packet's IP header is written anew.
    pub(super) fn icmp_error(
        &mut self,
        key: &Key,
        fault: Fault,
        quote: Quote<'_>,
        outbox: &mut Outbox,
    ) {
        let Some(offender) = self.offender(key, fault.offender) else {
            return;
        };
        let ip = Ip {
            src: key.guest.addr,
            dst: key.remote.addr,
            // What was left of it where it met its end.
            ttl: if fault.is_time_exceeded(key.guest.addr.is_ipv4()) {
                1
            } else {
                quote.manner.ttl
            },
            tos: quote.manner.tos,
            id: quote.id,
            whole: quote.manner.whole,
        };
        let protocol = number_of(key.protocol, ip.src.is_ipv4());
        let len = quote.len.max(quote.upper.len());
        self.quote.clear();
        fragment::header(&mut self.quote, &ip, protocol, None, len);
        self.quote.extend_from_slice(quote.upper);
        self.say_error(key.guest.addr, offender, fault, outbox);
    }

    /// Sends the guest an error about the packet in `self.quote`.
    pub(super) fn say_error(
        &mut self,
        guest: IpAddr,
        offender: IpAddr,
        fault: Fault,
        outbox: &mut Outbox,
    ) {
        let ends = Ends {
            src: self.mac_of(offender),
            dst: self.guest.mac_at(guest),
        };
        let (packet, out) = (&self.quote, &mut self.scratch);
        let Fault {
            kind, code, info, ..
        } = fault;
        match (offender, guest) {
            (IpAddr::V4(offender), IpAddr::V4(guest)) => {
                let Some(error) = Error4::new(kind, code, info) else {
                    return;
                };
                error4(out, ends, (offender, guest, fault.ttl), error, packet);
            }
            (IpAddr::V6(offender), IpAddr::V6(guest)) => {
                let Some(error) = Error6::new(kind, code, info) else {
                    return;
                };
                error6(out, ends, (offender, guest, fault.ttl), error, packet);
            }
            _ => return,
        }
        if let Err(why) = outbox.copy(&self.scratch) {
            self.drops.count(why);
        }
    }

    /// Our own address, as the guest's family knows it.
    pub(super) fn ours(&self, v4: bool) -> Option<IpAddr> {
        if v4 {
            self.net.v4.as_ref().map(|v4| v4.ours.into())
        } else {
            self.net.v6.as_ref().map(|v6| v6.ours.into())
        }
    }

    /// Under which address the guest sees who met an error.
    fn offender(&self, key: &Key, offender: Option<IpAddr>) -> Option<IpAddr> {
        let Some(offender) = offender else {
            return self.ours(key.remote.addr.is_ipv4());
        };
        let target = flow::outbound(&self.net, key.protocol, key.remote).ok()?;
        flow::error_source(
            &self.net,
            offender,
            target.addr.addr,
            key.remote.addr,
            &self.guest,
        )
    }
}

const fn number_of(protocol: Protocol, v4: bool) -> u8 {
    match protocol {
        Protocol::Tcp => number::TCP,
        Protocol::Udp => number::UDP,
        Protocol::Echo if v4 => number::ICMP,
        Protocol::Echo => number::ICMPV6,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::net::{Mac, Now};

    #[test]
    fn an_error_goes_to_the_machine_that_has_the_senders_address() {
        let (mut relay, (mut outbox, guest)) = (fixture::relay(16), fixture::link());
        let machines = [1, 2].map(|n| (Mac([2, 0, 0, 0, 0, n]), IpAddr::from([192, 0, 2, 10 + n])));
        for (mac, addr) in machines {
            relay.guest.saw_frame(mac, Some(addr), Now(1));
            relay.guest.saw_addr(addr);
        }
        for (_, addr) in machines {
            relay.quote.clear();
            relay.quote.extend([0x45; 28]);
            let ours = relay.ours(true).unwrap();
            relay.say_error(addr, ours, Fault::unreachable(true, 1, 0), &mut outbox);
        }
        let frames = guest.frames(outbox);
        assert!(
            frames
                .iter()
                .map(|frame| &frame[..6])
                .eq(machines.iter().map(|(mac, _)| &mac.0[..]))
        );
    }
}
