//! Any octets as a frame of the guest: `classify` reads it or says why not, and whatever ranges it names lie inside.

use passt_rs::wire::frame::{Body, classify};

pub fn run(frame: &[u8]) {
    let Ok(read) = classify(frame, frame.len()) else {
        return;
    };
    let (ip, payload) = match &read.body {
        Body::Arp => return,
        Body::Tcp(ip, segment) => (ip, &segment.payload),
        Body::Udp(ip, datagram) => (ip, &datagram.payload),
        Body::Icmp(ip, message) => (ip, &message.octets),
        Body::Igmp(ip, message) => (ip, message),
        Body::Fragment(ip, part) => (ip, &part.payload),
    };
    assert!(payload.start <= payload.end && payload.end <= frame.len());
    assert_eq!(ip.src.is_ipv4(), ip.dst.is_ipv4());
}
