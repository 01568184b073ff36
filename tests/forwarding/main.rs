//! Ports of the host that are forwarded to the guest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../kernel_guest/mod.rs"]
mod kernel_guest;
#[path = "../lab/mod.rs"]
mod lab;

mod changes;
mod discovery;
mod link_local;
mod ports;
mod share;
mod tcp;
mod udp;
