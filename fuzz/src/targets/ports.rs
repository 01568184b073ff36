//! Port specifiers, one a line, TCP and UDP by turns: what is accepted forwards no port twice and never port 0.

use passt_rs::{
    config::{Enabled, Forwards, Rule},
    net::Protocol,
};

pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut forwards = Forwards::default();
    for (n, line) in text.lines().take(32).enumerate() {
        let protocol = if n % 2 == 0 {
            Protocol::Tcp
        } else {
            Protocol::Udp
        };
        if let Err(why) = forwards.add(protocol, line, &(32_768..=60_999)) {
            assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
        }
    }
    let enabled = Enabled {
        v4: true,
        v6: true,
        tcp: true,
        udp: true,
    };
    let Ok((rules, _)) = forwards.finish(enabled) else {
        return;
    };
    assert_apart(&rules);
}

/// No port is forwarded twice, and none is 0.
pub fn assert_apart(rules: &[Rule]) {
    for (at, rule) in rules.iter().enumerate() {
        assert!(0 < rule.first && rule.first <= rule.last);
        for port in [rule.first, rule.last] {
            let _ = rule.map.guest(port);
        }
        for other in &rules[at + 1..] {
            let same = (rule.protocol, rule.addr, &rule.interface)
                == (other.protocol, other.addr, &other.interface);
            assert!(
                !same || rule.last < other.first || other.last < rule.first,
                "{rule:?} {other:?}"
            );
        }
    }
}
