//! The host's network as it is now: rtnetlink's tables turned into plain values.
//!
//! Attributes are read one by one and an unreadable one is skipped, so a newer kernel's additions cannot hide an interface.

use std::{net::IpAddr, path::Path};

use netlink_packet_core::{NlaBuffer, NlasIterator, Parseable, ParseableParametrized};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags, LinkHeader, LinkMessage, Prop},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteLwEnCapType, RouteMessage,
        RouteNextHop, RouteNextHopFlags, RouteType, RouteVia,
    },
};

use super::{
    netlink::{Dump, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, dump},
    resolv,
};
use crate::{
    config::{Address, Facts, Interface, Route},
    net::Mac,
    sys::reason,
};

/// Sizes of the fixed headers before the attributes: ifinfomsg, ifaddrmsg, rtmsg (rtnetlink(7)).
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

/// Reads interfaces, addresses, routes and the resolver configuration.
///
/// # Errors
/// One line for a person: the kernel would not tell.
pub fn read() -> Result<Facts, String> {
    let mut facts = read_network()?;
    facts.resolver = resolv::read(Path::new(resolv::PATH));
    Ok(facts)
}

/// The same without the resolver configuration, which is a file.
///
/// # Errors
/// One line for a person: the kernel would not tell.
pub fn read_network() -> Result<Facts, String> {
    let mut facts = Facts::default();
    let requests = [
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        RouteNetlinkMessage::GetRoute(RouteMessage::default()),
    ];
    for request in requests {
        let dump = dump(request)
            .map_err(|error| format!("Couldn't read network settings: {}", reason(&error)))?;
        add_all(&mut facts, &dump);
    }
    Ok(facts)
}

/// What the messages of a dump say, from whatever source: octets that make no sense say nothing.
pub fn of_dump(octets: &[u8]) -> Facts {
    let mut facts = Facts::default();
    add_all(&mut facts, &Dump::new(octets.to_vec()));
    facts
}

fn add_all(facts: &mut Facts, dump: &Dump) {
    for (kind, body) in dump.messages() {
        add(facts, kind, body);
    }
}

/// Adds what one message of a dump says.
fn add(facts: &mut Facts, kind: u16, body: &[u8]) {
    match kind {
        RTM_NEWLINK => facts.interfaces.extend(interface(body)),
        RTM_NEWADDR => facts.addresses.extend(address(body)),
        RTM_NEWROUTE => add_route(&mut facts.routes, body),
        _ => {}
    }
}

/// The attributes after the first `header` octets, up to the first whose length is a lie.
fn attributes(body: &[u8], header: usize) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(body.get(header..).unwrap_or_default()).map_while(Result::ok)
}

