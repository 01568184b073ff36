//! DHCPv6 (RFC 8415) through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::net::Ipv6Addr;

use guest::{
    Scene, Wire,
    dhcpv6::{
        ADVERTISE, CLIENT_ID, CONFIRM, DNS, Dhcpv6, IA_NA, IA_PD, INFORMATION_REQUEST, REBIND,
        RENEW, REPLY, REQUEST, SEARCH, SERVER_ID, SOLICIT, STATUS, options,
    },
};
use lab::{QUIET, world::POD6};

const IAID: u32 = 0x0a0b_0c0d;

/// Sends a message and returns the answer to it.
fn ask(wire: &Wire, message: &Dhcpv6) -> Dhcpv6 {
    wire.send(&message.frame());
    let reply = wire.expect("DHCPv6 message", Dhcpv6::of_frame);
    assert_eq!(reply.xid, message.xid);
    assert_eq!(reply.option(CLIENT_ID), message.option(CLIENT_ID));
    assert!(reply.option(SERVER_ID).is_some_and(|id| id.len() > 2));
    reply
}

/// Status codes in the only option of this code, and in the options inside it that start at `inner`.
fn statuses(reply: &Dhcpv6, code: u16, inner: usize) -> Vec<u16> {
    let value = reply.option(code).expect("the option");
    let inside = options(&value[inner..]);
    let statuses = inside.iter().filter(|(code, _)| *code == STATUS);
    statuses
        .map(|(_, v)| u16::from_be_bytes([v[0], v[1]]))
        .collect()
}

#[test]
fn solicit_and_request_give_the_pods_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    let advertise = ask(&scene.wire, &Dhcpv6::new(SOLICIT).with_ia_na(IAID, None));
    assert_eq!(advertise.kind, ADVERTISE);
    assert_eq!(advertise.addresses(IAID), [POD6]);
    let server = advertise.option(SERVER_ID).unwrap();
    for kind in [REQUEST, RENEW, REBIND] {
        let mut message = Dhcpv6::new(kind).with_ia_na(IAID, Some(POD6));
        if kind != REBIND {
            message = message.with(SERVER_ID, server);
        }
        let reply = ask(&scene.wire, &message);
        assert_eq!(reply.kind, REPLY);
        assert_eq!(reply.addresses(IAID), [POD6]);
        assert_eq!(reply.option(SERVER_ID), Some(server));
        assert!(
            reply
                .option(SEARCH)
                .unwrap()
                .starts_with(b"\x03lab\x07example\0\x03pod")
        );
    }
}

#[test]
fn resolvers_are_the_hosts() {
    let Some(world) = lab::World::pod() else {
        return;
    };
    let translator = lab::Setup::new(&[])
        .resolv_conf("nameserver 2001:db8::1\nnameserver 2001:db8::2\n")
        .start(&world.pod);
    let wire = Wire::new(translator.connect());
    let reply = ask(&wire, &Dhcpv6::new(SOLICIT).with_ia_na(IAID, None));
    let servers = ["2001:db8::1", "2001:db8::2"].map(|s| s.parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(reply.option(DNS), Some(servers.as_flattened()));
}

/// X06: what was said to an earlier client.
#[test]
fn an_information_request_leaks_no_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    ask(&scene.wire, &Dhcpv6::new(SOLICIT).with_ia_na(IAID, None));
    let reply = ask(&scene.wire, &Dhcpv6::new(INFORMATION_REQUEST));
    assert_eq!(reply.kind, REPLY);
    assert_eq!(reply.option(IA_NA), None);
    assert!(reply.option(SEARCH).is_some());
}

/// X06, RFC 8415 18.3.9: there are no prefixes to delegate.
#[test]
fn a_prefix_is_not_available() {
    let Some(scene) = Scene::new(&[]) else { return };
    ask(&scene.wire, &Dhcpv6::new(SOLICIT).with_ia_na(IAID, None));
    let ia_pd = [&IAID.to_be_bytes()[..], &[0; 8]].concat();
    let reply = ask(&scene.wire, &Dhcpv6::new(SOLICIT).with(IA_PD, &ia_pd));
    assert_eq!(reply.option(IA_NA), None);
    assert_eq!(statuses(&reply, IA_PD, 12), [6]);
}

/// D16.
#[test]
fn a_foreign_address_is_not_on_the_link() {
    let Some(scene) = Scene::new(&[]) else { return };
    let foreign = "2001:db8::bad".parse().unwrap();
    let reply = ask(
        &scene.wire,
        &Dhcpv6::new(CONFIRM).with_ia_na(IAID, Some(foreign)),
    );
    assert_eq!(reply.kind, REPLY);
    let status = match reply.option(STATUS) {
        Some(value) => u16::from_be_bytes([value[0], value[1]]),
        None => statuses(&reply, IA_NA, 12)[0],
    };
    assert_eq!(status, 4, "NotOnLink");
    let reply = ask(
        &scene.wire,
        &Dhcpv6::new(CONFIRM).with_ia_na(IAID, Some(POD6)),
    );
    assert_eq!(reply.kind, REPLY);
}

#[test]
fn messages_for_other_servers_get_no_answer() {
    let Some(scene) = Scene::new(&[]) else { return };
    let other = b"\0\x03\0\x01\x02\0\0\0\0\x01";
    let request = Dhcpv6::new(REQUEST).with_ia_na(IAID, Some(POD6));
    scene
        .wire
        .send(&request.clone().with(SERVER_ID, other).frame());
    scene.wire.send(&request.frame());
    let solicit = Dhcpv6::new(SOLICIT).with_ia_na(IAID, None);
    scene.wire.send(&solicit.with(SERVER_ID, other).frame());
    scene.wire.never(QUIET, "DHCPv6 message", Dhcpv6::of_frame);
}

#[test]
fn no_dhcpv6_is_silence() {
    let Some(scene) = Scene::new(&["--no-dhcpv6"]) else {
        return;
    };
    scene
        .wire
        .send(&Dhcpv6::new(SOLICIT).with_ia_na(IAID, None).frame());
    scene.wire.never(QUIET, "DHCPv6 message", Dhcpv6::of_frame);
}
