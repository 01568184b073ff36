//! The table of rules beside the machine of TCP names tests that exist, and leaves no MUST out; what tests name is explained.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, fs, path::Path};

const TABLE: &str = "src/proto/tcp/rfc.md";

const REGRESSIONS: &str = "tests/REGRESSIONS.md";

/// What the id of a regression begins with.
const LETTERS: &str = "CDIMNPSTUVX";

/// MUST-1 to this one are the rules of RFC 9293, appendix B.
const RULES: u32 = 69;

/// All files of Rust below a folder.
fn sources(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
    found
}

/// Names of all functions below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for text in sources(folder) {
        let names = text.lines().filter_map(|line| {
            let (name, _) = line.trim_start().strip_prefix("fn ")?.split_once('(')?;
            Some(name.to_owned())
        });
        found.extend(names);
    }
}

/// Whether a word is the id of a regression: a letter and two digits.
fn is_regression(word: &str) -> bool {
    word.strip_prefix(|first| LETTERS.contains(first))
        .is_some_and(|number| {
            number.len() == 2 && number.bytes().all(|digit| digit.is_ascii_digit())
        })
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

#[test]
fn every_regression_named_in_a_test_is_explained_and_the_other_way_round() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = BTreeSet::new();
    for text in ["src", "tests", "fuzz/src"]
        .map(|folder| sources(&root.join(folder)))
        .concat()
    {
        let comments = text.lines().filter_map(|line| line.split_once("//"));
        let words =
            comments.flat_map(|(_, said)| said.split(|c: char| !c.is_alphanumeric() && c != '_'));
        named.extend(words.filter(|word| is_regression(word)).map(str::to_owned));
    }
    let table = fs::read_to_string(root.join(REGRESSIONS)).unwrap();
    let rows = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let rows: Vec<_> = rows
        .map(|(id, _)| id)
        .filter(|id| is_regression(id))
        .collect();
    assert!(
        rows.is_sorted_by(|a, b| a < b),
        "{REGRESSIONS}: not in order, or a row twice"
    );
    let explained: BTreeSet<_> = rows.into_iter().map(str::to_owned).collect();
    let unexplained: Vec<_> = named.difference(&explained).collect();
    assert!(
        unexplained.is_empty(),
        "{REGRESSIONS} has no row for {unexplained:?}, which comments name"
    );
    let unnamed: Vec<_> = explained.difference(&named).collect();
    assert!(
        unnamed.is_empty(),
        "{REGRESSIONS} explains {unnamed:?}, which no comment names"
    );
    assert!(named.len() > 200, "only {}", named.len());
}
