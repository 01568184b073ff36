//! Unmodified DHCP clients on a kernel guest: each leases through the translator, configures the guest by its own means,
//! and the guest is then online with what it was told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    time::Duration,
};

use kernel_guest::machine::{Lease, Machine, PATIENCE};
use lab::{
    Translator, World,
    programs::write_program,
    world::{INTERNET4, INTERNET6},
};

/// What ordinary clients are told in [`World::pod`].
const POD: Lease = Lease {
    address: "10.233.70.50/24",
    routes: &["default via 10.233.70.1 "],
    resolver: "10.233.70.1",
    search: "lab.example pod.example",
};

/// And in [`World::routed_pod`], where the gateway is reached by a classless static route (RFC 3442).
const ROUTED_POD: Lease = Lease {
    address: "10.233.70.50/32",
    routes: &["default via 169.254.1.1 ", "169.254.1.1 "],
    resolver: "10.233.70.1",
    search: "lab.example pod.example",
};

/// In both, by DHCPv6 and router advertisements: the address has no prefix of its own (RFC 8415, section 18.2.10.1).
const POD6: Lease = Lease {
    address: "fd10:233:70::50/128",
    routes: &["default via fe80::1 "],
    resolver: "fd10:233:70::1",
    search: "lab.example pod.example",
};

#[test]
fn busybox_udhcpc_leases() {
    let Some(world) = World::pod() else { return };
    udhcpc(&world, &POD);
}

#[test]
fn busybox_udhcpc_reaches_a_gateway_outside_its_prefix() {
    let Some(world) = World::routed_pod() else {
        return;
    };
    udhcpc(&world, &ROUTED_POD);
}

#[test]
fn isc_dhclient_leases() {
    let Some(world) = World::pod() else { return };
    dhclient(&world, "-4", &POD);
}

#[test]
fn isc_dhclient_reaches_a_gateway_outside_its_prefix() {
    let Some(world) = World::routed_pod() else {
        return;
    };
    dhclient(&world, "-4", &ROUTED_POD);
}

#[test]
fn isc_dhclient_leases_by_dhcpv6() {
    let Some(world) = World::pod() else { return };
    dhclient(&world, "-6", &POD6);
}

#[test]
fn dhcpcd_leases() {
    let Some(world) = World::pod() else { return };
    dhcpcd(&world, "-4", &POD);
}

#[test]
fn dhcpcd_reaches_a_gateway_outside_its_prefix() {
    let Some(world) = World::routed_pod() else {
        return;
    };
    dhcpcd(&world, "-4", &ROUTED_POD);
}

#[test]
fn dhcpcd_leases_by_dhcpv6() {
    let Some(world) = World::pod() else { return };
    dhcpcd(&world, "-6", &POD6);
}

fn udhcpc(world: &World, lease: &Lease) {
    let translator = Translator::start(&world.pod, &[]);
    let Some(machine) = Machine::new(&translator, "busybox") else {
        return;
    };
    let script = machine.dir().join("udhcpc");
    write_program(&script, UDHCPC_SCRIPT);
    let script = script.to_str().unwrap();
    let words = "udhcpc -f -i eth0 -O search -O staticroutes -O mtu -s";
    let mut words: Vec<_> = words.split(' ').collect();
    words.push(script);
    let client = machine.start("busybox", &words);
    machine.expect_lease(&client, lease);
    machine.expect_mtu(65520);
    expect_online(world, &machine, INTERNET4.into());
}

fn dhclient(world: &World, family: &str, lease: &Lease) {
    let translator = Translator::start(&world.pod, &[]);
    let Some(machine) = Machine::new(&translator, "dhclient") else {
        return;
    };
    let client = machine.start("dhclient", &[family, "-v", "-d", "eth0"]);
    machine.expect_lease(&client, lease);
    if family == "-4" {
        machine.expect_mtu(65520);
    }
    expect_online(world, &machine, internet(family));
}

fn dhcpcd(world: &World, family: &str, lease: &Lease) {
    let translator = Translator::start(&world.pod, &[]);
    let Some(machine) = Machine::new(&translator, "dhcpcd") else {
        return;
    };
    let client = machine.start("dhcpcd", &[family, "--debug", "--nobackground", "eth0"]);
    machine.expect_lease(&client, lease);
    expect_online(world, &machine, internet(family));
}

fn internet(family: &str) -> IpAddr {
    if family == "-6" {
        INTERNET6.into()
    } else {
        INTERNET4.into()
    }
}

/// The guest can talk to a server on the internet.
fn expect_online(world: &World, machine: &Machine, server: IpAddr) {
    let listener = world
        .outside
        .run(|| TcpListener::bind((server, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let answered = machine.host().run(|| -> io::Result<String> {
        let mut stream =
            TcpStream::connect_timeout(&(server, port).into(), Duration::from_secs(20))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        listener.accept()?.0.write_all(b"you are online")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    assert_eq!(answered.unwrap(), "you are online");
}

/// What udhcpc runs to have a lease applied.
const UDHCPC_SCRIPT: &str = r#"#!/bin/sh
case $1 in bound | renew) ;; *) exit 0 ;; esac
[ -z "$mtu" ] || ip link set dev "$interface" mtu "$mtu"
ip address replace "$ip/$mask" dev "$interface"
if [ -n "$staticroutes" ]; then
    set -- $staticroutes
    while [ $# -ge 2 ]; do
        via="via $2"
        [ "$2" != 0.0.0.0 ] || via=
        ip route replace "$1" $via dev "$interface"
        shift 2
    done
else
    ip route replace default via "$router" dev "$interface"
fi
{
    echo "search ${search:-$domain}"
    for server in $dns; do echo "nameserver $server"; done
} > /etc/resolv.conf
"#;
