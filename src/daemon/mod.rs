//! The loop: start-up, reactor, threads, sandbox, migration, log.
//!
//! `prepare` does everything that may fail, in this order, and `Prepared::serve` what cannot:
//!
//! 1. hold signals back; close what was inherited, but for `--fd` (Rust's runtime has made descriptors 0 to 2 valid by then);
//! 2. allow as many descriptors as the hard limit does;
//! 3. start the watcher of resolv.conf; listen for changes of the network; ask what the host is, and decide what the guest is told;
//! 4. open what takes the caller's rights: forwarded ports, the way in, log, PID file, capture;
//! 5. become another user, if we are to;
//! 6. enter a user namespace, and have what is forked next live in a PID namespace;
//! 7. go to the background; the caller's process waits;
//! 8. build the reactor, write the PID file;
//! 9. close the sandbox: nothing can be opened by path any more; start further threads before its last layer, which
//!    forbids starting any;
//! 10. print what was held back, let the caller's process exit, run.

mod log_file;

pub mod log;

mod leftover;

pub mod background;

mod calls;

mod seccomp;

mod landlock;

mod sandbox;

pub mod passt_repair;

mod watcher;

mod changes;

mod event;

mod requests;

mod room;

mod migration;

mod core;

mod control;

mod worker;

mod crew;

mod reactor;

mod front_end;

mod notifications;

mod transfer;

pub use reactor::{Ending, Entrance, Reactor};
pub use sandbox::Report as Layers;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use background::{PidFile, Ready};
use changes::Changes;
use leftover::Leftovers;
use log::Destinations;
use sandbox::Sandbox;

use crate::{
    config::{Config, LinkChoice, Net, QUEUES_DEFAULT, Resolved, resolve},
    host::{
        conntrack, facts,
        listen::{self as ports, Ports},
        monitor::Monitor,
        neighbours::Watch,
        socket::Features,
    },
    link::{
        Capture,
        listen::{self, Opened},
    },
    relay::{Limits, Relay},
    sys::{process, reason},
};

/// Descriptors that are not for flows: the loop's own, and some to spare; and those of a further pair of queues.
const DESCRIPTORS_KEPT: u64 = 64;
const PAIR_DESCRIPTORS: u64 = 8;

/// The most flows at a time, however many descriptors there are.
const FLOWS_MOST: u64 = 131_072;

/// Octets held at most for sockets that do not take what they promised to.
const SPILL: usize = 16 << 20;

/// Everything that can fail is done.
#[derive(Debug)]
pub struct Prepared {
    reactor: Reactor,
    resolved: Resolved,
    /// Where the guest connects, if it is to.
    path: Option<PathBuf>,
    ready: Option<Ready>,
    log: &'static Destinations,
}

/// Opens, forks and builds as the configuration says.
///
/// # Errors
/// One line for a person.
pub fn prepare(config: &Config) -> Result<Prepared, String> {
    failed("Failed to block signals", reactor::hold_signals())?;
    process::close_inherited(match config.link {
        LinkChoice::Fd(fd) => Some(fd),
        LinkChoice::Probe | LinkChoice::Socket(_) => None,
    });
    process::settle_signals();
    // Before anything else is opened, which could get its number if there is no such descriptor.
    let inherited = match config.link {
        LinkChoice::Fd(_) => Some(listen::open(&config.link)?),
        LinkChoice::Probe | LinkChoice::Socket(_) => None,
    };
    let descriptors = raise_descriptor_limit();
    let mut warnings = Vec::new();
    let reader = watcher::start(config).unwrap_or_else(|error| {
        let why = reason(&error);
        warnings.push(format!(
            "Changes of the resolver configuration will not be noticed: {why}"
        ));
        None
    });
    // Opened before the tables are read, so that no change between is missed. Without it changes go unnoticed.
    let monitor = Monitor::open()
        .map_err(|error| {
            let why = reason(&error);
            warnings.push(format!("Changes of the network will not be noticed: {why}"));
        })
        .ok();
    let facts = facts::read()?;
    let resolved = resolve(config, &facts)?;
    let changes = Changes::new(config, facts.resolver, monitor, reader);

    // Who sees the socket may count on the forwarded ports.
    let (ports, shortage) = forward(config, descriptors)?;
    warnings.extend(shortage);
    let opened = inherited.map_or_else(|| listen::open(&config.link), Ok)?;
    let (entrance, path) = match opened {
        Opened::Listener { socket, path } => (Entrance::Listener(socket), Some(path)),
        Opened::Connected(socket) => (Entrance::Connected(socket), None),
    };
    let mut leftovers = Leftovers::default();
    if let Some(path) = &path {
        leftovers.add(path);
    }
    let mut opened = Opening {
        resolved,
        changes,
        descriptors,
        ports,
        entrance,
        path,
        warnings,
    };
    open_aside(config, &mut opened, &mut leftovers)
        .and_then(|(repair, control)| {
            let mut prepared = build(config, opened, &mut leftovers)?;
            prepared.reactor.set_migration(repair, config);
            if let Some(control) = control {
                let watched = prepared.reactor.set_control(control, config.enabled());
                failed("Failed to watch the configuration socket", watched)?;
            }
            Ok(prepared)
        })
        .inspect_err(|_| leftovers.remove())
}

