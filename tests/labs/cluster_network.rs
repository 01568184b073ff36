//! The network of a small Kubernetes cluster, and a guest in one of its pods.
//!
//! ```text
//! outside ─── node 1, bridge cni0 10.244.1.1/24 ═══ VXLAN over a wire ═══ node 2, bridge cni0 10.244.2.1/24
//!               ├── 10.244.1.5  the guest's pod                            └── 10.244.2.7  a pod
//!               └── 10.244.1.6  a pod
//! ```
//!
//! Service addresses are nodes' DNAT: 10.96.0.10:80 is the guest's port 8080, 10.96.0.20:80 is 10.244.2.7. What leaves
//! the cluster has node 1's address.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd,
};

use passt_rs::sys::{
    Iovecs,
    msg::{self, RECEIVE_MANY, Received},
    sockopt,
};

use super::{
    kernel_guest::KernelGuest,
    lab::{
        Host, LONG, QUIET, Translator, World,
        path::{compare, has, hops, replies},
        servers::{UdpEcho, udp_socket},
        traffic::{ask_udp, download, expect_greeting, file_server, greeter, ping},
        wait_until,
        world::{INTERNET4, POD4 as NODE},
    },
};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 7);
const SERVICE_OF_GUEST: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SERVICE_OF_FAR: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);

/// As a pod's device has it: 50 octets go to VXLAN.
const MTU: u32 = 1450;

/// What both nodes do to packets. A client on the service's own node would be answered past the node: it is masked.
const RULES: &str = "table ip nat {
    chain services {
        ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.1.5:8080
        ip daddr 10.96.0.10 udp dport 53 dnat to 10.244.1.5:5353
        ip daddr 10.96.0.20 tcp dport 80 dnat to 10.244.2.7:80
        ip daddr 10.96.0.20 udp dport 53 dnat to 10.244.2.7:53
    }
    chain pre {
        type nat hook prerouting priority -100;
        jump services
    }
    chain post {
        type nat hook postrouting priority 100;
        ip saddr 10.244.1.0/24 ip daddr 10.244.1.0/24 ct status dnat masquerade
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
    }
}";

struct Cluster {
    guest: KernelGuest,
    near: Host,
    far: Host,
    _translator: Translator,
    /// Node 1 is the pod of this world.
    world: World,
    _node2: Host,
    /// Where the translator runs.
    pod: Host,
}

