//! What guest and flows are told: the outcome of configuration and host facts.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::config::{Outbound, Serve};
use crate::net::Mac;

/// The least link MTU of each family (RFC 791, section 3.2; RFC 8200, section 5).
pub const LEAST_MTU4: u16 = 68;
pub const LEAST_MTU6: u16 = 1280;

/// The prefix length of the guest's IPv6 network, always.
pub const PREFIX6: u8 = 64;

/// The network as the guest and the flows see it. Read-only; made anew when the host changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// Our MAC address on the link.
    pub mac: Mac,
    /// The link's MTU: what a frame to the guest may carry after the Ethernet header, in octets.
    pub mtu: u16,
    /// Whether DHCP and RA announce the MTU.
    pub announce_mtu: bool,
    pub v4: Option<Net4>,
    pub v6: Option<Net6>,
    pub dns: Dns,
    pub serve: Serve,
    pub outbound: Outbound,
    pub multicast: Multicast,
    /// Whether the guest may use no addresses but those it was given.
    pub strict_source: bool,
}

/// What is carried to and from groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Multicast {
    /// The ports of `--multicast-ports`.
    pub listed: Vec<u16>,
    /// The host's ports that are heard of every group the guest is in, and the guest's ports behind them, without those that
    /// the guest shows by using them; [`HEARD_MOST`] at most.
    pub heard: Vec<(u16, u16)>,
}

/// Ports heard of every group: each takes a socket for each group.
pub const HEARD_MOST: usize = 32;

/// The guest's IPv4 network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net4 {
    /// The guest's address.
    pub addr: Ipv4Addr,
    pub prefix: u8,
    /// The router told to the guest, if any.
    pub router: Option<Ipv4Addr>,
    /// Our own address on the link: source of DHCP, of ICMP errors of ours, and of whatever the guest could not answer.
    pub ours: Ipv4Addr,
    /// Further routes of the template interface, for DHCP option 121: destination, prefix, gateway (unspecified: on link).
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// The guest-side address that stands for the host's loopback.
    pub map_host_loopback: Option<Ipv4Addr>,
    /// The guest-side address that stands for the host at `host`.
    pub map_guest_addr: Option<Ipv4Addr>,
    /// The host's address that the guest's was made of; the same, until the host's changes.
    pub host: Ipv4Addr,
    /// The guest-side address whose port 53 and 853 go to `dns_host`.
    pub dns_forward: Option<Ipv4Addr>,
    pub dns_host: Option<Ipv4Addr>,
    /// Nameservers announced to the guest, three at most.
    pub dns: Vec<Ipv4Addr>,
    /// Index of the host interface whose network this is; 0 where there is none.
    pub interface: u32,
}

/// The guest's IPv6 network; its prefix length is [`PREFIX6`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net6 {
    /// The guest's address; none in local mode, where only link-local addresses exist.
    pub addr: Option<Ipv6Addr>,
    /// The router told to the guest in the start-up print-out; the guest itself learns `ours` from RAs.
    pub router: Option<Ipv6Addr>,
    /// Our link-local address on the link.
    pub ours: Ipv6Addr,
    pub map_host_loopback: Option<Ipv6Addr>,
    pub map_guest_addr: Option<Ipv6Addr>,
    /// The host's address that the guest's was made of; the same, until the host's changes.
    pub host: Option<Ipv6Addr>,
    pub dns_forward: Option<Ipv6Addr>,
    pub dns_host: Option<Ipv6Addr>,
    /// Nameservers announced to the guest, three at most.
    pub dns: Vec<Ipv6Addr>,
    pub withdrawn: Withdrawn,
    /// The host interface that link-local destinations and groups are reached through; 0 where there is none.
    pub scope: u32,
}

/// What was announced to the guest by router advertisements and is no more: it would keep that for ever, unless it is told
/// (RFC 8106, section 5.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Withdrawn {
    pub dns: Vec<Ipv6Addr>,
    pub search: Vec<String>,
}

/// Names announced to the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Search domains, six at most.
    pub search: Vec<String>,
    pub hostname: Option<String>,
    pub fqdn: Option<String>,
}