/// Where others than the guest may come in: the helper of a migration, and who changes forwards.
fn open_aside(
    config: &Config,
    opened: &mut Opening,
    leftovers: &mut Leftovers,
) -> Result<(Option<OwnedFd>, Option<OwnedFd>), String> {
    let repair = open_repair(config, opened, leftovers)?;
    let Some(path) = &config.conf_path else {
        return Ok((repair, None));
    };
    let control = listen::aside(path)?;
    leftovers.add(path);
    Ok((repair, Some(control)))
}

/// Shuts this process in as the configuration says, and tells which layers stand.
///
/// # Errors
/// One line: a layer is missing, and all are required; or the system would not let us change identity.
pub fn shut_in(config: &Config) -> Result<Layers, String> {
    background::leave_root(config.identity)?;
    let mut sandbox = Sandbox::new(config.require_sandbox);
    sandbox.isolate_user()?;
    sandbox.isolate_child(config.foreground)?;
    sandbox.isolate_rest()?;
    sandbox.close()
}

/// Where the helper of a migration is to come in, if it may.
fn open_repair(
    config: &Config,
    opened: &mut Opening,
    leftovers: &mut Leftovers,
) -> Result<Option<OwnedFd>, String> {
    let path = match config.repair_path(opened.path.as_deref()) {
        Ok(Some(path)) => path,
        Ok(None) => return Ok(None),
        Err(warning) => {
            opened.warnings.push(warning);
            return Ok(None);
        }
    };
    let socket = listen::aside(&path)?;
    leftovers.add(&path);
    Ok(Some(socket))
}

/// What is there by the time the way in is open.
struct Opening {
    resolved: Resolved,
    changes: Changes,
    descriptors: u64,
    ports: Ports,
    entrance: Entrance,
    path: Option<PathBuf>,
    /// Said before there was a log to say it to.
    warnings: Vec<String>,
}

/// What comes after the way in.
fn build(config: &Config, opened: Opening, leftovers: &mut Leftovers) -> Result<Prepared, String> {
    let resolved = opened.resolved;
    for path in [&config.log_file, &config.pid_file, &config.pcap] {
        leftovers.expect(path.as_deref());
    }
    let log = log::init(config)?;
    for warning in opened.warnings {
        ::log::warn!("{warning}");
    }
    let open = |path| PidFile::open(path, leftovers);
    let mut pid_file = config.pid_file.as_deref().map(open).transpose()?;
    let open = |path| open_capture(path, leftovers);
    let capture = config.pcap.as_deref().and_then(open);
    background::leave_root(config.identity)?;

    let mut sandbox = Sandbox::new(config.require_sandbox);
    sandbox.isolate_user()?;
    sandbox.isolate_child(config.foreground)?;
    let ready = if config.foreground {
        None
    } else {
        Some(failed(
            "Failed to go to the background",
            background::detach(leftovers),
        )?)
    };
    let pid = ready.as_ref().map_or_else(std::process::id, Ready::pid);
    let limits = limits(opened.descriptors, opened.ports.len(), queue_pairs(config));
    let (relay, further) = relays(config, &resolved.net, opened.ports, limits);
    let mut reactor = set_up(config, relay, opened.entrance, opened.changes, capture)?;
    if let Some(file) = &mut pid_file {
        failed("Couldn't write PID file", file.write(pid))?;
    }
    log.begin(pid);
    if let Some(ready) = &ready {
        // The last chance to take away what was made.
        failed("Failed to go to the background", ready.check())?;
    }
    sandbox.isolate_rest()?;
    failed(
        "Failed to start threads",
        reactor.recruit(further, limits.flows),
    )?;
    sandbox.close()?;
    Ok(Prepared {
        reactor,
        resolved,
        path: opened.path,
        ready,
        log,
    })
}

