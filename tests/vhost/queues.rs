//! Several queue pairs, each served by a thread: flows stay whole whichever queue their frames come by, and none of the
//! queues can harm another.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::Signal,
    },
    unistd::ftruncate,
};

use crate::{
    Scene, arp_request, assert_works,
    guest::{
        Tcp, Udp, assert_pattern, both,
        fragment::parts,
        frame::{ACK, PSH, SYN},
        guest_addr, pattern,
    },
    is_arp_reply,
    lab::{
        LONG,
        front_end::{
            Arrival, Driver, FrontEnd, HIGH_AT, LINUX, LOG_ALL, MQ, RX, TX, USER, cut, request,
        },
        servers::{accept, tcp_listener, udp_socket},
        uninterrupted, wait_until,
        world::{INTERNET4, INTERNET6},
    },
};

/// The second pair's receive and transmit queue.
pub const RX1: usize = RX + 2;
pub const TX1: usize = TX + 2;

pub const HEADER: [u8; 12] = [0; 12];

pub fn scene(queues: &str) -> Option<Scene> {
    Scene::new(&["--mtu", "1500", "--queues", queues])
}

/// The names of the translator's threads.
fn threads(scene: &Scene) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", scene.translator.pid())).unwrap();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap();
    tasks.map(|task| name(task.unwrap())).collect()
}

pub fn segments(arrival: &Arrival, port: u16) -> Vec<Tcp> {
    let frames = cut::cut(arrival);
    let all = frames.iter().filter_map(|frame| Tcp::of_frame(frame));
    all.filter(|tcp| tcp.dst.port() == port).collect()
}

/// A connection of the guest's from a port, begun by one queue pair.
pub struct Connection {
    pub next: Tcp,
    pub server: TcpStream,
    pub port: u16,
    pub sent: u64,
}

impl Connection {
    pub fn new(
        scene: &Scene,
        guest: &mut FrontEnd,
        pair: usize,
        remote: SocketAddr,
        port: u16,
    ) -> Self {
        let listener = tcp_listener(&scene.world.outside, remote);
        let local = guest_addr(remote, port);
        let mut syn = Tcp::new(local, remote, SYN);
        syn.seq = 1000;
        syn.options = vec![2, 4, 0x05, 0xb4, 1, 3, 3, 8];
        guest.transmit_by(pair, &HEADER, &syn.frame(), 1);
        let answer = guest.expect("SYN,ACK", |arrival| {
            let mut all = segments(arrival, port).into_iter();
            all.find(|tcp| tcp.has(SYN | ACK))
        });
        let mut next = Tcp::new(local, remote, ACK);
        (next.seq, next.ack) = (1001, answer.seq.wrapping_add(1));
        guest.transmit_by(pair, &HEADER, &next.frame(), 1);
        Self {
            next,
            server: accept(&listener),
            port,
            sent: 0,
        }
    }

    /// Sends octets by a queue pair; the device has taken them.
    pub fn send(&mut self, guest: &mut FrontEnd, pair: usize, len: usize) {
        self.next.flags = ACK | PSH;
        self.next.payload = pattern(self.sent, len);
        guest.transmit_by(pair, &HEADER, &self.next.frame(), 1);
        self.next.seq = self.next.seq.wrapping_add(len as u32);
        self.sent += len as u64;
        (self.next.flags, self.next.payload) = (ACK, Vec::new());
    }

    /// Octets arrive there from `from` on, and are acknowledged; by which pair.
    pub fn arrive(&mut self, guest: &mut FrontEnd, from: u64) -> usize {
        let mut got = vec![0; (self.sent - from) as usize];
        self.server.read_exact(&mut got).unwrap();
        assert_pattern(from, &got);
        let (seq, port) = (self.next.seq, self.port);
        guest.expect("acknowledgement", |arrival| {
            let all = segments(arrival, port);
            all.iter().any(|tcp| tcp.ack == seq).then_some(arrival.pair)
        })
    }

