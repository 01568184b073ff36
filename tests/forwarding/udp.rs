//! Datagrams from outside.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    guest::{
        Guest, Icmp, Scene, Udp, both, frame::assert_quotes, neighbour_of, pattern, wire::framed,
    },
    kernel_guest::KernelGuest,
    lab::{
        LONG, Translator, World,
        servers::{UdpEcho, udp_socket},
        uninterrupted, wait_until,
        world::{BLACKHOLE4, BLACKHOLE6, GATEWAY4, INTERNET4, INTERNET6, POD4, POD6},
    },
    tcp::introduce,
};

/// Regressions U22 and U29: a port that is another's in the guest, and empty datagrams.
#[test]
fn datagrams_of_any_length_go_in_and_answers_come_back_from_where_they_were_sent() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &["-u", "5000:53"]);
    let mut guest = Guest::online(translator.connect(), 65_520);
    introduce(&mut guest);
    let server = guest.udp(53);
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        let client = udp_socket(&world.outside, from);
        for len in [1_usize, 0, 1472, 9000, 60_000] {
            client.send_to(&pattern(0, len), to).unwrap();
            let (got, seen) = guest.recv_from(server);
            assert_eq!(got, pattern(0, len));
            assert_eq!(seen, client.local_addr().unwrap());
            // A stack that makes no fragments answers with what the path takes.
            let answer = &got[..len.min(1400)];
            guest.send_to(server, seen, answer);
            guest.run_for(Duration::from_millis(20));
            let mut bytes = vec![0; 1 << 16];
            let (n, answered) = uninterrupted(|| client.recv_from(&mut bytes)).unwrap();
            assert_eq!((&bytes[..n], answered), (answer, to));
        }
    }
}

/// The largest and the least there is, with a kernel for a guest, whose link takes them in parts.
#[test]
fn the_largest_datagrams_and_empty_ones_pass_a_forwarded_port_both_ways() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &["-u", "5000"]);
    let Some(guest) = KernelGuest::plug(&translator, 1500) else {
        return;
    };
    guest.number();
    let servers = [
        UdpEcho::start(guest.host(), (Ipv4Addr::UNSPECIFIED, 5000)),
        UdpEcho::start(guest.host(), (POD6, 5000)),
    ];
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        let client = udp_socket(&world.outside, from);
        for len in [0, 65_507, 1, 32_768, 0, 65_507] {
            client.send_to(&pattern(0, len), to).unwrap();
            let mut bytes = vec![0; 1 << 16];
            let (n, answered) = uninterrupted(|| client.recv_from(&mut bytes)).unwrap();
            assert!(bytes[..n] == pattern(0, len), "{n} octets for {len}");
            assert_eq!(answered, to);
        }
    }
    drop(servers);
}

/// Regression U27.
#[test]
fn every_client_gets_its_own_answers() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let clients: Vec<_> = (0..20)
        .map(|_| udp_socket(&scene.world.outside, (INTERNET4, 0)))
        .collect();
    for round in 0..3_u8 {
        for (n, client) in (0_u8..).zip(&clients) {
            client.send_to(&[round, n], (POD4, 5000)).unwrap();
        }
        for _ in &clients {
            let datagram = scene.wire.expect("datagram", Udp::of_frame);
            let answer = Udp::new(datagram.dst, datagram.src, &datagram.payload);
            scene.wire.send(&answer.frame());
        }
        for (n, client) in (0_u8..).zip(&clients) {
            let mut bytes = [0; 8];
            let (len, from) = uninterrupted(|| client.recv_from(&mut bytes)).unwrap();
            assert_eq!(
                (&bytes[..len], from),
                (&[round, n][..], (POD4, 5000).into())
            );
        }
    }
}

