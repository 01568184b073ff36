//! The loop: one thread, one poll, and budgets so that nobody has to wait for long.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use mio::{Events, Interest, event::Event, unix::SourceFd};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
    socket::{getsockopt, sockopt::PeerCredentials},
};
use socket2::SockRef;

use super::{
    changes::Changes,
    control::Control,
    core::{BURSTS, Core, EVENTS},
    crew::Crew,
    event::Source,
    migration::Migration,
    room::Room,
};
use crate::{
    config::VhostFeatures,
    host::neighbours::Watch,
    link::{Capture, Flushed, Received, Session},
    net::{Now, Span},
    relay::{RateLimit, Relay},
    sys::reason,
};

/// Unsolicited router advertisements go out at random within these bounds (RFC 4861, section 6.2.1).
const ADVERTISE_LEAST: Span = Span::secs(200);
const ADVERTISE_MOST: Span = Span::secs(600);

/// Octets that may wait in the link's socket: enough that a burst goes in one piece, little enough that nobody waits for long
/// behind it.
const LINK_BUFFER: usize = 512 * 1024;

/// How long a client waits when there is no descriptor for it, before the next try.
const ACCEPT_AGAIN: Span = Span::millis(100);

/// How the guest reaches us.
#[derive(Debug)]
pub enum Entrance {
    /// Clients come one after the other.
    Listener(OwnedFd),
    /// One client, connected already.
    Connected(OwnedFd),
}

/// How long the link rests when the system has no memory for it.
const LINK_AGAIN: Span = Span::millis(10);

/// Why the loop came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM or SIGQUIT.
    Signal,
    /// The client left, and we were to serve but one.
    ClientLeft,
}

/// Holds back the signals that end us or ask something of us, until the reactor takes them: none is lost, and none ends us
/// half-way. Returns which.
///
/// # Errors
/// Those of pthread_sigmask(3).
pub fn hold_signals() -> io::Result<SigSet> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGQUIT);
    mask.add(Signal::SIGUSR1);
    mask.thread_block()?;
    Ok(mask)
}

/// The first thread: its core, the client, services, signals, and changes of the network.
#[derive(Debug)]
pub struct Reactor {
    pub(super) core: Core,
    /// Those who serve further queue pairs.
    pub(super) crew: Crew,
    /// What clients are offered, if they are vhost-user front-ends, and the one that is connected.
    vhost: Option<VhostFeatures>,
    pub(super) session: Option<Session>,
    listener: Option<OwnedFd>,
    /// A client that was there from the start, until it is served: only then is it known how many threads there are.
    connected: Option<OwnedFd>,
    client: Option<RawFd>,
    one_off: bool,
    pub(super) signals: SignalFd,
    /// Edges seen and not worked off.
    pub(super) session_readable: bool,
    link_ended: bool,
    link_room: Room,
    advertise: Now,
    /// A client waits that could not be let in; it will not knock again.
    accept_again: Option<Now>,
    /// The link waits for the system to have memory.
    link_again: Option<Now>,
    pub(super) changes: Option<Changes>,
    pub(super) neighbours: Option<Watch>,
    pub(super) stats: Option<Stats>,
    /// Word of clients that come and go.
    pub(super) comings: RateLimit,
    pub(super) migration: Migration,
    pub(super) control: Option<Control>,
}

/// Reports of counters, as they were asked for.
#[derive(Debug)]
pub(super) struct Stats {
    pub(super) every: Span,
    pub(super) next: Now,
    /// What was said last.
    pub(super) last: String,
}