    /// The server's octets arrive here; by which pair.
    pub fn fetch(&mut self, guest: &mut FrontEnd, by: usize, data: &[u8]) -> usize {
        self.server.write_all(data).unwrap();
        let (mut got, mut pair, port) = (Vec::new(), 0, self.port);
        while got.len() < data.len() {
            let all = guest.expect("data", |arrival| {
                pair = arrival.pair;
                Some(segments(arrival, port)).filter(|all| !all.is_empty())
            });
            for segment in all {
                if segment.seq == self.next.ack {
                    self.next.ack = segment.seq.wrapping_add(segment.payload.len() as u32);
                    got.extend(segment.payload);
                }
            }
            guest.transmit_by(by, &HEADER, &self.next.frame(), 1);
        }
        assert_eq!(got, data);
        pair
    }
}

#[test]
fn one_thread_serves_one_queue_pair_and_two_serve_two() {
    for (queues, count) in [("1", 1), ("2", 2)] {
        let Some(scene) = scene(queues) else { return };
        let guest = FrontEnd::greet(scene.translator.connect(), Driver::new(LINUX));
        assert_eq!(guest.ask(request::GET_QUEUE_NUM, &[]), [count as u64]);
        assert_eq!(guest.offered & MQ != 0, count > 1);
        assert_eq!(threads(&scene), vec!["passt\n".to_owned(); count]);
        drop(guest);
        // The same with a driver that uses just one of them.
        let mut guest = scene.guest(Driver::new(LINUX));
        assert_works(&mut guest);
        assert_eq!(threads(&scene).len(), count);
    }
}

#[test]
fn the_way_of_a_capture_is_one_queue_pair() {
    let Some(world) = crate::World::pod() else {
        return;
    };
    let setup = crate::Setup::new(&["--vhost-user", "--queues", "2"]);
    let file = setup.dir().join("capture");
    let translator = setup
        .arg("--pcap")
        .arg(file.to_str().unwrap())
        .start(&world.pod);
    let guest = FrontEnd::greet(translator.connect(), Driver::new(LINUX));
    assert_eq!(guest.ask(request::GET_QUEUE_NUM, &[]), [1]);
    translator.expect_log("--pcap captures one queue pair: --queues has no effect");
}

/// QEMU leaves without a word to us, and libvirt waits for it: the log is all that tells.
#[test]
fn a_front_end_that_leaves_as_there_are_too_few_queue_pairs_is_told_of() {
    let Some(scene) = scene("2") else { return };
    let guest = FrontEnd::greet(scene.translator.connect(), Driver::new(LINUX));
    guest.ask(request::GET_QUEUE_NUM, &[]);
    drop(guest);
    let told = "is its guest to have more than 2 queue pairs (--queues)?";
    scene.translator.expect_log(told);
    drop(scene.guest(Driver::twice(LINUX)));
    scene.translator.expect_log("Client connection closed");
    assert_eq!(scene.translator.log().matches(told).count(), 1);
}

#[test]
fn threads_that_begin_are_no_client_that_leaves() {
    let Some(world) = crate::World::pod() else {
        return;
    };
    let setup = crate::Setup::new(&["--vhost-user", "--queues", "2"]);
    let translator = setup.start(&world.pod);
    let guest = FrontEnd::greet(translator.connect(), Driver::new(LINUX));
    assert_eq!(guest.ask(request::GET_QUEUE_NUM, &[]), [2]);
    let log = translator.log();
    assert!(!log.contains("Client connection closed"), "{log}");
}

#[test]
fn flows_are_answered_by_the_pair_they_began_with() {
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let mut flows = Vec::new();
    for (at, remote) in both(INTERNET4, INTERNET6, 7)
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        let remote = SocketAddr::new(remote.ip(), 7 + at as u16);
        let port = 40_000 + at as u16;
        flows.push((
            at / 2 % 2,
            Connection::new(&scene, &mut guest, at / 2 % 2, remote, port),
        ));
    }
    let data = pattern(7, 30_000);
    for round in 0..4 {
        for (pair, flow) in &mut flows {
            flow.send(&mut guest, *pair, 1000);
            assert_eq!(flow.arrive(&mut guest, 1000 * round), *pair);
            assert_eq!(flow.fetch(&mut guest, *pair, &data), *pair);
        }
    }
    scene.translator.signal(Signal::SIGUSR1);
    scene
        .translator
        .expect_log("Flows: 8 TCP (0 SYN sent, 0 connecting, 0 SYN received, 8 established");
}

