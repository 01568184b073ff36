//! A pod's network is exchanged under a running guest: `eth0` goes, a macvlan device on a LAN comes, and with it another
//! address and another default route. The guest keeps its lease, and is online again both ways without a restart.

use std::{net::Ipv4Addr, time::Duration};

use super::{
    kernel_guest::{
        KernelGuest,
        machine::{Lease, Machine},
    },
    lab::{
        Host, LONG, Translator, World,
        servers::UdpEcho,
        traffic::{ask, ask_udp, download, expect_greeting, file_server, greeter, ping},
        wait_until,
        world::INTERNET4,
    },
};

/// The guest's and the pod's address before, and the pod's after.
const BEFORE: Ipv4Addr = Ipv4Addr::new(10, 233, 70, 4);
const AFTER: Ipv4Addr = Ipv4Addr::new(10, 7, 120, 202);

/// A host on the LAN; the router there is 10.7.0.1.
const LAN: Ipv4Addr = Ipv4Addr::new(10, 7, 33, 7);

/// Pod, outside, and a node with a card on the LAN for macvlan devices.
struct Scene {
    guest: KernelGuest,
    translator: Translator,
    world: World,
    node: Host,
    lan: Host,
}

/// World, node and LAN, before anybody starts anything.
fn laboratory() -> Option<(World, Host, Host)> {
    let world = World::bare()?;
    world.pod.allow_ping();
    world.pod.allow_low_ports();
    world.pod.ip("addr add 10.233.70.4/32 dev eth0
         route add 169.254.1.1 dev eth0
         route add default via 169.254.1.1 dev eth0");
    world.outside.ip("addr add 169.254.1.1/32 dev pod0
         route add 10.233.70.4 dev pod0");
    let [node, lan] = [(); 2].map(|()| Host::new().expect("a namespace"));
    node.wire("nic", &lan, "lan0");
    lan.forward();
    lan.ip("addr add 10.7.33.7/16 dev lan0
         addr add 10.7.0.1/16 dev lan0
         addr add 203.0.113.80/32 dev lo");
    Some((world, node, lan))
}

fn unplug(world: &World) {
    world.pod.ip("link del eth0");
}

fn plug_macvlan(world: &World, node: &Host) {
    let pod = world.pod.path();
    node.ip(&format!(
        "link add link nic name net1 type macvlan mode bridge
         link set net1 netns {pod}"
    ));
    world.pod.ip("link set net1 up
         addr add 10.7.120.202/16 dev net1
         route add default via 10.7.0.1 dev net1");
}

impl Scene {
    fn new() -> Option<Self> {
        let (world, node, lan) = laboratory()?;
        let translator = Translator::start(&world.pod, &["-t", "22,8080", "-u", "5353"]);
        let guest = KernelGuest::plug(&translator, 1500)?;
        guest.host().allow_ping();
        guest.host().ip("addr add 10.233.70.4/32 dev eth0
             route add 169.254.1.1 dev eth0
             route add default via 169.254.1.1 dev eth0");
        Some(Self {
            guest,
            translator,
            world,
            node,
            lan,
        })
    }

    fn unplug(&self) {
        unplug(&self.world);
    }

    fn plug_macvlan(&self) {
        plug_macvlan(&self.world, &self.node);
    }

    /// The guest is on the internet by `eth0`.
    fn expect_online_before(&self) {
        let Self { guest, world, .. } = self;
        let server = greeter(&world.outside, (INTERNET4, 80), "internet");
        expect_greeting(
            guest.host(),
            server.addr(),
            &format!("internet greets {BEFORE}"),
        );
        ping(guest.host(), INTERNET4);
        let _ssh = greeter(guest.host(), (BEFORE, 22), "guest");
        expect_greeting(&world.outside, (BEFORE, 22), "guest greets 169.254.1.1");
    }

    /// The guest is on the LAN, and beyond its router, with the pod's new address.
    fn expect_online_after(&self) {
        let Self { guest, lan, .. } = self;
        let guest = guest.host();
        for addr in [LAN, Ipv4Addr::new(203, 0, 113, 80)] {
            let server = greeter(lan, (addr, 80), "lan");
            expect_greeting(guest, server.addr(), &format!("lan greets {AFTER}"));
            let files = file_server(lan, (addr, 81));
            download(guest, files.addr());
            let echo = UdpEcho::start(lan, (addr, 53));
            assert_eq!(ask_udp(guest, echo.addr(), "question"), "question");
            ping(guest, addr);
        }
    }

    /// A host of the LAN reaches the guest's servers at the pod's new address.
    fn expect_reachable_after(&self) {
        let Self { guest, lan, .. } = self;
        let guest = guest.host();
        let ssh = greeter(guest, ([0; 4], 22), "guest");
        expect_greeting(lan, (AFTER, 22), &format!("guest greets {LAN}"));
        drop(ssh);
        let _files = file_server(guest, ([0; 4], 8080));
        download(lan, (AFTER, 8080));
        let _echo = UdpEcho::start(guest, ([0; 4], 5353));
        assert_eq!(ask_udp(lan, (AFTER, 5353), "question"), "question");
    }
}

#[test]
fn the_guest_is_online_again_when_its_pod_gets_another_network() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.expect_online_before();
    scene.unplug();
    scene.plug_macvlan();
    scene.expect_online_after();
    scene.expect_reachable_after();
    scene.translator.assert_alive();
}

/// The other way about: nothing of the guest's may be needed first to bring connections in.
#[test]
fn the_guest_is_reached_first_on_the_new_network() {
    let Some(scene) = Scene::new() else { return };
    scene.expect_online_before();
    scene.unplug();
    scene.plug_macvlan();
    scene.expect_reachable_after();
    scene.expect_online_after();
}

/// For a while there is no network at all: the guest is told so at once, and nothing of that stays behind.
#[test]
fn a_guest_without_network_is_told_and_recovers() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.expect_online_before();
    scene.unplug();
    let told = wait_until(LONG, || {
        ask(scene.guest.host(), (INTERNET4, 80)).is_err_and(|e| e.raw_os_error().is_some())
    });
    assert!(told, "the guest waits for an answer");
    assert!(!wait_until(Duration::from_millis(500), || scene
        .translator
        .has_ended()));
    scene.plug_macvlan();
    scene.expect_online_after();
    scene.expect_reachable_after();
}

/// What the guest was given first, and is given for ever.
const LEASE: Lease = Lease {
    address: "10.233.70.4/32",
    routes: &["default via 169.254.1.1 ", "169.254.1.1 "],
    resolver: "10.233.70.1",
    search: "lab.example pod.example",
};

/// Leases are asked for again, by guests that start anew too.
#[test]
fn a_fresh_lease_on_the_new_network_is_the_old_one_and_good_for_it() {
    let Some((world, node, lan)) = laboratory() else {
        return;
    };
    let mut translator = Translator::start(&world.pod, &[]);
    let Some(machine) = Machine::new(&translator, "dhclient") else {
        return;
    };
    let guest = machine.host();
    guest.allow_ping();
    let ask = || machine.start("dhclient", &["-4", "-v", "-d", "eth0"]);
    let client = ask();
    machine.expect_lease(&client, &LEASE);
    drop(client);
    unplug(&world);
    plug_macvlan(&world, &node);
    guest.ip("addr flush dev eth0");
    let client = ask();
    machine.expect_lease(&client, &LEASE);
    let server = greeter(&lan, (LAN, 80), "lan");
    expect_greeting(guest, server.addr(), &format!("lan greets {AFTER}"));
    ping(guest, LAN);
    translator.assert_alive();
}
