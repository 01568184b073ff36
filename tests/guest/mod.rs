//! The scripted guest: what QEMU and the machine behind it would do, one frame at a time or as a whole stack.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod dhcp;
pub mod frame;
pub mod stack;
pub mod tcp;
pub mod wire;

pub use frame::{Icmp, Ip, Tcp, Udp};
pub use stack::Guest;
pub use tcp::Peer;
pub use wire::Wire;

/// Octets `from..from + len` of the test stream: no stretch of eight looks like another at the wrong place.
pub fn pattern(from: u64, len: usize) -> Vec<u8> {
    let at = |i: u64| {
        let mixed = (i / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).to_le_bytes()[usize::try_from(i % 8).expect("small")]
    };
    (from..).take(len).map(at).collect()
}

/// The test fails at the first octet of `got` that is not that of the test stream `from` there on.
pub fn assert_pattern(from: u64, got: &[u8]) {
    let want = pattern(from, got.len());
    if let Some(at) = got.iter().zip(&want).position(|(a, b)| a != b) {
        panic!("octet {} of the stream is wrong", from + at as u64);
    }
}