/// Has the host be at another address in each family too, and returns where port 5000 is then.
fn second_addresses(scene: &Scene) -> [SocketAddr; 2] {
    scene.world.pod.ip("addr add 10.233.70.99/24 dev eth0
         addr add fd10:233:70::99/64 dev eth0 nodad");
    let second6 = Ipv6Addr::new(0xfd10, 0x233, 0x70, 0, 0, 0, 0, 0x99);
    both([10, 233, 70, 99].into(), second6, 5000)
}

/// A resolver's client, say, that believes nobody else (RFC 1122, section 4.1.3.5).
#[test]
fn a_client_that_asks_at_two_addresses_is_answered_from_each() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    let second = second_addresses(&scene);
    crate::discovery::announce(&scene.wire);
    let pairs = both(POD4, POD6, 5000).into_iter().zip(second);
    for ((first, second), from) in pairs.zip(both(INTERNET4, INTERNET6, 0)) {
        let client = udp_socket(&scene.world.outside, from);
        for round in 0..3 {
            let mut questions = Vec::new();
            for (n, to) in [first, second].into_iter().enumerate() {
                client.send_to(&[round, n as u8], to).unwrap();
                questions.push(scene.wire.expect("question", Udp::of_frame));
            }
            for question in questions {
                let answer = Udp::new(question.dst, question.src, &question.payload);
                scene.wire.send(&answer.frame());
            }
            for (n, to) in [first, second].into_iter().enumerate() {
                let mut bytes = [0; 8];
                let (len, from) = uninterrupted(|| client.recv_from(&mut bytes)).unwrap();
                assert_eq!((&bytes[..len], from), (&[round, n as u8][..], to));
            }
        }
    }
}

/// A client in each family, and the forwarded port it asks at.
fn clients(scene: &Scene) -> [(UdpSocket, SocketAddr); 2] {
    let [client4, client6] =
        both(INTERNET4, INTERNET6, 0).map(|from| udp_socket(&scene.world.outside, from));
    let [to4, to6] = both(POD4, POD6, 5000);
    [(client4, to4), (client6, to6)]
}

/// How many octets the client hears next, and from where.
fn hear(client: &UdpSocket) -> (usize, SocketAddr) {
    uninterrupted(|| client.recv_from(&mut [0; 8])).unwrap()
}

/// A server that was first to send does so from its own port, which is not the one its clients know.
#[test]
fn a_client_is_answered_from_the_port_it_asks_at_though_the_guest_was_first() {
    let Some(scene) = Scene::new(&["-u", "5000:6053"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    for (client, to) in clients(&scene) {
        let server = SocketAddr::new(to.ip(), 6053);
        let first = Udp::new(server, client.local_addr().unwrap(), b"news");
        scene.wire.send(&first.frame());
        assert_eq!(hear(&client), (4, server));
        client.send_to(b"question", to).unwrap();
        let question = scene.wire.expect("question", Udp::of_frame);
        let answer = Udp::new(question.dst, question.src, b"answer");
        scene.wire.send(&answer.frame());
        assert_eq!(hear(&client), (6, to));
    }
}

/// Clients know one port only, from whichever of its addresses the guest answers; the last is where it is.
#[test]
fn a_server_that_answers_from_another_address_is_heard_and_hears() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    for (client, server) in clients(&scene) {
        let mut is_at = server;
        for speaks_from in [neighbour_of(server), server, neighbour_of(server)] {
            client.send_to(b"question", server).unwrap();
            let question = scene.wire.expect("question", Udp::of_frame);
            assert_eq!(question, Udp::new(question.src, is_at, b"question"));
            let answer = Udp::new(speaks_from, question.src, b"answer");
            scene.wire.send(&answer.frame());
            assert_eq!(hear(&client), (6, server));
            is_at = speaks_from;
        }
    }
}

/// The client that it answers stays who it is, and so does the address of the host that it asks at.
#[test]
fn a_server_that_answers_from_another_address_answers_from_where_it_was_asked() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    let second = second_addresses(&scene);
    crate::discovery::announce(&scene.wire);
    for ((client, server), asked) in clients(&scene).into_iter().zip(second) {
        let mut is_at = server;
        for speaks_from in [server, neighbour_of(server), server] {
            client.send_to(b"question", asked).unwrap();
            let question = scene.wire.expect("question", Udp::of_frame);
            let from = client.local_addr().unwrap();
            assert_eq!(question, Udp::new(from, is_at, b"question"));
            let answer = Udp::new(speaks_from, from, b"answer");
            scene.wire.send(&answer.frame());
            assert_eq!(hear(&client), (6, asked));
            is_at = speaks_from;
        }
    }
}

