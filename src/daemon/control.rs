//! Where pesto(1) comes in, to see and to change what is forwarded: one client at a time, for a while each.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use log::Level;
use mio::Interest;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::SockRef;

use super::{core::Core, event::Source};
use crate::{
    config::{Enabled, Rule},
    net::{Now, Span},
    proto::pesto,
    relay::RateLimit,
    sys::reason,
};

/// How long a client may take. Others wait meanwhile.
const PATIENCE: Span = Span::secs(10);

/// How long clients wait when there is no descriptor for them, before the next try.
const ACCEPT_AGAIN: Span = Span::millis(100);

/// Clients served before it is the guest's turn again.
pub(super) const TURN: usize = 8;

/// Octets read at a time.
const PIECE: usize = 1 << 16;

/// Where clients come in, and the one that is served.
#[derive(Debug)]
pub(super) struct Control {
    listener: OwnedFd,
    enabled: Enabled,
    client: Option<Client>,
    /// Further clients wait, and no event will tell.
    again: Option<Now>,
    /// Word of clients that come, and of those that are sent away.
    comings: RateLimit,
    faults: RateLimit,
}

/// Somebody who has come in.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// What is left to be said to it.
    greeting: Vec<u8>,
    said: Vec<u8>,
    until: Now,
}

/// What has come of a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has more to say.
    Waits,
    /// It wants these rules served.
    Wants(Vec<Rule>),
    /// It has left, or is to leave.
    Left,
}

impl Control {
    /// Listens at this socket, for changes of what can be forwarded.
    pub(super) fn new(listener: OwnedFd, enabled: Enabled) -> Self {
        Self {
            listener,
            enabled,
            client: None,
            again: None,
            comings: RateLimit::default(),
            faults: RateLimit::default(),
        }
    }

    /// The client is done with; others may wait.
    pub(super) fn dismiss(&mut self, now: Now) {
        self.client = None;
        self.again = Some(now);
    }

    /// A rule for the log.
    pub(super) fn describe(&self, rule: &Rule) -> String {
        rule.describe(self.enabled.v4, self.enabled.v6)
    }

    /// When there is something to be done that no event will tell of.
    pub(super) fn due(&self) -> Option<Now> {
        let until = self.client.as_ref().map(|client| client.until);
        until.or(self.again)
    }

    /// Lets the next client in, if there is one. `false` if none is here.
    pub(super) fn let_in(&mut self, rules: &[Rule], core: &Core, now: Now) -> bool {
        self.again = None;
        while self.client.is_none() {
            let socket: OwnedFd = match SockRef::from(&self.listener).accept() {
                Ok((socket, _)) => socket.into(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.again = Some(now + ACCEPT_AGAIN);
                    }
                    return false;
                }
            };
            let pid = getsockopt(&socket, PeerCredentials).map_or(0, |peer| peer.pid());
            let said = format_args!("Accepted configuration client, PID {pid}");
            self.comings.log(Level::Info, now, said);
            let all = Interest::READABLE | Interest::WRITABLE;
            let watched = SockRef::from(&socket)
                .set_nonblocking(true)
                .and_then(|()| core.watch(socket.as_raw_fd(), Source::Controller, all));
            if let Err(error) = watched {
                log::warn!("Cannot serve a configuration client: {}", reason(&error));
                continue;
            }
            self.client = Some(Client {
                stream: socket.into(),
                greeting: pesto::greeting(rules, self.enabled),
                said: Vec::new(),
                until: now + PATIENCE,
            });
        }
        true
    }

    /// Talks with the client for as long as it has something to say.
    pub(super) fn talk(&mut self, now: Now) -> Outcome {
        let Some(client) = &mut self.client else {
            return Outcome::Left;
        };
        let outcome = client.talk(self.enabled);
        let outcome = match outcome {
            Ok(Outcome::Waits) if client.until <= now => Err("it takes too long".to_owned()),
            outcome => outcome,
        };
        outcome.unwrap_or_else(|why| {
            let said = format_args!("Configuration client is sent away: {why}");
            self.faults.log(Level::Warn, now, said);
            Outcome::Left
        })
    }
}

impl Client {
    fn talk(&mut self, enabled: Enabled) -> Result<Outcome, String> {
        let failed = |error: io::Error| reason(&error);
        while !self.greeting.is_empty() {
            match self.stream.write(&self.greeting) {
                Ok(octets) => drop(self.greeting.drain(..octets)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let mut piece = [0; PIECE];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(Outcome::Left),
                Ok(octets) => self.said.extend(piece.get(..octets).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Outcome::Waits);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
            if let Some(rules) = pesto::read(&self.said, enabled)? {
                return Ok(Outcome::Wants(rules));
            }
        }
    }
}
