//! What serves one queue pair, or a stream: a poll, the flows, and both halves of the link.

use std::{
    io,
    os::fd::RawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Waker, event::Event, unix::SourceFd};

use super::{
    event::{Counts, Source},
    requests,
};
use crate::{
    flow::Id,
    link::{Flushed, Inbox, Outbox, Received},
    net::{Now, Span},
    relay::{Ready, Relay, Request},
    sys::reason,
};

/// Events taken from the kernel at a time.
pub(super) const EVENTS: usize = 256;

/// Bursts taken from the guest, or from other threads, before sockets have their turn again.
pub(super) const BURSTS: usize = 4;

/// What one thread owns, whichever it is.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) poll: Poll,
    pub(super) relay: Relay,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    pub(super) counts: Counts,
    /// An edge seen and not worked off.
    pub(super) link_readable: bool,
    /// What there is in the guest's queue waits for room at another thread.
    held_up: bool,
    /// Of all that serve the guest together, by their numbers; none where this one does alone.
    pub(super) wakers: Arc<[Waker]>,
    pub(super) start: Instant,
    /// How long to look for more after there was something, before sleeping, and when there was.
    pub(super) busy_poll: Span,
    worked: Now,
    /// What had come by then was told of, though not all of it may be read: who said nothing was silent until then.
    pub(super) heard: Now,
    /// Shutdowns and closes that were asked for.
    endings: Vec<Request>,
}

impl Core {
    /// `start` is when time begins.
    ///
    /// # Errors
    /// Those of epoll_create(2).
    pub(super) fn new(mut relay: Relay, start: Instant) -> io::Result<Self> {
        let endings = Vec::with_capacity(relay.requests().capacity());
        Ok(Self {
            poll: Poll::new()?,
            relay,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            counts: Counts::default(),
            link_readable: false,
            held_up: false,
            wakers: Arc::new([]),
            start,
            busy_poll: Span(0),
            worked: Now(0),
            heard: Now(0),
            endings,
        })
    }

    /// Looks for more for so long before sleeping.
    pub(super) const fn set_busy_poll(&mut self, span: Span) {
        self.busy_poll = span;
        self.inbox.set_quiet(span.0 > 0);
    }

