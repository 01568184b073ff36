//! Time that stands still, or jumps.

use std::{
    env, fs,
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    guest::{Peer, Tcp, Udp, Wire, guest_addr},
    kernel_guest::KernelGuest,
    lab::{
        LONG, QUIET, Setup, Translator, World,
        servers::{TcpServer, UdpEcho, accept, tcp_listener},
        uninterrupted,
        world::INTERNET4,
    },
    supervisor::Faults,
};

/// Octets of a transfer that is interrupted.
const BULK: usize = 64 << 20;

/// Stopped in the middle of a transfer, it goes on where it was: what came meanwhile waited in sockets.
#[test]
fn a_process_stopped_for_long_goes_on_where_it_was() {
    let seconds = env::var("STOP_SECONDS").map_or(3, |text| text.parse().expect("STOP_SECONDS"));
    let Some(world) = World::pod() else { return };
    let server = TcpServer::start(&world.outside, (INTERNET4, 7), move |mut stream| {
        // It waits for as long.
        let patience = Some(LONG + Duration::from_secs(seconds));
        stream.set_write_timeout(patience).unwrap();
        let mut go = [0];
        let _ = stream.read_exact(&mut go);
        let _ = stream.write_all(&vec![7; BULK]);
    });
    let mut translator = Translator::start(&world.pod, &[]);
    let Some(guest) = KernelGuest::plug(&translator, 65_520) else {
        return;
    };
    guest.number();
    let stream = guest.host().run(|| TcpStream::connect(server.addr()));
    let mut stream = stream.unwrap();
    stream
        .set_read_timeout(Some(LONG + Duration::from_secs(seconds)))
        .unwrap();
    stream.write_all(b"!").unwrap();
    let mut bytes = vec![0; BULK];
    let (first, rest) = bytes.split_at_mut(BULK / 4);
    stream.read_exact(first).unwrap();
    translator.signal(Signal::SIGSTOP);
    let resumed = thread::scope(|scope| {
        let waking = scope.spawn(|| {
            thread::sleep(Duration::from_secs(seconds));
            translator.signal(Signal::SIGCONT);
        });
        let read = stream.read_exact(rest);
        waking.join().unwrap();
        read
    });
    resumed.unwrap();
    assert!(bytes.iter().all(|&octet| octet == 7));
    // New flows too, and no timer has taken the pause for the guest's.
    let mut again = guest
        .host()
        .run(|| TcpStream::connect(server.addr()))
        .unwrap();
    again.set_read_timeout(Some(LONG)).unwrap();
    again.write_all(b"!").unwrap();
    again.read_exact(&mut bytes[..1000]).unwrap();
    translator.assert_alive();
}

/// What the guest has said while its translator stood still is heard before any timer runs out.
#[test]
fn an_acknowledgement_that_waits_for_us_was_not_late() {
    const STANDS: Duration = Duration::from_secs(2);
    let Some(world) = World::pod() else { return };
    let (faults, setup) = Faults::around(Setup::new(&[]), &[libc::SYS_recvmsg]);
    let translator = setup.start(&world.pod);
    let wire = Wire::new(translator.connect());
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&world.outside, remote);
    let other = world.outside.run(|| UdpSocket::bind(remote)).unwrap();
    let hello = Udp::new(guest_addr(remote, 999), remote, b"hello");
    wire.send(&hello.frame());
    let (_, client) = uninterrupted(|| other.recv_from(&mut [0; 8])).unwrap();
    // In the midst of its work, and while it sleeps.
    for (works, port) in [(true, 40_000), (false, 40_001)] {
        let mut peer = Peer::connect(&wire, guest_addr(remote, port), remote);
        let mut server = accept(&listener);
        let (tell, told) = mpsc::channel();
        let passed = (0..100).any(|_| {
            let begin = Instant::now();
            server.write_all(b"!").unwrap();
            let new = |s: &Tcp| s.seq == peer.rcv_nxt && !s.payload.is_empty();
            assert_eq!(peer.expect("data", new).payload, b"!");
            if works {
                let mut tell = Some(tell.clone());
                faults.set(move |_| {
                    if let Some(tell) = tell.take() {
                        tell.send(()).unwrap();
                        thread::sleep(STANDS);
                    }
                    None
                });
                other.send_to(b"stand still", client).unwrap();
                told.recv_timeout(LONG).unwrap();
            } else {
                translator.fall_asleep();
                translator.stand_still();
            }
            peer.rcv_nxt = peer.rcv_nxt.wrapping_add(1);
            peer.ack();
            // Sooner than the least timeout, of 200 ms. Where we stood still before that, it does not count.
            let soon = begin.elapsed() < Duration::from_millis(150);
            if works {
                wire.expect("datagram", Udp::of_frame);
            } else {
                thread::sleep(STANDS);
                translator.signal(Signal::SIGCONT);
            }
            let again = peer.recv_within(QUIET);
            assert!(!soon || again.is_none(), "sent again: {again:?}");
            soon
        });
        assert!(passed, "{works}");
    }
}

