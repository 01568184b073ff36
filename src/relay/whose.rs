//! Which flow a frame is of, before anybody has looked into it for good.

use super::kinds::{is_error, is_for_service, membership};
use crate::{
    config::Net,
    flow::{self, Key},
    net::{
        Protocol,
        number::{TCP, UDP},
    },
    wire::{
        frame::{Body, Fragment, IcmpMessage, Ip},
        quote::{self, Quoted},
    },
};

/// The flow a frame is of, if it is of one that can be anywhere.
pub fn key_of(net: &Net, body: &Body, head: &[u8]) -> Option<Key> {
    if is_for_service(body) || membership(body).is_some() {
        return None;
    }
    let key = |protocol, ip: &Ip, src, dst| Key {
        protocol,
        guest: ip.source(src),
        remote: ip.destination(dst),
    };
    match body {
        Body::Tcp(ip, segment) => Some(key(Protocol::Tcp, ip, segment.src_port, segment.dst_port)),
        Body::Udp(ip, _) if flow::is_group(net, ip.dst) => None,
        Body::Udp(ip, datagram) => {
            Some(key(Protocol::Udp, ip, datagram.src_port, datagram.dst_port))
        }
        Body::Icmp(ip, message) => {
            // Of memory that the guest cannot change any more.
            let octets = head.get(message.octets.clone()).unwrap_or_default();
            icmp_key(ip, message, octets.get(..quote::START).unwrap_or(octets))
        }
        Body::Arp | Body::Igmp(..) | Body::Fragment(..) => None,
    }
}

/// What parts of a packet have in common, as if it were a flow.
pub fn parts_key(ip: &Ip, part: &Fragment) -> Key {
    Key {
        protocol: Protocol::Echo,
        guest: ip.source(part.id as u16),
        remote: ip.destination((part.id >> 16) as u16),
    }
}

/// The flow that an error of the guest's is about.
pub fn key_of_quoted(quoted: &Quoted) -> Option<Key> {
    let protocol = match quoted.protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Key {
        protocol,
        guest: quoted.dst,
        remote: quoted.src,
    })
}

/// The flow of an echo request, or the one that an error is about; `start` is the message's.
fn icmp_key(ip: &Ip, message: &IcmpMessage, start: &[u8]) -> Option<Key> {
    let v4 = ip.src.is_ipv4();
    if is_error(v4, message.kind) {
        return key_of_quoted(&Quoted::read(start, v4)?);
    }
    let identifier = u16::from_be_bytes(*start.get(4..)?.first_chunk()?);
    Some(Key {
        protocol: Protocol::Echo,
        guest: ip.source(identifier),
        remote: ip.destination(identifier),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Endpoint;

    /// An error of the guest's quotes a packet that we sent it.
    #[test]
    fn an_error_is_of_the_flow_whose_packet_it_quotes() {
        let ip = Ip {
            src: [192, 0, 2, 15].into(),
            dst: [198, 51, 100, 1].into(),
            ttl: 64,
            tos: 0,
            id: 0,
            whole: true,
        };
        let message = IcmpMessage {
            kind: 3,
            code: 3,
            octets: 0..36,
        };
        for (number, protocol) in [
            (TCP, Some(Protocol::Tcp)),
            (UDP, Some(Protocol::Udp)),
            (50, None),
        ] {
            let mut octets = vec![3, 3, 0, 0, 0, 0, 0, 0];
            octets.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, number, 0, 0]);
            octets.extend([[198, 51, 100, 1], [192, 0, 2, 15]].as_flattened());
            octets.extend([0, 53, 0x13, 0x88, 0, 8, 0, 0]);
            let key = protocol.map(|protocol| Key {
                protocol,
                guest: Endpoint::new([192, 0, 2, 15].into(), 5000),
                remote: Endpoint::new([198, 51, 100, 1].into(), 53),
            });
            assert_eq!(icmp_key(&ip, &message, &octets), key);
        }
    }
}
