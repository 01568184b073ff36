//! Every call that may fail, failing: one by one, and for a while.

use std::{
    cell::Cell,
    env,
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM, c_int, c_long};

use super::supervisor::{Call, Faults};
use crate::{
    guest::{
        Icmp, Peer, Tcp, Udp, Wire, both,
        frame::{ACK, RST, SYN},
        guest_addr,
        tcp::syn_options,
    },
    lab::{
        LONG, Setup, Translator, World,
        servers::{TcpServer, UdpEcho},
        wait_until,
        world::{GATEWAY4, INTERNET4, INTERNET6, POD4},
    },
};

/// What the program asks of the kernel that may be refused, but for memory and files.
const CALLS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
];

const ERRORS: [c_int; 5] = [EMFILE, ENFILE, ENOMEM, ENOBUFS, EPERM];

/// The forwarded port.
const PORT: u16 = 2222;

/// The most processor time, in percent of real time, that a translator may use that can do nothing.
const BUSY: u32 = 50;

/// More failures than that are of somebody who tries again without a pause.
const OFTEN: u64 = 1000;

/// How long a process is watched that has nothing to do.
const IDLE: Duration = Duration::from_millis(200);

/// The errors for the `n`th call.
fn errors(n: u64) -> Vec<c_int> {
    if env::var("FAULTS").is_ok_and(|text| text == "all") {
        ERRORS.to_vec()
    } else {
        vec![ERRORS[n as usize % ERRORS.len()]]
    }
}

/// Everything around one process whose calls fail.
struct Bench {
    translator: Translator,
    faults: Faults,
    tcp: [TcpServer; 2],
    udp: [UdpEcho; 2],
    world: World,
    round: Cell<u16>,
}

impl Bench {
    fn new() -> Option<Self> {
        let world = World::pod()?;
        let remotes = both(INTERNET4, INTERNET6, 7);
        let tcp = remotes.map(|addr| TcpServer::echo(&world.outside, addr));
        let udp = remotes.map(|addr| UdpEcho::start(&world.outside, addr));
        let setup = Setup::new(&["-t", "2222", "-u", "2222"]);
        let (faults, setup) = Faults::around(setup, CALLS);
        let translator = setup.start(&world.pod);
        translator.idle_fd_count();
        Some(Self {
            translator,
            faults,
            tcp,
            udp,
            world,
            round: Cell::new(0),
        })
    }

    /// A port of the guest's that was not used lately.
    fn port(&self) -> u16 {
        self.round.set(self.round.get().wrapping_add(7));
        1024 + self.round.get() % 60_000
    }

    /// A guest does a little of everything, and does not mind what becomes of it; its link may be what fails.
    fn provoke(&self, wire: &Wire) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.try_all(wire)));
    }

    fn try_all(&self, wire: &Wire) {
        for (tcp, udp) in self.tcp.iter().zip(&self.udp) {
            let port = self.port();
            let (local, remote) = (guest_addr(tcp.addr(), port), tcp.addr());
            let mut peer = Peer::new(wire, local, remote, 1000);
            let syn = Tcp {
                options: syn_options(1400, Some(0)),
                ..peer.segment(SYN, &[])
            };
            wire.send(&syn.frame());
            peer.snd_nxt += 1;
            wire.send(&Udp::new(local, udp.addr(), b"hello").frame());
            let ping = Icmp::echo_request(local.ip(), remote.ip(), port, 1, b"hello");
            wire.send(&ping.frame());
            if let Some(answer) = peer.recv_within(SOON)
                && answer.has(SYN | ACK)
            {
                peer.rcv_nxt = answer.seq.wrapping_add(1);
                peer.send_data(b"hello");
                while let Some(segment) = peer.recv_within(SOON) {
                    let mut data = Vec::new();
                    peer.take(&segment, &mut data);
                    if segment.has(RST) || !data.is_empty() {
                        break;
                    }
                }
                peer.fin();
                peer.rst();
            }
        }
        self.knock(wire);
    }

    /// The world outside comes to the forwarded ports.
    fn knock(&self, wire: &Wire) {
        let target = SocketAddr::from((POD4, PORT));
        self.world.outside.run(|| {
            let udp = UdpSocket::bind((GATEWAY4, 0)).unwrap();
            let _ = udp.send_to(b"hello", target);
            if let Ok(mut stream) = TcpStream::connect_timeout(&target, SOON) {
                let _ = stream.write_all(b"hello");
            }
        });
        while let Some(frame) = wire.recv(Duration::from_millis(3)) {
            if let Some(syn) = Tcp::of_frame(&frame)
                && syn.has(SYN)
                && syn.dst.port() == PORT
            {
                let mut reset = Tcp::new(syn.dst, syn.src, RST | ACK);
                reset.ack = syn.seq.wrapping_add(1);
                wire.send(&reset.frame());
            }
        }
    }

    /// All of it works.
    fn assert_works(&self) {
        let wire = Wire::new(self.translator.connect());
        for (tcp, udp) in self.tcp.iter().zip(&self.udp) {
            let (local, remote) = (guest_addr(tcp.addr(), self.port()), tcp.addr());
            let mut peer = Peer::connect(&wire, local, remote);
            peer.send_data(b"still there?");
            assert_eq!(peer.read(12), b"still there?");
            peer.close();
            wire.send(&Udp::new(local, udp.addr(), b"and you?").frame());
            let want = Udp::new(udp.addr(), local, b"and you?");
            wire.expect("echo", |frame| {
                Udp::of_frame(frame).filter(|udp| *udp == want)
            });
        }
        let target = SocketAddr::from((POD4, PORT));
        let _knocking = self
            .world
            .outside
            .run(|| TcpStream::connect_timeout(&target, LONG).unwrap());
        Peer::accept(&wire, PORT).rst();
    }
}

