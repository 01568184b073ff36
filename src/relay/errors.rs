//! ICMP errors to the guest, about packets it sent.

use std::net::IpAddr;

use super::state::Relay;
use crate::{
    flow::{self, Key},
    link::Outbox,
    net::Protocol,
    sys::errqueue::SocketError,
    wire::{
        build::{ETHERNET, Ends, HOPS, Ip4, Ip6, ipv4, ipv6},
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
        }
    }

    /// What a socket's error queue tells.
    pub const fn of(error: &SocketError) -> Self {
        Self {
            kind: error.kind,
            code: error.code,
            info: error.info,
            offender: error.offender,
        }
    }
}

/// What the packet at fault carried.
#[derive(Debug, Clone, Copy)]
pub struct Quote<'a> {
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
        let ends = Ends {
            src: self.net.mac,
            dst: self.guest_mac(),
        };
        let Some(offender) = self.offender(key, fault.offender) else {
            return;
        };
        let (packet, out) = (&mut self.quote, &mut self.scratch);
        out.clear();
        let body = |out: &mut Vec<u8>| {
            let start = out.len();
            out.extend_from_slice(quote.upper);
            out.resize(start + quote.len.max(quote.upper.len()), 0);
        };
        match (key.guest.addr, key.remote.addr, offender) {
            (IpAddr::V4(guest), IpAddr::V4(remote), IpAddr::V4(offender)) => {
                let Some(error) = Error4::new(fault.kind, fault.code, fault.info) else {
                    return;
                };
                let ip = Ip4 {
                    src: guest,
                    dst: remote,
                    ttl: HOPS,
                };
                ipv4(packet, ends, ip, number(key.protocol, 1), body);
                let known = packet
                    .get(ETHERNET..ETHERNET + 20 + quote.upper.len())
                    .unwrap_or_default();
                error4(out, ends, (offender, guest), error, known);
            }
            (IpAddr::V6(guest), IpAddr::V6(remote), IpAddr::V6(offender)) => {
                let Some(error) = Error6::new(fault.kind, fault.code, fault.info) else {
                    return;
                };
                let ip = Ip6 {
                    src: guest,
                    dst: remote,
                    hop_limit: HOPS,
                    flow_label: 0,
                };
                ipv6(packet, ends, ip, number(key.protocol, 58), body);
                let known = packet
                    .get(ETHERNET..ETHERNET + 40 + quote.upper.len())
                    .unwrap_or_default();
                error6(out, ends, (offender, guest), error, known);
            }
            _ => return,
        }
        if let Err(why) = outbox.copy(&self.scratch) {
            self.drops.count(why);
        }
    }

    /// Under which address the guest sees who met an error.
    fn offender(&self, key: &Key, offender: Option<IpAddr>) -> Option<IpAddr> {
        let Some(offender) = offender else {
            return match key.remote.addr {
                IpAddr::V4(_) => self.net.v4.as_ref().map(|v4| v4.ours.into()),
                IpAddr::V6(_) => self.net.v6.as_ref().map(|v6| v6.ours.into()),
            };
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

const fn number(protocol: Protocol, echo: u8) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Echo => echo,
    }
}
