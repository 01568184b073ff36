//! Compares this translator with another binary and with the floor, in one run on one machine:
//!
//! ```text
//! cargo bench --bench compare -- --peer /usr/bin/passt --workloads down,up --mtu 65520,1500 --pairs 7
//! ```
//!
//! Needs root and /dev/net/tun. Each pass starts both translators in a network namespace of their own, plugs a kernel guest
//! into each, and runs every workload on one and then on the other, in an order that changes from pass to pass. Costs are
//! CPU time of the translator alone: user and system time of all its threads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../tests/kernel_guest/mod.rs"]
mod kernel_guest;

#[path = "../../tests/lab/mod.rs"]
mod lab;

mod cpu;
mod floor;
mod floor_udp;
mod iperf;
mod load;
mod plot;
mod report;
mod world;

use std::{
    error::Error,
    fs,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use clap::Parser;

use kernel_guest::KernelGuest;
use lab::front_end::{Driver, LINUX};
use load::{Load, Sample, Workload};
use report::{Pair, Row};
use world::{Subject, World};

#[derive(Debug, Parser)]
#[command(
    name = "compare",
    about = "Our binary, a peer and the floor, side by side"
)]
struct Arguments {
    /// The binary under test
    #[arg(long, default_value = env!("CARGO_BIN_EXE_passt"))]
    ours: PathBuf,
    /// A binary with the same command line to compare with
    #[arg(long)]
    peer: Option<PathBuf>,
    /// What to run
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "down,up,rr,crr,crr16,udp-down,udp-up,udp-down64,udp-up64,udp-rr,hold"
    )]
    workloads: Vec<Workload>,
    /// MTU of the guest's link, 576 to 65520
    #[arg(long, value_delimiter = ',', default_value = "65520,1500", value_parser = clap::value_parser!(u32).range(576..=65520))]
    mtu: Vec<u32>,
    /// Passes over both binaries; a verdict needs 7
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Seconds measured per workload
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds before measuring starts
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Connections of the bulk workloads
    #[arg(long, default_value_t = 1)]
    flows: usize,
    /// Mbit/s that `down` and `up` send, all flows together, instead of as many as go: the price of the same work (the floor,
    /// which sends as it can, is left out)
    #[arg(long)]
    pace: Option<NonZeroU32>,
    /// Connections of the `hold` workload
    #[arg(long, default_value_t = 5000)]
    held: usize,
    /// Congestion control of the sockets in guest and server: reno, cubic, bbr
    #[arg(long, default_value = "reno")]
    congestion: String,
    /// Over IPv6 instead of IPv4
    #[arg(long)]
    ipv6: bool,
    /// Put the server behind a veth pair instead of on the pod's loopback
    #[arg(long)]
    remote: bool,
    /// MTU of that veth pair
    #[arg(long, default_value_t = 65535)]
    veth_mtu: u32,
    /// Pin the translators (and the floor) to this CPU and everything else to the others
    #[arg(long)]
    pin: Option<usize>,
    /// Plug the guests in by vhost-user, with every offload the binaries have
    #[arg(long)]
    vhost_user: bool,
    /// Queue pairs of the guests by vhost-user; that of the peer has one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    queues: u8,
    /// Leave the floor out
    #[arg(long)]
    no_floor: bool,
    /// Also write all samples here
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw the medians here
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == floor::ROLE) {
        return Ok(floor::process(&words[1..])?);
    }
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("compare measures only when started by `cargo bench`");
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return Ok(());
    }
    world::raise_descriptor_limit();
    if let Some(pin) = arguments.pin {
        world::pin_process(0, |cpu| cpu != pin);
    }
    let Some(world) = World::new(arguments.veth_mtu, &arguments.congestion) else {
        return Ok(());
    };
    let facts = facts(&arguments, &world);
    for (key, value) in &facts {
        println!("{key:<12}{value}");
    }
    println!();
    let mut rows = Vec::new();
    for &mtu in &arguments.mtu {
        rows.extend(measure(&arguments, &world, mtu));
    }
    println!("\n{}", report::table(&rows));
    if let Some(path) = &arguments.json {
        fs::write(path, report::json(&facts, &rows))?;
    }
    if let Some(path) = &arguments.svg {
        fs::write(path, plot::svg(&facts, &rows))?;
    }
    Ok(())
}

/// All workloads at one MTU, pass by pass.
fn measure(arguments: &Arguments, world: &World, mtu: u32) -> Vec<Row> {
    let mut rows: Vec<Row> = arguments
        .workloads
        .iter()
        .map(|&workload| Row {
            workload,
            mtu,
            pairs: Vec::new(),
        })
        .collect();
    for pass in 0..arguments.pairs {
        let start = |binary: &Path, queues: u8| {
            let driver = arguments.vhost_user.then(|| match queues {
                1 => Driver::new(LINUX),
                _ => Driver::twice(LINUX),
            });
            world.subject(binary, mtu, arguments.pin, driver)
        };
        let Some(ours) = start(&arguments.ours, arguments.queues) else {
            break;
        };
        let peer = arguments.peer.as_deref();
        let peer = peer.and_then(|binary| start(binary, 1));
        for row in &mut rows {
            let mut pair = Pair::default();
            let mut run_ours = || pair.ours = one(arguments, world, &ours, row.workload, "ours");
            let mut run_peer = || {
                if let Some(peer) = &peer {
                    pair.peer = one(arguments, world, peer, row.workload, "peer");
                }
            };
            if pass % 2 == 0 {
                run_ours();
                run_peer();
            } else {
                run_peer();
                run_ours();
            }
            pair.floor = floor_for(arguments, world, row.workload, mtu);
            row.pairs.push(pair);
        }
    }
    rows
}

