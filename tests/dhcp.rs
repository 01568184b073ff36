//! DHCPv4 through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::net::Ipv4Addr;

use guest::{
    Guest, Scene, Udp, Wire,
    dhcp::{ACK, DECLINE, DISCOVER, Dhcp, INFORM, NAK, OFFER, RELEASE, REQUEST},
};
use lab::{
    QUIET, Setup, Translator, World,
    servers::udp_socket,
    uninterrupted,
    world::{GATEWAY4, INTERNET4, POD4},
};

const MASK_24: [u8; 4] = [255, 255, 255, 0];
const INFINITE: [u8; 4] = [0xff; 4];

/// Sends a message and returns the answer to it.
fn ask(wire: &Wire, message: &Dhcp) -> (Udp, Dhcp) {
    wire.send(&message.frame());
    let (udp, reply) = wire.expect("DHCP message", Dhcp::of_frame);
    assert_eq!((reply.op, reply.xid), (2, message.xid));
    assert!(
        (300..=576).contains(&udp.payload.len()),
        "{} octets",
        udp.payload.len()
    );
    (udp, reply)
}

fn request(addr: Ipv4Addr) -> Dhcp {
    Dhcp::new(REQUEST).with(50, &addr.octets())
}

#[test]
fn a_whole_stack_leases_the_pods_address() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let mut guest = Guest::new(translator.connect(), 1500, false);
    let lease = guest.lease();
    assert_eq!((lease.address, lease.prefix), (POD4, 24));
    assert_eq!(lease.router, Some(GATEWAY4));
}

#[test]
fn offer_and_acknowledgement_tell_all_of_the_link() {
    let Some(scene) = Scene::new(&[]) else { return };
    let discover = Dhcp::new(DISCOVER).with(55, &[1, 3, 6, 15, 26, 51, 119, 121]);
    let request = request(POD4).with(55, &[1, 3, 6, 15, 26, 51, 119, 121]);
    for (message, kind) in [(discover, OFFER), (request, ACK)] {
        let (udp, reply) = ask(&scene.wire, &message);
        assert_eq!(reply.kind(), Some(kind));
        assert_eq!(
            reply.options[0].0, 53,
            "some clients want the type first (D06)"
        );
        assert_eq!(reply.yiaddr, POD4);
        assert_eq!(udp.dst, (POD4, 68).into());
        let std::net::IpAddr::V4(server) = udp.src.ip() else {
            panic!("{udp:?}")
        };
        assert_eq!(reply.option(54), Some(&server.octets()[..]));
        assert_eq!(reply.option(51), Some(&INFINITE[..]));
        assert_eq!(reply.option(1), Some(&MASK_24[..]));
        assert_eq!(reply.option(3), Some(&GATEWAY4.octets()[..]));
        assert_eq!(reply.option(26), Some(&65_520_u16.to_be_bytes()[..]));
        assert_eq!(reply.option(121), None, "the gateway is on the link");
        let search = reply.option(119).expect("search list");
        assert!(
            search.starts_with(b"\x03lab\x07example\0\x03pod"),
            "{search:?}"
        );
    }
}

#[test]
fn resolvers_are_the_hosts() {
    let Some(world) = World::pod() else { return };
    let translator = Setup::new(&[])
        .resolv_conf("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
        .start(&world.pod);
    let wire = Wire::new(translator.connect());
    let (_, offer) = ask(&wire, &Dhcp::new(DISCOVER));
    assert_eq!(offer.option(6), Some(&[192, 0, 2, 1, 192, 0, 2, 2][..]));
}

#[test]
fn a_client_that_cannot_hear_unicast_gets_a_broadcast() {
    let Some(scene) = Scene::new(&[]) else { return };
    let discover = Dhcp {
        flags: 0x8000,
        ..Dhcp::new(DISCOVER)
    };
    let (udp, offer) = ask(&scene.wire, &discover);
    assert_eq!(udp.dst, (Ipv4Addr::BROADCAST, 68).into());
    assert_eq!(offer.flags, 0x8000);
}

/// A pod's /32 address behind 169.254.1.1, as clusters give it: without option 121 the router is out of reach.
#[test]
fn a_gateway_outside_the_prefix_comes_with_routes() {
    let Some(world) = World::routed_pod() else {
        return;
    };
    let translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    let (_, offer) = ask(&wire, &Dhcp::new(DISCOVER).with(55, &[1, 3, 121]));
    assert_eq!(offer.yiaddr, POD4);
    assert_eq!(offer.option(1), Some(&[255; 4][..]));
    assert_eq!(offer.option(3), Some(&[169, 254, 1, 1][..]));
    // RFC 3442: 169.254.1.1/32 on the link, then 0/0 through it.
    let routes = [&[32, 169, 254, 1, 1, 0, 0, 0, 0][..], &[0, 169, 254, 1, 1]].concat();
    assert_eq!(offer.option(121), Some(&routes[..]));
}

/// X07.
#[test]
fn a_foreign_address_is_refused() {
    let Some(scene) = Scene::new(&[]) else { return };
    let (udp, reply) = ask(&scene.wire, &request(Ipv4Addr::new(1, 2, 3, 4)));
    assert_eq!(reply.kind(), Some(NAK));
    assert_eq!(reply.yiaddr, Ipv4Addr::UNSPECIFIED);
    assert_eq!(udp.dst, (Ipv4Addr::BROADCAST, 68).into());
    // RFC 2131, table 3: no lease, but the server's identifier.
    assert!(reply.option(51).is_none() && reply.option(54).is_some());
    let (_, reply) = ask(&scene.wire, &request(POD4));
    assert_eq!((reply.kind(), reply.yiaddr), (Some(ACK), POD4));
}

#[test]
fn a_client_that_renews_keeps_its_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    let renew = Dhcp {
        ciaddr: POD4,
        ..Dhcp::new(REQUEST)
    };
    let (_, reply) = ask(&scene.wire, &renew);
    assert_eq!((reply.kind(), reply.yiaddr), (Some(ACK), POD4));
}