/// The event loop with what it watches before it runs.
fn set_up(
    config: &Config,
    relay: Relay,
    entrance: Entrance,
    changes: Changes,
    capture: Option<Capture>,
) -> Result<Reactor, String> {
    let mut reactor = failed(
        "Failed to set up the event loop",
        Reactor::new(
            relay,
            entrance,
            config.vhost_user.then_some(config.vhost_features),
            config.one_off,
            capture,
        ),
    )?;
    failed("Failed to watch the network", reactor.follow(changes))?;
    match Watch::open().and_then(|watch| reactor.follow_neighbours(watch)) {
        Ok(()) => {}
        // Then all are at our own link address.
        Err(error) => ::log::warn!(
            "Neighbours of the host will not be known: {}",
            reason(&error)
        ),
    }
    reactor.set_stats(config.stats);
    reactor.set_busy_poll(config.busy_poll);
    Ok(reactor)
}

/// What a relay may use, with so many descriptors of which some are ports' and those of pairs of queues.
fn limits(descriptors: u64, ports: usize, pairs: usize) -> Limits {
    let kept = DESCRIPTORS_KEPT + PAIR_DESCRIPTORS * (pairs as u64 - 1);
    let flows = descriptors
        .saturating_sub(kept + ports as u64)
        .clamp(16, FLOWS_MOST) as usize;
    let (udp, udp_stream) = conntrack::udp_timeouts();
    Limits {
        flows,
        spill: SPILL,
        udp,
        udp_stream,
    }
}

/// The relay that has the ports, and one for each further queue pair that may be used.
fn relays(config: &Config, net: &Net, ports: Ports, limits: Limits) -> (Relay, Vec<Relay>) {
    let features = Features::probe();
    let fragment_timeouts = conntrack::fragment_timeouts();
    let relay = || {
        let mut relay = Relay::new(net.clone(), features, limits);
        relay.pin_guest(config.addr4.is_some(), config.addr6.is_some());
        relay.set_fragment_timeouts(fragment_timeouts);
        relay
    };
    let mut first = relay();
    let syn_retries = ports::syn_retries();
    first.forward(ports, syn_retries);
    let further = (1..queue_pairs(config)).map(|_| {
        let mut relay = relay();
        relay.number_as(&first);
        relay.forward(Ports::default(), syn_retries);
        relay
    });
    let further = further.collect();
    (first, further)
}

/// Queue pairs that a guest may use: one where there are none, and where what passes is captured in one file.
fn queue_pairs(config: &Config) -> usize {
    if !config.vhost_user || config.pcap.is_some() {
        return 1;
    }
    let processors = || thread::available_parallelism().map_or(1, usize::from);
    config
        .queues
        .unwrap_or_else(|| processors().min(QUEUES_DEFAULT))
}

impl Prepared {
    /// What the guest is told, and where it connects.
    pub const fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Serves until there is a reason to end.
    ///
    /// # Errors
    /// One line: the event loop broke down.
    pub fn serve(self) -> Result<Ending, String> {
        self.log.wait_no_more();
        if let Some(ready) = self.ready {
            self.log.leave_stderr();
            failed("Failed to detach", ready.tell())?;
        }
        failed("Event loop failed", self.reactor.run())
    }
}

/// Opens the forwarded ports. A quarter of the descriptors is left for flows, and no less than 1,024.
/// The second value is a warning.
fn forward(config: &Config, descriptors: u64) -> Result<(Ports, Option<String>), String> {
    let flows = (descriptors / 4).max(1024) + DESCRIPTORS_KEPT;
    let options = ports::Options {
        v4: config.v4,
        v6: config.v6,
        freebind: config.freebind,
        most: descriptors.saturating_sub(flows) as usize,
    };
    Ports::open(&config.forwards, options)
}

/// A capture that cannot be written is no reason not to serve.
fn open_capture(path: &Path, leftovers: &Leftovers) -> Option<Capture> {
    background::open_patiently(path, leftovers, Capture::open)
        .map_err(|error| {
            ::log::warn!(
                "Couldn't open pcap file {}: {}",
                path.display(),
                reason(&error)
            );
        })
        .ok()
}

/// Raises the soft limit of descriptors to the hard one. Returns what is allowed now.
fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

fn failed<T>(what: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {}", reason(&error)))
}
