use super::*;
use crate::flow::Neighbour;
use crate::service::fixture::{
    GUEST_MAC, OUR_MAC, Opened, guest_link_local, guest6, neighbor_solicitation, net, open, ours6,
};

const NS: Answer = Answer::Reply(Some(Note::Ndp("received NS, sending NA")));
const RS: Answer = Answer::Reply(Some(Note::Ndp("received RS, sending RA")));
const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ROUTER_SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];

fn neighbor() -> Ipv6Addr {
    "2001:db8::99".parse().unwrap()
}

fn group() -> Ipv6Addr {
    "ff02::2".parse().unwrap()
}

/// Asks with the packet fields that vary; the reply taken apart, if there is one.
fn ask(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8], net: &Net) -> (Answer, Option<Opened>) {
    let mut guest = Guest::new(None, Some(guest6()));
    guest.saw_addr(guest_link_local().into());
    let mut out = vec![0xee; 300];
    let nobody = Neighbours::default();
    let answer = answer(
        GUEST_MAC, src, dst, 255, message, net, &guest, &nobody, &mut out,
    );
    let opened = matches!(answer, Answer::Reply(_)).then(|| open(&out));
    (answer, opened)
}

fn ask_for(src: Ipv6Addr, target: Ipv6Addr) -> (Answer, Option<Opened>) {
    ask(
        src,
        solicited_node(target),
        &neighbor_solicitation(target, &[]),
        &net(),
    )
}

/// The options of a message behind so many octets, as type, and the whole of it.
fn options(message: &[u8], fixed: usize) -> Vec<(u8, &[u8])> {
    let (mut found, mut rest) = (Vec::new(), &message[fixed..]);
    while !rest.is_empty() {
        let (option, behind) = rest.split_at(8 * usize::from(rest[1]));
        found.push((option[0], option));
        rest = behind;
    }
    found
}

fn advertisement(net: &Net) -> Vec<u8> {
    ask(guest_link_local(), group(), &ROUTER_SOLICITATION, net)
        .1
        .unwrap()
        .payload
}

/// N09: any address on the link leads to us.
#[test]
fn a_neighbor_is_at_our_mac() {
    for target in [neighbor(), ours6(), "fd00::1".parse().unwrap()] {
        let (answer, reply) = ask_for(guest_link_local(), target);
        let reply = reply.unwrap();
        assert_eq!(answer, NS);
        assert_eq!((reply.to, reply.hops), (GUEST_MAC, 255));
        assert_eq!(
            (reply.src, reply.dst),
            (target.into(), guest_link_local().into())
        );
        assert_eq!(reply.payload[..2], [136, 0]);
        assert_eq!(reply.payload[4..8], [0xe0, 0, 0, 0]);
        assert_eq!(reply.payload[8..24], target.octets());
        assert_eq!(reply.payload[24..], [&[2, 1][..], &OUR_MAC.0].concat());
    }
}

/// N12.
#[test]
fn a_known_neighbor_is_at_its_own_mac_and_says_whether_it_is_a_router() {
    let (net, guest) = (net(), Guest::new(None, None));
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    for (router, flags) in [(false, 0x60), (true, 0xe0)] {
        let mut neighbours = Neighbours::default();
        neighbours.note(
            &net,
            &Neighbour {
                interface: 2,
                addr: neighbor().into(),
                mac: Some(mac),
                router,
            },
        );
        let mut out = Vec::new();
        let message = neighbor_solicitation(neighbor(), &[]);
        let (src, group) = (guest6(), solicited_node(neighbor()));
        let answer = answer(
            GUEST_MAC,
            src,
            group,
            255,
            &message,
            &net,
            &guest,
            &neighbours,
            &mut out,
        );
        assert_eq!(answer, NS);
        let from_there = |frame: &[u8]| {
            assert_eq!(frame[6..12], mac.0);
            let mut frame = frame.to_vec();
            frame[6..12].copy_from_slice(&OUR_MAC.0);
            open(&frame)
        };
        let reply = from_there(&out);
        assert_eq!(reply.payload[4], flags);
        assert_eq!(reply.payload[24..], [&[2, 1][..], &mac.0].concat());
        announce(neighbor(), mac, router, &mut out);
        let told = from_there(&out);
        assert_eq!((told.src, told.dst), (neighbor().into(), ALL_NODES.into()));
        // Nobody solicited it.
        assert_eq!(told.payload[4], flags & !0x40);
        assert_eq!(told.payload[24..], reply.payload[24..]);
    }
}

