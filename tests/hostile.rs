//! Whatever a guest may send: the process lives, its memory stays, and it works afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    env,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr},
    thread,
};

use guest::{
    Guest, Icmp, Tcp, Udp, both,
    dhcp::{DISCOVER, Dhcp, REQUEST},
    dhcpv6::{Dhcpv6, GUEST_LL, SOLICIT},
    fragment::{parts, raw_part},
    frame::{ACK, FIN, Ip, PSH, SYN, ethernet},
    guest_addr, pattern,
    tcp::syn_options,
    wire::framed,
};
use lab::{
    LONG, Setup, Translator, World,
    servers::{TcpServer, UdpEcho},
    uninterrupted, wait_until,
    world::{BLACKHOLE4, BLACKHOLE6, GATEWAY4, INTERNET4, INTERNET6, POD4},
};

/// xorshift64*: the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() >> 33).unwrap() % end
    }

    fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[7]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

/// Frames that mean something, of every kind we read.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        Dhcp::new(DISCOVER)
            .with(55, &[1, 3, 6, 12, 119, 121])
            .frame(),
        Dhcp::new(REQUEST)
            .with(50, &POD4.octets())
            .with(61, b"client")
            .frame(),
        Dhcpv6::new(SOLICIT)
            .with_ia_na(1, None)
            .with(6, &[0, 23, 0, 24])
            .frame(),
    ];
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend_from_slice(&guest::frame::GUEST_MAC);
    arp.extend_from_slice(&POD4.octets());
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&GATEWAY4.octets());
    seeds.push(ethernet([0xff; 6], guest::frame::ETHERTYPE_ARP, &arp));
    let routers = "ff02::2".parse().unwrap();
    seeds.push(Icmp::new(GUEST_LL.into(), routers, 133, 0, &[1, 1, 2, 0, 0, 0, 0, 1]).frame());
    seeds.push(Icmp::new(GUEST_LL.into(), routers, 135, 0, &pattern(0, 24)).frame());
    for remote in both(INTERNET4, INTERNET6, 7) {
        let local = guest_addr(remote, 5000);
        let datagram = Udp::new(local, remote, &pattern(0, 4000)).ip();
        seeds.extend(parts(&datagram, 7, 1500));
        seeds.push(
            Icmp::new(
                GUEST_LL.into(),
                routers,
                143,
                1,
                &[4, 0, 0, 0, 255, 2, 0, 0],
            )
            .frame(),
        );
    }
    let igmp = Ip {
        src: POD4.into(),
        dst: Ipv4Addr::new(224, 0, 0, 22).into(),
        protocol: 2,
        ttl: 1,
        payload: vec![0x22, 0, 0xea, 3, 0, 0, 0, 1, 4, 0, 0, 0, 239, 255, 255, 250],
    };
    seeds.push(igmp.frame());
    let group = (Ipv4Addr::new(239, 255, 255, 250), 1900).into();
    seeds.push(Udp::new(guest_addr(group, 5000), group, b"M-SEARCH").frame());
    for remote in [
        both(INTERNET4, INTERNET6, 7),
        both(INTERNET4, INTERNET6, 81),
        both(BLACKHOLE4, BLACKHOLE6, 9),
    ]
    .concat()
    {
        let local = guest_addr(remote, 5000);
        seeds.push(Udp::new(local, remote, b"hello").frame());
        seeds.push(Icmp::echo_request(local.ip(), remote.ip(), 7, 1, b"hello").frame());
        for flags in [SYN, ACK, ACK | PSH, ACK | FIN, SYN | ACK] {
            let segment = Tcp {
                seq: 1,
                options: syn_options(1400, Some(7)),
                payload: if flags & PSH != 0 {
                    pattern(0, 600)
                } else {
                    vec![]
                },
                ..Tcp::new(local, remote, flags)
            };
            seeds.push(segment.frame());
        }
    }
    seeds
}