/// How long an answer is waited for that may never come.
const SOON: Duration = Duration::from_millis(40);

/// Each call of a life of all kinds of flows fails once, in a process that lives on.
#[test]
fn any_one_call_may_fail_and_what_comes_after_works() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    bench.assert_works();
    let idle = bench.translator.idle_fd_count();
    let pid = bench.translator.pid();
    let (mut n, mut failed, mut missed) = (0, 0, 0);
    // Calls that were not come to, three in a row: not for want of time, but because there are no more.
    while missed < 3 {
        let mut reached = false;
        for error in errors(n) {
            let count = Arc::new(AtomicU64::new(0));
            bench.faults.set({
                let count = count.clone();
                move |call| {
                    let ours = call.pid == pid;
                    (ours && count.fetch_add(1, Ordering::Relaxed) == n).then_some(error)
                }
            });
            bench.provoke(&Wire::new(bench.translator.connect()));
            bench.faults.clear();
            reached |= count.load(Ordering::Relaxed) > n;
            failed += 1;
            bench.translator.assert_alive();
        }
        if n % 16 == 0 {
            bench.assert_works();
        }
        missed = if reached { 0 } else { missed + 1 };
        n += 1;
    }
    println!("{n} calls, {failed} errors");
    assert!(n > 50, "{n} calls");
    bench.assert_works();
    bench.translator.expect_fd_count(idle);
    assert_no_panic(&bench.translator);
}

/// Calls of one kind fail for a while, as when memory or descriptors are short for everybody: flows are refused or reset,
/// the log says why in a few lines, nobody spins, and when it is over it is over.
#[test]
fn a_shortage_that_lasts_costs_flows_but_nothing_else() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    bench.assert_works();
    let idle = bench.translator.idle_fd_count();
    let pid = bench.translator.pid();
    for (n, &number) in CALLS.iter().enumerate() {
        for error in errors(n as u64) {
            let wire = Wire::new(bench.translator.connect());
            bench.provoke(&wire);
            let (log, cpu) = (bench.translator.log(), bench.translator.cpu());
            let start = Instant::now();
            let hits = Arc::new(AtomicU64::new(0));
            bench.faults.set({
                let hits = hits.clone();
                move |call: Call| {
                    let hit = call.pid == pid && call.number == number;
                    hits.fetch_add(u64::from(hit), Ordering::Relaxed);
                    hit.then_some(error)
                }
            });
            bench.provoke(&wire);
            bench.provoke(&wire);
            // Whoever spins does so now.
            thread::sleep(IDLE);
            let (took, used) = (start.elapsed(), bench.translator.cpu() - cpu);
            bench.faults.clear();
            drop(wire);
            let said = bench.translator.log()[log.len()..].to_owned();
            let hits = hits.load(Ordering::Relaxed);
            println!(
                "call {number}, error {error}: {hits} failures, {used:?} of {took:?}, said: {said}"
            );
            bench.translator.assert_alive();
            assert!(said.lines().count() < 60, "{said}");
            assert!(
                used < Duration::from_millis(100) + took * BUSY / 100 && hits < OFTEN,
                "call {number}, error {error}: {used:?} of {took:?}, {hits} failures"
            );
            bench.assert_works();
        }
    }
    bench.translator.expect_fd_count(idle);
    assert_no_panic(&bench.translator);
}

/// Nothing more need happen on the host.
#[test]
fn tables_that_could_not_be_read_are_read_later() {
    let Some(world) = World::pod() else { return };
    let (faults, setup) = Faults::around(Setup::new(&[]), &[libc::SYS_socket]);
    let translator = setup.start(&world.pod);
    translator.idle_fd_count();
    faults.set(|_| Some(EMFILE));
    world.pod.ip("link del eth0");
    translator.expect_log("Couldn't read network settings: Too many open files");
    faults.clear();
    translator.expect_log("template interface: none (IPv4), none (IPv6)");
    let warnings = translator.log().matches("Couldn't read network").count();
    assert_eq!(warnings, 1, "{}", translator.log());
}

/// Each call of the start fails once: it goes without, or says why not in one line.
#[test]
fn a_call_that_fails_at_the_start_is_told_in_one_line_or_done_without() {
    let Some(world) = World::pod() else { return };
    let (mut n, mut started, mut refused) = (0, 0, 0);
    loop {
        let mut reached = false;
        for error in errors(n) {
            let setup = Setup::new(&["-t", "2222", "-u", "2222"]);
            let (faults, setup) = Faults::around(setup, CALLS);
            let count = Arc::new(AtomicU64::new(0));
            faults.set({
                let count = count.clone();
                move |_| (count.fetch_add(1, Ordering::Relaxed) == n).then_some(error)
            });
            let mut translator = setup.try_start(&world.pod);
            // It listens before it is ready, and what fails then ends it too.
            wait_until(Duration::from_millis(30), || translator.has_ended());
            assert_no_panic(&translator);
            if translator.has_ended() {
                let code = translator.wait(LONG);
                let said = wait_until(LONG, || !translator.log().is_empty());
                let log = translator.log();
                assert!(said && code == 1, "call {n}, error {error}: {code}: {log}");
                refused += 1;
            } else {
                started += 1;
            }
            reached |= count.load(Ordering::Relaxed) > n;
        }
        if !reached {
            break;
        }
        n += 1;
    }
    println!("{n} calls: {started} starts without, {refused} refusals");
    assert!(n > 20, "{n} calls");
}

fn assert_no_panic(translator: &Translator) {
    let log = translator.log();
    assert!(!log.contains("panicked"), "{log}");
}
