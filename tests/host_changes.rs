//! The host's network changes under a running guest, which goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use guest::{
    Icmp, Peer, Scene, Udp, Wire, both,
    dhcp::{ACK, Dhcp, REQUEST},
    guest_addr,
};
use lab::{
    LONG, Setup, Translator, World,
    servers::{UdpEcho, accept, tcp_listener, udp_socket},
    uninterrupted, wait_until,
    world::{INTERNET4, INTERNET6, POD4, POD6},
};
use nix::sys::signal::Signal;

/// Joins the pod to outside by another wire, with other addresses.
fn second_wire(world: &World) {
    wire_without_routes(world);
    world.pod.ip("route add default via 10.9.9.1 dev eth1
         route add default via fe80::1 dev eth1");
}

fn wire_without_routes(world: &World) {
    world.pod.ip(&format!(
        "link add eth1 mtu 1500 type veth peer name pod1 mtu 1500 netns {}
         addr add 10.9.9.50/24 dev eth1
         addr add fd10:9:9::50/64 dev eth1 nodad
         link set eth1 up",
        world.outside.path()
    ));
    world.outside.ip("addr add 10.9.9.1/24 dev pod1
         addr add fd10:9:9::1/64 dev pod1 nodad
         addr add fe80::1/64 dev pod1 nodad
         link set pod1 up");
}

/// TCP, UDP and ping of the guest, from the addresses it was given, all new flows.
fn assert_online(world: &World, wire: &Wire, port: u16) {
    for remote in [
        SocketAddr::from((INTERNET4, 9)),
        SocketAddr::from((INTERNET6, 9)),
    ] {
        let local = guest_addr(remote, port);
        let echo = UdpEcho::start(&world.outside, remote);
        // A router that has just got its address does not answer for it at once.
        let question = Udp::new(local, remote, b"hello").frame();
        let answer = wire.ask("echo", &question, |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst == local)
        });
        assert_eq!(answer.payload, b"hello");
        drop(echo);
        let listener = tcp_listener(&world.outside, remote);
        let mut peer = Peer::connect(wire, local, remote);
        peer.send_data(b"hello");
        peer.expect_acked();
        drop(accept(&listener));
        let ping = Icmp::echo_request(local.ip(), remote.ip(), port, 1, b"ping");
        wire.send(&ping.frame());
        wire.expect("echo reply", |frame| {
            Icmp::of_frame(frame).filter(|icmp| icmp.is_echo_reply() && icmp.dst == local.ip())
        });
    }
}

fn lease(wire: &Wire) -> Dhcp {
    // While the host has no router yet nobody answers, and clients ask again.
    let mut found = None;
    let answered = wait_until(LONG, || {
        wire.send(&Dhcp::new(REQUEST).frame());
        while found.is_none() {
            let Some(frame) = wire.recv(Duration::from_secs(1)) else {
                break;
            };
            found = Dhcp::of_frame(&frame);
        }
        found.is_some()
    });
    assert!(answered, "no lease");
    let (_, reply) = found.unwrap();
    assert_eq!(reply.kind(), Some(ACK));
    reply
}

/// Regression N17.
#[test]
fn a_guest_stays_online_when_the_interface_is_replaced() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &["--map-guest-addr", "192.0.2.77"]);
    let wire = Wire::new(translator.connect());
    let before = lease(&wire);
    assert_eq!(before.yiaddr, POD4);
    assert_online(&world, &wire, 20_000);
    world.pod.ip("link del eth0");
    translator.expect_log("template interface: none (IPv4), none (IPv6)");
    second_wire(&world);
    translator.expect_log("template interface: eth1 (IPv4), eth1 (IPv6)");
    assert_online(&world, &wire, 20_100);
    let after = lease(&wire);
    assert_eq!(after.yiaddr, POD4, "an address is not taken away");
    assert_eq!(after.option(3), before.option(3));
    // The host's new address is what stands behind the mapped one.
    let host = UdpEcho::start(&world.pod, (Ipv4Addr::new(10, 9, 9, 50), 7));
    let mapped = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 77), 7));
    let local = guest_addr(mapped, 20_200);
    wire.send(&Udp::new(local, mapped, b"host").frame());
    let answer = wire.expect("echo of the host", |frame| {
        Udp::of_frame(frame).filter(|udp| udp.dst == local)
    });
    assert_eq!(answer.src, mapped);
    drop(host);
    translator.assert_alive();
}

