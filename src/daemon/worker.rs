//! A thread that serves one more queue pair of the guest's, with flows of its own. What is not flows is the first reactor's,
//! which has this thread stand still and hand itself over for as long as it changes something here.

use std::{
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender},
    },
    time::Duration,
};

use mio::{Events, Interest, unix::SourceFd};

use super::{
    core::{BURSTS, Core, EVENTS},
    event::Source,
};
use crate::{
    flow::Guest,
    link::{Flushed, Halves, Received, TRANSMIT, hear},
    net::{Now, Span},
};

/// The least time between two pieces of news of the guest.
const QUIET: Span = Span::millis(1);

/// What a worker tells the first reactor.
#[derive(Debug)]
pub(super) enum Word {
    /// The thread runs.
    Ready,
    /// Something new is known of the guest.
    News(Box<Guest>),
    /// Flows are to follow their frames to other threads.
    Drift,
    /// The queues of this pair are not served any more, and why.
    Stopped(String),
    /// The poll broke down.
    Ended(io::Error),
}

/// How a worker's thread hands its worker over.
#[derive(Debug)]
pub(super) struct Post {
    /// Whether it is to do so.
    pub(super) wanted: Arc<AtomicBool>,
    pub(super) over: Sender<Box<Worker>>,
    pub(super) back: Receiver<Box<Worker>>,
}

/// What serves a further queue pair.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) core: Core,
    /// From 1 on; the first reactor is 0.
    pub(super) number: usize,
    kicks: [Option<Arc<OwnedFd>>; 2],
    words: Sender<Word>,
    /// When news of the guest may be told again: it makes as much as it likes.
    quiet_until: Now,
    /// It is said that flows are to go elsewhere, until that was looked at.
    pub(super) said_drift: bool,
}

impl Worker {
    pub(super) const fn new(core: Core, number: usize, words: Sender<Word>) -> Self {
        Self {
            core,
            number,
            kicks: [None, None],
            words,
            quiet_until: Now(0),
            said_drift: false,
        }
    }

    /// The thread's life. The filter of system calls comes after its first word.
    pub(super) fn run(self: Box<Self>, post: &Post) {
        let mut worker = self;
        let mut events = Events::with_capacity(EVENTS);
        worker.say(Word::Ready);
        loop {
            if post.wanted.load(Ordering::Acquire) {
                if post.over.send(worker).is_err() {
                    return;
                }
                match post.back.recv() {
                    Ok(back) => worker = back,
                    Err(_) => return,
                }
                continue;
            }
            if let Err(error) = worker.turn(&mut events) {
                worker.say(Word::Ended(error));
                return;
            }
        }
    }

    /// Whether a queue of this pair runs, and is not disabled.
    pub(super) fn runs(&mut self) -> bool {
        let takes = self.core.inbox.intake().is_some() && !self.core.inbox.discards();
        takes || self.core.outbox.outlet().is_some()
    }

    /// Where the queues of this pair live.
    pub(super) const fn halves(&mut self) -> Halves<'_> {
        Halves {
            intake: self.core.inbox.intake(),
            outlet: self.core.outbox.outlet(),
        }
    }

    /// Has kicks of a queue of this pair heard. `false` if they cannot be.
    pub(super) fn watch_kick(&mut self, kick: Arc<OwnedFd>, queue: usize) -> bool {
        let source = Source::Kick(queue as u8);
        let fd = kick.as_raw_fd();
        if let Some(place) = self.kicks.get_mut(queue) {
            *place = Some(kick);
        }
        self.core.watch(fd, source, Interest::READABLE).is_ok()
    }

    /// Stops polling this kick's descriptor.
    pub(super) fn close_kick(&mut self, kick: &Arc<OwnedFd>, queue: usize) {
        let registry = self.core.poll.registry();
        let _ = registry.deregister(&mut SourceFd(&kick.as_raw_fd()));
        if let Some(place) = self.kicks.get_mut(queue)
            && place.as_ref().is_some_and(|known| Arc::ptr_eq(known, kick))
        {
            *place = None;
        }
    }

    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let core = &mut self.core;
        let now = core.now();
        core.relay.expire(&mut core.outbox, core.heard, now);
        let mut more = core.resume(now);
        if core.outbox.flush() == Flushed::Blocked {
            // The guest's kick tells of buffers.
            more = false;
        }
        core.register();
        core.wake_others();
        more |= core.link_readable || core.relay.has_handed();
        let idle = if more { None } else { self.idle_time(now) };
        self.core.wait(events, more, idle)?;
        let woken = self.core.now();
        for event in &*events {
            let source = Source::of(event.token());
            self.core.counts.count(source);
            match source {
                Source::Flow(id) => self.core.flow_event(id, event),
                Source::Kick(queue) => self.kicked(usize::from(queue)),
                // The thread whose ring was full may have room now.
                _ => self.core.link_readable = true,
            }
        }
        self.core.take_handed();
        self.take_bursts();
        self.end_broken();
        if self.quiet_until <= woken
            && let Some(guest) = self.core.relay.take_news()
        {
            self.quiet_until = woken + QUIET;
            self.say(Word::News(Box::new(guest)));
        }
        if self.core.relay.has_drifters() && !std::mem::replace(&mut self.said_drift, true) {
            self.say(Word::Drift);
        }
        Ok(())
    }

    /// How long nothing is due.
    fn idle_time(&self, now: Now) -> Option<Duration> {
        let news = self.core.relay.has_news();
        let news = news.then(|| Duration::from_micros(self.quiet_until.since(now).0));
        news.into_iter().chain(self.core.idle_time(now)).min()
    }

    fn kicked(&mut self, queue: usize) {
        if let Some(Some(kick)) = self.kicks.get(queue) {
            hear(kick);
            self.core.link_readable |= queue == TRANSMIT;
        }
    }

    fn take_bursts(&mut self) {
        for _ in 0..BURSTS {
            self.core.link_readable &= self.core.inbox.intake().is_some();
            if !self.core.link_readable {
                return;
            }
            match self.core.take_burst() {
                Some(Received::Burst) => {}
                Some(Received::Broken(broken)) => self.leave_queues(&broken),
                _ => self.core.link_readable = false,
            }
        }
    }

    /// Serves queues no more that the driver has broken, or whose memory is gone.
    fn end_broken(&mut self) {
        if let Some(broken) = self.core.outbox.broken() {
            self.leave_queues(&broken);
        }
        if self.core.inbox.has_vanished() || self.core.outbox.has_vanished() {
            self.leave_queues(&"the guest's memory is gone");
        }
    }

    /// Lets go of both queues; the first reactor ends the connection.
    fn leave_queues(&mut self, why: &dyn fmt::Display) {
        *self.core.inbox.intake() = None;
        *self.core.outbox.outlet() = None;
        self.core.link_readable = false;
        self.say(Word::Stopped(format!("queue pair {}: {why}", self.number)));
    }

    fn say(&self, word: Word) {
        // Where nobody listens any more the process is about to end.
        let _ = self.words.send(word);
        if let Some(first) = self.core.wakers.first() {
            let _ = first.wake();
        }
    }
}
