//! The grammar of `--tcp-ports` and `--udp-ports` (passt(1)), and what several of them come to.
//!
//! ```text
//! spec    = "none" | [host "/"] item {"," item}
//! host    = [addr] ["%" interface]           addr: IPv4, IPv6 or "*", in brackets or not
//! item    = ports [":" to] | "all" [":" addr] | "~" ports
//! to      = [addr "/"] ports | addr
//! ports   = port ["-" port]
//! ```
//!
//! Items that begin with `~` exclude, wherever they stand. A list of nothing but these forwards all other ports, as `all`
//! does: those of the ephemeral range, which outgoing connections need, are left out, and so is what cannot be bound.

use std::{net::IpAddr, ops::RangeInclusive};

use super::forward::{Rule, run};
use crate::net::{Class, PortMap, PortSet, Protocol, class, unbracketed};

/// First and last port.
type Ports = RangeInclusive<u16>;

/// The most rules there can be in all.
pub const RULES_MAX: usize = 4096;

/// Interface names, less the terminating zero (IFNAMSIZ, netdevice(7)).
pub const INTERFACE_MAX: usize = 15;

/// What to forward, gathered from the options in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwards {
    rules: Vec<Rule>,
    /// Options of which no port is left.
    idle: Vec<String>,
}

/// What can be forwarded at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one switch an option, each independent"
)]
pub struct Enabled {
    pub v4: bool,
    pub v6: bool,
    pub tcp: bool,
    pub udp: bool,
}

/// One specifier, taken apart.
#[derive(Debug, Default)]
struct Spec {
    addr: Option<IpAddr>,
    interface: Option<String>,
    /// The host's ports, the first of the guest's, and the guest's address.
    included: Vec<(Ports, u16, Option<IpAddr>)>,
    /// `all`, with the guest's address.
    all: Option<Option<IpAddr>>,
    excluded: PortSet,
}

impl Forwards {
    /// Adds what the specifier `text` forwards of `protocol`. What means every port leaves out the `ephemeral` ones.
    ///
    /// # Errors
    /// One line for a person: the specifier is no good, or demands the same as an earlier one.
    pub fn add(&mut self, protocol: Protocol, text: &str, ephemeral: &Ports) -> Result<(), String> {
        let option = format!("{} {text}", letter(protocol));
        if text == "none" {
            let before = self.rules.iter().any(|rule| rule.protocol == protocol);
            return if before {
                Err(format!("{option} conflicts with previous options"))
            } else {
                Ok(())
            };
        }
        let spec = Spec::read(text)?;
        let before = self.rules.len();
        for (ports, to, target) in &spec.included {
            if *ports.start() == 0 {
                return Err(format!("Can't forward port 0 for option '{option}'"));
            }
            if *to == 0 {
                return Err(format!("Can't forward to port 0 for option '{option}'"));
            }
            let map = PortMap::new(*ports.start(), *to);
            for run in runs(ports, |port| !spec.excluded.contains(port)) {
                self.push(spec.rule(protocol, run, map, *target, &option), text)?;
            }
        }
        if let Some(target) = spec.all {
            let wanted = |port| !spec.excluded.contains(port) && !ephemeral.contains(&port);
            for run in runs(&(1..=u16::MAX), wanted) {
                let rule = spec.rule(protocol, run, PortMap::default(), target, &option);
                let best_effort = true;
                self.push(
                    Rule {
                        best_effort,
                        ..rule
                    },
                    text,
                )?;
            }
        }
        if self.rules.len() == before {
            self.idle.push(option);
        }
        Ok(())
    }

    /// Adds a rule that was not given as a specifier. What it is called by in messages is worked out here.
    ///
    /// # Errors
    /// One line for a person: no such ports can be, or an earlier rule demands the same.
    pub fn take(&mut self, mut rule: Rule) -> Result<(), String> {
        rule.option = format!("{} {}", letter(rule.protocol), specifier(&rule));
        let (first, last) = (rule.first, rule.last);
        if first == 0 || last < first {
            return Err(format!("Can't forward ports {first} to {last}"));
        }
        let to = rule.map.guest(first);
        if to == 0 || to.checked_add(last - first).is_none() {
            return Err(format!(
                "Can't forward to {} ports from {to}",
                u32::from(last - first) + 1
            ));
        }
        let usable = |addr| matches!(class(addr), Class::Global | Class::LinkLocal);
        if rule.target.is_some_and(|addr| !usable(addr)) {
            return Err(format!("No address of a guest's for '{}'", rule.option));
        }
        let text = rule.option.clone();
        self.push(rule, &text)
    }

