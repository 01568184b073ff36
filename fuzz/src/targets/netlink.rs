//! Any octets as the kernel's dumps of links, addresses, routes and neighbours, down to what the guest is told of them.

use passt_rs::{
    config::{Config, resolve},
    flow::Neighbours,
    host::{facts, neighbours},
};

pub fn run(dump: &[u8]) {
    let found = facts::of_dump(dump);
    assert!(
        found
            .addresses
            .iter()
            .all(|a| a.prefix <= if a.addr.is_ipv4() { 32 } else { 128 })
    );
    let _ = resolve(&Config::default(), &found);
    let net = crate::net();
    Neighbours::default().keep(&net, &neighbours::of_messages(dump));
}
