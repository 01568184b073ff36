//! What passes a network device, address by address: a packet socket read by a thread.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt::RcvBufForce},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Host, LONG, wait_until};

/// ETH_P_ALL of packet(7), in network order as socket(2) wants it.
const EVERYTHING: i32 = 0x0300;

/// Octets that may wait for the thread while others have the processor: a whole download.
const WAITING: usize = 64 << 20;

/// A packet's ends; ports are 0 where the protocol has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub protocol: u8,
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// A running capture of a device's IP packets, both directions; it ends on drop.
#[derive(Debug)]
pub struct Capture {
    name: String,
    seen: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
    reading: Option<JoinHandle<()>>,
}

impl Capture {
    /// Everything that passes `device` on `host` from now on.
    pub fn start(host: &Host, device: &str) -> Self {
        let (socket, index) = host.run(|| {
            let all = Some(Protocol::from(EVERYTHING));
            let socket = Socket::new(Domain::PACKET, Type::RAW, all).expect("packet socket");
            (socket, if_nametoindex(device).expect(device))
        });
        let pause = Some(Duration::from_millis(50));
        socket.set_read_timeout(pause).expect("timeout");
        // Who is root in a namespace only has the buffer that everybody has.
        let _ = setsockopt(&socket, RcvBufForce, &WAITING);
        let mut capture = Self {
            name: device.to_owned(),
            seen: Arc::default(),
            stop: Arc::default(),
            reading: None,
        };
        let (seen, stop) = (Arc::clone(&capture.seen), Arc::clone(&capture.stop));
        capture.reading = Some(thread::spawn(move || {
            let mut frame = vec![0; 1 << 17];
            while !stop.load(Ordering::Relaxed) {
                let Ok((n, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame)
                else {
                    continue;
                };
                if from.ifindex() == index as usize {
                    seen.lock().expect("seen").extend(packet(&frame[..n]));
                }
            }
        }));
        capture
    }

    /// Every packet so far.
    pub fn packets(&self) -> Vec<Packet> {
        self.seen.lock().expect("seen").clone()
    }

    /// Waits for a packet of `protocol` from `src` to `dst`, each with its port unless that is 0.
    pub fn expect(&self, protocol: u8, src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) {
        let (src, dst) = (src.into(), dst.into());
        let fits = |have: SocketAddr, want: SocketAddr| {
            have.ip() == want.ip() && (want.port() == 0 || have.port() == want.port())
        };
        let wanted = |p: &Packet| p.protocol == protocol && fits(p.src, src) && fits(p.dst, dst);
        assert!(
            wait_until(LONG, || self.packets().iter().any(wanted)),
            "no packet of protocol {protocol} from {src} to {dst} at {}, but\n{:#?}",
            self.name,
            self.packets()
        );
    }

    /// The test fails if a packet so far had an address for which `forbidden` holds.
    pub fn assert_none(&self, forbidden: impl Fn(IpAddr) -> bool) {
        for packet in self.packets() {
            assert!(
                !forbidden(packet.src.ip()) && !forbidden(packet.dst.ip()),
                "{packet:?} at {}",
                self.name
            );
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reading) = self.reading.take() {
            let _ = reading.join();
        }
    }
}

fn packet(frame: &[u8]) -> Option<Packet> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (src, dst): (IpAddr, IpAddr) = match sliced.net? {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return None,
    };
    let (protocol, ports) = match sliced.transport? {
        TransportSlice::Tcp(tcp) => (6, (tcp.source_port(), tcp.destination_port())),
        TransportSlice::Udp(udp) => (17, (udp.source_port(), udp.destination_port())),
        TransportSlice::Icmpv4(_) => (1, (0, 0)),
        TransportSlice::Icmpv6(_) => (58, (0, 0)),
        _ => return None,
    };
    Some(Packet {
        protocol,
        src: (src, ports.0).into(),
        dst: (dst, ports.1).into(),
    })
}
