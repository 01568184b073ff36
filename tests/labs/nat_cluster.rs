//! Two guests on one machine with the addresses of libvirt's NAT network, each behind a translator of its own: they reach
//! the world, the machine by the router's address, and each other through forwarded ports. Then one is a router itself.

use std::net::Ipv4Addr;

use super::{
    kernel_guest::KernelGuest,
    lab::{
        Host, Translator, World,
        servers::UdpEcho,
        traffic::{ask_udp, download, expect_greeting, expect_refusal, file_server, greeter, ping},
        world::{INTERNET4, POD4},
    },
};

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 1);

/// A guest behind its translator.
struct Node {
    guest: KernelGuest,
    addr: Ipv4Addr,
    _translator: Translator,
}

impl Node {
    /// 192.168.122.`number`, with these ports of the machine.
    fn start(machine: &Host, number: u8, ports: &[&str]) -> Option<Self> {
        let addr = Ipv4Addr::new(192, 168, 122, number);
        let (own, router) = (addr.to_string(), ROUTER.to_string());
        let mut args = vec!["-a", &own, "-n", "24", "-g", &router];
        args.extend(ports);
        let translator = Translator::start(machine, &args);
        let guest = KernelGuest::plug(&translator, 1500)?;
        guest.host().allow_ping();
        guest.host().ip(&format!(
            "addr add {addr}/24 dev eth0
             route add default via {router} dev eth0"
        ));
        Some(Self {
            guest,
            addr,
            _translator: translator,
        })
    }

    fn host(&self) -> &Host {
        self.guest.host()
    }
}

#[test]
fn guests_reach_the_world_the_machine_and_each_other() {
    let Some(world) = World::pod() else { return };
    let Some((a, b)) = two(&world) else { return };
    let internet = greeter(&world.outside, (INTERNET4, 80), "internet");
    // Not for the outside: only the machine itself, and so its guests, may use it.
    let machine = greeter(&world.pod, (Ipv4Addr::LOCALHOST, 9000), "machine");
    let machine_udp = UdpEcho::start(&world.pod, (Ipv4Addr::LOCALHOST, 9000));
    for node in [&a, &b] {
        expect_greeting(
            node.host(),
            internet.addr(),
            &format!("internet greets {POD4}"),
        );
        ping(node.host(), INTERNET4);
        let by_router = (ROUTER, machine.addr().port());
        expect_greeting(node.host(), by_router, "machine greets 127.0.0.1");
        let by_router = (ROUTER, machine_udp.addr().port());
        assert_eq!(ask_udp(node.host(), by_router, "question"), "question");
    }
    for (from, to, port) in [(&a, &b, 11), (&b, &a, 10)] {
        let _ssh = greeter(to.host(), (to.addr, 22), "guest");
        let _files = file_server(to.host(), (to.addr, 80));
        let _dns = UdpEcho::start(to.host(), (to.addr, 53));
        // Through the machine's loopback, and by its address, which the other guest does not have.
        expect_greeting(
            from.host(),
            (ROUTER, 2200 + port),
            &format!("guest greets {ROUTER}"),
        );
        expect_greeting(
            from.host(),
            (POD4, 2200 + port),
            &format!("guest greets {POD4}"),
        );
        download(from.host(), (ROUTER, 8000 + port));
        assert_eq!(ask_udp(from.host(), (ROUTER, 5300 + port), "name"), "name");
        download(&world.outside, (POD4, 8000 + port));
    }
    expect_refusal(a.host(), (ROUTER, 2299));
}

#[test]
fn a_guest_is_the_router_of_hosts_behind_it() {
    let Some(world) = World::pod() else { return };
    let Some((a, b)) = two(&world) else { return };
    let inner = Host::new().expect("a host behind the guest");
    inner.allow_ping();
    a.host().wire("lan0", &inner, "eth0");
    a.host().ip("addr add 10.99.0.1/24 dev lan0");
    inner.ip("addr add 10.99.0.2/24 dev eth0
         route add default via 10.99.0.1 dev eth0");
    a.host().forward();
    a.host().nft(
        "table ip nat {
            chain pre {
                type nat hook prerouting priority -100;
                iifname eth0 tcp dport 8443 dnat to 10.99.0.2:443
            }
            chain post {
                type nat hook postrouting priority 100;
                oifname eth0 masquerade
            }
        }",
    );

    let internet = greeter(&world.outside, (INTERNET4, 80), "internet");
    let files = file_server(&world.outside, (INTERNET4, 81));
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 53));
    expect_greeting(&inner, internet.addr(), &format!("internet greets {POD4}"));
    download(&inner, files.addr());
    assert_eq!(ask_udp(&inner, echo.addr(), "question"), "question");
    ping(&inner, INTERNET4);

    let machine = greeter(&world.pod, (Ipv4Addr::LOCALHOST, 9000), "machine");
    expect_greeting(
        &inner,
        (ROUTER, machine.addr().port()),
        "machine greets 127.0.0.1",
    );
    let _ssh = greeter(b.host(), (b.addr, 22), "guest");
    expect_greeting(&inner, (ROUTER, 2211), &format!("guest greets {ROUTER}"));

    // Inwards, through both translations.
    let _web = file_server(&inner, ([10, 99, 0, 2], 443));
    download(&world.outside, (POD4, 8443));
    download(b.host(), (ROUTER, 8443));
}

fn two(world: &World) -> Option<(Node, Node)> {
    let (a, b) = (
        ["-t", "2210:22,8010:80,8443", "-u", "5310:53"],
        ["-t", "2211:22,8011:80", "-u", "5311:53"],
    );
    let (a, b) = (
        Node::start(&world.pod, 10, &a)?,
        Node::start(&world.pod, 11, &b)?,
    );
    Some((a, b))
}
