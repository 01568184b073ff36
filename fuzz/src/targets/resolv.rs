//! Any octets as resolv.conf(5), down to what the guest is told of it.

use passt_rs::{
    config::{Config, resolve},
    host::resolv,
    wire::name,
};

use crate::facts;

pub fn run(text: &[u8]) {
    let mut facts = facts();
    facts.resolver = resolv::parse(text);
    let resolved = resolve(&Config::default(), &facts).expect("a network");
    let mut out = Vec::new();
    name::encode_compressed(&resolved.net.dns.search, &mut out);
}