/// What tells clients apart in the guest is neither the port that they ask at nor theirs.
#[test]
fn a_server_at_another_port_of_the_guests_answers_each_client_from_another_address_too() {
    let Some(scene) = Scene::new(&["-u", "5000:6053"]) else {
        return;
    };
    let second = second_addresses(&scene);
    crate::discovery::announce(&scene.wire);
    for ((client, first), second) in clients(&scene).into_iter().zip(second) {
        let asked = [first, second];
        let questions = asked.map(|to| {
            client.send_to(b"question", to).unwrap();
            scene.wire.expect("question", Udp::of_frame)
        });
        for (question, to) in questions.into_iter().zip(asked) {
            let speaks_from = neighbour_of(question.dst);
            let answer = Udp::new(speaks_from, question.src, b"answer");
            scene.wire.send(&answer.frame());
            assert_eq!(hear(&client), (6, to));
            client.send_to(b"question", to).unwrap();
            let again = scene.wire.expect("question", Udp::of_frame);
            assert_eq!(again, Udp::new(question.src, speaks_from, b"question"));
        }
    }
}

/// It was to wait for the guest where that was said to be.
#[test]
fn a_client_that_the_guest_talks_to_from_another_address_need_not_wait_for_the_one_given() {
    let Some(scene) = Scene::new(&["-4", "--address", "10.233.70.77", "-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let (client, server) = (
        udp_socket(&scene.world.outside, (INTERNET4, 0)),
        (POD4, 5000),
    );
    client.send_to(b"question", server).unwrap();
    crate::discovery::await_question(&scene.wire, [10, 233, 70, 77].into());
    let from = client.local_addr().unwrap();
    let news = Udp::new(server.into(), from, b"news");
    scene.wire.send(&news.frame());
    assert_eq!(hear(&client), (4, server.into()));
    let question = scene.wire.expect("question", Udp::of_frame);
    assert_eq!(question, Udp::new(from, server.into(), b"question"));
}

#[test]
fn answers_from_two_addresses_in_one_burst_are_both_heard() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    for (client, server) in clients(&scene) {
        client.send_to(b"question", server).unwrap();
        let question = scene.wire.expect("question", Udp::of_frame);
        let answers = [
            (server, b"one".as_slice()),
            (neighbour_of(server), b"three"),
        ]
        .map(|(from, answer)| framed(&Udp::new(from, question.src, answer).frame()));
        scene.wire.send_raw(&answers.concat());
        assert_eq!([(); 2].map(|()| hear(&client)), [(3, server), (5, server)]);
    }
}

/// Other machines behind a guest that is a router may have the same port: one that a rule names is not one of these.
#[test]
fn a_client_of_a_named_address_has_no_other_for_its_server() {
    for more in [&[][..], &["-u", "%lo/5000"]] {
        let args = [&["-4"], more, &["-u", "%eth0/5000:10.233.70.50"]].concat();
        let Some(scene) = Scene::new(&args) else {
            return;
        };
        a_client_has_no_other_for_its_server(&scene);
    }
}

fn a_client_has_no_other_for_its_server(scene: &Scene) {
    crate::discovery::announce(&scene.wire);
    let client = udp_socket(&scene.world.outside, (INTERNET4, 0));
    let server: SocketAddr = (POD4, 5000).into();
    for _ in 0..2 {
        client.send_to(b"question", server).unwrap();
        let question = scene.wire.expect("question", Udp::of_frame);
        assert_eq!(question, Udp::new(question.src, server, b"question"));
        let other = Udp::new(neighbour_of(server), question.src, b"news");
        scene.wire.send(&other.frame());
        let (len, heard) = hear(&client);
        assert_eq!(len, 4);
        assert_ne!(heard.port(), server.port());
    }
}