#[test]
fn frames_of_a_flow_keep_their_order_over_two_queues() {
    const ROUNDS: u64 = 200;
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for (first, remote) in both(INTERNET4, INTERNET6, 7).into_iter().enumerate() {
        let mut flow = Connection::new(&scene, &mut guest, first, remote, 40_000);
        for round in 0..ROUNDS {
            // Some in a row, then some by the other.
            flow.send(&mut guest, (round / 3 % 2) as usize, 100);
        }
        flow.arrive(&mut guest, 0);
        let server = udp_socket(&scene.world.outside, remote);
        for round in 0..ROUNDS {
            let payload = round.to_be_bytes();
            let udp = Udp::new(guest_addr(remote, 41_000), remote, &payload);
            guest.transmit_by((round / 3 % 2) as usize, &HEADER, &udp.frame(), 1);
        }
        for round in 0..ROUNDS {
            let mut octets = [0; 9];
            assert_eq!(uninterrupted(|| server.recv(&mut octets)).unwrap(), 8);
            assert_eq!(octets[..8], round.to_be_bytes());
        }
    }
}

#[test]
fn more_than_a_thread_has_room_for_waits_in_the_guests_queue() {
    const FRAMES: usize = 60;
    const LARGE: usize = 20_000;
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let remote = (INTERNET4, 7).into();
    let mut flow = Connection::new(&scene, &mut guest, 0, remote, 40_000);
    // All of it comes by the other queue, while nobody runs: twice as much as is handed over at a time.
    let mut total = 0;
    scene.translator.stand_still();
    for at in 0..FRAMES {
        let udp = Udp::new(
            guest_addr(remote, 41_000),
            remote,
            &pattern(at as u64, 1400),
        );
        guest.post_by(1, &HEADER, &udp.frame(), 1);
    }
    scene.translator.signal(Signal::SIGCONT);
    for _ in 0..FRAMES / 2 {
        flow.next.flags = ACK | PSH;
        flow.next.payload = pattern(total as u64, LARGE);
        let mut frame = flow.next.frame();
        let mut header = cut::leave_checksum(&mut frame);
        header[1] = 1;
        header[2..4].copy_from_slice(&54_u16.to_le_bytes());
        header[4..6].copy_from_slice(&1440_u16.to_le_bytes());
        while guest.collect(TX1).is_some() {}
        guest.post_by(1, &header, &frame, 3);
        let mut got = vec![0; LARGE];
        flow.server.read_exact(&mut got).unwrap();
        assert_pattern(total as u64, &got);
        total += LARGE;
        flow.next.seq = flow.next.seq.wrapping_add(LARGE as u32);
    }
}

#[test]
fn services_answer_whichever_queue_the_question_comes_by() {
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for pair in [1, 0, 1] {
        guest.transmit_by(pair, &HEADER, &arp_request(), 2);
        guest.expect("ARP reply", is_arp_reply);
    }
}

#[test]
fn a_datagram_in_fragments_joins_its_flow() {
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for remote in both(INTERNET4, INTERNET6, 7) {
        let server = udp_socket(&scene.world.outside, remote);
        let local = guest_addr(remote, 41_000);
        let mut seen = Vec::new();
        for round in 0..6_u32 {
            let payload = pattern(u64::from(round), if round % 2 == 0 { 100 } else { 5000 });
            let udp = Udp::new(local, remote, &payload);
            if round % 2 == 0 {
                guest.transmit_by(1, &HEADER, &udp.frame(), 1);
            } else {
                for part in parts(&udp.ip(), round, 1500) {
                    guest.transmit_by(1, &HEADER, &part, 1);
                }
            }
            let mut octets = [0; 6000];
            let (len, from) = uninterrupted(|| server.recv_from(&mut octets)).unwrap();
            assert!(octets[..len] == payload, "{len} octets");
            seen.push(from);
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "more than one flow");
    }
}

