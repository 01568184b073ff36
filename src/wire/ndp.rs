//! Neighbor Discovery messages (RFC 4861, section 4), with the DNS options of RFC 8106.

use std::net::Ipv6Addr;

use super::name;
use crate::net::Mac;

/// The hop limit of every Neighbor Discovery packet: it proves that no router passed it on (RFC 4861, section 3.1).
pub const HOP_LIMIT: u8 = 255;

pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// ICMPv6 message types.
pub mod kind {
    pub const ROUTER_SOLICITATION: u8 = 133;
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
}

/// The flags of a neighbor advertisement (RFC 4861, section 4.4).
pub mod flag {
    pub const ROUTER: u8 = 0x80;
    pub const SOLICITED: u8 = 0x40;
    pub const OVERRIDE: u8 = 0x20;
}

/// A question from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    Router,
    Neighbor { target: Ipv6Addr },
}

/// A solicitation whose form is valid; hop limit and addresses are for others to judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    pub question: Question,
    /// Whether it carries a source link-layer address option.
    pub source_link: bool,
}

impl Solicitation {
    /// Reads an ICMPv6 message. `None` if it is no solicitation, its code is not 0, or its options are cut short or without
    /// length (RFC 4861, sections 6.1.1 and 7.1.1).
    pub fn parse(message: &[u8]) -> Option<Self> {
        let (&[kind, code, ..], rest) = message.split_first_chunk::<8>()?;
        let (question, mut options) = match kind {
            kind::ROUTER_SOLICITATION => (Question::Router, rest),
            kind::NEIGHBOR_SOLICITATION => {
                let (target, rest) = rest.split_first_chunk::<16>()?;
                let target = Ipv6Addr::from(*target);
                (Question::Neighbor { target }, rest)
            }
            _ => return None,
        };
        let mut source_link = false;
        while let Some(&option) = options.first() {
            let len = 8 * usize::from(*options.get(1)?);
            options = options.get(len..).filter(|_| len > 0)?;
            source_link |= option == SOURCE_LINK;
        }
        (code == 0).then_some(Self {
            question,
            source_link,
        })
    }
}

/// The group on which `target` listens for solicitations (RFC 4291, section 2.7.1).
pub const fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let s = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (s[6] & 0xff), s[7])
}