/// A frame nobody should send.
fn frame(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    if dice.below(20) == 0 {
        let most = if dice.below(50) == 0 { 65_000 } else { 200 };
        let len = 14 + dice.below(most);
        return dice.bytes(len);
    }
    let mut frame = seeds[dice.below(seeds.len())].clone();
    for _ in 0..dice.below(6) {
        let at = dice.below(frame.len());
        match dice.below(6) {
            0 => frame[at] = 0,
            1 => frame[at] = 0xff,
            2 => frame[at] ^= 1 << dice.below(8),
            3 => frame.truncate(at.max(14)),
            4 => frame.extend(dice.bytes(at)),
            _ => frame[at] = dice.byte(),
        }
    }
    // Half of what is changed in IPv4 headers would end at the checksum.
    if dice.below(2) == 0 && frame.len() >= 34 && frame[12..15] == [8, 0, 0x45] {
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = !smoltcp::wire::checksum::data(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// A packet as the usual tools of attack make them, its checksums right: any protocol, options and chains of headers of any
/// kind, whole or a part that fits, overlaps or stands alone.
fn crafted(dice: &mut Dice) -> Vec<u8> {
    let remote = both(INTERNET4, INTERNET6, 7)[dice.below(2)];
    let local = guest_addr(remote, 5000 + dice.byte() as u16);
    let body = if dice.below(4) == 0 { 4000 } else { 40 };
    let body = dice.bytes(8 + body);
    let kinds = [0, 1, 8, 128, 130, 131, 132, 133, 134, 135, 136, 137, 143];
    let mut ip = match dice.below(4) {
        0 => Icmp::new(local.ip(), remote.ip(), kinds[dice.below(13)], 0, &body).ip(),
        1 => Tcp {
            payload: body,
            ..Tcp::new(local, remote, dice.byte())
        }
        .ip(),
        _ => Udp::new(local, remote, &body).ip(),
    };
    if dice.below(4) == 0 {
        ip.dst = if remote.is_ipv4() {
            Ipv4Addr::new([224, 239, 255][dice.below(3)], 0, 0, dice.byte()).into()
        } else {
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, dice.byte().into()).into()
        };
    }
    if remote.is_ipv6() {
        for _ in 0..dice.below(8).saturating_sub(3) {
            let next = [0, 43, 44, 60, 51, 59, 135][dice.below(7)];
            let units = if next == 44 { 0 } else { dice.below(3) };
            let mut header = dice.bytes(8 * (units + 1));
            (header[0], header[1]) = (ip.protocol, units as u8);
            if next == 60 || next == 0 {
                // Options nobody minds, as a rule.
                header[2..].fill(0);
                header[2 + dice.below(4)] = dice.byte() & 0x3f;
            }
            ip.payload.splice(..0, header);
            ip.protocol = next;
        }
    }
    if dice.below(3) == 0 {
        return ip.frame();
    }
    let units = ip.payload.len() / 8;
    let at = 8 * dice.below(units + 1);
    let len = (8 * dice.below(200)).min(ip.payload.len() - at);
    let place = if dice.below(16) == 0 { 65_528 } else { at };
    let (id, more) = (dice.below(100) as u32, dice.below(3) > 0);
    raw_part(&ip, id, place, &ip.payload[at..at + len], more)
}

/// Sends so many hostile frames as `make` makes them, and throws away what comes back.
fn bombard(
    translator: &Translator,
    count: usize,
    dice: &mut Dice,
    make: impl Fn(&mut Dice) -> Vec<u8>,
) {
    let mut stream = translator.connect();
    stream.set_write_timeout(Some(LONG)).unwrap();
    let mut back = stream.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; 1 << 18];
        while let Ok(1..) = uninterrupted(|| back.read(&mut bytes)) {}
    });
    let mut left = count;
    while left > 0 {
        let batch = left.min(1 + dice.below(200));
        let bytes: Vec<u8> = (0..batch).flat_map(|_| framed(&make(dice))).collect();
        stream.write_all(&bytes).expect("the link is open");
        left -= batch;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    reading.join().unwrap();
}

/// Fills the line of those that wait for their turn, memory that is set aside at the start and touched as it gets longer.
fn fill_line(translator: &Translator) {
    let begins = |dice: &mut Dice| {
        let remote = SocketAddr::from((BLACKHOLE4, 1 + dice.below(65_535) as u16));
        Udp::new(guest_addr(remote, 5000), remote, b"").frame()
    };
    bombard(translator, 100_000, &mut Dice(0x11e), begins);
}

