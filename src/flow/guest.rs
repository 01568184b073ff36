//! What the guest has shown of itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::{Class, Mac, class};

/// The guest's addresses as observed on the link; what was configured until something is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Broadcast until a frame was seen.
    pub mac: Mac,
    pub addr4: Option<Ipv4Addr>,
    pub addr6: Option<Ipv6Addr>,
    pub link_local6: Option<Ipv6Addr>,
}

impl Guest {
    pub const fn new(addr4: Option<Ipv4Addr>, addr6: Option<Ipv6Addr>) -> Self {
        Self {
            mac: Mac::BROADCAST,
            addr4,
            addr6,
            link_local6: None,
        }
    }

    /// Notes the source of a frame; `true` if the MAC address is new.
    pub fn saw_mac(&mut self, mac: Mac) -> bool {
        let new = !mac.is_multicast() && mac != Mac::ZERO && mac != self.mac;
        if new {
            self.mac = mac;
        }
        new
    }

    /// Notes the source of a packet; addresses no host can have (unspecified, multicast, loopback) are ignored.
    pub fn saw_addr(&mut self, addr: IpAddr) {
        match (class(addr), addr) {
            (Class::Global | Class::LinkLocal, IpAddr::V4(v4)) => self.addr4 = Some(v4),
            (Class::Global, IpAddr::V6(v6)) => self.addr6 = Some(v6),
            (Class::LinkLocal, IpAddr::V6(v6)) => self.link_local6 = Some(v6),
            _ => {}
        }
    }

    /// Forgets the client that left: another may have another MAC.
    pub fn left(&mut self) {
        self.mac = Mac::BROADCAST;
    }
}