fn interface(body: &[u8]) -> Option<Interface> {
    let header = LinkHeader::parse(body).ok()?;
    let mut interface = Interface {
        index: header.index,
        name: String::new(),
        other_names: Vec::new(),
        mac: None,
        mtu: 0,
        loopback: header.flags.contains(LinkFlags::Loopback),
        up: header.flags.contains(LinkFlags::Up),
    };
    for attribute in attributes(body, LINK_HEADER) {
        match LinkAttribute::parse_with_param(&attribute, header.interface_family) {
            Ok(LinkAttribute::IfName(name)) => interface.name = name,
            Ok(LinkAttribute::PropList(list)) => {
                interface.other_names = list.into_iter().filter_map(other_name).collect();
            }
            Ok(LinkAttribute::Mtu(mtu)) => interface.mtu = mtu,
            Ok(LinkAttribute::Address(bytes)) => interface.mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    (!interface.name.is_empty()).then_some(interface)
}

fn other_name(property: Prop) -> Option<String> {
    match property {
        Prop::AltIfName(name) => Some(name),
        _ => None,
    }
}

/// `None` for an address that failed duplicate detection: it is somebody else's.
fn address(body: &[u8]) -> Option<Address> {
    let header = AddressHeader::parse(body).ok()?;
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    let (mut local, mut peer) = (None, None);
    for attribute in attributes(body, ADDRESS_HEADER) {
        match AddressAttribute::parse(&attribute) {
            Ok(AddressAttribute::Local(addr)) => local = Some(addr),
            Ok(AddressAttribute::Address(addr)) => peer = Some(addr),
            Ok(AddressAttribute::Flags(all)) => flags = all,
            _ => {}
        }
    }
    let addr = local.or(peer)?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    (header.prefix_len <= bits && !flags.contains(AddressFlags::Dadfailed)).then(|| Address {
        interface: header.index,
        addr,
        prefix: header.prefix_len,
        deprecated: flags.contains(AddressFlags::Deprecated),
        // rtnetlink(7): the number falls as the scope widens, and site lies between link and universe.
        global: u8::from(header.scope) < u8::from(AddressScope::Link),
    })
}

/// What a route or one of its next hops says of the way.
#[derive(Default)]
struct Hop {
    interface: Option<u32>,
    via: Option<IpAddr>,
}

impl Hop {
    fn note(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(index) => self.interface = Some(*index),
            RouteAttribute::Gateway(addr) => self.via = plain(addr),
            RouteAttribute::Via(RouteVia::Inet6(addr)) => self.via = Some(IpAddr::V6(*addr)),
            _ => {}
        }
    }
}

/// Adds the next hops of a unicast route of the main table; others, cached routes and dead next hops are left out.
fn add_route(routes: &mut Vec<Route>, body: &[u8]) {
    let Ok(header) = RouteHeader::parse(body) else {
        return;
    };
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return,
    };
    let bits = if unspecified.is_ipv4() { 32 } else { 128 };
    if header.kind != RouteType::Unicast
        || header
            .flags
            .intersects(RouteFlags::Cloned | RouteFlags::Dead)
        || header.destination_prefix_length > bits
    {
        return;
    }
    let mut table = u32::from(header.table);
    let (mut dst, mut metric) = (unspecified, 0);
    let (mut single, mut several) = (Hop::default(), Vec::new());
    let context = (header.address_family, header.kind, RouteLwEnCapType::None);
    for attribute in attributes(body, ROUTE_HEADER) {
        match RouteAttribute::parse_with_param(&attribute, context) {
            Ok(RouteAttribute::Table(id)) => table = id,
            Ok(RouteAttribute::Priority(priority)) => metric = priority,
            Ok(RouteAttribute::Destination(addr)) => dst = plain(&addr).unwrap_or(dst),
            Ok(RouteAttribute::MultiPath(hops)) => several = hops,
            Ok(other) => single.note(&other),
            Err(_) => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return;
    }
    let mut push = |interface, via, weight| {
        routes.push(Route {
            interface,
            dst,
            prefix: header.destination_prefix_length,
            via,
            weight,
            metric,
        });
    };
    if let (true, Some(interface)) = (several.is_empty(), single.interface) {
        push(interface, single.via, 1);
    }
    for next in several {
        if !next.flags.contains(RouteNextHopFlags::Dead) {
            // rtnetlink(7): rtnh_hops is the weight less one.
            push(next.interface_index, via(&next), u16::from(next.hops) + 1);
        }
    }
}

fn via(next: &RouteNextHop) -> Option<IpAddr> {
    let mut hop = Hop::default();
    next.attributes
        .iter()
        .for_each(|attribute| hop.note(attribute));
    hop.via
}

fn plain(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use netlink_packet_route::link::LinkLayerType;
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn link_message() -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = 2;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::Running;
        message.attributes = vec![
            LinkAttribute::IfName("eth0".to_owned()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::PropList(vec![Prop::AltIfName("enp0s3".to_owned())]),
        ];
        bytes(&message)
    }

    fn address_message(attributes: Vec<AddressAttribute>, scope: AddressScope) -> Vec<u8> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 24;
        message.header.scope = scope;
        message.header.index = 2;
        message.attributes = attributes;
        bytes(&message)
    }

    fn route_message(attributes: Vec<RouteAttribute>) -> Vec<u8> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        bytes(&message)
    }

    fn hop(interface: u32, hops: u8, via: &str) -> RouteNextHop {
        let mut next = RouteNextHop::default();
        next.interface_index = interface;
        next.hops = hops;
        next.attributes = vec![RouteAttribute::Gateway(ip(via).into())];
        next
    }

    fn multipath() -> Vec<u8> {
        let mut dead = hop(9, 200, "10.0.0.9");
        dead.flags = RouteNextHopFlags::Dead;
        route_message(vec![
            RouteAttribute::Priority(50),
            RouteAttribute::MultiPath(vec![hop(2, 0, "10.0.0.1"), hop(3, 8, "10.1.0.1"), dead]),
        ])
    }

    #[test]
    fn an_interface_has_names_mac_and_mtu() {
        let mut facts = Facts::default();
        add(&mut facts, RTM_NEWLINK, &link_message());
        let [interface] = &facts.interfaces[..] else {
            panic!("{facts:?}");
        };
        assert_eq!(interface.name, "eth0");
        assert!(interface.is_called("eth0") && interface.is_called("enp0s3"));
        assert_eq!((interface.index, interface.mtu), (2, 1500));
        assert_eq!(interface.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        assert!(interface.up && !interface.loopback);
    }

    /// Regression C34.
    #[test]
    fn the_local_address_counts_not_the_peers() {
        let message = address_message(
            vec![
                AddressAttribute::Address(ip("10.0.0.1")),
                AddressAttribute::Local(ip("10.0.0.2")),
            ],
            AddressScope::Universe,
        );
        let found = address(&message).unwrap();
        assert_eq!(found.addr, ip("10.0.0.2"));
        assert!(found.global && !found.deprecated);
    }

    /// Regressions C17 and C35.
    #[test]
    fn scope_and_flags_are_kept() {
        let local = |scope, flags| {
            address(&address_message(
                vec![
                    AddressAttribute::Local(ip("10.0.0.2")),
                    AddressAttribute::Flags(flags),
                ],
                scope,
            ))
        };
        let none = AddressFlags::empty();
        assert!(local(AddressScope::Site, none).unwrap().global);
        assert!(!local(AddressScope::Link, none).unwrap().global);
        assert!(!local(AddressScope::Host, none).unwrap().global);
        let old = local(AddressScope::Universe, AddressFlags::Deprecated).unwrap();
        assert!(old.deprecated);
        assert_eq!(local(AddressScope::Universe, AddressFlags::Dadfailed), None);
    }

    #[test]
    fn a_multipath_route_is_its_living_next_hops() {
        let mut routes = Vec::new();
        add_route(&mut routes, &multipath());
        let seen: Vec<_> = routes
            .iter()
            .map(|r| (r.interface, r.via.unwrap().to_string(), r.weight, r.metric))
            .collect();
        assert_eq!(
            seen,
            [
                (2, "10.0.0.1".to_owned(), 1, 50),
                (3, "10.1.0.1".to_owned(), 9, 50)
            ]
        );
    }

    #[test]
    fn an_ipv4_route_may_go_via_an_ipv6_router() {
        let mut routes = Vec::new();
        let via = RouteVia::Inet6("fe80::1".parse().unwrap());
        add_route(
            &mut routes,
            &route_message(vec![RouteAttribute::Oif(4), RouteAttribute::Via(via)]),
        );
        assert_eq!(routes[0].via, Some(ip("fe80::1")));
        assert_eq!((routes[0].dst, routes[0].prefix), (ip("0.0.0.0"), 0));
    }

    #[test]
    fn other_tables_are_left_out() {
        let mut routes = Vec::new();
        add_route(
            &mut routes,
            &route_message(vec![RouteAttribute::Oif(4), RouteAttribute::Table(100)]),
        );
        assert!(routes.is_empty());
    }

    #[test]
    fn this_hosts_tables_can_be_read() {
        let facts = read().unwrap();
        assert!(
            facts
                .interfaces
                .iter()
                .any(|i| i.loopback && i.name == "lo")
        );
    }

    proptest! {
        #[test]
        fn truncated_and_twisted_messages_cannot_panic(
            which in 0..3_usize,
            keep in 0..100_usize,
            twist in 0..100_usize,
            octet: u8,
        ) {
            let kinds = [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE];
            let address = AddressAttribute::Local(ip("10.0.0.2"));
            let messages =
                [link_message(), address_message(vec![address], AddressScope::Site), multipath()];
            let mut message = messages[which].clone();
            message.truncate(keep);
            if let Some(at) = message.get_mut(twist) {
                *at = octet;
            }
            add(&mut Facts::default(), kinds[which], &message);
        }
    }
}