/// What the guest has at the port that its clients know is not what they ask for.
#[test]
fn a_client_keeps_its_server_though_the_guest_talks_to_it_from_the_forwarded_ports_number() {
    let Some(scene) = Scene::new(&["-u", "5000:6053"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    for (client, to) in clients(&scene) {
        let server = SocketAddr::new(to.ip(), 6053);
        for _ in 0..2 {
            client.send_to(b"question", to).unwrap();
            let question = scene.wire.expect("question", Udp::of_frame);
            assert_eq!(question, Udp::new(question.src, server, b"question"));
            let other = Udp::new(to, question.src, b"news");
            scene.wire.send(&other.frame());
            let (len, heard) = hear(&client);
            assert_eq!(len, 4);
            assert_ne!(heard.port(), to.port());
        }
    }
}

/// The kernel goes through all sockets of a port to bind another.
#[test]
fn a_port_has_so_many_clients_at_most_and_new_ones_take_the_places_of_the_idle() {
    const MOST: u16 = 4096;
    const FIRST: u16 = 10_000;
    let hard = getrlimit(Resource::RLIMIT_NOFILE).unwrap().1;
    if hard < 8192 {
        println!("skipped: {hard} descriptors are not enough");
        return;
    }
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let ask = |port: u16| {
        let client = udp_socket(&scene.world.outside, (INTERNET4, port));
        client.send_to(&port.to_be_bytes(), (POD4, 5000)).unwrap();
        client
    };
    let udp_flows = || {
        let flows = scene.translator.flows();
        let (before, _) = flows.split_once(" UDP").unwrap();
        let (_, count) = before.rsplit_once(' ').unwrap();
        count.parse::<u16>().unwrap()
    };
    // Not more at a time than the port's socket holds.
    for n in 0..MOST / 64 {
        let clients: Vec<_> = (0..64).map(|m| ask(FIRST + 64 * n + m)).collect();
        for _ in &clients {
            scene.wire.expect("datagram", Udp::of_frame);
        }
    }
    for port in FIRST + MOST..FIRST + MOST + 200 {
        let heard = wait_until(LONG, || {
            let _client = ask(port);
            let patience = Duration::from_millis(300);
            let frames = std::iter::from_fn(|| scene.wire.recv(patience));
            let mut datagrams = frames.filter_map(|frame| Udp::of_frame(&frame));
            datagrams.any(|udp| udp.payload == port.to_be_bytes())
        });
        assert!(heard, "port {port}");
    }
    assert!(udp_flows() <= MOST);
}

#[test]
fn clients_on_the_hosts_loopback_are_answered_there() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let to: SocketAddr = (Ipv4Addr::LOCALHOST, 5000).into();
    let clients =
        [1, 2].map(|last| udp_socket(&scene.world.pod, (Ipv4Addr::new(127, 0, 0, last), 6000)));
    for (n, client) in (0_u8..).zip(&clients) {
        client.send_to(&[n], to).unwrap();
    }
    for _ in &clients {
        let datagram = scene.wire.expect("datagram", Udp::of_frame);
        assert_eq!(datagram.src.ip(), GATEWAY4);
        scene
            .wire
            .send(&Udp::new(datagram.dst, datagram.src, &datagram.payload).frame());
    }
    for (n, client) in (0_u8..).zip(&clients) {
        let mut bytes = [0; 8];
        assert_eq!(
            uninterrupted(|| client.recv_from(&mut bytes)).unwrap(),
            (1, to)
        );
        assert_eq!(bytes[0], n);
    }
}

/// The guest opens flows from the forwarded port, whose sockets hear everybody between bind(2) and connect(2): what clients
/// send in that moment is theirs all the same.
#[test]
fn clients_that_come_while_the_guest_uses_the_port_itself_are_heard_too() {
    const ROUNDS: u16 = 60;
    const AT_A_TIME: u16 = 16;
    const CLIENTS: u16 = 60;
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    for round in 0..ROUNDS {
        let v6 = round % 2 == 1;
        let (from, to, silent): (IpAddr, IpAddr, IpAddr) = if v6 {
            (INTERNET6.into(), POD6.into(), BLACKHOLE6.into())
        } else {
            (INTERNET4.into(), POD4.into(), BLACKHOLE4.into())
        };
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| udp_socket(&scene.world.outside, (from, 0)))
            .collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for client in &clients {
                    client.send_to(&round.to_be_bytes(), (to, 5000)).unwrap();
                }
            });
            for n in 0..AT_A_TIME {
                let remote = (silent, 1024 + round * AT_A_TIME + n).into();
                let datagram = Udp::new((to, 5000).into(), remote, b"hello");
                scene.wire.send(&datagram.frame());
            }
        });
        let mut heard = HashSet::new();
        while heard.len() < clients.len() {
            let what = format!("of {CLIENTS} datagrams more than {}", heard.len());
            let datagram = scene.wire.expect(&what, Udp::of_frame);
            assert_eq!(datagram.payload, round.to_be_bytes());
            heard.insert(datagram.src);
            let answer = Udp::new(datagram.dst, datagram.src, &datagram.payload);
            scene.wire.send(&answer.frame());
        }
        for client in &clients {
            let (len, from) = uninterrupted(|| client.recv_from(&mut [0; 8])).unwrap();
            assert_eq!((len, from), (2, (to, 5000).into()));
        }
    }
}

