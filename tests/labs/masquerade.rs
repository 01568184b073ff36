//! The guest has addresses of its own (KubeVirt's masquerade, libvirt's `<ip>`): the pod's are what the world sees, both
//! ways, and the guest's never leave it. Looked at on every hop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    ICMP, TCP, UDP,
    kernel_guest::KernelGuest,
    lab::{
        Capture, Host, Translator, World,
        servers::UdpEcho,
        traffic::{ask_udp, download, expect_greeting, file_server, greeter, ping},
        world::{GATEWAY4, INTERNET4, INTERNET6, POD4, POD6},
    },
};

const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);

/// What the guest takes for its router.
const ROUTER4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);

/// The pod's gateway on the wire, as IPv6 clients are seen by the guest.
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x233, 0x70, 0, 0, 0, 0, 1);

const OPTIONS: &[&str] = &[
    "-a",
    "10.0.2.2",
    "-n",
    "24",
    "-g",
    "10.0.2.1",
    "-a",
    "fd10:0:2::2",
    "-t",
    "8080",
    "-u",
    "5353",
];

struct Scene {
    guest: KernelGuest,
    /// What passes the guest's device, the pod's and the one outside.
    hops: [Capture; 3],
    world: World,
    _translator: Translator,
}

impl Scene {
    fn new() -> Option<Self> {
        let world = World::pod()?;
        let translator = Translator::start(&world.pod, OPTIONS);
        let guest = KernelGuest::plug(&translator, 1500)?;
        guest.host().allow_ping();
        guest.host().ip("addr add 10.0.2.2/24 dev eth0
             addr add fd10:0:2::2/128 dev eth0 nodad
             route add default via 10.0.2.1 dev eth0
             route add default via fe80::1 dev eth0");
        let hop = |host: &Host, device| Capture::start(host, device);
        let hops = [
            hop(guest.host(), "eth0"),
            hop(&world.pod, "eth0"),
            hop(&world.outside, "pod0"),
        ];
        Some(Self {
            guest,
            hops,
            world,
            _translator: translator,
        })
    }

    /// Each hop saw the packet: behind the guest's device with the pod's address in place of the guest's.
    fn expect_outbound(&self, protocol: u8, remote: impl Into<SocketAddr>) {
        let remote = remote.into();
        let (guest, pod): (IpAddr, IpAddr) = match remote {
            SocketAddr::V4(_) => (GUEST4.into(), POD4.into()),
            SocketAddr::V6(_) => (GUEST6.into(), POD6.into()),
        };
        let [inside, at_pod, outside] = &self.hops;
        inside.expect(protocol, (guest, 0), remote);
        at_pod.expect(protocol, (pod, 0), remote);
        outside.expect(protocol, (pod, 0), remote);
        // And the answers come back the same way.
        outside.expect(protocol, remote, (pod, 0));
        at_pod.expect(protocol, remote, (pod, 0));
        inside.expect(protocol, remote, (guest, 0));
    }

    /// Each hop saw the packet: up to the guest's device with the pod's address in place of the guest's.
    fn expect_inbound(&self, protocol: u8, client: IpAddr, port: u16) {
        let (guest, pod): (IpAddr, IpAddr) = match client {
            IpAddr::V4(_) => (GUEST4.into(), POD4.into()),
            IpAddr::V6(_) => (GUEST6.into(), POD6.into()),
        };
        let [inside, at_pod, outside] = &self.hops;
        outside.expect(protocol, (client, 0), (pod, port));
        at_pod.expect(protocol, (client, 0), (pod, port));
        inside.expect(protocol, (client, 0), (guest, port));
        inside.expect(protocol, (guest, port), (client, 0));
        at_pod.expect(protocol, (pod, port), (client, 0));
        outside.expect(protocol, (pod, port), (client, 0));
    }

    /// The guest's addresses were seen by nobody but the guest.
    fn assert_hidden(&self) {
        for hop in &self.hops[1..] {
            hop.assert_none(|addr| match addr {
                IpAddr::V4(v4) => v4.octets().starts_with(&[10, 0, 2]),
                IpAddr::V6(v6) => v6 == GUEST6,
            });
        }
    }
}

#[test]
fn outbound_traffic_leaves_with_the_pods_address() {
    let Some(scene) = Scene::new() else { return };
    let (guest, outside) = (scene.guest.host(), &scene.world.outside);
    for (remote, pod) in [
        (IpAddr::from(INTERNET4), IpAddr::from(POD4)),
        (INTERNET6.into(), POD6.into()),
    ] {
        let greeting = format!("internet greets {pod}");
        let server = greeter(outside, (remote, 80), "internet");
        expect_greeting(guest, server.addr(), &greeting);
        scene.expect_outbound(TCP, (remote, 80));
        let files = file_server(outside, (remote, 81));
        download(guest, files.addr());

        let echo = UdpEcho::start(outside, (remote, 53));
        assert_eq!(ask_udp(guest, echo.addr(), "question"), "question");
        assert!(echo.clients().iter().all(|client| client.ip() == pod));
        scene.expect_outbound(UDP, (remote, 53));
    }
    ping(guest, INTERNET4);
    scene.expect_outbound(ICMP, (INTERNET4, 0));
    ping(guest, INTERNET6);
    scene.assert_hidden();
}

#[test]
fn inbound_traffic_to_the_pods_address_reaches_the_guest() {
    let Some(scene) = Scene::new() else { return };
    let (guest, outside) = (scene.guest.host(), &scene.world.outside);
    for (own, pod, client) in [
        (
            IpAddr::from(GUEST4),
            IpAddr::from(POD4),
            IpAddr::from(GATEWAY4),
        ),
        (GUEST6.into(), POD6.into(), OUTSIDE6.into()),
    ] {
        let server = greeter(guest, (own, 8080), "guest");
        let greeting = format!("guest greets {client}");
        expect_greeting(outside, (pod, 8080), &greeting);
        scene.expect_inbound(TCP, client, 8080);
        drop(server);
        let _files = file_server(guest, (own, 8080));
        download(outside, (pod, 8080));

        let echo = UdpEcho::start(guest, (own, 5353));
        assert_eq!(ask_udp(outside, (pod, 5353), "question"), "question");
        assert!(echo.clients().iter().all(|peer| peer.ip() == client));
        scene.expect_inbound(UDP, client, 5353);
    }
    scene.assert_hidden();
}

/// As virt-launcher's neighbours in the pod do: by the pod's address, whose owner the guest can answer, and by loopback,
/// which it sees as its router.
#[test]
fn the_pod_itself_reaches_the_guest() {
    let Some(scene) = Scene::new() else { return };
    let _server = greeter(scene.guest.host(), (GUEST4, 8080), "guest");
    let pod = &scene.world.pod;
    expect_greeting(pod, (POD4, 8080), &format!("guest greets {POD4}"));
    let loopback = (Ipv4Addr::LOCALHOST, 8080);
    expect_greeting(pod, loopback, &format!("guest greets {ROUTER4}"));
    scene.assert_hidden();
}
