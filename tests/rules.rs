//! The table of rules beside the machine of TCP names tests that exist, and leaves no MUST out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, fs, path::Path};

const TABLE: &str = "src/proto/tcp/rfc.md";

/// MUST-1 to this one are the rules of RFC 9293, appendix B.
const RULES: u32 = 69;

/// Names of all functions below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| {
                let (name, _) = line.trim_start().strip_prefix("fn ")?.split_once('(')?;
                Some(name.to_owned())
            });
            found.extend(names);
        }
    }
}

#[test]
fn every_test_named_by_the_table_of_rules_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    functions(&root.join("src"), &mut known);
    functions(&root.join("tests"), &mut known);
    let table = fs::read_to_string(root.join(TABLE)).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let mut named = 0;
    for name in quoted.filter(|name| name.contains('_') && !name.contains(':')) {
        assert!(known.contains(name), "no test {name}");
        named += 1;
    }
    assert!(named > 80, "only {named}");
}

#[test]
fn no_must_of_rfc_9293_is_left_out() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join(TABLE)).unwrap();
    let named: BTreeSet<u32> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| MUST-")?.split_once(" | "))
        .flat_map(|(rules, _)| rules.split(", MUST-"))
        .map(|number| number.parse().unwrap())
        .collect();
    let left_out: Vec<_> = (1..=RULES).filter(|rule| !named.contains(rule)).collect();
    assert!(left_out.is_empty(), "{left_out:?}");
}
