//! What a hostile guest sends, as much of it as it likes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use socket2::SockRef;

use super::siege::{Siege, mixed};
use crate::{
    guest::{
        Icmp, Ip, Tcp, Udp,
        dhcp::{DISCOVER, Dhcp, REQUEST},
        dhcpv6::{Dhcpv6, GUEST_LL, SOLICIT},
        fragment::raw_part,
        frame::{ACK, ETHERTYPE_ARP, GUEST_MAC, SYN, UDP, ethernet},
        tcp::syn_options,
    },
    lab::{
        servers::tcp_listener,
        world::{BLACKHOLE4, BLACKHOLE6, GATEWAY4, INTERNET4, INTERNET6, POD4, POD6},
    },
};

/// Where the kernel counts connections that it was asked for.
const CONNECTS: (&str, &str) = ("Tcp:", "ActiveOpens");

/// An address of a guest that routes for a whole network: its own stack knows nothing of what comes back.
fn spoofed(n: u64) -> SocketAddr {
    let [.., a, b, c, d] = mixed(n).to_be_bytes();
    let addr = Ipv4Addr::new(10, 66, a, b.clamp(1, 254));
    (addr, u16::from_be_bytes([c | 4, d])).into()
}

fn port(n: u64) -> u16 {
    1 + (mixed(n) % 65_535) as u16
}

fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let segment = Tcp {
        seq: 7,
        options: syn_options(1400, Some(7)),
        ..Tcp::new(from, to, SYN)
    };
    segment.frame()
}

/// Every SYN is answered, and nobody completes the handshake.
#[test]
fn a_syn_flood_leaves_room_for_new_connections() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    // It hangs up at once, in one thread, so that the flood costs the translator more than the test.
    let server = tcp_listener(&siege.world.outside, (INTERNET4, 79));
    let accepting = server.try_clone().unwrap();
    let hanging_up =
        thread::spawn(move || accepting.incoming().map_while(Result::ok).for_each(drop));
    let target = server.local_addr().unwrap();
    siege.flood_of_flows("SYN flood", CONNECTS, |n| syn(spoofed(n), target));
    SockRef::from(&server).shutdown(Shutdown::Both).unwrap();
    hanging_up.join().unwrap();
}

/// Nobody answers: each stays half-open for as long as the host's kernel tries.
#[test]
fn half_open_connections_by_the_thousand_make_way_for_others() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    siege.flood_of_flows("half-open connections", CONNECTS, half_open);
}

/// As many, where there are fewer descriptors than the table has room for: sixteen at least.
#[test]
fn half_open_connections_make_way_for_others_for_want_of_descriptors() {
    let Some(mut siege) = Siege::lay_among(28, &[]) else {
        return;
    };
    siege.flood_of_flows("half-open, few descriptors", CONNECTS, half_open);
    let log = siege.translator.log();
    assert!(!log.contains("Flow table full"), "{log}");
}

fn half_open(n: u64) -> Vec<u8> {
    if n.is_multiple_of(2) {
        syn((POD4, port(n)).into(), (BLACKHOLE4, 80).into())
    } else {
        syn((POD6, port(n)).into(), (BLACKHOLE6, 80).into())
    }
}

#[test]
fn a_scan_of_the_world_ends_with_its_refusals() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    siege.flood("port scan of the world", |n| {
        // Half of it is nowhere, a quarter is closed, the rest is everywhere.
        let to: IpAddr = match n % 4 {
            0 => INTERNET4.into(),
            1 => Ipv4Addr::from_bits(0x0b00_0000 | (mixed(n) >> 40) as u32).into(),
            2 => Ipv4Addr::new(203, 0, 113, 1 + (n % 3) as u8).into(),
            _ => Ipv6Addr::from_bits((0x2001_0db8 << 96) | u128::from(mixed(n))).into(),
        };
        let from: IpAddr = if to.is_ipv4() {
            POD4.into()
        } else {
            POD6.into()
        };
        syn((from, port(n ^ 1)).into(), (to, port(n)).into())
    });
}

