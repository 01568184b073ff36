//! How long a guest stands still because of us: from the hand-over's start to its end, on the source and on the target.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use crate::{
    guest::{Peer, Wire},
    lab::{
        self, Nodes, Repair, Setup,
        front_end::{Driver, FrontEnd, LINUX, Movable},
        nodes::{PEER, SERVICE},
        translator,
    },
    scene::limit,
};

const ARGS: [&str; 6] = ["--vhost-user", "--no-map-gw", "-t", "none", "-u", "none"];

/// How many connections there are, and how often each count is measured.
const COUNTS: [usize; 3] = [1, 100, 1000];
const ROUNDS: usize = 5;

/// What one hand-over took.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// On the source and on the target, from the order to its end.
    leaving: Duration,
    arriving: Duration,
    /// Processor time of both translators and both helpers.
    work: Duration,
    /// Connections that live on.
    living: usize,
}

impl Took {
    /// The least of each: a machine that does other things besides only adds to them.
    fn least(self, other: Self) -> Self {
        Self {
            leaving: self.leaving.min(other.leaving),
            arriving: self.arriving.min(other.arriving),
            work: self.work.min(other.work),
            living: self.living.min(other.living),
        }
    }
}

/// Processor time of a process (proc(5), schedstat).
fn work(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let nanos = text.split(' ').next().unwrap();
    Duration::from_nanos(nanos.parse().unwrap())
}

/// Takes that many connections from one host to the other.
fn hand_over(binary: &OsStr, helper: &OsStr, count: usize) -> Option<Took> {
    let nodes = Nodes::routed()?;
    let start = |host| Setup::new(&ARGS).binary(binary).start(host);
    let (source, target) = (start(&nodes.source), start(&nodes.target));
    let (card, wire) = Movable::new(source.connect(), Driver::new(LINUX));
    let wire = Wire::new(wire);
    let [service, peer]: [IpAddr; 2] = [SERVICE[0], PEER[0]].map(|addr| addr.parse().unwrap());
    let listener = nodes.peer.run(|| TcpListener::bind((peer, 0)).unwrap());
    let remote = listener.local_addr().unwrap();
    let mut all: Vec<(Peer<'_>, TcpStream)> = (0..count)
        .map(|n| {
            let local = SocketAddr::new(service, 10_000 + n as u16);
            let ours = Peer::connect(&wire, local, remote);
            let (theirs, _) = listener.accept().unwrap();
            limit(&theirs);
            (ours, theirs)
        })
        .collect();
    let start = |host, of| Repair::connected(host, &Repair::path(of), helper);
    let helpers = [start(&nodes.source, &source), start(&nodes.target, &target)];
    let pids = [
        source.pid(),
        target.pid(),
        helpers[0].pid(),
        helpers[1].pid(),
    ];
    let all_work = || pids.iter().map(|pid| work(*pid)).sum::<Duration>();
    let mut bridge = card.halt();
    let before = all_work();
    let (state, leaving) = bridge.front_end.save();
    let mut front_end = FrontEnd::greet(target.connect(), Driver::new(LINUX));
    let (_, arriving) = front_end.load(&state.unwrap());
    let work = all_work() - before;
    nodes.switch("p1", "p2");
    front_end.share_memory();
    front_end.start_rings(0, 0);
    bridge.receive(usize::MAX);
    let _card = bridge.go_on(front_end);
    for (ours, _) in &mut all {
        ours.send_data(b"hello");
    }
    let lives = |(_, theirs): &(Peer<'_>, TcpStream)| {
        let mut octets = [0; 5];
        (&mut &*theirs).read_exact(&mut octets).is_ok() && &octets == b"hello"
    };
    let living = all.iter().filter(|one| lives(one)).count();
    Some(Took {
        leaving,
        arriving,
        work,
        living,
    })
}

fn measure(name: &str, binary: &OsStr, helper: &OsStr) -> bool {
    for count in COUNTS {
        let mut least = None::<Took>;
        for _ in 0..ROUNDS {
            let Some(took) = hand_over(binary, helper, count) else {
                return false;
            };
            least = Some(least.map_or(took, |least| least.least(took)));
        }
        let least = least.unwrap();
        println!("{name}, {count} connections: {least:?}");
        if binary == translator::binary() {
            assert_eq!(least.living, count);
        }
    }
    true
}

/// Figures are printed, for ours and for another make's where it is at hand.
#[test]
fn a_thousand_connections_move_at_once() {
    let ours = measure("ours", &translator::binary(), Repair::ours());
    if let (true, Some(passt), Some(helper)) = (ours, lab::peer("passt"), lab::peer("passt-repair"))
    {
        let path = |path: &Path| path.as_os_str().to_owned();
        measure("the peer", &path(&passt), &path(&helper));
    }
}