impl Reactor {
    /// Takes over signals and sockets.
    ///
    /// # Errors
    /// Those of epoll_create(2), epoll_ctl(2) and signalfd(2).
    pub fn new(
        relay: Relay,
        entrance: Entrance,
        vhost: Option<VhostFeatures>,
        one_off: bool,
        capture: Option<Capture>,
    ) -> io::Result<Self> {
        let mask = hold_signals()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mut reactor = Self {
            core: Core::new(relay, Instant::now())?,
            crew: Crew::default(),
            vhost,
            session: None,
            listener: None,
            connected: None,
            client: None,
            one_off,
            signals,
            session_readable: false,
            link_ended: false,
            link_room: Room::default(),
            advertise: Now(0) + ADVERTISE_LEAST,
            accept_again: None,
            link_again: None,
            changes: None,
            neighbours: None,
            stats: None,
            comings: RateLimit::default(),
            migration: Migration::default(),
            control: None,
        };
        reactor.core.outbox.set_capture(capture);
        let signal_source = reactor.signals.as_fd().as_raw_fd();
        reactor
            .core
            .watch(signal_source, Source::Signal, Interest::READABLE)?;
        match entrance {
            Entrance::Listener(socket) => {
                reactor
                    .core
                    .watch(socket.as_raw_fd(), Source::Listener, Interest::READABLE)?;
                reactor.listener = Some(socket);
            }
            Entrance::Connected(socket) => reactor.connected = Some(socket),
        }
        for (place, fd) in reactor.core.relay.forwarded() {
            reactor
                .core
                .watch(fd, Source::Port(place), Interest::READABLE)?;
        }
        Ok(reactor)
    }

