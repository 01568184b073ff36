use super::*;
use crate::{
    service::fixture::{
        GUEST_MAC, Opened, dhcpv6, guest_link_local, guest6, net, open, our_duid, ours6,
    },
    wire::dhcpv6::Options,
};

const CLIENT: &[u8] = &[0, 3, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56];
const IAID: [u8; 4] = [0xca, 0xfe, 0, 1];

fn said(said: &'static str) -> Answer {
    Answer::Reply(Some(Note::Dhcpv6(said)))
}

fn other() -> Ipv6Addr {
    "2001:db8:bad::1".parse().unwrap()
}

/// An IA_NA or IA_PD with `iaid` that names `addrs`.
fn association(iaid: [u8; 4], addrs: &[Ipv6Addr]) -> Vec<u8> {
    let mut value = [&iaid[..], &[0; 8]].concat();
    addrs
        .iter()
        .for_each(|addr| write_addr(&mut value, *addr, 7200));
    value
}

fn ask_of(net: &Net, src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> (Answer, Option<Opened>) {
    let mut out = vec![0xee; 400];
    let answer = answer(GUEST_MAC, src, dst, message, net, &mut out);
    let opened = matches!(answer, Answer::Reply(_)).then(|| open(&out));
    (answer, opened)
}

fn ask(message: &[u8]) -> (Answer, Option<Opened>) {
    ask_of(&net(), guest_link_local(), ALL_SERVERS, message)
}

fn options(payload: &[u8]) -> Vec<(u16, Vec<u8>)> {
    Options(&payload[4..])
        .map(|(code, value)| (code, value.to_vec()))
        .collect()
}

fn reply_to(message: &[u8]) -> (u8, Vec<(u16, Vec<u8>)>) {
    let reply = ask(message).1.unwrap();
    assert_eq!(reply.payload[1..4], message[1..4]);
    (reply.payload[0], options(&reply.payload))
}

fn codes(options: &[(u16, Vec<u8>)]) -> Vec<u16> {
    options.iter().map(|(code, _)| *code).collect()
}

fn status(status: Status) -> Vec<u8> {
    let mut value = Vec::new();
    write_status(&mut value, status);
    value
}

fn granted(iaid: [u8; 4]) -> Vec<u8> {
    let mut value = [&iaid[..], &[0xff; 8], &[0, 5, 0, 24]].concat();
    value.extend(guest6().octets());
    value.extend([0xff; 8]);
    value
}

fn refused(iaid: [u8; 4], why: Status) -> Vec<u8> {
    [&iaid[..], &[0; 8], &status(why)].concat()
}

fn message(kind: u8, associations: &[(u16, &[u8])]) -> Vec<u8> {
    let duid = our_duid();
    let mut options = vec![(code::CLIENT_ID, CLIENT)];
    if matches!(kind, 3 | 5 | 8 | 9) {
        options.push((code::SERVER_ID, &duid));
    }
    options.extend(associations);
    dhcpv6(kind, &options)
}

#[test]
fn a_solicit_is_advertised_the_address_and_the_settings() {
    let hint = association(IAID, &[other()]);
    let solicit = message(1, &[(3, &hint), (8, &[0, 0])]);
    let (answer, reply) = ask(&solicit);
    let reply = reply.unwrap();
    assert_eq!(answer, said("received SOLICIT, sending ADVERTISE"));
    assert_eq!(
        (reply.src, reply.dst),
        (ours6().into(), guest_link_local().into())
    );
    assert_eq!((reply.to, reply.ports), (GUEST_MAC, (547, 546)));
    assert_eq!(reply.payload[..4], [2, 0xab, 0xcd, 0xef]);
    let want = [
        (1, CLIENT.to_vec()),
        (2, our_duid()),
        (3, granted(IAID)),
        (23, net().v6.unwrap().dns[0].octets().to_vec()),
        (24, b"\x03one\x04test\x00\x03two\x04test\x00".to_vec()),
        (39, b"\x00\x05guest\x07example\x00".to_vec()),
    ];
    assert_eq!(options(&reply.payload), want);
}

/// D13.
#[test]
fn the_reply_goes_where_the_request_came_from() {
    let solicit = message(1, &[(3, &association(IAID, &[]))]);
    let reply = ask_of(&net(), guest6(), ALL_SERVERS, &solicit).1.unwrap();
    assert_eq!(reply.dst, IpAddr::V6(guest6()));
    for src in [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, ALL_SERVERS] {
        let answer = ask_of(&net(), src, ALL_SERVERS, &solicit).0;
        assert_eq!(answer, Answer::Silent(Why::Source));
    }
}

#[test]
fn rapid_commit_makes_a_solicit_a_request() {
    let solicit = message(1, &[(14, &[]), (3, &association(IAID, &[]))]);
    assert_eq!(
        ask(&solicit).0,
        said("received SOLICIT, sending REPLY (Rapid Commit)")
    );
    let (kind, options) = reply_to(&solicit);
    assert_eq!((kind, codes(&options)), (7, vec![1, 2, 14, 3, 23, 24, 39]));
    assert_eq!(options[3].1, granted(IAID));
    // Nothing to commit to.
    let (kind, options) = reply_to(&message(1, &[(14, &[]), (25, &association(IAID, &[]))]));
    assert_eq!((kind, codes(&options)), (2, vec![1, 2, 25, 23, 24, 39]));
}

#[test]
fn request_renew_and_rebind_confirm_the_address() {
    for (kind, note) in [
        (3, "received REQUEST, sending REPLY"),
        (5, "received RENEW, sending REPLY"),
        (6, "received REBIND, sending REPLY"),
    ] {
        for addrs in [&[guest6()][..], &[]] {
            let request = message(kind, &[(3, &association(IAID, addrs))]);
            assert_eq!(ask(&request).0, said(note));
            let (kind, options) = reply_to(&request);
            assert_eq!(kind, 7);
            assert_eq!(options[2], (3, granted(IAID)));
        }
    }
}

/// D16.
#[test]
fn a_request_for_a_foreign_address_is_not_on_link() {
    let request = message(3, &[(3, &association(IAID, &[other()]))]);
    let note = Note::NotOnLink {
        service: "DHCPv6",
        addr: other().into(),
    };
    assert_eq!(ask(&request).0, Answer::Reply(Some(note)));
    let (kind, options) = reply_to(&request);
    assert_eq!(
        (kind, &options[2]),
        (7, &(3, refused(IAID, Status::NotOnLink)))
    );
    assert_eq!(options[2].1[12..18], [0, 13, 0, 34, 0, 4]);
    assert_eq!(options[2].1[18..], *b"Prefix not appropriate for link.");
}

#[test]
fn a_foreign_address_is_renewed_for_no_time_beside_the_right_one() {
    for kind in [5, 6] {
        let request = message(kind, &[(3, &association(IAID, &[other(), guest6()]))]);
        let mut want = granted(IAID);
        write_addr(&mut want, other(), 0);
        assert_eq!(reply_to(&request).1[2], (3, want));
    }
}

#[test]
fn confirm_is_yes_or_no_or_silence() {
    for (addrs, want, note) in [
        (
            &[guest6()][..],
            Status::Success,
            "received CONFIRM, sending REPLY",
        ),
        (&[guest6(), other()], Status::NotOnLink, NOT_CONFIRMED),
    ] {
        let confirm = message(4, &[(3, &association(IAID, addrs))]);
        assert_eq!(ask(&confirm).0, said(note));
        let (kind, options) = reply_to(&confirm);
        assert_eq!((kind, codes(&options)), (7, vec![1, 2, 13]));
        assert_eq!(options[2].1, status(want)[4..]);
    }
    for associations in [&[][..], &[(3, &association(IAID, &[])[..])]] {
        let answer = ask(&message(4, associations)).0;
        assert_eq!(answer, Answer::Silent(Why::Unanswered));
    }
}

#[test]
fn release_and_decline_succeed() {
    for (kind, note) in [
        (8, "received RELEASE, sending REPLY"),
        (9, "received DECLINE, sending REPLY"),
    ] {
        let request = message(kind, &[(3, &association(IAID, &[guest6()]))]);
        assert_eq!(ask(&request).0, said(note));
        let (kind, options) = reply_to(&request);
        assert_eq!((kind, codes(&options)), (7, vec![1, 2, 13]));
        assert_eq!(options[2].1, [0, 0]);
    }
}

/// X06.
#[test]
fn only_what_was_asked_is_answered() {
    let temporary = [&IAID[..], &status(Status::NoAddrsAvail)].concat();
    let prefix = refused(IAID, Status::NoPrefixAvail);
    for (asked, want) in [
        (vec![], vec![]),
        (
            vec![(25, association(IAID, &[]))],
            vec![(25, prefix.clone())],
        ),
        (vec![(4, IAID.to_vec())], vec![(4, temporary.clone())]),
        (
            vec![
                (4, IAID.to_vec()),
                (25, association(IAID, &[])),
                (3, association([1; 4], &[])),
            ],
            vec![(4, temporary), (25, prefix), (3, granted([1; 4]))],
        ),
        (vec![(3, vec![0; 11])], vec![]),
    ] {
        let asked: Vec<_> = asked
            .iter()
            .map(|(code, value)| (*code, &value[..]))
            .collect();
        let found = reply_to(&message(1, &asked)).1;
        let found = &found[2..found.len() - 3];
        assert_eq!(found, want);
    }
}

#[test]
fn information_is_told_without_addresses() {
    let duid = our_duid();
    for (options, want) in [
        (&[][..], vec![2, 23, 24, 39]),
        (&[(1, CLIENT)], vec![1, 2, 23, 24, 39]),
        (&[(2, &duid[..])], vec![2, 23, 24, 39]),
    ] {
        let request = dhcpv6(11, options);
        assert_eq!(
            ask(&request).0,
            said("received INFORMATION-REQUEST, sending REPLY")
        );
        let (kind, found) = reply_to(&request);
        assert_eq!((kind, codes(&found)), (7, want));
    }
}

#[test]
fn the_first_association_gets_the_address() {
    let (first, second) = (association([1; 4], &[]), association([2; 4], &[]));
    for kind in [1, 3, 5, 6] {
        let (_, options) = reply_to(&message(kind, &[(3, &first), (3, &second)]));
        assert_eq!(options[2], (3, granted([1; 4])));
        assert_eq!(options[3], (3, refused([2; 4], Status::NoAddrsAvail)));
    }
}

#[test]
fn without_an_address_there_is_none_to_give() {
    let mut net = net();
    net.v6.as_mut().unwrap().addr = None;
    for kind in [1, 3, 5, 6] {
        let request = message(kind, &[(14, &[]), (3, &association(IAID, &[]))]);
        let reply = ask_of(&net, guest_link_local(), ALL_SERVERS, &request)
            .1
            .unwrap();
        assert_eq!(reply.payload[0], if kind == 1 { 2 } else { 7 });
        assert_eq!(
            options(&reply.payload)[2],
            (3, refused(IAID, Status::NoAddrsAvail))
        );
    }
}

#[test]
fn identifiers_are_required_and_forbidden_by_message_type() {
    let (ours, other) = (our_duid(), [0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let (ours, other) = (Some(&ours[..]), Some(&other[..]));
    let (absent, long, longest) = (None, Some(&[7; 131][..]), Some(&[7; 130][..]));
    let client = Some(CLIENT);
    let ia = association(IAID, &[guest6()]);
    for (kinds, client, server, answered) in [
        (&[1, 4, 6][..], client, absent, true),
        (&[1, 4, 6], client, ours, false),
        (&[1, 3, 4, 5, 6, 8, 9], absent, absent, false),
        (&[3, 5, 8, 9], client, ours, true),
        (&[3, 5, 8, 9], client, absent, false),
        (&[3, 5, 8, 9], client, other, false),
        (&[3, 5, 8, 9], absent, ours, false),
        (&[3, 5, 8, 9], long, ours, false),
        (&[3, 5, 8, 9], longest, ours, true),
        (&[1, 4, 6], Some(&[0, 3][..]), absent, false),
        (&[2, 7], client, ours, false),
        (&[2, 7], client, absent, false),
        (&[11], client, absent, false),
    ] {
        for &kind in kinds {
            let ids = [(1, client), (2, server), (3, Some(&ia[..]))];
            let options: Vec<_> = ids
                .iter()
                .filter_map(|(code, id)| Some((*code, (*id)?)))
                .collect();
            let replied = ask(&dhcpv6(kind, &options)).1.is_some();
            assert_eq!(replied, answered, "type {kind} {client:?} {server:?}");
        }
    }
    assert!(ask(&dhcpv6(11, &[(2, other.unwrap())])).1.is_none());
}

#[test]
fn unicast_is_told_to_use_multicast_or_nothing() {
    let ia = association(IAID, &[guest6()]);
    for kind in [3, 5, 8, 9] {
        let reply = ask_of(&net(), guest6(), ours6(), &message(kind, &[(3, &ia)]))
            .1
            .unwrap();
        let options = options(&reply.payload);
        assert_eq!((reply.payload[0], codes(&options)), (7, vec![1, 2, 13]));
        assert_eq!(options[2].1[..2], [0, 5]);
    }
    let silent = Answer::Silent(Why::Unanswered);
    for kind in [1, 4, 6, 11] {
        assert_eq!(
            ask_of(&net(), guest6(), ours6(), &message(kind, &[])).0,
            silent
        );
    }
    assert_eq!(
        ask_of(&net(), guest6(), other(), &message(1, &[])).0,
        silent
    );
}

#[test]
fn settings_are_told_only_where_configured() {
    let solicit = message(1, &[]);
    for (code, switch) in [
        (23, (|net| net.serve.dhcp_dns = false) as fn(&mut Net)),
        (23, |net| net.v6.as_mut().unwrap().dns.clear()),
        (24, |net| net.serve.dhcp_search = false),
        (24, |net| net.dns.search.clear()),
        (39, |net| net.dns.fqdn = None),
    ] {
        let mut net = net();
        switch(&mut net);
        let reply = ask_of(&net, guest6(), ALL_SERVERS, &solicit).1.unwrap();
        let mut want = vec![1, 2, 23, 24, 39];
        want.retain(|other| *other != code);
        assert_eq!(codes(&options(&reply.payload)), want);
    }
    let wish = message(1, &[(39, &[0x01, 0])]);
    let fqdn = reply_to(&wish).1.pop().unwrap();
    assert_eq!((fqdn.0, fqdn.1[0]), (39, 0x02));
}

#[test]
fn a_reply_keeps_to_the_mtu_whatever_is_asked() {
    let mut net = net();
    net.mtu = 1280;
    let many: Vec<_> = (0..5000_u128).map(Ipv6Addr::from_bits).collect();
    let ias: Vec<_> = (0..100_u32)
        .map(|n| association(n.to_be_bytes(), &many[..3]))
        .collect();
    let ia = association(IAID, &many[..2000]);
    let mut asked = vec![(3, &ia[..])];
    asked.extend(ias.iter().map(|ia| (3, &ia[..])));
    let reply = ask_of(&net, guest6(), ALL_SERVERS, &message(5, &asked))
        .1
        .unwrap();
    assert!((1000..=1232).contains(&reply.payload.len()));
}

#[test]
fn what_is_switched_off_or_malformed_is_silent() {
    let solicit = message(1, &[]);
    let (mut off, mut no_v6) = (net(), net());
    off.serve.dhcpv6 = false;
    no_v6.v6 = None;
    for net in [off, no_v6] {
        let answer = ask_of(&net, guest6(), ALL_SERVERS, &solicit).0;
        assert_eq!(answer, Answer::Silent(Why::Disabled));
    }
    let malformed = Answer::Silent(Why::Malformed);
    assert_eq!(ask(&solicit[..solicit.len() - 1]).0, malformed);
    assert_eq!(ask(&dhcpv6(12, &[(1, CLIENT)])).0, malformed);
}

#[test]
fn search_domains_that_are_no_names_are_no_option() {
    let mut net = net();
    net.dns.search = vec!["no..name".to_owned()];
    let request = dhcpv6(1, &[(1, CLIENT), (3, &association(IAID, &[]))]);
    let reply = ask_of(&net, guest_link_local(), ALL_SERVERS, &request);
    let found = codes(&options(&reply.1.unwrap().payload));
    assert!(found.contains(&23) && !found.contains(&24), "{found:?}");
}
