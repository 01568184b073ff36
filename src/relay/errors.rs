//! ICMP errors to the guest, about packets it sent.

use std::net::IpAddr;

use super::state::Relay;
use crate::{
    flow::{self, Key},
    link::Outbox,
    net::Protocol,
    wire::{
        build::{Ends, Ip4, Ip6, ipv4, ipv6},
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

/// Octets of Ethernet header before the packet that is quoted.
const ETHERNET: usize = 14;

impl Relay {
    /// Tells the guest that a packet of this flow met an error. `upper` is what the packet carried, from the upper layer's
    /// header on, as far as it is known; its IP header is written anew.
    pub(super) fn icmp_error(
        &mut self,
        key: &Key,
        fault: Fault,
        upper: &[u8],
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
        match (key.guest.addr, key.remote.addr, offender) {
            (IpAddr::V4(guest), IpAddr::V4(remote), IpAddr::V4(offender)) => {
                let Some(error) = Error4::new(fault.kind, fault.code, fault.info) else {
                    return;
                };
                let ip = Ip4 {
                    src: guest,
                    dst: remote,
                    ttl: 64,
                };
                let protocol = number(key.protocol, 1);
                ipv4(packet, ends, ip, protocol, |out| {
                    out.extend_from_slice(upper);
                });
                let total = ETHERNET + 20 + upper.len();
                error4(
                    out,
                    ends,
                    (offender, guest),
                    error,
                    packet.get(ETHERNET..total).unwrap_or_default(),
                );
            }
            (IpAddr::V6(guest), IpAddr::V6(remote), IpAddr::V6(offender)) => {
                let Some(error) = Error6::new(fault.kind, fault.code, fault.info) else {
                    return;
                };
                let ip = Ip6 {
                    src: guest,
                    dst: remote,
                    hop_limit: 64,
                    flow_label: 0,
                };
                let protocol = number(key.protocol, 58);
                ipv6(packet, ends, ip, protocol, |out| {
                    out.extend_from_slice(upper);
                });
                let total = ETHERNET + 40 + upper.len();
                error6(
                    out,
                    ends,
                    (offender, guest),
                    error,
                    packet.get(ETHERNET..total).unwrap_or_default(),
                );
            }
            _ => out.clear(),
        }
        if !self.scratch.is_empty()
            && let Err(why) = outbox.copy(&self.scratch)
        {
            self.drops.count(why);
        }
    }
}

impl Relay {
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