    /// Has the relay follow changes of the host from now on.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn follow(&mut self, changes: Changes) -> io::Result<()> {
        let sources = [
            (changes.monitor(), Source::Monitor),
            (changes.reader(), Source::Resolver),
        ];
        for (fd, source) in sources {
            if let Some(fd) = fd {
                self.core.watch(fd, source, Interest::READABLE)?;
            }
        }
        self.changes = Some(changes);
        Ok(())
    }

    /// Has the guest told of the host's neighbours from now on.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn follow_neighbours(&mut self, watch: Watch) -> io::Result<()> {
        self.core
            .watch(watch.as_raw_fd(), Source::Neighbours, Interest::READABLE)?;
        self.neighbours = Some(watch);
        Ok(())
    }

    /// Looks for more for so long before sleeping. To be called before others are recruited, who do the same.
    pub const fn set_busy_poll(&mut self, span: Span) {
        self.core.set_busy_poll(span);
    }

    /// Has counters logged when they changed, at most this often.
    pub fn set_stats(&mut self, every: Option<Span>) {
        self.stats = every.map(|every| Stats {
            every,
            next: self.now() + every,
            last: self.report(),
        });
    }

    /// Has further queue pairs served, each by a thread and one of these relays, with as many flows in all. To be called before
    /// threads cannot be started any more.
    ///
    /// # Errors
    /// Those of epoll_create(2), eventfd(2) and pthread_create(3).
    pub fn recruit(&mut self, relays: Vec<Relay>, flows: usize) -> io::Result<()> {
        self.crew = Crew::start(&mut self.core, relays, flows)?;
        Ok(())
    }

    /// Serves until a signal comes or the only client leaves.
    ///
    /// # Errors
    /// Loss of the poll itself; nothing else ends the loop.
    pub fn run(mut self) -> io::Result<Ending> {
        let ending = self.serve();
        for (why, count) in self.totals().1.drops {
            log::debug!("dropped: {count} times {why}");
        }
        ending
    }

    fn serve(&mut self) -> io::Result<Ending> {
        let mut events = Events::with_capacity(EVENTS);
        if let Some(socket) = self.connected.take() {
            self.attach(socket)?;
        }
        loop {
            let more = self.turn();
            let idle = if more { None } else { self.idle_time() };
            self.core.wait(&mut events, more, idle)?;
            for event in &events {
                if let Some(ending) = self.happened(event)? {
                    return Ok(ending);
                }
            }
            self.talk();
            self.transfer();
            self.core.take_handed();
            self.take_bursts();
            self.end_broken();
            if self.accept_again.is_some_and(|at| at <= self.now()) {
                self.accept()?;
            }
            if self.client.is_none() && self.one_off && self.listener.is_none() {
                return Ok(Ending::ClientLeft);
            }
        }
    }

    /// Something happened. Returns the ending if this is it.
    fn happened(&mut self, event: &Event) -> io::Result<Option<Ending>> {
        let source = Source::of(event.token());
        self.core.counts.count(source);
        match source {
            Source::Flow(id) => self.core.flow_event(id, event),
            Source::Link if self.session.is_some() => self.session_readable = true,
            Source::Kick(queue) => self.kicked(usize::from(queue)),
            Source::Peers => self.hear_crew()?,
            Source::Control | Source::Controller => self.serve_control(),
            Source::Link => {
                self.link_ended |= event.is_read_closed() || event.is_error();
                self.core.link_readable |= event.is_readable() || self.link_ended;
                self.core.outbox.stirred();
                if event.is_writable() {
                    self.link_room.told(self.core.poll.registry(), self.client);
                }
            }
            Source::Port(place) => self.core.relay.knock(place),
            Source::Listener => self.accept()?,
            Source::Signal if self.signalled() => return Ok(Some(Ending::Signal)),
            Source::Signal => {}
            Source::Monitor => {
                let now = self.now();
                if let Some(changes) = &mut self.changes {
                    changes.network_changed(now);
                }
            }
            Source::Neighbours => self.hear_of_neighbours(),
            Source::Resolver => {
                let now = self.now();
                if let Some(changes) = &mut self.changes {
                    changes.resolver_changed(now);
                }
            }
        }
        Ok(None)
    }

    /// Timers, flows in line, and what waits for the link. `true` if there is more to do at once.
    fn turn(&mut self) -> bool {
        let now = self.now();
        if self.link_again.take_if(|at| *at <= now).is_some() {
            self.core.link_readable = self.client.is_some();
        }
        self.core
            .relay
            .expire(&mut self.core.outbox, self.core.heard, now);
        if now >= self.advertise {
            self.core.relay.advertise(&mut self.core.outbox);
            self.advertise = now + self.advertise_interval(now);
        }
        self.follow_host(now);
        self.look_at_neighbours(now);
        if self
            .control
            .as_ref()
            .and_then(Control::due)
            .is_some_and(|at| at <= now)
        {
            self.serve_control();
        }
        self.report_stats(now);
        if self.crew.absorb_due().is_some_and(|at| at <= now) {
            self.absorb(now);
        }
        if self.follow_due().is_some_and(|at| at <= now) {
            self.follow_frames();
        }
        let mut more = self.core.link_readable || self.session_readable;
        more |= self.core.resume(now);
        let blocked = self.core.outbox.flush() == Flushed::Blocked;
        self.link_room
            .want(blocked, self.core.poll.registry(), self.client);
        if blocked {
            // Writability is told by an edge, which comes when the guest reads.
            more = self.core.link_readable || self.session_readable;
        }
        more |= self.core.relay.has_handed();
        self.core.wake_others();
        if self.core.outbox.is_short() {
            self.link_again.get_or_insert(now + LINK_AGAIN);
        }
        self.core.register();
        more
    }

    /// Takes what the guest has sent, a few bursts at most.
    fn take_bursts(&mut self) {
        for _ in 0..BURSTS {
            self.core.link_readable &= self.session.is_none() || self.core.inbox.intake().is_some();
            if !self.core.link_readable {
                return;
            }
            let Some(received) = self.core.take_burst() else {
                self.core.link_readable = false;
                return;
            };
            let now = self.now();
            match received {
                Received::Burst => {}
                // The end of the stream comes without an edge of its own if it came with the last octets.
                Received::Last if self.link_ended => {}
                Received::Last => self.core.link_readable = false,
                Received::Blocked => (self.core.link_readable, self.link_ended) = (false, false),
                Received::Short => {
                    self.core.link_readable = false;
                    self.link_again.get_or_insert(now + LINK_AGAIN);
                }
                Received::BadLength(len) => {
                    let said =
                        format_args!("Bad frame size from guest, resetting connection: {len}");
                    self.comings.log(log::Level::Warn, now, said);
                    self.detach();
                }
                Received::Broken(broken) => self.refuse(&broken),
                Received::Closed => self.detach(),
            }
        }
    }

    /// Lets the next client in, and tells further ones goodbye.
    fn accept(&mut self) -> io::Result<()> {
        let tried_before = self.accept_again.take().is_some();
        while let Some(listener) = &self.listener {
            let client: OwnedFd = match SockRef::from(listener).accept() {
                Ok((client, _)) => client.into(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    if !tried_before {
                        log::warn!(
                            "Cannot accept a connection, will try again: {}",
                            reason(&error)
                        );
                    }
                    self.accept_again = Some(self.now() + ACCEPT_AGAIN);
                    return Ok(());
                }
            };
            let pid = getsockopt(&client, PeerCredentials).map_or(0, |peer| peer.pid());
            // A client that has left makes room for one that comes in the same moment, before any event tells.
            if self.session.is_some() {
                self.session_readable = true;
                self.talk();
            } else {
                (self.core.link_readable, self.link_ended) = (self.client.is_some(), true);
                self.take_bursts();
            }
            let now = self.now();
            let refused = self.client.is_some();
            let done = if refused { "discarding" } else { "accepted" };
            let said = format_args!("{done} connection from PID {pid}");
            self.comings.log(log::Level::Info, now, said);
            if refused {
                continue;
            }
            if let Err(error) = self.attach(client) {
                log::warn!("Cannot serve the connection: {}", reason(&error));
                self.detach();
                continue;
            }
            if self.one_off {
                self.listener = None;
            }
        }
        Ok(())
    }

    fn attach(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.core.relay.end_silence();
        SockRef::from(&socket).set_nonblocking(true)?;
        if let Some(features) = self.vhost {
            return self.attach_front_end(socket, features);
        }
        // Where the system allows less, it is less.
        let _ = SockRef::from(&socket).set_send_buffer_size(LINK_BUFFER);
        self.core
            .watch(socket.as_raw_fd(), Source::Link, Interest::READABLE)?;
        self.link_room = Room::default();
        self.client = Some(socket.as_raw_fd());
        self.core.outbox.attach(Some(socket.try_clone()?));
        self.core.inbox.attach(Some(socket));
        self.core.link_readable = true;
        self.link_ended = false;
        Ok(())
    }

    fn attach_front_end(&mut self, socket: OwnedFd, features: VhostFeatures) -> io::Result<()> {
        self.core
            .watch(socket.as_raw_fd(), Source::Link, Interest::READABLE)?;
        self.client = Some(socket.as_raw_fd());
        self.session = Some(Session::new(socket, features, self.crew.pairs()));
        self.session_readable = true;
        (self.core.link_readable, self.link_ended) = (false, false);
        self.core.outbox.attach_queue(true);
        let mut workers = self.crew.call(&self.core.wakers);
        for worker in &mut workers {
            worker.core.outbox.attach_queue(true);
        }
        self.crew.dismiss(workers);
        Ok(())
    }

    /// The client is gone: its flows end with it.
    pub(super) fn detach(&mut self) {
        let now = self.now();
        if self.migration.exits && self.core.relay.is_leaving() {
            self.one_off = true;
            self.listener = None;
        }
        self.core.link_readable = false;
        self.end_session();
        self.core.relay.guest_left();
        if !self.migration.lingers {
            self.core.relay.end_silence();
        }
        self.migration.over();
        self.core.register();
        if let Some(fd) = self.client.take() {
            // Both halves hold a descriptor of the same socket, so closing alone would leave it in the poll for a moment.
            let _ = self.core.poll.registry().deregister(&mut SourceFd(&fd));
        }
        self.core.inbox.attach(None);
        self.core.outbox.attach(None);
        let exiting = if self.one_off { ", exiting" } else { "" };
        let said = format_args!("Client connection closed{exiting}");
        self.comings.log(log::Level::Info, now, said);
    }

    pub(super) fn now(&self) -> Now {
        self.core.now()
    }

    /// How long nothing is due.
    fn idle_time(&self) -> Option<Duration> {
        let now = self.now();
        let times = [
            Some(self.advertise),
            self.accept_again,
            self.link_again,
            self.crew.absorb_due(),
            self.follow_due(),
            self.changes.as_ref().and_then(Changes::due),
            self.neighbours.as_ref().and_then(Watch::due),
            self.control.as_ref().and_then(Control::due),
            self.stats.as_ref().map(|stats| stats.next),
        ];
        let spans = times.into_iter().flatten().map(|time| time.since(now));
        let first = spans.min().map(|span| Duration::from_micros(span.0));
        first.into_iter().chain(self.core.idle_time(now)).min()
    }

    /// A time within the bounds; the clock's lower digits are as random as this needs.
    fn advertise_interval(&self, now: Now) -> Span {
        Span(
            ADVERTISE_LEAST.0
                + now.0.wrapping_mul(2_654_435_761) % (ADVERTISE_MOST.0 - ADVERTISE_LEAST.0),
        )
    }
}
