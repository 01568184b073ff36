//! The capture file format of libpcap (pcap-savefile(5)): one file header, then a header before each frame.

use std::time::Duration;

/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// No frame is longer: 64 KiB and a page, as on QEMU's link.
const SNAP_LEN: u32 = 69_632;

/// The head of a capture file with timestamps in microseconds.
pub fn file_header() -> [u8; 24] {
    let mut header = [0; 24];
    header[0..4].copy_from_slice(&0xa1b2_c3d4_u32.to_ne_bytes());
    header[4..6].copy_from_slice(&2_u16.to_ne_bytes());
    header[6..8].copy_from_slice(&4_u16.to_ne_bytes());
    header[16..20].copy_from_slice(&SNAP_LEN.to_ne_bytes());
    header[20..24].copy_from_slice(&ETHERNET.to_ne_bytes());
    header
}

/// The head of one frame of `len` octets, seen at a time since 1970.
pub fn record_header(at: Duration, len: usize) -> [u8; 16] {
    let mut header = [0; 16];
    header[0..4].copy_from_slice(&(at.as_secs() as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&at.subsec_micros().to_ne_bytes());
    header[8..12].copy_from_slice(&(len as u32).to_ne_bytes());
    header[12..16].copy_from_slice(&(len as u32).to_ne_bytes());
    header
}
