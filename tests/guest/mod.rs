//! The scripted guest: what QEMU and the machine behind it would do, one frame at a time or as a whole stack.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::lab::{
    LONG, Translator, World, wait_until,
    world::{POD4, POD6},
};

pub mod dhcp;
pub mod dhcpv6;
pub mod fragment;
pub mod frame;
pub mod stack;
pub mod tcp;
pub mod wire;

pub use frame::{Icmp, Ip, Tcp, Udp};
pub use stack::Guest;
pub use tcp::Peer;
pub use wire::Wire;

/// A translator in the pod, and a wire to it; dropped in this order.
#[derive(Debug)]
pub struct Scene {
    pub wire: Wire,
    pub translator: Translator,
    pub world: World,
}

impl Scene {
    /// `None` when the test is not to go on here: see [`World::pod`].
    pub fn new(args: &[&str]) -> Option<Self> {
        let world = World::pod()?;
        let translator = Translator::start(&world.pod, args);
        let idle = translator.idle_fd_count();
        let wire = Wire::new(translator.connect());
        // Counts of descriptors begin with the guest connected.
        assert!(
            wait_until(LONG, || translator.fd_count() > idle),
            "not accepted"
        );
        Some(Self {
            wire,
            translator,
            world,
        })
    }
}

/// The guest's address in the family of `remote`, with a port.
pub fn guest_addr(remote: impl Into<SocketAddr>, port: u16) -> SocketAddr {
    match remote.into() {
        SocketAddr::V4(_) => (POD4, port).into(),
        SocketAddr::V6(_) => (POD6, port).into(),
    }
}

/// The next address, with the same port.
pub fn neighbour_of(own: SocketAddr) -> SocketAddr {
    let addr = match own.ip() {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() + 1).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() + 1).into(),
    };
    SocketAddr::new(addr, own.port())
}

/// The same in both families.
pub fn both(v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> [SocketAddr; 2] {
    [(v4, port).into(), (v6, port).into()]
}

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
