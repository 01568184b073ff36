//! The grammar, item by item, and against a model.

use proptest::prelude::*;

use super::*;

const ALL_ON: Enabled = Enabled {
    v4: true,
    v6: true,
    tcp: true,
    udp: true,
};

/// The rules of several specifiers for TCP, on a host whose ephemeral ports are 32768 to 60999.
fn tcp(specs: &[&str]) -> Result<Vec<Rule>, String> {
    gathered(specs)?.finish(ALL_ON).map(|(rules, _)| rules)
}

fn gathered(specs: &[&str]) -> Result<Forwards, String> {
    let mut forwards = Forwards::default();
    for spec in specs {
        forwards.add(Protocol::Tcp, spec, &(32_768..=60_999))?;
    }
    Ok(forwards)
}

/// One rule in short: `127.0.0.1%lo 80-90>10.0.0.1 8080 ?`, the question mark for best effort.
fn short(rule: &Rule) -> String {
    let addr = rule.addr.map(|a| a.to_string()).unwrap_or_default();
    let interface = rule.interface.as_ref().map(|i| format!("%{i}"));
    let host = format!("{addr}{}", interface.unwrap_or_default());
    let host = if host.is_empty() { host } else { host + " " };
    let ports = match (rule.first, rule.last) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let target = rule.target.map(|a| format!("{a} ")).unwrap_or_default();
    let to = match rule.map.guest(rule.first) {
        to if to == rule.first && target.is_empty() => String::new(),
        to => format!(">{target}{to}"),
    };
    format!(
        "{host}{ports}{to}{}",
        if rule.best_effort { " ?" } else { "" }
    )
}

fn shorts(specs: &[&str]) -> Vec<String> {
    tcp(specs).unwrap().iter().map(short).collect()
}

/// Regressions C22, C39, C40, C41 and C42.
#[test]
fn each_form_of_a_specifier_is_understood() {
    let cases: &[(&str, &[&str])] = &[
        ("none", &[]),
        ("22", &["22"]),
        ("65535", &["65535"]),
        ("65534-65535", &["65534-65535"]),
        ("22,25", &["22", "25"]),
        ("22-80", &["22-80"]),
        ("443:344", &["443>344"]),
        ("22-80:32-90", &["22-80>32"]),
        ("5000-5000:6000", &["5000>6000"]),
        ("192.0.2.1/22", &["192.0.2.1 22"]),
        ("[192.0.2.1]/22", &["192.0.2.1 22"]),
        ("::1/22", &["::1 22"]),
        ("[::1]/80", &["::1 80"]),
        ("::ffff:127.0.0.1/80", &["127.0.0.1 80"]),
        ("*/22", &["22"]),
        ("[*]/22", &["22"]),
        ("*%eth0/22", &["%eth0 22"]),
        ("%eth0/2022", &["%eth0 2022"]),
        ("%enp0s31f6a1b2c3/2022", &["%enp0s31f6a1b2c3 2022"]),
        ("127.0.0.1%lo/22", &["127.0.0.1%lo 22"]),
        ("[fe80::1]%eth0/22", &["fe80::1%eth0 22"]),
        ("0.0.0.0/22", &["0.0.0.0 22"]),
        (
            "127.0.0.2/22222:10.9.9.9/22",
            &["127.0.0.2 22222>10.9.9.9 22"],
        ),
        ("[::1]/22:[2001:db8::1]/2222", &["::1 22>2001:db8::1 2222"]),
        ("[::1]/22:2001:db8::1/2222", &["::1 22>2001:db8::1 2222"]),
        ("127.0.0.2/22:10.9.9.9", &["127.0.0.2 22>10.9.9.9 22"]),
        ("2000-2005,~2003", &["2000-2002", "2004-2005"]),
        ("~22-30,20-25", &["20-21"]),
        ("2000-2002:80-82,~2001", &["2000>80", "2002>82"]),
        ("~22222,22222:80", &[]),
        // As strtoul(3) has it.
        (" 22, +80,0090", &["22", "80", "90"]),
    ];
    for (spec, wanted) in cases {
        assert_eq!(shorts(&[spec]), *wanted, "{spec}");
    }
}

