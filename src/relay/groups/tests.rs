use super::super::{
    fixture::{self, GUEST},
    flow::Packet,
};
use super::*;
use crate::service;
use std::os::unix::net::UnixDatagram;

/// Guests' ports.
const PORTS: std::ops::Range<u16> = 40_000..40_100;

/// A relay whose groups no interface leads to: nothing leaves the host.
fn relay() -> Relay {
    let mut net = service::fixture::net();
    if let Some(v4) = &mut net.v4 {
        v4.interface = u32::MAX >> 1;
    }
    fixture::relay_of(net, 256)
}

/// Sends a datagram to a group from or to each of these ports in one turn. How many have to wait for another.
fn turn(relay: &mut Relay, ends: impl Fn(u16) -> (u16, u16), now: Now) -> usize {
    let mut inbox = Inbox::holding();
    inbox.hold(b"who is there?");
    let piece = Piece {
        payload: inbox.frame(0).unwrap().whole,
        packet: Packet::default(),
    };
    relay.begin_turn(now);
    let send = |port| {
        let (from, to) = ends(port);
        let source = Endpoint::new(GUEST.into(), from);
        let group = Endpoint::new([239, 255, 77, 1].into(), to);
        relay.group_datagram(source, group, piece, &inbox, now)
    };
    let done = PORTS.map(send);
    done.filter(|done| *done == Err(Why::Backlog)).count()
}

#[test]
fn senders_from_ever_new_ports_wait_for_their_turn_as_other_flows_do() {
    let mut relay = relay();
    for now in 1..5 {
        let waiting = turn(&mut relay, |port| (port, 4711), Now(now));
        assert!((50..100).contains(&waiting), "{waiting}");
    }
}

/// Each new port has members of all groups opened and closed.
#[test]
fn ports_for_which_members_change_wait_for_their_turn_too() {
    let mut relay = relay();
    let join = [0x16, 0, 0, 0, 239, 255, 77, 1];
    relay.membership(&join, true, Now(1)).unwrap();
    let source = Endpoint::new(GUEST.into(), 4711);
    let socket = UnixDatagram::unbound().unwrap().into();
    relay.add_group(unconnected(source), socket, false, Now(1));
    for now in 1..5 {
        let waiting = turn(&mut relay, |port| (4711, port), Now(now));
        // Those in use need not wait.
        assert_eq!(waiting, PORTS.len() - now as usize);
    }
    assert_eq!(turn(&mut relay, |_| (4711, PORTS.start), Now(5)), 0);
}

#[test]
fn reports_that_change_members_wait_for_their_turn_too() {
    let mut relay = relay();
    relay.groups.use_port(PORTS.start);
    for now in [Now(1), Now(2)] {
        relay.begin_turn(now);
        let mut report = |kind| relay.membership(&[kind, 0, 0, 0, 239, 255, 77, 1], true, now);
        let done: Vec<_> = (0..50).flat_map(|_| [report(0x16), report(0x17)]).collect();
        assert_eq!(done[0], Ok(()));
        assert!(done[1..].iter().all(|done| *done == Err(Why::Backlog)));
    }
    // One that changes nothing holds up nobody.
    relay.groups.clear();
    relay.begin_turn(Now(3));
    let leave = [0x17, 0, 0, 0, 239, 255, 77, 1];
    assert!((0..5).all(|_| relay.membership(&leave, true, Now(3)).is_ok()));
}

#[test]
fn nothing_goes_to_groups_of_a_family_that_is_off() {
    let mdns = Endpoint::new("ff02::fb".parse().unwrap(), MDNS);
    let source = Endpoint::new("fe80::5054:ff:fe12:3456".parse().unwrap(), MDNS);
    let mut report = vec![131, 0, 0, 0, 0, 0, 0, 0];
    report.extend("ff02::fb".parse::<Ipv6Addr>().unwrap().octets());
    let mut inbox = Inbox::holding();
    inbox.hold(b"who is there?");
    let piece = Piece {
        payload: inbox.frame(0).unwrap().whole,
        packet: Packet::default(),
    };
    let mut net = service::fixture::net();
    (net.v4, net.v6) = (None, None);
    let mut relay = fixture::relay_of(net, 256);
    relay.begin_turn(Now(1));
    let off = Err(Why::Disabled);
    assert_eq!(relay.membership(&report, false, Now(1)), off);
    let join = [0x16, 0, 0, 0, 239, 255, 77, 1];
    assert_eq!(relay.membership(&join, true, Now(1)), off);
    let sent = relay.group_datagram(source, mdns, piece, &inbox, Now(1));
    assert_eq!(sent, off);
    let source = Endpoint::new(GUEST.into(), 4711);
    let group = Endpoint::new([239, 255, 77, 1].into(), 4711);
    let sent = relay.group_datagram(source, group, piece, &inbox, Now(1));
    assert_eq!(sent, off);
    assert!(relay.groups.is_empty() && relay.groups.senders.is_empty());
}

#[test]
fn groups_that_no_interface_leads_to_take_few_sockets() {
    let mut relay = relay();
    for last in 0..32 {
        relay.begin_turn(Now(1));
        let join = [0x16, 0, 0, 0, 239, 255, 77, last];
        relay.membership(&join, true, Now(1)).unwrap();
    }
    for port in PORTS.take(8) {
        relay.groups.use_port(port);
    }
    assert_eq!(relay.open_members(&mut Vec::new(), Now(1)), 32);
}

/// The queries of a link that stands still.
#[test]
fn a_guest_that_could_not_be_asked_keeps_its_groups() {
    let (mut relay, mut nobody) = (relay(), Outbox::new());
    let second = |n| Now::default() + Span::secs(n);
    relay.begin_turn(second(0));
    let join = [0x16, 0, 0, 0, 239, 255, 77, 1];
    relay.membership(&join, true, second(0)).unwrap();
    for n in [125, 250, 375] {
        relay.expire(&mut nobody, second(n), second(n));
        assert!(!relay.groups.is_empty() && relay.groups.ask.is_some());
    }
    assert_eq!(relay.drops().seen().count(), 0);
    // Only one that was asked may be said to be silent.
    let (mut outbox, _guest) = fixture::link();
    relay.expire(&mut outbox, second(400), second(400));
    assert!(!relay.groups.is_empty());
    relay.expire(&mut outbox, second(400) + ASK, second(400) + ASK);
    assert!(relay.groups.is_empty());
}

#[test]
fn a_guest_that_moved_here_is_asked_for_its_groups_unless_they_are_off() {
    for multicast in [true, false] {
        let state = relay().depart(None, Now(1));
        let (mut outbox, guest) = fixture::link();
        let mut net = relay().net().clone();
        net.serve.multicast = multicast;
        let mut target = fixture::relay_of(net, 256);
        target.settle(&state, || None, Now(1)).unwrap();
        target.expire(&mut outbox, Now(1) + SETTLE, Now(1) + SETTLE);
        let frames = guest.frames(outbox);
        let is_query = |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 2;
        assert_eq!(frames.iter().any(is_query), multicast);
    }
}
