//! TCP by event scripts: the guest's segments are those of its connections, in any order and at any place, so that both
//! streams can be checked octet by octet. The machine is driven through the relay, with the host's sockets scripted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passt_rs_fuzz::play::{self, Guest};

fuzz_target!(|input: &[u8]| play::run(input, Guest::Connections));
