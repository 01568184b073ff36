//! Host side: sockets, netlink, resolver.

mod netlink;

pub mod resolv;

pub mod facts;
