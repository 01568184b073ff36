//! The command line, arguments separated by zero octets: a configuration, a print-out, or a message for a person.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use passt_rs::{
    cli::{self, Parsed},
    config::resolve,
};

use crate::facts;

pub fn run(input: &[u8]) {
    let words = input.split(|&octet| octet == 0).take(32);
    let words = words.map(|word| OsString::from_vec(word.to_vec()));
    match cli::parse(std::iter::once("passt".into()).chain(words)) {
        Parsed::Fail(text) => assert!(!text.is_empty()),
        Parsed::Print(text) => assert!(text.ends_with('\n')),
        Parsed::Run(config, warnings) => {
            assert!(warnings.iter().all(|warning| !warning.is_empty()));
            // Deciding what the guest is told must stand everything that was accepted.
            if let Ok(resolved) = resolve(&config, &facts()) {
                let _ = cli::summary(&resolved, &config, None);
            }
        }
    }
}
