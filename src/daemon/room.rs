//! Whether we hear of room on the guest's link. Every frame the guest takes makes some, and that is worth waking up for only
//! while something waits.

use std::os::fd::RawFd;

use mio::{Interest, Registry, unix::SourceFd};

use super::event::Source;

/// So often is cheaper than to unwatch and watch again.
const IDLE_MOST: u8 = 16;

#[derive(Debug, Default)]
pub struct Room {
    watched: bool,
    /// Whether something waits.
    wanted: bool,
    /// How often in a row room was told of that nobody wanted.
    idle: u8,
}

impl Room {
    /// Says whether something waits for room on this link. If so it will be told, at once if there is some.
    pub fn want(&mut self, wanted: bool, registry: &Registry, link: Option<RawFd>) {
        self.wanted = wanted;
        if !wanted {
            return;
        }
        self.idle = 0;
        if !self.watched {
            self.watched = rewatch(registry, link, Interest::READABLE | Interest::WRITABLE);
        }
    }

    /// There is room on the link.
    pub fn told(&mut self, registry: &Registry, link: Option<RawFd>) {
        if self.wanted {
            return;
        }
        self.idle = self.idle.saturating_add(1);
        if self.idle > IDLE_MOST {
            self.watched = !rewatch(registry, link, Interest::READABLE);
        }
    }
}

fn rewatch(registry: &Registry, link: Option<RawFd>, interest: Interest) -> bool {
    link.is_some_and(|fd| {
        registry
            .reregister(&mut SourceFd(&fd), Source::Link.token(), interest)
            .is_ok()
    })
}
