//! Ports that change while they are served: interfaces come back, and rules are replaced.

use std::{collections::HashMap, io, mem, net::IpAddr, os::fd::OwnedFd};

use super::{super::ends::is_of_port, NO_RULE, Port, Ports};
use crate::{
    config::Rule,
    net::{PortSet, Protocol},
    sys::reason,
};

/// What a socket of a forwarded port is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reach {
    protocol: Protocol,
    port: u16,
    addr: Option<IpAddr>,
    interface: Option<String>,
}

impl Reach {
    fn of(rule: &Rule, port: u16) -> Self {
        Self {
            protocol: rule.protocol,
            port,
            addr: rule.addr,
            interface: rule.interface.clone(),
        }
    }
}

/// What was there before rules are replaced.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// The places of ports that are forwarded as they were, by rule and port.
    kept: HashMap<(usize, u16), u32>,
    /// Sockets of those that are not, with their places; they are open until others need their ports.
    unwanted: HashMap<(Protocol, u16), Vec<(u32, OwnedFd)>>,
    /// The places whose sockets were closed for others.
    closed: Vec<u32>,
    /// Places that nothing has any more, each good for its port only: flows may know it.
    vacant: HashMap<(Protocol, u16), Vec<u32>>,
    /// The places that have new sockets.
    opened: Vec<u32>,
    /// Ports that datagram flows have.
    ours: PortSet,
}

impl Before {
    /// Whether others of ours are at a port, which let it be shared.
    pub(super) fn shares(&self, protocol: Protocol, port: u16) -> bool {
        protocol == Protocol::Udp && self.ours.contains(port)
    }

    /// Whether this port is there already.
    pub(super) fn has(&self, rule: usize, port: u16) -> bool {
        self.kept.contains_key(&(rule, port))
    }

    /// Closes what could be in the way of a new socket.
    pub(super) fn make_way(&mut self, protocol: Protocol, port: u16) {
        let unwanted = self.unwanted.remove(&(protocol, port));
        let places = unwanted.into_iter().flatten().map(|(place, _)| place);
        self.closed.extend(places);
    }

    /// Closes all that is not wanted any more, for its descriptors. `false` if there is nothing.
    pub(super) fn close_unwanted(&mut self) -> bool {
        let unwanted = mem::take(&mut self.unwanted);
        let places = unwanted.into_values().flatten().map(|(place, _)| place);
        let before = self.closed.len();
        self.closed.extend(places);
        self.closed.len() > before
    }

    /// Gives a port that was opened its place.
    pub(super) fn enter(&mut self, ports: &mut Vec<Port>, opened: Port) {
        let vacant = self.vacant.get_mut(&(opened.protocol, opened.port));
        let place = vacant.and_then(Vec::pop).unwrap_or(ports.len() as u32);
        match ports.get_mut(place as usize) {
            Some(port) => {
                let queued = port.queued;
                *port = Port { queued, ..opened };
            }
            None => ports.push(opened),
        }
        self.opened.push(place);
    }
}

impl Ports {
    /// Serves these rules from now on, and no others. What is in both goes on as it is: nobody who waits there is turned away.
    /// `ours` are the ports that datagram flows have, `index` tells the index of an interface there is. The first value is the
    /// places that have new sockets, the second a warning for the log.
    ///
    /// # Errors
    /// One line: a port that must be had cannot be bound, or nothing of a rule can. Then all is as it was.
    pub fn replace(
        &mut self,
        rules: &[Rule],
        ours: PortSet,
        index: impl Fn(&str) -> Option<u32>,
    ) -> (Vec<u32>, Result<Option<String>, String>) {
        let name = |rule: &Rule| rule.interface.as_deref().and_then(&index).unwrap_or(0);
        let mut next = Self::of(rules, rules.iter().map(name).collect(), self.options);
        let mut before = next.inherit(self, ours);
        match next.open_all(&mut before) {
            Ok(warning) => {
                *self = next;
                (before.opened, Ok(warning))
            }
            Err(why) => (self.take_back(next, before), Err(why)),
        }
    }

