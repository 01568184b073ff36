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

/// What a report says of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Join,
    Leave,
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

/// Types of records in the newest reports (RFC 3376, section 4.2.12; RFC 3810, section 5.2.12).
const MODE_IS_EXCLUDE: u8 = 2;
const TO_INCLUDE: u8 = 3;
const TO_EXCLUDE: u8 = 4;
const ALLOW_NEW: u8 = 5;
const MODE_IS_INCLUDE: u8 = 1;

/// Reads an IGMP message.
///
/// # Errors
/// [`Why::Unanswered`] for types that are no reports, [`Why::Truncated`] for a report that is cut short.
pub fn igmp(message: &[u8], mut each: impl FnMut(IpAddr, Change)) -> Result<(), Why> {
    let group = |at: usize| {
        let octets = message.get(at..).and_then(<[u8]>::first_chunk::<4>);
        octets.map(|octets| IpAddr::V4(Ipv4Addr::from(*octets)))
    };
    match message.first() {
        Some(&(REPORT_V1 | REPORT_V2)) => each(group(4).ok_or(Why::Truncated)?, Change::Join),
        Some(&LEAVE) => each(group(4).ok_or(Why::Truncated)?, Change::Leave),
        Some(&REPORT_V3) => return records::<4>(message, each),
        _ => return Err(Why::Unanswered),
    }
    Ok(())
}

/// Reads an MLD message.
///
/// # Errors
/// As [`igmp`].
pub fn mld(message: &[u8], mut each: impl FnMut(IpAddr, Change)) -> Result<(), Why> {
    let group = || {
        let octets = message.get(8..).and_then(<[u8]>::first_chunk::<16>);
        octets
            .map(|octets| IpAddr::V6(Ipv6Addr::from(*octets)))
            .ok_or(Why::Truncated)
    };
    match message.first() {
        Some(&MLD_REPORT) => each(group()?, Change::Join),
        Some(&MLD_DONE) => each(group()?, Change::Leave),
        Some(&MLD_REPORT_V2) => return records::<16>(message, each),
        _ => return Err(Why::Unanswered),
    }
    Ok(())
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

/// Reads the records of a newest report; both protocols have them in one shape, with addresses of `N` octets.
fn records<const N: usize>(
    message: &[u8],
    mut each: impl FnMut(IpAddr, Change),
) -> Result<(), Why> {
    let &[_, _, _, _, _, _, high, low] = message.first_chunk().ok_or(Why::Truncated)?;
    let mut rest = message.get(8..).unwrap_or_default();
    for _ in 0..u16::from_be_bytes([high, low]) {
        let &[kind, auxiliary, high, low] = rest.first_chunk().ok_or(Why::Truncated)?;
        let sources = usize::from(u16::from_be_bytes([high, low]));
        let octets = rest.get(4..4 + N).ok_or(Why::Truncated)?;
        let change = match (kind, sources) {
            (MODE_IS_EXCLUDE | TO_EXCLUDE, _) => Some(Change::Join),
            (MODE_IS_INCLUDE | TO_INCLUDE | ALLOW_NEW, 1..) => Some(Change::Join),
            (MODE_IS_INCLUDE | TO_INCLUDE, 0) => Some(Change::Leave),
            _ => None,
        };
        if let Some(change) = change {
            let addr = match (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets)) {
                (Ok(v4), _) => IpAddr::from(v4),
                (_, Ok(v6)) => IpAddr::from(v6),
                _ => return Err(Why::Malformed),
            };
            each(addr, change);
        }
        let len = 4 + N + sources * N + usize::from(auxiliary) * 4;
        rest = rest.get(len..).ok_or(Why::Truncated)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(message: &[u8]) -> Vec<(String, Change)> {
        let mut changes = Vec::new();
        let each = |addr: IpAddr, change| changes.push((addr.to_string(), change));
        match message.first() {
            Some(0..0x80) => igmp(message, each).unwrap(),
            _ => mld(message, each).unwrap(),
        }
        changes
    }

    #[test]
    fn old_reports_name_one_group() {
        for (kind, change) in [
            (0x12, Change::Join),
            (0x16, Change::Join),
            (0x17, Change::Leave),
        ] {
            let message = [kind, 0, 0, 0, 224, 0, 0, 251];
            assert_eq!(read(&message), [("224.0.0.251".to_owned(), change)]);
        }
        for (kind, change) in [(131, Change::Join), (132, Change::Leave)] {
            let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            message.extend("ff02::fb".parse::<Ipv6Addr>().unwrap().octets());
            assert_eq!(read(&message), [("ff02::fb".to_owned(), change)]);
        }
    }

    #[test]
    fn new_reports_name_several_with_and_without_sources() {
        let mut message = vec![0x22, 0, 0, 0, 0, 0, 0, 4];
        message.extend([4, 0, 0, 0, 239, 255, 255, 250]);
        message.extend([3, 0, 0, 0, 224, 0, 0, 251]);
        message.extend([5, 1, 0, 1, 232, 1, 1, 1, 192, 0, 2, 1, 9, 9, 9, 9]);
        message.extend([6, 0, 0, 1, 232, 1, 1, 1, 192, 0, 2, 1]);
        let want = [
            ("239.255.255.250", Change::Join),
            ("224.0.0.251", Change::Leave),
            ("232.1.1.1", Change::Join),
        ];
        assert_eq!(
            read(&message),
            want.map(|(addr, change)| (addr.to_owned(), change))
        );
        for len in 1..message.len() {
            let _ = igmp(&message[..len], |_, _| {});
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(message in proptest::collection::vec(any::<u8>(), 0..80), kind in 0_usize..7) {
            let mut message = message;
            if let Some(first) = message.first_mut() {
                *first = [0x11, 0x12, 0x16, 0x17, 0x22, 131, 143][kind];
            }
            let _ = igmp(&message, |_, _| {});
            let _ = mld(&message, |_, _| {});
        }
    }
}
