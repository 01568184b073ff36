//! What flows there are, for a person.

use std::fmt;

use super::{flow::Flow, state::Relay};
use crate::{
    link::{Outbox, Passed},
    net::Why,
    proto::tcp::{Half, Phase},
};

/// How often a kind of event happened, and how many flows there are of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub from_guest: Passed,
    pub to_guest: Passed,
    pub drops: Vec<(Why, u64)>,
    pub udp: usize,
    pub echo: usize,
    /// Sockets that send to groups, or are members of one.
    pub groups: usize,
    /// TCP connections by phase.
    pub syn_sent: usize,
    pub connecting: usize,
    pub syn_received: usize,
    pub established: usize,
    pub closing: usize,
}

impl Report {
    /// Adds what another relay has counted.
    pub fn add(&mut self, other: &Self) {
        self.from_guest.add(other.from_guest);
        self.to_guest.add(other.to_guest);
        for (why, count) in &other.drops {
            match self.drops.iter_mut().find(|(known, _)| known == why) {
                Some((_, sum)) => *sum += count,
                None => self.drops.push((*why, *count)),
            }
        }
        for (sum, count) in [
            (&mut self.udp, other.udp),
            (&mut self.echo, other.echo),
            (&mut self.groups, other.groups),
            (&mut self.syn_sent, other.syn_sent),
            (&mut self.connecting, other.connecting),
            (&mut self.syn_received, other.syn_received),
            (&mut self.established, other.established),
            (&mut self.closing, other.closing),
        ] {
            *sum += count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tcp =
            self.syn_sent + self.connecting + self.syn_received + self.established + self.closing;
        let (from, to) = (self.from_guest, self.to_guest);
        writeln!(
            f,
            "Frames from guest: {}, {} octets",
            from.frames, from.octets
        )?;
        writeln!(f, "Frames to guest: {}, {} octets", to.frames, to.octets)?;
        writeln!(
            f,
            "Flows: {tcp} TCP ({} SYN sent, {} connecting, {} SYN received, {} established, {} closing), {} UDP, {} echo, {} of groups",
            self.syn_sent,
            self.connecting,
            self.syn_received,
            self.established,
            self.closing,
            self.udp,
            self.echo,
            self.groups
        )?;
        let dropped: u64 = self.drops.iter().map(|(_, count)| count).sum();
        write!(f, "Dropped: {dropped}")?;
        for (why, count) in &self.drops {
            write!(f, "\n    {why}: {count}")?;
        }
        Ok(())
    }
}

impl Relay {
    /// Counters and flows as they are; `outbox` is what frames to the guest go through.
    pub fn report(&self, outbox: &Outbox) -> Report {
        let too_long = Some((Why::TooLong, outbox.too_long)).filter(|&(_, count)| count > 0);
        let mut report = Report {
            from_guest: self.passed,
            to_guest: outbox.passed(),
            drops: self.drops.seen().chain(too_long).collect(),
            ..Report::default()
        };
        for id in self.flows.ids() {
            match self.flows.get(id) {
                Some(Flow::Tcp(flow)) => *report.phase(flow.conn.phase()) += 1,
                Some(Flow::Udp(_)) => report.udp += 1,
                Some(Flow::Echo(_)) => report.echo += 1,
                Some(Flow::Group(_)) => report.groups += 1,
                None => {}
            }
        }
        report
    }
}

impl Report {
    fn phase(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::SynSent(_) => &mut self.syn_sent,
            Phase::Connecting => &mut self.connecting,
            Phase::SynReceived => &mut self.syn_received,
            Phase::Open {
                host: Half::Open,
                guest: Half::Open,
            } => &mut self.established,
            Phase::Open { .. } | Phase::Closed => &mut self.closing,
        }
    }
}