/// Parts take no longer way than what comes behind them.
#[test]
fn datagrams_in_fragments_keep_their_place_among_others() {
    const ROUNDS: u32 = 12;
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for (port, (owner, pair)) in (41_000..).zip([(1, 1), (0, 1), (1, 0)]) {
        let remote = SocketAddr::from((INTERNET4, port));
        let server = udp_socket(&scene.world.outside, remote);
        let datagram = |payload: &[u8]| Udp::new(guest_addr(remote, port), remote, payload);
        guest.transmit_by(owner, &HEADER, &datagram(b"first").frame(), 1);
        assert_eq!(uninterrupted(|| server.recv(&mut [0; 9])).unwrap(), 5);
        scene.translator.stand_still();
        for round in 0..ROUNDS {
            let large = datagram(&pattern(u64::from(round), 4000));
            for part in parts(&large.ip(), round, 1500) {
                guest.post_by(pair, &HEADER, &part, 1);
            }
            guest.post_by(pair, &HEADER, &datagram(&[round as u8]).frame(), 1);
        }
        scene.translator.signal(Signal::SIGCONT);
        for round in 0..ROUNDS {
            let mut octets = [0; 5000];
            assert_eq!(
                uninterrupted(|| server.recv(&mut octets)).unwrap(),
                4000,
                "{owner} {pair}"
            );
            assert_pattern(u64::from(round), &octets[..4000]);
            assert_eq!(
                uninterrupted(|| server.recv(&mut octets)).unwrap(),
                1,
                "{owner} {pair}"
            );
            assert_eq!(octets[0], round as u8);
        }
        while guest.collect(TX + 2 * pair).is_some() {}
    }
}

/// Whoever has the first part gets the others.
#[test]
fn parts_of_a_datagram_may_come_by_several_queues() {
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for remote in both(INTERNET4, INTERNET6, 7) {
        let server = udp_socket(&scene.world.outside, remote);
        for round in 0..8_u32 {
            let payload = pattern(u64::from(round), 5000);
            let udp = Udp::new(guest_addr(remote, 41_000), remote, &payload);
            for (n, part) in parts(&udp.ip(), round, 1500).iter().enumerate() {
                guest.transmit_by((n + round as usize) % 2, &HEADER, part, 1);
            }
            let mut octets = [0; 6000];
            let len = uninterrupted(|| server.recv(&mut octets)).unwrap();
            assert!(octets[..len] == payload, "{len} octets");
        }
    }
}

/// As with one pair, the connection ends with a line, and the next one is served.
#[test]
fn a_driver_that_breaks_the_second_pair_begins_anew() {
    let deeds: [fn(&mut FrontEnd); 3] = [
        |guest| guest.jump(TX1, 2000),
        |guest| {
            for n in 0..256 {
                guest.describe(guest.table(RX1), n, 1 << 50, 1536, 2, 0);
            }
        },
        |guest| {
            guest.describe(guest.table(TX1), 5, 1 << 50, 100, 0, 0);
            guest.offer(TX1, 5);
        },
    ];
    for deed in deeds {
        let Some(scene) = scene("2") else { return };
        let mut guest = scene.guest(Driver::twice(LINUX));
        let mut flow = Connection::new(&scene, &mut guest, 1, (INTERNET4, 7).into(), 40_000);
        flow.send(&mut guest, 1, 1000);
        flow.arrive(&mut guest, 0);
        deed(&mut guest);
        guest.kick(TX1);
        // A queue of buffers is looked at when there is something for it.
        let _ = flow.server.write_all(b"x");
        scene.translator.expect_log("vhost-user: queue pair 1: ");
        scene.translator.expect_log(", resetting connection");
        assert!(guest.closes());
        drop(guest);
        let mut guest = scene.guest(Driver::twice(LINUX));
        assert_works(&mut guest);
    }
}

/// The thread of its second pair and the end of its connection tell of it at the same time.
#[test]
fn nobody_answers_for_the_driver_before() {
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for _ in 0..20 {
        assert_works(&mut guest);
        scene.translator.stand_still();
        guest.jump(TX1, 2000);
        guest.kick(TX1);
        drop(guest);
        let next = scene.translator.connect();
        scene.translator.signal(Signal::SIGCONT);
        guest = FrontEnd::start(next, Driver::twice(LINUX));
    }
    assert_works(&mut guest);
}