#[test]
fn a_guest_that_came_before_any_network_gets_online() {
    let Some(world) = World::pod() else { return };
    world.pod.ip("link del eth0");
    let mut translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    let given = lease(&wire).yiaddr;
    assert_eq!(given, Ipv4Addr::new(169, 254, 2, 1));
    second_wire(&world);
    translator.expect_log("template interface: eth1 (IPv4), eth1 (IPv6)");
    assert_eq!(lease(&wire).yiaddr, given);
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let local = SocketAddr::from((given, 5000));
    let question = Udp::new(local, echo.addr(), b"hello").frame();
    wire.ask("echo", &question, |frame| {
        Udp::of_frame(frame).filter(|udp| udp.dst == local)
    });
    translator.assert_alive();
}

#[test]
fn without_a_guest_the_address_to_give_follows_the_host() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    world.pod.ip("link del eth0");
    second_wire(&world);
    translator.expect_log("template interface: eth1 (IPv4), eth1 (IPv6)");
    let wire = Wire::new(translator.connect());
    assert_eq!(lease(&wire).yiaddr, Ipv4Addr::new(10, 9, 9, 50));
}

#[test]
fn an_interface_asked_for_may_vanish_and_return() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &["-i", "eth0"]);
    let wire = Wire::new(translator.connect());
    assert_eq!(lease(&wire).yiaddr, POD4);
    world.pod.ip("link del eth0");
    translator.expect_log("template interface: none (IPv4), none (IPv6)");
    assert_eq!(lease(&wire).yiaddr, POD4);
    second_wire(&world);
    world.pod.ip("link set eth1 down
         link set eth1 name eth0
         link set eth0 up
         addr replace fd10:9:9::50/64 dev eth0 nodad
         route replace default via 10.9.9.1 dev eth0
         route replace default via fe80::1 dev eth0");
    translator.expect_log("template interface: eth0 (IPv4), eth0 (IPv6)");
    assert_online(&world, &wire, 20_000);
    translator.assert_alive();
}

/// The kernel does not say of an IPv4 route that it went with its next hop.
#[test]
fn a_next_hop_that_is_deleted_takes_its_route_along() {
    let Some(world) = World::pod() else { return };
    wire_without_routes(&world);
    world.pod.ip("nexthop add id 1 via 10.233.70.1 dev eth0
         route replace default nhid 1
         route add default via 10.9.9.1 dev eth1 metric 100");
    let translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    assert_eq!(lease(&wire).yiaddr, POD4);
    world.pod.ip("nexthop del id 1");
    translator.expect_log("template interface: eth1 (IPv4), eth0 (IPv6)");
}

#[test]
fn sigusr1_logs_counters_drops_and_flows() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    wire.send(&[0xff; 20]);
    let local = guest_addr(echo.addr(), 5000);
    wire.send(&Udp::new(local, echo.addr(), b"hello").frame());
    wire.expect("echo", Udp::of_frame);
    let remote = SocketAddr::from((INTERNET4, 9));
    let _listener = tcp_listener(&world.outside, remote);
    let mut peer = Peer::connect(&wire, guest_addr(remote, 5001), remote);
    peer.send_data(b"hello");
    peer.expect_acked();
    translator.signal(Signal::SIGUSR1);
    translator.expect_log(" 1 established, 0 closing), 1 UDP, 0 echo");
    translator.expect_log("\n    guest's link: ");
    translator.expect_log("\n    flow's socket: ");
    translator.expect_log("\n    signal: 1\n");
    translator.expect_log("Frames from guest: ");
    translator.expect_log("Dropped: 1\n    ");
    translator.assert_alive();
}

#[test]
fn who_asks_for_counters_gets_them_from_a_quiet_translator_too() {
    let Some(scene) = Scene::new(&["--quiet"]) else {
        return;
    };
    scene.translator.signal(Signal::SIGUSR1);
    scene.translator.expect_log("Frames from guest: ");
}

