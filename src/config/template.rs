//! Which interface of the host lends its addresses and routes to the guest, and what they are.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::facts::{Address, Facts, Interface, Route};
use crate::net::{Class, class, is_link_local6};

/// An address family, as the messages to the user name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    const fn has(self, addr: IpAddr) -> bool {
        matches!(
            (self, addr),
            (Self::V4, IpAddr::V4(_)) | (Self::V6, IpAddr::V6(_))
        )
    }
}

/// The interface chosen for one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Template<'a> {
    facts: &'a Facts,
    family: Family,
    pub(super) interface: &'a Interface,
    /// The best default route through it, if any.
    default: Option<&'a Route>,
}

/// The interface called `name`.
///
/// # Errors
/// One line for a person: there is none.
pub(super) fn named<'a>(facts: &'a Facts, name: &str) -> Result<&'a Interface, String> {
    interface_called(facts, name)
        .ok_or_else(|| format!("Invalid interface name {name}: No such device"))
}

/// Whether there is an interface called `name`.
pub(super) fn is_there(facts: &Facts, name: &str) -> bool {
    interface_called(facts, name).is_some()
}

fn interface_called<'a>(facts: &'a Facts, name: &str) -> Option<&'a Interface> {
    facts
        .interfaces
        .iter()
        .find(|interface| interface.is_called(name))
}

impl<'a> Template<'a> {
    /// The interface `forced` upon us, else the one outbound sockets are bound to, else the one of the best default route,
    /// else the first that leads further than its own link. The loopback interface only if forced. What is worth saying
    /// of the choice is added to `notes`.
    pub(super) fn choose(
        facts: &'a Facts,
        family: Family,
        forced: Option<&'a Interface>,
        outbound: Option<&str>,
        notes: &mut Vec<String>,
    ) -> Option<Self> {
        let bound = outbound.and_then(|name| interface_called(facts, name));
        if let Some(interface) = forced.or(bound) {
            let default = best(defaults(facts, family).filter(|r| r.interface == interface.index));
            return Some(Self {
                facts,
                family,
                interface,
                default,
            });
        }
        let chosen = Self::by_routes(facts, family);
        let metrics = defaults(facts, family).map(|route| route.metric);
        let name = family.name();
        if chosen.is_none() {
            notes.push(format!("No interfaces with usable {name} routes"));
        } else if metrics.clone().min() != metrics.max() {
            notes.push(format!("Multiple default {name} routes, picked first"));
        }
        chosen
    }

    fn by_routes(facts: &'a Facts, family: Family) -> Option<Self> {
        let default = best(defaults(facts, family));
        let route = default.or_else(|| usable(facts, family).find(|r| leads_further(r)))?;
        Some(Self {
            facts,
            family,
            interface: facts
                .interfaces
                .iter()
                .find(|i| i.index == route.interface)?,
            default,
        })
    }

    /// The address with the longest prefix, among those that are not deprecated and reach beyond the link. With IPv4, scope
    /// is no more than what somebody said: if no address is said to, another will do, but none of loopback or zeroconf.
    fn address(&self) -> Option<&'a Address> {
        let lasting = || self.addresses().filter(|a| !a.deprecated);
        let of_link = |a: &&Address| a.addr.is_ipv4() && class(a.addr) == Class::Global;
        longest(lasting().filter(|a| a.global)).or_else(|| longest(lasting().filter(of_link)))
    }

    fn addresses(&self) -> impl Iterator<Item = &'a Address> + use<'a> {
        let (index, family) = (self.interface.index, self.family);
        let all = self.facts.addresses.iter();
        all.filter(move |a| a.interface == index && family.has(a.addr))
    }

    pub(super) fn address4(&self) -> Option<(Ipv4Addr, u8)> {
        match self.address()? {
            &Address {
                addr: IpAddr::V4(addr),
                prefix,
                ..
            } => Some((addr, prefix)),
            _ => None,
        }
    }

    pub(super) fn address6(&self) -> Option<Ipv6Addr> {
        match self.address()?.addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        }
    }

    pub(super) fn link_local6(&self) -> Option<Ipv6Addr> {
        self.addresses().find_map(|address| match address.addr {
            IpAddr::V6(addr) if is_link_local6(addr) => Some(addr),
            _ => None,
        })
    }

    /// The router of the default route; none if the route is on-link or leads through the other family.
    pub(super) fn router(&self) -> Option<IpAddr> {
        self.default?.via.filter(|&via| self.family.has(via))
    }

    /// IPv4 routes besides the default one: destination, prefix, gateway (`None`: on link), each destination once.
    pub(super) fn routes4(&self) -> Vec<(Ipv4Addr, u8, Option<Ipv4Addr>)> {
        if self.interface.loopback {
            return Vec::new();
        }
        // Tables have a million routes in places: none is looked for among the others.
        let mut known = HashSet::new();
        let ours = |route: &&Route| route.interface == self.interface.index && route.prefix > 0;
        let routes = self.facts.routes.iter().filter(ours);
        routes
            .filter_map(|route| match (route.dst, route.via) {
                (IpAddr::V4(dst), Some(IpAddr::V4(via))) => Some((dst, route.prefix, Some(via))),
                (IpAddr::V4(dst), None) => Some((dst, route.prefix, None)),
                _ => None,
            })
            .filter(|&(dst, prefix, _)| known.insert((dst, prefix)))
            .collect()
    }
}

/// The address with the longest prefix.
fn longest<'a>(addresses: impl Iterator<Item = &'a Address>) -> Option<&'a Address> {
    // The first of several: max_by_key would return the last.
    addresses.reduce(|best, next| {
        if next.prefix > best.prefix {
            next
        } else {
            best
        }
    })
}

/// The family's routes that do not lead to the loopback interface.
fn usable(facts: &Facts, family: Family) -> impl Iterator<Item = &Route> + Clone {
    let is_loopback = |interface: &&Interface| interface.loopback;
    let loopback = facts.interfaces.iter().filter(is_loopback);
    let loopback: Vec<u32> = loopback.map(|interface| interface.index).collect();
    let routes = facts.routes.iter();
    routes.filter(move |route| family.has(route.dst) && !loopback.contains(&route.interface))
}

fn defaults(facts: &Facts, family: Family) -> impl Iterator<Item = &Route> + Clone {
    usable(facts, family).filter(|route| route.prefix == 0)
}

/// The lowest metric, among those the heaviest next hop, among those the first.
fn best<'a>(routes: impl Iterator<Item = &'a Route>) -> Option<&'a Route> {
    routes.min_by_key(|route| (route.metric, u16::MAX - route.weight))
}

/// Whether a route is more than the link's own scenery.
fn leads_further(route: &Route) -> bool {
    !matches!(class(route.dst), Class::LinkLocal | Class::Multicast)
}
