//! ARP (RFC 826, RFC 5227) through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::net::Ipv4Addr;

use guest::{
    Scene,
    frame::{ETHERTYPE_ARP, GUEST_MAC, OUR_MAC, ethernet, of_type},
};
use lab::{
    QUIET,
    world::{GATEWAY4, POD4},
};

const BROADCAST: [u8; 6] = [0xff; 6];

/// "Who has `target`? Tell `sender`."
fn request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let packet = [
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &GUEST_MAC[..],
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    ]
    .concat();
    ethernet(BROADCAST, ETHERTYPE_ARP, &packet)
}

/// A reply to the guest: whose address it tells, and which that is.
fn reply(frame: &[u8]) -> Option<(Ipv4Addr, [u8; 6])> {
    let packet = of_type(frame, ETHERTYPE_ARP)?;
    if packet[..8] != [0, 1, 8, 0, 6, 4, 0, 2] {
        return None;
    }
    assert_eq!(frame[..6], GUEST_MAC);
    assert_eq!(packet[18..24], GUEST_MAC);
    assert_eq!(frame[6..12], packet[8..14]);
    assert!(frame.len() >= 60, "shorter than Ethernet allows (N13)");
    let addr = Ipv4Addr::from(*packet[14..].first_chunk::<4>()?);
    Some((addr, *packet[8..].first_chunk()?))
}

#[test]
fn everything_but_the_guest_is_at_our_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    for target in [
        GATEWAY4,
        Ipv4Addr::new(8, 8, 8, 8),
        Ipv4Addr::new(10, 233, 70, 77),
    ] {
        scene.wire.send(&request(POD4, target));
        assert_eq!(scene.wire.expect("ARP reply", reply), (target, OUR_MAC));
    }
}

#[test]
fn the_address_of_the_option_is_told() {
    let Some(scene) = Scene::new(&["--mac-addr", "02:00:5e:10:00:01"]) else {
        return;
    };
    scene.wire.send(&request(POD4, GATEWAY4));
    let (_, mac) = scene.wire.expect("ARP reply", reply);
    assert_eq!(mac, [0x02, 0x00, 0x5e, 0x10, 0x00, 0x01]);
}

/// N14, N15: a client that probes its address before it takes it must not find it taken.
#[test]
fn probes_and_announcements_of_its_own_address_get_no_answer() {
    let Some(scene) = Scene::new(&[]) else { return };
    scene.wire.send(&request(Ipv4Addr::UNSPECIFIED, POD4));
    scene.wire.send(&request(POD4, POD4));
    scene.wire.never(QUIET, "ARP reply", reply);
    scene.wire.send(&request(Ipv4Addr::UNSPECIFIED, GATEWAY4));
    assert_eq!(scene.wire.expect("ARP reply", reply).0, GATEWAY4);
}

#[test]
fn malformed_requests_get_no_answer() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let good = request(POD4, GATEWAY4);
    for (at, value) in [(15, 6), (17, 1), (18, 8), (19, 6), (21, 3)] {
        let mut bad = good.clone();
        bad[at] = value;
        scene.wire.send(&bad);
    }
    scene.wire.send(&good[..good.len() - 1]);
    scene.wire.never(QUIET, "ARP reply", reply);
    scene.translator.assert_alive();
}
