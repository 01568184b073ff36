//! From what was asked and what the host is to what guest and flows are told.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    config::{Config, DEFAULT_MTU, DnsServers, MapChoice, SearchList},
    facts::{Facts, Interface},
    nameservers::{Asked, Nameservers},
    net::{Dns, HEARD_MOST, LEAST_MTU4, LEAST_MTU6, Multicast, Net, Net4, Net6, Withdrawn},
    template::{Family, Template, is_there, named},
};
use crate::net::{Protocol, is_link_local6, mask4};

/// The outcome, with what the caller should be told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub net: Net,
    /// Template interfaces per family, by name.
    pub template4: Option<String>,
    pub template6: Option<String>,
    /// How the templates were found, one line each, where that is worth saying.
    pub notes: Vec<String>,
    /// One line each, in the order they arose.
    pub warnings: Vec<String>,
}

/// Addresses where the host has none to lend (RFC 3927; the prefix is the whole of 169.254/16).
const LOCAL_GUEST4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
const LOCAL_ROUTER4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);
const LOCAL_PREFIX4: u8 = 16;
const LOCAL_ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// In which families the guest is told of a router where the host has no network to lend.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalRouters {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// Most search domains announced (resolv.conf(5), the classic limit).
pub const MOST_DOMAINS: usize = 6;

/// Most further routes for DHCP option 121; more would not fit a message.
const MOST_ROUTES: usize = 32;

/// Decides what the guest is told.
///
/// # Errors
/// One line for a person: what was asked cannot be had from this host.
pub fn resolve(config: &Config, facts: &Facts) -> Result<Resolved, String> {
    resolve_with(config, facts, LocalRouters { v4: true, v6: true })
}

/// The same where local mode may go without routers.
///
/// # Errors
/// Those of [`resolve`].
pub(super) fn resolve_with(
    config: &Config,
    facts: &Facts,
    local: LocalRouters,
) -> Result<Resolved, String> {
    let forced = config
        .interface
        .as_deref()
        .map(|name| named(facts, name))
        .transpose()?;
    let mut said = Said::default();
    warn_of_mtu(config, &mut said);
    warn_of_outbound(config, facts, &mut said);
    let v4 = config
        .v4
        .then(|| resolve4(config, facts, forced, local.v4, &mut said));
    let v6 = config
        .v6
        .then(|| resolve6(config, facts, forced, local.v6, &mut said));
    let (template4, v4) = v4.map_or((None, None), |(name, net)| (name, Some(net)));
    let (template6, v6) = v6.map_or((None, None), |(name, net)| (name, Some(net)));
    let mut serve = config.serve;
    // As the manual of the original has it: without a router the guest is left to its own ways.
    serve.dhcp &= v4.as_ref().is_some_and(|v4: &Net4| v4.router.is_some());
    let net = Net {
        mac: config.mac,
        mtu: config.mtu.filter(|&mtu| mtu > 0).unwrap_or(DEFAULT_MTU),
        announce_mtu: config.mtu != Some(0),
        v4,
        v6,
        dns: Dns {
            search: search(config, facts),
            hostname: config.hostname.clone(),
            fqdn: config.fqdn.clone(),
        },
        serve,
        outbound: config.outbound.clone(),
        multicast: Multicast {
            listed: config.multicast_ports.clone(),
            heard: heard(config),
        },
        strict_source: config.strict_source,
    };
    if config.dns_servers != DnsServers::Given(Vec::new()) {
        warn_of_nameservers(&net, &mut said);
    }
    Ok(Resolved {
        net,
        template4,
        template6,
        notes: said.notes,
        warnings: said.warnings,
    })
}

/// The ports heard of every group: those listed, and as many of those forwarded as may be.
fn heard(config: &Config) -> Vec<(u16, u16)> {
    let mut heard: Vec<(u16, u16)> = Vec::with_capacity(HEARD_MOST);
    let listed = config.multicast_ports.iter().map(|&port| (port, port));
    let forwarded = config
        .forwards
        .iter()
        .filter(|rule| rule.protocol == Protocol::Udp)
        .flat_map(|rule| (rule.first..=rule.last).map(|port| (port, rule.map.guest(port))));
    for (host, guest) in listed.chain(forwarded) {
        if heard.len() < HEARD_MOST && heard.iter().all(|(known, _)| *known != host) {
            heard.push((host, guest));
        }
    }
    heard
}

#[derive(Default)]
struct Said {
    notes: Vec<String>,
    warnings: Vec<String>,
}

impl Said {
    fn local_mode(&mut self, family: Family) {
        let name = family.name();
        self.notes.push(format!(
            "{name}: no external interface as template, use local mode"
        ));
    }
}