impl Cluster {
    fn new() -> Option<Self> {
        let world = World::pod()?;
        let node2 = Host::new().expect("node 2");
        let [pod, near, far] = [(); 3].map(|()| Host::new().expect("a pod"));
        world.pod.wire("under", &node2, "under");
        node(&world.pod, 1, 2);
        node(&node2, 2, 1);
        attach(&world.pod, &pod, "vm", GUEST);
        attach(&world.pod, &near, "near", NEAR);
        attach(&node2, &far, "far", FAR);
        pod.allow_low_ports();

        let translator = Translator::start(&pod, &["-t", "8080", "-u", "5353", "-m", "1450"]);
        let guest = KernelGuest::plug(&translator, MTU)?;
        guest.host().allow_ping();
        guest.host().ip("addr add 10.244.1.5/24 dev eth0
             route add default via 10.244.1.1 dev eth0");
        Some(Self {
            guest,
            near,
            far,
            _translator: translator,
            world,
            _node2: node2,
            pod,
        })
    }
}

/// Bridge, VXLAN and rules of node `own`, whose only fellow is node `other`.
fn node(host: &Host, own: u8, other: u8) {
    host.forward();
    // The host's limit would make programs that count hops depend on each other.
    host.sysctl("ipv4/icmp_ratelimit", "0");
    host.ip(&format!(
        "addr add 192.168.50.{own}/24 dev under
         link add cni0 mtu {MTU} type bridge
         link set cni0 up
         addr add 10.244.{own}.1/24 dev cni0
         link add vxlan0 mtu {MTU} type vxlan id 1 dev under local 192.168.50.{own} remote 192.168.50.{other} dstport 4789
         link set vxlan0 up
         addr add 10.244.{own}.0/32 dev vxlan0
         route add 10.244.{other}.0/24 via 10.244.{other}.0 dev vxlan0 onlink"
    ));
    host.nft(RULES);
}

/// Puts `pod` on the node's bridge.
fn attach(node: &Host, pod: &Host, name: &str, addr: Ipv4Addr) {
    let [a, b, c, _] = addr.octets();
    pod.wire("eth0", node, name);
    pod.allow_ping();
    pod.ip(&format!(
        "link set eth0 mtu {MTU}
         addr add {addr}/24 dev eth0
         route add default via {a}.{b}.{c}.1 dev eth0"
    ));
    node.ip(&format!(
        "link set {name} mtu {MTU} master cni0
         link set {name} type bridge_slave hairpin on"
    ));
}

#[test]
fn guest_and_pods_reach_each_other_on_one_node_and_across_nodes() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    let guest = cluster.guest.host();
    let _ssh = greeter(guest, (GUEST, 8080), "guest");
    let _dns = UdpEcho::start(guest, (GUEST, 5353));
    for (pod, addr) in [(&cluster.near, NEAR), (&cluster.far, FAR)] {
        ping(guest, addr);
        let _web = greeter(pod, (addr, 80), "pod");
        let _files = file_server(pod, (addr, 81));
        let _echo = UdpEcho::start(pod, (addr, 53));
        expect_greeting(guest, (addr, 80), &format!("pod greets {GUEST}"));
        download(guest, (addr, 81));
        assert_eq!(ask_udp(guest, (addr, 53), "question"), "question");

        expect_greeting(pod, (GUEST, 8080), &format!("guest greets {addr}"));
        assert_eq!(ask_udp(pod, (GUEST, 5353), "question"), "question");
    }
}

#[test]
fn pods_download_from_the_guest_across_nodes() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    let _files = file_server(cluster.guest.host(), (GUEST, 8080));
    download(&cluster.near, (GUEST, 8080));
    download(&cluster.far, (GUEST, 8080));
    download(&cluster.far, (SERVICE_OF_GUEST, 80));
}

#[test]
fn services_lead_to_the_guest_and_from_it() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    let guest = cluster.guest.host();
    let _web = greeter(guest, (GUEST, 8080), "guest");
    let _dns = UdpEcho::start(guest, (GUEST, 5353));
    // The node stands in for a client of its own bridge.
    let near = "guest greets 10.244.1.1";
    expect_greeting(&cluster.near, (SERVICE_OF_GUEST, 80), near);
    let far = format!("guest greets {FAR}");
    expect_greeting(&cluster.far, (SERVICE_OF_GUEST, 80), &far);
    for pod in [&cluster.near, &cluster.far] {
        assert_eq!(ask_udp(pod, (SERVICE_OF_GUEST, 53), "name"), "name");
    }

    let _web = greeter(&cluster.far, (FAR, 80), "pod");
    let _dns = UdpEcho::start(&cluster.far, (FAR, 53));
    let greeting = format!("pod greets {GUEST}");
    expect_greeting(guest, (SERVICE_OF_FAR, 80), &greeting);
    assert_eq!(ask_udp(guest, (SERVICE_OF_FAR, 53), "name"), "name");
}

/// Whoever asks for the service without being a client of the bridge may be the guest itself.
#[test]
fn the_guest_reaches_its_own_service() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    let guest = cluster.guest.host();
    let _web = greeter(guest, (GUEST, 8080), "guest");
    expect_greeting(guest, (SERVICE_OF_GUEST, 80), "guest greets 10.244.1.1");
}