    fn push(&mut self, rule: Rule, text: &str) -> Result<(), String> {
        let rivals = self.rules.iter();
        let mut rivals = rivals.filter(|other| other.best_effort == rule.best_effort);
        if rivals.any(|other| collide(other, &rule)) {
            return Err(format!("Overlapping port specifier {text}"));
        }
        if self.rules.len() == RULES_MAX {
            return Err(format!("Too many ports apart in {text}"));
        }
        self.rules.push(rule);
        Ok(())
    }

    /// The rules, and warnings. Ports asked for one by one win over those of `all` that the kernel would not tell apart.
    ///
    /// # Errors
    /// One line for a person: a rule is of a protocol or a family that is not enabled.
    pub fn finish(self, enabled: Enabled) -> Result<(Vec<Rule>, Vec<String>), String> {
        for rule in &self.rules {
            check(rule, enabled).map_err(|why| format!("{why} for option '{}'", rule.option))?;
        }
        let named: Vec<Rule> = self
            .rules
            .iter()
            .filter(|rule| !rule.best_effort)
            .cloned()
            .collect();
        let mut rules = Vec::with_capacity(self.rules.len());
        for rule in self.rules {
            if rule.best_effort {
                rules.extend(without(rule, &named));
            } else {
                rules.push(rule);
            }
            // What is left of one beside others may be many.
            if rules.len() > RULES_MAX {
                return Err("Too many ports apart".to_owned());
            }
        }
        let warn = |option| format!("No port left to forward for option '{option}'");
        Ok((rules, self.idle.into_iter().map(warn).collect()))
    }
}

const fn letter(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp | Protocol::Echo => "-u",
    }
}

/// A rule in the grammar above.
fn specifier(rule: &Rule) -> String {
    let interface = rule.interface.as_ref().map(|name| format!("%{name}"));
    let interface = interface.unwrap_or_default();
    let host = match rule.addr {
        Some(addr) => format!("{addr}{interface}/"),
        None if interface.is_empty() => String::new(),
        None => format!("{interface}/"),
    };
    let from = run(rule.first, rule.last);
    let to = run(rule.map.guest(rule.first), rule.map.guest(rule.last));
    match rule.target {
        Some(addr) => format!("{host}{from}:{addr}/{to}"),
        None if to == from => format!("{host}{from}"),
        None => format!("{host}{from}:{to}"),
    }
}

/// The runs of ports of a range that are `wanted`, lowest first.
fn runs(range: &Ports, wanted: impl Fn(u16) -> bool) -> Vec<Ports> {
    let mut found: Vec<Ports> = Vec::new();
    for port in range.clone().filter(|&port| wanted(port)) {
        match found.last_mut() {
            Some(run) if run.end().checked_add(1) == Some(port) => *run = *run.start()..=port,
            _ => found.push(port..=port),
        }
    }
    found
}

/// Whether sockets of both rules could not be bound side by side, as bind(2) has it: the same port, where neither
/// addresses nor interfaces tell them apart.
fn collide(a: &Rule, b: &Rule) -> bool {
    let meet = |a: Option<IpAddr>, b: Option<IpAddr>| match (a, b) {
        (Some(a), Some(b)) => {
            a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
        }
        _ => true,
    };
    let apart = matches!((&a.interface, &b.interface), (Some(a), Some(b)) if a != b);
    a.protocol == b.protocol
        && a.first <= b.last
        && b.first <= a.last
        && !apart
        && meet(a.addr, b.addr)
}

/// What is left of a rule beside others.
fn without(rule: Rule, others: &[Rule]) -> Vec<Rule> {
    let mut taken = PortSet::new();
    for other in others.iter().filter(|other| collide(other, &rule)) {
        let (first, last) = (other.first.max(rule.first), other.last.min(rule.last));
        (first..=last).for_each(|port| taken.insert(port));
    }
    if taken.is_empty() {
        return vec![rule];
    }
    let left = runs(&(rule.first..=rule.last), |port| !taken.contains(port));
    left.into_iter()
        .map(|run| Rule {
            first: *run.start(),
            last: *run.end(),
            ..rule.clone()
        })
        .collect()
}