    /// Waits for events: not at all where there is `more` to do, and while it is too early to sleep; otherwise for as long as
    /// `idle` says, or for ever.
    ///
    /// # Errors
    /// Those of epoll_wait(2), but for interruptions.
    pub(super) fn wait(
        &mut self,
        events: &mut Events,
        more: bool,
        idle: Option<Duration>,
    ) -> io::Result<()> {
        let asked = self.now();
        let timeout = if self.lingers() || more {
            Some(Duration::ZERO)
        } else {
            idle
        };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                // We may have been stopped for long (signal(7)), and nothing was told.
                events.clear();
                return Ok(());
            }
            polled => polled?,
        }
        let slept = timeout.filter(|_| events.is_empty()).unwrap_or_default();
        self.heard = asked + slept.into();
        self.note_work(!events.is_empty());
        Ok(())
    }

    /// Whether it is too early to sleep. Until then the guest need not kick.
    fn lingers(&mut self) -> bool {
        if self.busy_poll.0 == 0 {
            return false;
        }
        let early = self.now().since(self.worked) < self.busy_poll;
        let more = !self.held_up
            && if early {
                self.inbox.has_more()
            } else {
                self.inbox.ask_for_kicks()
            };
        self.link_readable |= more;
        early || more
    }

    fn note_work(&mut self, any: bool) {
        if any && self.busy_poll.0 > 0 {
            self.worked = self.now();
        }
    }

    pub(super) fn now(&self) -> Now {
        Now(0) + self.start.elapsed().into()
    }

    /// The time until the relay has something to do.
    pub(super) fn idle_time(&self, now: Now) -> Option<Duration> {
        let span = self.relay.next_deadline(now)?;
        Some(Duration::from_micros(span.0))
    }

    /// Something happened to a flow's socket.
    pub(super) fn flow_event(&mut self, id: Id, event: &Event) {
        let ready = Ready {
            readable: event.is_readable(),
            writable: event.is_writable(),
            ended: event.is_read_closed(),
            error: event.is_error(),
            urgent: event.is_priority(),
        };
        let now = self.now();
        self.relay.from_host(id, ready, &mut self.outbox, now);
        self.register();
    }

    /// Takes a burst of the guest's. `None` if not all of it could be taken: another thread has no room for what belongs to it,
    /// and will wake us when it has.
    pub(super) fn take_burst(&mut self) -> Option<Received> {
        let received = self.inbox.receive();
        // What came by another queue before this burst was sent stays before it.
        self.take_handed();
        let now = self.now();
        self.outbox.capture_burst(&self.inbox);
        let taken = self.relay.from_guest(&self.inbox, &mut self.outbox, now);
        self.begin();
        self.note_work(taken > 0);
        let left = self.inbox.frames() - taken;
        self.held_up = left > 0;
        if left > 0 {
            self.inbox.put_back(left);
        }
        self.inbox.release();
        self.outbox.flush();
        self.end();
        self.wake_others();
        (left == 0).then_some(received)
    }

    /// Takes what other threads have handed over, a few bursts at most.
    pub(super) fn take_handed(&mut self) {
        for _ in 0..BURSTS {
            if !self.relay.has_handed() {
                return;
            }
            let now = self.now();
            self.relay.take_handed(&mut self.outbox, now);
            self.note_work(true);
            self.begin();
            self.outbox.flush();
            self.end();
            self.wake_others();
        }
    }

    /// Wakes the other threads that have something to do by us.
    pub(super) fn wake_others(&mut self) {
        let mut wakes = self.relay.wakes();
        while wakes != 0 {
            let number = wakes.trailing_zeros();
            wakes &= wakes - 1;
            if let Some(waker) = self.wakers.get(number as usize)
                && let Err(error) = waker.wake()
            {
                log::warn!("Cannot wake thread {number}: {}", reason(&error));
            }
        }
    }

    /// Lets flows go on that waited for room on the link. `true` if some still wait though there is room.
    pub(super) fn resume(&mut self, now: Now) -> bool {
        self.outbox.flush() == Flushed::Done
            && self.relay.resume(&mut self.outbox, now)
            && self.outbox.flush() == Flushed::Done
    }

    /// Carries out what the relay asked for, in order.
    pub(super) fn register(&mut self) {
        self.begin();
        self.end();
    }

    /// Carries out what the relay asked for, but for shutdowns and closes. Flows whose sockets cannot be watched end.
    fn begin(&mut self) {
        let mut failed = Vec::new();
        loop {
            for request in self.relay.requests().drain(..) {
                if matches!(request, Request::ShutDown(_) | Request::Close(_)) {
                    self.endings.push(request);
                    continue;
                }
                match requests::carry_out(self.poll.registry(), request) {
                    Ok(()) => {}
                    Err((Source::Flow(id), error)) => failed.push((id, error)),
                    Err((source, error)) => {
                        log::warn!("Cannot watch the socket of {source:?}: {}", reason(&error));
                    }
                }
            }
            if failed.is_empty() {
                return;
            }
            for (id, error) in failed.drain(..) {
                self.relay.unwatched(id, &error, &mut self.outbox);
            }
            self.outbox.flush();
        }
    }

    /// Carries out the rest, for which no guest need wait.
    fn end(&mut self) {
        for request in self.endings.drain(..) {
            // Neither has anything to report.
            let _ = requests::carry_out(self.poll.registry(), request);
        }
    }

    pub(super) fn watch(&self, fd: RawFd, source: Source, interest: Interest) -> io::Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), source.token(), interest)
    }
}