/// Answers every question about the time of day with another year.
const JUMPING_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void) {
    static unsigned long state = 1;
    state = state * 6364136223846793005ul + 1442695040888963407ul;
    return (long)(state >> 33);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        now->tv_sec = jump();
        now->tv_nsec = jump() % 1000000000;
        return 0;
    }
    return (int)syscall(SYS_clock_gettime, clock, now);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    now->tv_sec = jump();
    now->tv_usec = jump() % 1000000;
    return 0;
}

time_t time(time_t *now) {
    time_t at = jump();
    if (now) *now = at;
    return at;
}
"#;

/// Regression C52: nothing but the monotonic clock matters.
#[test]
fn the_time_of_day_may_jump_as_it_likes() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&["--debug"]);
    let (source, library) = (setup.dir().join("clock.c"), setup.dir().join("clock.so"));
    fs::write(&source, JUMPING_CLOCK).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        println!("skipped: no C compiler");
        return;
    }
    fs::set_permissions(&library, fs::Permissions::from_mode(0o755)).unwrap();
    let pcap = setup.dir().join("pcap");
    let mut translator = setup
        .env("LD_PRELOAD", library.to_str().unwrap())
        .arg("--pcap")
        .arg(pcap.to_str().unwrap())
        .start(&world.pod);
    let maps = fs::read_to_string(format!("/proc/{}/maps", translator.pid())).unwrap();
    assert!(maps.contains("clock.so"), "not loaded");
    let tcp = TcpServer::echo(&world.outside, (INTERNET4, 7));
    let udp = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let wire = Wire::new(translator.connect());
    let mut peer = Peer::connect(&wire, guest_addr(tcp.addr(), 999), tcp.addr());
    let hello = Udp::new(guest_addr(udp.addr(), 999), udp.addr(), b"hello");
    for _ in 0..100 {
        wire.send(&hello.frame());
        wire.expect("echo", Udp::of_frame);
        peer.send_data(b"what time is it?");
        assert_eq!(peer.read(16), b"what time is it?");
    }
    // An octet that is not acknowledged comes again, neither at once nor never.
    peer.send_data(b"x");
    for what in ["echo", "repetition"] {
        peer.expect(what, |s| s.seq == peer.rcv_nxt && s.payload == b"x");
    }
    assert_eq!(udp.clients().len(), 100);
    let stamps: Vec<String> = stamps(&translator.log());
    assert!(stamps.len() > 3 && stamps.is_sorted(), "{stamps:?}");
    translator.assert_alive();
}

/// The times in front of the messages.
fn stamps(log: &str) -> Vec<String> {
    let lines = log
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    lines
        .filter_map(|line| line.split_once(": ").map(|(stamp, _)| stamp.to_owned()))
        .collect()
}
