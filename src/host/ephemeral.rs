//! The ports outgoing connections are given (ip-sysctl: `ip_local_port_range`).

use std::{fs, ops::RangeInclusive};

const SOURCE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The dynamic ports of RFC 6335, section 6: where the kernel does not say.
const FALLBACK: RangeInclusive<u16> = 49_152..=65_535;

/// First and last ephemeral port of the host, of both families.
pub fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = fs::read_to_string(SOURCE).ok();
    text.and_then(|text| range(&text)).unwrap_or(FALLBACK)
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_whitespace().map(str::parse);
    let (first, last) = (words.next()?.ok()?, words.next()?.ok()?);
    (first <= last && words.next().is_none()).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ports_are_a_range_and_anything_else_is_not() {
        assert_eq!(range("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(range("1 65535"), Some(1..=65_535));
        for odd in ["", "1", "2 1", "1 65536", "1 2 3", "-1 2", "a b"] {
            assert_eq!(range(odd), None, "{odd:?}");
        }
    }
}
