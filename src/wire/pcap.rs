//! The headers of a capture file in the classic pcap format, little-endian, with microseconds
//! (draft-ietf-opsawg-pcap, sections 4 and 5).

use std::time::Duration;

/// Octets of a frame that are kept: more than the largest frame of any link.
pub const SNAPLEN: u32 = 69_632;

/// The file's head.
pub const fn file_header() -> [u8; 24] {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const VERSION: [u16; 2] = [2, 4];
    const LINKTYPE_ETHERNET: u32 = 1;
    let [m0, m1, m2, m3] = MAGIC.to_le_bytes();
    let [[a0, a1], [b0, b1]] = [VERSION[0].to_le_bytes(), VERSION[1].to_le_bytes()];
    let [s0, s1, s2, s3] = SNAPLEN.to_le_bytes();
    let [l0, l1, l2, l3] = LINKTYPE_ETHERNET.to_le_bytes();
    [
        m0, m1, m2, m3, a0, a1, b0, b1, // magic, version
        0, 0, 0, 0, 0, 0, 0, 0, // reserved
        s0, s1, s2, s3, l0, l1, l2, l3,
    ]
}

/// The head of one record: a frame of `len` octets seen at `time_of_day` since 1970, followed by its first [`SNAPLEN`]
/// octets. The format's seconds wrap in 2106.
pub fn record_header(time_of_day: Duration, len: u32) -> [u8; 16] {
    let mut header = [0; 16];
    let fields = [
        time_of_day.as_secs() as u32,
        time_of_day.subsec_micros(),
        len.min(SNAPLEN),
        len,
    ];
    for (place, field) in header.as_chunks_mut().0.iter_mut().zip(fields) {
        *place = field.to_le_bytes();
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_header_field_by_field() {
        let header = file_header();
        assert_eq!(header[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(header[8..16], [0; 8]);
        assert_eq!(header[16..], [0x00, 0x10, 0x01, 0x00, 1, 0, 0, 0]);
    }

    #[test]
    fn a_record_says_when_and_how_long() {
        let header = record_header(Duration::new(0x0102_0304, 5_000_999), 70_000);
        assert_eq!(header[..8], [4, 3, 2, 1, 0x88, 0x13, 0, 0]);
        assert_eq!(header[8..12], SNAPLEN.to_le_bytes());
        assert_eq!(header[12..], 70_000_u32.to_le_bytes());
    }
}