/// Count is 100,000, or `$HOSTILE_FRAMES`.
#[test]
fn random_and_mutated_frames_leave_the_process_as_it_was() {
    let Some(world) = World::pod() else { return };
    let count = env::var("HOSTILE_FRAMES").ok();
    let count = count.map_or(100_000, |text| text.parse().expect("HOSTILE_FRAMES"));
    let echoes = both(INTERNET4, INTERNET6, 7).map(|addr| {
        let udp = UdpEcho::start(&world.outside, addr);
        (TcpServer::echo(&world.outside, addr), udp)
    });
    // So few descriptors that running out of them is part of the test.
    let mut translator = Setup::new(&["--quiet"]).limit_files(512).start(&world.pod);
    let idle = translator.idle_fd_count();
    let mut dice = Dice(0x5eed_1234_5678_9abc);
    let seeds = seeds();
    let make = |dice: &mut Dice| frame(dice, &seeds);
    fill_line(&translator);
    bombard(&translator, count / 5, &mut dice, make);
    translator.assert_alive();
    translator.expect_fd_count(idle);
    let warm = translator.rss();
    bombard(&translator, count - count / 5, &mut dice, make);
    translator.assert_alive();
    translator.expect_fd_count(idle);
    let grown = translator.rss().saturating_sub(warm);
    assert!(grown <= 1024, "{grown} KiB more than {warm} KiB");
    let mut guest = Guest::online(translator.connect(), 65_520);
    for (server, _) in &echoes {
        let connection = guest.connect(server.addr());
        guest.echo(connection, 1 << 20);
        guest.close(connection);
    }
}

/// Chains of extension headers, options and fragments, as thc-ipv6 and scapy send them; count is 50,000 or `$HOSTILE_FRAMES`.
#[test]
fn malformed_and_fragmented_packets_leave_memory_unchanged() {
    let Some(world) = World::pod() else { return };
    let count = env::var("HOSTILE_FRAMES").ok();
    let count = count.map_or(50_000, |text| text.parse().expect("HOSTILE_FRAMES"));
    let mut translator = Setup::new(&["--quiet"]).limit_files(512).start(&world.pod);
    let idle = translator.idle_fd_count();
    let mut dice = Dice(0xbad_f00d_5eed);
    let mut warm = None;
    fill_line(&translator);
    for _ in 0..3 {
        bombard(&translator, count / 3, &mut dice, crafted);
        translator.assert_alive();
        translator.expect_fd_count(idle);
        let rss = translator.rss();
        let grown = rss.saturating_sub(*warm.get_or_insert(rss));
        assert!(grown <= 1024, "{grown} KiB more than {warm:?} KiB");
    }
    let mut guest = Guest::new(translator.connect(), 1500, false);
    assert_eq!(guest.lease().address, POD4);
}

#[test]
fn random_octets_on_the_link_end_the_connection_only() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &["--quiet"]);
    let idle = translator.idle_fd_count();
    let mut dice = Dice(0x0dd_ba11);
    for _ in 0..200 {
        let mut stream = translator.connect();
        let len = dice.below(5000);
        // A refusal in the middle is as good as one at the end.
        let _ = stream.write_all(&dice.bytes(len));
        drop(stream);
    }
    translator.assert_alive();
    translator.expect_fd_count(idle);
    let mut guest = Guest::new(translator.connect(), 1500, false);
    assert_eq!(guest.lease().address, POD4);
}

/// More flows than there is room for: those idle or half-open for longest make way, and what was open works on.
#[test]
fn running_out_of_room_for_flows_breaks_none() {
    let Some(world) = World::pod() else { return };
    let server = TcpServer::echo(&world.outside, (INTERNET4, 7));
    let udp = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let mut translator = Setup::new(&["--quiet"]).limit_files(256).start(&world.pod);
    let wire = guest::Wire::new(translator.connect());
    let remote = server.addr();
    let mut first = guest::Peer::connect(&wire, guest_addr(remote, 999), remote);
    for port in 1000..2000 {
        let local: SocketAddr = guest_addr(remote, port);
        wire.send(&Udp::new(local, udp.addr(), b"x").frame());
        let peer = guest::Peer::new(&wire, local, (Ipv4Addr::new(203, 0, 113, 3), 9).into(), 1);
        wire.send(&peer.segment(SYN, &[]).frame());
    }
    let full = wait_until(LONG, || translator.fd_count() > 100);
    assert!(full, "{}\n{}", translator.fd_count(), translator.log());
    assert!(translator.fd_count() <= 256);
    first.send_data(b"still there");
    assert_eq!(first.read(11), b"still there");
    translator.assert_alive();
}