/// Regression U08: a datagram that can be nobody's is gone at once, and does not stand before those that come after it.
#[test]
fn a_datagram_that_cannot_be_forwarded_is_discarded() {
    let Some(scene) = Scene::new(&["-4", "-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    let client = udp_socket(&scene.world.outside, (INTERNET4, 0));
    let [source, to]: [SocketAddr; 2] = [(INTERNET4, 0).into(), (POD4, 5000).into()];
    let packet = Udp::new(source, to, b"from nowhere").ip().packet();
    let raw = scene.world.outside.run(|| {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
        raw.set_header_included_v4(true).unwrap();
        raw
    });
    for n in 0..20 {
        for _ in 0..20 {
            raw.send_to(&packet, &SockAddr::from(to)).unwrap();
        }
        client.send_to(&[n], to).unwrap();
        let datagram = scene.wire.expect("datagram", Udp::of_frame);
        assert_eq!(datagram.payload, [n]);
    }
    raw.send_to(&packet, &SockAddr::from(to)).unwrap();
    scene.translator.idle_fd_count();
    let little = Duration::from_millis(100);
    scene.translator.assert_idle(little, "after all");
    scene.translator.flows();
    let log = scene.translator.log();
    assert!(log.contains("\n    port 0: "), "{log}");
}

/// Regression U12: sockets of clients' flows tell more with an error than the error itself.
#[test]
fn an_answer_that_meets_an_error_is_told_of_in_an_icmp_error() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    crate::discovery::announce(&scene.wire);
    for (client, to) in clients(&scene) {
        let from = client.local_addr().unwrap();
        client.send_to(b"question", to).unwrap();
        let datagram = scene.wire.expect("datagram", Udp::of_frame);
        drop(client);
        let answer = Udp::new(datagram.dst, datagram.src, b"answer");
        // A process that another test starts holds a copy of the client's socket for a moment.
        let error = scene.wire.ask("ICMP error", &answer.frame(), |frame| {
            Icmp::of_frame(frame).filter(|icmp| icmp.is_unreachable() && icmp.dst == to.ip())
        });
        assert_eq!(error.src, from.ip());
        assert_quotes(&error, &answer.ip().packet());
    }
}
