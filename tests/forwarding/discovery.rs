//! Inbound works before the guest has said a word: it is looked for, and what cannot wait in a socket is held.

use std::{
    io::Write,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use crate::{
    guest::{
        Guest, Icmp, Peer, Scene, Tcp, Udp, Wire, both,
        frame::{ETHERTYPE_ARP, GUEST_MAC, OTHER_MAC, SYN, ethernet, of_type},
        neighbour_of,
    },
    lab::{
        QUIET, Setup, World,
        servers::udp_socket,
        uninterrupted,
        world::{INTERNET4, INTERNET6, POD4, POD6},
    },
    tcp::connect,
};

/// Says once that the guest is at its addresses, as hosts do when they take them.
pub fn announce(wire: &Wire) {
    wire.send(&notice(POD4.into()));
    wire.send(&notice(POD6.into()));
}

/// Says that the guest is at this address.
fn notice(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => arp(1, v4.octets(), v4.octets()),
        IpAddr::V6(v6) => advertisement(v6),
    }
}

/// An ARP packet of the guest: operation, sender, target.
fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let body = [&head[..], &GUEST_MAC, &sender, &[0; 6], &target].concat();
    ethernet([0xff; 6], ETHERTYPE_ARP, &body)
}

fn advertisement(addr: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let body = [&addr.octets()[..], &[2, 1], &GUEST_MAC].concat();
    Icmp::new(addr.into(), all_nodes.into(), 136, 0x2000_0000, &body).frame()
}

/// Waits until somebody asks for the guest's address.
pub fn await_question(wire: &Wire, addr: IpAddr) {
    match addr {
        IpAddr::V4(v4) => wire.expect("ARP request", |frame| {
            let arp = of_type(frame, ETHERTYPE_ARP)?;
            (arp[7] == 1 && arp[24..28] == v4.octets()).then_some(())
        }),
        IpAddr::V6(v6) => wire.expect("neighbour solicitation", |frame| {
            let icmp = Icmp::of_frame(frame)?;
            let ours = icmp.kind == 135 && icmp.body.get(..16) == Some(&v6.octets()[..]);
            ours.then_some(())
        }),
    }
}

/// The same, and answers.
fn answer_question(wire: &Wire, addr: IpAddr) {
    await_question(wire, addr);
    wire.send(&match addr {
        IpAddr::V4(v4) => arp(2, v4.octets(), [0; 4]),
        IpAddr::V6(v6) => advertisement(v6),
    });
}

/// Consumers: muvm#178, crun#2147; the guest has not said a word.
#[test]
fn a_silent_guest_is_found_and_gets_the_connection() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    for addr in both(POD4, POD6, 80) {
        let _client = connect(&scene.world.outside, addr);
        answer_question(&scene.wire, addr.ip());
        let mut peer = Peer::accept(&scene.wire, 80);
        peer.send_data(b"hello");
        peer.expect_acked();
    }
}

/// Regression T30: SSH at boot.
#[test]
fn a_connection_waits_for_a_guest_that_is_not_there_yet() {
    let Some(world) = World::pod() else { return };
    let translator = Setup::new(&["-t", "22"]).start(&world.pod);
    let client = connect(&world.outside, (POD4, 22).into());
    // The guest boots meanwhile: the time itself is what is tested.
    std::thread::sleep(Duration::from_millis(1500));
    let mut guest = Guest::online(translator.connect(), 1500);
    let server = guest.listen(22);
    assert_eq!(guest.accept(server), client.local_addr().unwrap());
}

/// Its machine is started anew, and the client tries meanwhile.
#[test]
fn a_connection_waits_for_a_guest_that_comes_again() {
    let Some(world) = World::pod() else { return };
    let translator = Setup::new(&["-t", "22"]).start(&world.pod);
    for _ in 0..2 {
        let client = connect(&world.outside, (POD4, 22).into());
        let mut guest = Guest::online(translator.connect(), 1500);
        let server = guest.listen(22);
        assert_eq!(guest.accept(server), client.local_addr().unwrap());
        drop(guest);
        translator.expect_log("Client connection closed");
    }
}

