//! Live migration: a real guest moves from one machine to another, each with a translator and a helper, and its connections
//! move with it. `PASST_REPAIR_BIN` names another helper than ours, `MIGRATIONS` how often it moves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

mod machine;
mod peer;

use std::{
    env,
    ffi::OsString,
    process::{Child, Command, Stdio},
    time::Instant,
};

use lab::{Host, LONG, Nodes, Setup, Translator, janitor, wait_until};
use machine::{Machine, PATIENCE};
use peer::Peer;

/// passt-repair, at work beside a translator.
struct Repair(Child);

impl Repair {
    fn start(host: &Host, path: &str, binary: Option<OsString>) -> Self {
        let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_passt-repair").into());
        let child = host.run(|| {
            Command::new(binary)
                .arg(path)
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        });
        janitor::watch_pid(child.id());
        Self(child)
    }

    fn end(mut self) -> Option<i32> {
        assert!(wait_until(LONG, || self.0.try_wait().unwrap().is_some()));
        janitor::gone(self.0.id());
        self.0.try_wait().unwrap().unwrap().code()
    }
}

/// Two nodes, on each of which the service address may be, but only one of which the network knows.
fn nodes() -> Option<Nodes> {
    let nodes = Nodes::new()?;
    nodes.target.ip("addr add 192.0.2.8/24 dev eth0
         addr add 2001:db8:7::8/64 dev eth0 nodad");
    for host in [&nodes.source, &nodes.target] {
        host.ip("route add default via 192.0.2.1 dev eth0
             route add default via 2001:db8:7::1 dev eth0");
        host.allow_ping();
    }
    nodes.peer.ip("link set p2 nomaster");
    nodes.give(&nodes.target);
    Some(nodes)
}

fn translator(host: &Host) -> Translator {
    let mut args = vec!["--vhost-user", "--no-map-gw", "-t", "8080"];
    if env::var_os("PASST_TRACE").is_some() {
        args.push("--debug");
    }
    Setup::new(&args).start(host)
}

/// The network sends what is for the service address to the other node.
fn switch(nodes: &Nodes, from: &str, to: &str) {
    nodes.peer.ip(&format!(
        "link set {from} nomaster
         link set {to} master br0
         neigh flush dev br0"
    ));
}

fn path(of: &Translator) -> String {
    format!("{}.repair", of.socket().display())
}

fn helper() -> Option<OsString> {
    env::var_os("PASST_REPAIR_BIN")
}

/// Uploads, downloads, idle connections and one from outside, over IPv4 and IPv6.
#[test]
fn connections_survive_the_move_of_their_guest() {
    if !machine::can_run() {
        return;
    }
    let Some(nodes) = nodes() else { return };
    let mut peer = Peer::start(&nodes.peer);
    let (from, to) = (translator(&nodes.source), translator(&nodes.target));
    let mut source = Machine::start(from.socket(), false);
    let target = Machine::start(to.socket(), true);
    source.expect("READY");
    peer.expect_guest();
    peer.connect_to_guest();
    let before = peer.progress();
    assert!(wait_until(PATIENCE, || peer.progress().all_beyond(&before)));

    // The target's helper looks into the folder, as KubeVirt has it; upstream's sees only what appears later.
    let place = match helper() {
        Some(_) => path(&to),
        None => to.dir().to_str().unwrap().to_owned(),
    };
    let helpers = [
        Repair::start(&nodes.source, &path(&from), helper()),
        Repair::start(&nodes.target, &place, helper()),
    ];
    let began = Instant::now();
    assert!(source.migrate(&target), "{}\n{}", from.log(), to.log());
    switch(&nodes, "p1", "p2");
    println!(
        "moved in {:?}\n{}\n{}",
        began.elapsed(),
        from.log(),
        to.log()
    );
    let [helper, of_target] = helpers;
    assert_eq!(of_target.end(), Some(0));
    let after = peer.progress();
    let goes_on = wait_until(PATIENCE, || peer.progress().all_beyond(&after));
    assert!(goes_on, "{after:?} {:?}\n{}", peer.progress(), to.log());
    peer.ask_idle_connections();
    // Source and all it held may go: nobody hears of it.
    drop(source);
    assert_eq!(helper.end(), Some(0), "it waits whether the guest stays");
    drop(from);
    let after = peer.progress();
    assert!(wait_until(PATIENCE, || peer.progress().all_beyond(&after)));
    for (addr, sum) in peer.finish() {
        target.expect(&format!("SUM {addr} {sum}"));
    }
    // It has the addresses it had, though the node has another (kubevirt#17841).
    let mut target = target;
    target.type_line("addresses");
    target.expect("ADDRESSES");
    let said = target.console();
    assert!(
        said.contains("192.0.2.7/24") && !said.contains("192.0.2.8"),
        "{said}"
    );
    assert!(!to.log().contains("are reset"), "{}", to.log());
}
