//! What driver and device leave to each other: checksums, and cutting what is too large for the link. Each on and off.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::{
    Scene,
    guest::{
        Tcp, Udp, assert_pattern, both,
        dhcp::{DISCOVER, Dhcp, OFFER},
        frame::{ACK, PSH, SYN},
        guest_addr, pattern,
    },
    lab::{
        LONG,
        front_end::{
            Arrival, CSUM, Driver, FrontEnd, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4,
            GUEST_USO6, LINUX, cut,
        },
        servers::{accept, tcp_listener, udp_socket},
        uninterrupted,
        world::{GATEWAY4, INTERNET4, INTERNET6},
    },
};

const MTU: usize = 1500;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// Octets of a segment that is many, within the first window.
const PART: usize = 20_000;

/// Octets of a stream to the guest, more or less.
const LARGE: usize = 60_000;

fn scene() -> Option<Scene> {
    Scene::new(&["--mtu", "1500"])
}

/// Has a frame leave as segments of `size` octets, each behind its headers of `headers` octets.
fn post_large(guest: &mut FrontEnd, mut frame: Vec<u8>, kind: u8, size: u16, headers: u16) {
    let mut header = cut::leave_checksum(&mut frame);
    header[1] = kind;
    header[2..4].copy_from_slice(&headers.to_le_bytes());
    header[4..6].copy_from_slice(&size.to_le_bytes());
    guest.transmit(&header, &frame, 5);
}

/// The next TCP segment to `port`, cut.
fn segments(arrival: &Arrival, port: u16) -> Option<Vec<Tcp>> {
    let frames = cut::cut(arrival);
    let segments: Vec<_> = frames.iter().filter_map(|f| Tcp::of_frame(f)).collect();
    segments
        .first()
        .is_some_and(|first| first.dst.port() == port)
        .then_some(segments)
}

/// A connection of the guest's, with the other end.
pub fn connect(scene: &Scene, guest: &mut FrontEnd, remote: SocketAddr) -> (Tcp, TcpStream) {
    let listener = tcp_listener(&scene.world.outside, remote);
    let local = guest_addr(remote, 40_000);
    let mut syn = Tcp::new(local, remote, SYN);
    syn.seq = 1000;
    // MSS 1460, window scale 8.
    syn.options = vec![2, 4, 0x05, 0xb4, 1, 3, 3, 8];
    let header = vec![0; guest.driver.header()];
    guest.transmit(&header, &syn.frame(), 1);
    let answer = guest.expect("SYN,ACK", |arrival| {
        segments(arrival, 40_000)?
            .into_iter()
            .find(|tcp| tcp.has(SYN | ACK))
    });
    let mut next = Tcp::new(local, remote, ACK);
    (next.seq, next.ack) = (1001, answer.seq.wrapping_add(1));
    guest.transmit(&header, &next.frame(), 1);
    (next, accept(&listener))
}

#[test]
fn segments_the_guest_has_not_cut_arrive_as_a_stream() {
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    for remote in both(INTERNET4, INTERNET6, 7) {
        let (mut tcp, mut server) = connect(&scene, &mut guest, remote);
        let (kind, headers) = if remote.is_ipv4() {
            (GSO_TCPV4, 54)
        } else {
            (GSO_TCPV6, 74)
        };
        for round in 0..5_usize {
            // An ECN mark on the first of them changes nothing for us (HOST_ECN).
            let kind = kind | if round == 2 { 0x80 } else { 0 };
            tcp.flags = ACK | PSH;
            tcp.payload = pattern((round * PART) as u64, PART);
            post_large(&mut guest, tcp.frame(), kind, 1440, headers);
            tcp.seq += PART as u32;
            let mut got = vec![0; PART];
            server.read_exact(&mut got).unwrap();
            assert_pattern((round * PART) as u64, &got);
            let seq = tcp.seq;
            guest.expect("acknowledgement", |arrival| {
                let all = segments(arrival, 40_000)?;
                all.iter().any(|tcp| tcp.ack == seq).then_some(())
            });
        }
    }
}

