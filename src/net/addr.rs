//! Link and network addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// An Ethernet (EUI-48) address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Self = Self([0xff; 6]);
    pub const ZERO: Self = Self([0; 6]);

    /// Whether the group bit is set (multicast and broadcast).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The link-layer group address an IPv4 multicast destination maps to (RFC 1112, section 6.4).
    pub const fn of_group4(group: Ipv4Addr) -> Self {
        let o = group.octets();
        Self([0x01, 0x00, 0x5e, o[1] & 0x7f, o[2], o[3]])
    }

    /// The link-layer group address an IPv6 multicast destination maps to (RFC 2464, section 7).
    pub const fn of_group6(group: Ipv6Addr) -> Self {
        let o = group.octets();
        Self([0x33, 0x33, o[12], o[13], o[14], o[15]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = ();

    /// Six hexadecimal pairs separated by colons, nothing else.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(())?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        if parts.next().is_some() {
            Err(())
        } else {
            Ok(Self(bytes))
        }
    }
}

/// What a flow carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    /// ICMP or ICMPv6 echo; ports are the echo identifier.
    Echo,
}

/// One end of a flow: an address and a port (or echo identifier).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub addr: IpAddr,
    pub port: u16,
}

impl Endpoint {
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        Self { addr, port }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip(), addr.port())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]:{}", self.addr, self.port)
    }
}

/// What an address may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Unspecified,
    Loopback,
    LinkLocal,
    Multicast,
    /// IPv4 limited broadcast, 255.255.255.255.
    Broadcast,
    Global,
}

/// Sorts an address into its [`Class`]; private (RFC 1918) and unique local addresses count as global.
pub fn class(addr: IpAddr) -> Class {
    match addr {
        _ if addr.is_unspecified() => Class::Unspecified,
        _ if addr.is_loopback() => Class::Loopback,
        _ if addr.is_multicast() => Class::Multicast,
        IpAddr::V4(v4) if v4.is_broadcast() => Class::Broadcast,
        IpAddr::V4(v4) if v4.is_link_local() => Class::LinkLocal,
        IpAddr::V6(v6) if is_link_local6(v6) => Class::LinkLocal,
        IpAddr::V4(_) | IpAddr::V6(_) => Class::Global,
    }
}

/// Whether an address is in fe80::/10.
pub const fn is_link_local6(addr: Ipv6Addr) -> bool {
    addr.segments()[0] & 0xffc0 == 0xfe80
}

/// An address as written down, without the brackets that keep its colons apart from others (RFC 3986, section 3.2.2).
pub fn unbracketed(text: &str) -> &str {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    inner.unwrap_or(text)
}

/// The netmask of a prefix length of IPv4; more than 32 bits are 32.
pub fn mask4(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_parses_only_six_colon_separated_pairs() {
        assert_eq!(
            "9a:55:9A:55:9a:5".parse(),
            Ok(Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x05]))
        );
        for bad in [
            "",
            "9a:55:9a:55:9a",
            "9a:55:9a:55:9a:55:00",
            "9a-55-9a-55-9a-55",
            "9a:55:9a:55:9a:+5",
            "9a:55::55:9a:55",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn classes_of_addresses() {
        for (text, want) in [
            ("0.0.0.0", Class::Unspecified),
            ("::", Class::Unspecified),
            ("127.3.2.1", Class::Loopback),
            ("::1", Class::Loopback),
            ("169.254.1.1", Class::LinkLocal),
            ("febf::1", Class::LinkLocal),
            ("fec0::1", Class::Global),
            ("224.0.0.251", Class::Multicast),
            ("ff02::1", Class::Multicast),
            ("255.255.255.255", Class::Broadcast),
            ("10.0.0.1", Class::Global),
        ] {
            assert_eq!(class(text.parse().unwrap()), want, "{text}");
        }
    }

    /// Regression D10.
    #[test]
    fn masks_follow_from_prefix_lengths() {
        for (prefix, want) in [
            (0, 0),
            (8, 0xff00_0000),
            (24, 0xffff_ff00),
            (30, 0xffff_fffc),
            (32, u32::MAX),
            (99, u32::MAX),
        ] {
            assert_eq!(mask4(prefix), want, "/{prefix}");
        }
    }
}