/// A million of them in a hundred seconds at the usual rate.
#[test]
fn more_datagram_flows_than_there_is_room_for_take_turns() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    siege.flood("UDP flows", |n| {
        let (from, to): (SocketAddr, SocketAddr) = if n % 2 == 0 {
            ((POD4, port(n)).into(), (INTERNET4, port(n + 1)).into())
        } else {
            ((POD6, port(n)).into(), (INTERNET6, port(n + 1)).into())
        };
        Udp::new(from, to, b"one of very many").frame()
    });
}

#[test]
fn echo_requests_with_every_identifier_take_turns() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    siege.flood_of_flows("echo requests", ("Icmp:", "OutEchos"), |n| {
        let to = if n % 2 == 0 { INTERNET4 } else { BLACKHOLE4 };
        Icmp::echo_request(POD4.into(), to.into(), n as u16, 1, &[7; 56]).frame()
    });
}

#[test]
fn fragments_that_never_make_a_packet_are_forgotten() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    siege.flood("fragment bombs", |n| {
        let (src, dst): (IpAddr, IpAddr) = if n % 2 == 0 {
            (POD4.into(), INTERNET4.into())
        } else {
            (POD6.into(), INTERNET6.into())
        };
        let ip = Ip {
            src,
            dst,
            protocol: UDP,
            ttl: 64,
            payload: Vec::new(),
        };
        let at = match n % 5 {
            0 => 0,
            // The largest packet there is, from its end.
            1 => 60_000,
            // Overlapping.
            2 => 8,
            _ => 8 * (mixed(n) % 7000) as usize,
        };
        let id = if n % 7 == 0 { 1 } else { n as u32 };
        raw_part(&ip, id, at, &[0xaa; 1400], n % 3 != 0)
    });
}

/// To connections that are not, and to the download itself: acknowledgements of what was never sent, again and again.
#[test]
fn a_storm_of_acknowledgements_moves_nothing() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    let (victim, server) = (siege.victim(), siege.endless.addr());
    siege.flood("ACK storm", |n| {
        let segment = if n % 2 == 0 {
            Tcp {
                seq: mixed(n) as u32,
                ack: (mixed(n) >> 32) as u32,
                ..Tcp::new(victim, server, ACK)
            }
        } else {
            Tcp {
                ack: n as u32,
                ..Tcp::new(spoofed(n), server, ACK)
            }
        };
        segment.frame()
    });
}

/// Connections of real sockets that ask for all and read nothing.
#[test]
fn windows_that_stay_closed_for_ever_hold_up_nobody() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    let host = siege.guest.host().path();
    let server = siege.endless.addr();
    let silent: Vec<TcpStream> = siege.guest.host().run(|| {
        let each = (0..200).map(|_| TcpStream::connect(server));
        each.collect::<Result<_, _>>().expect(&host)
    });
    siege.withstand("windows closed for ever", |stop| wait(stop, silent.len()));
    drop(silent);
}

fn wait(stop: &AtomicBool, count: usize) -> u64 {
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
    count as u64
}

/// Every service asked without end.
#[test]
fn floods_of_questions_to_the_services_are_answered_and_logged_in_moderation() {
    let Some(mut siege) = Siege::lay(&[]) else {
        return;
    };
    let routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    siege.flood("ARP, DHCP, DHCPv6 and NDP floods", |n| {
        match n % 7 {
            0 => arp(GATEWAY4),
            1 => arp(Ipv4Addr::new(10, 233, 70, n as u8)),
            2 => Dhcp::new(DISCOVER).frame(),
            3 => Dhcp::new(REQUEST).with(50, &[10, 0, 0, n as u8]).frame(),
            4 => Dhcpv6::new(SOLICIT).with_ia_na(n as u32, None).frame(),
            5 => Icmp::new(GUEST_LL.into(), routers.into(), 133, 0, &[]).frame(),
            // An advertisement of its own: we are no host on its link.
            _ => Icmp::new(GUEST_LL.into(), nodes.into(), 134, 0x4000_0708, &[0; 8]).frame(),
        }
    });
}

fn arp(wanted: Ipv4Addr) -> Vec<u8> {
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend_from_slice(&GUEST_MAC);
    request.extend_from_slice(&POD4.octets());
    request.extend_from_slice(&[0; 6]);
    request.extend_from_slice(&wanted.octets());
    ethernet([0xff; 6], ETHERTYPE_ARP, &request)
}
