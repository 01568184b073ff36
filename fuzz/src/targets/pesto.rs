//! What a client says that changes forwards: what is accepted could be shown to it and comes back the same, and no part of it
//! is accepted.

use passt_rs::{config::Enabled, proto::pesto};

use super::ports::assert_apart;

pub fn run(input: &[u8]) {
    let Some((&enabled, said)) = input.split_first() else {
        return;
    };
    let bit = |n: u8| enabled >> n & 1 == 0;
    let enabled = Enabled {
        v4: bit(0) || !bit(1),
        v6: bit(1),
        tcp: bit(2),
        udp: bit(3),
    };
    let rules = match pesto::read(said, enabled) {
        Ok(Some(rules)) => rules,
        Ok(None) => return assert!(said.len() < pesto::MESSAGE_MAX),
        Err(why) => return assert!(!why.is_empty() && !why.contains('\n'), "{why:?}"),
    };
    assert_apart(&rules);
    for end in [0, said.len() / 2, said.len() - 1] {
        assert_eq!(pesto::read(&said[..end], enabled), Ok(None));
    }
    let shown = pesto::greeting(&rules, enabled);
    // From the table's number, and then from the number of its rules on.
    let again = [&shown[20..21], &shown[20 + 1 + 128 + 4..]].concat();
    let back = pesto::read(&again, enabled).expect("what was shown");
    let back = back.expect("all of it");
    let described = |rules: &[passt_rs::config::Rule]| {
        let line = |rule: &passt_rs::config::Rule| rule.describe(enabled.v4, enabled.v6);
        rules.iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(described(&back), described(&rules));
}