/// A client that sends the datagrams 0 to 4.
fn client_of_five(scene: &Scene, from: SocketAddr, to: SocketAddr) -> UdpSocket {
    let client = udp_socket(&scene.world.outside, from);
    for n in 0..5 {
        client.send_to(&[n], to).unwrap();
    }
    client
}

/// Regressions U32 and U26: nothing of a silent guest's first datagrams is lost or comes out of order; bugs.passt.top 16.
#[test]
fn datagrams_for_a_silent_guest_wait_until_it_is_found() {
    let Some(scene) = Scene::new(&["-u", "5000:53"]) else {
        return;
    };
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        let client = client_of_five(&scene, from, to);
        answer_question(&scene.wire, to.ip());
        for n in 0..5 {
            let datagram = scene.wire.expect("datagram", Udp::of_frame);
            assert_eq!(datagram.payload, [n]);
            assert_eq!(datagram.dst, SocketAddr::new(to.ip(), 53));
            assert_eq!(datagram.src, client.local_addr().unwrap());
        }
    }
}

#[test]
fn datagrams_for_a_guest_that_is_never_found_are_given_up() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    let idle = scene.translator.idle_fd_count();
    let client = udp_socket(&scene.world.outside, (INTERNET4, 0));
    client.send_to(b"anybody?", (POD4, 5000)).unwrap();
    scene.wire.expect("ARP request", |frame| {
        of_type(frame, ETHERTYPE_ARP).map(|_| ())
    });
    scene.translator.expect_fd_count(idle);
}

/// What a guest that autoconfigures has for an address.
const CHOSEN: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x233, 0x70, 0, 0x5054, 0xff, 0xfe12, 0x3456);

/// Asks whether anybody else has it (RFC 4862, section 5.4).
fn probe() -> Vec<u8> {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff12, 0x3456);
    let nobody = Ipv6Addr::UNSPECIFIED;
    Icmp::new(nobody.into(), group.into(), 135, 0, &CHOSEN.octets()).frame()
}

/// Hears only what is sent to this MAC address, or to all.
fn heard_at(mac: [u8; 6], frame: &[u8]) -> bool {
    frame[0] & 1 == 1 || frame[..6] == mac
}

/// It changed its MAC address, and had nothing to say since.
#[test]
fn a_guest_that_does_not_answer_is_asked_where_it_is() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    for addr in both(POD4, POD6, 80) {
        scene.wire.speak_as(GUEST_MAC);
        announce(&scene.wire);
        scene.wire.speak_as(OTHER_MAC);
        let _client = connect(&scene.world.outside, addr);
        answer_question(&scene.wire, addr.ip());
        let syn = scene.wire.expect("SYN", |frame| {
            Tcp::of_frame(frame).filter(|s| s.has(SYN) && heard_at(OTHER_MAC, frame))
        });
        Peer::answer(&scene.wire, &syn).rst();
    }
}

/// The same, while a connection is idle.
#[test]
fn a_guest_that_does_not_acknowledge_is_asked_where_it_is() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    for addr in both(POD4, POD6, 80) {
        scene.wire.speak_as(GUEST_MAC);
        announce(&scene.wire);
        let mut client = connect(&scene.world.outside, addr);
        let mut peer = Peer::accept(&scene.wire, 80);
        client.write_all(b"hello").unwrap();
        scene.wire.speak_as(OTHER_MAC);
        answer_question(&scene.wire, addr.ip());
        scene.wire.expect("data", |frame| {
            let segment = Tcp::of_frame(frame)?;
            (heard_at(OTHER_MAC, frame) && segment.payload == b"hello").then_some(())
        });
        peer.rst();
    }
}

