//! Host side: sockets, and what the host's network is.

pub mod socket;

pub mod conntrack;

mod netlink;

pub mod resolv;

pub mod facts;
