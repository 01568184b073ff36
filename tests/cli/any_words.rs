//! Whatever is written on the command line, the answer is a run, a print-out or one line.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use passt_rs::cli::{self, Parsed};
use proptest::prelude::*;

fn option() -> impl Strategy<Value = String> {
    prop::sample::select(cli::spellings().collect::<Vec<_>>())
}

fn value() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "",
        "none",
        "all",
        "auto",
        "0",
        "1",
        "-1",
        "65535",
        "65536",
        "22:80",
        "~22",
        "10.0.0.2/24",
        "10.0.0.2",
        "fd00::2",
        "::1/22",
        "127.0.0.1",
        "eth0",
        "%lo/all",
        "02:00:00:00:00:01",
        "root",
        "a b c",
        "h.example",
        "/p",
    ];
    prop_oneof![
        prop::sample::select(KNOWN).prop_map(str::to_owned),
        r"[ -~]{0,12}"
    ]
}

fn word() -> impl Strategy<Value = OsString> {
    prop_oneof![
        4 => option().prop_map(OsString::from),
        4 => value().prop_map(OsString::from),
        2 => (option(), value()).prop_map(|(option, value)| format!("{option}={value}").into()),
        1 => (option(), value()).prop_map(|(option, value)| format!("{option}{value}").into()),
        1 => (option(), 1_usize..8).prop_map(|(mut option, length)| {
            option.truncate(length);
            option.into()
        }),
        1 => prop::collection::vec(any::<u8>(), 0..12).prop_map(OsString::from_vec),
        1 => prop::collection::vec(any::<u8>(), 0..8).prop_map(|junk| {
            OsString::from_vec([b"--".as_slice(), &junk].concat())
        }),
    ]
}

proptest! {
    #[test]
    fn any_words_are_answered(words in prop::collection::vec(word(), 0..6)) {
        let argv = std::iter::once(OsString::from("passt")).chain(words);
        match cli::parse(argv) {
            Parsed::Run(_, warnings) => prop_assert!(warnings.iter().all(|line| !line.contains('\n'))),
            Parsed::Print(text) => prop_assert!(text.ends_with('\n')),
            Parsed::Fail(line) => prop_assert!(!line.is_empty() && !line.contains(char::is_control), "{}", line),
        }
    }
}

#[test]
fn no_words_at_all_are_fine() {
    assert!(matches!(cli::parse(std::iter::empty()), Parsed::Run(..)));
}
