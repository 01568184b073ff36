//! DHCPv6 messages by hand (RFC 8415).

use std::net::{Ipv6Addr, SocketAddr};

use super::Udp;

pub const SOLICIT: u8 = 1;
pub const ADVERTISE: u8 = 2;
pub const REQUEST: u8 = 3;
pub const CONFIRM: u8 = 4;
pub const RENEW: u8 = 5;
pub const REBIND: u8 = 6;
pub const REPLY: u8 = 7;
pub const RELEASE: u8 = 8;
pub const DECLINE: u8 = 9;
pub const INFORMATION_REQUEST: u8 = 11;

pub const CLIENT_ID: u16 = 1;
pub const SERVER_ID: u16 = 2;
pub const IA_NA: u16 = 3;
pub const IAADDR: u16 = 5;
pub const ORO: u16 = 6;
pub const STATUS: u16 = 13;
pub const DNS: u16 = 23;
pub const SEARCH: u16 = 24;
pub const IA_PD: u16 = 25;

/// The guest's link-local address.
pub const GUEST_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);

/// All_DHCP_Relay_Agents_and_Servers.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcpv6 {
    pub kind: u8,
    pub xid: [u8; 3],
    /// Code and value, in order.
    pub options: Vec<(u16, Vec<u8>)>,
}

impl Dhcpv6 {
    /// A client's message with its identifier.
    pub fn new(kind: u8) -> Self {
        Self {
            kind,
            xid: [0xab, 0xcd, kind],
            options: Vec::new(),
        }
        .with(CLIENT_ID, b"\0\x03\0\x01RT\0\x124V")
    }

    /// Adds an option.
    pub fn with(mut self, code: u16, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    /// Adds an IA_NA, which asks for an address, if one is given.
    pub fn with_ia_na(self, iaid: u32, addr: Option<Ipv6Addr>) -> Self {
        let mut value = iaid.to_be_bytes().to_vec();
        value.extend_from_slice(&[0; 8]);
        if let Some(addr) = addr {
            value.extend_from_slice(&[0, 5, 0, 24]);
            value.extend_from_slice(&addr.octets());
            value.extend_from_slice(&[0; 8]);
        }
        self.with(IA_NA, &value)
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut message = vec![self.kind];
        message.extend_from_slice(&self.xid);
        for (code, value) in &self.options {
            let len = u16::try_from(value.len()).expect("short");
            message.extend_from_slice([code.to_be_bytes(), len.to_be_bytes()].as_flattened());
            message.extend_from_slice(value);
        }
        let [from, to]: [SocketAddr; 2] = [(GUEST_LL, 546).into(), (SERVERS, 547).into()];
        Udp::new(from, to, &message).frame()
    }

    /// A server's message to [`GUEST_LL`].
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let udp = Udp::of_frame(frame).filter(|udp| udp.src.port() == 547)?;
        assert_eq!(udp.dst, (GUEST_LL, 546).into());
        Some(Self {
            kind: udp.payload[0],
            xid: *udp.payload[1..].first_chunk().expect("three"),
            options: options(&udp.payload[4..]),
        })
    }

    pub fn option(&self, code: u16) -> Option<&[u8]> {
        let found = self.options.iter().find(|(c, _)| *c == code);
        found.map(|(_, value)| &value[..])
    }

    /// The addresses of its only IA_NA, which must be this one.
    pub fn addresses(&self, iaid: u32) -> Vec<Ipv6Addr> {
        let ia = self.option(IA_NA).expect("IA_NA");
        assert_eq!(ia[..4], iaid.to_be_bytes());
        let inner = options(&ia[12..]);
        let addr = |value: &[u8]| Ipv6Addr::from(*value.first_chunk::<16>().expect("sixteen"));
        let found = inner.iter().filter(|(code, _)| *code == IAADDR);
        found.map(|(_, value)| addr(value)).collect()
    }
}

/// Options one after the other.
pub fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    while let [a, b, c, d, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*c, *d]));
        options.push((u16::from_be_bytes([*a, *b]), rest[..len].to_vec()));
        bytes = &rest[len..];
    }
    assert!(bytes.is_empty(), "octets behind the last option");
    options
}
