//! Frames of the guest, with every field free and every checksum right.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OURS: [u8; 6] = passt_rs::config::OUR_MAC.0;

pub const GUEST4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 15);
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x15);

/// Addresses of one family, guest and remote.
#[derive(Debug, Clone, Copy)]
pub enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// The guest, and a remote host that peers are told apart by.
pub fn pair(v6: bool, remote: u8, inbound: bool) -> Pair {
    if v6 {
        let net = if inbound { 0x99 } else { 0x51 };
        let remote = Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, remote.into());
        Pair::V6(GUEST6, remote)
    } else {
        let net = if inbound {
            [203, 0, 113]
        } else {
            [198, 51, 100]
        };
        Pair::V4(GUEST4, Ipv4Addr::new(net[0], net[1], net[2], remote))
    }
}

/// The guest, and a group, or all hosts.
pub fn group(v6: bool, which: u8) -> Pair {
    if v6 {
        let group = [0xfb, 0xc, 1, 0x1234][usize::from(which & 3)];
        let scope = if which == 3 { 0xff05 } else { 0xff02 };
        Pair::V6(GUEST6, Ipv6Addr::new(scope, 0, 0, 0, 0, 0, 0, group))
    } else {
        let groups = [
            Ipv4Addr::new(224, 0, 0, 251),
            Ipv4Addr::new(239, 255, 255, 250),
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(192, 0, 2, 255),
        ];
        Pair::V4(GUEST4, groups[usize::from(which & 3)])
    }
}

/// A report of membership of a group (RFC 2236, RFC 2710), or that it is left.
pub fn report(pair: Pair, joins: bool) -> Vec<u8> {
    match pair {
        Pair::V4(_, group) => {
            let mut message = vec![if joins { 0x16 } else { 0x17 }, 0, 0, 0];
            message.extend(group.octets());
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
            packet(pair, 2, &message)
        }
        Pair::V6(_, group) => {
            let mut message = vec![if joins { 131 } else { 132 }, 0, 0, 0, 0, 0, 0, 0];
            message.extend(group.octets());
            packet(pair, 58, &message)
        }
    }
}

/// The fields of a TCP segment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp<'a> {
    /// Of the guest and of the remote end.
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Whole groups of four octets, 40 at most.
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

pub fn tcp(pair: Pair, tcp: Tcp<'_>) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend_from_slice(&tcp.ports.0.to_be_bytes());
    segment.extend_from_slice(&tcp.ports.1.to_be_bytes());
    segment.extend_from_slice(&tcp.seq.to_be_bytes());
    segment.extend_from_slice(&tcp.ack.to_be_bytes());
    segment.push(((5 + tcp.options.len() / 4) << 4) as u8);
    segment.push(tcp.flags);
    segment.extend_from_slice(&tcp.window.to_be_bytes());
    segment.extend_from_slice(&[0; 4]);
    segment.extend_from_slice(tcp.options);
    segment.extend_from_slice(tcp.payload);
    packet(pair, 6, &segment)
}

pub fn udp(pair: Pair, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&ports.0.to_be_bytes());
    datagram.extend_from_slice(&ports.1.to_be_bytes());
    datagram.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    datagram.extend_from_slice(&[0; 2]);
    datagram.extend_from_slice(payload);
    packet(pair, 17, &datagram)
}

/// An echo request.
pub fn echo(pair: Pair, id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let (kind, protocol) = match pair {
        Pair::V4(..) => (8, 1),
        Pair::V6(..) => (128, 58),
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&seq.to_be_bytes());
    message.extend_from_slice(payload);
    packet(pair, protocol, &message)
}

