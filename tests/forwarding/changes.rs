//! Rules that are replaced while the guest runs.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::{
    guest::{Guest, both, pattern},
    lab::{
        Host, LONG, Setup, World,
        pesto::{Pesto, assert_ended, greeted, message},
        servers::{tcp_listener, udp_socket},
        uninterrupted, wait_until,
        world::{INTERNET4, INTERNET6, POD4, POD6},
    },
    tcp::{connect, introduce},
};

fn connects(host: &Host, to: SocketAddr) -> bool {
    host.run(|| TcpStream::connect(to).is_ok())
}

/// The sockets that listen at a port, by their inodes.
fn listening(host: &Host, port: u16) -> Vec<String> {
    let lines = ["tcp", "tcp6"].map(|table| host.proc_net(table));
    let at = format!(":{port:04X}");
    let listens = |line: &&String| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&at)) && words.nth(1) == Some("0A")
    };
    let inode = |line: &String| line.split_whitespace().nth(9).unwrap().to_owned();
    lines.iter().flatten().filter(listens).map(inode).collect()
}

#[test]
fn a_port_is_forwarded_and_given_back_while_the_guest_runs() {
    let Some(world) = World::pod() else { return };
    let (translator, pesto) = Pesto::start(&world.pod, &[]);
    let mut guest = Guest::online(translator.connect(), 65_520);
    introduce(&mut guest);
    assert_eq!(pesto.shown(), [""; 0]);
    for addr in both(POD4, POD6, 2022) {
        assert!(!connects(&world.outside, addr));
        pesto.forward(&[("-t", "2022:22")]);
        assert_eq!(pesto.shown(), ["TCP [*]:2022  =>  22"]);
        let server = guest.listen(22);
        let mut client = connect(&world.outside, addr);
        guest.accept(server);
        pesto.forward(&[]);
        assert!(!connects(&world.outside, addr));
        // Who has come in goes on.
        client.write_all(&pattern(0, 1000)).unwrap();
        guest.download(server, 1000);
        guest.send(server, b"answer");
        let mut got = [0; 6];
        uninterrupted(|| client.read_exact(&mut got)).unwrap();
        drop(client);
        guest.close(server);
    }
    assert!(listening(&world.pod, 2022).is_empty());
}

#[test]
fn what_old_and_new_rules_share_goes_on_as_it_is() {
    let Some(world) = World::pod() else { return };
    let args = ["-t", "2000-2002", "-t", "127.0.0.1/3000:80"];
    let (translator, pesto) = Pesto::start(&world.pod, &args);
    let mut guest = Guest::online(translator.connect(), 65_520);
    introduce(&mut guest);
    let before = [2001, 3000].map(|port| listening(&world.pod, port));
    assert!(before.iter().all(|sockets| sockets.len() == 1));
    pesto.forward(&[("-t", "2001-2003"), ("-t", "127.0.0.1/3000:81")]);
    let after = [2001, 3000].map(|port| listening(&world.pod, port));
    assert_eq!(before, after);
    assert!(listening(&world.pod, 2000).is_empty());
    assert_eq!(listening(&world.pod, 2003).len(), 1);
    // It leads elsewhere.
    let server = guest.listen(81);
    let _client = connect(&world.pod, (Ipv4Addr::LOCALHOST, 3000).into());
    guest.accept(server);
}

#[test]
fn rules_that_cannot_be_had_change_nothing() {
    let Some(world) = World::pod() else { return };
    let (translator, pesto) = Pesto::start(&world.pod, &["-t", "4000", "-u", "4000"]);
    let _taken = tcp_listener(&world.pod, (Ipv6Addr::UNSPECIFIED, 4001));
    let to = SocketAddr::from((POD4, 4000));
    // One that takes the place of another, and one that cannot be had.
    for addr in ["127.0.0.1/4000", "%eth0/4000"] {
        pesto.forward(&[("-t", addr), ("-t", "4001"), ("-t", "4002")]);
        let same = ["TCP [*]:4000  =>  4000", "UDP [*]:4000  =>  4000"];
        assert_eq!(pesto.shown(), same);
        assert!(connects(&world.outside, to));
        assert!(listening(&world.pod, 4002).is_empty());
    }
    translator.expect_log(
        "Forwarding rules stay as they are: Failed to bind port 4001 (Address already in use) for option '-t 4001'",
    );
    // The same by itself.
    pesto.forward(&[("-t", "127.0.0.1/4000")]);
    assert!(!connects(&world.outside, to));
    assert!(connects(&world.pod, (Ipv4Addr::LOCALHOST, 4000).into()));
    // And what can be had of all.
    pesto.forward(&[("-t", "all"), ("-t", "127.0.0.1/4000:80")]);
    assert!(listening(&world.pod, 4002).len() == 1 && listening(&world.pod, 32_768).is_empty());
    assert_eq!(listening(&world.pod, 4000).len(), 1);
    pesto.forward(&[]);
    assert!(listening(&world.pod, 4002).is_empty());
}

