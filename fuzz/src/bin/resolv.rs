//! Any octets as resolv.conf(5), down to what the guest is told of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passt_rs::{
    config::{Config, resolve},
    host::resolv,
    wire::name,
};
use passt_rs_fuzz::facts;

fuzz_target!(|text: &[u8]| {
    let mut facts = facts();
    facts.resolver = resolv::parse(text);
    let resolved = resolve(&Config::default(), &facts).expect("a network");
    let mut out = Vec::new();
    name::encode_compressed(&resolved.net.dns.search, &mut out);
});
