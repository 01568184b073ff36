//! What a guest's stack does with frames that were left to it: completes checksums, and cuts segments.

use super::Arrival;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

const ETHERNET: usize = 14;
const UDP: u8 = 17;
const FIN_PSH: u8 = 0x09;

/// The frames as a wire would have them.
pub fn cut(arrival: &Arrival) -> Vec<Vec<u8>> {
    let field = |at: usize| {
        let octets = arrival.header[at..at + 2].try_into().expect("two");
        usize::from(u16::from_le_bytes(octets))
    };
    let mut frame = arrival.frame.clone();
    let (flags, kind) = (arrival.header[0], arrival.header[1]);
    let (headers, size, start, offset) = (field(2), field(4), field(6), field(8));
    if flags & NEEDS_CSUM == 0 {
        assert_eq!(kind, 0, "segments without a checksum to complete");
        // Good as it is, whatever stands there.
        if flags & DATA_VALID != 0 {
            let (start, offset) = leave_checksum_of(&mut frame, arrival.frame.len());
            complete(&mut frame, start, offset);
        }
        return vec![frame];
    }
    if kind == 0 {
        complete(&mut frame, start, offset);
        return vec![frame];
    }
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (udp, total) = match kind {
        GSO_TCPV4 | GSO_TCPV6 => (false, start + usize::from(frame[start + 12] >> 4) * 4),
        GSO_UDP_L4 => (true, start + 8),
        other => panic!("GSO type {other}"),
    };
    assert_eq!(v6 && !udp, kind == GSO_TCPV6);
    assert_eq!(headers, total, "the hint is right");
    assert!(frame.len() - headers > size, "one segment is none");
    // The pseudo-header's sum has the length of the whole: it is done anew.
    let chunks = frame[headers..].chunks(size).enumerate();
    let last = (frame.len() - headers).div_ceil(size) - 1;
    chunks
        .map(|(n, payload)| {
            let mut one = [&frame[..headers], payload].concat();
            let upper = one.len() - start;
            if v6 {
                one[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&(upper as u16).to_be_bytes());
            } else {
                let total = (one.len() - ETHERNET) as u16;
                one[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&total.to_be_bytes());
                let id = u16::from_be_bytes([one[ETHERNET + 4], one[ETHERNET + 5]]);
                let id = id.wrapping_add(n as u16);
                one[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes());
                one[ETHERNET + 10..ETHERNET + 12].fill(0);
                let sum = !sum(&one[ETHERNET..start]);
                one[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
            }
            if udp {
                one[start + 4..start + 6].copy_from_slice(&(upper as u16).to_be_bytes());
            } else {
                let at = start + 4;
                let seq = u32::from_be_bytes(one[at..at + 4].try_into().expect("four"));
                let seq = seq.wrapping_add((n * size) as u32);
                one[at..at + 4].copy_from_slice(&seq.to_be_bytes());
                if n != last {
                    one[start + 13] &= !FIN_PSH;
                }
            }
            let len = one.len();
            leave_checksum_of(&mut one, len);
            complete(&mut one, start, offset);
            one
        })
        .collect()
}

/// Leaves the checksum of a frame to others: returns a header that says so. The frame is TCP or UDP without IP options.
pub fn leave_checksum(frame: &mut [u8]) -> Vec<u8> {
    let len = frame.len();
    let (start, offset) = leave_checksum_of(frame, len);
    let mut header = vec![0; 12];
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&(start as u16).to_le_bytes());
    header[8..10].copy_from_slice(&(offset as u16).to_le_bytes());
    header
}

/// The same for the headers of a frame of `len` octets: where checksumming starts, and where behind that the checksum goes.
pub fn leave_checksum_of(headers: &mut [u8], len: usize) -> (usize, usize) {
    let v6 = headers[12..14] == [0x86, 0xdd];
    let start = ETHERNET + if v6 { 40 } else { 20 };
    let offset = if protocol(headers) == UDP { 6 } else { 16 };
    let addresses = if v6 {
        ETHERNET + 8..start
    } else {
        ETHERNET + 12..start
    };
    let upper = (len - start) as u32;
    let pseudo = [
        &headers[addresses],
        &upper.to_be_bytes(),
        &[0, 0, 0, protocol(headers)],
    ]
    .concat();
    let sum = sum(&pseudo);
    headers[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    (start, offset)
}

fn protocol(frame: &[u8]) -> u8 {
    let v6 = frame[12..14] == [0x86, 0xdd];
    frame[ETHERNET + if v6 { 6 } else { 9 }]
}

fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let sum = match !sum(&frame[start..]) {
        0 if protocol(frame) == UDP => 0xffff,
        sum => sum,
    };
    frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Ones' complement sum (RFC 1071).
fn sum(octets: &[u8]) -> u16 {
    let mut sum: u64 = octets
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
