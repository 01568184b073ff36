//! What an event is about, packed into the number that the poll hands back.

use std::fmt;

use mio::Token;

use crate::flow::Id;

/// The source of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A client waits at the listening socket.
    Listener,
    /// The guest's link.
    Link,
    Signal,
    /// The host's network changed.
    Monitor,
    /// The kernel knows something new of the host's neighbours.
    Neighbours,
    /// The watcher of the resolver configuration has something to say.
    Resolver,
    Flow(Id),
    /// A forwarded port, by its place.
    Port(u32),
    /// A queue of the guest's driver.
    Kick(u8),
    /// Another thread that serves the guest.
    Peers,
    /// Somebody who may change forwards waits, or says something.
    Control,
    Controller,
}

/// The kind stands above the bits of a flow's handle.
const KIND: u32 = Id::BITS;

impl Source {
    pub fn token(self) -> Token {
        let bits = match self {
            Self::Listener => 0,
            Self::Link => 1 << KIND,
            Self::Signal => 2 << KIND,
            Self::Monitor => 4 << KIND,
            Self::Resolver => 5 << KIND,
            Self::Flow(id) => 3 << KIND | id.to_bits(),
            Self::Neighbours => 6 << KIND,
            Self::Port(place) => 7 << KIND | u64::from(place),
            Self::Kick(queue) => 8 << KIND | u64::from(queue),
            Self::Peers => 9 << KIND,
            Self::Control => 10 << KIND,
            Self::Controller => 11 << KIND,
        };
        Token(bits as usize)
    }

    pub fn of(token: Token) -> Self {
        let bits = token.0 as u64;
        match bits >> KIND {
            0 => Self::Listener,
            1 => Self::Link,
            2 => Self::Signal,
            3 => Self::Flow(Id::from_bits(bits)),
            4 => Self::Monitor,
            5 => Self::Resolver,
            6 => Self::Neighbours,
            7 => Self::Port(bits as u32),
            8 => Self::Kick(bits as u8),
            9 => Self::Peers,
            10 => Self::Control,
            _ => Self::Controller,
        }
    }

    /// The kind, for a person.
    const fn kind(self) -> &'static str {
        match self {
            Self::Listener => "client connecting",
            Self::Link => "guest's link",
            Self::Signal => "signal",
            Self::Monitor => "host's network",
            Self::Neighbours => "host's neighbours",
            Self::Resolver => "resolver configuration",
            Self::Flow(_) => "flow's socket",
            Self::Port(_) => "forwarded port",
            Self::Kick(_) => "guest's queue",
            Self::Peers => "other threads",
            Self::Control => "configuration client connecting",
            Self::Controller => "configuration client",
        }
    }
}

/// How often each kind of event came.
#[derive(Debug, Clone)]
pub struct Counts(Vec<(&'static str, u64)>);

impl Default for Counts {
    fn default() -> Self {
        // More than there are kinds.
        Self(Vec::with_capacity(16))
    }
}

impl Counts {
    pub fn count(&mut self, source: Source) {
        let kind = source.kind();
        match self.0.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.0.push((kind, 1)),
        }
    }
}

impl Counts {
    /// Adds what another thread has counted.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            match self.0.iter_mut().find(|(known, _)| known == kind) {
                Some((_, sum)) => *sum += count,
                None => self.0.push((kind, *count)),
            }
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.0.iter().map(|(_, count)| count).sum();
        write!(f, "Events: {all}")?;
        for (kind, count) in &self.0 {
            write!(f, "\n    {kind}: {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_by_kind() {
        let mut counts = Counts::default();
        assert_eq!(counts.to_string(), "Events: 0");
        for source in [Source::Port(1), Source::Link, Source::Port(2)] {
            counts.count(source);
        }
        let text = "Events: 3\n    forwarded port: 2\n    guest's link: 1";
        assert_eq!(counts.to_string(), text);
    }

    #[test]
    fn every_source_survives_its_token() {
        let id = Id {
            slot: 0xff_ffff,
            generation: u32::MAX,
        };
        for source in [
            Source::Listener,
            Source::Link,
            Source::Signal,
            Source::Monitor,
            Source::Neighbours,
            Source::Resolver,
            Source::Flow(id),
            Source::Port(0),
            Source::Port(u32::MAX),
            Source::Kick(0),
            Source::Kick(1),
            Source::Peers,
            Source::Control,
            Source::Controller,
        ] {
            assert_eq!(Source::of(source.token()), source);
        }
    }
}