#[test]
fn clients_of_a_datagram_port_go_on_and_new_ones_are_refused() {
    let Some(world) = World::pod() else { return };
    let (translator, pesto) = Pesto::start(&world.pod, &["-u", "5000:53"]);
    let mut guest = Guest::online(translator.connect(), 65_520);
    introduce(&mut guest);
    let server = guest.udp(53);
    for (to, from) in both(POD4, POD6, 5000)
        .into_iter()
        .zip(both(INTERNET4, INTERNET6, 0))
    {
        pesto.forward(&[("-u", "5000:53")]);
        let client = udp_socket(&world.outside, from);
        client.connect(to).unwrap();
        let talk = |guest: &mut Guest, said: &[u8]| {
            client.send(said).unwrap();
            let (got, seen) = guest.recv_from(server);
            assert_eq!(got, said);
            guest.send_to(server, seen, said);
            guest.run_for(Duration::from_millis(20));
            let mut got = [0; 16];
            let len = uninterrupted(|| client.recv(&mut got)).unwrap();
            assert_eq!(&got[..len], said);
        };
        talk(&mut guest, b"before");
        pesto.forward(&[]);
        talk(&mut guest, b"after");
        let late = udp_socket(&world.outside, from);
        late.connect(to).unwrap();
        late.send(b"anybody?").unwrap();
        let refused = uninterrupted(|| late.recv(&mut [0; 16])).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        // A port that is there again is the same to those who never left.
        pesto.forward(&[("-u", "5000:53"), ("-t", "5000")]);
        talk(&mut guest, b"again");
        late.send(b"and now?").unwrap();
        assert_eq!(guest.recv_from(server).0, b"and now?");
    }
}

/// Descriptors of what is not forwarded any more are there for what is.
#[test]
fn as_many_ports_can_be_had_after_others_as_at_first() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&["-t", "all"]).limit_files(4096);
    let (translator, pesto) = Pesto::start_as(setup, &world.pod);
    let at_first = translator.idle_fd_count();
    assert!(at_first > 2000, "{at_first}");
    pesto.forward(&[("-u", "all")]);
    assert!(translator.fd_count() >= at_first, "{}", translator.log());
    // What has failed is given back.
    let _taken = tcp_listener(&world.pod, (Ipv6Addr::UNSPECIFIED, 4001));
    pesto.forward(&[("-t", "2000-3999"), ("-t", "4001")]);
    translator.expect_log("stay as they are: Failed to bind port 4001 (Address already in use)");
    assert!(translator.fd_count() >= at_first, "{}", translator.log());
    pesto.forward(&[]);
    assert!(translator.fd_count() < 100);
}

/// And one that has left is not missed.
#[test]
fn ports_of_an_interface_that_came_later_are_forwarded() {
    let Some(world) = World::pod() else { return };
    let (translator, pesto) = Pesto::start(&world.pod, &[]);
    world.pod.wire("lan0", &world.outside, "lan1");
    world.pod.ip("addr add 10.77.0.1/24 dev lan0");
    world.outside.ip("addr add 10.77.0.2/24 dev lan1");
    let to = SocketAddr::from(([10, 77, 0, 1], 4000));
    assert!(wait_until(LONG, || {
        pesto.forward(&[("-t", "%lan0/4000")]);
        connects(&world.outside, to)
    }));
    assert!(!connects(&world.outside, (POD4, 4000).into()));
    world.pod.ip("link del lan0");
    pesto.forward(&[("-t", "%lan0/4000"), ("-t", "4001")]);
    assert!(connects(&world.outside, (POD4, 4001).into()));
    world.pod.wire("lan0", &world.outside, "lan1");
    world.pod.ip("addr add 10.77.0.1/24 dev lan0");
    world.outside.ip("addr add 10.77.0.2/24 dev lan1");
    assert!(wait_until(LONG, || connects(&world.outside, to)));
    translator.idle_fd_count();
}

#[test]
fn a_client_that_talks_nonsense_is_sent_away_and_changes_nothing() {
    let Some(world) = World::pod() else { return };
    let (mut translator, pesto) = Pesto::start(&world.pod, &["-t", "4000"]);
    let rule = message(&[("-t", "80")]);
    let idle = translator.idle_fd_count();
    let broken = |at: usize, octet: u8| {
        let mut said = rule.clone();
        said[at] = octet;
        said
    };
    for (said, why) in [
        (broken(0, 2), "no table 2 to be changed"),
        (broken(1, 0xff), "4278190081 rules (at most 4096)"),
        (broken(59, 132), "protocol 132 cannot be forwarded"),
        (rule.repeat(2), "more follows than was announced"),
    ] {
        let mut stream = pesto.connect();
        greeted(&mut stream);
        stream.write_all(&said).unwrap();
        assert_ended(stream);
        translator.expect_log(&format!("Configuration client is sent away: {why}"));
        thread::sleep(Duration::from_secs(1));
    }
    // Who leaves half-way has said nothing.
    for end in [0, 1, 4, 30, rule.len() - 1] {
        let mut stream = pesto.connect();
        stream.write_all(&rule[..end]).unwrap();
        drop(stream);
    }
    assert_eq!(pesto.shown(), ["TCP [*]:4000  =>  4000"]);
    translator.expect_fd_count(idle);
    translator.assert_alive();
}

/// Ten seconds.
#[test]
fn a_client_that_says_nothing_keeps_others_waiting_for_a_while_only() {
    let Some(world) = World::pod() else { return };
    let (translator, pesto) = Pesto::start(&world.pod, &[]);
    let mut silent = pesto.connect();
    greeted(&mut silent);
    let rules = message(&[("-t", "4000")]);
    silent.write_all(&rules[..9]).unwrap();
    pesto.forward(&[("-t", "4001")]);
    assert_ended(silent);
    // Those that only look do not.
    let others: Vec<_> = (0..20).map(|_| pesto.connect()).collect();
    for mut other in others {
        greeted(&mut other);
    }
    assert_eq!(pesto.shown(), ["TCP [*]:4001  =>  4001"]);
    translator.assert_idle(Duration::from_millis(100), "after all");
}
