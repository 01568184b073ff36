//! Each service, with any octets as the request: a sound frame comes back, or nothing. The first octet chooses the service.

use std::sync::LazyLock;

use passt_rs::{
    config::Net,
    flow::{Guest, Neighbours},
    net::Mac,
    service::{Answer, arp, dhcp, dhcpv6, multicast, ndp},
    wire::frame::classify,
};

use crate::net;

static NET: LazyLock<Net> = LazyLock::new(net);

const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

pub fn run(input: &[u8]) {
    let [service, hops, request @ ..] = input else {
        return;
    };
    let net = &*NET;
    let mut guest = Guest::new(None, None);
    let (mut out, neighbours) = (Vec::new(), Neighbours::default());
    let (src, dst) = addresses(*hops);
    match service % 8 {
        4 => {
            let _ = multicast::igmp(request, |record| {
                assert!(record.group.is_ipv4() && record.sources().all(|source| source.is_ipv4()));
            });
        }
        5 => {
            let _ = multicast::mld(request, |record| {
                assert!(record.group.is_ipv6() && record.sources().all(|source| source.is_ipv6()));
            });
        }
        _ => {}
    }
    let answer = match service % 4 {
        0 => {
            if let Some(sender) = arp::sender(request) {
                guest.saw_addr(sender.into());
            }
            arp::answer(request, net, &guest, &neighbours, &mut out)
        }
        1 => dhcp::answer(GUEST, request, net, &mut out),
        2 => dhcpv6::answer(GUEST, src, dst, request, net, &mut out),
        _ => {
            let _ = ndp::told(src.into(), request);
            ndp::answer(
                GUEST,
                src,
                dst,
                hops | 0xf0,
                request,
                net,
                &guest,
                &neighbours,
                &mut out,
            )
        }
    };
    if let Answer::Reply(_) = answer {
        assert!((60..=usize::from(net.mtu) + 14).contains(&out.len()) || service % 4 != 0);
        // Our own reader takes what we write.
        classify(&out, out.len()).expect("a sound reply");
    }
}

fn addresses(choice: u8) -> (std::net::Ipv6Addr, std::net::Ipv6Addr) {
    let src = ["fe80::5054:ff:fe12:3456", "::", "2001:db8::9", "ff02::1"];
    let dst = ["ff02::1:2", "ff02::2", "fe80::1", "ff02::1:ff00:1"];
    let at = |list: [&str; 4], n: u8| list[usize::from(n % 4)].parse().expect("an address");
    (at(src, choice), at(dst, choice >> 2))
}
