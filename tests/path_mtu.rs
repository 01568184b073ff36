//! Datagrams larger than the host's path takes: in fragments if they may be, else told what would fit, as on the host.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use kernel_guest::KernelGuest;
use lab::{
    Host, LONG, Translator, World,
    servers::{UdpEcho, udp_socket},
    uninterrupted, wait_until,
    world::{INTERNET4, INTERNET6},
};
use passt_rs::sys::sockopt;

/// Of the host's link; the guest's own is as wide as can be.
const MTU: u32 = 1280;

/// Larger than that, and what just fits.
const LARGE: [u8; 4000] = [7; 4000];

fn servers(world: &World) -> [UdpEcho; 2] {
    [IpAddr::from(INTERNET4), INTERNET6.into()]
        .map(|addr| UdpEcho::start(&world.outside, (addr, 7)))
}

fn narrow() -> Option<(World, Translator, KernelGuest)> {
    let world = World::pod()?;
    world.pod.ip(&format!("link set eth0 mtu {MTU}"));
    world.outside.ip(&format!("link set pod0 mtu {MTU}"));
    let translator = Translator::start(&world.pod, &[]);
    let guest = KernelGuest::plug(&translator, 65_520)?;
    guest.number();
    guest.host().allow_ping();
    Some((world, translator, guest))
}

fn connected(host: &Host, remote: SocketAddr) -> UdpSocket {
    let any: IpAddr = if remote.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = host.run(|| UdpSocket::bind((any, 0))).unwrap();
    host.run(|| socket.connect(remote)).unwrap();
    let pause = Some(Duration::from_millis(300));
    socket.set_read_timeout(pause).unwrap();
    socket
}

/// How often the guest was told that something did not fit.
fn told(guest: &Host) -> u64 {
    let v4 = guest.counter("snmp", "Icmp:", "InDestUnreachs");
    let table = guest.proc_net("snmp6");
    let v6 = table
        .iter()
        .find_map(|line| line.strip_prefix("Icmp6InPktTooBigs"));
    v4 + v6.unwrap().trim().parse::<u64>().unwrap()
}

#[test]
fn what_may_be_fragmented_is_and_nobody_is_told() {
    let Some((world, _translator, guest)) = narrow() else {
        return;
    };
    let [server, _] = servers(&world);
    let socket = connected(guest.host(), server.addr());
    sockopt::set_dont_fragment(socket.as_fd(), false, false).unwrap();
    let mut answer = [0; 8192];
    let answered = wait_until(LONG, || {
        socket.send(&LARGE).unwrap();
        uninterrupted(|| socket.recv(&mut answer)).is_ok_and(|len| len == LARGE.len())
    });
    assert!(answered);
    assert_eq!(told(guest.host()), 0);
}

/// The first is lost, as on any narrow path; then the guest's kernel knows, and makes fragments itself.
#[test]
fn who_lets_its_kernel_decide_loses_one_datagram_and_then_none() {
    let Some((world, _translator, guest)) = narrow() else {
        return;
    };
    for (server, before) in servers(&world).iter().zip(0..) {
        let socket = connected(guest.host(), server.addr());
        socket.send(&LARGE).unwrap();
        assert!(wait_until(LONG, || told(guest.host()) == before + 1));
        // A connected socket reports it once (udp(7)).
        let _ = socket.take_error();
        let mtu = sockopt::mtu(socket.as_fd(), server.addr().is_ipv6());
        assert_eq!(mtu.unwrap(), MTU);
        let mut answer = [0; 8192];
        for _ in 0..3 {
            socket.send(&LARGE).unwrap();
            socket.set_read_timeout(Some(LONG)).unwrap();
            assert_eq!(
                uninterrupted(|| socket.recv(&mut answer)).unwrap(),
                LARGE.len()
            );
        }
        assert_eq!(told(guest.host()), before + 1);
    }
}

#[test]
fn who_forbids_fragments_learns_what_fits_and_that_passes() {
    let Some((world, _translator, guest)) = narrow() else {
        return;
    };
    for (server, before) in servers(&world).iter().zip(0..) {
        let v6 = server.addr().is_ipv6();
        let socket = connected(guest.host(), server.addr());
        sockopt::set_dont_fragment(socket.as_fd(), v6, true).unwrap();
        socket.send(&LARGE).unwrap();
        assert!(wait_until(LONG, || told(guest.host()) == before + 1));
        let _ = socket.take_error();
        let mtu = sockopt::mtu(socket.as_fd(), v6).unwrap();
        assert_eq!(mtu, MTU);
        let refused = socket.send(&LARGE).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
        let fits = mtu as usize - if v6 { 48 } else { 28 };
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.send(&LARGE[..fits]).unwrap();
        assert_eq!(uninterrupted(|| socket.recv(&mut [0; 8192])).unwrap(), fits);
    }
}

/// As containers are behind a guest whose own link is as wide as can be.
#[test]
fn a_large_answer_passes_a_guest_that_has_a_narrower_link_behind_it() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let Some(guest) = KernelGuest::plug(&translator, 65_520) else {
        return;
    };
    guest.number();
    let inner = Host::new().unwrap();
    guest.host().wire("inner", &inner, "eth0");
    guest.host().ip("addr add 172.17.0.1/16 dev inner");
    inner.ip("addr add 172.17.0.2/16 dev eth0
         route add default via 172.17.0.1 dev eth0");
    guest.host().forward();
    guest.host().nft(
        "table ip nat {
            chain post {
                type nat hook postrouting priority 100;
                oifname eth0 masquerade
            }
        }",
    );
    let server = udp_socket(&world.outside, (INTERNET4, 9));
    let socket = connected(&inner, server.local_addr().unwrap());
    let answered = wait_until(LONG, || {
        socket.send(b"how much?").unwrap();
        let (_, client) = uninterrupted(|| server.recv_from(&mut [0; 16])).unwrap();
        server.send_to(&LARGE, client).unwrap();
        uninterrupted(|| socket.recv(&mut [0; 8192])).is_ok_and(|len| len == LARGE.len())
    });
    assert!(answered);
}
