//! What of the host is forwarded to the guest: the rules that `--tcp-ports` and `--udp-ports` come to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

impl Rule {
    /// The address listened at where these families are served; none for every address of both.
    pub fn host_addr(&self, v4: bool, v6: bool) -> Option<IpAddr> {
        match (self.addr, v4, v6) {
            (None, true, false) => Some(Ipv4Addr::UNSPECIFIED.into()),
            (None, false, true) => Some(Ipv6Addr::UNSPECIFIED.into()),
            (addr, ..) => addr,
        }
    }

    /// The rule as upstream words it: `TCP [*]:2222  =>  22 `.
    pub fn describe(&self, v4: bool, v6: bool) -> String {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp | Protocol::Echo => "UDP",
        };
        let addr = self
            .host_addr(v4, v6)
            .map_or_else(|| "*".to_owned(), |addr| addr.to_string());
        let interface = self.interface.as_ref().map(|name| format!("%{name}"));
        let target = match self.target {
            Some(IpAddr::V4(addr)) => format!("{addr}:"),
            Some(IpAddr::V6(addr)) => format!("[{addr}]:"),
            None => String::new(),
        };
        format!(
            "{protocol} [{addr}]{}:{}  =>  {target}{} {}",
            interface.unwrap_or_default(),
            run(self.first, self.last),
            run(self.map.guest(self.first), self.map.guest(self.last)),
            if self.best_effort {
                " (best effort)"
            } else {
                ""
            }
        )
    }
}

/// Ports in words.
pub fn run(first: u16, last: u16) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}
