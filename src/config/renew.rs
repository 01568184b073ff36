//! What becomes of the guest's network when the host's changes under it.
//!
//! The guest keeps what it was given: its address, its router, and ours, and from another host also our MAC address and the
//! MTU. It holds them for ever (leases and prefixes are infinite), so other ones would cut it off. They need not be the host's
//! for flows to work, since those are the host's own sockets. Everything else follows the host: routes and names told,
//! nameservers, what mapped addresses stand for.

use super::{
    config::Config,
    facts::Facts,
    net::{Net, Withdrawn},
    resolve::{LocalRouters, MOST_DOMAINS, Resolved, resolve, resolve_with},
    template::is_there,
};

/// Nameservers, or search domains, that are withdrawn at a time: all that were told at two times.
const MOST_WITHDRAWN: usize = 2 * MOST_DOMAINS;

/// Decides anew, as [`resolve`] does. An interface asked for that is gone is no error here: it may return, and until then
/// there is none. `kept` is what the guest was told, if there was a guest.
///
/// # Errors
/// Those of [`resolve`].
pub fn renew(config: &Config, facts: &Facts, kept: Option<&Net>) -> Result<Resolved, String> {
    let gone = config
        .interface
        .as_deref()
        .is_some_and(|name| !is_there(facts, name));
    let nowhere = Facts {
        resolver: facts.resolver.clone(),
        ..Facts::default()
    };
    let facts = if gone { &nowhere } else { facts };
    let config = Config {
        interface: config.interface.clone().filter(|_| !gone),
        ..config.clone()
    };
    let fresh = resolve(&config, facts)?;
    match kept {
        None => Ok(fresh),
        Some(kept) => keep(config, facts, kept, &fresh),
    }
}

fn keep(
    mut config: Config,
    facts: &Facts,
    kept: &Net,
    fresh: &Resolved,
) -> Result<Resolved, String> {
    if let Some(v4) = &kept.v4 {
        config.addr4 = Some(v4.addr);
        config.prefix4 = Some(v4.prefix);
        config.gateway4 = v4.router;
    }
    if let Some(v6) = &kept.v6 {
        config.addr6 = v6.addr;
        config.gateway6 = v6.router;
    }
    let mut resolved = resolve_with(&config, facts, local_routers(kept, fresh))?;
    (resolved.net.mac, resolved.net.mtu) = (kept.mac, kept.mtu);
    if let (Some(v4), Some(old), Some(new)) = (&mut resolved.net.v4, &kept.v4, &fresh.net.v4) {
        v4.ours = old.ours;
        if fresh.template4.is_some() {
            v4.host = new.host;
        } else {
            v4.host = old.host;
            // A kept address makes an interface without any look like one to borrow from.
            (v4.interface, v4.routes) = (0, Vec::new());
        }
    }
    if let (Some(v6), Some(old), Some(new)) = (&mut resolved.net.v6, &kept.v6, &fresh.net.v6) {
        v6.ours = old.ours;
        v6.host = new.host.or(old.host);
        let search = &resolved.net.dns.search;
        v6.withdrawn = Withdrawn {
            dns: no_more(&old.dns, &old.withdrawn.dns, &v6.dns),
            search: no_more(&kept.dns.search, &old.withdrawn.search, search),
        };
    }
    // So does it here.
    resolved.template4.clone_from(&fresh.template4);
    resolved.template6.clone_from(&fresh.template6);
    Ok(resolved)
}

/// Of what the guest was told, lately or before, that is no more so: the latest of it.
fn no_more<T: Clone + PartialEq>(lately: &[T], before: &[T], now: &[T]) -> Vec<T> {
    let old = lately.iter().chain(before.iter());
    let mut gone: Vec<T> = Vec::new();
    for told in old.filter(|told| !now.contains(told)) {
        if gone.len() < MOST_WITHDRAWN && !gone.contains(told) {
            gone.push(told.clone());
        }
    }
    gone
}

