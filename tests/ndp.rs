//! Neighbour and router discovery (RFC 4861, RFC 8106) through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::net::Ipv6Addr;

use guest::{
    Guest, Icmp, Scene,
    dhcpv6::GUEST_LL,
    frame::{GUEST_MAC, OTHER_MAC, OUR_MAC},
};
use lab::{
    QUIET, Translator, World,
    world::{GATEWAY6, POD6},
};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The multicast group of those whose address ends as `target` does.
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b] = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (a & 0xff), b)
}

fn source_link_layer() -> Vec<u8> {
    [&[1, 1], &GUEST_MAC[..]].concat()
}

fn neighbour_solicitation(src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    if !src.is_unspecified() {
        body.extend(source_link_layer());
    }
    let group = solicited_node(target);
    Icmp::new(src.into(), group.into(), NEIGHBOUR_SOLICITATION, 0, &body).frame()
}

fn router_solicitation(src: Ipv6Addr) -> Vec<u8> {
    let body = if src.is_unspecified() {
        Vec::new()
    } else {
        source_link_layer()
    };
    Icmp::new(
        src.into(),
        ALL_ROUTERS.into(),
        ROUTER_SOLICITATION,
        0,
        &body,
    )
    .frame()
}

fn message(kind: u8) -> impl FnMut(&[u8]) -> Option<Icmp> {
    move |frame| Icmp::of_frame(frame).filter(|m| m.kind == kind && m.src.is_ipv6())
}

/// The options behind the first `fixed` octets: type and value.
fn options(message: &Icmp, fixed: usize) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &message.body[fixed..];
    let mut found = Vec::new();
    while let [kind, len, ..] = *rest {
        assert!(len > 0, "an option without length");
        let len = usize::from(len) * 8;
        found.push((kind, rest[2..len].to_vec()));
        rest = &rest[len..];
    }
    assert!(rest.is_empty(), "octets behind the last option");
    found
}

fn option(message: &Icmp, fixed: usize, kind: u8) -> Option<Vec<u8>> {
    let found = options(message, fixed)
        .into_iter()
        .find(|(k, _)| *k == kind);
    found.map(|(_, value)| value)
}

#[test]
fn neighbours_are_at_our_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    for target in [
        GATEWAY6,
        "fd10:233:70::77".parse().unwrap(),
        "2001:db8::1".parse().unwrap(),
    ] {
        scene.wire.send(&neighbour_solicitation(GUEST_LL, target));
        let answer = scene.wire.expect("NA", message(NEIGHBOUR_ADVERTISEMENT));
        assert_eq!(answer.dst, GUEST_LL);
        assert_eq!(answer.ttl, 255);
        assert_eq!(answer.body[..16], target.octets());
        // Solicited.
        assert_eq!(answer.word >> 30 & 1, 1);
        assert_eq!(option(&answer, 16, 2).as_deref(), Some(&OUR_MAC[..]));
    }
}

/// Several machines may be behind the link: what we said would be taken for where the other one is.
#[test]
fn a_machine_that_was_heard_behind_the_link_answers_for_itself() {
    let Some(scene) = Scene::new(&[]) else { return };
    let ask = |src, target| scene.wire.send(&neighbour_solicitation(src, target));
    let is_answered = |target: Ipv6Addr| {
        let mut advertisement = message(NEIGHBOUR_ADVERTISEMENT);
        let answer =
            |frame: &[u8]| advertisement(frame).filter(|na| na.body[..16] == target.octets());
        scene.wire.expect("NA", answer);
    };
    let [other_ll, other] = ["fe80::7", "fd10:233:70::7"].map(|addr| addr.parse().unwrap());
    let machines = [
        (GUEST_MAC, [GUEST_LL, POD6], &[][..]),
        (OTHER_MAC, [other_ll, other], &[GUEST_LL, POD6]),
        (GUEST_MAC, [GUEST_LL, POD6], &[other_ll, other]),
    ];
    for (mac, addrs, others) in machines {
        scene.wire.speak_as(mac);
        for addr in addrs {
            ask(addr, GATEWAY6);
            is_answered(GATEWAY6);
        }
        for &target in others {
            ask(addrs[0], target);
        }
        scene
            .wire
            .never(QUIET, "NA", message(NEIGHBOUR_ADVERTISEMENT));
    }
}

#[test]
fn duplicate_address_detection_finds_no_duplicate() {
    let Some(scene) = Scene::new(&[]) else { return };
    for target in [POD6, GUEST_LL] {
        scene
            .wire
            .send(&neighbour_solicitation(Ipv6Addr::UNSPECIFIED, target));
    }
    scene
        .wire
        .never(QUIET, "NA", message(NEIGHBOUR_ADVERTISEMENT));
}

