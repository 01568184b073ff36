//! Which groups the guest is in: what it reports by IGMP (RFC 1112, RFC 2236, RFC 3376) and MLD (RFC 2710, RFC 3810), and the
//! queries that make it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    config::Net,
    net::{Mac, Why, number::ICMPV6},
    wire::{
        build::{self, Ends},
        checksum::Sum,
    },
};

/// What a record says of a group and its sources (RFC 3376, section 4.2.12; RFC 3810, section 5.2.12). Older reports say the
/// like (RFC 3376, section 7.3.2): a report is `IsExclude` of nothing, a leave `ToInclude` of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    IsInclude,
    IsExclude,
    ToInclude,
    ToExclude,
    Allow,
    Block,
}

/// One record of a report.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub group: IpAddr,
    pub kind: Kind,
    sources: &'a [u8],
}

impl Record<'_> {
    /// Whether it names no source.
    pub const fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The sources it names, of the group's family.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> {
        let len = match self.group {
            IpAddr::V4(_) => 4,
            IpAddr::V6(_) => 16,
        };
        self.sources.chunks_exact(len).filter_map(address)
    }
}

/// IGMP's types; reports of the first two versions carry one group.
const REPORT_V1: u8 = 0x12;
const REPORT_V2: u8 = 0x16;
const LEAVE: u8 = 0x17;
const REPORT_V3: u8 = 0x22;

/// MLD's types.
pub const MLD_REPORT: u8 = 131;
pub const MLD_DONE: u8 = 132;
pub const MLD_REPORT_V2: u8 = 143;