/// Appends a neighbor solicitation from the owner of `mac`.
pub fn write_neighbor_solicitation(out: &mut Vec<u8>, target: Ipv6Addr, mac: Mac) {
    out.extend([kind::NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(target.octets());
    write_link(out, SOURCE_LINK, mac);
}

/// Appends a neighbor advertisement: `target` is at `mac`.
pub fn write_neighbor_advertisement(out: &mut Vec<u8>, flags: u8, target: Ipv6Addr, mac: Mac) {
    out.extend([kind::NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    out.extend(target.octets());
    write_link(out, TARGET_LINK, mac);
}

/// What a router says of itself and the link (RFC 4861, section 4.2). All lifetimes within are infinite.
#[derive(Debug, Clone, Copy)]
pub struct RouterAdvertisement<'a> {
    /// The hop limit hosts should use; 0 leaves it to them.
    pub hop_limit: u8,
    /// Whether DHCPv6 gives addresses, and with them everything else.
    pub managed: bool,
    /// How long the sender may be a default router, in seconds; 0 is never, 65,535 the most (RFC 8319, section 4).
    pub lifetime: u16,
    pub mac: Mac,
    pub mtu: Option<u16>,
    /// A prefix, by any address in it, that is on the link and that hosts may form addresses from.
    pub prefix: Option<(Ipv6Addr, u8)>,
    pub dns: &'a [Ipv6Addr],
    /// Not announced without `dns`, nor beyond what the message has room for.
    pub search: &'a [String],
    /// What is not to be used any more.
    pub gone_dns: &'a [Ipv6Addr],
    pub gone_search: &'a [String],
}

impl RouterAdvertisement<'_> {
    /// Appends the message, which grows to no more than `limit` octets for the sake of search domains.
    pub fn write(&self, out: &mut Vec<u8>, limit: usize) {
        let end = out.len() + limit;
        let flags = if self.managed { MANAGED | OTHER } else { 0 };
        out.extend([kind::ROUTER_ADVERTISEMENT, 0, 0, 0, self.hop_limit, flags]);
        out.extend(self.lifetime.to_be_bytes());
        // Reachable time and retransmission timer: unspecified.
        out.extend([0; 8]);
        if let Some((addr, prefix)) = self.prefix {
            write_prefix(out, addr, prefix);
        }
        write_link(out, SOURCE_LINK, self.mac);
        if let Some(mtu) = self.mtu {
            out.extend([MTU, 1, 0, 0, 0, 0]);
            out.extend(mtu.to_be_bytes());
        }
        write_servers(out, self.dns, FOR_EVER);
        write_servers(out, self.gone_dns, NO_MORE);
        if !self.dns.is_empty() {
            write_domains(out, self.search, FOR_EVER, end);
        }
        write_domains(out, self.gone_search, NO_MORE, end);
    }
}

/// Lifetimes of nameservers and search domains.
const FOR_EVER: [u8; 4] = [0xff; 4];
const NO_MORE: [u8; 4] = [0; 4];

fn write_servers(out: &mut Vec<u8>, servers: &[Ipv6Addr], lifetime: [u8; 4]) {
    if !servers.is_empty() {
        write_timed(out, RDNSS, lifetime, |out| {
            out.extend(servers.iter().flat_map(Ipv6Addr::octets));
        });
    }
}

/// As many as there is room for up to `end`.
fn write_domains(out: &mut Vec<u8>, domains: &[String], lifetime: [u8; 4], end: usize) {
    let mut names = Vec::new();
    for domain in domains {
        let before = names.len();
        name::encode(domain, &mut names);
        if out.len() + 8 + names.len().next_multiple_of(8) > end {
            names.truncate(before);
        }
    }
    if !names.is_empty() {
        names.resize(names.len().next_multiple_of(8), 0);
        write_timed(out, DNSSL, lifetime, |out| out.extend(names));
    }
}

const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;

fn write_link(out: &mut Vec<u8>, option: u8, mac: Mac) {
    out.extend([option, 1]);
    out.extend(mac.0);
}

/// A prefix information option (RFC 4861, section 4.6.2).
fn write_prefix(out: &mut Vec<u8>, addr: Ipv6Addr, prefix: u8) {
    const ON_LINK: u8 = 0x80;
    const AUTONOMOUS: u8 = 0x40;
    let mask = u128::MAX
        .checked_shl(128 - u32::from(prefix.min(128)))
        .unwrap_or(0);
    out.extend([PREFIX, 4, prefix, ON_LINK | AUTONOMOUS]);
    // Valid and preferred lifetime without end, four octets reserved.
    out.extend([0xff; 8]);
    out.extend([0; 4]);
    out.extend((addr.to_bits() & mask).to_be_bytes());
}

/// An option of RFC 8106; the body is a multiple of eight octets.
fn write_timed(out: &mut Vec<u8>, option: u8, lifetime: [u8; 4], body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([option, 0, 0, 0]);
    out.extend(lifetime);
    body(out);
    let units = (out.len() - start) / 8;
    if let Some(field) = out.get_mut(start + 1) {
        *field = u8::try_from(units).unwrap_or(u8::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn solicitation(options: &[u8]) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(Ipv6Addr::LOCALHOST.octets());
        message.extend(options);
        message
    }

    #[test]
    fn options_without_length_or_cut_short_make_a_solicitation_invalid() {
        let read = |options: &[u8]| Solicitation::parse(&solicitation(options));
        assert!(!read(&[]).unwrap().source_link);
        assert!(read(&[1, 1, 2, 0, 0, 0, 0, 1]).unwrap().source_link);
        assert!(!read(&[14, 1, 0, 0, 0, 0, 0, 0]).unwrap().source_link);
        for bad in [
            &[1, 0, 0, 0, 0, 0, 0, 0][..],
            &[1],
            &[1, 2, 0, 0, 0, 0, 0, 0],
            &[1, 1, 0],
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn short_messages_foreign_types_and_codes_are_refused() {
        assert_eq!(Solicitation::parse(&solicitation(&[])[..23]), None);
        assert_eq!(Solicitation::parse(&[133, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Solicitation::parse(&[133, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Solicitation::parse(&[134, 0, 0, 0, 0, 0, 0, 0]), None);
        let question = Solicitation::parse(&[133, 0, 0, 0, 0, 0, 0, 0])
            .unwrap()
            .question;
        assert_eq!(question, Question::Router);
    }

    #[test]
    fn the_solicited_node_group_ends_in_the_targets_low_24_bits() {
        let target = "2001:db8::1234:5678".parse().unwrap();
        assert_eq!(
            solicited_node(target),
            "ff02::1:ff34:5678".parse::<Ipv6Addr>().unwrap()
        );
    }

    /// Without options but one.
    const BARE: RouterAdvertisement<'_> = RouterAdvertisement {
        hop_limit: 0,
        managed: false,
        lifetime: 0,
        mac: Mac::ZERO,
        mtu: None,
        prefix: None,
        dns: &[],
        search: &[],
        gone_dns: &[],
        gone_search: &[],
    };

    /// N08.
    #[test]
    fn dns_options_say_their_length_in_units_of_eight_octets() {
        let dns = [Ipv6Addr::LOCALHOST; 3];
        for domains in 0..7 {
            let search = vec!["one.example".to_owned(); domains];
            let ra = RouterAdvertisement {
                dns: &dns,
                search: &search,
                ..BARE
            };
            let mut out = Vec::new();
            ra.write(&mut out, 1000);
            assert_eq!(out[24..26], [25, 7]);
            let units = (domains * 13).div_ceil(8);
            assert_eq!(
                out.len(),
                24 + 56 + if domains > 0 { 8 + 8 * units } else { 0 }
            );
            if domains > 0 {
                assert_eq!(usize::from(out[81]), 1 + units);
            }
        }
    }

    #[test]
    fn search_domains_beyond_the_limit_are_left_out() {
        let search: Vec<_> = (0..6)
            .map(|n| format!("{}.{}", "x".repeat(60 - n), "y".repeat(60)))
            .collect();
        let ra = RouterAdvertisement {
            dns: &[Ipv6Addr::LOCALHOST],
            search: &search,
            gone_search: &search,
            ..BARE
        };
        let mut out = Vec::new();
        ra.write(&mut out, 400);
        assert!((300..=400).contains(&out.len()), "{}", out.len());
    }

    /// RFC 8106, sections 5.1 and 5.2: with a lifetime of 0.
    #[test]
    fn what_is_gone_is_to_be_used_no_more() {
        let ra = RouterAdvertisement {
            gone_dns: &[Ipv6Addr::LOCALHOST],
            gone_search: &["example".to_owned()],
            ..BARE
        };
        let mut out = Vec::new();
        ra.write(&mut out, 1000);
        let options = &out[24..];
        assert_eq!(options[..8], [RDNSS, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(options[8..24], Ipv6Addr::LOCALHOST.octets());
        assert_eq!(options[24..32], [DNSSL, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&options[32..41], b"\x07example\0");
        assert_eq!(options.len(), 48);
    }

    proptest! {
        #[test]
        fn any_octets_can_be_read(kind in 132..137_u8, octets in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut message = vec![kind];
            message.extend(octets);
            let _ = Solicitation::parse(&message);
        }
    }
}
