//! Any octets as the kernel's dumps of links, addresses and routes, down to what the guest is told of them.

use passt_rs::{
    config::{Config, resolve},
    host::facts,
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
}