/// Regressions C24 and C25.
#[test]
fn all_spares_port_zero_and_the_ephemeral_ports() {
    assert_eq!(shorts(&["all"]), ["1-32767 ?", "61000-65535 ?"]);
    assert_eq!(shorts(&["%lo/all"]), ["%lo 1-32767 ?", "%lo 61000-65535 ?"]);
    assert_eq!(
        shorts(&["127.0.0.6/all:192.0.2.6,~9-70000"
            .replace("70000", "65535")
            .as_str()]),
        ["127.0.0.6 1-8>192.0.2.6 1 ?"]
    );
    assert_eq!(
        shorts(&["~2-15,~10-32767"]),
        ["1 ?", "61000-65535 ?"],
        "overlapping excludes"
    );
    assert_eq!(
        shorts(&["::1/~15000"]),
        ["::1 1-14999 ?", "::1 15001-32767 ?", "::1 61000-65535 ?"]
    );
    // Named ports are served even in the ephemeral range.
    assert_eq!(shorts(&["40000"]), ["40000"]);
}

#[test]
fn excludes_with_ports_leave_only_these() {
    let istio = "~15000,~15001,~15090,3389,443";
    assert_eq!(shorts(&[istio]), ["3389", "443"]);
}

#[test]
fn named_ports_win_over_all_whatever_their_order() {
    let around = ["1-8000 ?", "8002-32767 ?", "61000-65535 ?"];
    let mut wanted = vec!["8001>22"];
    wanted.extend(around);
    assert_eq!(shorts(&["all,8001:22"]), wanted);
    assert_eq!(shorts(&["8001:22", "all"]), wanted);
    let mut wanted = around.to_vec();
    wanted.push("8001>22");
    assert_eq!(shorts(&["all", "8001:22"]), wanted);
    assert_eq!(shorts(&["~8001", "8001:22"]), wanted);
    // One address more is one socket the kernel refuses beside the one at every address.
    let at_lo = shorts(&["all", "127.0.0.1/8001:22"]);
    assert_eq!(at_lo[..3], around);
    assert_eq!(at_lo[3], "127.0.0.1 8001>22");
    assert_eq!(
        shorts(&["127.0.0.1/all", "127.0.0.2/8001"]),
        [
            "127.0.0.1 1-32767 ?",
            "127.0.0.1 61000-65535 ?",
            "127.0.0.2 8001"
        ]
    );
}

/// Regression C05.
#[test]
fn what_sockets_can_tell_apart_does_not_overlap() {
    for specs in [
        ["80", "81"],
        ["127.0.0.1/80", "127.0.0.2/80:8080"],
        ["0.0.0.0/80", "::/80:8080"],
        ["%eth0/80", "%eth1/80:8080"],
        ["127.0.0.1%eth0/80", "*%eth1/80:8080"],
        ["8000-9000,~8001", "8001:80"],
        ["127.0.0.1/all", "::1/all"],
    ] {
        tcp(&specs).unwrap();
    }
    for specs in [
        ["8000-9000", "8001"],
        ["22222", "22222"],
        ["80:8080", "127.0.0.1/80:8888"],
        ["127.0.0.1/80", "80:8080"],
        ["::/80", "::1/80:8080"],
        ["80", "%eth0/80:8080"],
        ["127.0.0.1%eth0/80", "*%eth0/80"],
        ["all", "all"],
        ["~80", "127.0.0.1/all:10.0.0.9"],
    ] {
        let said = format!("Overlapping port specifier {}", specs[1]);
        assert_eq!(tcp(&specs), Err(said), "{specs:?}");
    }
    let within = tcp(&["8000-9000,8001"]);
    assert_eq!(
        within,
        Err("Overlapping port specifier 8000-9000,8001".to_owned())
    );
}

#[test]
fn tcp_and_udp_do_not_overlap() {
    let mut forwards = gathered(&["80"]).unwrap();
    forwards.add(Protocol::Udp, "80", &(1..=1)).unwrap();
    let (rules, _) = forwards.finish(ALL_ON).unwrap();
    assert_eq!(rules.len(), 2);
    assert_eq!(rules[0].option, "-t 80");
    assert_eq!(rules[1].option, "-u 80");
}

