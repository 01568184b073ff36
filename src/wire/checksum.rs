//! The Internet checksum (RFC 1071), as a running sum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A ones' complement sum in the making. Native byte order inside, so wide lanes can be added without swapping; [`Sum::finish`]
/// brings it to network order (RFC 1071, section 2 (B)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds octets that start at an even offset of the summed data. An odd count is padded with zero, so it must come last.
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Self {
        let mut lanes = [0_u64; 8];
        let (chunks, rest) = data.as_chunks::<32>();
        for chunk in chunks {
            let (words, _) = chunk.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum = fold(self.0) + lanes.iter().map(|&lane| fold(lane)).sum::<u64>();
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(fold(sum))
    }

    /// Adds a 16-bit field.
    #[must_use]
    pub const fn word(self, value: u16) -> Self {
        Self(self.0 + value.to_be() as u64)
    }

    /// Adds another sum of data that starts at an even offset.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(fold(self.0) + fold(other.0))
    }

    /// The pseudo-header of an upper-layer packet of `len` octets (RFC 9293, section 3.1; RFC 8200, section 8.1).
    #[must_use]
    pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Self {
        let sum = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Self::pseudo4(src, dst),
            (src, dst) => Self::pseudo6(to_v6(src), to_v6(dst)),
        };
        sum.word(u16::from(protocol))
            .word((len >> 16) as u16)
            .word(len as u16)
    }

    fn pseudo4(src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        Self::new().bytes(&src.octets()).bytes(&dst.octets())
    }

    fn pseudo6(src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        Self::new().bytes(&src.octets()).bytes(&dst.octets())
    }

    /// The checksum field's value, as a number to be stored in network order.
    #[must_use]
    pub const fn finish(self) -> u16 {
        !u16::from_be(fold(self.0) as u16)
    }

    /// The same for a UDP header, where zero would mean that there is no checksum, which IPv6 forbids: ones are the same sum
    /// (RFC 768; RFC 8200, section 8.1).
    #[must_use]
    pub const fn finish_datagram(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }

    /// Whether data that includes its checksum field sums up as it must.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        fold(self.0) == 0xffff
    }
}

const fn fold(sum: u64) -> u64 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

fn to_v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::new().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.finish(), !0xddf2);
    }

    proptest! {
        /// Regression T89.
        #[test]
        fn agrees_with_the_naive_sum(data in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0_usize..1500) {
            prop_assert_eq!(Sum::new().bytes(&data).finish(), naive(&data));
            let (a, b) = data.split_at((cut & !1).min(data.len() & !1));
            prop_assert_eq!(Sum::new().bytes(a).plus(Sum::new().bytes(b)).finish(), naive(&data));
        }
    }
}