fn check_advertisement(answer: &Icmp) {
    assert_eq!(answer.ttl, 255);
    let std::net::IpAddr::V6(router) = answer.src else {
        panic!("{answer:?}")
    };
    assert!(
        router.is_unicast_link_local(),
        "a router's address is link-local (N16)"
    );
    let lifetime = answer.word & 0xffff;
    assert!(lifetime > 0, "a default router");
    // Prefix information: /64, on link, autonomous.
    let prefix = option(answer, 8, 3).expect("prefix");
    assert_eq!((prefix[0], prefix[1] & 0xc0), (64, 0xc0));
    assert_eq!(prefix[14..22], POD6.octets()[..8]);
    assert_eq!(
        option(answer, 8, 5).expect("MTU")[2..],
        65_520_u32.to_be_bytes()
    );
    assert_eq!(option(answer, 8, 1).as_deref(), Some(&OUR_MAC[..]));
    let search = option(answer, 8, 31).expect("DNSSL");
    assert!(search[6..].starts_with(b"\x03lab\x07example\0\x03pod\x07example\0"));
    assert!(option(answer, 8, 25).is_some(), "RDNSS");
}

#[test]
fn a_router_is_advertised_when_asked_for() {
    let Some(scene) = Scene::new(&[]) else { return };
    scene.wire.send(&router_solicitation(GUEST_LL));
    let answer = scene.wire.expect("RA", message(ROUTER_ADVERTISEMENT));
    check_advertisement(&answer);
    assert!(answer.dst == GUEST_LL || answer.dst == ALL_NODES);
}

/// X05: who has no address yet is told with all others.
#[test]
fn a_solicitation_from_nowhere_is_answered_to_all_nodes() {
    let Some(scene) = Scene::new(&[]) else { return };
    scene.wire.send(&router_solicitation(Ipv6Addr::UNSPECIFIED));
    let (answer, to) = scene.wire.expect("RA", |frame| {
        let answer = message(ROUTER_ADVERTISEMENT)(frame)?;
        Some((answer, *frame.first_chunk::<6>()?))
    });
    check_advertisement(&answer);
    assert_eq!(answer.dst, ALL_NODES);
    assert_eq!(to, [0x33, 0x33, 0, 0, 0, 1]);
}

#[test]
fn a_whole_stack_configures_itself() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let mut guest = Guest::new(translator.connect(), 1500, true);
    assert_eq!(guest.slaac().segments()[..4], POD6.segments()[..4]);
}

/// RFC 4861, sections 6.1.1 and 7.1.1.
#[test]
fn invalid_solicitations_get_no_answer() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let far = Icmp {
        ttl: 64,
        ..Icmp::new(
            GUEST_LL.into(),
            ALL_ROUTERS.into(),
            ROUTER_SOLICITATION,
            0,
            &[],
        )
    };
    let coded = Icmp {
        code: 1,
        ..Icmp::new(
            GUEST_LL.into(),
            ALL_ROUTERS.into(),
            ROUTER_SOLICITATION,
            0,
            &[],
        )
    };
    let endless = [1, 0, 0, 0, 0, 0, 0, 0];
    let endless = Icmp::new(
        GUEST_LL.into(),
        ALL_ROUTERS.into(),
        ROUTER_SOLICITATION,
        0,
        &endless,
    );
    let short = Icmp::new(
        GUEST_LL.into(),
        GATEWAY6.into(),
        NEIGHBOUR_SOLICITATION,
        0,
        &[0xfe; 8],
    );
    let mut corrupt = router_solicitation(GUEST_LL);
    corrupt[14 + 40 + 2] ^= 1;
    for frame in [
        far.frame(),
        coded.frame(),
        endless.frame(),
        short.frame(),
        corrupt,
    ] {
        scene.wire.send(&frame);
    }
    scene.wire.never(QUIET, "RA", message(ROUTER_ADVERTISEMENT));
    scene
        .wire
        .never(QUIET, "NA", message(NEIGHBOUR_ADVERTISEMENT));
    scene.translator.assert_alive();
}

#[test]
fn services_can_be_turned_off() {
    for (option, unwanted) in [
        ("--no-ra", [ROUTER_ADVERTISEMENT; 2]),
        ("--no-ndp", [ROUTER_ADVERTISEMENT, NEIGHBOUR_ADVERTISEMENT]),
    ] {
        let Some(scene) = Scene::new(&[option]) else {
            return;
        };
        scene.wire.send(&router_solicitation(GUEST_LL));
        scene.wire.send(&neighbour_solicitation(GUEST_LL, GATEWAY6));
        scene.wire.never(QUIET, "an answer", |frame| {
            Icmp::of_frame(frame).filter(|m| unwanted.contains(&m.kind))
        });
    }
}
