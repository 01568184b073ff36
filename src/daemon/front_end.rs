//! The vhost-user front-end's side of the loop: its messages, its kicks, and what they change.

use std::{fmt, os::fd::AsRawFd};

use mio::{Interest, unix::SourceFd};

use super::{event::Source, reactor::Reactor};
use crate::link::{Halves, Served, TRANSMIT, Watch};

impl Reactor {
    /// Takes the front-end's messages.
    pub(super) fn talk(&mut self) {
        if !std::mem::take(&mut self.session_readable) {
            return;
        }
        let Some(session) = &mut self.session else {
            return;
        };
        let mut halves = Halves {
            intake: self.core.inbox.intake(),
            outlet: self.core.outbox.outlet(),
        };
        let served = session.serve(&mut halves);
        // A queue that has just started may hold something already.
        self.core.link_readable = true;
        let polled = self.poll_kicks();
        match served {
            Err(refused) => self.refuse(&refused),
            Ok(_) if !polled => self.refuse(&"cannot poll a queue's kicks"),
            Ok(Served::More) => self.session_readable = true,
            Ok(Served::Waits) => {}
            Ok(Served::Left) => self.detach(),
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

    /// Lets go of all that the front-end has shared.
    pub(super) fn end_session(&mut self) {
        if let Some(mut session) = self.session.take() {
            session.end(&mut Halves {
                intake: self.core.inbox.intake(),
                outlet: self.core.outbox.outlet(),
            });
            self.core.outbox.attach_queue(false);
            self.session = Some(session);
            self.poll_kicks();
            self.session = None;
        }
    }

    /// Carries out what changed about kicks. `false` if one cannot be polled.
    fn poll_kicks(&mut self) -> bool {
        let Some(session) = &mut self.session else {
            return true;
        };
        let watches: Vec<Watch> = session.watches().collect();
        let mut all = true;
        for watch in watches {
            match watch {
                Watch::Kick(fd, queue) => {
                    let source = Source::Kick(queue as u8);
                    all &= self.core.watch(fd, source, Interest::READABLE).is_ok();
                }
                Watch::Close(kick) => {
                    // The front-end has it too, so closing alone would leave it in the poll.
                    let registry = self.core.poll.registry();
                    let _ = registry.deregister(&mut SourceFd(&kick.as_raw_fd()));
                }
            }
        }
        all
    }
}