#[test]
fn rapid_commit_saves_a_round_trip() {
    let Some(scene) = Scene::new(&[]) else { return };
    let (_, reply) = ask(&scene.wire, &Dhcp::new(DISCOVER).with(80, &[]));
    assert_eq!((reply.kind(), reply.yiaddr), (Some(ACK), POD4));
    assert_eq!(reply.option(80), Some(&[][..]));
}

/// RFC 2131, section 4.3.5: parameters, but neither an address nor a lease.
#[test]
fn inform_gets_parameters_only() {
    let Some(scene) = Scene::new(&[]) else { return };
    let inform = Dhcp {
        ciaddr: POD4,
        ..Dhcp::new(INFORM)
    };
    let (udp, reply) = ask(&scene.wire, &inform);
    assert_eq!(reply.kind(), Some(ACK));
    assert_eq!(reply.yiaddr, Ipv4Addr::UNSPECIFIED);
    assert_eq!(reply.option(51), None);
    assert_eq!(reply.option(3), Some(&GATEWAY4.octets()[..]));
    assert_eq!(udp.dst, (POD4, 68).into());
}

/// A relay agent of the guest's, and a server in the internet.
#[test]
fn a_request_to_another_hosts_server_reaches_it() {
    let Some(scene) = Scene::new(&[]) else { return };
    let server = udp_socket(&scene.world.outside, (INTERNET4, 67));
    let message = Udp::of_frame(&Dhcp::new(DISCOVER).frame()).unwrap().payload;
    let relayed = Udp::new((POD4, 67).into(), (INTERNET4, 67).into(), &message);
    scene.wire.send(&relayed.frame());
    let mut octets = [0; 2048];
    let (len, _) = uninterrupted(|| server.recv_from(&mut octets)).unwrap();
    assert_eq!(octets[..len], message);
    scene.wire.never(QUIET, "DHCP message", Dhcp::of_frame);
}

#[test]
fn bootp_gets_a_reply() {
    let Some(scene) = Scene::new(&[]) else { return };
    let (_, reply) = ask(&scene.wire, &Dhcp::bootp());
    assert_eq!(reply.yiaddr, POD4);
    assert_eq!(reply.option(1), Some(&MASK_24[..]));
}

#[test]
fn goodbyes_and_replies_get_no_answer() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let reply = Dhcp {
        op: 2,
        ..Dhcp::new(DISCOVER)
    };
    for message in [Dhcp::new(DECLINE), Dhcp::new(RELEASE), reply] {
        scene.wire.send(&message.frame());
    }
    scene.wire.never(QUIET, "DHCP message", Dhcp::of_frame);
    scene.translator.assert_alive();
}

#[test]
fn options_change_what_is_told() {
    let Some(scene) = Scene::new(&[
        "-a",
        "192.0.2.10",
        "-n",
        "255.255.255.128",
        "-g",
        "192.0.2.1",
        "-D",
        "192.0.2.53",
        "-S",
        "one.example",
        "-m",
        "1400",
        "-H",
        "box",
        "--fqdn",
        "box.one.example",
    ]) else {
        return;
    };
    let (_, offer) = ask(&scene.wire, &Dhcp::new(DISCOVER));
    assert_eq!(offer.yiaddr, Ipv4Addr::new(192, 0, 2, 10));
    assert_eq!(offer.option(1), Some(&[255, 255, 255, 128][..]));
    assert_eq!(offer.option(3), Some(&[192, 0, 2, 1][..]));
    assert_eq!(offer.option(6), Some(&[192, 0, 2, 53][..]));
    assert_eq!(offer.option(26), Some(&1400_u16.to_be_bytes()[..]));
    assert_eq!(offer.option(12), Some(&b"box"[..]));
    assert_eq!(offer.option(119), Some(&b"\x03one\x07example\0"[..]));
    let fqdn = offer.option(81).expect("FQDN");
    assert!(fqdn.ends_with(b"\x03box\x03one\x07example\0"), "{fqdn:?}");
}

#[test]
fn parts_can_be_left_out() {
    let Some(scene) = Scene::new(&["-m", "0", "--no-dhcp-dns", "--no-dhcp-search"]) else {
        return;
    };
    let (_, offer) = ask(&scene.wire, &Dhcp::new(DISCOVER).with(55, &[6, 26, 119]));
    for code in [6, 26, 119] {
        assert_eq!(offer.option(code), None);
    }
}

#[test]
fn no_dhcp_is_silence() {
    let Some(scene) = Scene::new(&["--no-dhcp"]) else {
        return;
    };
    scene.wire.send(&Dhcp::new(DISCOVER).frame());
    scene.wire.never(QUIET, "DHCP message", Dhcp::of_frame);
}
