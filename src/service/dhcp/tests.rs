use super::*;
use crate::service::fixture::{GUEST, GUEST_MAC, OUR_MAC, Opened, ROUTER, dhcp, net, open};
use crate::wire::dhcp::Options;

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const FOREIGN: [u8; 4] = [1, 2, 3, 4];

fn said(said: &'static str) -> Answer {
    Answer::Reply(Some(Note::Dhcp {
        said,
        client: GUEST_MAC,
    }))
}

fn ask_of(net: &Net, request: &[u8]) -> (Answer, Option<Opened>) {
    let mut out = vec![0xee; 400];
    let answer = answer(GUEST_MAC, request, net, &mut out);
    let opened = matches!(answer, Answer::Reply(_)).then(|| open(&out));
    (answer, opened)
}

fn ask(request: &[u8]) -> (Answer, Option<Opened>) {
    ask_of(&net(), request)
}

/// The options of the reply to `request`, as they follow each other.
fn options_of(net: &Net, request: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let reply = ask_of(net, request).1.unwrap();
    Options(&reply.payload[240..])
        .map(|(code, value)| (code, value.to_vec()))
        .collect()
}

fn codes(net: &Net, request: &[u8]) -> Vec<u8> {
    options_of(net, request)
        .into_iter()
        .map(|(code, _)| code)
        .collect()
}

fn option(net: &Net, code: u8) -> Option<Vec<u8>> {
    let found = options_of(net, &dhcp(1, &[(57, &[0x05, 0xdc])]));
    found
        .into_iter()
        .find(|(other, _)| *other == code)
        .map(|(_, value)| value)
}

fn addr_at(payload: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from_octets(payload[at..at + 4].try_into().unwrap())
}

/// D03, D06, D10, and the frame around.
#[test]
fn a_discover_is_offered_the_address_and_the_network() {
    let (answer, reply) = ask(&dhcp(1, &[]));
    let reply = reply.unwrap();
    assert_eq!(answer, said("DHCP: offer to discover"));
    assert_eq!((reply.src, reply.dst), (ROUTER.into(), GUEST.into()));
    assert_eq!(
        (reply.to, reply.ports, reply.hops),
        (GUEST_MAC, (67, 68), 64)
    );
    let message = &reply.payload;
    assert_eq!(
        message[..12],
        [2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0]
    );
    assert_eq!(
        [12, 16, 20, 24].map(|at| addr_at(message, at)),
        [NOBODY, GUEST, NOBODY, NOBODY]
    );
    assert_eq!(message[28..34], GUEST_MAC.0);
    assert!(message[34..236].iter().all(|&octet| octet == 0));
    let want: &[(u8, &[u8])] = &[
        (53, &[2]),
        (1, &[255, 255, 255, 0]),
        (3, &ROUTER.octets()),
        (6, &[198, 51, 100, 1, 198, 51, 100, 2]),
        (12, b"guest"),
        (26, &[0xff, 0xf0]),
        (51, &[0xff; 4]),
        (54, &ROUTER.octets()),
        (81, b"\x04\xff\xff\x05guest\x07example\x00"),
        (119, b"\x03one\x04test\x00\x03two\xc0\x04"),
    ];
    let found = options_of(&net(), &dhcp(1, &[]));
    assert_eq!(
        found,
        want.iter()
            .map(|(c, v)| (*c, v.to_vec()))
            .collect::<Vec<_>>()
    );
    let len: usize = want.iter().map(|(_, value)| 2 + value.len()).sum();
    assert_eq!(message[240 + len], 255);
    assert!(message[241 + len..].iter().all(|&octet| octet == 0));
}

#[test]
fn a_request_for_the_assigned_address_is_acknowledged() {
    let selecting = dhcp(3, &[(50, &GUEST.octets()), (54, &ROUTER.octets())]);
    let rebooting = dhcp(3, &[(50, &GUEST.octets())]);
    let mut renewing = dhcp(3, &[]);
    renewing[12..16].copy_from_slice(&GUEST.octets());
    for request in [&selecting, &rebooting, &renewing, &dhcp(3, &[])] {
        let (answer, reply) = ask(request);
        let reply = reply.unwrap();
        assert_eq!(answer, said("DHCP: ack to request"));
        assert_eq!(reply.dst, IpAddr::V4(GUEST));
        assert_eq!(addr_at(&reply.payload, 16), GUEST);
        assert_eq!(reply.payload[12..16], request[12..16]);
        assert_eq!(reply.payload[240..243], [53, 1, 5]);
    }
}

