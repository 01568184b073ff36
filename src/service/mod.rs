//! Answers: what we say to the guest ourselves. A service reads one request and writes one reply frame, or is silent.

mod note;

pub mod arp;
pub mod dhcp;
pub mod dhcpv6;
pub mod ndp;

pub use note::{Answer, Note};
