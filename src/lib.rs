//! passt-rs: plugs a virtual machine's Ethernet into plain sockets of the host, without privileges.
//!
//! ```text
//! guest ── frames ──► link ─► classify ─► service (ARP, DHCP, DHCPv6, NDP)
//!                       ▲          └────► relay: flow (TCP, UDP, ICMP echo) ──► host sockets
//!                       └── frames ◄─────── services and relay ◄─────────── readiness, errors
//! ```
//!
//! Every frame gets one of three answers: a service answers it, a flow carries it, or it is dropped with a named and
//! counted reason ([`net::Why`]). We are not a TCP/IP stack, the host kernel is: what one side tells us (window,
//! acknowledgement, close, error) we reflect to the other, and stream data stays in the kernel until it is acknowledged.
//!
//! One thread does it all, unless a guest uses several queue pairs: then each further pair has a thread with a relay of its
//! own, and a flow belongs to the one its first frame came to, until many in a row have come to another ([`relay::Share`]).
//!
//! The modules below are layers, lowest first. A module names only modules declared above it; `tests/layers.rs` reads
//! this file and holds everybody to it. `net`, `config`, `wire`, `flow`, `proto` and `service` are pure: no descriptor,
//! no clock, no logging.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

/// Words: addresses, sequence numbers, time, ports, drop reasons.
pub mod net;

/// Settings: asked, found, and decided.
pub mod config;

/// Bytes: frames and messages.
pub mod wire;

/// Kernel: the only home of `unsafe`.
pub mod sys;

/// Memory: flow table, timers, block pool, translation, and what threads share: claims, quotas, rings.
pub mod flow;

/// Decisions: pure machines.
pub mod proto;

/// Answers: ARP, DHCP, DHCPv6, NDP, IGMP, MLD.
pub mod service;

/// Guest side: frames in, frames out.
pub mod link;

/// Host side: sockets, netlink, resolver.
pub mod host;

/// Both sides: carries out what the machines decide.
pub mod relay;

/// The loop: start-up, reactor, threads, sandbox, migration, log.
pub mod daemon;

/// Words in: the command line.
pub mod cli;
