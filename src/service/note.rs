//! What a service has to say for the log; services themselves never log.

use std::{fmt, net::IpAddr};

use crate::net::{Mac, Why};

/// A service's answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The reply frame was written.
    Reply(Option<Note>),
    /// Nothing is sent.
    Silent(Why),
    /// Nothing is sent, and that is worth a line in the log.
    Noted(Note),
}

/// An event worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// DHCP or BOOTP: what was said in answer to what.
    Dhcp { said: &'static str, client: Mac },
    /// NDP: `received NS, sending NA` and the like.
    Ndp(&'static str),
    /// DHCPv6: `received SOLICIT, sending ADVERTISE` and the like.
    Dhcpv6(&'static str),
    /// An address the client claims that is not ours to give.
    NotOnLink { service: &'static str, addr: IpAddr },
}

impl Note {
    /// How many kinds there are, for the log's sake.
    pub const KINDS: usize = 4;

    /// Which of the kinds this is, below [`Note::KINDS`].
    pub const fn kind(&self) -> usize {
        match self {
            Self::Dhcp { .. } => 0,
            Self::Ndp(_) => 1,
            Self::Dhcpv6(_) => 2,
            Self::NotOnLink { .. } => 3,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp { said, client } => write!(f, "{said}\n    from {client}"),
            Self::Ndp(said) => write!(f, "NDP: {said}"),
            Self::Dhcpv6(said) => write!(f, "DHCPv6: {said}"),
            Self::NotOnLink { service, addr } => {
                write!(f, "{service}: requested address {addr} not on link")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_read_as_users_know_them() {
        let dhcp = Note::Dhcp {
            said: "DHCP: offer to discover",
            client: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        };
        let not_on_link = Note::NotOnLink {
            service: "DHCPv6",
            addr: "2001:db8::9".parse().unwrap(),
        };
        for (note, want) in [
            (dhcp, "DHCP: offer to discover\n    from 52:54:00:12:34:56"),
            (
                Note::Ndp("received RS, sending RA"),
                "NDP: received RS, sending RA",
            ),
            (
                Note::Dhcpv6("received SOLICIT, sending ADVERTISE"),
                "DHCPv6: received SOLICIT, sending ADVERTISE",
            ),
            (
                not_on_link,
                "DHCPv6: requested address 2001:db8::9 not on link",
            ),
        ] {
            assert_eq!(note.to_string(), want);
        }
    }
}