#[test]
fn a_unicast_solicitation_is_answered_too() {
    let message = neighbor_solicitation(ours6(), &[1, 1, 2, 0, 0, 0, 0, 1]);
    assert_eq!(ask(guest6(), ours6(), &message, &net()).0, NS);
}

#[test]
fn the_guests_own_addresses_are_not_answered_for() {
    for target in [guest6(), guest_link_local()] {
        let answer = ask_for(guest_link_local(), target).0;
        assert_eq!(answer, Answer::Silent(Why::Unanswered));
    }
}

#[test]
fn duplicate_detection_finds_only_our_address_taken() {
    for target in [guest6(), guest_link_local(), neighbor()] {
        assert_eq!(ask_for(ANY, target).0, Answer::Silent(Why::Unanswered));
    }
    let (answer, reply) = ask_for(ANY, ours6());
    let reply = reply.unwrap();
    assert_eq!(answer, NS);
    assert_eq!(reply.to, Mac([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!((reply.src, reply.dst), (ours6().into(), ALL_NODES.into()));
    assert_eq!(reply.payload[4], 0xa0);
}

#[test]
fn invalid_solicitations_are_dropped() {
    let malformed = Answer::Silent(Why::Malformed);
    let link = [1, 1, 2, 0, 0, 0, 0, 1];
    let of_ours = neighbor_solicitation(ours6(), &link);
    let group = solicited_node(ours6());
    assert_eq!(
        ask(ANY, group, &of_ours, &net()).0,
        malformed,
        "link address without address"
    );
    let bare = neighbor_solicitation(ours6(), &[]);
    assert_eq!(
        ask(ANY, ours6(), &bare, &net()).0,
        malformed,
        "duplicate detection to unicast"
    );
    let with_link = [&ROUTER_SOLICITATION[..], &link].concat();
    assert_eq!(
        ask(ANY, group, &with_link, &net()).0,
        malformed,
        "link address without address"
    );
    let no_length = neighbor_solicitation(ours6(), &[14, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        ask(guest6(), group, &no_length, &net()).0,
        malformed,
        "option without length"
    );
    let of_group = neighbor_solicitation(ALL_NODES, &[]);
    let destination = Answer::Silent(Why::Destination);
    assert_eq!(ask(guest6(), group, &of_group, &net()).0, destination);
    let source = Answer::Silent(Why::Source);
    assert_eq!(ask(ALL_NODES, group, &bare, &net()).0, source);
    let guest = Guest::new(None, None);
    for message in [&bare[..], &ROUTER_SOLICITATION] {
        let far = answer(
            GUEST_MAC,
            guest6(),
            group,
            254,
            message,
            &net(),
            &guest,
            &Neighbours::default(),
            &mut Vec::new(),
        );
        assert_eq!(far, malformed, "came through a router");
    }
}

/// N04, N07, N16 and the whole content of an advertisement.
#[test]
fn a_router_solicitation_is_answered_with_all_the_guest_needs() {
    let (answer, reply) = ask(guest_link_local(), group(), &ROUTER_SOLICITATION, &net());
    let reply = reply.unwrap();
    assert_eq!(answer, RS);
    assert_eq!((reply.to, reply.hops), (GUEST_MAC, 255));
    assert_eq!(
        (reply.src, reply.dst),
        (ours6().into(), guest_link_local().into())
    );
    let ra = &reply.payload;
    assert_eq!(ra[..2], [134, 0]);
    assert_eq!(ra[4..16], [255, 0xc0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let options = options(ra, 16);
    assert_eq!(
        options.iter().map(|o| o.0).collect::<Vec<_>>(),
        [3, 1, 5, 25, 31]
    );
    let prefix: Ipv6Addr = "2001:db8::".parse().unwrap();
    assert_eq!(
        options[0].1[2..16],
        [&[64, 0xc0][..], &[0xff; 8], &[0; 4]].concat()
    );
    assert_eq!(options[0].1[16..], prefix.octets());
    assert_eq!(options[1].1[2..], OUR_MAC.0);
    assert_eq!(options[2].1[2..], [0, 0, 0, 0, 0xff, 0xf0]);
    assert_eq!(options[3].1[2..8], [0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(options[3].1[8..], net().v6.unwrap().dns[0].octets());
    assert_eq!(options[4].1[2..8], [0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(
        options[4].1[8..],
        *b"\x03one\x04test\x00\x03two\x04test\x00\0\0\0\0"
    );
}

/// X05.
#[test]
fn a_router_solicitation_from_nobody_is_answered_to_all_nodes() {
    let (answer, reply) = ask(ANY, group(), &ROUTER_SOLICITATION, &net());
    let reply = reply.unwrap();
    assert_eq!(answer, RS);
    assert_eq!(reply.to, Mac([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(reply.dst, IpAddr::V6(ALL_NODES));
}

/// N05.
#[test]
fn without_nameservers_no_search_domains_are_told() {
    let mut no_dns = net();
    no_dns.v6.as_mut().unwrap().dns.clear();
    let mut dns_off = net();
    dns_off.serve.dhcp_dns = false;
    let mut search_off = net();
    search_off.serve.dhcp_search = false;
    for (net, want) in [
        (no_dns, &[3, 1, 5][..]),
        (dns_off, &[3, 1, 5]),
        (search_off, &[3, 1, 5, 25]),
    ] {
        let ra = advertisement(&net);
        assert_eq!(
            options(&ra, 16).iter().map(|o| o.0).collect::<Vec<_>>(),
            want
        );
    }
}

#[test]
fn flags_prefix_lifetime_and_mtu_follow_the_network() {
    let mut changed = net();
    changed.serve.dhcpv6 = false;
    changed.announce_mtu = false;
    let ra = advertisement(&changed);
    assert_eq!(ra[5..8], [0, 0xff, 0xff]);
    assert!(options(&ra, 16).iter().all(|o| o.0 != 5));

    let mut local = net();
    local.v6.as_mut().unwrap().addr = None;
    let ra = advertisement(&local);
    assert_eq!(ra[5..8], [0, 0xff, 0xff]);
    assert!(options(&ra, 16).iter().all(|o| o.0 != 3));
    local.v6.as_mut().unwrap().router = None;
    assert_eq!(advertisement(&local)[5..8], [0, 0, 0]);
}

/// N03.
#[test]
fn what_is_switched_off_is_silent() {
    let disabled = Answer::Silent(Why::Disabled);
    let mut out = Vec::new();
    let (mut no_ra, mut no_ndp, mut no_v6) = (net(), net(), net());
    no_ra.serve.ra = false;
    no_ndp.serve.ndp = false;
    no_v6.v6 = None;
    for net in [&no_ra, &no_ndp, &no_v6] {
        assert_eq!(
            ask(guest6(), group(), &ROUTER_SOLICITATION, net).0,
            disabled
        );
        assert!(!advertise(net, &mut out));
    }
    let ns = neighbor_solicitation(neighbor(), &[]);
    let group = solicited_node(neighbor());
    assert_eq!(ask(guest6(), group, &ns, &no_ra).0, NS);
    assert_eq!(ask(guest6(), group, &ns, &no_ndp).0, disabled);
    assert!(!solicit(&no_v6, neighbor(), &mut out));
}

#[test]
fn the_periodic_advertisement_goes_to_all_nodes() {
    let mut out = vec![1; 9];
    assert!(advertise(&net(), &mut out));
    let opened = open(&out);
    assert_eq!((opened.src, opened.dst), (ours6().into(), ALL_NODES.into()));
    assert_eq!(opened.to, Mac([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(opened.payload, {
        let mut answered = ask(ANY, group(), &ROUTER_SOLICITATION, &net()).1.unwrap();
        std::mem::take(&mut answered.payload)
    });
}

#[test]
fn our_own_solicitation_goes_to_the_solicited_node_group() {
    let mut out = Vec::new();
    assert!(solicit(&net(), guest6(), &mut out));
    let opened = open(&out);
    assert_eq!(opened.to, Mac([0x33, 0x33, 0xff, 0, 0, 0x15]));
    assert_eq!(
        (opened.src, opened.dst),
        (ours6().into(), solicited_node(guest6()).into())
    );
    assert_eq!(opened.payload[8..24], guest6().octets());
    assert_eq!(opened.payload[24..], [&[1, 1][..], &OUR_MAC.0].concat());
}

#[test]
fn a_long_search_list_keeps_the_advertisement_within_the_mtu() {
    let mut net = net();
    net.mtu = 1280;
    net.dns.search = vec![[["x"; 50].concat().as_str(); 4].join("."); 8];
    let ra = advertisement(&net);
    assert!(ra.len() > 1000 && ra.len() <= 1240, "{}", ra.len());
}

/// It answers us, or tells of a move.
#[test]
fn an_advertisement_of_the_guests_is_no_malformed_request() {
    let mut message = neighbor_solicitation(guest6(), &[]);
    message[0] = 136;
    let (answer, _) = ask(guest6(), ours6(), &message, &net());
    assert_eq!(answer, Answer::Silent(Why::Unanswered));
}
