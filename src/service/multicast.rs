//! Which groups the guest is in: what it reports by IGMP (RFC 1112, RFC 2236, RFC 3376) and MLD (RFC 2710, RFC 3810). Nothing
//! is answered; a membership lasts until the guest leaves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::Why;

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
