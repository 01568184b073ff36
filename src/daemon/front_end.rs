//! The vhost-user front-end's side of the loop: its messages, its kicks, and what they change.

use std::{fmt, io, os::fd::AsRawFd};

use mio::{Interest, unix::SourceFd};

use super::{core::Core, event::Source, reactor::Reactor, worker::Worker};
use crate::{
    link::{Halves, Served, Session, TRANSMIT, Watch},
    net::Now,
};

impl Reactor {
    /// Takes the front-end's messages.
    pub(super) fn talk(&mut self) {
        if !std::mem::take(&mut self.session_readable) {
            return;
        }
        let Some(session) = &mut self.session else {
            return;
        };
        let now = self.core.now();
        let mut workers = self.crew.call(&self.core.wakers);
        let served = session.serve(&mut halves(&mut self.core, &mut workers));
        // A queue that has just started may hold something already.
        self.core.link_readable = true;
        let polled = poll_kicks(session, &self.core, &mut workers);
        self.crew.arrange(&mut self.core, &mut workers, now);
        self.crew.dismiss(workers);
        match served {
            Err(refused) => self.refuse(&refused),
            Ok(_) if !polled => self.refuse(&"cannot poll a queue's kicks"),
            Ok(Served::More) => self.session_readable = true,
            Ok(Served::Waits) => {}
            Ok(Served::Left) => {
                self.note_refused_pairs(now);
                self.detach();
            }
        }
    }

    /// A front-end that wants more queue pairs than there are leaves without a word to us.
    fn note_refused_pairs(&mut self, now: Now) {
        let pairs = self.session.as_ref().and_then(Session::refused_pairs);
        if let Some(pairs) = pairs {
            let said = format_args!(
                "vhost-user: front-end leaves before a driver began; is its guest to have more than {pairs} queue pairs (--queues)?"
            );
            self.comings.log(log::Level::Info, now, said);
        }
    }

    /// The driver has something for us in this queue: frames, or buffers for frames, which every turn looks for.
    pub(super) fn kicked(&mut self, queue: usize) {
        if let Some(session) = &self.session {
            session.kicked(queue);
            self.core.link_readable |= queue == TRANSMIT;
        }
    }

    /// Ends the connection if the driver has broken the queue of frames to it, or its memory is gone.
    pub(super) fn end_broken(&mut self) {
        let Some(session) = &self.session else {
            return;
        };
        if let Err(refused) = session.check() {
            self.refuse(&refused);
        } else if let Some(broken) = self.core.outbox.broken() {
            self.refuse(&broken);
        }
    }

    /// Ends the connection, and says why.
    pub(super) fn refuse(&mut self, why: &dyn fmt::Display) {
        // Where memory has vanished all else follows from it.
        let vanished = self.session.as_ref().and_then(|s| s.check().err());
        let why = vanished.as_ref().map_or(why, |refused| refused);
        log::warn!("vhost-user: {why}, resetting connection");
        self.detach();
    }

    /// Lets go of all that the front-end has shared, and of its guest's flows that others have.
    pub(super) fn end_session(&mut self) {
        let Some(mut session) = self.session.take() else {
            return;
        };
        let now = self.core.now();
        let mut workers = self.crew.call(&self.core.wakers);
        session.end(&mut halves(&mut self.core, &mut workers));
        poll_kicks(&mut session, &self.core, &mut workers);
        self.crew.guest_left(&mut self.core, &mut workers, now);
        self.crew.dismiss(workers);
        self.core.outbox.attach_queue(false);
    }

    /// Hears what workers have to say.
    ///
    /// # Errors
    /// What a worker's thread has ended by.
    pub(super) fn hear_crew(&mut self) -> io::Result<()> {
        // The thread whose ring was full may have room now.
        self.core.link_readable |= self.session.is_some();
        if let Some(why) = self.crew.hear(&mut self.core)?
            && self.session.is_some()
        {
            self.refuse(&why);
        }
        Ok(())
    }

    /// Takes over the flows of workers whose queues do not run.
    pub(super) fn absorb(&mut self, now: Now) {
        let mut workers = self.crew.call(&self.core.wakers);
        self.crew.absorb(&mut self.core, &mut workers, now);
        self.crew.dismiss(workers);
    }

    /// When flows may follow their frames to other threads, if any are to. Those of a guest that is leaving stay.
    pub(super) fn follow_due(&self) -> Option<Now> {
        let due = self.crew.follow_due(&self.core);
        due.filter(|_| !self.core.relay.is_leaving())
    }

    /// Lets them.
    pub(super) fn follow_frames(&mut self) {
        let mut workers = self.crew.call(&self.core.wakers);
        let now = self.core.now();
        self.crew.follow(&mut self.core, &mut workers, now);
        self.crew.dismiss(workers);
    }
}

/// Where the queues of all pairs live.
fn halves<'a>(core: &'a mut Core, workers: &'a mut [Box<Worker>]) -> Vec<Halves<'a>> {
    let first = Halves {
        intake: core.inbox.intake(),
        outlet: core.outbox.outlet(),
    };
    let others = workers.iter_mut().map(|worker| worker.halves());
    std::iter::once(first).chain(others).collect()
}

/// Carries out what changed about kicks. `false` if one cannot be polled.
fn poll_kicks(session: &mut Session, core: &Core, workers: &mut [Box<Worker>]) -> bool {
    let mut all = true;
    for watch in session.watches() {
        let (Watch::Kick(_, index) | Watch::Close(_, index)) = watch;
        let worker = (index / 2)
            .checked_sub(1)
            .and_then(|at| workers.get_mut(at));
        let queue = index % 2;
        match (watch, worker) {
            (Watch::Kick(kick, _), Some(worker)) => all &= worker.watch_kick(kick, queue),
            (Watch::Close(kick, _), Some(worker)) => worker.close_kick(&kick, queue),
            (Watch::Kick(kick, _), None) => {
                let source = Source::Kick(queue as u8);
                all &= core
                    .watch(kick.as_raw_fd(), source, Interest::READABLE)
                    .is_ok();
            }
            (Watch::Close(kick, _), None) => {
                // The front-end has it too, so closing alone would leave it in the poll.
                let registry = core.poll.registry();
                let _ = registry.deregister(&mut SourceFd(&kick.as_raw_fd()));
            }
        }
    }
    all
}