/// Frames and octets, from the Ethernet header on, in each direction.
#[test]
fn what_passed_the_link_is_counted_in_both_directions() {
    let quiet = ["--no-multicast", "--no-ra", "--no-ndp"];
    let Some(scene) = Scene::new(&quiet) else {
        return;
    };
    let echo = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    let local = guest_addr(echo.addr(), 5000);
    for len in [30, 200, 1400] {
        let datagram = Udp::new(local, echo.addr(), &vec![7; len]);
        scene.wire.send(&datagram.frame());
        scene.wire.expect("echo", Udp::of_frame);
    }
    scene.translator.signal(Signal::SIGUSR1);
    let octets = 3 * (14 + 20 + 8) + 30 + 200 + 1400;
    scene
        .translator
        .expect_log(&format!("Frames from guest: 3, {octets} octets\n"));
    scene
        .translator
        .expect_log(&format!("Frames to guest: 3, {octets} octets\n"));
}

/// What a process on the host would see: datagrams meet an error at once, a connection one when the kernel gives it up.
#[test]
fn flows_that_lose_their_interface_end_with_an_error() {
    let Some(world) = World::pod() else { return };
    world.pod.sysctl("ipv4/tcp_retries2", "1");
    let mut translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let local = guest_addr(echo.addr(), 5000);
    let datagram = Udp::new(local, echo.addr(), b"hello");
    wire.send(&datagram.frame());
    wire.expect("echo", Udp::of_frame);
    let remote = SocketAddr::from((INTERNET4, 9));
    let _listener = tcp_listener(&world.outside, remote);
    let mut peer = Peer::connect(&wire, guest_addr(remote, 5001), remote);
    peer.send_data(b"hello");
    peer.expect_acked();
    world.pod.ip("link del eth0");
    wire.send(&datagram.frame());
    wire.expect("an ICMP error", |frame| {
        let error = Icmp::of_frame(frame).filter(Icmp::is_unreachable)?;
        // Net unreachable (RFC 792).
        (error.code == 0).then_some(())
    });
    peer.send_data(b"more");
    peer.expect_reset();
    // Nobody answers, and nothing is left of it.
    translator.signal(Signal::SIGUSR1);
    translator.expect_log(" 0 established, 0 closing)");
    translator.assert_alive();
}

/// The kernel tries on, as the path may come back; who gave up in between finds the error counted.
#[test]
fn an_icmp_error_about_an_established_connection_is_counted_when_it_ends() {
    let Some(scene) = Scene::new(&[]) else { return };
    let outside = &scene.world.outside;
    for (n, (remote, layer, kind, counter)) in [
        (
            SocketAddr::from((INTERNET4, 9)),
            "ip",
            "icmp type host-unreachable",
            "snmp",
        ),
        (
            SocketAddr::from((INTERNET6, 9)),
            "ip6",
            "icmpv6 type addr-unreachable",
            "snmp6",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let _listener = tcp_listener(outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 5000), remote);
        peer.send_data(b"hello");
        peer.expect_acked();
        let errors = || {
            let counters = scene.world.pod.run(|| {
                std::fs::read_to_string(format!("/proc/thread-self/net/{counter}")).unwrap()
            });
            let icmp = counters.lines().filter(|line| {
                line.starts_with("Icmp:") || line.starts_with("Icmp6InDestUnreachs")
            });
            icmp.map(str::to_owned).collect::<Vec<_>>()
        };
        let before = errors();
        outside.nft(&format!(
            "table inet filter{n} {{\nchain input {{\ntype filter hook input priority 0\n\
             {layer} daddr {} tcp dport 9 reject with {kind}\n}}\n}}",
            remote.ip()
        ));
        peer.send_data(b"lost");
        assert!(wait_until(LONG, || errors() != before));
        let idle = scene.translator.fd_count();
        peer.rst();
        assert!(wait_until(LONG, || scene.translator.fd_count() < idle));
        scene.translator.signal(Signal::SIGUSR1);
        let counted = format!("\n    ICMP error from the host: {}", n + 1);
        scene.translator.expect_log(&counted);
    }
}