/// A guest that was told of no router is told of none for as long as its interface is gone.
fn local_routers(kept: &Net, fresh: &Resolved) -> LocalRouters {
    let routerless4 = kept.v4.as_ref().is_some_and(|v4| v4.router.is_none());
    let routerless6 = kept.v6.as_ref().is_some_and(|v6| v6.router.is_none());
    LocalRouters {
        v4: !routerless4 || fresh.template4.is_some(),
        v6: !routerless6 || fresh.template6.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::{Address, Interface, Route};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A host whose only interface has this name, these addresses and routers.
    fn host(name: &str, index: u32, addrs: &[&str], routers: &[&str]) -> Facts {
        let route = |via: &&str| Route {
            interface: index,
            dst: if ip(via).is_ipv4() {
                ip("0.0.0.0")
            } else {
                ip("::")
            },
            prefix: 0,
            via: Some(ip(via)),
            weight: 1,
            metric: 0,
        };
        let address = |addr: &&str| Address {
            interface: index,
            addr: ip(addr),
            prefix: if ip(addr).is_ipv4() { 24 } else { 64 },
            deprecated: false,
            global: true,
        };
        Facts {
            interfaces: vec![Interface {
                index,
                name: name.to_owned(),
                other_names: Vec::new(),
                mac: None,
                mtu: 1500,
                loopback: false,
                up: true,
            }],
            addresses: addrs.iter().map(address).collect(),
            routes: routers.iter().map(route).collect(),
            ..Facts::default()
        }
    }

    fn eth0() -> Facts {
        host(
            "eth0",
            2,
            &["10.0.0.5", "2001:db8::5"],
            &["10.0.0.1", "fe80::1"],
        )
    }

    fn eth1() -> Facts {
        let mut facts = host(
            "eth1",
            7,
            &["10.9.0.5", "2001:db8:9::5"],
            &["10.9.0.1", "fe80::9"],
        );
        facts.resolver.servers4.push(Ipv4Addr::new(9, 9, 9, 9));
        facts
    }

    #[test]
    fn a_guest_keeps_its_addresses_and_routers_and_hears_of_the_rest() {
        let config = Config::default();
        let old = resolve(&config, &eth0()).unwrap().net;
        let new = renew(&config, &eth1(), Some(&old)).unwrap();
        assert_eq!(new.template4.as_deref(), Some("eth1"));
        let (old4, old6) = (old.v4.unwrap(), old.v6.unwrap());
        let (new4, new6) = (new.net.v4.unwrap(), new.net.v6.unwrap());
        assert_eq!(
            (
                new4.addr,
                new4.prefix,
                new4.router,
                new4.ours,
                new4.map_host_loopback
            ),
            (
                old4.addr,
                old4.prefix,
                old4.router,
                old4.ours,
                old4.map_host_loopback
            )
        );
        assert_eq!(
            (new6.addr, new6.router, new6.ours, new6.map_host_loopback),
            (old6.addr, old6.router, old6.ours, old6.map_host_loopback)
        );
        assert_eq!(new4.dns, [Ipv4Addr::new(9, 9, 9, 9)]);
        assert_eq!(new4.host, Ipv4Addr::new(10, 9, 0, 5));
        assert_eq!(new6.host.map(IpAddr::V6), Some(ip("2001:db8:9::5")));
        assert_eq!(new6.scope, 7);
    }

    #[test]
    fn before_there_is_a_guest_everything_follows_the_host() {
        let config = Config::default();
        let new = renew(&config, &eth1(), None).unwrap();
        assert_eq!(new, resolve(&config, &eth1()).unwrap());
    }

    #[test]
    fn a_guest_that_came_before_the_network_gets_what_it_had_not() {
        let config = Config::default();
        let old = resolve(&config, &Facts::default()).unwrap().net;
        let old4 = old.v4.clone().unwrap();
        let new = renew(&config, &eth1(), Some(&old)).unwrap().net;
        assert_eq!(new.v4.as_ref().map(|v4| v4.addr), Some(old4.addr));
        assert_eq!(new.v4.unwrap().host, Ipv4Addr::new(10, 9, 0, 5));
        assert_eq!(
            new.v6.unwrap().addr.map(IpAddr::V6),
            Some(ip("2001:db8:9::5"))
        );
    }

    #[test]
    fn an_interface_asked_for_may_go_and_return() {
        let config = Config {
            interface: Some("eth0".to_owned()),
            ..Config::default()
        };
        let old = resolve(&config, &eth0()).unwrap();
        let without = renew(&config, &eth1(), Some(&old.net)).unwrap();
        assert_eq!((&without.template4, &without.template6), (&None, &None));
        let (v4, old4) = (without.net.v4.clone().unwrap(), old.net.v4.clone().unwrap());
        assert_eq!((v4.addr, v4.host), (old4.addr, old4.host));
        let again = renew(&config, &eth0(), Some(&without.net)).unwrap();
        assert_eq!(again.net, old.net);
    }

    #[test]
    fn nothing_changes_for_a_guest_while_nothing_changes_on_the_host() {
        let onlink = Route {
            interface: 2,
            dst: ip("10.0.0.0"),
            prefix: 8,
            via: Some(ip("169.254.2.9")),
            weight: 1,
            metric: 0,
        };
        let mut only6 = host("eth0", 2, &["2001:db8::5"], &["fe80::1"]);
        only6.routes.push(onlink);
        let only4 = host("eth0", 2, &["10.0.0.5"], &["10.0.0.1"]);
        let neither = host("eth0", 2, &[], &["10.0.0.1", "fe80::1"]);
        for facts in [only6, only4, neither, eth0()] {
            for interface in [None, Some("eth0".to_owned())] {
                let config = Config {
                    interface,
                    ..Config::default()
                };
                let old = resolve(&config, &facts).unwrap();
                let new = renew(&config, &facts, Some(&old.net)).unwrap();
                assert_eq!(new.net, old.net);
                assert_eq!(new.template4, old.template4);
                assert_eq!(new.template6, old.template6);
            }
        }
    }

    /// WireGuard, PPP: the default route leads to the link itself.
    #[test]
    fn a_guest_without_router_goes_on_without_while_the_interface_is_gone() {
        let mut facts = host("d0", 5, &["10.6.6.6", "2001:db8:6::6"], &["::", "0.0.0.0"]);
        for route in &mut facts.routes {
            route.via = None;
        }
        facts.resolver.servers4.push(Ipv4Addr::LOCALHOST);
        for interface in [None, Some("d0".to_owned())] {
            let config = Config {
                interface,
                ..Config::default()
            };
            let old = resolve(&config, &facts).unwrap();
            let (old4, old6) = (old.net.v4.clone().unwrap(), old.net.v6.clone().unwrap());
            assert_eq!((old4.router, old6.router), (None, None));
            let gone = Facts {
                resolver: facts.resolver.clone(),
                ..Facts::default()
            };
            let without = renew(&config, &gone, Some(&old.net)).unwrap().net;
            let (v4, v6) = (without.v4.clone().unwrap(), without.v6.clone().unwrap());
            assert_eq!((v4.router, v6.router), (None, None));
            assert_eq!((v4.map_host_loopback, v6.map_host_loopback), (None, None));
            assert_eq!((v4.dns, v4.dns_forward), (Vec::new(), None));
            assert!(!without.serve.dhcp);
            let again = renew(&config, &facts, Some(&without)).unwrap();
            assert_eq!(again.net, old.net);
        }
    }

    #[test]
    fn what_moved_here_with_a_guest_stays_the_guests() {
        let config = Config::default();
        let mut told = resolve(&config, &eth0()).unwrap().net;
        told.mac = crate::net::Mac([2, 0, 0, 0, 0, 9]);
        told.mtu = 1500;
        let new = renew(&config, &eth1(), Some(&told)).unwrap().net;
        assert_eq!((new.mac, new.mtu), (told.mac, told.mtu));
    }

    /// Whoever was told of them for ever keeps them until told otherwise.
    #[test]
    fn nameservers_and_domains_that_are_gone_are_withdrawn_until_they_return() {
        let config = Config::default();
        let host = |server: &str, domain: &str| {
            let mut facts = eth0();
            facts.resolver.servers6 = vec![server.parse().unwrap()];
            facts.resolver.search = vec![domain.to_owned()];
            facts
        };
        let (home, office) = (
            host("2001:db8::53", "home"),
            host("2001:db8:9::53", "office"),
        );
        let withdrawn = |net: &Net| net.v6.as_ref().unwrap().withdrawn.clone();
        let old = resolve(&config, &home).unwrap().net;
        assert_eq!(withdrawn(&old), Withdrawn::default());
        let mut net = old;
        for (now, gone) in [(&office, &home), (&office, &home), (&home, &office)] {
            net = renew(&config, now, Some(&net)).unwrap().net;
            let wanted = Withdrawn {
                dns: gone.resolver.servers6.clone(),
                search: gone.resolver.search.clone(),
            };
            assert_eq!(withdrawn(&net), wanted);
        }
    }

    #[test]
    fn an_address_given_stands_for_the_host_wherever_it_is() {
        let given = Ipv4Addr::new(172, 16, 0, 9);
        let config = Config {
            addr4: Some(given),
            ..Config::default()
        };
        let old = resolve(&config, &eth0()).unwrap().net;
        let new = renew(&config, &eth1(), Some(&old)).unwrap().net;
        assert_eq!(new.v4.unwrap().host, given);
    }
}
