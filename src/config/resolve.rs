//! From what was asked and what the host is to what guest and flows are told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    config::{Config, DEFAULT_MTU, DnsServers, MapChoice, SearchList},
    facts::{Facts, Interface},
    nameservers::{Asked, Nameservers},
    net::{Dns, Net, Net4, Net6},
    template::{Family, Template, named},
};
use crate::net::is_link_local6;

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

/// Least link MTU per family: RFC 791 section 3.2, RFC 8200 section 5.
const LEAST_MTU: [(Family, u16); 2] = [(Family::V4, 68), (Family::V6, 1280)];

/// Most search domains announced (resolv.conf(5), the classic limit).
const MOST_DOMAINS: usize = 6;

/// Most further routes for DHCP option 121; more would not fit a message.
const MOST_ROUTES: usize = 32;

/// Decides what the guest is told.
///
/// # Errors
/// One line for a person: what was asked cannot be had from this host.
pub fn resolve(config: &Config, facts: &Facts) -> Result<Resolved, String> {
    let forced = config
        .interface
        .as_deref()
        .map(|name| named(facts, name))
        .transpose()?;
    let mut said = Said::default();
    warn_of_mtu(config, &mut said);
    let v4 = config
        .v4
        .then(|| resolve4(config, facts, forced, &mut said));
    let v6 = config
        .v6
        .then(|| resolve6(config, facts, forced, &mut said));
    let (template4, v4) = v4.map_or((None, None), |(name, net)| (name, Some(net)));
    let (template6, v6) = v6.map_or((None, None), |(name, net)| (name, Some(net)));
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
        serve: config.serve,
        outbound: config.outbound.clone(),
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
        None => Some(LOCAL_ROUTER4),
    };
    let router = config.gateway4.or(lent_router);
    let map_host_loopback = mapping(config.map_host_loopback4, router);
    let hidden = |server: Ipv4Addr| {
        server.is_loopback() || Some(server) == map_host_loopback || server == addr
    };
    let given: Vec<Ipv4Addr> = given(config, |server| match server {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    let asked = Asked {
        given: matches!(config.dns_servers, DnsServers::Given(_)).then_some(&given[..]),
        forward: config.dns_forward4,
        host: config.dns_host4,
        mapped: map_host_loopback,
    };
    let servers: Vec<_> = facts
        .resolver
        .servers4
        .iter()
        .map(|&s| or_loopback4(s))
        .collect();
    let dns = Nameservers::decide(asked, &servers, hidden);
    let net = Net4 {
        addr,
        prefix,
        router,
        ours: router.unwrap_or_else(|| neighbour(addr, prefix)),
        routes: template.map_or_else(Vec::new, |t| routes(&t, addr, prefix, router)),
        map_host_loopback,
        map_guest_addr: config.map_guest_addr4,
        host: addr,
        dns_forward: dns.forward,
        dns_host: dns.host,
        dns: dns.advertised,
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
        None => Some(LOCAL_ROUTER6),
    };
    let router = config.gateway6.or(lent_router);
    let ours = router
        .filter(|&router| is_link_local6(router))
        .or_else(|| template?.link_local6())
        .unwrap_or(LOCAL_ROUTER6);
    let map_host_loopback = mapping(config.map_host_loopback6, router);
    let hidden = |server: Ipv6Addr| {
        server.is_loopback() || Some(server) == map_host_loopback || Some(server) == addr
    };
    let given: Vec<Ipv6Addr> = given(config, |server| match server {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    });
    let asked = Asked {
        given: matches!(config.dns_servers, DnsServers::Given(_)).then_some(&given[..]),
        forward: config.dns_forward6,
        host: config.dns_host6,
        mapped: map_host_loopback,
    };
    let servers: Vec<_> = facts
        .resolver
        .servers6
        .iter()
        .map(|&s| or_loopback6(s))
        .collect();
    let dns = Nameservers::decide(asked, &servers, hidden);
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
fn neighbour(guest: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = mask(prefix);
    let first = (guest.to_bits() & mask) | u32::from(prefix < 31);
    [first, first.wrapping_add(1)]
        .into_iter()
        .map(Ipv4Addr::from_bits)
        .find(|&addr| addr != guest && prefix < 32)
        .unwrap_or(LOCAL_ROUTER4)
}

fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
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
    let all = template.routes4();
    let within = |addr: Ipv4Addr, net: Ipv4Addr, prefix: u8| {
        addr.to_bits() & mask(prefix) == net.to_bits() & mask(prefix)
    };
    let on_link = |via: Ipv4Addr| {
        Some(via) == router
            || within(via, guest, prefix)
            || alone
                && all
                    .iter()
                    .any(|&(dst, len, hop)| hop.is_none() && within(via, dst, len))
    };
    let mut told: Vec<_> = all
        .iter()
        .filter_map(|&(dst, len, via)| match via {
            Some(via) if on_link(via) => Some((dst, len, via)),
            None if alone && Some(dst) != router => Some((dst, len, Ipv4Addr::UNSPECIFIED)),
            _ => None,
        })
        .collect();
    // On-link routes first: the others' gateways may lie in them.
    told.sort_by_key(|&(_, _, via)| via != Ipv4Addr::UNSPECIFIED);
    told.truncate(MOST_ROUTES);
    told
}

fn mapping<A>(choice: MapChoice<A>, router: Option<A>) -> Option<A> {
    match choice {
        MapChoice::Default => router,
        MapChoice::Off => None,
        MapChoice::To(addr) => Some(addr),
    }
}

fn given<A>(config: &Config, of_family: impl Fn(IpAddr) -> Option<A>) -> Vec<A> {
    match &config.dns_servers {
        DnsServers::FromHost => Vec::new(),
        DnsServers::Given(servers) => servers.iter().filter_map(|&s| of_family(s)).collect(),
    }
}

/// A nameserver without address is the host itself (resolv.conf(5) of several systems writes it so).
const fn or_loopback4(server: Ipv4Addr) -> Ipv4Addr {
    if server.is_unspecified() {
        Ipv4Addr::LOCALHOST
    } else {
        server
    }
}

const fn or_loopback6(server: Ipv6Addr) -> Ipv6Addr {
    if server.is_unspecified() {
        Ipv6Addr::LOCALHOST
    } else {
        server
    }
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
    for (family, least) in LEAST_MTU {
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

fn warn_of_nameservers(net: &Net, said: &mut Said) {
    let serve = net.serve;
    let told4 = net.v4.as_ref().is_some_and(|v4| !v4.dns.is_empty());
    let told6 = net.v6.as_ref().is_some_and(|v6| !v6.dns.is_empty());
    if !told4 && !told6 {
        said.warnings
            .push("Couldn't get any nameserver address".to_owned());
    }
    let dhcp = serve.dhcp && net.v4.as_ref().is_some_and(|v4| v4.router.is_some());
    if serve.dhcp_dns && dhcp && !told4 {
        said.warnings
            .push("No IPv4 nameserver available for DHCP".to_owned());
    }
    if serve.dhcp_dns && net.v6.is_some() && (serve.ndp || serve.dhcpv6) && !told6 {
        said.warnings
            .push("No IPv6 nameserver available for NDP/DHCPv6".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::facts::{Address, Route},
        *,
    };

    fn ip<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().unwrap()
    }

    /// Builds a host out of lines like those of ip(8).
    #[derive(Default)]
    struct Host(Facts);

    impl Host {
        fn new() -> Self {
            Self::default().link("lo").addr("lo", "127.0.0.1/8")
        }

        fn index(&self, name: &str) -> u32 {
            named(&self.0, name).unwrap().index
        }

        fn link(mut self, name: &str) -> Self {
            self.0.interfaces.push(Interface {
                index: u32::try_from(self.0.interfaces.len()).unwrap() + 1,
                name: name.to_owned(),
                mac: None,
                mtu: 1500,
                loopback: name == "lo",
                up: true,
            });
            self
        }

        fn addr(mut self, interface: &str, addr: &str) -> Self {
            let (bare, prefix) = addr.split_once('/').unwrap();
            let interface = self.index(interface);
            let addr = ip(bare);
            self.0.addresses.push(Address {
                interface,
                addr,
                prefix: ip(prefix),
                deprecated: false,
                global: !addr.is_loopback() && !bare.starts_with("fe80"),
            });
            self
        }

        fn deprecated(mut self) -> Self {
            self.0.addresses.last_mut().unwrap().deprecated = true;
            self
        }

        fn route(mut self, interface: &str, dst: &str, via: &str) -> Self {
            let (dst, prefix) = dst.split_once('/').unwrap();
            let interface = self.index(interface);
            self.0.routes.push(Route {
                interface,
                dst: ip(dst),
                prefix: ip(prefix),
                via: via.parse().ok(),
                weight: 1,
                metric: 0,
            });
            self
        }

        fn metric(mut self, metric: u32) -> Self {
            self.0.routes.last_mut().unwrap().metric = metric;
            self
        }

        fn weight(mut self, weight: u16) -> Self {
            self.0.routes.last_mut().unwrap().weight = weight;
            self
        }

        fn server(mut self, server: &str) -> Self {
            match ip(server) {
                IpAddr::V4(v4) => self.0.resolver.servers4.push(v4),
                IpAddr::V6(v6) => self.0.resolver.servers6.push(v6),
            }
            self
        }

        fn lan() -> Self {
            Self::new()
                .link("eth0")
                .addr("eth0", "192.0.2.2/24")
                .addr("eth0", "fe80::2/64")
                .addr("eth0", "2001:db8::2/64")
                .route("eth0", "0.0.0.0/0", "192.0.2.1")
                .route("eth0", "192.0.2.0/24", "")
                .route("eth0", "fe80::/64", "")
                .route("eth0", "::/0", "2001:db8::1")
        }

        fn resolve(&self, config: &Config) -> Resolved {
            resolve(config, &self.0).unwrap()
        }

        fn v4(&self, config: &Config) -> Net4 {
            self.resolve(config).net.v4.unwrap()
        }

        fn v6(&self, config: &Config) -> Net6 {
            self.resolve(config).net.v6.unwrap()
        }
    }

    fn plain() -> Config {
        Config::default()
    }

    #[test]
    fn the_interface_of_the_default_route_lends_its_addresses() {
        let resolved = Host::lan().server("9.9.9.9").resolve(&plain());
        assert_eq!(resolved.template4.as_deref(), Some("eth0"));
        assert_eq!(resolved.template6.as_deref(), Some("eth0"));
        assert!(resolved.notes.is_empty());
        let v4 = resolved.net.v4.unwrap();
        assert_eq!((v4.addr, v4.prefix), (ip("192.0.2.2"), 24));
        assert_eq!(v4.router, Some(ip("192.0.2.1")));
        assert_eq!(
            (v4.ours, v4.map_host_loopback),
            (ip("192.0.2.1"), v4.router)
        );
        assert!(v4.routes.is_empty());
        assert_eq!((v4.dns, v4.dns_forward), (vec![ip("9.9.9.9")], None));
        let v6 = resolved.net.v6.unwrap();
        assert_eq!(v6.addr, Some(ip("2001:db8::2")));
        assert_eq!(v6.router, Some(ip("2001:db8::1")));
        assert_eq!((v6.ours, v6.scope), (ip("fe80::2"), 2));
        assert_eq!(v6.map_host_loopback, v6.router);
        assert_eq!(
            resolved.warnings,
            ["No IPv6 nameserver available for NDP/DHCPv6"]
        );
    }

    #[test]
    fn our_link_local_address_is_the_gateways_if_that_is_one() {
        let host = Host::new()
            .link("eth0")
            .addr("eth0", "2001:db8::2/64")
            .addr("eth0", "fe80::2/64")
            .route("eth0", "::/0", "fe80::1");
        assert_eq!(host.v6(&plain()).ours, ip::<Ipv6Addr>("fe80::1"));
    }

    #[test]
    fn without_any_interface_local_mode_serves_both_families() {
        let resolved = Host::new().resolve(&plain());
        assert_eq!((resolved.template4, resolved.template6), (None, None));
        assert_eq!(
            resolved.notes,
            [
                "No interfaces with usable IPv4 routes",
                "IPv4: no external interface as template, use local mode",
                "No interfaces with usable IPv6 routes",
                "IPv6: no external interface as template, use local mode",
            ]
        );
        let v4 = resolved.net.v4.unwrap();
        assert_eq!((v4.addr, v4.prefix), (LOCAL_GUEST4, 16));
        assert_eq!((v4.router, v4.ours), (Some(LOCAL_ROUTER4), LOCAL_ROUTER4));
        let v6 = resolved.net.v6.unwrap();
        assert_eq!((v6.addr, v6.router), (None, Some(LOCAL_ROUTER6)));
        assert_eq!((v6.ours, v6.scope), (LOCAL_ROUTER6, 0));
        assert_eq!(v6.map_host_loopback, Some(LOCAL_ROUTER6));
    }

    /// Regression C02.
    #[test]
    fn local_mode_honours_a_single_family() {
        let config = Config {
            v6: false,
            ..plain()
        };
        assert_eq!(Host::new().resolve(&config).net.v6, None);
    }

    /// Regression C16.
    #[test]
    fn routes_through_the_loopback_interface_make_no_template() {
        let host = Host::lan().route("lo", "0.0.0.0/0", "");
        assert_eq!(host.resolve(&plain()).template4.as_deref(), Some("eth0"));
        let host = Host::new().route("lo", "0.0.0.0/0", "");
        assert_eq!(host.resolve(&plain()).template4, None);
    }

    #[test]
    fn a_family_without_address_is_local_though_it_has_routes() {
        let host = Host::new()
            .link("eth0")
            .addr("eth0", "fe80::2/64")
            .route("eth0", "::/0", "fe80::1");
        let resolved = host.resolve(&plain());
        assert_eq!(resolved.template6, None);
        assert_eq!(resolved.net.v6.unwrap().addr, None);
    }

    /// Regressions C35 and C36.
    #[test]
    fn the_longest_prefix_that_is_not_deprecated_is_taken() {
        let host = Host::new()
            .link("eth0")
            .addr("eth0", "2001:db8::2/64")
            .addr("eth0", "2001:db8::7/128")
            .addr("eth0", "2001:db8::8/128")
            .addr("eth0", "2001:db8::9/128")
            .deprecated()
            .route("eth0", "::/0", "fe80::1");
        assert_eq!(host.v6(&plain()).addr, Some(ip("2001:db8::7")));
        let old = Host::new()
            .link("eth0")
            .addr("eth0", "2001:db8::9/128")
            .deprecated()
            .addr("eth0", "2001:db8::2/64")
            .route("eth0", "::/0", "fe80::1");
        assert_eq!(old.v6(&plain()).addr, Some(ip("2001:db8::2")));
    }

    /// Regression C30.
    #[test]
    fn without_default_route_the_first_interface_that_leads_anywhere_is_taken() {
        let host = Host::new()
            .link("eth0")
            .link("eth1")
            .addr("eth0", "169.254.3.3/16")
            .addr("eth1", "10.0.0.2/8")
            .route("eth0", "169.254.0.0/16", "")
            .route("eth1", "10.0.0.0/8", "");
        let resolved = host.resolve(&plain());
        assert_eq!(resolved.template4.as_deref(), Some("eth1"));
        let v4 = resolved.net.v4.unwrap();
        assert_eq!((v4.router, v4.map_host_loopback), (None, None));
        assert_eq!(v4.ours, ip::<Ipv4Addr>("10.0.0.1"));
    }

    /// Regression C32.
    #[test]
    fn a_default_route_without_gateway_gives_no_router() {
        let host = Host::new()
            .link("wg0")
            .addr("wg0", "10.0.0.1/24")
            .route("wg0", "0.0.0.0/0", "");
        let v4 = host.v4(&plain());
        assert_eq!((v4.router, v4.map_host_loopback), (None, None));
        assert_eq!(v4.ours, ip::<Ipv4Addr>("10.0.0.2"));
    }

    /// Regression C31.
    #[test]
    fn the_heaviest_next_hop_of_a_multipath_route_is_taken_with_its_interface() {
        let host = Host::new()
            .link("eth0")
            .link("eth1")
            .addr("eth0", "10.1.0.2/16")
            .addr("eth1", "10.2.0.2/16")
            .route("eth0", "0.0.0.0/0", "10.1.0.1")
            .route("eth1", "0.0.0.0/0", "10.2.0.1")
            .weight(9);
        let resolved = host.resolve(&plain());
        assert_eq!(resolved.template4.as_deref(), Some("eth1"));
        assert_eq!(resolved.net.v4.unwrap().router, Some(ip("10.2.0.1")));
        assert!(!resolved.notes.iter().any(|note| note.contains("Multiple")));
    }

    #[test]
    fn the_default_route_of_lowest_metric_is_taken_and_noted() {
        let host = Host::new()
            .link("eth0")
            .link("eth1")
            .addr("eth0", "10.1.0.2/16")
            .addr("eth1", "10.2.0.2/16")
            .route("eth0", "0.0.0.0/0", "10.1.0.1")
            .metric(600)
            .route("eth1", "0.0.0.0/0", "10.2.0.1")
            .metric(100);
        let resolved = host.resolve(&plain());
        assert_eq!(resolved.template4.as_deref(), Some("eth1"));
        assert_eq!(
            resolved.notes[0],
            "Multiple default IPv4 routes, picked first"
        );
    }

    #[test]
    fn an_interface_can_be_forced() {
        let host = Host::lan()
            .link("eth1")
            .addr("eth1", "10.2.0.2/16")
            .route("eth1", "0.0.0.0/0", "10.2.0.1")
            .metric(900);
        let mut config = Config {
            interface: Some("eth1".to_owned()),
            ..plain()
        };
        let resolved = host.resolve(&config);
        assert_eq!(resolved.template4.as_deref(), Some("eth1"));
        assert_eq!(resolved.template6, None);
        assert_eq!(resolved.net.v4.unwrap().router, Some(ip("10.2.0.1")));
        config.interface = Some("eno999".to_owned());
        assert_eq!(
            resolve(&config, &host.0),
            Err("Invalid interface name eno999: No such device".to_owned())
        );
    }

    #[test]
    fn the_outbound_interface_is_the_template_if_it_exists() {
        let host = Host::lan().link("eth1").addr("eth1", "10.2.0.2/16");
        let mut config = plain();
        config.outbound.interface4 = Some("eth1".to_owned());
        assert_eq!(host.resolve(&config).template4.as_deref(), Some("eth1"));
        assert_eq!(host.resolve(&config).template6.as_deref(), Some("eth0"));
        config.outbound.interface4 = Some("nope".to_owned());
        assert_eq!(host.resolve(&config).template4.as_deref(), Some("eth0"));
    }

    /// Regression C55.
    #[test]
    fn a_given_address_without_prefix_gets_its_class() {
        for (addr, prefix) in [
            ("10.0.0.5", 8),
            ("169.254.2.15", 16),
            ("192.168.5.5", 24),
            ("250.1.1.1", 32),
        ] {
            let mut config = Config {
                addr4: Some(ip(addr)),
                ..plain()
            };
            assert_eq!(Host::lan().v4(&config).prefix, prefix, "{addr}");
            config.prefix4 = Some(20);
            assert_eq!(Host::lan().v4(&config).prefix, 20, "{addr}");
        }
    }

    #[test]
    fn given_addresses_and_gateways_replace_the_hosts() {
        let config = Config {
            addr4: Some(ip("169.254.2.15")),
            prefix4: Some(16),
            gateway4: Some(ip("169.254.2.2")),
            addr6: Some(ip("fd10::2")),
            gateway6: Some(ip("fe80::99")),
            ..plain()
        };
        for host in [Host::lan(), Host::new()] {
            let v4 = host.v4(&config);
            assert_eq!((v4.addr, v4.ours), (ip("169.254.2.15"), ip("169.254.2.2")));
            assert_eq!(v4.map_host_loopback, Some(ip("169.254.2.2")));
            let v6 = host.v6(&config);
            assert_eq!((v6.addr, v6.ours), (Some(ip("fd10::2")), ip("fe80::99")));
        }
    }

    #[test]
    fn a_pod_address_behind_a_link_local_gateway_brings_its_routes() {
        let host = Host::new()
            .link("eth0")
            .addr("eth0", "10.244.0.7/32")
            .route("eth0", "10.9.0.0/16", "169.254.7.7")
            .route("eth0", "10.8.0.0/16", "172.16.0.1")
            .route("eth0", "169.254.1.1/32", "")
            .route("eth0", "169.254.7.7/32", "")
            .route("eth0", "0.0.0.0/0", "169.254.1.1");
        let v4 = host.v4(&plain());
        assert_eq!(v4.router, Some(ip("169.254.1.1")));
        assert_eq!(
            v4.routes,
            [
                (ip("169.254.7.7"), 32, Ipv4Addr::UNSPECIFIED),
                (ip("10.9.0.0"), 16, ip("169.254.7.7")),
            ]
        );
    }

    #[test]
    fn further_routes_through_gateways_on_the_link_are_told() {
        let host = Host::lan()
            .route("eth0", "10.9.0.0/16", "192.0.2.9")
            .route("eth0", "10.9.0.0/16", "192.0.2.10")
            .route("eth0", "10.8.0.0/16", "198.51.100.1");
        assert_eq!(
            host.v4(&plain()).routes,
            [(ip("10.9.0.0"), 16, ip("192.0.2.9"))]
        );
    }

    /// Regressions C11 and C46.
    #[test]
    fn a_resolver_on_loopback_is_told_as_the_mapped_gateway_or_the_forwarding_address() {
        let host = Host::lan().server("127.0.0.53");
        let v4 = host.v4(&plain());
        assert_eq!(v4.dns, [ip::<Ipv4Addr>("192.0.2.1")]);
        assert_eq!(v4.dns_forward, Some(ip("192.0.2.1")));
        assert_eq!(v4.dns_host, Some(ip("127.0.0.53")));
        let mut config = Config {
            map_host_loopback4: MapChoice::Off,
            map_host_loopback6: MapChoice::Off,
            ..plain()
        };
        let resolved = host.resolve(&config);
        assert_eq!(
            resolved.warnings,
            [
                "Couldn't get any nameserver address",
                "No IPv4 nameserver available for DHCP",
                "No IPv6 nameserver available for NDP/DHCPv6",
            ]
        );
        config.dns_forward4 = Some(ip("10.9.9.9"));
        let v4 = host.v4(&config);
        assert_eq!(
            (v4.dns, v4.dns_forward),
            (vec![ip("10.9.9.9")], Some(ip("10.9.9.9")))
        );
    }

    #[test]
    fn a_resolver_the_guest_would_mistake_for_another_is_forwarded() {
        // The gateway's address means the host, and the guest's own means the guest.
        for server in ["192.0.2.1", "192.0.2.2", "0.0.0.0"] {
            let v4 = Host::lan().server(server).v4(&plain());
            assert_eq!(v4.dns, [ip::<Ipv4Addr>("192.0.2.1")], "{server}");
            assert_eq!(v4.dns_forward, Some(ip("192.0.2.1")), "{server}");
        }
        let config = Config {
            map_host_loopback4: MapChoice::Off,
            ..plain()
        };
        let v4 = Host::lan().server("192.0.2.1").v4(&config);
        assert_eq!((v4.dns, v4.dns_forward), (vec![ip("192.0.2.1")], None));
    }

    #[test]
    fn no_nameservers_on_request_is_nothing_to_warn_of() {
        let config = Config {
            dns_servers: DnsServers::Given(Vec::new()),
            ..plain()
        };
        let resolved = Host::lan().server("9.9.9.9").resolve(&config);
        assert!(resolved.warnings.is_empty());
        assert!(resolved.net.v4.unwrap().dns.is_empty());
    }

    #[test]
    fn the_mtu_has_a_default_and_zero_keeps_it_secret() {
        let with = |mtu| {
            Host::lan()
                .server("9.9.9.9")
                .server("::9")
                .resolve(&Config { mtu, ..plain() })
        };
        let told = |resolved: &Resolved| (resolved.net.mtu, resolved.net.announce_mtu);
        assert_eq!(told(&with(None)), (65_520, true));
        assert_eq!(told(&with(Some(0))), (65_520, false));
        assert_eq!(told(&with(Some(1500))), (1500, true));
        assert_eq!(
            with(Some(60)).warnings,
            [
                "MTU 60 is too small for IPv4 (minimum 68)",
                "MTU 60 is too small for IPv6 (minimum 1280)",
            ]
        );
    }

    #[test]
    fn at_most_six_search_domains_are_told() {
        let mut host = Host::lan();
        host.0.resolver.search = ["a", "b", "c", "d", "e", "f", "g"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(host.resolve(&plain()).net.dns.search.len(), 6);
        let config = Config {
            search: SearchList::Given(Vec::new()),
            ..plain()
        };
        assert!(host.resolve(&config).net.dns.search.is_empty());
    }

    #[test]
    fn our_own_address_is_never_the_guests() {
        for (guest, prefix, ours) in [
            ("10.0.0.9", 24, "10.0.0.1"),
            ("10.0.0.1", 24, "10.0.0.2"),
            ("10.0.0.0", 31, "10.0.0.1"),
            ("10.0.0.1", 31, "10.0.0.0"),
            ("10.0.0.1", 32, "169.254.2.2"),
            ("255.255.255.254", 32, "169.254.2.2"),
            ("0.0.0.1", 0, "0.0.0.2"),
        ] {
            assert_eq!(
                neighbour(ip(guest), prefix),
                ip::<Ipv4Addr>(ours),
                "{guest}/{prefix}"
            );
        }
    }
}