/// Not more often than asked for, and only when there is something to say.
#[test]
fn stats_are_logged_when_they_changed() {
    let Some(world) = World::pod() else { return };
    let begin = Instant::now();
    let mut translator = Translator::start(&world.pod, &["--stats", "1"]);
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let reports = || translator.log().matches("Frames from guest: ").count();
    let wire = Wire::new(translator.connect());
    let mut port = 5000;
    let busy = || {
        port += 1;
        let local = guest_addr(echo.addr(), port);
        wire.send(&Udp::new(local, echo.addr(), b"hello").frame());
        wire.expect("echo", Udp::of_frame);
        reports() >= 3
    };
    assert!(wait_until(LONG, busy), "{}", translator.log());
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "more than one a second"
    );
    translator.expect_log("\n    flow's socket: ");
    // What came since, then nothing.
    let silent = || {
        let before = reports();
        thread::sleep(Duration::from_millis(2_500));
        reports() == before
    };
    assert!(wait_until(LONG, silent), "{}", translator.log());
    translator.assert_alive();
}

/// A client that could not be let in for want of descriptors does not have to knock again.
#[test]
fn a_client_waits_for_a_descriptor() {
    let Some(world) = World::pod() else { return };
    let mut translator = Setup::new(&[]).limit_files(20).start(&world.pod);
    let first = Wire::new(translator.connect());
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let remote = SocketAddr::from((INTERNET4, 9));
    let _listener = tcp_listener(&world.outside, remote);
    let mut port = 5000;
    while translator.fd_count() < 20 {
        let _ = Peer::connect(&first, guest_addr(remote, port), remote);
        port += 1;
    }
    let second = Wire::new(translator.connect());
    translator.expect_log("Cannot accept a connection, will try again");
    drop(first);
    let local = guest_addr(echo.addr(), 6000);
    second.send(&Udp::new(local, echo.addr(), b"hello").frame());
    second.expect("echo", Udp::of_frame);
    assert_eq!(translator.log().matches("will try again").count(), 1);
    translator.assert_alive();
}

/// What the guest makes us say is bounded. Router solicitations are the cheapest way to try.
#[test]
fn a_guest_cannot_fill_the_log() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    for _ in 0..200 {
        lease(&wire);
    }
    translator.expect_log("(suppressing further similar messages)");
    let said = translator.log().matches("DHCP: ack to request").count();
    let periods = 1 + translator.log().matches("(suppressed ").count();
    assert!(said <= 5 * periods, "{said} messages in {periods} periods");
}

/// libvirt's `virsh destroy` waits for this.
#[test]
fn one_off_ends_soon_after_its_client() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &["--one-off"]);
    let wire = Wire::new(translator.connect());
    lease(&wire);
    let start = Instant::now();
    drop(wire);
    assert_eq!(translator.wait(LONG), 0);
    let took = start.elapsed();
    println!("ended {took:?} after its client");
    assert!(took < Duration::from_secs(5));
}

/// The pod's addresses after [`renumber`].
const NEW4: Ipv4Addr = Ipv4Addr::new(10, 233, 70, 60);
const NEW6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x233, 0x70, 0, 0, 0, 0, 0x60);

