//! The neighbours of the host are the guest's: where the host's kernel knows them the guest finds them under their own link
//! addresses (ARP, neighbour discovery), and hears of it when they move.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod kernel_guest;
mod lab;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use guest::{
    Icmp, Peer, Scene, Udp, Wire,
    dhcpv6::GUEST_LL,
    frame::{ETHERTYPE_ARP, GUEST_MAC, OUR_MAC, ethernet, of_type},
    guest_addr,
};
use kernel_guest::KernelGuest;
use lab::{
    LONG, QUIET, Translator, World,
    servers::{TcpServer, UdpEcho},
    traffic::ping,
    wait_until,
    world::{GATEWAY4, INTERNET4, INTERNET6, POD4},
};

const NEIGHBOUR4: Ipv4Addr = Ipv4Addr::new(10, 233, 70, 7);
const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x233, 0x70, 0, 0, 0, 0, 7);

/// The link addresses of who has these and of another.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];

const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Solicited and router, in the first word of an advertisement.
const SOLICITED: u32 = 1 << 30;
const ROUTER: u32 = 1 << 31;

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// Who is said to be where, by ARP or a neighbour advertisement, and whether to everybody.
fn told(frame: &[u8]) -> Option<(IpAddr, [u8; 6], bool)> {
    let to_all = frame[0] & 1 == 1;
    let source: [u8; 6] = *frame[6..].first_chunk()?;
    if let Some(arp) = of_type(frame, ETHERTYPE_ARP) {
        let (mac, addr) = (*arp[8..].first_chunk()?, *arp[14..].first_chunk::<4>()?);
        // A question, unless it is an announcement (RFC 5227, section 3).
        if arp[7] == 1 && arp[24..28] != addr {
            return None;
        }
        assert_eq!((source, to_all), (mac, arp[7] == 1));
        return Some((addr.into(), mac, to_all));
    }
    let message = Icmp::of_frame(frame).filter(|m| m.kind == NEIGHBOUR_ADVERTISEMENT)?;
    let addr = IpAddr::from(*message.body.first_chunk::<16>()?);
    let mac = *message.body[18..].first_chunk()?;
    assert_eq!((message.src, message.ttl, source), (addr, 255, mac));
    assert_eq!(message.word & SOLICITED == 0, to_all, "RFC 4861 4.4");
    Some((addr, mac, to_all))
}

/// Asks who has an address, as a host does.
fn ask(wire: &Wire, addr: IpAddr) {
    wire.send(&match addr {
        IpAddr::V4(addr) => {
            let question = [0, 1, 8, 0, 6, 4, 0, 1];
            let packet = [
                &question,
                &GUEST_MAC[..],
                &POD4.octets(),
                &[0; 6],
                &addr.octets(),
            ];
            ethernet([0xff; 6], ETHERTYPE_ARP, &packet.concat())
        }
        IpAddr::V6(addr) => {
            let body = [&addr.octets()[..], &[1, 1], &GUEST_MAC].concat();
            let [.., a, b] = addr.segments();
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (a & 0xff), b);
            Icmp::new(
                GUEST_LL.into(),
                group.into(),
                NEIGHBOUR_SOLICITATION,
                0,
                &body,
            )
            .frame()
        }
    });
}

/// Where the answer says an address is.
fn found(wire: &Wire, addr: impl Into<IpAddr>) -> [u8; 6] {
    let addr = addr.into();
    ask(wire, addr);
    wire.expect("answer", |frame| {
        told(frame)
            .filter(|&(whose, _, to_all)| whose == addr && !to_all)
            .map(|(_, mac, _)| mac)
    })
}

/// Where an announcement says an address is.
fn announced(wire: &Wire, addr: IpAddr) -> [u8; 6] {
    wire.expect("announcement", |frame| {
        told(frame)
            .filter(|&(whose, _, to_all)| whose == addr && to_all)
            .map(|(_, mac, _)| mac)
    })
}

/// The host's kernel is told where both neighbours are; its state is one it may use.
fn know(scene: &Scene, mac: [u8; 6], state: &str) {
    for addr in [NEIGHBOUR4.to_string(), NEIGHBOUR6.to_string()] {
        scene.world.pod.ip(&format!(
            "neigh replace {addr} lladdr {} dev eth0 nud {state}",
            text(mac)
        ));
    }
}

fn both() -> [IpAddr; 2] {
    [NEIGHBOUR4.into(), NEIGHBOUR6.into()]
}

