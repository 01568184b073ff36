//! Neighbor Discovery (RFC 4861): we are the link's router, and the way to every neighbor but the guest itself.

use std::net::{IpAddr, Ipv6Addr};

use super::note::{Answer, Note};
use crate::{
    config::{Net, Net6, PREFIX6},
    flow::{Guest, Neighbours},
    net::{Class, Mac, Why, class},
    wire::{
        build::{Ends, IPV6_LEN, Ip6, icmp6},
        ndp::{
            ALL_NODES, HOP_LIMIT, Question, RouterAdvertisement, Solicitation, flag, kind,
            solicited_node, write_neighbor_advertisement, write_neighbor_solicitation,
        },
    },
};

/// Answers a neighbor or router solicitation. `message` begins at the ICMPv6 header, its checksum verified.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a field of the packet or one of the three things a reply rests on"
)]
pub fn answer(
    from: Mac,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    message: &[u8],
    net: &Net,
    guest: &Guest,
    neighbours: &Neighbours,
    out: &mut Vec<u8>,
) -> Answer {
    let Some(v6) = net.v6.as_ref().filter(|_| net.serve.ndp) else {
        return Answer::Silent(Why::Disabled);
    };
    if message.first() == Some(&kind::NEIGHBOR_ADVERTISEMENT) {
        return Answer::Silent(Why::Unanswered);
    }
    let Some(asked) = Solicitation::parse(message).filter(|_| hop_limit == HOP_LIMIT) else {
        return Answer::Silent(Why::Malformed);
    };
    let duplicate_detection = src.is_unspecified();
    if !duplicate_detection && !can_be_host(src) {
        return Answer::Silent(Why::Source);
    }
    if duplicate_detection && asked.source_link {
        return Answer::Silent(Why::Malformed);
    }
    match asked.question {
        Question::Router if !net.serve.ra => Answer::Silent(Why::Disabled),
        Question::Router => {
            let to = if src.is_unspecified() {
                None
            } else {
                Some((from, src))
            };
            write_router_advertisement(net, v6, to, out);
            Answer::Reply(Some(Note::Ndp("received RS, sending RA")))
        }
        Question::Neighbor { target } if duplicate_detection => {
            detect_duplicate(dst, target, net, v6, out)
        }
        Question::Neighbor { target } if !can_be_host(target) => Answer::Silent(Why::Destination),
        Question::Neighbor { target }
            if v6.addr == Some(target)
                || neighbours.leave_to(guest, target.into(), v6.ours.into()) =>
        {
            Answer::Silent(Why::Unanswered)
        }
        Question::Neighbor { target } => {
            advertise_neighbor((from, src), target, net, neighbours, out);
            Answer::Reply(Some(Note::Ndp("received NS, sending NA")))
        }
    }
}

/// What the guest tells of its own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It advertises this one (RFC 4861, section 4.4).
    Has(Ipv6Addr),
    /// It asks whether anybody else has this one (RFC 4862, section 5.4.2).
    Probes(Ipv6Addr),
}

/// What a neighbour discovery message from `src` tells of the guest's addresses.
pub fn told(src: IpAddr, message: &[u8]) -> Option<Told> {
    let (&[kind, code, ..], rest) = message.split_first_chunk::<8>()?;
    let target = Ipv6Addr::from(*rest.first_chunk::<16>()?);
    match kind {
        _ if code != 0 || !can_be_host(target) => None,
        kind::NEIGHBOR_ADVERTISEMENT => Some(Told::Has(target)),
        kind::NEIGHBOR_SOLICITATION if src.is_unspecified() => Some(Told::Probes(target)),
        _ => None,
    }
}

/// Writes the periodic router advertisement to all nodes; `false` if none is to be sent.
pub fn advertise(net: &Net, out: &mut Vec<u8>) -> bool {
    let Some(v6) = net.v6.as_ref().filter(|_| net.serve.ndp && net.serve.ra) else {
        return false;
    };
    write_router_advertisement(net, v6, None, out);
    true
}

/// Writes a solicitation for `target`, the guest's address as far as we know; `false` if there is no IPv6.
pub fn solicit(net: &Net, target: Ipv6Addr, out: &mut Vec<u8>) -> bool {
    let Some(v6) = &net.v6 else {
        return false;
    };
    let group = solicited_node(target);
    send(
        net.mac,
        v6.ours,
        (Mac::of_group6(group), group),
        out,
        |out| {
            write_neighbor_solicitation(out, target, net.mac);
        },
    );
    true
}

