//! How long a guest stands still because of us: from the hand-over's start to its end, on the source and on the target.

use std::{
    ffi::OsStr,
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use crate::{
    guest::{Peer, Wire},
    lab::{
        self, Nodes, Setup,
        front_end::{Driver, FrontEnd, LINUX, Movable},
        nodes::{PEER, SERVICE},
        translator,
    },
    scene::{Repair, limit, our_helper},
};

const ARGS: [&str; 6] = ["--vhost-user", "--no-map-gw", "-t", "none", "-u", "none"];

/// How many connections there are, and how often each count is measured.
const COUNTS: [usize; 3] = [1, 100, 1000];
const ROUNDS: usize = 5;

/// Takes that many connections from one host to the other. How long source and target took, and how many live on.
fn hand_over(binary: &OsStr, helper: &OsStr, count: usize) -> Option<(Duration, Duration, usize)> {
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
    let _helpers = [
        Repair::start(&nodes.source, &source, helper),
        Repair::start(&nodes.target, &target, helper),
    ];
    let mut bridge = card.halt();
    let (state, leaving) = bridge.front_end.save();
    let mut front_end = FrontEnd::greet(target.connect(), Driver::new(LINUX));
    let (_, arriving) = front_end.load(&state.unwrap());
    nodes.switch("p1", "p2");
    front_end.share_memory();
    front_end.start_rings(0, 0);
    let _card = bridge.go_on(front_end);
    for (ours, _) in &mut all {
        ours.send_data(b"hello");
    }
    let lives = |(_, theirs): &(Peer<'_>, TcpStream)| {
        let mut octets = [0; 5];
        (&mut &*theirs).read_exact(&mut octets).is_ok() && &octets == b"hello"
    };
    let living = all.iter().filter(|one| lives(one)).count();
    Some((leaving, arriving, living))
}

fn measure(name: &str, binary: &OsStr, helper: &OsStr) -> bool {
    for count in COUNTS {
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            let Some((leaving, arriving, living)) = hand_over(binary, helper, count) else {
                return false;
            };
            took.push((leaving + arriving, leaving, arriving, living));
        }
        took.sort_unstable();
        let (all, leaving, arriving, living) = took[ROUNDS / 2];
        println!(
            "{name}: {count} connections, of which {living} live on: {leaving:?} on the source, {arriving:?} on the target, {all:?} in all"
        );
        if binary == translator::binary() {
            assert!(took.iter().all(|&(.., living)| living == count));
        }
    }
    true
}

/// Figures are printed, for ours and for another make's where it is at hand.
#[test]
fn a_thousand_connections_move_at_once() {
    let ours = measure("ours", &translator::binary(), our_helper());
    if let (true, Some(passt), Some(helper)) = (ours, lab::peer("passt"), lab::peer("passt-repair"))
    {
        let path = |path: &Path| path.as_os_str().to_owned();
        measure("the peer", &path(&passt), &path(&helper));
    }
}
