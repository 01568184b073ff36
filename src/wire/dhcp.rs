//! DHCPv4 and BOOTP messages (RFC 2131, section 2; RFC 951): a request read with all its options, a reply written field by
//! field.

use std::net::Ipv4Addr;

use crate::net::Mac;

pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;

/// The length of the fixed fields, up to the options (`vend`, in BOOTP).
pub const FIXED: usize = 236;

/// The least length of a message (RFC 1542, section 2.1): 64 octets of `vend`, magic cookie included.
pub const MIN_MESSAGE: usize = 300;

/// The first octets of the options (RFC 2132, section 2).
pub const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// Option codes (RFC 2132 unless said otherwise).
pub mod code {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const MTU: u8 = 26;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const CLIENT_ID: u8 = 61;
    /// RFC 4039.
    pub const RAPID_COMMIT: u8 = 80;
    /// RFC 4702.
    pub const FQDN: u8 = 81;
    /// RFC 3397.
    pub const DOMAIN_SEARCH: u8 = 119;
    /// RFC 3442.
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// What a DHCP message is about (RFC 2132, section 9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

impl MessageType {
    pub const fn from_octet(octet: u8) -> Option<Self> {
        Some(match octet {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }
}

/// A message from a client.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    fixed: &'a [u8; FIXED],
    /// What follows the magic cookie; empty where there is none, as BOOTP allows.
    options: &'a [u8],
    /// Octets after the fixed fields, cookie included.
    pub vend_len: usize,
}

impl<'a> Request<'a> {
    /// Reads the payload of a datagram to the server port. `None` if it is too short or no request (`op` 1) of an Ethernet
    /// client.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (fixed, vend) = payload.split_first_chunk::<FIXED>()?;
        let [op, htype, hlen, ..] = *fixed;
        (op == 1 && htype == 1 && hlen == 6).then(|| Self {
            fixed,
            options: vend.strip_prefix(&MAGIC).unwrap_or_default(),
            vend_len: vend.len(),
        })
    }

    /// Whether the client wants replies by broadcast (RFC 2131, figure 2).
    pub const fn broadcast(&self) -> bool {
        self.fixed[10] & 0x80 != 0
    }

    pub const fn client_addr(&self) -> Ipv4Addr {
        self.addr_at::<12>()
    }

    pub const fn relay_addr(&self) -> Ipv4Addr {
        self.addr_at::<24>()
    }

    pub const fn client_mac(&self) -> Mac {
        let at = self.fixed;
        Mac([at[28], at[29], at[30], at[31], at[32], at[33]])
    }

    /// The first `N` octets of the first option of this code; `None` if it is shorter.
    pub fn array<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.option(code)?.first_chunk().copied()
    }

    /// The address that the first option of this code begins with.
    pub fn addr(&self, code: u8) -> Option<Ipv4Addr> {
        self.array(code).map(Ipv4Addr::from_octets)
    }

    /// The first option of this code.
    pub fn option(&self, code: u8) -> Option<&'a [u8]> {
        self.all(code).next()
    }

    /// All options of this code, in the order in which they are to be joined (RFC 3396, section 5).
    pub fn all(&self, code: u8) -> impl Iterator<Item = &'a [u8]> {
        self.options()
            .filter(move |(found, _)| *found == code)
            .map(|(_, value)| value)
    }

    /// The options of the options field, then those in `file` and `sname` where the overload option says so.
    fn options(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let (sname, file) = (&self.fixed[44..108], &self.fixed[108..236]);
        let overload = Options(self.options)
            .find(|(found, _)| *found == code::OVERLOAD)
            .and_then(|(_, value)| value.first().copied())
            .unwrap_or(0);
        let file = if overload & 1 != 0 { file } else { &[] };
        let sname = if overload & 2 != 0 { sname } else { &[] };
        Options(self.options)
            .chain(Options(file))
            .chain(Options(sname))
    }

    const fn addr_at<const AT: usize>(&self) -> Ipv4Addr {
        let at = self.fixed;
        Ipv4Addr::new(at[AT], at[AT + 1], at[AT + 2], at[AT + 3])
    }
}

/// Options in a row, up to the end option, the field's end or an option that reaches over it.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a>(pub &'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&code, rest) = self.0.split_first()?;
            match code {
                code::PAD => self.0 = rest,
                code::END => return None,
                _ => {
                    let (&len, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(usize::from(len))?;
                    self.0 = rest;
                    return Some((code, value));
                }
            }
        }
    }
}