/// X07.
#[test]
fn a_request_for_a_foreign_address_is_refused_by_broadcast() {
    let selecting = dhcp(3, &[(50, &FOREIGN), (54, &ROUTER.octets()), (61, &[1, 2])]);
    let mut renewing = dhcp(3, &[(61, &[1, 2])]);
    renewing[12..16].copy_from_slice(&FOREIGN);
    for request in [selecting, renewing] {
        let (answer, reply) = ask(&request);
        let reply = reply.unwrap();
        assert_eq!(answer, said("DHCP: nak to request"));
        assert_eq!(
            (reply.to, reply.dst),
            (Mac::BROADCAST, Ipv4Addr::BROADCAST.into())
        );
        assert_eq!(reply.ports, (67, 68));
        assert!(reply.payload[8..28].iter().all(|&octet| octet == 0));
        let found = options_of(&net(), &request);
        assert_eq!(found[0], (53, vec![6]));
        assert_eq!(
            found.iter().map(|o| o.0).collect::<Vec<_>>(),
            [53, 54, 56, 61]
        );
    }
}

#[test]
fn a_request_to_another_server_is_not_ours() {
    for addr in [GUEST.octets(), FOREIGN] {
        let (answer, _) = ask(&dhcp(3, &[(50, &addr), (54, &[9, 9, 9, 9])]));
        assert_eq!(answer, Answer::Silent(Why::Unanswered));
    }
}

/// D09.
#[test]
fn rapid_commit_makes_a_discover_a_request() {
    let request = dhcp(1, &[(80, &[])]);
    assert_eq!(
        ask(&request).0,
        said("DHCP: ack to discover (Rapid Commit)")
    );
    let found = options_of(&net(), &request);
    assert_eq!(found[0], (53, vec![5]));
    assert!(found.contains(&(80, vec![])) && found.contains(&(51, vec![0xff; 4])));
    assert!(option(&net(), 80).is_none(), "only if asked for");
}

/// What libkrun's guests send.
#[test]
fn a_rapid_client_without_hardware_address_gets_a_broadcast() {
    let mut request = dhcp(1, &[(55, &[1, 3, 6, 26]), (80, &[])]);
    request[4..12].copy_from_slice(&[1, 2, 3, 4, 0, 0, 0x80, 0]);
    request[28..34].fill(0);
    let (answer, reply) = ask(&request);
    let reply = reply.unwrap();
    assert_eq!(answer, said("DHCP: ack to discover (Rapid Commit)"));
    assert_eq!(
        (reply.to, reply.dst),
        (Mac::BROADCAST, Ipv4Addr::BROADCAST.into())
    );
    assert_eq!(reply.payload[..12], [2, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0]);
    assert_eq!(reply.payload[28..44], [0; 16]);
    assert_eq!(codes(&net(), &request)[..6], [53, 1, 3, 6, 26, 12]);

    request[10] = 0;
    assert_eq!(
        ask(&request).1.unwrap().to,
        GUEST_MAC,
        "as the frame's sender"
    );
}

/// D08.
#[test]
fn the_broadcast_flag_is_honoured() {
    for kind in [1, 3] {
        let mut request = dhcp(kind, &[]);
        request[10] = 0x80;
        let reply = ask(&request).1.unwrap();
        assert_eq!(
            (reply.to, reply.dst),
            (Mac::BROADCAST, Ipv4Addr::BROADCAST.into())
        );
        assert_eq!(reply.payload[10], 0x80);
        // A client that has its address gets unicast all the same.
        request[12..16].copy_from_slice(&GUEST.octets());
        assert_eq!(ask(&request).1.unwrap().dst, IpAddr::V4(GUEST));
    }
}

#[test]
fn a_reply_through_a_relay_goes_to_it() {
    for (addr, flags) in [(GUEST.octets(), 0), (FOREIGN, 0x80)] {
        let mut request = dhcp(3, &[(50, &addr)]);
        request[24..28].copy_from_slice(&[192, 0, 2, 9]);
        let reply = ask(&request).1.unwrap();
        assert_eq!(reply.dst, IpAddr::from([192, 0, 2, 9]));
        assert_eq!((reply.to, reply.ports), (GUEST_MAC, (67, 67)));
        assert_eq!(reply.payload[24..28], [192, 0, 2, 9]);
        assert_eq!(reply.payload[10], flags);
    }
}

#[test]
fn an_inform_gets_settings_but_no_lease() {
    let mut request = dhcp(8, &[]);
    request[12..16].copy_from_slice(&[192, 0, 2, 77]);
    let (answer, reply) = ask(&request);
    let reply = reply.unwrap();
    assert_eq!(answer, said("DHCP: ack to inform"));
    assert_eq!((reply.to, reply.dst), (GUEST_MAC, [192, 0, 2, 77].into()));
    assert_eq!(addr_at(&reply.payload, 12), Ipv4Addr::new(192, 0, 2, 77));
    assert_eq!(addr_at(&reply.payload, 16), NOBODY);
    assert_eq!(codes(&net(), &request), [53, 1, 3, 6, 12, 26, 54, 81, 119]);
    let reply = ask(&dhcp(8, &[])).1.unwrap();
    assert_eq!(
        (reply.to, reply.dst),
        (Mac::BROADCAST, Ipv4Addr::BROADCAST.into())
    );
}

