//! Connections that cannot be: the guest gets the same error as a process on the host.

use std::net::{IpAddr, SocketAddr};

use crate::{
    guest::{
        Icmp, Peer, Scene, both,
        frame::{ACK, RST, SYN, assert_quotes},
        guest_addr,
    },
    lab::{
        QUIET,
        world::{
            BLACKHOLE4, BLACKHOLE6, GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, NOBODY4, NOBODY6,
            PROHIBITED4, PROHIBITED6, UNREACHABLE4, UNREACHABLE6,
        },
    },
};

/// Regressions T43 and T59: with an ACK, and at the addresses that mean the host itself too.
#[test]
fn refused_means_reset() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    let [a, b] = both(INTERNET4, INTERNET6, 81);
    let [c, d] = both(GATEWAY4, GATEWAY6, 81);
    for remote in [a, b, c, d] {
        let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 0xffff_ffff);
        peer.send(SYN, &[]);
        let answer = peer.recv();
        assert_eq!((answer.flags, answer.ack), (RST | ACK, 0), "{answer:?}");
    }
    scene.translator.expect_fd_count(idle);
}

/// The kernel connects a socket to itself if it happens to choose the very port that is asked for: nobody listens there.
#[test]
fn a_port_of_the_hosts_that_is_next_to_be_chosen_is_refused_like_others() {
    let args = [
        "--map-guest-addr",
        "192.0.2.8",
        "--map-guest-addr",
        "2001:db8:8::8",
    ];
    let Some(scene) = Scene::new(&args) else {
        return;
    };
    let port = 40_001;
    let only = format!("{port} {port}");
    scene.world.pod.sysctl("ipv4/ip_local_port_range", &only);
    let idle = scene.translator.idle_fd_count();
    for addr in ["10.233.70.1", "fe80::1", "192.0.2.8", "2001:db8:8::8"] {
        let remote = SocketAddr::new(addr.parse().unwrap(), port);
        let mut peer = Peer::new(&scene.wire, guest_addr(remote, 50_000), remote, 0xffff_ffff);
        peer.send(SYN, &[]);
        let answer = peer.recv();
        assert_eq!((answer.flags, answer.ack), (RST | ACK, 0), "{answer:?}");
    }
    scene.translator.expect_fd_count(idle);
}

/// Waits for the error to the SYN of `peer`; nothing else may come.
fn expect_unreachable(scene: &Scene, remote: SocketAddr, codes: &[u8]) {
    let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 0x1234_5678);
    let syn = peer.segment(SYN, &[]).ip().packet();
    peer.send(SYN, &[]);
    let error = scene.wire.expect("ICMP error", |frame| {
        assert_eq!(peer.mine(frame), None, "not an ICMP error");
        Icmp::of_frame(frame).filter(Icmp::is_unreachable)
    });
    assert!(
        codes.contains(&error.code),
        "code {} for {remote}",
        error.code
    );
    assert_eq!(error.dst, peer.local.ip());
    assert!(!error.src.is_loopback() && error.src != peer.local.ip());
    assert_quotes(&error, &syn);
    peer.expect_quiet(QUIET, "reset", |s| s.has(RST));
}

#[test]
fn unreachable_and_prohibited_are_told_apart_and_no_reset_follows() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    // RFC 792, RFC 1812 5.2.7.1; RFC 4443 3.1: what the router outside says is what the guest hears.
    for (remote, code) in [
        (IpAddr::from(UNREACHABLE4), 1),
        (UNREACHABLE6.into(), 0),
        (PROHIBITED4.into(), 13),
        (PROHIBITED6.into(), 1),
    ] {
        expect_unreachable(&scene, (remote, 80).into(), &[code]);
    }
    scene.translator.expect_fd_count(idle);
}

#[test]
fn a_neighbour_that_does_not_answer_is_an_unreachable_host() {
    let Some(scene) = Scene::new(&[]) else { return };
    for family in ["ipv4", "ipv6"] {
        scene
            .world
            .pod
            .sysctl(&format!("{family}/neigh/eth0/mcast_solicit"), "1");
        scene
            .world
            .pod
            .sysctl(&format!("{family}/neigh/eth0/retrans_time_ms"), "200");
    }
    expect_unreachable(&scene, (NOBODY4, 80).into(), &[1]);
    expect_unreachable(&scene, (NOBODY6, 80).into(), &[3]);
}

#[test]
fn a_host_without_a_route_is_an_unreachable_network() {
    let Some(scene) = Scene::new(&[]) else { return };
    scene.world.pod.ip("route del default\nroute del ::/0");
    expect_unreachable(&scene, (INTERNET4, 80).into(), &[0, 1]);
    expect_unreachable(&scene, (INTERNET6, 80).into(), &[0, 3]);
}

#[test]
fn silence_is_answered_with_silence() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(BLACKHOLE4, BLACKHOLE6, 80) {
        let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
        peer.send(SYN, &[]);
        peer.expect_quiet(QUIET, "segment", |_| true);
    }
}

/// T56, T79: no flow, no reply that could matter, and no harm.
#[test]
fn endpoints_that_cannot_be_open_nothing() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    for remote in [
        "198.51.100.1:0",
        "0.0.0.0:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "[::]:80",
        "[ff02::1]:80",
    ] {
        let remote = remote.parse().unwrap();
        let peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 7);
        scene.wire.send(&peer.segment(SYN, &[]).frame());
        peer.expect_quiet(QUIET, "SYN,ACK", |s| s.has(SYN));
    }
    scene.translator.expect_fd_count(idle);
    scene.translator.assert_alive();
}