#[test]
fn what_is_no_specifier_is_refused() {
    for spec in [
        "",
        ",",
        "22,",
        ",22",
        "x",
        "-1",
        "1-",
        "65536",
        "22,65536",
        "22-21",
        "2 2",
        "22 ",
        "2000-2001:3000",
        "2000:3000-3001",
        "2000:65536",
        "2000-2001:65535-65536",
        "22:",
        "22:/80",
        "22:none",
        "22:*/80",
        "22:127.0.0.1/80",
        "22:224.0.0.1",
        "~",
        "~x",
        "~all",
        "all:80",
        "all,all",
        "all-90",
        "22,none",
        "127.0.0.1/",
        "127.0.0.1/none",
        "/22",
        "%/22",
        "lo/22",
        "[127.0.0.1%lo]/22",
        "[]/22",
        "[]%lo/22",
        "300.1.1.1/22",
        "%abcdefghijklmnop/22",
        "%a b/22",
        "1-2-3",
        "++1",
        "٣",
    ] {
        let said = format!("Invalid port specifier {spec}");
        assert_eq!(tcp(&[spec]), Err(said), "{spec:?}");
    }
}

#[test]
fn port_zero_is_never_forwarded() {
    for (spec, said) in [
        ("0", "Can't forward port 0 for option '-t 0'"),
        ("0-5", "Can't forward port 0 for option '-t 0-5'"),
        ("80:0", "Can't forward to port 0 for option '-t 80:0'"),
    ] {
        assert_eq!(tcp(&[spec]), Err(said.to_owned()));
    }
}

#[test]
fn none_cannot_take_back_what_was_asked() {
    assert_eq!(shorts(&["none", "none", "22"]), ["22"]);
    assert_eq!(
        tcp(&["22", "none"]),
        Err("-t none conflicts with previous options".to_owned())
    );
    let mut forwards = gathered(&["22"]).unwrap();
    assert_eq!(forwards.add(Protocol::Udp, "none", &(1..=1)), Ok(()));
}

#[test]
fn auto_is_for_pasta() {
    for spec in ["auto", "22,auto", "::1/auto"] {
        assert_eq!(
            tcp(&[spec]),
            Err("'auto' port forwarding is only allowed for pasta".to_owned())
        );
    }
}

/// Regressions C04 and C21.
#[test]
fn what_is_not_enabled_cannot_be_forwarded() {
    let refused = |spec, enabled| gathered(&[spec]).unwrap().finish(enabled).unwrap_err();
    let no_tcp = Enabled {
        tcp: false,
        ..ALL_ON
    };
    let v4 = Enabled {
        v6: false,
        ..ALL_ON
    };
    let v6 = Enabled {
        v4: false,
        ..ALL_ON
    };
    assert_eq!(
        refused("22", no_tcp),
        "Can't add TCP forwarding rule, TCP not enabled for option '-t 22'"
    );
    assert_eq!(
        refused("192.0.2.1/80", v6),
        "IPv4 forward, but IPv4 not enabled for option '-t 192.0.2.1/80'"
    );
    assert_eq!(
        refused("::1/all", v4),
        "IPv6 forward, but IPv6 not enabled for option '-t ::1/all'"
    );
    assert_eq!(
        refused("22:[2001:db8::1]", ALL_ON),
        "Dual stack forward to IPv6 address 2001:db8::1 unsupported for option '-t 22:[2001:db8::1]'"
    );
    assert_eq!(
        refused("127.0.0.1/22:[2001:db8::1]", ALL_ON),
        "Forward from IPv4 (127.0.0.1) to IPv6 (2001:db8::1) unsupported for option '-t 127.0.0.1/22:[2001:db8::1]'"
    );
    let target = gathered(&["22:10.0.0.9"]).unwrap().finish(v4).unwrap();
    assert_eq!(short(&target.0[0]), "22>10.0.0.9 22");
    assert_eq!(gathered(&["none"]).unwrap().finish(no_tcp).unwrap().0, []);
}

#[test]
fn an_option_without_effect_is_warned_of() {
    let (rules, warnings) = gathered(&["~22,22"]).unwrap().finish(ALL_ON).unwrap();
    assert!(rules.is_empty());
    assert_eq!(warnings, ["No port left to forward for option '-t ~22,22'"]);
}

#[test]
fn a_list_without_end_is_refused() {
    let list: Vec<String> = (1..5000).map(|n| (n * 2).to_string()).collect();
    let list = list.join(",");
    assert_eq!(
        tcp(&[&list]),
        Err(format!("Too many ports apart in {list}"))
    );
}