/// A frame around a message.
pub fn packet(pair: Pair, protocol: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(54 + message.len());
    frame.extend_from_slice(&OURS);
    frame.extend_from_slice(&GUEST);
    match pair {
        Pair::V4(src, dst) => {
            frame.extend_from_slice(&[8, 0, 0x45, 0]);
            frame.extend_from_slice(&(20 + message.len() as u16).to_be_bytes());
            frame.extend_from_slice(&[0, 1, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend_from_slice(&src.octets());
            frame.extend_from_slice(&dst.octets());
        }
        Pair::V6(src, dst) => {
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend_from_slice(&(message.len() as u16).to_be_bytes());
            frame.extend_from_slice(&[protocol, 64]);
            frame.extend_from_slice(&src.octets());
            frame.extend_from_slice(&dst.octets());
        }
    }
    frame.extend_from_slice(message);
    repair(&mut frame);
    frame
}

/// A frame's packet in parts of so many octets, a multiple of eight, each in a frame.
pub fn cut(frame: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    let (headers, upper) = frame.split_at(if frame[12] == 8 { 34 } else { 54 });
    let size = size.max(8);
    let parts = upper.chunks(size).enumerate().map(|(n, octets)| {
        let place = Place {
            id,
            offset: (n * size) as u16,
            more: n * size + octets.len() < upper.len(),
        };
        part(headers, place, octets)
    });
    parts.collect()
}

/// A part's place in its packet.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub id: u16,
    /// In octets.
    pub offset: u16,
    pub more: bool,
}

/// A frame with a part of a packet; `headers` are those of the whole.
pub fn part(headers: &[u8], place: Place, octets: &[u8]) -> Vec<u8> {
    let Place { id, offset, more } = place;
    let mut out = headers.to_vec();
    if headers[12] == 8 {
        out[16..18].copy_from_slice(&(20 + octets.len() as u16).to_be_bytes());
        out[18..20].copy_from_slice(&id.to_be_bytes());
        out[20..22].copy_from_slice(&(offset >> 3 | u16::from(more) << 13).to_be_bytes());
        out[24..26].fill(0);
        let sum = finish(add(0, &out[14..34]));
        out[24..26].copy_from_slice(&sum);
    } else {
        out[18..20].copy_from_slice(&(8 + octets.len() as u16).to_be_bytes());
        let carried = std::mem::replace(&mut out[20], 44);
        out.extend([carried, 0]);
        out.extend((offset & !7 | u16::from(more)).to_be_bytes());
        out.extend(u32::from(id).to_be_bytes());
    }
    out.extend(octets);
    out
}

/// Makes the checksums of a frame right, as far as it is one; else most of what is mutated would end there.
pub fn repair(frame: &mut [u8]) {
    let (start, end, protocol, addresses) = match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, first, ..] => {
            let header = 14 + usize::from(*first & 0xf) * 4;
            if header < 34 || frame.len() < header {
                return;
            }
            frame[24..26].fill(0);
            let sum = finish(add(0, &frame[14..header]));
            frame[24..26].copy_from_slice(&sum);
            let total = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            (header, total.clamp(header, frame.len()), frame[23], 26..34)
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] if frame.len() >= 54 => {
            let total = 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            (54, total.min(frame.len()), frame[20], 22..54)
        }
        _ => return,
    };
    let at = match protocol {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => return,
    };
    if end - start < at + 2 {
        return;
    }
    frame[start + at..start + at + 2].fill(0);
    let mut sum = 0;
    if protocol != 1 {
        sum = add(sum, &frame[addresses]) + u32::from(protocol) + (end - start) as u32;
    }
    let mut sum = finish(add(sum, &frame[start..end]));
    if protocol == 17 && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    frame[start + at..start + at + 2].copy_from_slice(&sum);
}

/// The Internet checksum (RFC 1071).
pub fn checksum(octets: &[u8]) -> [u8; 2] {
    finish(add(0, octets))
}

fn add(sum: u32, octets: &[u8]) -> u32 {
    octets.chunks(2).fold(sum, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let sum = sum + u32::from(word);
        (sum & 0xffff) + (sum >> 16)
    })
}

fn finish(sum: u32) -> [u8; 2] {
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}
