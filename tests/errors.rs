//! Whatever a router or firewall says of the guest's packets, a program in the guest gets the error that it would get on the
//! host.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};

use kernel_guest::KernelGuest;
use lab::{
    Host, LONG, Translator, World, uninterrupted,
    world::{INTERNET4, INTERNET6},
};

/// What nft(8) can refuse with, at ports from 1000 on.
const ICMP: [&str; 7] = [
    "net-unreachable",
    "host-unreachable",
    "prot-unreachable",
    "port-unreachable",
    "net-prohibited",
    "host-prohibited",
    "admin-prohibited",
];
const ICMPV6: [&str; 6] = [
    "no-route",
    "admin-prohibited",
    "addr-unreachable",
    "port-unreachable",
    "policy-fail",
    "reject-route",
];

/// Has `outside` refuse in every way there is, and returns the addresses.
fn refuse(outside: &Host) -> Vec<(SocketAddr, &'static str)> {
    let mut rules = String::new();
    let mut addrs = Vec::new();
    let families: [(&str, IpAddr, &[&'static str]); 2] = [
        ("icmp", INTERNET4.into(), &ICMP),
        ("icmpv6", INTERNET6.into(), &ICMPV6),
    ];
    for (family, addr, kinds) in families {
        let layer = if addr.is_ipv4() { "ip" } else { "ip6" };
        for (port, kind) in (1000..).zip(kinds) {
            rules +=
                &format!("{layer} daddr {addr} th dport {port} reject with {family} type {kind}\n");
            addrs.push((SocketAddr::new(addr, port), *kind));
        }
    }
    outside.nft(&format!(
        "table inet filter {{\nchain input {{\ntype filter hook input priority 0\n{rules}}}\n}}"
    ));
    addrs
}

/// Why a connection could not be.
fn connect(host: &Host, addr: SocketAddr) -> Option<i32> {
    let outcome = host.run(|| TcpStream::connect_timeout(&addr, LONG));
    outcome.expect_err("refused").raw_os_error()
}

/// Why a datagram did not get there.
fn send(host: &Host, addr: SocketAddr) -> Option<i32> {
    let any: IpAddr = if addr.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = host.run(|| UdpSocket::bind((any, 0)).unwrap());
    host.run(|| socket.connect(addr)).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    // Such as pass are not told without (ip(7)).
    setsockopt(&socket, Ipv4RecvErr, &true).ok();
    setsockopt(&socket, Ipv6RecvErr, &true).ok();
    socket.send(b"hello").unwrap();
    uninterrupted(|| socket.recv(&mut [0; 9]))
        .expect_err("refused")
        .raw_os_error()
}

#[test]
fn programs_get_the_errors_that_they_would_get_on_the_host() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let Some(guest) = KernelGuest::plug(&translator, 1500) else {
        return;
    };
    guest.number();
    for (addr, kind) in refuse(&world.outside) {
        for (name, error) in [
            ("TCP", connect as fn(&Host, SocketAddr) -> Option<i32>),
            ("UDP", send),
        ] {
            let (on_host, in_guest) = (error(&world.pod, addr), error(guest.host(), addr));
            assert_eq!(in_guest, on_host, "{name} to {addr}: {kind}");
        }
    }
}