/// The guest looks for a neighbor: one of the host's, where it is known, else that is us, whoever it is (RFC 4861,
/// section 7.2.4).
fn advertise_neighbor(
    (mac, addr): (Mac, Ipv6Addr),
    target: Ipv6Addr,
    net: &Net,
    neighbours: &Neighbours,
    out: &mut Vec<u8>,
) {
    let (at, router) = match neighbours.get(target.into()) {
        Some(known) => (known.mac, known.router),
        None => (net.mac, true),
    };
    let flags = flag::SOLICITED | flag::OVERRIDE | if router { flag::ROUTER } else { 0 };
    send(at, target, (mac, addr), out, |out| {
        write_neighbor_advertisement(out, flags, target, at);
    });
}

/// Writes the advertisement to all nodes that `addr` is at `mac` now (RFC 4861, section 7.2.6).
pub fn announce(addr: Ipv6Addr, mac: Mac, router: bool, out: &mut Vec<u8>) {
    let flags = flag::OVERRIDE | if router { flag::ROUTER } else { 0 };
    send(mac, addr, all_nodes(), out, |out| {
        write_neighbor_advertisement(out, flags, addr, mac);
    });
}

/// The guest is about to take an address (RFC 4862, section 5.4): it may have any but ours.
fn detect_duplicate(
    dst: Ipv6Addr,
    target: Ipv6Addr,
    net: &Net,
    v6: &Net6,
    out: &mut Vec<u8>,
) -> Answer {
    if dst != solicited_node(target) {
        return Answer::Silent(Why::Malformed);
    }
    if target != v6.ours {
        return Answer::Silent(Why::Unanswered);
    }
    send(net.mac, target, all_nodes(), out, |out| {
        write_neighbor_advertisement(out, flag::ROUTER | flag::OVERRIDE, target, net.mac);
    });
    Answer::Reply(Some(Note::Ndp("received NS, sending NA")))
}

/// Always from our link-local address, or hosts would not heed it (RFC 4861, section 6.1.2).
fn write_router_advertisement(
    net: &Net,
    v6: &Net6,
    to: Option<(Mac, Ipv6Addr)>,
    out: &mut Vec<u8>,
) {
    let routes = v6.router.is_some() || v6.addr.is_some();
    let (dns, gone_dns): (&[_], &[_]) = if net.serve.dhcp_dns {
        (&v6.dns, &v6.withdrawn.dns)
    } else {
        (&[], &[])
    };
    let (search, gone_search): (&[_], &[_]) = if net.serve.dhcp_search {
        (&net.dns.search, &v6.withdrawn.search)
    } else {
        (&[], &[])
    };
    let ra = RouterAdvertisement {
        hop_limit: 255,
        managed: net.serve.dhcpv6 && v6.addr.is_some(),
        lifetime: if routes { u16::MAX } else { 0 },
        mac: net.mac,
        mtu: net.announce_mtu.then_some(net.mtu),
        prefix: v6.addr.map(|addr| (addr, PREFIX6)),
        dns,
        search,
        gone_dns,
        gone_search,
    };
    let limit = usize::from(net.mtu.max(1280)) - IPV6_LEN;
    send(net.mac, v6.ours, to.unwrap_or_else(all_nodes), out, |out| {
        ra.write(out, limit);
    });
}

fn send(
    from: Mac,
    src: Ipv6Addr,
    (mac, dst): (Mac, Ipv6Addr),
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let ends = Ends {
        src: from,
        dst: mac,
    };
    let ip = Ip6 {
        src,
        dst,
        hop_limit: HOP_LIMIT,
        flow_label: 0,
    };
    icmp6(out, ends, ip, body);
}

fn all_nodes() -> (Mac, Ipv6Addr) {
    (Mac::of_group6(ALL_NODES), ALL_NODES)
}

fn can_be_host(addr: Ipv6Addr) -> bool {
    matches!(class(IpAddr::V6(addr)), Class::Global | Class::LinkLocal)
}

#[cfg(test)]
mod tests;
