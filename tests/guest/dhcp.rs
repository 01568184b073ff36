//! DHCP and BOOTP messages by hand (RFC 2131, RFC 2132, RFC 951).

use std::net::Ipv4Addr;

use super::{Udp, frame::GUEST_MAC};

const MAGIC: [u8; 4] = [99, 130, 83, 99];

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const RELEASE: u8 = 7;
pub const INFORM: u8 = 8;

/// A message with what matters of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp {
    pub op: u8,
    pub xid: u32,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub yiaddr: Ipv4Addr,
    /// Code and value, in order.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Dhcp {
    /// A client's message of this type (option 53).
    pub fn new(kind: u8) -> Self {
        Self::bootp().with(53, &[kind])
    }

    /// A client's message without a type.
    pub fn bootp() -> Self {
        Self {
            op: 1,
            xid: 0x1122_3344,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            options: Vec::new(),
        }
    }

    /// Adds an option.
    pub fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    /// The broadcast from a client without an address, or from `ciaddr`.
    pub fn frame(&self) -> Vec<u8> {
        let mut message = vec![0; 236];
        message[..4].copy_from_slice(&[self.op, 1, 6, 0]);
        message[4..8].copy_from_slice(&self.xid.to_be_bytes());
        message[10..12].copy_from_slice(&self.flags.to_be_bytes());
        message[12..16].copy_from_slice(&self.ciaddr.octets());
        message[28..34].copy_from_slice(&GUEST_MAC);
        message.extend_from_slice(&MAGIC);
        for (code, value) in &self.options {
            message.extend_from_slice(&[*code, u8::try_from(value.len()).expect("short")]);
            message.extend_from_slice(value);
        }
        message.push(255);
        message.resize(message.len().max(300), 0);
        let from = (self.ciaddr, 68).into();
        Udp::new(from, (Ipv4Addr::BROADCAST, 67).into(), &message).frame()
    }

    /// A server's message, with the datagram that carried it.
    pub fn of_frame(frame: &[u8]) -> Option<(Udp, Self)> {
        let udp = Udp::of_frame(frame).filter(|udp| udp.src.port() == 67)?;
        assert_eq!(udp.dst.port(), 68);
        let message = &udp.payload;
        assert_eq!(message[28..34], GUEST_MAC, "chaddr");
        assert_eq!(message[236..240], MAGIC, "magic cookie");
        let address = |at: usize| Ipv4Addr::from(*message[at..].first_chunk::<4>().expect("four"));
        let mut options = Vec::new();
        let mut rest = &message[240..];
        while rest[0] != 255 {
            if rest[0] == 0 {
                rest = &rest[1..];
                continue;
            }
            let len = usize::from(rest[1]);
            options.push((rest[0], rest[2..2 + len].to_vec()));
            rest = &rest[2 + len..];
        }
        let reply = Self {
            op: message[0],
            xid: u32::from_be_bytes(*message[4..].first_chunk().expect("four")),
            flags: u16::from_be_bytes([message[10], message[11]]),
            ciaddr: address(12),
            yiaddr: address(16),
            options,
        };
        Some((udp, reply))
    }

    pub fn option(&self, code: u8) -> Option<&[u8]> {
        let found = self.options.iter().find(|(c, _)| *c == code);
        found.map(|(_, value)| &value[..])
    }

    /// The message type; `None` is BOOTP.
    pub fn kind(&self) -> Option<u8> {
        self.option(53).map(|value| value[0])
    }
}
