//! What waits until the guest is found.

use std::net::IpAddr;

use crate::{
    flow::{Chain, Id},
    net::Now,
    sys::Marks,
};

/// Addresses asked for at a time; more there can only be by rules that name as many.
pub const ASKED: usize = 16;

/// Flows that wait, and datagrams held for them.
#[derive(Debug)]
pub struct Waiting {
    pub flows: Vec<Waiter>,
    /// The guest's news when they were last looked at; `None` where they are to be looked at anyway.
    pub news: Option<u32>,
    /// Addresses at which the guest does not answer, to be asked for.
    pub doubts: Vec<IpAddr>,
    /// When to ask for the guest next.
    pub ask: Option<Now>,
    /// Datagrams for flows, and how they came, first come first.
    pub held: Vec<(Id, Chain, Marks)>,
    /// Octets of these.
    pub octets: usize,
}

/// A flow that waits.
#[derive(Debug, Clone, Copy)]
pub struct Waiter {
    pub id: Id,
    pub since: Now,
    /// Whose it is, if it is for the guest wherever that turns up, and not for one address of its.
    pub peer: Option<IpAddr>,
}

impl Waiting {
    pub fn new() -> Self {
        Self {
            flows: Vec::new(),
            news: None,
            doubts: Vec::with_capacity(ASKED),
            ask: None,
            held: Vec::new(),
            octets: 0,
        }
    }

    /// The first datagram held for a flow.
    pub fn of(&self, id: Id) -> Option<usize> {
        self.held.iter().position(|(owner, ..)| *owner == id)
    }

    /// Takes a datagram held; its blocks are the caller's to release.
    pub fn take(&mut self, at: usize) -> (Chain, Marks) {
        let (_, chain, marks) = self.held.remove(at);
        self.octets -= chain.len();
        (chain, marks)
    }
}
