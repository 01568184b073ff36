//! Guests that want of a group what some sources send only, or all but some (RFC 3376, RFC 3810).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use socket2::{SockAddr, SockAddrStorage};

use super::{
    SSDP4, SSDP6, furnish,
    guest::{Icmp, Scene, Udp, dhcpv6::GUEST_LL, frame::Ip, guest_addr},
    member, to,
};
use crate::lab::{
    Host, LONG, QUIET,
    capture::Capture,
    servers::UdpEcho,
    wait_until,
    world::{INTERNET4, POD4},
};

/// Types of records (RFC 3376, section 4.2.12).
const IS_IN: u8 = 1;
const IS_EX: u8 = 2;
const TO_IN: u8 = 3;
const TO_EX: u8 = 4;
const ALLOW: u8 = 5;
const BLOCK: u8 = 6;

const SENDERS4: [&str; 3] = ["10.233.70.101", "10.233.70.102", "10.233.70.103"];
const SENDERS6: [&str; 3] = ["fd10:233:70::101", "fd10:233:70::102", "fd10:233:70::103"];

/// Sockets that send to a group from three addresses of the host's.
fn senders(host: &Host, group: IpAddr) -> [(IpAddr, UdpSocket); 3] {
    let (names, prefix) = if group.is_ipv4() {
        (SENDERS4, "24")
    } else {
        (SENDERS6, "64 nodad")
    };
    names.map(|name| {
        host.ip(&format!("addr add {name}/{prefix} dev pod0"));
        let addr: IpAddr = name.parse().unwrap();
        let socket = host.run(|| UdpSocket::bind((addr, 0)).unwrap());
        if addr.is_ipv6() {
            let index = host.run(|| nix::net::if_::if_nametoindex("pod0").unwrap());
            let socket = socket2::SockRef::from(&socket);
            socket.set_multicast_if_v6(index).unwrap();
        } else {
            let through: Ipv4Addr = name.parse().unwrap();
            let socket = socket2::SockRef::from(&socket);
            socket.set_multicast_if_v4(&through).unwrap();
        }
        (addr, socket)
    })
}

/// A newest report of one record, as a frame.
fn report(group: IpAddr, kind: u8, sources: &[IpAddr]) -> Vec<u8> {
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let mut record = vec![kind, 0];
    record.extend((sources.len() as u16).to_be_bytes());
    record.extend(octets(group));
    record.extend(sources.iter().flat_map(|source| octets(*source)));
    if group.is_ipv6() {
        let to = "ff02::16".parse().unwrap();
        return Icmp::new(GUEST_LL.into(), to, 143, 1, &record).frame();
    }
    let mut payload = vec![0x22, 0, 0, 0, 0, 0, 0, 1];
    payload.extend(record);
    let sum = !smoltcp::wire::checksum::data(&payload);
    payload[2..4].copy_from_slice(&sum.to_be_bytes());
    Ip {
        src: POD4.into(),
        dst: Ipv4Addr::new(224, 0, 0, 22).into(),
        protocol: 2,
        ttl: 1,
        payload,
    }
    .frame()
}

/// Each change of the filter is followed, for as many sources as there is room for; a longer list lets all of them through.
#[test]
fn only_the_sources_a_guest_wants_reach_it() {
    let Some(scene) = Scene::new(&[]) else { return };
    let echo = UdpEcho::start(&scene.world.outside, (INTERNET4, 7));
    let idle = scene.translator.idle_fd_count();
    // Whoever has an answer has been heard before.
    let heard = || {
        let local = guest_addr(echo.addr(), 5000);
        scene
            .wire
            .send(&Udp::new(local, echo.addr(), b"fence").frame());
        scene.wire.expect("echo", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.payload == b"fence")
        });
    };
    heard();
    for group in [IpAddr::from(SSDP4), SSDP6.into()] {
        let senders = senders(&scene.world.outside, group);
        let there = to(&scene.world.outside, "pod0", group, 1900);
        let many: Vec<IpAddr> = (0..100)
            .map(|n| match group {
                IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, n).into(),
                IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
            })
            .collect();
        for (kind, sources, want) in [
            (ALLOW, &[0][..], &[0][..]),
            (ALLOW, &[1], &[0, 1]),
            (BLOCK, &[0], &[1]),
            (IS_IN, &[1], &[1]),
            (TO_IN, &[2], &[1, 2]),
            (BLOCK, &[1], &[2]),
            (TO_EX, &[2], &[0, 1]),
            (ALLOW, &[2], &[0, 1, 2]),
            (BLOCK, &[0, 1], &[2]),
            (IS_EX, &[0], &[1, 2]),
            (TO_IN, &[0], &[0]),
            (ALLOW, &[], &[0, 1, 2]),
            (TO_IN, &[1], &[1]),
            (BLOCK, &[1], &[]),
        ] {
            let listed: Vec<_> = sources.iter().map(|&n: &usize| senders[n].0).collect();
            let listed = if sources.is_empty() { &many } else { &listed };
            scene.wire.send(&report(group, kind, listed));
            heard();
            // What is not wanted goes first: by the time of the last nothing more can come.
            let unwanted = (0..3).filter(|n| !want.contains(n));
            for n in unwanted.chain(want.iter().copied()) {
                senders[n].1.send_to(&[n as u8], there).unwrap();
            }
            let of_group = |frame: &[u8]| {
                let udp = Udp::of_frame(frame).filter(|udp| udp.dst == (group, 1900).into())?;
                Some((udp.src.ip(), udp.payload))
            };
            for &n in want {
                let came = scene.wire.expect("what is wanted", of_group);
                assert_eq!(came, (senders[n].0, vec![n as u8]), "{kind} {sources:?}");
            }
        }
        scene.wire.never(QUIET, "what is not wanted", |frame| {
            Udp::of_frame(frame).filter(|udp| udp.dst.port() == 1900)
        });
        // The echo's flow is not idle.
        assert!(wait_until(LONG, || scene.translator.fd_count() <= idle + 1));
    }
}