/// Reads an IGMP message.
///
/// # Errors
/// [`Why::Unanswered`] for types that are no reports, [`Why::Truncated`] for a report that is cut short.
pub fn igmp(message: &[u8], each: impl FnMut(Record<'_>)) -> Result<(), Why> {
    match message.first() {
        Some(&(REPORT_V1 | REPORT_V2)) => old(message.get(4..8), Kind::IsExclude, each),
        Some(&LEAVE) => old(message.get(4..8), Kind::ToInclude, each),
        Some(&REPORT_V3) => records::<4>(message, each),
        _ => Err(Why::Unanswered),
    }
}

/// Reads an MLD message.
///
/// # Errors
/// As [`igmp`].
pub fn mld(message: &[u8], each: impl FnMut(Record<'_>)) -> Result<(), Why> {
    match message.first() {
        Some(&MLD_REPORT) => old(message.get(8..24), Kind::IsExclude, each),
        Some(&MLD_DONE) => old(message.get(8..24), Kind::ToInclude, each),
        Some(&MLD_REPORT_V2) => records::<16>(message, each),
        _ => Err(Why::Unanswered),
    }
}

/// What a query says of its sender: a robustness of 2, and an interval of 125 s (RFC 3376, section 4.1; RFC 3810, section
/// 5.1). Reports may take a second.
const ROBUSTNESS: u8 = 2;
const INTERVAL: u8 = 125;

/// Writes a frame that asks for all IPv4 groups (RFC 3376, section 4.1); `false` without IPv4.
pub fn query4(net: &Net, out: &mut Vec<u8>) -> bool {
    const ALL: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
    let Some(v4) = &net.v4 else {
        return false;
    };
    let ends = Ends {
        src: net.mac,
        dst: Mac::of_group4(ALL),
    };
    build::ethernet(out, ends, 0x0800, |out| {
        // Internetwork control, never further than the link, with the router alert option (RFC 2113).
        let mut header = [0x46, 0xc0, 0, 36, 0, 0, 0x40, 0, 1, 2, 0, 0].to_vec();
        header.extend([v4.ours.octets(), ALL.octets(), [0x94, 4, 0, 0]].as_flattened());
        let mut query = [0x11, 10, 0, 0, 0, 0, 0, 0, ROBUSTNESS, INTERVAL, 0, 0];
        let sum = Sum::new().bytes(&query).finish().to_be_bytes();
        query[2..4].copy_from_slice(&sum);
        let sum = Sum::new().bytes(&header).finish().to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        out.extend(header);
        out.extend(query);
    });
    true
}

/// Writes a frame that asks for all IPv6 groups (RFC 3810, section 5.1); `false` without IPv6.
pub fn query6(net: &Net, out: &mut Vec<u8>) -> bool {
    const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let Some(v6) = &net.v6 else {
        return false;
    };
    let ends = Ends {
        src: net.mac,
        dst: Mac::of_group6(ALL),
    };
    let mut query = [0; 28];
    query[0] = 130;
    query[4..6].copy_from_slice(&1000_u16.to_be_bytes());
    query[24..26].copy_from_slice(&[ROBUSTNESS, INTERVAL]);
    let pseudo = Sum::pseudo(v6.ours.into(), ALL.into(), ICMPV6, query.len());
    let sum = pseudo.bytes(&query).finish().to_be_bytes();
    query[2..4].copy_from_slice(&sum);
    let ip = build::Ip6 {
        src: v6.ours,
        dst: ALL,
        hop_limit: 1,
        flow_label: 0,
    };
    // A hop-by-hop header with the router alert option (RFC 2711), padded.
    build::ipv6(out, ends, ip, 0, |out| {
        out.extend([ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
        out.extend(query);
    });
    true
}

/// The group of an older report.
fn old(group: Option<&[u8]>, kind: Kind, mut each: impl FnMut(Record<'_>)) -> Result<(), Why> {
    let group = group.and_then(address).ok_or(Why::Truncated)?;
    each(Record {
        group,
        kind,
        sources: &[],
    });
    Ok(())
}

/// Reads the records of a newest report; both protocols have them in one shape, with addresses of `N` octets.
fn records<const N: usize>(message: &[u8], mut each: impl FnMut(Record<'_>)) -> Result<(), Why> {
    let &[_, _, _, _, _, _, high, low] = message.first_chunk().ok_or(Why::Truncated)?;
    let mut rest = message.get(8..).unwrap_or_default();
    for _ in 0..u16::from_be_bytes([high, low]) {
        let &[kind, auxiliary, high, low] = rest.first_chunk().ok_or(Why::Truncated)?;
        let sources = usize::from(u16::from_be_bytes([high, low])) * N;
        let group = rest.get(4..4 + N).ok_or(Why::Truncated)?;
        let end = 4 + N + sources;
        let sources = rest.get(4 + N..end).ok_or(Why::Truncated)?;
        if let Some(kind) = kind_of(kind) {
            let group = address(group).ok_or(Why::Malformed)?;
            each(Record {
                group,
                kind,
                sources,
            });
        }
        let end = end + usize::from(auxiliary) * 4;
        rest = rest.get(end..).ok_or(Why::Truncated)?;
    }
    Ok(())
}

const fn kind_of(octet: u8) -> Option<Kind> {
    Some(match octet {
        1 => Kind::IsInclude,
        2 => Kind::IsExclude,
        3 => Kind::ToInclude,
        4 => Kind::ToExclude,
        5 => Kind::Allow,
        6 => Kind::Block,
        _ => return None,
    })
}

/// An address of four octets, or of sixteen.
fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(message: &[u8]) -> Vec<(String, Kind, Vec<String>)> {
        let mut records = Vec::new();
        let each = |record: Record<'_>| {
            let sources = record.sources().map(|source| source.to_string()).collect();
            records.push((record.group.to_string(), record.kind, sources));
        };
        match message.first() {
            Some(0..0x80) => igmp(message, each).unwrap(),
            _ => mld(message, each).unwrap(),
        }
        records
    }

    #[test]
    fn old_reports_name_one_group() {
        for (kind, want) in [
            (0x12, Kind::IsExclude),
            (0x16, Kind::IsExclude),
            (0x17, Kind::ToInclude),
        ] {
            let message = [kind, 0, 0, 0, 224, 0, 0, 251];
            assert_eq!(read(&message), [("224.0.0.251".to_owned(), want, vec![])]);
        }
        for (kind, want) in [(131, Kind::IsExclude), (132, Kind::ToInclude)] {
            let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            message.extend("ff02::fb".parse::<Ipv6Addr>().unwrap().octets());
            assert_eq!(read(&message), [("ff02::fb".to_owned(), want, vec![])]);
        }
    }

    #[test]
    fn new_reports_name_several_with_and_without_sources() {
        let mut message = vec![0x22, 0, 0, 0, 0, 0, 0, 5];
        message.extend([4, 0, 0, 0, 239, 255, 255, 250]);
        message.extend([3, 0, 0, 0, 224, 0, 0, 251]);
        message.extend([5, 1, 0, 1, 232, 1, 1, 1, 192, 0, 2, 1, 9, 9, 9, 9]);
        message.extend([7, 0, 0, 0, 232, 1, 1, 1]);
        message.extend([6, 0, 0, 2, 232, 1, 1, 1, 192, 0, 2, 1, 192, 0, 2, 2]);
        let want = [
            ("239.255.255.250", Kind::ToExclude, &[][..]),
            ("224.0.0.251", Kind::ToInclude, &[]),
            ("232.1.1.1", Kind::Allow, &["192.0.2.1"]),
            ("232.1.1.1", Kind::Block, &["192.0.2.1", "192.0.2.2"]),
        ];
        let owned = |text: &&str| (*text).to_owned();
        let want = want.map(|(group, kind, sources)| {
            (owned(&group), kind, sources.iter().map(owned).collect())
        });
        assert_eq!(read(&message), want);
        for len in 1..message.len() {
            assert!(igmp(&message[..len], |_| {}).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(message in proptest::collection::vec(any::<u8>(), 0..80), kind in 0_usize..7) {
            let mut message = message;
            if let Some(first) = message.first_mut() {
                *first = [0x11, 0x12, 0x16, 0x17, 0x22, 131, 143][kind];
            }
            let _ = igmp(&message, |_| {});
            let _ = mld(&message, |_| {});
        }
    }
}
