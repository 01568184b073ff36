//! A Linux network namespace as the guest: a TAP device inside it, relayed frame by frame to the translator's socket.
//!
//! The kernel of this machine is the guest's TCP/IP stack, so unmodified programs (curl, dhclient, ping) are the guest, and
//! they run at full speed: no emulator, and no Ethernet offload either, exactly what QEMU's `-netdev stream` gives a guest.
//! The relay is the wire: it never drops unless told to, never reorders and never looks into a frame.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

pub mod tap;

mod queues;
mod relay;

pub mod machine;

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use crate::lab::{Host, Translator, front_end::Driver};

pub use relay::Counters;
use relay::Relay;
use tap::Tap;

/// The guest's only network device.
pub const DEVICE: &str = "eth0";

/// Its address.
pub const MAC: &str = "52:54:00:12:34:56";

/// Frames the device holds for the relay. A TAP device drops what does not fit, and a sender with a 16 MiB window at MTU
/// 576 has 30,000 frames on the way; a place costs 8 bytes.
const QUEUE: u32 = 100_000;

/// The column in `/proc/net/dev`, after the name.
const TRANSMIT_DROPS: usize = 11;

/// A guest and the wire to its translator, which is cut when this is dropped.
pub struct KernelGuest {
    host: Host,
    relay: Relay,
}

/// Tells what a failed test should know of it.
impl Drop for KernelGuest {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the wire: {:?}", self.counters());
            for (table, protocol) in [("snmp", "Tcp:"), ("netstat", "TcpExt:")] {
                let mut counters = self.host.counters(table, protocol);
                counters.retain(|(_, value)| value != "0");
                eprintln!("the guest: {protocol} {counters:?}");
            }
        }
    }
}

impl KernelGuest {
    /// A guest without any address on a link of `mtu` bytes (68 to 65,521), plugged into `translator`; `None`, with a word
    /// about it, if this machine has no TAP devices for us.
    pub fn plug(translator: &Translator, mtu: u32) -> Option<Self> {
        Self::plug_after(translator, mtu, |_| {})
    }

    /// The same; `prepare` sees the guest's host before it has a device.
    pub fn plug_after(
        translator: &Translator,
        mtu: u32,
        prepare: impl FnOnce(&Host),
    ) -> Option<Self> {
        Self::wire(|| translator.connect(), mtu, None, prepare)
    }

    /// The same, at the other end of a socket.
    pub fn plug_into(stream: UnixStream, mtu: u32) -> Option<Self> {
        Self::wire(|| stream, mtu, None, |_| {})
    }

    /// The same behind a vhost-user front-end, whose driver takes these virtio features.
    pub fn plug_queues(translator: &Translator, mtu: u32, features: u64) -> Option<Self> {
        Self::plug_driver(translator.connect(), mtu, Driver::new(features))
    }

    /// The same behind a front-end at the other end of a socket, whose driver behaves so.
    pub fn plug_driver(socket: UnixStream, mtu: u32, driver: Driver) -> Option<Self> {
        Self::wire(|| socket, mtu, Some(driver), |_| {})
    }

    fn wire(
        connect: impl FnOnce() -> UnixStream,
        mtu: u32,
        driver: Option<Driver>,
        prepare: impl FnOnce(&Host),
    ) -> Option<Self> {
        let host = Host::new().expect("a namespace for the guest");
        prepare(&host);
        let taps = match host.run(|| match driver {
            Some(driver) => Tap::create_virtio(DEVICE, driver.pairs),
            None => Tap::create(DEVICE).map(|tap| vec![tap]),
        }) {
            Ok(taps) => taps.into_iter().map(Arc::new).collect::<Vec<_>>(),
            Err(error) => {
                println!("skipped: no TAP device: {error}");
                return None;
            }
        };
        // Up before the wire stands: a device that is down refuses what the translator says first.
        host.ip(&format!(
            "link set dev {DEVICE} address {MAC} mtu {mtu} txqueuelen {QUEUE} up"
        ));
        let relay = match driver {
            Some(driver) => Relay::by_queues(&taps, connect(), driver),
            None => Relay::start(taps[0].clone(), connect()),
        }
        .expect("relay");
        Some(Self { host, relay })
    }

    /// Plugs it out and in again, without a word to the guest; counters start over.
    pub fn replug(&mut self, translator: &Translator) {
        let tap = self.relay.cut();
        self.relay = Relay::start(tap, translator.connect()).expect("relay");
    }

    /// Gives it, without asking, what the translator would have assigned in [`World::pod`](crate::lab::World::pod).
    pub fn number(&self) {
        self.host.ip("addr add 10.233.70.50/24 dev eth0
             addr add fd10:233:70::50/64 dev eth0 nodad
             route add default via 10.233.70.1 dev eth0
             route add default via fe80::1 dev eth0");
    }

    /// The guest itself: run programs on it.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// TCP segments its stack has sent again since it was made.
    pub fn retransmissions(&self) -> u64 {
        self.host.counter("snmp", "Tcp:", "RetransSegs")
    }

    /// Segments of its stack that arrived more than once, as it was told (D-SACK, RFC 2883).
    pub fn needless(&self) -> u64 {
        self.host.counter("netstat", "TcpExt:", "TCPDSACKRecvSegs")
    }

    /// Frames lost at its device, either way: a flood of datagrams does that, TCP must not.
    pub fn dropped_at_device(&self) -> u64 {
        let table = self.host.proc_net("dev");
        let mut rows = table.iter().filter_map(|line| line.split_once(':'));
        let (_, row) = rows.find(|(name, _)| name.trim() == DEVICE).expect(DEVICE);
        let dropped = row.split_whitespace().nth(TRANSMIT_DROPS);
        let dropped: u64 = dropped.and_then(|n| n.parse().ok()).expect("a number");
        dropped + self.counters().refused_by_guest.load(Ordering::Relaxed)
    }

    /// User and system time the relay has used so far.
    pub fn relay_cpu(&self) -> Duration {
        self.relay.cpu()
    }

    /// What the relay has carried so far.
    pub fn counters(&self) -> &Counters {
        self.relay.counters()
    }

    /// Whether the wire still stands: false once the translator has hung up.
    pub fn connected(&self) -> bool {
        self.relay.running()
    }
}
