//! Abuse by the guest and by peers on the network: memory stays what it was, the log stays readable, and a download that
//! runs meanwhile goes on, as do new connections.
//!
//! `ABUSE_MS` sets how long each attack is watched (400 by default), `ABUSE_RATE` how many frames a second it sends (10,000).
//! `UDP_FLOWS` sets how many datagram flows one test begins (20,000). With `--nocapture --test-threads=1` each test prints what the attack cost; `PASST_BIN` names another binary to compare.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../kernel_guest/mod.rs"]
mod kernel_guest;
#[path = "../lab/mod.rs"]
mod lab;

mod raw;

mod siege;

mod by_guest;
mod by_peers;
mod many_datagrams;
mod sources;