/// An item of a list: includes, excludes and `all`, near one another so that they meet.
fn item() -> impl Strategy<Value = (u8, u16, u16, u16)> {
    (0_u8..8, 1_u16..40, 0_u16..6, 1_u16..60)
}

proptest! {
    #[test]
    fn any_text_is_understood_or_refused_in_one_line(text in r"[ -~]{0,40}") {
        if let Err(said) = gathered(&[&text]).and_then(|forwards| forwards.finish(ALL_ON)) {
            prop_assert_eq!(said.lines().count(), 1);
        }
    }

    #[test]
    fn any_specifier_like_text_is_understood_or_refused(text in r"[0-3:,~%*/.\[\]al-]{0,24}") {
        let _ = gathered(&[&text, &text]).and_then(|forwards| forwards.finish(ALL_ON));
    }

    /// Regression C41.
    #[test]
    fn each_port_goes_where_its_item_says(items in prop::collection::vec(item(), 1..6)) {
        let mut words = Vec::new();
        let mut wanted = std::collections::BTreeMap::new();
        let (mut named, mut all, mut twice) = (false, false, false);
        for &(kind, first, more, to) in &items {
            let (last, to_last) = (first + more, to + more);
            match kind {
                0..=2 => words.push(format!("~{first}-{last}")),
                3 if !all => {
                    all = true;
                    words.push("all".to_owned());
                }
                _ => {
                    named = true;
                    words.push(format!("{first}-{last}:{to}-{to_last}"));
                }
            }
        }
        let cut = |port: u16| {
            items.iter().any(|&(kind, first, more, _)| kind < 3 && (first..=first + more).contains(&port))
        };
        let mut seen_all = false;
        for &(kind, first, more, to) in &items {
            if kind < 3 || kind == 3 && !std::mem::replace(&mut seen_all, true) {
                continue;
            }
            for step in 0..=more {
                if !cut(first + step) {
                    twice |= wanted.insert(first + step, (to + step, false)).is_some();
                }
            }
        }
        if all || !named {
            for port in (1..=u16::MAX).filter(|port| !cut(*port) && !(32_768..=60_999).contains(port)) {
                wanted.entry(port).or_insert((port, true));
            }
        }
        let text = words.join(",");
        match tcp(&[&text]) {
            Err(said) => prop_assert!(twice && said.starts_with("Overlapping"), "{}: {}", text, said),
            Ok(rules) => {
                prop_assert!(!twice, "{}", text);
                let found: Vec<_> = rules
                    .iter()
                    .flat_map(|r| (r.first..=r.last).map(|p| (p, (r.map.guest(p), r.best_effort))))
                    .collect();
                prop_assert_eq!(found.len(), wanted.len());
                prop_assert_eq!(found.into_iter().collect::<std::collections::BTreeMap<_, _>>(), wanted);
            }
        }
    }
}

#[test]
fn what_is_left_of_all_ports_beside_others_is_bounded() {
    let mut forwards = Forwards::default();
    for n in 0..200 {
        let text = format!("127.0.0.{n}/all");
        forwards
            .add(Protocol::Tcp, &text, &(32_768..=60_999))
            .unwrap();
    }
    let ports: Vec<String> = (1..1000).map(|n| (2 * n).to_string()).collect();
    let named = ports.join(",");
    forwards
        .add(Protocol::Tcp, &named, &(32_768..=60_999))
        .unwrap();
    let refused = forwards.finish(ALL_ON).unwrap_err();
    assert_eq!(refused, "Too many ports apart");
}

/// Rules that come by another way than the command line are called what they would be there.
#[test]
fn a_rule_goes_by_its_specifier() {
    for text in [
        "-t 80",
        "-u 5000-5009:6000-6009",
        "-t 192.0.2.1%eth0/22:10.0.0.2/2022",
        "-t %eth0/22",
        "-u 2001:db8::1/53",
    ] {
        let (option, spec) = text.split_once(' ').unwrap();
        let protocol = if option == "-t" {
            Protocol::Tcp
        } else {
            Protocol::Udp
        };
        let mut forwards = Forwards::default();
        forwards.add(protocol, spec, &(32_768..=60_999)).unwrap();
        let (asked, _) = forwards.finish(ALL_ON).unwrap();
        let mut others = Forwards::default();
        others.take(asked[0].clone()).unwrap();
        let (taken, _) = others.finish(ALL_ON).unwrap();
        assert_eq!(taken, asked);
    }
}