/// <linux/in.h>: what a socket wants of a group by source, in either family.
const MCAST_BLOCK_SOURCE: i32 = 43;
const MCAST_UNBLOCK_SOURCE: i32 = 44;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const MCAST_LEAVE_SOURCE_GROUP: i32 = 47;

/// struct group_source_req.
#[repr(C)]
struct GroupSource {
    interface: u32,
    group: SockAddrStorage,
    source: SockAddrStorage,
}

fn say(host: &Host, socket: &UdpSocket, option: i32, group: IpAddr, source: IpAddr) {
    let level = match group {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    };
    let storage = |addr: IpAddr| SockAddr::from(SocketAddr::new(addr, 0)).as_storage();
    let request = GroupSource {
        interface: host.run(|| nix::net::if_::if_nametoindex("eth0").unwrap()),
        group: storage(group),
        source: storage(source),
    };
    // SAFETY: the kernel reads a structure of this size, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const request).cast(),
            size_of::<GroupSource>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The same as a kernel says it for its programs: what no program wants does not even reach the guest's device.
#[test]
fn a_kernel_that_wants_some_sources_is_sent_no_others() {
    let Some((world, guest, _translator)) = furnish(&[]) else {
        return;
    };
    for group in [IpAddr::from(SSDP4), SSDP6.into()] {
        let [(wanted, from_wanted), (other, from_other), _] = senders(&world.outside, group);
        let there = to(&world.outside, "pod0", group, 1900);
        let capture = Capture::start(guest.host(), "eth0");
        let came = |from: IpAddr| {
            let packets = capture.packets().into_iter();
            packets
                .filter(|packet| packet.src.ip() == from && packet.dst.port() == 1900)
                .count()
        };
        // Whether what either sends comes, the wanted one's last.
        let comes = |both: bool| {
            wait_until(LONG, || {
                let before = (came(wanted), came(other));
                from_other.send_to(b"other", there).unwrap();
                from_wanted.send_to(b"wanted", there).unwrap();
                wait_until(QUIET, || came(wanted) > before.0) && (came(other) > before.1) == both
            })
        };
        let some = guest.host().run(|| match group {
            IpAddr::V4(_) => UdpSocket::bind("0.0.0.0:1900").unwrap(),
            IpAddr::V6(_) => UdpSocket::bind("[::]:1900").unwrap(),
        });
        say(guest.host(), &some, MCAST_JOIN_SOURCE_GROUP, group, wanted);
        assert!(comes(false), "one source of {group}");
        say(guest.host(), &some, MCAST_JOIN_SOURCE_GROUP, group, other);
        assert!(comes(true), "two sources of {group}");
        say(guest.host(), &some, MCAST_LEAVE_SOURCE_GROUP, group, other);
        assert!(comes(false), "one of two sources of {group}");
        drop(some);
        let all = member(guest.host(), "eth0", group, 1900);
        assert!(comes(true), "all sources of {group}");
        say(guest.host(), &all, MCAST_BLOCK_SOURCE, group, other);
        assert!(comes(false), "all sources but one of {group}");
        say(guest.host(), &all, MCAST_UNBLOCK_SOURCE, group, other);
        assert!(comes(true), "all sources of {group} again");
    }
}