#[test]
fn the_outside_sees_the_node_in_place_of_the_guest() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    let (guest, outside) = (cluster.guest.host(), &cluster.world.outside);
    let web = greeter(outside, (INTERNET4, 80), "internet");
    let files = file_server(outside, (INTERNET4, 81));
    let echo = UdpEcho::start(outside, (INTERNET4, 53));
    expect_greeting(guest, web.addr(), &format!("internet greets {NODE}"));
    download(guest, files.addr());
    assert_eq!(ask_udp(guest, echo.addr(), "question"), "question");
    ping(guest, INTERNET4);
}

/// The translator is no hop: whichever way the guest looks at the network, it sees what its pod sees.
#[test]
fn guest_and_pod_count_the_same_hops() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    let both = [&cluster.pod, cluster.guest.host()];
    let _web = greeter(&cluster.far, (FAR, 80), "pod");
    for (addr, away) in [(NEAR, 1), (FAR, 3), (INTERNET4, 2)] {
        let text = addr.to_string();
        let found = compare(
            both,
            "ping",
            &["-n", "-c", "2", "-i", "0.1", &text],
            replies,
        );
        let ttl = format!("ttl={}", 65 - away);
        assert!(
            found.len() == 2 && found.iter().all(|line| line.contains(&ttl)),
            "{found:?}"
        );
        if !has("traceroute") {
            continue;
        }
        for method in [&[][..], &["-I"], &["-T", "-p", "80"]] {
            let args = [&["-n", "-q", "1", "-w", "3", "-m", "5"], method, &[&text]].concat();
            let found = compare(both, "traceroute", &args, hops);
            let last = Some((away.to_string(), text.clone()));
            assert_eq!(found.last(), last.as_ref(), "{method:?}");
        }
    }
}

/// The TTL of the next datagram, if one comes soon; others that came are thrown away.
fn take_ttl(socket: &UdpSocket) -> Option<u8> {
    let mut memory = [0; 64];
    let receive = |memory: &mut [u8]| {
        let mut iovecs = Iovecs::new();
        let mut scatter = iovecs.scatter();
        assert!(scatter.push(memory));
        let mut received = [Received::default(); RECEIVE_MANY];
        msg::receive_many(socket.as_fd(), &mut scatter, &mut received).ok()?;
        received[0].marks.ttl
    };
    socket.set_nonblocking(true).expect("non-blocking");
    let mut ttl = None;
    wait_until(QUIET, || {
        ttl = receive(&mut memory);
        ttl.is_some()
    });
    while receive(&mut memory).is_some() {}
    ttl
}

/// And whoever looks at the guest sees it where its pod is.
#[test]
fn packets_of_guest_and_pod_arrive_with_the_same_ttl() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    for (host, addr) in [
        (&cluster.near, NEAR),
        (&cluster.far, FAR),
        (&cluster.world.outside, INTERNET4),
    ] {
        let socket = udp_socket(host, (addr, 9));
        sockopt::set_receive_marks(socket.as_fd(), false).unwrap();
        let ttl = |from: &Host| {
            let sender = udp_socket(from, (Ipv4Addr::UNSPECIFIED, 0));
            let mut ttl = None;
            wait_until(LONG, || {
                sender.send_to(b"hello", (addr, 9)).unwrap();
                ttl = take_ttl(&socket);
                ttl.is_some()
            });
            ttl.expect("a datagram")
        };
        assert_eq!(ttl(cluster.guest.host()), ttl(&cluster.pod), "{addr}");
    }
    // Forwarded ports: what comes in shows how far away its sender is.
    for (host, away) in [(&cluster.near, 0), (&cluster.far, 2)] {
        let server = udp_socket(cluster.guest.host(), (GUEST, 5353));
        sockopt::set_receive_marks(server.as_fd(), false).unwrap();
        let client = udp_socket(host, (Ipv4Addr::UNSPECIFIED, 0));
        let shown = wait_until(LONG, || {
            client.send_to(b"hello", (GUEST, 5353)).unwrap();
            take_ttl(&server) == Some(64 - away)
        });
        assert!(shown, "{away} hops away");
    }
}
