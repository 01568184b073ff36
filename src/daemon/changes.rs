//! Changes of the host's network and resolver, on their way to the guest.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

use crate::{
    config::{Config, Facts, Interface, Net, Places, Resolved, Resolver, renew},
    host::{
        facts,
        monitor::Monitor,
        resolv_watch::{Reader, Said},
    },
    net::{Now, Span},
};

/// A change seldom comes alone: an address is followed by its routes.
const SETTLE: Span = Span::millis(50);

/// The tables could not be read, for want of a descriptor or memory: not before then.
const RETRY: Span = Span::secs(1);

/// Reading large tables takes a while, and nobody else has a turn meanwhile: at most one part in so many of the processor's
/// time. How long a busy host has us wait for it says nothing about the tables.
const SHARE: u64 = 20;

/// Where changes are heard of, and when they are looked into.
#[derive(Debug)]
pub struct Changes {
    config: Config,
    resolver: Resolver,
    monitor: Option<Monitor>,
    reader: Option<Reader>,
    due: Option<Now>,
    /// The tables were large: not before then.
    rest: Now,
    /// The interfaces there were when the tables were read last.
    interfaces: Vec<Interface>,
    /// What sockets could be bound to then, and what of that was found gone since it was last asked for.
    places: Places,
    gone: Places,
    /// What was said last of a failure.
    failure: Option<String>,
}

impl Changes {
    /// `resolver` is what the resolver configuration said at first.
    pub fn new(
        config: &Config,
        resolver: Resolver,
        monitor: Option<Monitor>,
        reader: Option<Reader>,
    ) -> Self {
        Self {
            config: config.clone(),
            resolver,
            monitor,
            reader,
            // Something may have happened since the tables were read.
            due: Some(Now(0)),
            rest: Now(0),
            interfaces: Vec::new(),
            places: Places::default(),
            gone: Places::default(),
            failure: None,
        }
    }

    /// The index of an interface, if it is there.
    pub fn index_of(&self, name: &str) -> Option<u32> {
        let found = self
            .interfaces
            .iter()
            .find(|interface| interface.is_called(name))?;
        Some(found.index)
    }

    /// What sockets could be bound to before the last look and cannot any more.
    pub fn gone(&mut self) -> Places {
        std::mem::take(&mut self.gone)
    }

    fn note(&mut self, facts: &Facts) {
        self.interfaces.clone_from(&facts.interfaces);
        let before = std::mem::replace(&mut self.places, Places::of(facts));
        self.gone = before.gone(&self.places);
    }

    pub fn monitor(&self) -> Option<RawFd> {
        self.monitor.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub fn reader(&self) -> Option<RawFd> {
        let reader = self.reader.as_ref()?;
        Some(reader.as_fd().as_raw_fd())
    }

    /// Interfaces, addresses or routes changed.
    pub fn network_changed(&mut self, now: Now) {
        self.due = Some(self.due.unwrap_or_else(|| (now + SETTLE).max(self.rest)));
    }

    /// A guest came from another host: what it was told there stands for something else here, which is to be known before it
    /// sends anything. It comes seldom enough for large tables.
    pub const fn guest_arrived(&mut self, now: Now) {
        self.due = Some(now);
    }

    /// The watcher of the resolver configuration said something.
    pub fn resolver_changed(&mut self, now: Now) {
        match self.reader.as_mut().map(Reader::read) {
            Some(Said::Changed(resolver)) if resolver != self.resolver => {
                self.resolver = resolver;
                self.network_changed(now);
            }
            Some(Said::Ended) => {
                log::warn!("Changes of the resolver configuration will not be noticed any more");
                self.reader = None;
            }
            Some(Said::Changed(_) | Said::Nothing) | None => {}
        }
    }

    /// When to call [`Changes::look`] next.
    pub const fn due(&self) -> Option<Now> {
        self.due
    }

    pub fn is_due(&self, now: Now) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Asks the host again: what guest and flows are told from now on, if that is not what `net` says. `kept` tells whether
    /// a guest was told of `net`.
    pub fn look(&mut self, net: &Net, kept: bool, now: Now) -> Option<Resolved> {
        self.due = None;
        let start = processor_time();
        // First the events, then the tables: what changes in between is an event again.
        let drained = self.monitor.as_ref().is_none_or(Monitor::drain);
        let read = facts::read_network();
        let unread = read.is_err();
        let renewed = read.and_then(|mut facts| {
            facts.resolver.clone_from(&self.resolver);
            self.note(&facts);
            renew(&self.config, &facts, kept.then_some(net))
        });
        let took = Span::from(processor_time().saturating_sub(start));
        self.rest = now + Span(took.0.saturating_mul(SHARE));
        if unread {
            self.rest = self.rest.max(now + RETRY);
        }
        if unread || !drained {
            self.network_changed(now);
        }
        match renewed {
            Ok(resolved) => {
                self.failure = None;
                (resolved.net != *net).then_some(resolved)
            }
            Err(why) => {
                if self.failure.as_ref() != Some(&why) {
                    log::warn!("The host's network changed, but not for the guest: {why}");
                    self.failure = Some(why);
                }
                None
            }
        }
    }
}

/// What this thread has used of its processor, if the kernel tells.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::{Route, resolve};

    /// A router's: many destinations, and as many of the ways there on the link as not.
    fn large_table() -> Facts {
        let eth0 = Interface {
            index: 2,
            name: "eth0".to_owned(),
            other_names: Vec::new(),
            mac: None,
            mtu: 1500,
            loopback: false,
            up: true,
        };
        let route = |n: u32| Route {
            interface: 2,
            dst: IpAddr::V4(Ipv4Addr::from_bits(0x1000_0000 + (n << 8))),
            prefix: if n == 0 { 0 } else { 24 },
            via: n
                .is_multiple_of(2)
                .then(|| IpAddr::V4(Ipv4Addr::from_bits(0x0800_0000 + n))),
            weight: 1,
            metric: 0,
        };
        Facts {
            interfaces: vec![eth0],
            routes: (0..100_000).map(route).collect(),
            ..Facts::default()
        }
    }

    /// The loop stands still meanwhile. It takes a thirtieth of this, or twice of it by the square of the routes.
    #[test]
    fn large_tables_take_time_by_their_size() {
        let facts = large_table();
        for prefix4 in [16, 32] {
            let config = Config {
                addr4: Some(Ipv4Addr::new(10, 0, 0, 2)),
                prefix4: Some(prefix4),
                ..Config::default()
            };
            let start = processor_time();
            let old = resolve(&config, &facts).unwrap().net;
            let new = renew(&config, &facts, Some(&old)).unwrap().net;
            let took = processor_time() - start;
            assert_eq!(new, old);
            assert!(took < Duration::from_secs(2), "{took:?} at /{prefix4}");
        }
    }

    /// Tables that could not be read for so long are not large.
    #[test]
    fn time_without_a_processor_does_not_count() {
        let start = processor_time();
        std::thread::sleep(Duration::from_millis(500));
        assert!(processor_time() - start < Duration::from_millis(100));
    }
}