#[test]
fn decline_and_release_are_only_noted() {
    for (kind, said) in [
        (4, "DHCP: client declines address"),
        (7, "DHCP: client releases address"),
    ] {
        let noted = Answer::Noted(Note::Dhcp {
            said,
            client: GUEST_MAC,
        });
        assert_eq!(ask(&dhcp(kind, &[])).0, noted);
    }
}

#[test]
fn what_no_client_says_is_dropped() {
    for kind in [2, 5, 6] {
        assert_eq!(ask(&dhcp(kind, &[])).0, Answer::Silent(Why::Unanswered));
    }
    assert_eq!(ask(&dhcp(9, &[])).0, Answer::Silent(Why::Malformed));
    assert_eq!(
        ask(&dhcp(0, &[(53, &[])])).0,
        Answer::Silent(Why::Malformed)
    );
    let mut reply = dhcp(1, &[]);
    reply[0] = 2;
    assert_eq!(ask(&reply).0, Answer::Silent(Why::Malformed));
    assert_eq!(ask(&dhcp(1, &[])[..200]).0, Answer::Silent(Why::Malformed));
}

/// D07, D12.
#[test]
fn a_bootp_client_gets_no_dhcp_options_and_no_more_than_it_sent() {
    let bootp = dhcp(0, &[]);
    let (answer, reply) = ask(&bootp);
    let reply = reply.unwrap();
    assert_eq!(answer, said("BOOTP: ack to request"));
    assert_eq!(reply.payload.len(), 300);
    assert_eq!(addr_at(&reply.payload, 16), GUEST);
    assert_eq!(codes(&net(), &bootp), [1, 3, 6, 12, 26, 81]);
    let mut longer = bootp.clone();
    longer.resize(548, 0);
    assert_eq!(codes(&net(), &longer), [1, 3, 6, 12, 26, 81, 119]);

    let mut without_cookie = bootp;
    without_cookie[236..].fill(0);
    assert_eq!(ask(&without_cookie).1.unwrap().payload, reply.payload);
}

/// D05.
#[test]
fn options_come_in_the_clients_order_after_the_message_type() {
    let request = dhcp(1, &[(55, &[119, 3, 53, 3, 54, 99, 0, 255]), (55, &[6])]);
    assert_eq!(
        codes(&net(), &request),
        [53, 119, 3, 54, 6, 1, 12, 26, 51, 81]
    );
}

/// D02, D04.
#[test]
fn a_message_keeps_to_the_size_the_client_takes() {
    let mut net = net();
    net.mtu = 1500;
    net.dns.hostname = Some("h".repeat(60));
    net.dns.fqdn = Some(vec!["f".repeat(60); 4].join("."));
    net.dns.search = (0..6)
        .map(|n| format!("{n}{}.{}", "s".repeat(60), "t".repeat(60)))
        .collect();
    for (size, most) in [
        (None, 576),
        (Some(300_u16), 576),
        (Some(800), 800),
        (Some(9000), 1500),
    ] {
        let size = size.map(u16::to_be_bytes);
        let mut asked = vec![(55, &[119, 81, 12, 3][..]), (61, &[9; 60])];
        asked.extend(size.as_ref().map(|size| (57, &size[..])));
        let request = dhcp(1, &asked);
        let datagram = 28 + ask_of(&net, &request).1.unwrap().payload.len();
        assert!(
            datagram <= most && datagram > most / 2,
            "{datagram} of {most}"
        );
        let codes = codes(&net, &request);
        for needed in [1, 3, 6, 51, 53, 54, 61] {
            assert!(codes.contains(&needed), "{needed} at {most}");
        }
        assert_eq!(codes.contains(&119), most >= 1000, "{most}");
    }
}

#[test]
fn a_client_identifier_comes_back_unaltered() {
    let id = [0xff, 1, 2, 3, 0, 1, 0, 1];
    let found = options_of(&net(), &dhcp(1, &[(61, &id)]));
    assert!(found.contains(&(61, id.to_vec())));
}

#[test]
fn overloaded_requests_are_understood() {
    let mut request = dhcp(3, &[(52, &[1])]);
    request[108..115].copy_from_slice(&[50, 4, 1, 2, 3, 4, 255]);
    assert_eq!(ask(&request).0, said("DHCP: nak to request"));
}

