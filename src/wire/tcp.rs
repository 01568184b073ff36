//! TCP flags and options (RFC 9293, section 3.1 and 3.2).

use std::ops::BitOr;

use crate::net::Seq;

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

/// Octets of options at most.
pub const OPTIONS_MAX: usize = 40;

/// The timestamps of a segment (RFC 7323, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamps {
    /// TSval, the sender's clock.
    pub value: u32,
    /// TSecr, the clock of the other side as last heard.
    pub echo: u32,
}

/// Blocks of a SACK option (RFC 2018, section 3), four at most: first octet, and the one after the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sack {
    blocks: [(Seq, Seq); 4],
    len: u8,
}

impl Sack {
    /// Adds a block; what finds no room is left out.
    pub fn push(&mut self, start: Seq, end: Seq) {
        if let Some(block) = self.blocks.get_mut(usize::from(self.len)) {
            *block = (start, end);
            self.len += 1;
        }
    }

    pub fn blocks(&self) -> &[(Seq, Seq)] {
        self.blocks.get(..usize::from(self.len)).unwrap_or_default()
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The options we heed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Maximum segment size, in octets (kind 2).
    pub mss: Option<u16>,
    /// Window scale shift, 14 at most (kind 3; RFC 7323, section 2.3).
    pub window_scale: Option<u8>,
    /// Kind 4.
    pub sack_permitted: bool,
    /// Kind 5.
    pub sack: Sack,
    /// Kind 8.
    pub timestamps: Option<Timestamps>,
}

impl Options {
    /// Reads an option list; a malformed rest is ignored, as is what we do not know.
    pub fn parse(mut list: &[u8]) -> Self {
        // Nearly every segment's, as everybody aligns them.
        if let [1, 1, 8, 10, a, b, c, d, e, f, g, h] = *list {
            return Self {
                timestamps: Some(Timestamps {
                    value: u32::from_be_bytes([a, b, c, d]),
                    echo: u32::from_be_bytes([e, f, g, h]),
                }),
                ..Self::default()
            };
        }
        let mut found = Self::default();
        while let [kind, rest @ ..] = list {
            list = match (*kind, rest) {
                (0, _) => break,
                (1, rest) => rest,
                (_, [len, ..]) => {
                    let Some((option, rest)) = list
                        .split_at_checked(usize::from(*len))
                        .filter(|(option, _)| option.len() >= 2)
                    else {
                        break;
                    };
                    found.take(option);
                    rest
                }
                (_, []) => break,
            };
        }
        found
    }

    /// Takes one option, kind and length included.
    fn take(&mut self, option: &[u8]) {
        match *option {
            [2, _, high, low] => self.mss = Some(u16::from_be_bytes([high, low])),
            [3, _, shift] => self.window_scale = Some(shift.min(14)),
            [4, _] => self.sack_permitted = true,
            [5, _, ref blocks @ ..] if blocks.len() % 8 == 0 => {
                for &[a, b, c, d, e, f, g, h] in blocks.as_chunks::<8>().0 {
                    let start = Seq(u32::from_be_bytes([a, b, c, d]));
                    self.sack.push(start, Seq(u32::from_be_bytes([e, f, g, h])));
                }
            }
            [8, _, a, b, c, d, e, f, g, h] => {
                self.timestamps = Some(Timestamps {
                    value: u32::from_be_bytes([a, b, c, d]),
                    echo: u32::from_be_bytes([e, f, g, h]),
                });
            }
            _ => {}
        }
    }

    /// Writes the options, aligned by NOPs as Linux does; blocks of SACK as many as fit. Returns how many octets are used.
    pub fn write(&self, out: &mut [u8; OPTIONS_MAX]) -> usize {
        let mut list = List { out, len: 0 };
        if let Some(mss) = self.mss {
            list.put(&[2, 4]);
            list.put(&mss.to_be_bytes());
        }
        if let Some(shift) = self.window_scale {
            list.put(&[1, 3, 3, shift]);
        }
        if self.sack_permitted {
            list.put(&[1, 1, 4, 2]);
        }
        if let Some(Timestamps { value, echo }) = self.timestamps {
            let [a, b, c, d] = value.to_be_bytes();
            let [e, f, g, h] = echo.to_be_bytes();
            list.put(&[1, 1, 8, 10, a, b, c, d, e, f, g, h]);
        }
        let room = (OPTIONS_MAX - list.len).saturating_sub(4) / 8;
        let blocks = self.sack.blocks();
        let blocks = &blocks[..blocks.len().min(room)];
        if !blocks.is_empty() {
            list.put(&[1, 1, 5, 2 + 8 * blocks.len() as u8]);
        }
        for (start, end) in blocks {
            list.put(&start.0.to_be_bytes());
            list.put(&end.0.to_be_bytes());
        }
        list.len
    }
}

/// An option list in the making.
struct List<'a> {
    out: &'a mut [u8; OPTIONS_MAX],
    len: usize,
}

impl List<'_> {
    fn put(&mut self, octets: &[u8]) {
        if let Some(place) = self.out.get_mut(self.len..self.len + octets.len()) {
            place.copy_from_slice(octets);
            self.len += octets.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sack(blocks: u32) -> Sack {
        let mut sack = Sack::default();
        for n in 0..blocks {
            sack.push(Seq(n * 100), Seq(n * 100 + 50));
        }
        sack
    }

    #[test]
    fn options_written_are_read_back() {
        let timestamps = Some(Timestamps {
            value: 1,
            echo: u32::MAX,
        });
        for options in [
            Options::default(),
            Options {
                mss: Some(1460),
                window_scale: Some(8),
                ..Options::default()
            },
            Options {
                mss: Some(65_480),
                sack_permitted: true,
                timestamps,
                ..Options::default()
            },
            Options {
                timestamps,
                sack: sack(3),
                ..Options::default()
            },
            Options {
                sack: sack(4),
                ..Options::default()
            },
        ] {
            let mut out = [0; OPTIONS_MAX];
            let len = options.write(&mut out);
            assert_eq!(len % 4, 0);
            assert_eq!(Options::parse(&out[..len]), options);
        }
    }

    /// RFC 2018, section 3: with timestamps there is room for three blocks.
    #[test]
    fn blocks_that_find_no_room_are_left_out() {
        let options = Options {
            timestamps: Some(Timestamps::default()),
            sack: sack(4),
            ..Options::default()
        };
        let mut out = [0; OPTIONS_MAX];
        assert_eq!(options.write(&mut out), 40);
        assert_eq!(Options::parse(&out).sack, sack(3));
    }

    /// Regression T78.
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