#[test]
fn memory_may_go_while_a_thread_is_busy_with_it() {
    let Some(mut scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let remote: SocketAddr = (INTERNET4, 7).into();
    let server = udp_socket(&scene.world.outside, remote);
    let frame = Udp::new(guest_addr(remote, 41_000), remote, &pattern(0, 1400)).frame();
    let regions = [
        [0, 16 << 20, USER, 0],
        [1 << 32, 16 << 20, USER + (16 << 20), 16 << 20],
    ];
    for _ in 0..50 {
        for _ in 0..20 {
            guest.post_by(1, &HEADER, &frame, 1);
        }
        // What is mapped anew lies elsewhere; what was mapped before is gone by the answer.
        guest.share_table(&regions);
        for _ in 0..20 {
            assert_eq!(uninterrupted(|| server.recv(&mut [0; 2000])).unwrap(), 1400);
        }
        let mut left = 20;
        assert!(wait_until(LONG, || {
            while left > 0 && guest.collect(TX1).is_some() {
                left -= 1;
            }
            left == 0
        }));
    }
    guest.transmit_by(1, &HEADER, &arp_request(), 1);
    guest.expect("ARP reply", is_arp_reply);
    // Cut off below it.
    for _ in 0..20 {
        guest.post_by(1, &HEADER, &frame, 1);
    }
    guest.memory.set_len(4096).unwrap();
    guest.kick(TX1);
    guest.kick(TX);
    assert!(guest.closes());
    scene.translator.expect_log("shared memory has vanished");
    let mut guest = scene.guest(Driver::twice(LINUX));
    assert_works(&mut guest);
    scene.translator.assert_alive();
}

#[test]
fn pages_written_by_the_second_pair_are_marked_too() {
    const OCTETS: u64 = ((1 << 32) + (16 << 20)) / 4096 / 8;
    let Some(scene) = scene("2") else { return };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let mut flow = Connection::new(&scene, &mut guest, 1, (INTERNET4, 7).into(), 40_000);
    let log = memfd_create("log", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&log, OCTETS.cast_signed()).unwrap();
    let log = fs::File::from(log);
    let words = [OCTETS, 0];
    guest.send(request::SET_LOG_BASE, 1, &words, &[log.as_raw_fd()]);
    (&guest.socket).read_exact(&mut [0; 20]).unwrap();
    let features = guest.driver.features | LOG_ALL;
    guest.told(request::SET_FEATURES, &[features], &[]);
    let [descriptors, available, used] = guest.places(RX1);
    let user = [descriptors, used, available].map(|at| USER + at);
    let words = [RX1 as u64 | 1 << 32, user[0], user[1], user[2], used];
    guest.told(request::SET_VRING_ADDR, &words, &[]);
    let marked = |page: u64| {
        let mut octet = [0];
        log.read_exact_at(&mut octet, page / 8).unwrap();
        octet[0] >> (page % 8) & 1 == 1
    };
    let data = pattern(3, 50_000);
    assert_eq!(flow.fetch(&mut guest, 1, &data), 1);
    assert!(marked(used / 4096), "used ring");
    // Where the second pair's buffers are, 16 KiB apart.
    let buffer = |n: u64| (HIGH_AT + (10 << 20) + (n << 14)) / 4096;
    assert!((8..16).all(|n| marked(buffer(n))), "buffers");
    assert!(!marked(descriptors / 4096));
}

#[test]
fn queues_without_buffers_keep_nobody_else_waiting() {
    let Some(scene) = scene("2") else { return };
    let mut driver = Driver::twice(LINUX);
    (driver.entries, driver.buffers) = (64, 8);
    let mut guest = scene.guest(driver);
    let remote: SocketAddr = (INTERNET4, 7).into();
    let mut stuck = Connection::new(&scene, &mut guest, 1, remote, 40_000);
    let other = (INTERNET4, 8).into();
    let mut flow = Connection::new(&scene, &mut guest, 0, other, 40_001);
    stuck.server.write_all(&pattern(0, 100_000)).unwrap();
    for round in 0..50 {
        flow.send(&mut guest, 0, 1000);
        let mut got = vec![0; 1000];
        flow.server.read_exact(&mut got).unwrap();
        assert_pattern(1000 * round, &got);
    }
}
