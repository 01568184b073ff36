#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| passt_rs_fuzz::targets::pesto(input));
