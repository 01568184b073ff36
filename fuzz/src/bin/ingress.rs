//! The whole data path: any frames of the guest, between any events of the host, with any call failing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passt_rs_fuzz::play::{self, Guest};

fuzz_target!(|input: &[u8]| play::run(input, Guest::Anything));
