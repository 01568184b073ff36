//! What virt-launcher finds in a pod arrives in the guest complete: address, every route, MAC address, MTU, resolver and
//! search list, by DHCP and router advertisements to unmodified clients.

use std::net::Ipv4Addr;

use super::{
    kernel_guest::machine::{Lease, Machine},
    lab::LONG,
    lab::{
        Setup, Translator, World,
        servers::UdpEcho,
        traffic::{ask_udp, download, expect_greeting, file_server, greeter, ping},
        wait_until,
        world::{INTERNET4, POD4},
    },
};

/// NodeLocal DNSCache's usual address in such clusters.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 25, 10);

const RESOLV_CONF: &str = "search default.svc.cluster.local svc.cluster.local cluster.local
nameserver 169.254.25.10
options ndots:5
";

const SEARCH: &str = "default.svc.cluster.local svc.cluster.local cluster.local";

/// What libvirt of that time passes: the MAC address of the device, which is then the router's in the guest.
const MAC: &str = "02:7e:5d:00:70:32";

/// Addresses that only the further routes lead to.
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const STORAGE: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);

/// A pod with a /32 behind a gateway that is no neighbour of it: every route, the gateway's too, has to be told.
const ROUTED: Lease = Lease {
    address: "10.233.70.50/32",
    routes: &[
        "default via 169.254.1.1 ",
        "169.254.1.1 ",
        "169.254.1.2 ",
        "10.96.0.0/12 via 169.254.1.1 ",
        "172.20.0.0/16 via 169.254.1.2 ",
    ],
    resolver: "169.254.25.10",
    search: SEARCH,
};

/// A pod on a bridge, with a second router beside its gateway.
const BRIDGED: Lease = Lease {
    address: "10.233.70.50/24",
    routes: &[
        "default via 10.233.70.1 ",
        "10.96.0.0/12 via 10.233.70.1 ",
        "172.20.0.0/16 via 10.233.70.254 ",
    ],
    resolver: "169.254.25.10",
    search: SEARCH,
};

#[test]
fn a_routed_pod_arrives_complete_by_dhclient() {
    let Some(world) = routed(1450) else { return };
    arrives(
        &world,
        "dhclient",
        &["-4", "-v", "-d", "eth0"],
        1450,
        &ROUTED,
    );
}

#[test]
fn a_routed_pod_arrives_complete_by_dhcpcd() {
    let Some(world) = routed(1480) else { return };
    arrives(&world, "dhcpcd", DHCPCD, 1480, &ROUTED);
}

#[test]
fn a_bridged_pod_arrives_complete_by_dhclient() {
    let Some(world) = bridged(1480) else { return };
    arrives(
        &world,
        "dhclient",
        &["-4", "-v", "-d", "eth0"],
        1480,
        &BRIDGED,
    );
}

#[test]
fn a_bridged_pod_arrives_complete_by_dhcpcd() {
    let Some(world) = bridged(1450) else { return };
    arrives(&world, "dhcpcd", DHCPCD, 1450, &BRIDGED);
}

const DHCPCD: &[&str] = &["-4", "--debug", "--nobackground", "eth0"];

fn routed(mtu: u32) -> Option<World> {
    let world = World::routed_pod()?;
    world.pod.ip(&format!(
        "link set eth0 mtu {mtu}
         route add 169.254.1.2 dev eth0
         route add 10.96.0.0/12 via 169.254.1.1 dev eth0
         route add 172.20.0.0/16 via 169.254.1.2 dev eth0"
    ));
    world.outside.ip("addr add 169.254.1.2/32 dev pod0");
    finish(world, mtu)
}

fn bridged(mtu: u32) -> Option<World> {
    let world = World::pod()?;
    world.pod.ip(&format!(
        "link set eth0 mtu {mtu}
         route add 10.96.0.0/12 via 10.233.70.1 dev eth0
         route add 172.20.0.0/16 via 10.233.70.254 dev eth0"
    ));
    world.outside.ip("addr add 10.233.70.254/24 dev pod0");
    finish(world, mtu)
}

#[expect(clippy::unnecessary_wraps, reason = "the end of two that may give up")]
fn finish(world: World, mtu: u32) -> Option<World> {
    world.pod.allow_ping();
    world.outside.ip(&format!(
        "link set pod0 mtu {mtu}
         addr add {RESOLVER}/32 dev lo
         addr add {SERVICES}/32 dev lo
         addr add {STORAGE}/32 dev lo"
    ));
    Some(world)
}

fn arrives(world: &World, client: &str, args: &[&str], mtu: u32, lease: &Lease) {
    let mtu_text = mtu.to_string();
    let translator = Setup::new(&["--mtu", &mtu_text, "--mac-addr", MAC])
        .resolv_conf(RESOLV_CONF)
        .start(&world.pod);
    let Some(machine) = Machine::new(&translator, client) else {
        return;
    };
    let running = machine.start(client, args);
    machine.expect_lease(&running, lease);
    // dhcpcd keeps the device's own MTU and puts the told one into the routes.
    if client == "dhclient" {
        machine.expect_mtu(mtu);
    }
    online(world, &translator, &machine);
}

/// What was told is of use: names, every route, the router's address on the link.
fn online(world: &World, _translator: &Translator, machine: &Machine) {
    let guest = machine.host();
    guest.allow_ping();
    let dns = UdpEcho::start(&world.outside, (RESOLVER, 53));
    assert_eq!(ask_udp(guest, dns.addr(), "name"), "name");
    for addr in [INTERNET4, SERVICES, STORAGE] {
        let server = greeter(&world.outside, (addr, 80), "server");
        expect_greeting(guest, server.addr(), &format!("server greets {POD4}"));
        let files = file_server(&world.outside, (addr, 81));
        download(guest, files.addr());
        ping(guest, addr);
    }
    let known = || guest.command("ip", &["neighbour"]).contains(MAC);
    assert!(
        wait_until(LONG, known),
        "{}",
        guest.command("ip", &["neighbour"])
    );
}
