//! Datagram flows without end. `UDP_FLOWS` sets how many (20,000 by default; 1,000,000 take some minutes).

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use super::siege::number;
use crate::{
    guest::{Udp, Wire, guest_addr},
    lab::{
        QUIET, Setup, World,
        servers::{UdpEcho, udp_socket},
        uninterrupted,
        world::{BLACKHOLE4, INTERNET4, INTERNET6},
    },
};

/// Descriptors of the translator.
const FILES: u32 = 1024;

/// Flows begun before it is seen whether all of them were, and how long after them others do: 4,000 a second may.
const ROW: u64 = 500;
const PAUSE: Duration = Duration::from_millis(150);

/// What resident memory may grow by once as many flows were there as there can be, in KiB.
const GROWTH: u64 = 1024;

fn ask(wire: &Wire, from: SocketAddr, echo: SocketAddr, what: &[u8]) {
    wire.send(&Udp::new(from, echo, what).frame());
    wire.expect("an answer", |frame| {
        Udp::of_frame(frame).filter(|udp| udp.dst == from && udp.payload == what)
    });
}

/// Memory and descriptors stay what they were, who was idle for longest makes way, and who is not is answered all the time.
#[test]
fn a_million_datagram_flows_leave_memory_and_descriptors_what_they_were() {
    let Some(world) = World::pod() else { return };
    let translator = Setup::new(&["--quiet"])
        .limit_files(FILES)
        .start(&world.pod);
    let wire = Wire::new(translator.connect());
    let echo = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let idle = udp_socket(&world.outside, (INTERNET6, 7));
    let idle_at = guest_addr(idle.local_addr().unwrap(), 6000);
    wire.send(&Udp::new(idle_at, idle.local_addr().unwrap(), b"hello").frame());
    let (_, early) = uninterrupted(|| idle.recv_from(&mut [0; 8])).unwrap();
    let busy = guest_addr(echo.addr(), 5000);
    let (count, began) = (number("UDP_FLOWS", 20_000), Instant::now());
    let (mut warm, mut most) = (None, 0);
    for row in 0..count.div_ceil(ROW) {
        for n in row * ROW..(row + 1) * ROW - 1 {
            let remote = SocketAddr::from((BLACKHOLE4, 1 + (n / 40_000) as u16));
            let local = guest_addr(remote, 10_000 + (n % 40_000) as u16);
            wire.send(&Udp::new(local, remote, b"one of very many").frame());
        }
        // Beginnings have their turn in order: when this one is answered, all before it were begun.
        let last = guest_addr(echo.addr(), 10_000 + (row % 40_000) as u16);
        ask(&wire, last, echo.addr(), &row.to_be_bytes());
        ask(&wire, busy, echo.addr(), b"busy");
        most = most.max(translator.fd_count());
        if row == 10 {
            warm = Some(translator.rss());
        }
        thread::sleep(PAUSE);
    }
    let (warm, end) = (warm.expect("more flows"), translator.rss());
    println!(
        "{count} flows in {:?}, at most {most} descriptors, {warm} to {end} KiB",
        began.elapsed()
    );
    assert!(most <= FILES as usize, "{most} descriptors");
    assert!(end <= warm + GROWTH, "{warm} KiB grew to {end} KiB");
    // The one that was idle all the time is not here any more.
    idle.send_to(b"late", early).unwrap();
    wire.never(QUIET, "a late answer", |frame| {
        Udp::of_frame(frame).filter(|udp| udp.payload == b"late")
    });
}