fn with_routes(prefix: u8, router: Option<[u8; 4]>, routes: &[([u8; 4], u8, [u8; 4])]) -> Net {
    let mut net = net();
    let v4 = net.v4.as_mut().unwrap();
    v4.prefix = prefix;
    v4.router = router.map(Ipv4Addr::from);
    v4.routes = routes
        .iter()
        .map(|(dst, prefix, via)| ((*dst).into(), *prefix, (*via).into()))
        .collect();
    net
}

/// A /32 address behind a link-local router, as in pods.
#[test]
fn a_router_outside_the_prefix_comes_with_a_route() {
    let net = with_routes(32, Some([169, 254, 1, 1]), &[]);
    assert_eq!(
        option(&net, 121).unwrap(),
        [32, 169, 254, 1, 1, 0, 0, 0, 0, 0, 169, 254, 1, 1]
    );
    assert_eq!(option(&net, 3).unwrap(), [169, 254, 1, 1]);
    assert_eq!(option(&net, 1).unwrap(), [255; 4]);
    assert_eq!(
        option(&with_routes(24, Some([192, 0, 2, 254]), &[]), 121),
        None
    );
    assert_eq!(option(&with_routes(0, Some([9, 9, 9, 9]), &[]), 121), None);
}

#[test]
fn further_routes_repeat_the_default_route() {
    let far = ([10, 0, 0, 0], 8, [192, 0, 2, 7]);
    let near = ([198, 51, 100, 0], 24, [0; 4]);
    let default = ([0; 4], 0, [192, 0, 2, 1]);
    let net = with_routes(24, Some([192, 0, 2, 1]), &[far, default, near]);
    let want = [
        &[0, 192, 0, 2, 1][..],
        &[24, 198, 51, 100, 0, 0, 0, 0],
        &[8, 10, 192, 0, 2, 7],
    ];
    assert_eq!(option(&net, 121).unwrap(), want.concat());
    let net = with_routes(24, None, &[far]);
    assert_eq!(option(&net, 121).unwrap(), want[2]);
    assert_eq!(option(&net, 3), None);
    assert_eq!(
        option(&with_routes(24, Some([192, 0, 2, 1]), &[default]), 121),
        None
    );
}

/// What a client without option 57 takes has not room for all routes there may be.
#[test]
fn of_many_routes_those_that_fit_are_told_and_the_router_first() {
    let routes: Vec<_> = (0..32)
        .map(|n| ([10, 9, 8, n], 32, [169, 254, 1, 1]))
        .collect();
    let router = [32, 169, 254, 1, 1, 0, 0, 0, 0, 0, 169, 254, 1, 1];
    for (addr, first) in [(Some([169, 254, 1, 1]), &router[..]), (None, &[])] {
        let net = with_routes(32, addr, &routes);
        let found = options_of(&net, &dhcp(1, &[(55, &[121, 6])]));
        let told: Vec<u8> = found
            .iter()
            .filter(|(code, _)| *code == 121)
            .flat_map(|(_, value)| value.clone())
            .collect();
        assert!(told.starts_with(first), "{told:?}");
        let more = told.len() - first.len();
        assert!(
            (10 * 9..32 * 9).contains(&more) && more.is_multiple_of(9),
            "{more}"
        );
        for code in [1, 6, 12, 51, 54] {
            assert!(found.iter().any(|(other, _)| *other == code), "{code}");
        }
        assert_eq!(found.iter().any(|(code, _)| *code == 3), addr.is_some());
    }
}

#[test]
fn switches_leave_out_names_mtu_and_nameservers() {
    for (code, switch) in [
        (6, (|net| net.serve.dhcp_dns = false) as fn(&mut Net)),
        (119, |net| net.serve.dhcp_search = false),
        (26, |net| net.announce_mtu = false),
        (12, |net| net.dns.hostname = None),
        (81, |net| net.dns.fqdn = None),
        (6, |net| net.v4.as_mut().unwrap().dns.clear()),
    ] {
        let mut net = net();
        assert!(option(&net, code).is_some());
        switch(&mut net);
        assert_eq!(option(&net, code), None, "{code}");
    }
}

#[test]
fn a_client_that_wants_dns_updates_hears_that_it_is_overridden() {
    let found = options_of(&net(), &dhcp(1, &[(81, &[0x05, 0, 0])]));
    let fqdn = found.iter().find(|(code, _)| *code == 81).unwrap();
    assert_eq!(fqdn.1[..3], [0x06, 255, 255]);
}

#[test]
fn what_is_switched_off_is_silent() {
    let (mut off, mut no_v4) = (net(), net());
    off.serve.dhcp = false;
    no_v4.v4 = None;
    for net in [off, no_v4] {
        assert_eq!(ask_of(&net, &dhcp(1, &[])).0, Answer::Silent(Why::Disabled));
    }
    let mut out = Vec::new();
    answer(GUEST_MAC, &dhcp(1, &[]), &net(), &mut out);
    assert_eq!(out[6..12], OUR_MAC.0);
}