fn resolve4(
    config: &Config,
    facts: &Facts,
    forced: Option<&Interface>,
    local: bool,
    said: &mut Said,
) -> (Option<String>, Net4) {
    let bound = config.outbound.interface4.as_deref();
    let template = Template::choose(facts, Family::V4, forced, bound, &mut said.notes);
    let lent = template.and_then(|template| template.address4());
    let template = template.filter(|_| lent.is_some() || config.addr4.is_some());
    if template.is_none() {
        said.local_mode(Family::V4);
    }

    let (addr, known_prefix) = match (config.addr4, lent) {
        (Some(addr), _) => (addr, class_prefix(addr)),
        (None, Some(lent)) => lent,
        (None, None) => (LOCAL_GUEST4, LOCAL_PREFIX4),
    };
    let prefix = config.prefix4.unwrap_or(known_prefix);
    let lent_router = match template.map(|template| template.router()) {
        Some(Some(IpAddr::V4(via))) => Some(via),
        Some(_) => None,
        None => local.then_some(LOCAL_ROUTER4),
    };
    let router = config.gateway4.or(lent_router);
    let map_host_loopback = mapping(config.map_host_loopback4, router);
    let asked = Asked {
        given: None,
        forward: config.dns_forward4,
        host: config.dns_host4,
        mapped: map_host_loopback,
    };
    let dns = nameservers(config, asked, &facts.resolver.servers4, Some(addr));
    let net = Net4 {
        addr,
        prefix,
        router,
        ours: router.unwrap_or_else(|| first_other_host(addr, prefix)),
        routes: template.map_or_else(Vec::new, |t| routes(&t, addr, prefix, router)),
        map_host_loopback,
        map_guest_addr: config.map_guest_addr4,
        host: addr,
        dns_forward: dns.forward,
        dns_host: dns.host,
        dns: dns.advertised,
        interface: template.map_or(0, |template| template.interface.index),
    };
    (
        template.map(|template| template.interface.name.clone()),
        net,
    )
}

fn resolve6(
    config: &Config,
    facts: &Facts,
    forced: Option<&Interface>,
    local: bool,
    said: &mut Said,
) -> (Option<String>, Net6) {
    let bound = config.outbound.interface6.as_deref();
    let template = Template::choose(facts, Family::V6, forced, bound, &mut said.notes);
    let lent = template.and_then(|template| template.address6());
    let addr = config.addr6.or(lent);
    let template = template.filter(|_| addr.is_some());
    if template.is_none() {
        said.local_mode(Family::V6);
    }

    let lent_router = match template.map(|template| template.router()) {
        Some(Some(IpAddr::V6(via))) => Some(via),
        Some(_) => None,
        None => local.then_some(LOCAL_ROUTER6),
    };
    let router = config.gateway6.or(lent_router);
    let ours = router
        .filter(|&router| is_link_local6(router))
        .or_else(|| template?.link_local6())
        .unwrap_or(LOCAL_ROUTER6);
    let map_host_loopback = mapping(config.map_host_loopback6, router);
    let asked = Asked {
        given: None,
        forward: config.dns_forward6,
        host: config.dns_host6,
        mapped: map_host_loopback,
    };
    let dns = nameservers(config, asked, &facts.resolver.servers6, addr);
    let net = Net6 {
        addr,
        router,
        ours,
        map_host_loopback,
        map_guest_addr: config.map_guest_addr6,
        host: addr,
        dns_forward: dns.forward,
        dns_host: dns.host,
        dns: dns.advertised,
        withdrawn: Withdrawn::default(),
        scope: template.map_or(0, |template| template.interface.index),
    };
    (
        template.map(|template| template.interface.name.clone()),
        net,
    )
}

/// The prefix length an address had before prefixes were written down (RFC 791, section 3.2).
const fn class_prefix(addr: Ipv4Addr) -> u8 {
    match addr.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        192..224 => 24,
        224.. => 32,
    }
}

/// The first host address of the guest's network that is not the guest's; a link-local one where the network has no other.
fn first_other_host(guest: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = mask4(prefix);
    let first = (guest.to_bits() & mask) | u32::from(prefix < 31);
    [first, first.wrapping_add(1)]
        .into_iter()
        .map(Ipv4Addr::from_bits)
        .find(|&addr| addr != guest && prefix < 32)
        .unwrap_or(LOCAL_ROUTER4)
}

/// The template's further routes, where the guest could use them: their gateway has to be on its link. With a prefix of 32
/// nothing is, so there the on-link routes come along.
fn routes(
    template: &Template<'_>,
    guest: Ipv4Addr,
    prefix: u8,
    router: Option<Ipv4Addr>,
) -> Vec<(Ipv4Addr, u8, Ipv4Addr)> {
    let alone = prefix == 32;
    let net = |addr: Ipv4Addr, prefix: u8| (addr.to_bits() & mask4(prefix), prefix);
    let all = template.routes4();
    let links = all.iter().filter(|(.., via)| alone && via.is_none());
    let links: HashSet<(u32, u8)> = links.map(|&(dst, len, _)| net(dst, len)).collect();
    let on_link = |via: Ipv4Addr| {
        Some(via) == router
            || net(via, prefix) == net(guest, prefix)
            || alone && (1..=32).any(|len| links.contains(&net(via, len)))
    };
    // On-link routes first: the others' gateways may lie in them.
    let bare = all.iter().filter_map(|&(dst, len, via)| {
        let told = via.is_none() && alone && Some(dst) != router;
        told.then_some((dst, len, Ipv4Addr::UNSPECIFIED))
    });
    let through = all.iter().filter_map(|&(dst, len, via)| {
        let via = via.filter(|&via| on_link(via))?;
        Some((dst, len, via))
    });
    bare.chain(through).take(MOST_ROUTES).collect()
}

