//! Parts of packets, in any order, of any size, repeated, overlapping, contradicting each other or missing: what becomes
//! whole is what was sent, and nothing is held for ever.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passt_rs_fuzz::play::{self, Guest};

fuzz_target!(|input: &[u8]| play::run(input, Guest::Parts));
