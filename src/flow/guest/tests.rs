use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn guest() -> Guest {
    let mut guest = Guest::new(Some([10, 0, 2, 15].into()), None);
    guest.saw_mac(Mac([2, 0, 0, 0, 0, 1]));
    guest
}

#[test]
fn a_guest_is_where_it_was_heard_last() {
    let mut guest = guest();
    assert_eq!(guest.address_for(ip("192.0.2.1")), Some(ip("10.0.2.15")));
    assert!(!guest.is_at(ip("10.0.2.15")));
    for addr in ["10.0.2.15", "10.0.2.16", "fe80::1", "2001:db8::1"] {
        guest.saw_addr(ip(addr));
        assert!(guest.is_at(ip(addr)));
    }
    assert_eq!(guest.address_for(ip("192.0.2.1")), Some(ip("10.0.2.16")));
    assert_eq!(
        guest.address_for(ip("2001:db8::2")),
        Some(ip("2001:db8::1"))
    );
    assert_eq!(guest.address_for(ip("fe80::2")), Some(ip("fe80::1")));
    guest.left();
    assert!(!guest.is_at(ip("10.0.2.16")));
}

/// Regression C18.
#[test]
fn a_pinned_guest_stays_where_it_was_put() {
    let mut guest = guest();
    guest.pin(true, false);
    guest.saw_addr(ip("10.0.2.99"));
    assert_eq!(guest.address_for(ip("192.0.2.1")), Some(ip("10.0.2.15")));
}

#[test]
fn only_so_many_addresses_are_remembered_the_latest_ones() {
    let mut guest = guest();
    let most = HEARD as u8;
    for host in 1..=12 + most {
        guest.saw_addr([10, 0, 0, host].into());
    }
    guest.saw_addr(ip("10.0.0.13"));
    assert!(guest.is_at(ip("10.0.0.13")) && guest.is_at([10, 0, 0, 12 + most].into()));
    assert!(!guest.is_at(ip("10.0.0.12")));
}

/// Regression N10: what has no address cannot be found there.
#[test]
fn a_probed_address_is_where_to_look_until_one_is_heard() {
    let mut guest = guest();
    guest.saw_addr(ip("::"));
    guest.saw_probe("2001:db8::7".parse().unwrap());
    assert_eq!(
        guest.address_for(ip("2001:db8::2")),
        Some(ip("2001:db8::7"))
    );
    guest.saw_addr(ip("2001:db8::8"));
    guest.saw_probe("2001:db8::9".parse().unwrap());
    assert_eq!(
        guest.address_for(ip("2001:db8::2")),
        Some(ip("2001:db8::8"))
    );
}
const MACS: [Mac; 3] = [
    Mac([2, 0, 0, 0, 0, 1]),
    Mac([2, 0, 0, 0, 0, 2]),
    Mac([2, 0, 0, 0, 0, 3]),
];

/// A packet of this machine from the last address of these.
fn says(guest: &mut Guest, mac: Mac, host: u8) -> IpAddr {
    let addr = [10, 0, 2, host].into();
    guest.saw_frame(mac, Some(addr), Now(guest.last.0 + 1));
    guest.saw_addr(addr);
    addr
}

#[test]
fn each_address_is_at_the_machine_that_was_heard_there() {
    let mut guest = Guest::new(None, None);
    let addrs = [2, 3].map(|host| says(&mut guest, MACS[usize::from(host - 2)], host));
    let news = guest.news();
    for _ in 0..3 {
        for (addr, mac) in addrs.into_iter().zip(MACS) {
            guest.saw_frame(mac, Some(addr), Now(9));
            assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[0], MACS[1]]);
        }
    }
    assert_eq!(guest.news(), news, "nothing is new");
    assert_eq!(guest.mac_at(ip("10.0.2.4")), MACS[1], "where it may be");
    // One takes an address of the other, as a cluster does.
    says(&mut guest, MACS[2], 4);
    says(&mut guest, MACS[0], 2);
    assert_eq!(says(&mut guest, MACS[1], 4), ip("10.0.2.4"));
    let places = [2, 3, 4].map(|host| guest.mac_at([10, 0, 2, host].into()));
    assert_eq!(places, [MACS[0], MACS[1], MACS[1]]);
    assert!(guest.news() > news);
}