fn mapping<A>(choice: MapChoice<A>, router: Option<A>) -> Option<A> {
    match choice {
        MapChoice::Default => router,
        MapChoice::Off => None,
        MapChoice::To(addr) => Some(addr),
    }
}

/// What nameservers need to know of an address.
trait Address: Copy + PartialEq {
    const LOCALHOST: Self;

    /// The address, if it is of this family.
    fn of(addr: IpAddr) -> Option<Self>;
    fn is_loopback(self) -> bool;
    fn is_unspecified(self) -> bool;
}

impl Address for Ipv4Addr {
    const LOCALHOST: Self = Self::LOCALHOST;

    fn of(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        }
    }

    fn is_loopback(self) -> bool {
        Self::is_loopback(&self)
    }

    fn is_unspecified(self) -> bool {
        Self::is_unspecified(&self)
    }
}

impl Address for Ipv6Addr {
    const LOCALHOST: Self = Self::LOCALHOST;

    fn of(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        }
    }

    fn is_loopback(self) -> bool {
        Self::is_loopback(&self)
    }

    fn is_unspecified(self) -> bool {
        Self::is_unspecified(&self)
    }
}

/// Those of one family, of which the host's are `servers`. One without address is the host itself (resolv.conf(5) of
/// several systems writes it so).
fn nameservers<A: Address>(
    config: &Config,
    asked: Asked<'_, A>,
    servers: &[A],
    guest: Option<A>,
) -> Nameservers<A> {
    let given = config.dns_servers.given(A::of);
    let or_localhost = |server: A| match server.is_unspecified() {
        true => A::LOCALHOST,
        false => server,
    };
    let servers: Vec<A> = servers.iter().copied().map(or_localhost).collect();
    let hidden =
        |server: A| server.is_loopback() || Some(server) == asked.mapped || Some(server) == guest;
    let asked = Asked {
        given: given.as_deref(),
        ..asked
    };
    Nameservers::decide(asked, &servers, hidden)
}

fn search(config: &Config, facts: &Facts) -> Vec<String> {
    let domains = match &config.search {
        SearchList::FromHost => &facts.resolver.search,
        SearchList::Given(domains) => domains,
    };
    domains.iter().take(MOST_DOMAINS).cloned().collect()
}

fn warn_of_mtu(config: &Config, said: &mut Said) {
    let Some(mtu) = config.mtu.filter(|&mtu| mtu > 0) else {
        return;
    };
    for (family, least) in [(Family::V4, LEAST_MTU4), (Family::V6, LEAST_MTU6)] {
        let enabled = match family {
            Family::V4 => config.v4,
            Family::V6 => config.v6,
        };
        if enabled && mtu < least {
            let name = family.name();
            said.warnings.push(format!(
                "MTU {mtu} is too small for {name} (minimum {least})"
            ));
        }
    }
}

/// An interface may come later, so that it is no error.
fn warn_of_outbound(config: &Config, facts: &Facts, said: &mut Said) {
    let outbound = &config.outbound;
    for (enabled, family, name) in [
        (config.v4, Family::V4, &outbound.interface4),
        (config.v6, Family::V6, &outbound.interface6),
    ] {
        if let Some(name) = name.as_ref().filter(|_| enabled)
            && !is_there(facts, name)
        {
            said.warnings.push(format!(
                "No interface is called {name}: nothing leaves over {} until there is one",
                family.name()
            ));
        }
    }
}

fn warn_of_nameservers(net: &Net, said: &mut Said) {
    let serve = net.serve;
    let told4 = net.v4.as_ref().is_some_and(|v4| !v4.dns.is_empty());
    let told6 = net.v6.as_ref().is_some_and(|v6| !v6.dns.is_empty());
    if !told4 && !told6 {
        said.warnings
            .push("Couldn't get any nameserver address".to_owned());
    }
    if serve.dhcp_dns && serve.dhcp && !told4 {
        said.warnings
            .push("No IPv4 nameserver available for DHCP".to_owned());
    }
    if serve.dhcp_dns && net.v6.is_some() && (serve.ndp || serve.dhcpv6) && !told6 {
        said.warnings
            .push("No IPv6 nameserver available for NDP/DHCPv6".to_owned());
    }
}

#[cfg(test)]
mod tests;