/// Regression V01: without offloads what we say has whole checksums, which [`Tcp::of_frame`] holds it to.
#[test]
fn streams_come_in_large_frames_to_those_who_cut_them() {
    for (features, large) in [
        (LINUX, true),
        (LINUX & !GUEST_TSO4 & !GUEST_TSO6, false),
        (LINUX & !GUEST_CSUM & !GUEST_TSO4 & !GUEST_TSO6, false),
    ] {
        let Some(scene) = scene() else { return };
        let mut guest = scene.guest(Driver::new(features));
        for remote in both(INTERNET4, INTERNET6, 7) {
            let (mut tcp, mut server) = connect(&scene, &mut guest, remote);
            let data = pattern(0, 4 * LARGE);
            let sending = std::thread::spawn(move || server.write_all(&data).map(|()| server));
            let (mut got, mut longest) = (Vec::new(), 0);
            while got.len() < 4 * LARGE {
                let all = guest.expect("data", |arrival| {
                    longest = longest.max(arrival.frame.len());
                    let left = arrival.header[0] & NEEDS_CSUM != 0;
                    let len = arrival.frame.len();
                    // Short ones may be computed by us all the same.
                    let ours = features & GUEST_CSUM == 0;
                    assert!(
                        !(left && ours),
                        "the checksum of {len} octets is ours to compute"
                    );
                    assert!(left || ours || len <= 200, "{len} octets");
                    segments(arrival, 40_000)
                });
                for segment in all {
                    assert!(segment.payload.len() <= 1460);
                    if segment.seq == tcp.ack {
                        tcp.ack = tcp.ack.wrapping_add(segment.payload.len() as u32);
                        got.extend(segment.payload);
                    }
                }
                let header = vec![0; guest.driver.header()];
                guest.transmit(&header, &tcp.frame(), 1);
            }
            assert_pattern(0, &got);
            assert_eq!(longest > MTU + 14, large, "{longest}");
            drop(sending.join().unwrap());
        }
    }
}

#[test]
fn a_datagram_that_stands_for_many_leaves_as_many() {
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    for remote in both(INTERNET4, INTERNET6, 7) {
        let server = udp_socket(&scene.world.outside, remote);
        let headers = if remote.is_ipv4() { 42 } else { 62 };
        for size in [1000_usize, 1400, 9] {
            let len = (size * 60 + size / 2).min(50_000);
            let data = pattern(0, len);
            let udp = Udp::new(guest_addr(remote, 40_000), remote, &data);
            post_large(&mut guest, udp.frame(), GSO_UDP_L4, size as u16, headers);
            let mut at = 0;
            while at < len {
                let mut octets = [0; 2000];
                let got = uninterrupted(|| server.recv(&mut octets)).unwrap();
                assert_eq!(got, size.min(len - at));
                assert_pattern(at as u64, &octets[..got]);
                at += got;
            }
        }
        // More than any kernel makes of one: not one of them goes out, and the next does.
        let udp = Udp::new(guest_addr(remote, 40_000), remote, &[7; 1000]);
        post_large(&mut guest, udp.frame(), GSO_UDP_L4, 1, headers);
        let one = Udp::new(guest_addr(remote, 40_000), remote, b"one");
        guest.transmit(&[0; 12], &one.frame(), 1);
        let mut octets = [0; 2000];
        assert_eq!(uninterrupted(|| server.recv(&mut octets)).unwrap(), 3);
    }
}

#[test]
fn a_datagram_to_a_group_that_stands_for_many_leaves_as_many() {
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let member = udp_socket(&scene.world.outside, (Ipv4Addr::UNSPECIFIED, 4000));
    member.join_multicast_v4(&group, &GATEWAY4).unwrap();
    let remote = SocketAddr::from((group, 4000));
    let udp = Udp::new(guest_addr(remote, 40_000), remote, &pattern(0, 2500));
    post_large(&mut guest, udp.frame(), GSO_UDP_L4, 1000, 42);
    for (at, size) in [(0, 1000), (1000, 1000), (2000, 500)] {
        let mut octets = [0; 4000];
        assert_eq!(uninterrupted(|| member.recv(&mut octets)).unwrap(), size);
        assert_pattern(at, &octets[..size]);
    }
}

#[test]
fn datagrams_of_one_size_come_as_one_to_those_who_cut_them() {
    const SIZE: usize = 1200;
    for (features, large) in [
        (LINUX, true),
        (LINUX & !GUEST_USO4 & !GUEST_USO6, false),
        (LINUX & !GUEST_USO6, false),
    ] {
        let Some(scene) = scene() else { return };
        let mut guest = scene.guest(Driver::new(features));
        for remote in both(INTERNET4, INTERNET6, 7) {
            let server = udp_socket(&scene.world.outside, remote);
            let hello = Udp::new(guest_addr(remote, 40_000), remote, b"hello");
            guest.transmit(&[0; 12], &hello.frame(), 1);
            let (_, client) = uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap();
            let data = pattern(0, 20 * SIZE + 77);
            let mut longest = 0;
            // A new flow's come one by one, until its socket is sure to hear its peer alone.
            let begin = Instant::now();
            while longest == 0 || (large && longest <= MTU + 14 && begin.elapsed() < LONG) {
                send_segmented(&server, client, &data, SIZE);
                let mut got = Vec::new();
                while got.len() < data.len() {
                    guest.expect("datagrams", |arrival| {
                        let frames = cut::cut(arrival);
                        let all: Vec<_> = frames.iter().filter_map(|f| Udp::of_frame(f)).collect();
                        if all.is_empty() || all[0].dst.port() != 40_000 {
                            return None;
                        }
                        longest = longest.max(arrival.frame.len());
                        for udp in all {
                            assert_eq!(udp.payload.len(), SIZE.min(data.len() - got.len()));
                            got.extend(udp.payload);
                        }
                        Some(())
                    });
                }
                assert_pattern(0, &got);
            }
            assert_eq!(longest > MTU + 14, large, "{longest}");
        }
    }
}