/// Regression N12.
#[test]
fn a_neighbour_is_at_its_own_address_as_soon_as_the_host_knows_it_and_as_long() {
    let Some(scene) = Scene::new(&[]) else { return };
    for addr in both() {
        assert_eq!(found(&scene.wire, addr), OUR_MAC);
    }
    for (mac, state) in [(MAC, "stale"), (OTHER, "permanent"), (MAC, "reachable")] {
        know(&scene, mac, state);
        for addr in both() {
            assert_eq!(announced(&scene.wire, addr), mac, "{state}");
        }
        for addr in both() {
            assert_eq!(found(&scene.wire, addr), mac, "{state}");
        }
    }
    // Known already: another state is no news.
    know(&scene, MAC, "permanent");
    scene.wire.never(QUIET, "an announcement", told);
    for addr in both() {
        scene.world.pod.ip(&format!("neigh del {addr} dev eth0"));
        let forgotten = || found(&scene.wire, addr) == OUR_MAC;
        assert!(wait_until(LONG, forgotten), "{addr}");
    }
}

/// Its own address elsewhere is one that a host gives up (RFC 5227, section 2.4).
#[test]
fn a_guest_is_not_told_that_its_own_addresses_are_elsewhere() {
    let Some(scene) = Scene::new(&[]) else { return };
    let own = [
        "10.233.70.76",
        "fd10:233:70::76",
        "10.233.70.77",
        "fd10:233:70::77",
    ];
    let own: [IpAddr; 4] = own.map(|addr| addr.parse().unwrap());
    for addr in own {
        let remote = if addr.is_ipv4() {
            INTERNET4.into()
        } else {
            INTERNET6.into()
        };
        let ping = Icmp::echo_request(addr, remote, 7, 1, b"here");
        scene.wire.ask("echo reply", &ping.frame(), |frame| {
            Icmp::of_frame(frame).filter(|reply| reply.is_echo_reply() && reply.dst == addr)
        });
    }
    for addr in own {
        let mac = text(OTHER);
        let neighbour = format!("neigh replace {addr} lladdr {mac} dev eth0 nud permanent");
        scene.world.pod.ip(&neighbour);
    }
    know(&scene, MAC, "permanent");
    let mut others = both().to_vec();
    while !others.is_empty() {
        let (addr, ..) = scene.wire.expect("announcement", told);
        assert!(!own.contains(&addr), "{addr}");
        others.retain(|&other| other != addr);
    }
}

/// N17: what is known before the start, or changes meanwhile.
#[test]
fn neighbours_known_before_the_start_are_known() {
    let Some(world) = World::pod() else { return };
    for n in 2..40 {
        world.pod.ip(&format!(
            "neigh add 10.233.70.{n} lladdr 02:00:00:00:00:{n:02x} dev eth0 nud permanent"
        ));
    }
    let translator = Translator::start(&world.pod, &[]);
    let wire = Wire::new(translator.connect());
    for n in 2..40 {
        let addr = Ipv4Addr::new(10, 233, 70, n);
        assert_eq!(found(&wire, addr), [2, 0, 0, 0, 0, n]);
    }
}

#[test]
fn a_neighbour_says_whether_it_is_a_router() {
    let Some(scene) = Scene::new(&[]) else { return };
    for (flag, router) in [("", 0), ("router", ROUTER)] {
        scene.world.pod.ip(&format!(
            "neigh replace {NEIGHBOUR6} lladdr {} dev eth0 nud permanent {flag}",
            text(MAC)
        ));
        let known = || {
            ask(&scene.wire, NEIGHBOUR6.into());
            scene.wire.expect("advertisement", |frame| {
                Icmp::of_frame(frame)
                    .filter(|m| m.kind == NEIGHBOUR_ADVERTISEMENT && m.word & SOLICITED != 0)
                    .map(|m| m.word & ROUTER == router && told(frame).unwrap().1 == MAC)
            })
        };
        assert!(wait_until(LONG, known), "{flag}");
    }
}

