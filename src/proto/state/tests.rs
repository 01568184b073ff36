use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    flow::Key,
    net::{Endpoint, Now, Protocol, Seq},
    proto::tcp::{Conn, Half, Saved, SavedReceiver, SavedSender, Stage, SynRetries, Terms},
};

/// Octets of a queue, and flows of each kind: an interpreter (Miri) takes a thousand times as long.
const QUEUE: usize = if cfg!(miri) { 20 } else { 300 };
const FLOWS: usize = if cfg!(miri) { 2 } else { 4 };

fn octets() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..QUEUE)
}

fn ends() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
        any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
    ]
}

fn key(protocol: Protocol) -> impl Strategy<Value = Key> {
    (ends(), any::<(u16, u16)>()).prop_map(move |((guest, remote), ports)| Key {
        protocol,
        guest: Endpoint::new(guest, ports.0),
        remote: Endpoint::new(remote, ports.1),
    })
}

fn sockets() -> impl Strategy<Value = (std::net::SocketAddr, std::net::SocketAddr)> {
    (ends(), 1..=u16::MAX, 1..=u16::MAX)
        .prop_map(|((a, b), from, to)| ((a, from).into(), (b, to).into()))
}

fn udp() -> impl Strategy<Value = Udp> {
    let seen = (0..3_u8, 0..3_u8);
    (key(Protocol::Udp), sockets(), seen, device()).prop_map(
        |(key, (local, peer), seen, device)| Udp {
            key,
            local,
            peer,
            seen,
            device,
        },
    )
}

fn device() -> impl Strategy<Value = Option<String>> {
    option::of("[a-z]{1,10}[0-9]{1,5}")
}

fn half() -> impl Strategy<Value = Half> {
    prop_oneof![
        Just(Half::Open),
        Just(Half::FinSeen),
        Just(Half::FinSent),
        Just(Half::Done)
    ]
}

prop_compose! {
    fn saved()(
        host in half(),
        guest in half(),
        (una, nxt, wl1, wl2) in any::<(u32, u32, u32, u32)>(),
        (flight, more, window, largest) in (0..1_u32 << 20, 0..1_u32 << 20, 0..1_u32 << 20, 0..1_u32 << 20),
        (mss, scale) in (1..=u16::MAX, 0..=14_u8),
        (promised, slack, lag) in (0..1_u32 << 20, 0..256_u32, 0..1_u32 << 16),
        early in option::of(0..1_u32 << 16),
        forgotten in any::<bool>(),
        (scaling, sack, timestamps) in any::<(bool, bool, bool)>(),
        (clock, recent) in any::<(u32, u32)>(),
    ) -> Saved {
        let (una, nxt) = (Seq(una), Seq(nxt));
        let (max, fin) = match host {
            Half::Open => (una + flight, None),
            Half::FinSeen | Half::FinSent => (una + flight, Some(una + flight + more)),
            // A guest that has ended its own stream may forget the other.
            Half::Done if forgotten && guest != Half::Open => (una + flight, None),
            Half::Done => (una, Some(una - 1)),
        };
        let shown = nxt + promised;
        Saved {
            stage: Stage::Open { host, guest },
            send: SavedSender {
                una, max, window, largest: largest.max(window), wl1: Seq(wl1), wl2: Seq(wl2), mss, scale, fin,
            },
            receive: SavedReceiver {
                nxt,
                edge: shown - slack,
                shown,
                acked: nxt - lag,
                mss,
                fin: if guest == Half::Open { early.map(|early| nxt + early) } else { Some(nxt - 1) },
            },
            terms: Terms { mss, scaling, sack, timestamps },
            clock,
            recent,
        }
    }
}

prop_compose! {
    fn carried()(
        (local, peer) in sockets(),
        (send_seq, receive_seq, mss) in (any::<u32>(), any::<u32>(), 1..=u16::MAX),
        scales in option::of((0..=14_u8, 0..=14_u8)),
        (sack, timestamp, window) in any::<(bool, Option<u32>, [u32; 5])>(),
        (ended, shut) in any::<(bool, bool)>(),
        (ttl, tos) in (1..=u8::MAX, 0..64_u8),
        keepalive in option::of((1..=KEEPALIVE_MAX, 1..=KEEPALIVE_MAX)),
        device in device(),
        (unacked, unsent, received) in (octets(), octets(), octets()),
    ) -> Carried {
        Carried {
            local, peer, send_seq, receive_seq, mss, scales, sack, timestamp, window, ended, shut,
            options: SocketOptions { ttl, tos: tos << 2, keepalive, device },
            unacked, unsent, received,
        }
    }
}

fn tcp() -> impl Strategy<Value = Tcp> {
    let host = prop_oneof![
        Just(HostSide::Lost),
        octets().prop_map(HostSide::Over),
        carried().prop_map(|carried| HostSide::Open(Box::new(carried))),
    ];
    (key(Protocol::Tcp), saved(), host).prop_map(|(key, conn, host)| Tcp { key, conn, host })
}

