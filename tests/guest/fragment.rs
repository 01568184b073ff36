//! Fragments of packets, made and joined by the rules of the RFCs, without regard to how the translator does it.

use std::collections::BTreeMap;

use super::frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, OUR_MAC, ethernet};

/// The next header that says "fragment".
const FRAGMENT: u8 = 44;

/// A fragment of `ip` as a frame: octets `at..at + len` of its payload.
pub fn part(ip: &Ip, id: u32, at: usize, len: usize, more: bool) -> Vec<u8> {
    let octets = &ip.payload[at..at + len];
    raw_part(ip, id, at, octets, more)
}

/// The same with octets of any kind.
pub fn raw_part(ip: &Ip, id: u32, at: usize, octets: &[u8], more: bool) -> Vec<u8> {
    let at = u16::try_from(at).expect("an offset");
    if ip.src.is_ipv4() {
        let mut packet = Ip {
            payload: octets.to_vec(),
            ..ip.clone()
        }
        .packet();
        packet[4..6].copy_from_slice(&id.to_be_bytes()[2..]);
        packet[6..8].copy_from_slice(&((at / 8) | (u16::from(more) << 13)).to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = !smoltcp::wire::checksum::data(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        ethernet(OUR_MAC, ETHERTYPE_IPV4, &packet)
    } else {
        let mut payload = vec![ip.protocol, 0];
        payload.extend((at | u16::from(more)).to_be_bytes());
        payload.extend(id.to_be_bytes());
        payload.extend(octets);
        let packet = Ip {
            protocol: FRAGMENT,
            payload,
            ..ip.clone()
        };
        ethernet(OUR_MAC, ETHERTYPE_IPV6, &packet.packet())
    }
}

/// All fragments of `ip` for a link that takes `mtu` octets; one that fits may be fragmented, but is not (in IPv6 it has a
/// fragment header all the same).
pub fn parts(ip: &Ip, id: u32, mtu: usize) -> Vec<Vec<u8>> {
    let room = (mtu - if ip.src.is_ipv4() { 20 } else { 48 }) & !7;
    let whole = ip.payload.len();
    (0..whole)
        .step_by(room)
        .map(|at| {
            let len = room.min(whole - at);
            part(ip, id, at, len, at + len < whole)
        })
        .collect()
}

/// Joins the fragments of one packet at a time.
#[derive(Debug, Default)]
pub struct Joiner {
    parts: BTreeMap<usize, Vec<u8>>,
    total: Option<usize>,
    id: Option<u32>,
    /// The largest packet seen, in octets from the IP header on.
    pub largest: usize,
}

impl Joiner {
    /// Takes a frame; a whole packet comes out as a frame without fragments.
    pub fn add(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let Some((ip, id, at, more)) = read(frame) else {
            return Some(frame.to_vec());
        };
        self.largest = self.largest.max(frame.len() - 14);
        assert_eq!(*self.id.get_or_insert(id), id, "one packet at a time");
        if !more {
            self.total = Some(at + ip.payload.len());
        } else {
            assert_eq!(ip.payload.len() % 8, 0, "only the last may be uneven");
        }
        self.parts.insert(at, ip.payload.clone());
        let payload: Vec<u8> = self.parts.values().flatten().copied().collect();
        if self.total != Some(payload.len()) {
            return None;
        }
        let mut end = 0;
        for (at, octets) in &self.parts {
            assert_eq!(*at, end, "no gap, no overlap");
            end += octets.len();
        }
        (self.parts, self.total, self.id) = Default::default();
        Some(Ip { payload, ..ip }.frame())
    }
}

/// Reads a fragment: its header with its part of the payload, identification, offset, and whether more follow.
pub fn read(frame: &[u8]) -> Option<(Ip, u32, usize, bool)> {
    let number = |octets: &[u8]| octets.iter().fold(0, |n, &octet| n << 8 | u32::from(octet));
    match frame[12..14] {
        [0x08, 0x00] => {
            let place = number(&frame[20..22]);
            if place & 0x3fff == 0 {
                return None;
            }
            assert_eq!(smoltcp::wire::checksum::data(&frame[14..34]), 0xffff);
            let mut plain = frame.to_vec();
            plain[20..22].fill(0);
            plain[24..26].fill(0);
            let sum = !smoltcp::wire::checksum::data(&plain[14..34]);
            plain[24..26].copy_from_slice(&sum.to_be_bytes());
            let at = (place as usize & 0x1fff) * 8;
            Some((
                Ip::of_frame(&plain)?,
                number(&frame[18..20]),
                at,
                place & 0x2000 != 0,
            ))
        }
        [0x86, 0xdd] if frame[20] == FRAGMENT => {
            let ip = Ip::of_frame(frame)?;
            let place = number(&ip.payload[2..4]);
            let (id, at) = (number(&ip.payload[4..8]), place as usize & 0xfff8);
            let part = Ip {
                protocol: ip.payload[0],
                payload: ip.payload[8..].to_vec(),
                ..ip
            };
            Some((part, id, at, place & 1 != 0))
        }
        _ => None,
    }
}
