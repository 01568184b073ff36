//! A guest that leaves or arrives, as the front-end says.

use std::os::fd::OwnedFd;

use super::{migration, reactor::Reactor};
use crate::{config::Config, link::Transfer, net::Now, sys::reason};

impl Reactor {
    /// Listens here for passt-repair, and heeds what else is said of migrations.
    pub(super) fn set_migration(&mut self, repair: Option<OwnedFd>, config: &Config) {
        self.migration.repair = repair;
        self.migration.exits = config.migrate_exit;
        self.migration.lingers = !config.migrate_no_linger;
    }

    /// Makes the transfer the front-end has asked for, if it has, and sees whether a guest that left is still here.
    pub(super) fn transfer(&mut self) {
        let Some(transfer) = self.session.as_mut().and_then(|s| s.transfer()) else {
            return self.look_for_guest();
        };
        let done = match transfer {
            Transfer::Save(pipe) => self.save(&pipe),
            Transfer::Load(pipe) => self.load(&pipe),
        };
        if let Err(why) = &done {
            log::warn!("{why}");
        }
        if let Some(session) = &mut self.session {
            session.transferred(done.is_ok());
        }
        self.session_readable = true;
    }

    fn save(&mut self, pipe: &OwnedFd) -> Result<(), String> {
        let now = self.now();
        self.gather(now);
        self.core.outbox.flush();
        // Without connections no helper is needed: none is waited for.
        let helper = if self.core.relay.has_connections() {
            self.migration.helper()
        } else {
            None
        };
        let state = self.core.relay.depart(helper, now);
        migration::save(pipe, &state)
            .map_err(|error| format!("The guest's state cannot be written: {}", reason(&error)))
    }

    /// Has all of the guest's flows here, with all it has sent.
    fn gather(&mut self, now: Now) {
        self.absorb(now);
        while self.core.relay.has_handed() {
            self.core.take_handed();
        }
    }

    fn load(&mut self, pipe: &OwnedFd) -> Result<(), String> {
        let state = migration::load(pipe)
            .map_err(|error| format!("The guest's state cannot be read: {}", reason(&error)))?;
        let now = self.now();
        // Flows there are already, of a guest that goes back to what it was, are not its any more; their ports may be.
        self.gather(now);
        // What waits for one that is not there waits for this one.
        if self.core.relay.hears_guest() {
            self.core.relay.guest_left();
        }
        self.core.relay.end_silence();
        self.core.register();
        // A guest without its flows is better than none.
        let migration = &mut self.migration;
        if let Err(why) = self.core.relay.settle(&state, || migration.helper(), now) {
            log::warn!("{why}");
        }
        self.migration.dismiss();
        self.core.register();
        self.tell_crew();
        if let Some(changes) = &mut self.changes {
            changes.guest_arrived(now);
        }
        if let Some(watch) = &mut self.neighbours {
            watch.ask_for_all(now);
        }
        Ok(())
    }

    /// A queue that runs means that the guest does: if it was about to leave, it stays.
    fn look_for_guest(&mut self) {
        let runs = self.core.inbox.intake().is_some() || self.core.outbox.outlet().is_some();
        if self.core.relay.is_leaving() && runs {
            let now = self.now();
            log::info!("Guest stays");
            let migration = &mut self.migration;
            self.core.relay.stay(|| migration.helper(), now);
            self.migration.over();
            self.core.register();
        }
    }
}