prop_compose! {
    fn visitor()(
        mac in option::of(any::<[u8; 6]>()),
        our_mac in any::<[u8; 6]>(),
        (addr4, addr6, link_local6) in any::<(Option<Ipv4Addr>, Option<Ipv6Addr>, Option<Ipv6Addr>)>(),
        heard in vec(any::<IpAddr>(), 0..8),
        mtu in any::<u16>(),
        told4 in option::of((any::<Ipv4Addr>(), 1..=32_u8, any::<Option<Ipv4Addr>>(), any::<Ipv4Addr>())),
        told6 in option::of(any::<(Option<Ipv6Addr>, Option<Ipv6Addr>, Ipv6Addr)>()),
    ) -> Visitor {
        let unicast = |mut mac: [u8; 6]| {
            mac[0] &= 0xfe;
            Mac(mac)
        };
        Visitor {
            mac: mac.map(unicast),
            our_mac: unicast(our_mac),
            addr4, addr6, link_local6, heard, mtu,
            told4: told4.map(|(addr, prefix, router, ours)| Told4 { addr, prefix, router, ours }),
            told6: told6.map(|(addr, router, ours)| Told6 { addr, router, ours }),
        }
    }
}

fn state() -> impl Strategy<Value = State> {
    (visitor(), vec(udp(), 0..FLOWS), vec(tcp(), 0..FLOWS)).prop_map(|(guest, udp, tcp)| State {
        guest,
        udp,
        tcp,
    })
}

/// A state in which an octet of anything but its checksum was changed, with a checksum that fits.
fn tampered(mut octets: Vec<u8>, at: prop::sample::Index, by: u8) -> Vec<u8> {
    let end = octets.len() - 13;
    let at = at.index(end);
    octets[at] ^= by;
    let sum = checksum(&octets[..end]);
    octets[end + 5..].copy_from_slice(&sum.to_be_bytes());
    octets
}

proptest! {
    #[test]
    fn what_was_written_is_read(state in state()) {
        prop_assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn what_was_damaged_on_its_way_is_refused(state in state(), at: prop::sample::Index, by in 1..=u8::MAX) {
        let mut octets = state.encode();
        let at = at.index(octets.len());
        octets[at] ^= by;
        prop_assert!(State::decode(&octets).is_err());
    }

    #[test]
    fn what_was_cut_short_or_is_too_long_is_refused(state in state(), at: prop::sample::Index) {
        let mut octets = state.encode();
        prop_assert!(State::decode(&octets[..at.index(octets.len())]).is_err());
        octets.push(0);
        prop_assert!(State::decode(&octets).is_err());
    }

    /// Whoever can write the state can write its checksum: what is read then can be gone on with, or is refused.
    #[test]
    fn what_was_forged_does_no_harm(state in state(), at: prop::sample::Index, by in 1..=u8::MAX) {
        if let Ok(state) = State::decode(&tampered(state.encode(), at, by)) {
            for tcp in &state.tcp {
                let conn = Conn::restored(&tcp.conn, SynRetries::default(), Now(5_000_000));
                exercise(conn.unwrap());
            }
        }
    }

    #[test]
    fn anything_else_is_refused(octets in octets()) {
        prop_assert!(State::decode(&octets).is_err());
        let mut begun = MAGIC.to_vec();
        begun.extend(VERSION.to_be_bytes());
        begun.extend(&octets);
        prop_assert!(State::decode(&begun).is_err());
    }
}

/// Asks of a connection what the relay does.
fn exercise(mut conn: Conn) {
    let now = Now(6_000_000);
    conn.expired(None, now);
    if conn.sendable() > 0 {
        conn.sent(1, now);
    }
    if conn.fin_due() {
        conn.fin_sent(now);
    }
    let _ = (
        conn.unacknowledged(),
        conn.resend(None, now),
        conn.deadline(),
    );
    conn.acknowledgement(100_000, None, now);
    conn.reset();
}

#[test]
fn a_newer_version_is_refused_by_its_number() {
    let mut octets = State::default().encode();
    octets[9] = 3;
    let refused = State::decode(&octets).unwrap_err();
    assert_eq!(refused, Refused::Newer(3));
    assert_eq!(refused.to_string(), "its version 3 is not known");
    assert_eq!(State::decode(b"\xb1\xbb\x1d\x1b"), Err(Refused::Foreign));
}

proptest! {
    /// It had the same, but for what sockets were told.
    #[test]
    fn a_connection_of_the_first_version_is_read(tcp in tcp()) {
        let options = SocketOptions { ttl: 1, tos: 0xa8, keepalive: Some((0x5aa5, 0x6996)), device: None };
        let told = [1, 0xa8, 1, 0x5a, 0xa5, 0x69, 0x96, 0];
        let mut wanted = tcp.clone();
        let mut written = tcp;
        if let (HostSide::Open(wanted), HostSide::Open(written)) = (&mut wanted.host, &mut written.host) {
            (wanted.options, written.options) = (SocketOptions::default(), options);
        }
        let mut to = Writer::default();
        write_tcp(&mut to, &written);
        let mut octets = to.0;
        // Queues, which may look like it, are behind it.
        if matches!(wanted.host, HostSide::Open(_)) {
            let at = octets.windows(told.len()).position(|piece| piece == told).unwrap();
            octets.drain(at..at + told.len());
        }
        let mut from = Reader(&octets);
        prop_assert_eq!(read_tcp(&mut from, 1), Some(wanted));
        prop_assert!(from.0.is_empty());
    }
}

/// Lengths are not believed before the octets are there.
#[test]
fn a_state_that_claims_to_be_large_takes_no_memory() {
    let mut octets = State::default().encode();
    octets[11..15].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(State::decode(&octets), Err(Refused::Truncated));
}