#[test]
fn an_address_that_goes_on_talking_is_not_forgotten() {
    let mut guest = Guest::new(None, None);
    let talks = says(&mut guest, MACS[0], 2);
    for host in 3..=3 + HEARD as u8 {
        says(&mut guest, MACS[1], host);
        guest.saw_frame(MACS[0], Some(talks), Now(guest.last.0 + 1));
    }
    assert!(guest.is_at(talks));
    assert_eq!(guest.mac_at(talks), MACS[0]);
}

#[test]
fn what_is_silent_follows_a_guest_that_changes_its_mac_address() {
    let mut guest = Guest::new(None, None);
    let addrs = [2, 3, 4].map(|host| says(&mut guest, MACS[0], host));
    guest.saw_frame(MACS[1], Some(addrs[1]), Now(9));
    assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[1]; 3]);
    guest.saw_frame(MACS[2], None, Now(10));
    guest.saw_frame(MACS[2], Some(addrs[0]), Now(11));
    assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[2]; 3]);
}

#[test]
fn a_machine_that_is_heard_again_has_what_it_had() {
    let mut guest = Guest::new(None, None);
    let addrs = [2, 3, 4].map(|host| says(&mut guest, MACS[0], host));
    says(&mut guest, MACS[1], 3);
    assert_eq!(guest.mac_at(addrs[0]), MACS[1]);
    guest.saw_frame(MACS[0], Some(addrs[2]), Now(9));
    let places = addrs.map(|addr| guest.mac_at(addr));
    assert_eq!(places, [MACS[0], MACS[1], MACS[0]]);
}

/// Each of two relays hears one of the machines, and of the other by what it is told.
#[test]
fn what_was_heard_elsewhere_makes_no_machine_another() {
    let mut here = Guest::new(None, None);
    let own = says(&mut here, MACS[0], 2);
    let shared = says(&mut here, MACS[0], 3);
    // The other has heard both machines when the second takes an address of the first.
    let mut there = here;
    says(&mut there, MACS[1], 4);
    there.saw_frame(MACS[0], None, Now(8));
    there.saw_frame(MACS[1], Some(shared), Now(9));
    assert_eq!([own, shared].map(|addr| there.mac_at(addr)), MACS[..2]);
    here.hear_of(&there);
    assert_eq!([own, shared].map(|addr| here.mac_at(addr)), MACS[..2]);
    // And the first takes it back.
    here.saw_frame(MACS[0], Some(shared), Now(10));
    let places = [own, shared, ip("10.0.2.4")].map(|addr| here.mac_at(addr));
    assert_eq!(places, [MACS[0], MACS[0], MACS[1]]);
}

#[test]
fn a_machine_that_was_heard_elsewhere_again_has_what_it_had() {
    let mut here = Guest::new(None, None);
    let addrs = [2, 3, 4].map(|host| says(&mut here, MACS[0], host));
    let mut there = here;
    says(&mut here, MACS[1], 3);
    assert_eq!(here.mac_at(addrs[0]), MACS[1]);
    there.saw_frame(MACS[0], Some(addrs[0]), Now(8));
    there.saw_frame(MACS[2], None, Now(9));
    here.hear_of(&there);
    let places = addrs.map(|addr| here.mac_at(addr));
    assert_eq!(places, [MACS[0], MACS[1], MACS[0]]);
}

#[test]
fn what_is_silent_follows_a_guest_that_was_heard_elsewhere() {
    let mut here = Guest::new(None, None);
    let addrs = [2, 3, 4].map(|host| says(&mut here, MACS[0], host));
    let mut there = here;
    for (at, mac) in [(1, MACS[1]), (0, MACS[2])] {
        says(&mut there, mac, 2 + at);
        here.hear_of(&there);
        assert_eq!(addrs.map(|addr| here.mac_at(addr)), [mac; 3]);
    }
}

#[test]
fn of_what_two_have_heard_the_latest_counts() {
    let mut here = Guest::new(None, None);
    let addr = says(&mut here, MACS[0], 2);
    let mut there = here;
    says(&mut there, MACS[1], 2);
    let before = here;
    here.hear_of(&there);
    assert_eq!(here.mac_at(addr), MACS[1]);
    assert_ne!(here.news(), before.news());
    here.hear_of(&before);
    assert_eq!(here.mac_at(addr), MACS[1]);
}

