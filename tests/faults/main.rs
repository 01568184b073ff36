//! What the system may refuse, and what may be missing or in the way: never a panic, a stall or a leak, and one clear message.
//!
//! `FAULTS=all` has every error for every call (they take turns otherwise), `STOP_SECONDS` sets how long the process is
//! stopped (3 by default).
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../kernel_guest/mod.rs"]
mod kernel_guest;
#[path = "../lab/mod.rs"]
mod lab;

mod supervisor;

mod calls;
mod missing;
mod stalls;
