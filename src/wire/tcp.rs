//! TCP flags and options (RFC 9293, section 3.1 and 3.2).

use std::ops::BitOr;

/// Control bits of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    pub const NONE: Self = Self(0);
    pub const FIN: Self = Self(0x01);
    pub const SYN: Self = Self(0x02);
    pub const RST: Self = Self(0x04);
    pub const PSH: Self = Self(0x08);
    pub const ACK: Self = Self(0x10);

    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The options we heed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Maximum segment size, in octets (kind 2).
    pub mss: Option<u16>,
    /// Window scale shift, 14 at most (kind 3; RFC 7323, section 2.3).
    pub window_scale: Option<u8>,
}

impl Options {
    /// Reads an option list; a malformed rest is ignored, as is what we do not know.
    pub fn parse(mut list: &[u8]) -> Self {
        let mut found = Self::default();
        while let [kind, rest @ ..] = list {
            list = match (*kind, rest) {
                (0, _) => break,
                (1, rest) => rest,
                (kind, [len, ..]) => {
                    let Some(option) = list
                        .get(..usize::from(*len))
                        .filter(|option| option.len() >= 2)
                    else {
                        break;
                    };
                    match (kind, option) {
                        (2, &[_, _, high, low]) => {
                            found.mss = Some(u16::from_be_bytes([high, low]));
                        }
                        (3, &[_, _, shift]) => found.window_scale = Some(shift.min(14)),
                        _ => {}
                    }
                    list.get(option.len()..).unwrap_or_default()
                }
                (_, []) => break,
            };
        }
        found
    }

    /// Writes the options of a SYN: MSS, and the window scale after a NOP if there is one. Returns how many of the eight
    /// octets are used.
    pub fn write_syn(self, out: &mut [u8; 8]) -> usize {
        let [high, low] = self.mss.unwrap_or(536).to_be_bytes();
        *out = [2, 4, high, low, 1, 3, 3, self.window_scale.unwrap_or(0)];
        if self.window_scale.is_some() { 8 } else { 4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_written_are_read_back() {
        for options in [
            Options {
                mss: Some(1460),
                window_scale: Some(8),
            },
            Options {
                mss: Some(65_480),
                window_scale: None,
            },
        ] {
            let mut out = [0; 8];
            let len = options.write_syn(&mut out);
            assert_eq!(Options::parse(&out[..len]), options);
        }
    }

    #[test]
    fn zero_length_and_overlong_options_end_the_list() {
        assert_eq!(Options::parse(&[2, 0, 5, 180]), Options::default());
        assert_eq!(Options::parse(&[1, 1, 3, 3, 20]).window_scale, Some(14));
        assert_eq!(Options::parse(&[2, 4, 5]), Options::default());
        assert_eq!(Options::parse(&[8, 10, 0, 0]), Options::default());
    }

    proptest! {
        #[test]
        fn any_list_is_read_without_panic(list in proptest::collection::vec(any::<u8>(), 0..48)) {
            let _ = Options::parse(&list);
        }
    }
}
