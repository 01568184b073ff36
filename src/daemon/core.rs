//! What serves one queue pair, or a stream: a poll, the flows, and both halves of the link.

use std::{
    io,
    os::fd::RawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Interest, Poll, Waker, event::Event, unix::SourceFd};

use super::{
    event::{Counts, Source},
    requests,
};
use crate::{
    flow::Id,
    link::{Flushed, Inbox, Outbox, Received},
    net::Now,
    relay::{Ready, Relay},
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
    /// Of all that serve the guest together, by their numbers; none where this one does alone.
    pub(super) wakers: Arc<[Waker]>,
    pub(super) start: Instant,
}

impl Core {
    /// `start` is when time begins.
    ///
    /// # Errors
    /// Those of epoll_create(2).
    pub(super) fn new(relay: Relay, start: Instant) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            relay,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            counts: Counts::default(),
            link_readable: false,
            wakers: Arc::new([]),
            start,
        })
    }

    pub(super) fn now(&self) -> Now {
        Now(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The time until the relay has something to do.
    pub(super) fn sleep(&self, now: Now) -> Option<Duration> {
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
        self.register();
        let left = self.inbox.frames() - taken;
        if left > 0 {
            self.inbox.put_back(left);
        }
        self.inbox.release();
        self.outbox.flush();
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
            self.register();
            self.outbox.flush();
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
                log::warn!("Cannot wake thread {number}: {error}");
            }
        }
    }

    /// Lets flows go on that waited for room on the link. `true` if some still wait though there is room.
    pub(super) fn resume(&mut self, now: Now) -> bool {
        self.outbox.flush() == Flushed::Done
            && self.relay.resume(&mut self.outbox, now)
            && self.outbox.flush() == Flushed::Done
    }

    /// Carries out what the relay asked for, in order. Flows whose sockets cannot be watched end.
    pub(super) fn register(&mut self) {
        let mut failed = Vec::new();
        loop {
            for request in self.relay.requests().drain(..) {
                match requests::carry_out(self.poll.registry(), request) {
                    Ok(()) => {}
                    Err((Source::Flow(id), error)) => failed.push((id, error)),
                    Err((source, error)) => {
                        log::warn!("Cannot watch the socket of {source:?}: {error}");
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

    pub(super) fn watch(&self, fd: RawFd, source: Source, interest: Interest) -> io::Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), source.token(), interest)
    }
}
