//! Data in bulk between a kernel guest and the world: everything arrives once, in order, and nothing has to be sent twice.
//!
//! `TRANSFER_MIB` sets the size of the bulk transfers (256 by default, 1024 for a full GiB), `MATRIX_MIB` that of each in the
//! matrix of guests (8 by default).
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[path = "../kernel_guest/mod.rs"]
mod kernel_guest;
#[path = "../lab/mod.rs"]
mod lab;

mod stream;

mod bulk;

mod delay;

mod frozen;

mod huge_pages;

mod matrix;

use std::time::Duration;

use kernel_guest::KernelGuest;
use lab::{Translator, World};

/// No transfer stands still for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of one read or write.
const CHUNK: usize = 256 * 1024;

/// A world with a guest in it that has its addresses.
fn furnish(mtu: u32) -> Option<(World, KernelGuest, Translator)> {
    let world = World::pod()?;
    let translator = Translator::start(&world.pod, &["--mtu", &mtu.to_string()]);
    let guest = KernelGuest::plug(&translator, mtu)?;
    guest.number();
    // On a loaded machine an acknowledgement may be late: what is counted here are answers to loss, not to impatience.
    guest.host().sysctl("ipv4/tcp_early_retrans", "0");
    guest.host().ip(
        "route replace 10.233.70.0/24 dev eth0 proto kernel scope link src 10.233.70.50 rto_min 5s
         route replace default via 10.233.70.1 dev eth0 rto_min 5s
         route replace default via fe80::1 dev eth0 rto_min 5s",
    );
    Some((world, guest, translator))
}