/// One relay has heard the guest before that changed its MAC address, the other after.
#[test]
fn what_is_silent_follows_a_guest_that_is_elsewhere_now() {
    let mut here = Guest::new(None, None);
    let addrs = [2, 3].map(|host| says(&mut here, MACS[0], host));
    let mut there = Guest::new(None, None);
    there.saw_frame(MACS[1], None, Now(8));
    says(&mut there, MACS[1], 2);
    here.hear_of(&there);
    there.hear_of(&here);
    for guest in [here, there] {
        assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[1]; 2]);
    }
}

#[test]
fn an_address_that_was_heard_elsewhere_is_not_in_doubt() {
    let mut here = Guest::new(None, None);
    let addr = says(&mut here, MACS[0], 2);
    let mut there = here;
    says(&mut here, MACS[1], 3);
    assert!(here.may_have_moved(addr));
    there.saw_frame(MACS[0], Some(addr), Now(9));
    here.hear_of(&there);
    assert!(!here.may_have_moved(addr));
}

#[test]
fn an_address_that_was_heard_elsewhere_before_is_behind_those_heard_here_since() {
    let mut there = Guest::new(None, None);
    let before = says(&mut there, MACS[0], 2);
    let mut here = Guest::new(None, None);
    here.last = Now(9);
    let since = says(&mut here, MACS[0], 3);
    here.hear_of(&there);
    there.hear_of(&here);
    for guest in [here, there] {
        assert_eq!(guest.address_for(ip("192.0.2.1")), Some(since));
        assert!(guest.heard().eq([since, before]));
    }
    // However many these are.
    for host in 0..HEARD as u8 {
        says(&mut there, MACS[0], 4 + host);
        says(&mut here, MACS[0], 100 + host);
    }
    here.last = Now(100);
    let since = says(&mut here, MACS[0], 3);
    here.hear_of(&there);
    assert_eq!(here.heard().next(), Some(since));
}

/// What others say comes late.
#[test]
fn what_was_never_heard_may_be_where_the_last_frame_came_from() {
    let mut here = Guest::new(None, None);
    says(&mut here, MACS[0], 2);
    let mut there = here;
    says(&mut there, MACS[1], 3);
    here.saw_frame(MACS[0], None, Now(9));
    here.hear_of(&there);
    assert_eq!(here.mac_at(ip("10.0.2.4")), MACS[0]);
    there.hear_of(&here);
    assert_eq!(there.mac_at(ip("10.0.2.4")), MACS[0]);
}

/// One had an address taken over by a second machine; then another by a third.
#[test]
fn a_machine_that_is_heard_again_has_what_it_had_whatever_others_did_since() {
    let mut guest = Guest::new(None, None);
    let another = Mac([2, 0, 0, 0, 0, 4]);
    says(&mut guest, another, 5);
    let addrs = [2, 3].map(|host| says(&mut guest, MACS[0], host));
    says(&mut guest, MACS[1], 3);
    assert_eq!(addrs.map(|addr| guest.mac_at(addr)), [MACS[1]; 2]);
    says(&mut guest, MACS[2], 5);
    guest.saw_frame(MACS[0], None, Now(20));
    assert_eq!(addrs.map(|addr| guest.mac_at(addr)), MACS[..2]);
}

/// A second machine takes an address of the first, which then is heard again by a relay that was told of this.
#[test]
fn what_was_heard_elsewhere_has_not_come_along() {
    let mut here = Guest::new(None, None);
    let [kept, taken] = [3, 4].map(|host| says(&mut here, MACS[0], host));
    let mut there = here;
    says(&mut here, MACS[1], 4);
    there.hear_of(&here);
    assert_eq!([kept, taken].map(|addr| there.mac_at(addr)), [MACS[1]; 2]);
    there.saw_frame(MACS[0], None, Now(9));
    assert_eq!([kept, taken].map(|addr| there.mac_at(addr)), MACS[..2]);
}

proptest::proptest! {
    /// As long as they tell each other at once, and whatever they hear.
    #[test]
    fn what_each_of_two_hears_both_know(
        frames in proptest::collection::vec((0..2_usize, 0..3_usize, 2..5_u8), 1..9)
    ) {
        let mut both = [Guest::new(None, None); 2];
        for (at, (hears, mac, host)) in frames.into_iter().enumerate() {
            both[hears].last = Now(at as u64);
            says(&mut both[hears], MACS[mac], host);
            let told = both[hears];
            both[1 - hears].hear_of(&told);
        }
        let [here, there] = both;
        for host in 2..5 {
            let addr = [10, 0, 2, host].into();
            assert_eq!(here.mac_at(addr), there.mac_at(addr), "{addr}");
        }
    }
}