/// What is to be carried between a guest and its server by this process.
fn load<'a>(
    arguments: &'a Arguments,
    world: &'a World,
    guest: &'a KernelGuest,
    translator: u32,
) -> Load<'a> {
    let (server, bind, target) = world.server(arguments.remote, arguments.ipv6);
    Load {
        guest,
        server,
        bind,
        target,
        translator,
        congestion: &arguments.congestion,
        flows: arguments.flows,
        pace: arguments.pace.map(|mbit| f64::from(mbit.get()) * 1e6),
        held: arguments.held,
        warm_up: Duration::from_secs_f64(arguments.warm_up),
        time: Duration::from_secs_f64(arguments.seconds),
    }
}

/// One workload on one translator; what went wrong is said and makes no sample.
fn one(
    arguments: &Arguments,
    world: &World,
    subject: &Subject,
    workload: Workload,
    who: &str,
) -> Option<Sample> {
    let load = load(arguments, world, &subject.guest, subject.translator.pid());
    let relay_before = subject.guest.relay_cpu();
    let dropped_before = subject.guest.dropped_at_device();
    let result = load.run(workload);
    match &result {
        Ok(sample) => say(
            who,
            workload,
            sample,
            &format!(
                ", relay {:.2} CPU s",
                (subject.guest.relay_cpu() - relay_before).as_secs_f64()
            ),
        ),
        Err(error) => println!("{who:<6}{:<9} failed: {error}", report::name(workload)),
    }
    let dropped = subject.guest.dropped_at_device() - dropped_before;
    if dropped > 0 && !workload.is_flood() {
        println!(
            "{who:<6}{dropped} frames dropped at the guest's device: figures are not to be trusted"
        );
    }
    if !subject.guest.connected() {
        println!("{who:<6}hung up on its guest");
    }
    result.ok()
}

fn floor_for(arguments: &Arguments, world: &World, workload: Workload, mtu: u32) -> Option<Sample> {
    if arguments.no_floor || arguments.pace.is_some() {
        return None;
    }
    let result = match workload {
        Workload::Down | Workload::Up => floor::measure(
            &world.hosts.pod,
            workload == Workload::Up,
            (!arguments.vhost_user).then_some(mtu),
            &arguments.congestion,
            arguments.pin,
            Duration::from_secs_f64(arguments.warm_up),
            Duration::from_secs_f64(arguments.seconds),
        ),
        // Where its guest is as the translators' is.
        _ if arguments.vhost_user || arguments.remote || arguments.ipv6 => return None,
        _ => floor_udp::measure(
            world,
            workload,
            mtu,
            arguments.pin,
            |guest, floor, sockets| {
                load(arguments, world, guest, floor).run_between(workload, sockets)
            },
        )?,
    };
    match &result {
        Ok(sample) => say("floor", workload, sample, ""),
        Err(error) => println!("floor {:<9} failed: {error}", report::name(workload)),
    }
    result.ok()
}

/// A line as soon as there is something to say.
fn say(who: &str, workload: Workload, sample: &Sample, more: &str) {
    let (rate, cost) = workload.units();
    let latency = match (sample.p50, sample.p99) {
        (Some(p50), Some(p99)) => format!(", p50 {p50:.0} µs, p99 {p99:.0} µs"),
        _ => String::new(),
    };
    println!(
        "{who:<6}{:<9}{:>10.2} {rate}, {:>8.3} {cost}{latency}, {} resent ({} needlessly){more}",
        report::name(workload),
        sample.rate,
        sample.cost,
        sample.retransmissions,
        sample.needless
    );
}

/// What must be known to read the figures.
fn facts(arguments: &Arguments, world: &World) -> Vec<(String, String)> {
    let read = |path| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let model = read("/proc/cpuinfo");
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (_, bind, target) = world.server(arguments.remote, arguments.ipv6);
    let mut facts = vec![
        (
            "machine",
            format!(
                "{cores} CPUs, {model}, Linux {}",
                read("/proc/sys/kernel/osrelease")
            ),
        ),
        (
            "congestion",
            format!(
                "{} in guest and server, {} in the translator's namespace",
                arguments.congestion, world.pod_congestion
            ),
        ),
        (
            "pinning",
            arguments.pin.map_or_else(
                || "none".to_owned(),
                |cpu| format!("translators on CPU {cpu}, the rest on the others"),
            ),
        ),
        (
            "server",
            if arguments.remote {
                format!("{bind} behind a veth pair of MTU {}", arguments.veth_mtu)
            } else {
                format!("{bind} of the translator's host, which the guest calls {target}")
            },
        ),
        (
            "measured",
            format!(
                "{} passes of {} s, {} flows{}, {} held, {} queue pairs",
                arguments.pairs,
                arguments.seconds,
                arguments.flows,
                arguments
                    .pace
                    .map_or_else(String::new, |mbit| format!(" of {mbit} Mbit/s in all")),
                arguments.held,
                arguments.queues
            ),
        ),
        ("ours", version(&arguments.ours)),
    ];
    if let Some(peer) = &arguments.peer {
        facts.push(("peer", version(peer)));
    }
    facts
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn version(binary: &Path) -> String {
    let output = Command::new(binary).arg("--version").output();
    let text = output.map_or_else(
        |error| error.to_string().into_bytes(),
        |output| output.stdout,
    );
    let text = String::from_utf8_lossy(&text);
    format!(
        "{} ({})",
        binary.display(),
        text.lines().next().unwrap_or("no version")
    )
}
