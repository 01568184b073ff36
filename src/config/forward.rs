//! What of the host is forwarded to the guest: the rules that `--tcp-ports` and `--udp-ports` come to.

use std::net::IpAddr;

use crate::net::{PortMap, Protocol};

/// A run of the host's ports, each forwarded to a port of the guest. Runs do not overlap where one socket could not tell
/// them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address listened at; every address of every family served where it is `None`.
    pub addr: Option<IpAddr>,
    /// The interface listened at, where not all.
    pub interface: Option<String>,
    /// The first and the last port listened at; never 0.
    pub first: u16,
    pub last: u16,
    /// Which of the guest's ports stands behind each.
    pub map: PortMap,
    /// The guest's address, where not the assigned one.
    pub target: Option<IpAddr>,
    /// Of `all` and of exclude-only lists: what cannot be bound is left out. Otherwise every port must be had.
    pub best_effort: bool,
    /// The option as it was given, for messages: `-t 8000-9000`.
    pub option: String,
}