    /// Takes over what `other` has of these rules, and all its places.
    fn inherit(&mut self, other: &mut Self, ours: PortSet) -> Before {
        let mut before = Before {
            ours,
            ..Before::default()
        };
        let mut known: HashMap<Reach, u32> = HashMap::new();
        for (place, port) in (0..).zip(&other.ports) {
            if let Some(rule) = other.rules.get(usize::from(port.rule)) {
                known.insert(Reach::of(rule, port.port), place);
            }
            self.ports.push(Port {
                socket: None,
                rule: NO_RULE,
                ..*port
            });
        }
        for (index, rule) in self.rules.iter().enumerate() {
            for number in rule.first..=rule.last {
                let Some(place) = known.remove(&Reach::of(rule, number)) else {
                    continue;
                };
                before.kept.insert((index, number), place);
                let at = place as usize;
                let (Some(theirs), Some(ours)) = (other.ports.get_mut(at), self.ports.get_mut(at))
                else {
                    continue;
                };
                ours.socket = theirs.socket.take();
                ours.rule = index as u16;
                self.open += 1;
                // What an interface is without goes on to be without it.
                let rule = usize::from(theirs.rule);
                if let (Some(theirs), Some(ours)) =
                    (other.indexes.get(rule), self.indexes.get_mut(index))
                {
                    *ours = *theirs;
                }
                if let (Some(theirs), Some(ours)) =
                    (other.incomplete.get(rule), self.incomplete.get_mut(index))
                {
                    *ours |= theirs;
                }
            }
        }
        for (place, (port, theirs)) in (0..).zip(self.ports.iter().zip(&mut other.ports)) {
            if port.rule != NO_RULE {
                continue;
            }
            let number = (port.protocol, port.port);
            before.vacant.entry(number).or_default().push(place);
            if let Some(socket) = theirs.socket.take() {
                let unwanted = before.unwanted.entry(number).or_default();
                unwanted.push((place, socket));
            }
        }
        before
    }

    /// Has everything as it was before `next` was tried. Returns the places that have new sockets.
    fn take_back(&mut self, mut next: Self, before: Before) -> Vec<u32> {
        for place in before.kept.into_values() {
            let at = place as usize;
            if let (Some(ours), Some(theirs)) = (self.ports.get_mut(at), next.ports.get_mut(at)) {
                ours.socket = theirs.socket.take();
            }
        }
        for (place, socket) in before.unwanted.into_values().flatten() {
            if let Some(port) = self.ports.get_mut(place as usize) {
                port.socket = Some(socket);
            }
        }
        // What they have opened is in the way of what was closed for them.
        drop(next);
        let mut opened = Vec::new();
        for place in before.closed {
            let Some(port) = self.ports.get(place as usize) else {
                continue;
            };
            let (rule, number) = (usize::from(port.rule), port.port);
            let shares = before.ours.contains(number) && port.protocol == Protocol::Udp;
            match (
                self.socket(rule, number, shares),
                self.ports.get_mut(place as usize),
            ) {
                (Ok(socket), Some(port)) => {
                    port.socket = Some(socket.into());
                    opened.push(place);
                }
                (Err(error), _) => log::warn!("Port {number} is lost: {}", reason(&error)),
                (Ok(_), None) => {}
            }
        }
        opened
    }

    /// Opens the ports of interfaces anew that went and came back: sockets stay with the one that is gone. What cannot be
    /// had yet, as the address may follow its interface later, is tried again the next time. `index` tells the index of an
    /// interface there is. Returns the places that have new sockets.
    pub fn follow_interfaces(&mut self, index: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
        let mut opened = Vec::new();
        for rule in 0..self.rules.len() {
            let name = self
                .rules
                .get(rule)
                .and_then(|rule| rule.interface.as_deref());
            let (Some(now), Some(known)) = (name.and_then(&index), self.indexes.get_mut(rule))
            else {
                continue;
            };
            let returned = mem::replace(known, now) != now;
            if returned {
                self.close(rule);
            } else if self.incomplete.get(rule) != Some(&true) {
                continue;
            }
            let missed = self.open_missing(rule, &mut opened);
            if let Some(incomplete) = self.incomplete.get_mut(rule) {
                *incomplete = missed.is_some();
            }
            if let (true, Some((port, error)), Some(rule)) =
                (returned, missed, self.rules.get(rule))
            {
                log::warn!(
                    "An interface returned, but not for port {port} ({}) of option '{}'",
                    reason(&error),
                    rule.option
                );
            }
        }
        opened
    }

    /// Closes what a rule had, all of it before anything is opened anew: there may be no descriptors for both.
    fn close(&mut self, rule: usize) {
        for port in &mut self.ports {
            if usize::from(port.rule) == rule {
                port.socket = None;
            }
        }
    }

    /// Opens what a rule is without. Returns the first port that cannot be had.
    fn open_missing(&mut self, rule: usize, opened: &mut Vec<u32>) -> Option<(u16, io::Error)> {
        let mut missed = None;
        for place in 0..self.ports.len() {
            let missing = |port: &&Port| usize::from(port.rule) == rule && port.socket.is_none();
            let Some(number) = self.ports.get(place).filter(missing).map(|port| port.port) else {
                continue;
            };
            match (self.socket(rule, number, false), self.ports.get_mut(place)) {
                (Ok(socket), Some(port)) => {
                    port.socket = Some(socket.into());
                    opened.push(place as u32);
                }
                (Err(error), _) => {
                    let of_port = is_of_port(&error);
                    missed.get_or_insert((number, error));
                    if !of_port {
                        break;
                    }
                }
                (Ok(_), None) => {}
            }
        }
        missed
    }
}
