//! Host side: sockets, and what the host's network is.

pub mod ends;

pub mod socket;

pub mod moving;

pub mod repair;

pub mod group;

pub mod conntrack;

pub mod listen;

mod netlink;

pub mod resolv;

pub mod resolv_watch;

pub mod facts;

mod ephemeral;

pub use ephemeral::ephemeral_ports;
pub mod monitor;

pub mod neighbours;
