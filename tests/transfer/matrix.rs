//! Guests of many kinds: link sizes, congestion control, buffers. Every stream arrives whole and never stands still for long.
//!
//! `MATRIX_MIB` is the size of each stream, an eighth of it where frames are lost; `GAP_MS` is how long a stream may stand
//! still (2,500 by default, as this machine may be busy with others; 250 on one that is not).

use std::{
    net::{IpAddr, TcpStream},
    sync::atomic::Ordering,
    time::Duration,
};

use socket2::SockRef;

use crate::{
    kernel_guest::KernelGuest,
    lab::{
        Host, Translator, World,
        world::{INTERNET4, INTERNET6},
    },
    stream::{Server, carry, connect, number},
};

/// How large buffers may grow.
#[derive(Debug, Clone, Copy)]
enum Buffers {
    /// As this kernel has it.
    Usual,
    Small,
    Large,
}

use Buffers::{Large, Small, Usual};

impl Buffers {
    /// Values of tcp_rmem and tcp_wmem: least, first and most.
    const fn sysctl(self) -> Option<&'static str> {
        match self {
            Usual => None,
            Small => Some("4096 16384 65536"),
            Large => Some("4096 131072 134217728"),
        }
    }
}

/// MTU, congestion control in the guest and of its peer, buffers of the guest, buffers of the host.
type Case = (u32, &'static str, Buffers, Buffers);

const SMALL_LINKS: [Case; 5] = [
    (576, "reno", Usual, Usual),
    (576, "bbr", Small, Large),
    (576, "cubic", Large, Small),
    (1280, "bbr", Usual, Usual),
    (1280, "reno", Small, Small),
];

const ETHERNETS: [Case; 7] = [
    (1500, "reno", Usual, Usual),
    (1500, "reno", Small, Usual),
    (1500, "reno", Large, Small),
    (1500, "bbr", Usual, Usual),
    (1500, "bbr", Large, Large),
    (1500, "cubic", Usual, Usual),
    (1500, "cubic", Small, Small),
];

const LARGE_LINKS: [Case; 9] = [
    (9000, "reno", Large, Large),
    (9000, "bbr", Small, Usual),
    (65_520, "reno", Usual, Usual),
    (65_520, "reno", Small, Small),
    (65_520, "reno", Large, Large),
    (65_520, "bbr", Usual, Usual),
    (65_520, "bbr", Small, Large),
    (65_520, "cubic", Usual, Usual),
    (65_520, "cubic", Large, Small),
];

#[test]
fn guests_with_small_links_are_served_without_a_pause() {
    run(&SMALL_LINKS);
}

/// Regression T65.
#[test]
fn guests_with_ethernet_links_are_served_without_a_pause() {
    run(&ETHERNETS);
}

#[test]
fn guests_with_large_links_are_served_without_a_pause() {
    run(&LARGE_LINKS);
}

fn run(cases: &[Case]) {
    let size = number("MATRIX_MIB", 8) << 20;
    let gap = Duration::from_millis(number("GAP_MS", 2500));
    // RTO and a repetition of it, where frames are lost.
    let lossy = gap.max(Duration::from_secs(1));
    for &case in cases {
        if !serve(case, size, gap, lossy) {
            return;
        }
    }
}

/// `false` where this test is not to go on.
fn serve(case: Case, size: u64, gap: Duration, lossy: Duration) -> bool {
    let (mtu, congestion, guest_buffers, host_buffers) = case;
    let Some(world) = World::pod() else {
        return false;
    };
    for host in [&world.pod, &world.outside] {
        prepare(host, congestion, host_buffers);
    }
    let translator = Translator::start(&world.pod, &["--mtu", &mtu.to_string()]);
    let plugged = KernelGuest::plug_after(&translator, mtu, |host| {
        prepare(host, congestion, guest_buffers);
    });
    let Some(guest) = plugged else { return false };
    if mtu >= 1280 {
        guest.number();
    } else {
        guest.host().ip("addr add 10.233.70.50/24 dev eth0
             route add default via 10.233.70.1 dev eth0");
    }
    // No IPv6 over links this small (RFC 8200, section 5); elsewhere the families take turns.
    let v6 = mtu >= 1280 && (mtu / 4 + congestion.len() as u32).is_multiple_of(2);
    let address: IpAddr = if v6 {
        INTERNET6.into()
    } else {
        INTERNET4.into()
    };
    let server = Server::remote(&world, address);
    for loss in [0, 10_000] {
        for up in [true, false] {
            let (near, far) = connect(&guest, &server);
            if !control(&near, congestion) || !control(&far, congestion) {
                println!("skipped: {congestion} may not be chosen here");
                return true;
            }
            let (from, to) = if up { (near, far) } else { (far, near) };
            guest.counters().loss.store(loss, Ordering::Relaxed);
            let (size, limit) = if loss == 0 {
                (size, gap)
            } else {
                (size / 8, lossy)
            };
            let pause = carry(&from, &to, size);
            guest.counters().loss.store(0, Ordering::Relaxed);
            let what = format!("{case:?} to {address}, up {up}, {loss} of a million frames lost");
            println!("{what}: {pause:?} without progress at most");
            assert!(pause <= limit, "{what}: {pause:?} without progress");
        }
    }
    true
}

fn prepare(host: &Host, congestion: &str, buffers: Buffers) {
    // Cubic is chosen by each socket: not every kernel lets a namespace have it.
    if congestion != "cubic" {
        host.sysctl("ipv4/tcp_congestion_control", congestion);
    }
    if let Some(sizes) = buffers.sysctl() {
        host.sysctl("ipv4/tcp_rmem", sizes);
        host.sysctl("ipv4/tcp_wmem", sizes);
    }
}

fn control(stream: &TcpStream, congestion: &str) -> bool {
    SockRef::from(stream)
        .set_tcp_congestion(congestion.as_bytes())
        .is_ok()
}