/// The guest says something from an address that is new, and datagrams alone never miss an answer.
#[test]
fn a_guest_that_got_another_mac_address_is_asked_where_a_silent_address_is() {
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        let Some(scene) = Scene::new(&["-u", "5000"]) else {
            return;
        };
        let client = udp_socket(&scene.world.outside, from);
        scene.wire.speak_as(GUEST_MAC);
        announce(&scene.wire);
        scene.wire.speak_as(OTHER_MAC);
        let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let own = "fe80::5054:ff:fe12:3457".parse().unwrap();
        let ask = Icmp::new(own, all_routers.into(), 133, 0, &[]).frame();
        scene.wire.ask("router advertisement", &ask, |frame| {
            Icmp::of_frame(frame).filter(|icmp| icmp.kind == 134)
        });
        client.send_to(b"lost", to).unwrap();
        answer_question(&scene.wire, to.ip());
        scene.wire.ask("router advertisement", &ask, |frame| {
            Icmp::of_frame(frame).filter(|icmp| icmp.kind == 134)
        });
        client.send_to(b"found", to).unwrap();
        scene.wire.expect("datagram", |frame| {
            let udp = Udp::of_frame(frame)?;
            (heard_at(OTHER_MAC, frame) && udp.payload == b"found").then_some(())
        });
    }
}

/// A guest that only autoconfigured shows its address by asking whether anybody else has it.
#[test]
fn an_address_the_guest_chose_itself_is_found() {
    let Some(scene) = Scene::new(&["-t", "80"]) else {
        return;
    };
    scene.wire.send(&probe());
    let _client = connect(&scene.world.outside, (POD6, 80).into());
    answer_question(&scene.wire, CHOSEN.into());
    let peer = Peer::accept(&scene.wire, 80);
    assert_eq!(peer.local.ip(), CHOSEN);
}

/// It has one address only, and not the one given: by itself it need say no more than that.
#[test]
fn a_connection_waits_for_a_guest_that_autoconfigures() {
    for is_silent in [true, false] {
        let Some(scene) = Scene::new(&["-t", "22"]) else {
            return;
        };
        let mut client = connect(&scene.world.outside, (POD6, 22).into());
        await_question(&scene.wire, POD6.into());
        scene.wire.send(&probe());
        if is_silent {
            answer_question(&scene.wire, CHOSEN.into());
        } else {
            scene.wire.send(&advertisement(CHOSEN));
        }
        let mut peer = Peer::accept(&scene.wire, 22);
        assert_eq!(peer.local.ip(), CHOSEN);
        assert_eq!(peer.remote, client.local_addr().unwrap());
        client.write_all(b"hello").unwrap();
        assert_eq!(peer.read(5), b"hello");
    }
}

/// Regression U26, of datagrams that were held for the address given.
#[test]
fn datagrams_go_where_the_guest_turns_up_and_in_order() {
    let Some(scene) = Scene::new(&["-u", "5000:53"]) else {
        return;
    };
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        let client = client_of_five(&scene, from, to);
        await_question(&scene.wire, to.ip());
        let found = SocketAddr::new(neighbour_of(to).ip(), 53);
        scene.wire.send(&notice(found.ip()));
        let from = client.local_addr().unwrap();
        for n in 0..5 {
            let datagram = scene.wire.expect("datagram", Udp::of_frame);
            assert_eq!(datagram, Udp::new(from, found, &[n]));
        }
        scene.wire.send(&Udp::new(found, from, b"answer").frame());
        let (len, answered) = uninterrupted(|| client.recv_from(&mut [0; 8])).unwrap();
        assert_eq!((len, answered), (6, to));
    }
}

/// Whoever says where the guest is means that.
#[test]
fn a_connection_to_an_address_of_the_guests_waits_for_that_one() {
    let Some(scene) = Scene::new(&["-4", "-t", "22:10.233.70.50"]) else {
        return;
    };
    let _client = connect(&scene.world.outside, (POD4, 22).into());
    await_question(&scene.wire, POD4.into());
    scene
        .wire
        .send(&notice(neighbour_of((POD4, 22).into()).ip()));
    scene.wire.never(QUIET, "a SYN", Tcp::of_frame);
    scene.wire.send(&notice(POD4.into()));
    let peer = Peer::accept(&scene.wire, 22);
    assert_eq!(peer.local.ip(), POD4);
}
