//! Numbers of protocols in IPv4's Protocol and IPv6's Next Header field (IANA "Protocol Numbers").

pub const ICMP: u8 = 1;
pub const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// Extension headers of IPv6 (RFC 8200, section 4).
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const NO_NEXT: u8 = 59;
pub const DESTINATION: u8 = 60;