/// The gateway stands for the host itself; where it does not, it is a neighbour, and whatever is beyond comes from it.
#[test]
fn the_gateway_is_a_neighbour_only_where_it_is_not_the_host() {
    for (options, gateway) in [(&[][..], OUR_MAC), (&["--no-map-gw"], MAC)] {
        let Some(scene) = Scene::new(options) else {
            return;
        };
        let _server = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
        scene.world.pod.ip(&format!(
            "neigh replace {GATEWAY4} lladdr {} dev eth0 nud permanent
             neigh replace {NEIGHBOUR4} lladdr {} dev eth0 nud permanent",
            text(MAC),
            text(OTHER)
        ));
        assert_eq!(announced(&scene.wire, NEIGHBOUR4.into()), OTHER);
        assert_eq!(found(&scene.wire, GATEWAY4), gateway);
        scene
            .world
            .pod
            .ip(&format!("neigh del {GATEWAY4} dev eth0"));
        if !options.is_empty() {
            // The true one, now that it is asked for.
            ping(&scene.world.pod, GATEWAY4);
            announced(&scene.wire, GATEWAY4.into());
        }
        let gateway = found(&scene.wire, GATEWAY4);
        let server: SocketAddr = (INTERNET4, 7).into();
        let local = guest_addr(server, 5000);
        scene.wire.send(&Udp::new(local, server, b"hello").frame());
        scene.wire.expect("answer", |frame| {
            Udp::of_frame(frame)?;
            assert_eq!(frame[6..12], gateway);
            Some(())
        });
    }
}

/// What a neighbour sends comes from its own link address, and what is sent there arrives.
#[test]
fn frames_of_a_neighbour_come_from_its_own_address() {
    let Some(scene) = Scene::new(&[]) else { return };
    let outside = &scene.world.outside;
    outside.ip(&format!(
        "link set pod0 address {}
         addr add {NEIGHBOUR4}/24 dev pod0
         addr add {NEIGHBOUR6}/64 dev pod0 nodad",
        text(MAC)
    ));
    for addr in both() {
        let _servers = UdpEcho::start(outside, (addr, 7));
        let _greeter = TcpServer::echo(outside, (addr, 7));
        ping(&scene.world.pod, addr);
        assert_eq!(announced(&scene.wire, addr), MAC);
        let server = SocketAddr::new(addr, 7);
        let from_there = |frame: &[u8]| {
            assert_eq!(frame[6..12], MAC);
            Some(())
        };
        let send = |frame: &[u8]| {
            // As a guest does that has heard the announcement.
            let mut frame = frame.to_vec();
            frame[..6].copy_from_slice(&MAC);
            scene.wire.send(&frame);
        };
        send(&Udp::new(guest_addr(server, 5000), server, b"hello").frame());
        scene.wire.expect("datagram", |frame| {
            Udp::of_frame(frame).and_then(|_| from_there(frame))
        });
        let closed = SocketAddr::new(addr, 9);
        send(&Udp::new(guest_addr(server, 5000), closed, b"hello").frame());
        scene.wire.expect("ICMP error", |frame| {
            let error = Icmp::of_frame(frame).filter(Icmp::is_unreachable);
            error.and_then(|_| from_there(frame))
        });
        let local = guest_addr(server, 0).ip();
        send(&Icmp::echo_request(local, addr, 7, 1, b"hello").frame());
        scene.wire.expect("echo reply", |frame| {
            let reply = Icmp::of_frame(frame).filter(Icmp::is_echo_reply);
            reply.and_then(|_| from_there(frame))
        });
        let peer = Peer::new(&scene.wire, guest_addr(server, 5000), server, 7);
        send(&peer.segment(guest::frame::SYN, &[]).frame());
        scene.wire.expect("SYN,ACK", |frame| {
            peer.mine(frame).and_then(|_| from_there(frame))
        });
    }
}

/// An unmodified stack finds its host's neighbours, and follows them.
#[test]
fn a_linux_guest_knows_the_neighbours_of_its_host() {
    let Some(world) = World::pod() else { return };
    let set = |mac| {
        world
            .outside
            .ip(&format!("link set pod0 address {}", text(mac)));
    };
    set(MAC);
    world.outside.ip(&format!(
        "addr add {NEIGHBOUR4}/24 dev pod0
         addr add {NEIGHBOUR6}/64 dev pod0 nodad"
    ));
    let translator = Translator::start(&world.pod, &[]);
    let Some(guest) = KernelGuest::plug(&translator, 1500) else {
        return;
    };
    guest.number();
    guest.host().allow_ping();
    for mac in [MAC, OTHER] {
        set(mac);
        for addr in both() {
            let addr = addr.to_string();
            // Of the host's neighbour, or it would wait for a minute to notice.
            world.pod.ip(&format!("neigh flush to {addr}"));
            ping(guest.host(), addr.parse::<IpAddr>().unwrap());
            let known = || {
                let table = guest.host().command("ip", &["neigh", "show", "to", &addr]);
                table.contains(&text(mac))
            };
            assert!(wait_until(LONG, known), "{addr}");
            ping(guest.host(), addr.parse::<IpAddr>().unwrap());
        }
    }
}