fn check(rule: &Rule, enabled: Enabled) -> Result<(), String> {
    let (name, on) = match rule.protocol {
        Protocol::Tcp => ("TCP", enabled.tcp),
        Protocol::Udp | Protocol::Echo => ("UDP", enabled.udp),
    };
    if !on {
        return Err(format!(
            "Can't add {name} forwarding rule, {name} not enabled"
        ));
    }
    let family = |addr: IpAddr| if addr.is_ipv4() { "IPv4" } else { "IPv6" };
    for addr in [rule.addr, rule.target].into_iter().flatten() {
        let on = if addr.is_ipv4() {
            enabled.v4
        } else {
            enabled.v6
        };
        if !on {
            let family = family(addr);
            return Err(format!("{family} forward, but {family} not enabled"));
        }
    }
    match (rule.addr, rule.target) {
        (Some(from), Some(to)) if from.is_ipv4() != to.is_ipv4() => Err(format!(
            "Forward from {} ({from}) to {} ({to}) unsupported",
            family(from),
            family(to)
        )),
        (None, Some(to)) if enabled.v4 && enabled.v6 => Err(format!(
            "Dual stack forward to {} address {to} unsupported",
            family(to)
        )),
        _ => Ok(()),
    }
}

impl Spec {
    fn read(text: &str) -> Result<Self, String> {
        let invalid = || format!("Invalid port specifier {text}");
        let mut spec = Self::default();
        let mut items = text;
        // The slash may also be one of a guest's address further on.
        if let Some((host, rest)) = text.split_once('/')
            && let Some((addr, interface)) = host_side(host)
        {
            (spec.addr, spec.interface) = (addr, interface);
            items = rest;
        }
        if items.split(',').any(|item| item == "auto") {
            return Err("'auto' port forwarding is only allowed for pasta".to_owned());
        }
        for item in items.split(',') {
            spec.item(item).ok_or_else(invalid)?;
        }
        if spec.included.is_empty() && spec.all.is_none() {
            spec.all = Some(None);
        }
        Ok(spec)
    }

    fn item(&mut self, item: &str) -> Option<()> {
        if let Some(excluded) = item.strip_prefix('~') {
            ports(excluded)?.for_each(|port| self.excluded.insert(port));
            return Some(());
        }
        let (from, to) = item
            .split_once(':')
            .map_or((item, None), |(from, to)| (from, Some(to)));
        if from == "all" {
            let target = match to {
                Some(to) => Some(guest(to)?),
                None => None,
            };
            return self.all.replace(target).is_none().then_some(());
        }
        let from = ports(from)?;
        let (target, to) = match to {
            None => (None, from.clone()),
            Some(to) => match to.rsplit_once('/') {
                Some((addr, to)) => (Some(guest(addr)?), ports(to)?),
                None => match ports(to) {
                    Some(to) => (None, to),
                    None => (Some(guest(to)?), from.clone()),
                },
            },
        };
        let equal = from.end() - from.start() == to.end() - to.start();
        equal.then(|| self.included.push((from, *to.start(), target)))
    }

    fn rule(
        &self,
        protocol: Protocol,
        run: Ports,
        map: PortMap,
        target: Option<IpAddr>,
        option: &str,
    ) -> Rule {
        Rule {
            protocol,
            addr: self.addr,
            interface: self.interface.clone(),
            first: *run.start(),
            last: *run.end(),
            map,
            target,
            best_effort: false,
            option: shortened(option),
        }
    }
}

/// Every rule has its copy: one of reasonable length.
fn shortened(option: &str) -> String {
    const MOST: usize = 200;
    match option.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", option.get(..at).unwrap_or(option)),
        None => option.to_owned(),
    }
}

/// The address and the interface to listen at; neither where every one is meant.
fn host_side(text: &str) -> Option<(Option<IpAddr>, Option<String>)> {
    let (addr, interface) = match text.split_once('%') {
        Some((addr, name)) => (addr, Some(interface(name)?)),
        None => (text, None),
    };
    let addr = match unbracketed(addr) {
        "*" => None,
        "" if addr.is_empty() && interface.is_some() => None,
        addr => Some(addr.parse::<IpAddr>().ok()?.to_canonical()),
    };
    Some((addr, interface))
}

fn interface(name: &str) -> Option<String> {
    is_interface_name(name).then(|| name.to_owned())
}

/// Whether an interface could be called this.
pub fn is_interface_name(name: &str) -> bool {
    (1..=INTERFACE_MAX).contains(&name.len()) && !name.contains(char::is_whitespace)
}

/// An address the guest could have.
fn guest(text: &str) -> Option<IpAddr> {
    let addr: IpAddr = unbracketed(text).parse().ok()?;
    let usable = matches!(class(addr), Class::Global | Class::LinkLocal);
    (usable && addr.to_canonical() == addr).then_some(addr)
}

fn ports(text: &str) -> Option<Ports> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    (!range.is_empty()).then_some(range)
}

/// A port, with the blanks and the sign before it that strtoul(3) lets pass.
fn port(text: &str) -> Option<u16> {
    let text = text.trim_start();
    let digits = text.strip_prefix('+').unwrap_or(text);
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