/// Gives the pod other addresses, as a new lease and a new prefix do.
fn renumber(world: &World) {
    world.pod.ip("addr del 10.233.70.50/24 dev eth0
         addr del fd10:233:70::50/64 dev eth0
         addr add 10.233.70.60/24 dev eth0
         addr add fd10:233:70::60/64 dev eth0 nodad
         route add default via 10.233.70.1 dev eth0");
}

/// Has the pod's interface be another one of the same name and addresses.
fn replace_interface(world: &World) {
    world.pod.ip(&format!(
        "link del eth0
         link add eth0 mtu 1500 type veth peer name pod0 mtu 1500 netns {}",
        world.outside.path()
    ));
    world.outside.ip("addr add 10.233.70.1/24 dev pod0
         addr add fd10:233:70::1/64 dev pod0 nodad
         addr add fe80::1/64 dev pod0 nodad
         link set pod0 up");
    world.pod.ip("link set eth0 up
         addr add 10.233.70.50/24 dev eth0
         addr add fd10:233:70::50/64 dev eth0 nodad
         route add default via 10.233.70.1 dev eth0
         route add default via fe80::1 dev eth0");
}

/// Datagrams of one port and echo requests of one identifier are answered.
fn assert_heard(wire: &Wire, text: &[u8]) {
    for remote in both(INTERNET4, INTERNET6, 7) {
        let local = guest_addr(remote, 5000);
        let question = Udp::new(local, remote, text).frame();
        wire.ask("echo", &question, |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst == local && udp.payload == text)
        });
        let ping = Icmp::echo_request(local.ip(), remote.ip(), 5000, 1, text);
        wire.ask("echo reply", &ping.frame(), |frame| {
            let reply = Icmp::of_frame(frame).filter(Icmp::is_echo_reply)?;
            (reply.dst == local.ip() && reply.body.ends_with(text)).then_some(())
        });
    }
}

/// Clients outside ask at the pod's addresses, and are answered from there.
fn assert_answers(wire: &Wire, clients: &[UdpSocket; 2], pod: [SocketAddr; 2], text: &[u8]) {
    for (client, to) in clients.iter().zip(pod) {
        let pause = Duration::from_secs(1);
        client.set_read_timeout(Some(pause)).unwrap();
        let answered = wait_until(LONG, || {
            client.send_to(text, to).unwrap();
            let soon = Instant::now() + pause;
            let frames =
                std::iter::from_fn(|| wire.recv(soon.saturating_duration_since(Instant::now())));
            let mut questions = frames.filter_map(|frame| Udp::of_frame(&frame));
            let Some(question) = questions.find(|udp| udp.payload == text) else {
                return false;
            };
            wire.send(&Udp::new(question.dst, question.src, text).frame());
            let mut bytes = [0; 16];
            let answer = uninterrupted(|| client.recv_from(&mut bytes));
            answer.is_ok_and(|(len, from)| &bytes[..len] == text && from == to)
        });
        assert!(answered, "{to}");
    }
}

/// Clients that outside has in both families, and a guest that is known to be there.
fn clients(world: &World, wire: &Wire) -> [UdpSocket; 2] {
    for remote in both(INTERNET4, INTERNET6, 9) {
        wire.send(&Udp::new(guest_addr(remote, 6000), remote, b"here").frame());
    }
    both(INTERNET4, INTERNET6, 0).map(|from| udp_socket(&world.outside, from))
}

/// A guest that sends from one port for ever does not know that the host's address is another now.
#[test]
fn flows_of_datagrams_go_on_from_the_hosts_new_addresses() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    let _echoes = both(INTERNET4, INTERNET6, 7).map(|addr| UdpEcho::start(&world.outside, addr));
    assert_heard(&wire, b"before");
    renumber(&world);
    assert_heard(&wire, b"after");
    translator.assert_alive();
}

#[test]
fn flows_of_datagrams_go_on_by_another_interface_of_the_same_name() {
    let Some(world) = World::pod() else { return };
    let bound = ["--outbound-if4", "eth0", "--outbound-if6", "eth0"];
    let mut translator = Translator::start(&world.pod, &bound);
    let wire = Wire::new(translator.connect());
    let _echoes = both(INTERNET4, INTERNET6, 7).map(|addr| UdpEcho::start(&world.outside, addr));
    assert_heard(&wire, b"before");
    replace_interface(&world);
    assert_heard(&wire, b"after");
    translator.assert_alive();
}

#[test]
fn a_client_is_answered_from_the_hosts_new_address_when_it_asks_there() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &["-u", "5001"]);
    let wire = Wire::new(translator.connect());
    let clients = clients(&world, &wire);
    assert_answers(&wire, &clients, both(POD4, POD6, 5001), b"before");
    renumber(&world);
    assert_answers(&wire, &clients, both(NEW4, NEW6, 5001), b"after");
    translator.assert_alive();
}

#[test]
fn a_client_is_answered_by_another_interface_of_the_same_name() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &["-u", "%eth0/5001"]);
    let wire = Wire::new(translator.connect());
    let clients = clients(&world, &wire);
    let pod = both(POD4, POD6, 5001);
    assert_answers(&wire, &clients, pod, b"before");
    replace_interface(&world);
    assert_answers(&wire, &clients, pod, b"after");
    translator.assert_alive();
}
