//! What the loop hears of the host and of people, and what it tells them.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use log::Level;
use mio::Interest;
use nix::sys::signal::Signal;

use super::{
    control::{self, Control, Outcome},
    event::{Counts, Source},
    reactor::Reactor,
};
use crate::{
    config::{Enabled, Places, Rule},
    net::{Now, PortSet},
    relay::Report,
};

impl Reactor {
    /// Takes the signals that came; `true` for one that ends us.
    pub(super) fn signalled(&mut self) -> bool {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo != Signal::SIGUSR1 as u32 {
                return true;
            }
            // It was asked for: -q does not silence it.
            let most = log::max_level().to_level();
            let level = most.map_or(Level::Warn, |most| most.min(Level::Info));
            log::log!(level, "{}", self.report());
        }
        false
    }

    /// Tells relay and guest what is new on the host.
    pub(super) fn follow_host(&mut self, now: Now) {
        let Some(changes) = self.changes.as_mut().filter(|changes| changes.is_due(now)) else {
            return;
        };
        let kept = self.core.relay.has_met_guest();
        let resolved = changes.look(self.core.relay.net(), kept, now);
        self.core
            .relay
            .follow_interfaces(|name| changes.index_of(name));
        let gone = changes.gone();
        self.leave(&gone);
        let Some(resolved) = resolved else {
            return;
        };
        let name =
            |template: &Option<String>| template.clone().unwrap_or_else(|| "none".to_owned());
        log::info!(
            "The host's network changed, template interface: {} (IPv4), {} (IPv6)",
            name(&resolved.template4),
            name(&resolved.template6)
        );
        for warning in &resolved.warnings {
            log::warn!("{warning}");
        }
        self.core.relay.set_net(resolved.net);
        self.tell_crew();
        if let Some(watch) = &mut self.neighbours {
            watch.ask_for_all(now);
        }
        self.core.relay.renew_groups(now);
        // RFC 4861, section 6.2.4: what changed is told at once.
        self.core.relay.advertise(&mut self.core.outbox);
    }

    /// Has flows end whose sockets are bound to what is gone.
    fn leave(&mut self, gone: &Places) {
        if gone.is_empty() {
            return;
        }
        self.core.relay.leave(gone);
        let mut workers = self.crew.call(&self.core.wakers);
        for worker in &mut workers {
            worker.core.relay.leave(gone);
        }
        self.crew.dismiss(workers);
    }

    /// Tells the relay what the kernel tells of neighbours.
    pub(super) fn hear_of_neighbours(&mut self) {
        let now = self.now();
        let events = self.neighbours.as_mut().map(|watch| watch.events(now));
        let mut any = false;
        for told in events.iter().flatten() {
            any = true;
            self.core.relay.neighbour(told, &mut self.core.outbox);
        }
        if any {
            self.tell_crew();
        }
    }

    pub(super) fn look_at_neighbours(&mut self, now: Now) {
        if let Some(all) = self.neighbours.as_mut().and_then(|watch| watch.all(now)) {
            self.core.relay.all_neighbours(&all, &mut self.core.outbox);
            self.tell_crew();
        }
    }

    /// Counters and flows as they are, of all threads.
    pub(super) fn report(&self) -> String {
        let (counts, report) = self.totals();
        format!("{counts}\n{report}")
    }

    pub(super) fn totals(&self) -> (Counts, Report) {
        let (mut counts, mut report) = (
            self.core.counts.clone(),
            self.core.relay.report(&self.core.outbox),
        );
        let workers = self.crew.call(&self.core.wakers);
        for worker in &workers {
            counts.add(&worker.core.counts);
            report.add(&worker.core.relay.report(&worker.core.outbox));
        }
        self.crew.dismiss(workers);
        (counts, report)
    }

    /// Has the workers know of the host what we do.
    pub(super) fn tell_crew(&self) {
        let mut workers = self.crew.call(&self.core.wakers);
        for worker in &mut workers {
            worker.core.relay.learn_from(&self.core.relay);
        }
        self.crew.dismiss(workers);
    }

    pub(super) fn report_stats(&mut self, now: Now) {
        if self.stats.as_ref().is_none_or(|stats| stats.next > now) {
            return;
        }
        let report = self.report();
        if let Some(stats) = &mut self.stats {
            stats.next = now + stats.every;
            if report != stats.last {
                log::info!("{report}");
                stats.last = report;
            }
        }
    }

    /// Lets clients at this socket change what is forwarded.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn set_control(&mut self, listener: OwnedFd, enabled: Enabled) -> io::Result<()> {
        let fd = listener.as_raw_fd();
        self.core.watch(fd, Source::Control, Interest::READABLE)?;
        self.control = Some(Control::new(listener, enabled));
        Ok(())
    }

    /// Serves who comes to see or to change what is forwarded.
    pub(super) fn serve_control(&mut self) {
        let Some(mut control) = self.control.take() else {
            return;
        };
        let now = self.now();
        for _ in 0..control::TURN {
            if !control.let_in(self.core.relay.rules(), &self.core, now) {
                break;
            }
            match control.talk(now) {
                Outcome::Waits => break,
                Outcome::Wants(rules) => match self.replace_forwards(&rules, now) {
                    Ok(()) => {
                        log::info!("New forwarding rules for HOST:");
                        for rule in &rules {
                            log::info!("    {}", control.describe(rule));
                        }
                    }
                    Err(why) => log::warn!("Forwarding rules stay as they are: {why}"),
                },
                Outcome::Left => {}
            }
            control.dismiss(now);
        }
        self.control = Some(control);
    }

    fn replace_forwards(&mut self, rules: &[Rule], now: Now) -> Result<(), String> {
        self.core.register();
        let mut workers = self.crew.call(&self.core.wakers);
        let mut ours = PortSet::new();
        self.core.relay.note_ports(&mut ours);
        for worker in &workers {
            worker.core.relay.note_ports(&mut ours);
        }
        let index = |name: &str| self.changes.as_ref()?.index_of(name);
        let replaced = self.core.relay.replace_forwards(rules, ours, index);
        self.crew.keep_forwarded(&mut self.core, &mut workers, now);
        self.crew.dismiss(workers);
        self.core.register();
        if let Some(warning) = replaced? {
            log::warn!("{warning}");
        }
        Ok(())
    }
}
