//! TCP from the guest to the world, through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../lab/mod.rs"]
mod lab;

mod close;
mod data;
mod disorder;
mod handshake;
mod quiet;
mod refusal;
mod scarce;
mod turns;
mod validity;
mod windows;

/// Octets of a bulk transfer.
const BULK: usize = 8 << 20;
