//! Host side: sockets, and what the host's network is.

pub mod socket;

mod netlink;

pub mod resolv;

pub mod watch;

pub mod facts;

pub mod monitor;