/// RFC 6864, section 4: who cuts them may have to pass each on by a link that takes less.
#[test]
fn large_datagrams_that_come_as_one_are_told_apart_when_they_are_cut() {
    const SIZE: usize = 2000;
    const COUNT: usize = 20;
    let Some(scene) = Scene::new(&[]) else { return };
    scene.world.pod.ip("link set eth0 mtu 9000");
    scene.world.outside.ip("link set pod0 mtu 9000");
    let mut guest = scene.guest(Driver::new(LINUX));
    let remote = (INTERNET4, 7).into();
    let server = udp_socket(&scene.world.outside, remote);
    let hello = Udp::new(guest_addr(remote, 40_000), remote, b"hello");
    guest.transmit(&[0; 12], &hello.frame(), 1);
    let (_, client) = uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap();
    let data = pattern(0, COUNT * SIZE);
    let begin = Instant::now();
    let (mut together, mut ids, mut octets) = (0, Vec::new(), 0);
    // A new flow's come one by one, until its socket is sure to hear its peer alone; two are to come as one.
    while together < 2 && begin.elapsed() < LONG {
        send_segmented(&server, client, &data, SIZE);
        octets += data.len();
        while octets > 0 {
            guest.expect("datagrams", |arrival| {
                let frames = cut::cut(arrival);
                Udp::of_frame(&frames[0]).filter(|udp| udp.dst.port() == 40_000)?;
                together += usize::from(frames.len() > 1);
                octets -= frames.len() * SIZE;
                assert!(frames.iter().all(|frame| frame[20] == 0), "not to be cut");
                ids.extend(frames.iter().map(|f| u16::from_be_bytes([f[18], f[19]])));
                Some(())
            });
        }
    }
    assert!(together >= 2, "one by one");
    // Far fewer than there are numbers.
    let last = &ids[ids.len().saturating_sub(10_000)..];
    let different: HashSet<_> = last.iter().collect();
    assert_eq!(different.len(), last.len());
}

/// Their checksum is computed here, as that of all short ones, so that the guest cannot be left to cut them.
#[test]
fn a_few_octets_received_as_one_come_one_by_one() {
    const SIZE: usize = 20;
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    for remote in both(INTERNET4, INTERNET6, 7) {
        let server = udp_socket(&scene.world.outside, remote);
        let hello = Udp::new(guest_addr(remote, 40_000), remote, b"hello");
        guest.transmit(&[0; 12], &hello.frame(), 1);
        let (_, client) = uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap();
        let data = pattern(0, 2 * SIZE);
        let begin = Instant::now();
        // Until its socket is sure to hear its peer alone they come one by one anyway.
        while begin.elapsed() < Duration::from_secs(1) {
            send_segmented(&server, client, &data, SIZE);
            for half in data.chunks(SIZE) {
                let udp = guest.expect("datagram", |arrival| {
                    let frames = cut::cut(arrival);
                    assert_eq!(frames.len(), 1);
                    Udp::of_frame(&frames[0]).filter(|udp| udp.dst.port() == 40_000)
                });
                assert_eq!(udp.payload, half);
            }
        }
    }
}

pub fn send_segmented(server: &UdpSocket, client: SocketAddr, data: &[u8], size: usize) {
    setsockopt(server, UdpGsoSegment, &(size as i32)).unwrap();
    assert_eq!(server.send_to(data, client).unwrap(), data.len());
}

/// What a service reads is completed first.
#[test]
fn a_question_to_a_service_may_come_without_its_checksum() {
    let Some(scene) = scene() else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    assert_ne!(guest.driver.features & CSUM, 0);
    let mut frame = Dhcp::new(DISCOVER).frame();
    let header = cut::leave_checksum(&mut frame);
    guest.transmit(&header, &frame, 3);
    guest.expect("DHCP offer", |arrival| {
        let (_, reply) = Dhcp::of_frame(&cut::cut(arrival)[0])?;
        (reply.kind() == Some(OFFER)).then_some(())
    });
}
