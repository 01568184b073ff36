//! Frames of kinds a guest seldom sends: carried where that can be done, else dropped and counted under a reason, and never
//! taken for what they are not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{collections::HashMap, net::SocketAddr};

use guest::{
    Scene, Udp, both,
    frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ethernet},
    guest_addr, pattern,
};
use lab::{
    LONG,
    servers::{UdpEcho, udp_socket},
    uninterrupted, wait_until,
    world::{INTERNET4, INTERNET6},
};
use nix::sys::signal::Signal;

const ROUTER: [u8; 6] = [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];

/// A question over IPv4 with these options, padded to words.
fn with_options4(datagram: &Udp, options: &[u8]) -> Vec<u8> {
    let mut packet = datagram.ip().packet();
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    packet[0] += options.len() as u8 / 4;
    let total = (packet.len() + options.len()) as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.splice(20..20, options);
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = !smoltcp::wire::checksum::data(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(ROUTER, ETHERTYPE_IPV4, &packet)
}

/// A question over IPv6 behind these extension headers, of which the first is of type `first`.
fn with_headers6(datagram: &Udp, first: u8, headers: &[u8]) -> Vec<u8> {
    let mut packet = datagram.ip().packet();
    packet[6] = first;
    let len = (packet.len() - 40 + headers.len()) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet.splice(40..40, headers.iter().copied());
    ethernet(ROUTER, ETHERTYPE_IPV6, &packet)
}

/// How often a frame was dropped, by reason.
fn dropped(scene: &Scene) -> HashMap<String, u64> {
    let before = scene.translator.log().len();
    scene.translator.signal(Signal::SIGUSR1);
    let mut counts = HashMap::new();
    let told = wait_until(LONG, || {
        let log = scene.translator.log();
        let Some((_, list)) = log[before..].split_once("\nDropped: ") else {
            return false;
        };
        let (total, lines) = list.split_once('\n').unwrap_or((list, ""));
        let reasons = lines.lines().map_while(|line| line.strip_prefix("    "));
        counts = reasons
            .filter_map(|line| line.split_once(": "))
            .map(|(why, count)| (why.to_owned(), count.parse().unwrap()))
            .collect();
        counts.values().sum::<u64>() == total.parse().unwrap()
    });
    assert!(told, "{}", scene.translator.log());
    counts
}

#[test]
fn options_and_headers_that_ask_for_nothing_are_let_go() {
    let Some(scene) = Scene::new(&[]) else { return };
    let [addr4, addr6] = both(INTERNET4, INTERNET6, 7);
    let _servers = [addr4, addr6].map(|addr| UdpEcho::start(&scene.world.outside, addr));
    let asked = |remote: SocketAddr, n: u8| Udp::new(guest_addr(remote, 5000), remote, &[n]);
    let frames = [
        // No operation, an end; a record of the route; a timestamp; router alert; a loose route that is at its end.
        with_options4(&asked(addr4, 0), &[1, 1, 0]),
        with_options4(&asked(addr4, 1), &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options4(&asked(addr4, 2), &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options4(&asked(addr4, 3), &[0x94, 4, 0, 0]),
        with_options4(&asked(addr4, 4), &[131, 7, 8, 10, 0, 0, 1]),
        // Hop-by-hop with router alert; destination options; a routing header at its end; all three and an atomic fragment.
        with_headers6(&asked(addr6, 5), 0, &[17, 0, 5, 2, 0, 0, 1, 0]),
        with_headers6(&asked(addr6, 6), 60, &[17, 0, 1, 4, 0, 0, 0, 0]),
        with_headers6(&asked(addr6, 7), 43, &[17, 0, 253, 0, 0, 0, 0, 0]),
        with_headers6(
            &asked(addr6, 8),
            0,
            &[
                [60, 0, 1, 4, 0, 0, 0, 0],
                [43, 0, 1, 4, 0, 0, 0, 0],
                [44, 0, 253, 0, 0, 0, 0, 0],
                [17, 0, 0, 0, 0, 0, 0, 1],
            ]
            .concat(),
        ),
    ];
    for (frame, n) in frames.iter().zip(0..) {
        scene.wire.send(frame);
        let payload = scene
            .wire
            .expect("echo", |frame| Udp::of_frame(frame).map(|udp| udp.payload));
        assert_eq!(payload, [n]);
    }
    assert_eq!(dropped(&scene), HashMap::new());
}

/// Frames of more than the link's MTU are no harm: the guest knows what its card can do.
#[test]
fn jumbo_frames_are_carried() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    for addr in both(INTERNET4, INTERNET6, 9) {
        let server = udp_socket(&scene.world.outside, addr);
        scene.world.outside.ip("link set pod0 mtu 65535");
        scene.world.pod.ip("link set eth0 mtu 65535");
        for len in [1473, 8972, 60_000] {
            let question = Udp::new(guest_addr(addr, 5000), addr, &pattern(0, len));
            scene.wire.send(&question.frame());
            let mut bytes = vec![0; 1 << 16];
            let got = uninterrupted(|| server.recv(&mut bytes)).unwrap();
            assert!(bytes[..got] == pattern(0, len), "{len} octets");
        }
    }
}

#[test]
fn what_cannot_be_carried_is_counted_under_its_reason() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let [addr4, addr6] = both(INTERNET4, INTERNET6, 7);
    let servers = [addr4, addr6].map(|addr| UdpEcho::start(&scene.world.outside, addr));
    let [four, six] =
        [addr4, addr6].map(|remote| Udp::new(guest_addr(remote, 5000), remote, b"hello"));
    let packet = four.ip().packet();
    let tagged = |tag: &[u8]| {
        [
            &[&ROUTER[..], &guest::frame::GUEST_MAC, tag].concat(),
            &packet[..],
        ]
        .concat()
    };
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = four.frame();
        change(&mut frame);
        frame[24..26].fill(0);
        let header = 14 + usize::from(frame[14] & 15).clamp(5, 6) * 4;
        let sum = !smoltcp::wire::checksum::data(&frame[14..header]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let spanning_tree = [&[0, 38, 0x42, 0x42, 3, 0, 0][..], &[0; 35]].concat();
    let frames = [
        // Tags of a VLAN, of a priority alone, and of a provider with a VLAN inside.
        ("VLAN tag", tagged(&[0x81, 0, 0, 5, 8, 0])),
        ("VLAN tag", tagged(&[0x81, 0, 0xe0, 0, 8, 0])),
        ("VLAN tag", tagged(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5, 8, 0])),
        ("LLC frame", tagged(&spanning_tree)),
        (
            "LLC frame",
            tagged(&[5, 0xff, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0]),
        ),
        // LLDP, PPPoE, MPLS, the first there is.
        ("EtherType not served", tagged(&[0x88, 0xcc])),
        ("EtherType not served", tagged(&[0x88, 0x64])),
        ("EtherType not served", tagged(&[0x88, 0x47])),
        ("EtherType not served", tagged(&[6, 0])),
        // SCTP, ESP, an extension header nobody knows.
        ("IP protocol not served", changed(&|frame| frame[23] = 132)),
        ("IP protocol not served", changed(&|frame| frame[23] = 50)),
        (
            "IP protocol not served",
            with_headers6(&six, 51, &[17, 0, 0, 0, 0, 0, 0, 0]),
        ),
        // Another version than the EtherType says, a header shorter than any, or longer than the packet.
        ("malformed header", changed(&|frame| frame[14] = 0x65)),
        ("malformed header", changed(&|frame| frame[14] = 0x44)),
        (
            "malformed header",
            changed(&|frame| frame[16..18].copy_from_slice(&[0, 19])),
        ),
        (
            "truncated",
            changed(&|frame| frame[16..18].copy_from_slice(&[0xff, 0xff])),
        ),
        // Options that run over their end, and those that lead elsewhere.
        ("malformed header", with_options4(&four, &[7, 9, 4, 0])),
        ("malformed header", with_options4(&four, &[7, 1, 4, 0])),
        ("malformed header", with_options4(&four, &[1, 1, 1, 7])),
        (
            "IP option or extension header not served",
            with_options4(&four, &[131, 7, 4, 10, 0, 0, 1]),
        ),
        (
            "IP option or extension header not served",
            with_options4(&four, &[137, 7, 4, 10, 0, 0, 1]),
        ),
        // A routing header with a way to go, a jumbo payload, an option nobody knows, and nothing at all behind.
        (
            "IP option or extension header not served",
            with_headers6(&six, 43, &[17, 0, 0, 1, 0, 0, 0, 0]),
        ),
        (
            "IP option or extension header not served",
            with_headers6(&six, 0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]),
        ),
        (
            "IP option or extension header not served",
            with_headers6(&six, 60, &[17, 0, 0x9e, 4, 0, 0, 0, 0]),
        ),
        (
            "IP option or extension header not served",
            with_headers6(&six, 59, &[]),
        ),
        (
            "malformed header",
            with_headers6(&six, 60, &[17, 0, 1, 5, 0, 0, 0, 0]),
        ),
        (
            "malformed header",
            with_headers6(&six, 60, &[17, 9, 1, 4, 0, 0, 0, 0]),
        ),
        ("truncated", four.frame()[..30].to_vec()),
        ("truncated", six.frame()[..50].to_vec()),
    ];
    let mut want = HashMap::new();
    for (why, frame) in &frames {
        scene.wire.send(frame);
        *want.entry((*why).to_owned()).or_default() += 1;
    }
    let marker = Udp::new(guest_addr(addr4, 6000), addr4, b"after");
    scene.wire.send(&marker.frame());
    let payload = scene
        .wire
        .expect("echo", |frame| Udp::of_frame(frame).map(|udp| udp.payload));
    assert_eq!(payload, b"after");
    assert_eq!(dropped(&scene), want);
    assert_eq!(servers[0].clients(), [guest_addr(addr4, 6000)]);
    assert_eq!(servers[1].clients(), []);
    scene.translator.assert_alive();
}
