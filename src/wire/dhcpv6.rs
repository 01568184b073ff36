//! DHCPv6 messages between client and server (RFC 8415, section 8), and the options inside them (section 21).

use std::net::Ipv6Addr;

use super::name;
use crate::net::Mac;

pub const SERVER_PORT: u16 = 547;
pub const CLIENT_PORT: u16 = 546;

/// All_DHCP_Relay_Agents_and_Servers (RFC 8415, section 7.1).
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A lifetime, T1 or T2 without end (RFC 8415, section 7.7).
pub const INFINITY: u32 = u32::MAX;

/// Option codes (RFC 8415, section 21, unless said otherwise).
pub mod code {
    pub const CLIENT_ID: u16 = 1;
    pub const SERVER_ID: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const IA_TA: u16 = 4;
    pub const IA_ADDR: u16 = 5;
    pub const STATUS: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    /// RFC 3646.
    pub const DNS: u16 = 23;
    /// RFC 3646.
    pub const DOMAIN_SEARCH: u16 = 24;
    pub const IA_PD: u16 = 25;
    /// RFC 4704.
    pub const FQDN: u16 = 39;
}

/// What a message is about (RFC 8415, section 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageType {
    Solicit = 1,
    Advertise = 2,
    Request = 3,
    Confirm = 4,
    Renew = 5,
    Rebind = 6,
    Reply = 7,
    Release = 8,
    Decline = 9,
    InformationRequest = 11,
}

impl MessageType {
    const fn from_octet(octet: u8) -> Option<Self> {
        Some(match octet {
            1 => Self::Solicit,
            2 => Self::Advertise,
            3 => Self::Request,
            4 => Self::Confirm,
            5 => Self::Renew,
            6 => Self::Rebind,
            7 => Self::Reply,
            8 => Self::Release,
            9 => Self::Decline,
            11 => Self::InformationRequest,
            _ => return None,
        })
    }
}

/// How a request fared (RFC 8415, section 21.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    Success = 0,
    NoAddrsAvail = 2,
    NotOnLink = 4,
    UseMulticast = 5,
    NoPrefixAvail = 6,
}

impl Status {
    /// The message for the client's user.
    const fn text(self) -> &'static str {
        match self {
            Self::Success => "",
            Self::NoAddrsAvail => "No addresses available.",
            Self::NotOnLink => "Prefix not appropriate for link.",
            Self::UseMulticast => "Use multicast.",
            Self::NoPrefixAvail => "No prefixes available.",
        }
    }
}

/// A message from a client or server; relay messages are not read.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub kind: MessageType,
    pub transaction: [u8; 3],
    pub options: Options<'a>,
}

impl<'a> Message<'a> {
    /// Reads a datagram's payload. `None` if the type is unknown, or its options do not fill it exactly.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (&[kind, a, b, c], rest) = payload.split_first_chunk()?;
        let mut options = Options(rest);
        options.by_ref().for_each(drop);
        options.0.is_empty().then_some(())?;
        Some(Self {
            kind: MessageType::from_octet(kind)?,
            transaction: [a, b, c],
            options: Options(rest),
        })
    }

    /// The first option of this code.
    pub fn option(&self, code: u16) -> Option<&'a [u8]> {
        let mut options = self.options;
        options
            .find(|(found, _)| *found == code)
            .map(|(_, value)| value)
    }
}

/// Options in a row, up to the end or to one that reaches over it.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a>(pub &'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[a, b, c, d], rest) = self.0.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
        self.0 = rest;
        Some((u16::from_be_bytes([a, b]), value))
    }
}

/// An identity association for addresses or prefixes, as a client sends it.
#[derive(Debug, Clone, Copy)]
pub struct Association<'a> {
    pub iaid: [u8; 4],
    options: Options<'a>,
}

impl<'a> Association<'a> {
    /// Reads the value of an IA_NA, IA_TA or IA_PD option; `None` for other options and those cut short.
    pub fn parse(code: u16, value: &'a [u8]) -> Option<Self> {
        let fixed = match code {
            code::IA_NA | code::IA_PD => 12,
            code::IA_TA => 4,
            _ => return None,
        };
        Some(Self {
            iaid: *value.first_chunk()?,
            options: Options(value.get(fixed..)?),
        })
    }

    /// The addresses it holds or asks for (RFC 8415, section 21.6).
    pub fn addrs(self) -> impl Iterator<Item = Ipv6Addr> + use<'a> {
        self.options
            .filter(|(code, value)| *code == code::IA_ADDR && value.len() >= 24)
            .filter_map(|(_, value)| value.first_chunk::<16>())
            .map(|octets| Ipv6Addr::from(*octets))
    }
}

/// A message being written, which grows no longer than a limit.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    end: usize,
}

