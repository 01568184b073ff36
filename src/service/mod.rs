//! Answers: what we say to the guest ourselves. A service reads one request and writes one reply frame, or is silent.

#[cfg(test)]
pub(crate) mod fixture;
mod note;

pub mod arp;
pub mod dhcp;
pub mod dhcpv6;
pub mod multicast;
pub mod ndp;

pub mod membership;

pub use note::{Answer, Note};

#[cfg(test)]
mod tests {
    use super::{fixture, *};
    use crate::{
        flow::{Guest, Neighbours},
        net::Mac,
    };
    use fixture::{GUEST_MAC, Opened, net, open};
    use proptest::{collection::vec, prelude::*};
    use smoltcp::wire::{ArpPacket, ArpRepr, DhcpPacket};
    use std::net::Ipv6Addr;

    fn octets() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..700)
    }

    /// Octets of which some are changed, so that most of a request stays what it was.
    fn mutated(request: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        let tail = prop_oneof![3 => Just(Vec::new()), 1 => vec(any::<u8>(), 1..40)];
        (Just(request), changes, tail).prop_map(|(mut request, changes, tail)| {
            for (at, octet) in changes {
                let at = at.index(request.len());
                request[at] = octet;
            }
            request.extend(tail);
            request
        })
    }

    fn addr6() -> impl Strategy<Value = Ipv6Addr> {
        prop_oneof![
            1 => Just(Ipv6Addr::UNSPECIFIED),
            4 => Just(fixture::guest_link_local()),
            1 => Just("ff02::1:2".parse().unwrap()),
            1 => Just("ff02::1:ff00:1".parse().unwrap()),
            1 => any::<u128>().prop_map(Ipv6Addr::from_bits),
        ]
    }

    fn replied(answer: Answer) -> bool {
        matches!(answer, Answer::Reply(_))
    }

    /// An interpreter (Miri) takes a thousand times as long.
    const CASES: u32 = if cfg!(miri) { 4 } else { 2000 };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(CASES))]

        #[test]
        fn arp_answers_anything_with_a_sound_frame_or_silence(
            frame in prop_oneof![octets(), mutated(fixture::arp_request([192, 0, 2, 1].into()))],
        ) {
            let mut out = Vec::new();
            let (guest, nobody) = (Guest::new(None, None), Neighbours::default());
            if replied(arp::answer(&frame, &net(), &guest, &nobody, &mut out)) {
                prop_assert_eq!(out.len(), 60);
                let packet = ArpPacket::new_checked(&out[14..]).unwrap();
                prop_assert!(ArpRepr::parse(&packet).is_ok());
            }
        }

        #[test]
        fn dhcp_answers_anything_with_a_sound_frame_or_silence(
            payload in prop_oneof![octets(), mutated(fixture::dhcp(1, &[(55, &[3, 1, 6, 119])]))],
        ) {
            let mut out = Vec::new();
            if replied(dhcp::answer(GUEST_MAC, &payload, &net(), &mut out)) {
                let opened = open(&out);
                prop_assert!(opened.payload.len() >= 300);
                prop_assert!(DhcpPacket::new_checked(&opened.payload[..]).is_ok());
            }
        }

        #[test]
        fn dhcpv6_answers_anything_with_a_sound_frame_or_silence(
            payload in prop_oneof![
                1 => octets(),
                3 => mutated(fixture::dhcpv6(1, &[(1, &[0, 3, 0, 1, 2]), (3, &[7; 12]), (14, &[])])),
                3 => mutated(fixture::dhcpv6(3, &[(1, &[0, 3, 0, 1, 2]), (2, &fixture::our_duid()), (3, &[7; 12])])),
            ],
            src in addr6(),
        ) {
            let mut out = Vec::new();
            let dst = "ff02::1:2".parse().unwrap();
            if replied(dhcpv6::answer(GUEST_MAC, src, dst, &payload, &net(), &mut out)) {
                let opened = open(&out);
                let read = crate::wire::dhcpv6::Message::parse(&opened.payload);
                prop_assert!(read.is_some());
                prop_assert_eq!(opened.dst, std::net::IpAddr::from(src));
            }
        }

        #[test]
        fn ndp_answers_anything_with_a_sound_frame_or_silence(
            message in prop_oneof![
                1 => octets(),
                3 => mutated(fixture::neighbor_solicitation("2001:db8::1".parse().unwrap(), &[])),
                3 => mutated(vec![133, 0, 0, 0, 0, 0, 0, 0]),
            ],
            src in addr6(),
            dst in addr6(),
        ) {
            let mut out = Vec::new();
            let (guest, nobody) = (Guest::new(None, None), Neighbours::default());
            if replied(ndp::answer(GUEST_MAC, src, dst, 255, &message, &net(), &guest, &nobody, &mut out)) {
                let Opened { hops, protocol, .. } = open(&out);
                prop_assert_eq!((hops, protocol), (255, 58));
            }
        }

        /// X06: a reply depends on its request alone.
        #[test]
        fn nothing_of_an_earlier_request_is_left_in_the_next_reply(
            earlier in octets(),
            code in 0..30_u16,
            kind in 1..12_u8,
        ) {
            let request = fixture::dhcpv6(kind, &[(1, &[0, 3, 0, 1, 2]), (code, &[9; 12])]);
            let (src, dst) = (fixture::guest_link_local(), "ff02::1:2".parse().unwrap());
            let (mut used, mut fresh) = (earlier, Vec::new());
            let full = fixture::dhcpv6(1, &[(1, &[5; 100]), (3, &[0xee; 12])]);
            dhcpv6::answer(Mac::BROADCAST, src, dst, &full, &net(), &mut used);
            let first = dhcpv6::answer(GUEST_MAC, src, dst, &request, &net(), &mut used);
            let second = dhcpv6::answer(GUEST_MAC, src, dst, &request, &net(), &mut fresh);
            prop_assert_eq!(first, second);
            if replied(first) {
                prop_assert_eq!(used, fresh);
            }
        }
    }
}
