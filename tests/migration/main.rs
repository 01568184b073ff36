//! Live migration: a real guest moves from one machine to another, each with a translator and a helper, and its connections
//! move with it. `PASST_REPAIR_BIN` names another helper than ours, `MIGRATIONS` how often it moves
//! (2: there and back), `PASST_PEER` another passt, beside which its passt-repair lies (`/tmp/peer/passt`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

mod machine;

use std::{env, ffi::OsString};

use lab::{Host, LONG, Nodes, PATIENCE, Repair, Setup, Translator, numbers::Peer, wait_until};
use machine::Machine;

fn translator(host: &Host) -> Translator {
    translator_with(host, &[])
}

fn translator_with(host: &Host, more: &[&str]) -> Translator {
    let mut args = vec!["--vhost-user", "--queues", "2", "--no-map-gw", "-t", "8080"];
    args.extend(more);
    if env::var_os("PASST_TRACE").is_some() {
        args.push("--debug");
    }
    Setup::new(&args).start(host)
}

/// How often each of a translator's threads has slept and was woken.
fn wakes(of: &Translator) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", of.pid())).unwrap();
    let statuses = tasks.map(|task| task.unwrap().path().join("status"));
    let switches = statuses.map(|path| {
        let status = std::fs::read_to_string(path).unwrap();
        let count = status.lines().find_map(|line| {
            line.strip_prefix("voluntary_ctxt_switches:")?
                .trim()
                .parse()
                .ok()
        });
        count.unwrap()
    });
    switches.collect()
}

fn helper() -> OsString {
    env::var_os("PASST_REPAIR_BIN").unwrap_or_else(|| Repair::ours().into())
}

/// Uploads, downloads, idle connections and one from outside, over IPv4 and IPv6; there, and back, and so on.
#[test]
fn connections_survive_the_moves_of_their_guest() {
    let moves = env::var("MIGRATIONS").map_or(2, |moves| moves.parse().unwrap());
    connections_survive(&vec![[helper(), helper()]; moves]);
}

/// Ours where the guest leaves and upstream's where it comes to, then the other way round.
#[test]
fn helpers_of_two_makes_work_together() {
    let Some(theirs) = lab::peer("passt-repair") else {
        return;
    };
    let (ours, theirs) = (Repair::ours(), theirs.into_os_string());
    connections_survive(&[[ours.into(), theirs.clone()], [theirs, ours.into()]]);
}

/// Has the guest move once for each pair of helpers, of the source and of the target.
fn connections_survive(helpers: &[[OsString; 2]]) {
    if !machine::can_run() {
        return;
    }
    let Some(nodes) = Nodes::routed() else { return };
    let mut peer = Peer::start(&nodes.peer);
    let mut from = translator(&nodes.source);
    let mut source = Machine::start(from.socket(), false);
    source.expect("READY");
    peer.expect_guest();
    peer.connect_to_guest();
    goes_on(&peer, &from);
    // Both queue pairs carry some of it.
    assert!(wait_until(PATIENCE, || wakes(&from)
        .iter()
        .all(|&n| n > 50)));
    let mut sides = [(&nodes.source, "p1"), (&nodes.target, "p2")];
    for [of_source, of_target] in helpers {
        let to = translator(sides[1].0);
        let target = Machine::start(to.socket(), true);
        // The target's helper looks into the folder, as KubeVirt has it; upstream's sees only what appears later.
        let place = if of_target == Repair::ours() {
            to.dir().to_owned()
        } else {
            Repair::path(&to)
        };
        let of_source = Repair::connected(sides[0].0, &Repair::path(&from), of_source);
        let of_target = Repair::connected(sides[1].0, &place, of_target);
        assert!(source.migrate(&target), "{}\n{}", from.log(), to.log());
        // The source is done before the target is, and nobody would be there for what comes too early.
        to.expect_log("Guest arrived with 7 of 7 TCP connections");
        nodes.switch(sides[0].1, sides[1].1);
        assert_eq!(of_target.end(), Some(0));
        goes_on(&peer, &to);
        peer.ask_idle_connections();
        // Source and all it held may go: nobody hears of it.
        drop(std::mem::replace(&mut source, target));
        assert_eq!(of_source.end(), Some(0), "it waits whether the guest stays");
        drop(std::mem::replace(&mut from, to));
        goes_on(&peer, &from);
        assert!(!from.log().contains("are reset"), "{}", from.log());
        sides.reverse();
    }
    for (addr, sum) in peer.finish() {
        source.expect(&format!("SUM {addr} {sum}"));
    }
    // It has the addresses it had, though the other node's are others (kubevirt#17841).
    source.type_line("addresses");
    let said = source.line("ADDRESSES");
    assert!(
        said.contains("192.0.2.7/24") && !said.contains("192.0.2.8"),
        "{said}"
    );
}

fn goes_on(peer: &Peer<'_>, at: &Translator) {
    let before = peer.progress();
    let goes_on = wait_until(PATIENCE, || peer.progress().all_beyond(&before));
    assert!(goes_on, "{before:?} {:?}\n{}", peer.progress(), at.log());
}

/// A guest whose state was taken and that runs on all the same, as after a migration that failed at its very end.
#[test]
fn connections_of_a_guest_that_stays_go_on() {
    if !machine::can_run() {
        return;
    }
    let Some(nodes) = Nodes::routed() else { return };
    let mut peer = Peer::start(&nodes.peer);
    let from = translator(&nodes.source);
    let mut source = Machine::start(from.socket(), false);
    source.expect("READY");
    peer.expect_guest();
    peer.connect_to_guest();
    goes_on(&peer, &from);
    for _ in 0..2 {
        let helper = Repair::connected(&nodes.source, &Repair::path(&from), &helper());
        assert!(source.migrate_to("exec:cat >/dev/null"), "{}", from.log());
        from.expect_log("Guest leaves with 7 of 7 TCP connections");
        source.command(r#"{"execute":"cont"}"#);
        assert_eq!(helper.end(), Some(0));
        from.expect_log("Guest stays");
        goes_on(&peer, &from);
        peer.ask_idle_connections();
    }
    for (addr, sum) in peer.finish() {
        source.expect(&format!("SUM {addr} {sum}"));
    }
}

/// Regressions M02 and M07.
#[test]
fn without_helpers_the_guest_moves_and_its_connections_are_reset() {
    if !machine::can_run() {
        return;
    }
    let Some(nodes) = Nodes::routed() else { return };
    let mut peer = Peer::start(&nodes.peer);
    let mut from = translator_with(&nodes.source, &["--migrate-exit"]);
    let to = translator(&nodes.target);
    let mut source = Machine::start(from.socket(), false);
    let target = Machine::start(to.socket(), true);
    source.expect("READY");
    peer.expect_guest();
    goes_on(&peer, &from);
    assert!(source.migrate(&target), "{}\n{}", from.log(), to.log());
    from.expect_log("The guest migrates, its 6 connections cannot: no passt-repair is connected");
    to.expect_log("6 of 6 TCP connections of the guest are reset");
    // Its programs are told: the download ends, of whatever length.
    for addr in lab::nodes::PEER {
        target.expect(&format!("SUM {addr}"));
    }
    nodes.switch("p1", "p2");
    drop(source);
    assert_eq!(from.wait(LONG), 0, "the guest has left for good");
    peer.finish();
}