impl<'a> Writer<'a> {
    /// Begins a message of at most `limit` octets behind what `out` holds.
    pub fn new(
        out: &'a mut Vec<u8>,
        limit: usize,
        kind: MessageType,
        transaction: [u8; 3],
    ) -> Self {
        let end = out.len() + limit;
        out.push(kind as u8);
        out.extend(transaction);
        Self { out, end }
    }

    /// Appends an option whose value the closure writes; leaves it out if it does not fit.
    pub fn option(&mut self, code: u16, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        write_option(self.out, code, value);
        if self.out.len() > self.end {
            self.out.truncate(start);
        }
    }

    pub fn status(&mut self, status: Status) {
        self.option(code::STATUS, |out| write_status_value(out, status));
    }
}

/// Appends an option, for the inside of another.
pub fn write_option(out: &mut Vec<u8>, code: u16, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend(code.to_be_bytes());
    let at = out.len();
    out.extend([0; 2]);
    value(out);
    // A value too long for its field is also too long for the message, and taken back by the writer.
    let len = u16::try_from(out.len() - at - 2).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(at..at + 2) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

/// Appends a status code option.
pub fn write_status(out: &mut Vec<u8>, status: Status) {
    write_option(out, code::STATUS, |out| write_status_value(out, status));
}

fn write_status_value(out: &mut Vec<u8>, status: Status) {
    out.extend((status as u16).to_be_bytes());
    out.extend(status.text().as_bytes());
}

/// Appends an address with its preferred and valid lifetime, both in seconds.
pub fn write_addr(out: &mut Vec<u8>, addr: Ipv6Addr, lifetime: u32) {
    write_option(out, code::IA_ADDR, |out| {
        out.extend(addr.octets());
        out.extend(lifetime.to_be_bytes());
        out.extend(lifetime.to_be_bytes());
    });
}

/// The DUID-LL of an Ethernet address (RFC 8415, section 11.4): stable, as it holds nothing but the address.
pub fn duid(mac: Mac) -> [u8; 10] {
    let [a, b, c, d, e, f] = mac.0;
    [0, 3, 0, 1, a, b, c, d, e, f]
}

/// Appends the value of a client FQDN option (RFC 4704, section 4).
pub fn write_fqdn(out: &mut Vec<u8>, flags: u8, fqdn: &str) {
    out.push(flags);
    name::encode(fqdn, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_whose_options_do_not_fill_it_is_refused() {
        assert!(Message::parse(&[1, 7, 8, 9, 0, 1, 0, 1, 5]).is_some());
        for bad in [
            &[][..],
            &[1, 7, 8],
            &[12, 7, 8, 9],
            &[1, 7, 8, 9, 0],
            &[1, 7, 8, 9, 0, 1, 0, 2, 5],
            &[1, 7, 8, 9, 0, 1, 0, 1, 5, 0, 1, 0],
        ] {
            assert!(Message::parse(bad).is_none(), "{bad:?}");
        }
    }

    /// D15.
    #[test]
    fn an_address_that_reaches_over_its_association_is_none() {
        let mut value = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        write_addr(&mut value, Ipv6Addr::LOCALHOST, 5);
        let addrs = |value: &[u8]| {
            Association::parse(code::IA_NA, value).map(|ia| ia.addrs().collect::<Vec<_>>())
        };
        assert_eq!(addrs(&value), Some(vec![Ipv6Addr::LOCALHOST]));
        for len in 12..value.len() {
            assert_eq!(addrs(&value[..len]), Some(vec![]), "{len}");
        }
        assert_eq!(addrs(&value[..11]), None);
        // A suboption that says 8 octets and is followed by more.
        value[15] = 8;
        assert_eq!(addrs(&value), Some(vec![]));
    }

    #[test]
    fn an_option_that_does_not_fit_leaves_no_trace() {
        let mut out = vec![0xaa];
        let mut writer = Writer::new(&mut out, 12, MessageType::Reply, [1, 2, 3]);
        writer.option(23, |out| out.extend([0; 5]));
        writer.option(24, |out| out.extend([7; 4]));
        writer.option(25, |_| {});
        assert_eq!(out, [0xaa, 7, 1, 2, 3, 0, 24, 0, 4, 7, 7, 7, 7]);
    }

    proptest! {
        #[test]
        fn any_octets_can_be_read(octets in proptest::collection::vec(any::<u8>(), 0..200), code in 0..30_u16) {
            if let Some(message) = Message::parse(&octets) {
                let read: usize = message.options.map(|(_, value)| 4 + value.len()).sum();
                prop_assert_eq!(read + 4, octets.len());
            }
            if let Some(ia) = Association::parse(code, &octets) {
                prop_assert!(ia.addrs().count() <= octets.len() / 28);
            }
        }
    }
}