/// Appends the fixed fields of a reply and the magic cookie. What RFC 2131, table 3 has copied from the request is; `siaddr`,
/// `sname` and `file` stay empty, as we serve no boot files.
pub fn write_fixed(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    broadcast: bool,
    ciaddr: Ipv4Addr,
    yiaddr: Ipv4Addr,
) {
    let [_, htype, hlen, _, a, b, c, d, _, _, flags, more, ..] = *request.fixed;
    let flags = flags | if broadcast { 0x80 } else { 0 };
    out.extend([2, htype, hlen, 0, a, b, c, d, 0, 0, flags, more]);
    out.extend(ciaddr.octets());
    out.extend(yiaddr.octets());
    out.extend([0; 4]);
    out.extend(&request.fixed[24..44]);
    out.extend([0; 64 + 128]);
    out.extend(MAGIC);
}

/// The room an option's value takes, with the headers of its parts.
pub const fn option_len(value_len: usize) -> usize {
    value_len
        + 2 * if value_len == 0 {
            1
        } else {
            value_len.div_ceil(255)
        }
}

/// Appends an option, in parts if its value is longer than one can be (RFC 3396, section 6).
pub fn write_option(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    if value.is_empty() {
        out.extend([code, 0]);
    }
    for part in value.chunks(255) {
        // At most 255, so the cast holds.
        out.extend([code, part.len() as u8]);
        out.extend(part);
    }
}

/// Appends a route to a classless static route option's value (RFC 3442): prefix length, the significant octets of the
/// destination, and the router, which is unspecified for what is on the link.
pub fn write_route(out: &mut Vec<u8>, dst: Ipv4Addr, prefix: u8, router: Ipv4Addr) {
    let prefix = prefix.min(32);
    out.push(prefix);
    out.extend(dst.octets().iter().take(usize::from(prefix.div_ceil(8))));
    out.extend(router.octets());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; FIXED];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message.extend(MAGIC);
        message.extend(options);
        message
    }

    #[test]
    fn options_end_at_the_end_option_and_skip_padding() {
        let message = message(&[0, 0, 53, 1, 3, 0, 255, 54, 4, 1, 2, 3, 4]);
        let request = Request::parse(&message).unwrap();
        assert_eq!(request.option(53), Some(&[3][..]));
        assert_eq!(request.option(54), None);
    }

    #[test]
    fn an_option_that_reaches_over_the_end_is_none() {
        for options in [&[53][..], &[53, 1], &[50, 4, 1, 2, 3]] {
            let message = message(options);
            let request = Request::parse(&message).unwrap();
            assert_eq!(request.options().count(), 0, "{options:?}");
        }
        let message = message(&[50, 3, 1, 2, 3]);
        assert_eq!(Request::parse(&message).unwrap().addr(50), None);
    }

    #[test]
    fn overloaded_fields_are_read_after_the_options() {
        for (overload, want) in [(0, ""), (1, "f"), (2, "s"), (3, "fs")] {
            let mut message = message(&[52, 1, overload, 255]);
            message[44..48].copy_from_slice(&[12, 1, b's', 255]);
            message[108..112].copy_from_slice(&[12, 1, b'f', 255]);
            let request = Request::parse(&message).unwrap();
            assert_eq!(
                request.all(12).collect::<Vec<_>>().concat(),
                want.as_bytes()
            );
        }
    }

    #[test]
    fn a_message_without_cookie_has_no_options() {
        let mut message = message(&[53, 1, 1]);
        message[FIXED] = 0;
        let request = Request::parse(&message).unwrap();
        assert_eq!(request.options().count(), 0);
    }

    #[test]
    fn only_requests_of_ethernet_clients_are_read() {
        for (at, octet) in [(0, 2), (1, 6), (2, 16)] {
            let mut message = message(&[]);
            message[at] = octet;
            assert!(Request::parse(&message).is_none());
        }
        assert!(Request::parse(&message(&[])[..FIXED - 1]).is_none());
    }

    #[test]
    fn routes_carry_only_significant_octets() {
        let mut out = Vec::new();
        for (dst, prefix) in [([0; 4], 0), ([10, 0, 0, 0], 8), ([10, 17, 0, 0], 17)] {
            write_route(&mut out, dst.into(), prefix, [10, 0, 0, 1].into());
        }
        assert_eq!(
            out,
            [
                0, 10, 0, 0, 1, 8, 10, 10, 0, 0, 1, 17, 10, 17, 0, 10, 0, 0, 1
            ]
        );
    }

    proptest! {
        #[test]
        fn a_written_option_reads_back_whole(value in proptest::collection::vec(any::<u8>(), 0..800)) {
            let mut options = Vec::new();
            write_option(&mut options, 119, &value);
            prop_assert_eq!(options.len(), option_len(value.len()));
            let message = message(&options);
            let request = Request::parse(&message).unwrap();
            prop_assert_eq!(request.all(119).collect::<Vec<_>>().concat(), value);
        }

        #[test]
        fn any_octets_can_be_read(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            let message = message(&octets);
            let request = Request::parse(&message).unwrap();
            prop_assert!(request.options().count() <= octets.len());
        }
    }
}
