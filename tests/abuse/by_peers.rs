//! What hostile peers on the network do to forwarded ports, and to connections the guest has opened.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::SockRef;

use super::{
    raw::Raw,
    siege::{Siege, mixed, rate},
};
use crate::{
    guest::{
        Icmp, Ip, Tcp, Udp,
        frame::{ACK, ICMP, RST, SYN},
        tcp::syn_options,
    },
    lab::{
        servers, uninterrupted,
        world::{GATEWAY4, INTERNET4, POD4},
    },
};

/// The forwarded port.
const PORT: u16 = 2222;

/// The device of the world outside on the pod's wire.
const WIRE: &str = "pod0";

/// A siege with a service of the guest's behind the forwarded port, that reads all and says nothing.
fn lay() -> Option<(Siege, Sink)> {
    let siege = Siege::lay(&["-t", "2222", "-u", "2222"])?;
    let sink = Sink::start(&siege);
    Some((siege, sink))
}

/// A server of the guest's.
struct Sink {
    listener: TcpListener,
    octets: Arc<AtomicU64>,
    accepting: Option<JoinHandle<()>>,
}

impl Sink {
    fn start(siege: &Siege) -> Self {
        let any = (Ipv4Addr::UNSPECIFIED, PORT);
        let listener = siege.guest.host().run(|| TcpListener::bind(any));
        let listener = listener.expect("listen");
        let octets = Arc::new(AtomicU64::new(0));
        let accepting = thread::spawn({
            let (incoming, octets) = (listener.try_clone().expect("dup"), octets.clone());
            move || {
                while let Ok((mut stream, _)) = incoming.accept() {
                    let octets = octets.clone();
                    thread::spawn(move || {
                        let mut bytes = [0; 4096];
                        while let Ok(n @ 1..) = uninterrupted(|| stream.read(&mut bytes)) {
                            octets.fetch_add(n as u64, Ordering::Relaxed);
                        }
                    });
                }
            }
        });
        Self {
            listener,
            octets,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// A frame from the world outside to the pod's device.
fn outside(ip: &Ip, to: [u8; 6]) -> Vec<u8> {
    let mut frame = ip.frame();
    frame[0..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame
}

/// The address of the pod's device.
fn pod_mac(siege: &Siege) -> [u8; 6] {
    let text = siege
        .world
        .pod
        .command("ip", &["-o", "link", "show", "dev", "eth0"]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "link/ether").unwrap();
    let octets = words[at + 1].split(':');
    let octets: Vec<u8> = octets.map(|o| u8::from_str_radix(o, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// From addresses that do not answer: the host's kernel deals with it, and its queue must not become ours.
#[test]
fn a_syn_flood_on_a_forwarded_port_is_the_kernels_affair() {
    let Some((mut siege, _sink)) = lay() else {
        return;
    };
    let raw = Raw::open(&siege.world.outside, WIRE);
    let mac = pod_mac(&siege);
    siege.withstand("peers' SYN flood", |stop| {
        raw.flood(rate(), stop, |n| {
            let from = (
                Ipv4Addr::from_bits(0xcb00_7100 | (n as u32 & 0x7f) | 0x80),
                1024 | n as u16,
            );
            let segment = Tcp {
                seq: n as u32,
                options: syn_options(1460, Some(7)),
                ..Tcp::new(from.into(), (POD4, PORT).into(), SYN)
            };
            outside(&segment.ip(), mac)
        })
    });
}

/// Connections that are made and reset as fast as can be.
#[test]
fn a_storm_of_connections_and_resets_leaves_nothing_behind() {
    let Some((mut siege, _sink)) = lay() else {
        return;
    };
    let outside = siege.world.outside.path();
    let netns = std::fs::File::open(outside).unwrap();
    let idle = siege.translator.idle_fd_count();
    siege.withstand("connect and reset", |stop| {
        nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let target = SocketAddr::from((POD4, PORT));
            if let Ok(stream) = TcpStream::connect_timeout(&target, Duration::from_millis(500)) {
                let _ = (&stream).write_all(b"x");
                servers::reset(stream);
                count += 1;
            }
        }
        count
    });
    siege.translator.expect_fd_count(idle);
}

/// Resets and acknowledgements with numbers of chance, for the download and for nothing.
#[test]
fn a_storm_of_forged_resets_ends_no_connection() {
    let Some((mut siege, _sink)) = lay() else {
        return;
    };
    let raw = Raw::open(&siege.world.outside, WIRE);
    let (mac, server) = (pod_mac(&siege), siege.endless.addr());
    siege.withstand("forged RST storm", |stop| {
        raw.flood(rate(), stop, |n| {
            let port = 32_768 + (mixed(n) % 28_232) as u16;
            let segment = Tcp {
                seq: mixed(n) as u32,
                ack: (mixed(n) >> 32) as u32,
                ..Tcp::new(server, (POD4, port).into(), RST | (ACK * (n % 2) as u8))
            };
            outside(&segment.ip(), mac)
        })
    });
}

/// An octet a segment, over fifty connections.
#[test]
fn tiny_segments_from_many_peers_arrive_and_hold_up_nobody() {
    let Some((mut siege, sink)) = lay() else {
        return;
    };
    let netns = std::fs::File::open(siege.world.outside.path()).unwrap();
    let before = sink.octets.load(Ordering::Relaxed);
    siege.withstand("tiny segments", |stop| {
        nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let target = SocketAddr::from((POD4, PORT));
        let streams: Vec<TcpStream> = (0..50)
            .map(|_| TcpStream::connect(target).expect("connect"))
            .inspect(|stream| stream.set_nodelay(true).expect("nodelay"))
            .collect();
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            for mut stream in &streams {
                stream.write_all(b"x").expect("write");
                count += 1;
            }
            thread::sleep(Duration::from_millis(50 * 1000 / rate().max(1)));
        }
        count
    });
    assert!(sink.octets.load(Ordering::Relaxed) > before);
}

/// Peers that connect and do not read what the guest sends them: its stack keeps it, not we.
#[test]
fn peers_that_never_read_hold_up_nobody() {
    let Some((mut siege, _sink)) = lay() else {
        return;
    };
    let deaf = servers::tcp_listener(&siege.world.outside, (INTERNET4, 9));
    let uploads: Vec<TcpStream> = siege.guest.host().run(|| {
        let each = (0..100).map(|_| TcpStream::connect((INTERNET4, 9)));
        each.collect::<Result<_, _>>().expect("connect")
    });
    let accepted: Vec<TcpStream> = (0..100).map(|_| servers::accept(&deaf)).collect();
    siege.withstand("slow readers", |stop| {
        let mut count = 0;
        for stream in &uploads {
            stream.set_nonblocking(true).unwrap();
        }
        while !stop.load(Ordering::Relaxed) {
            for mut stream in &uploads {
                count += u64::from(stream.write(&[7; 65_536]).is_ok());
            }
            thread::sleep(Duration::from_millis(2));
        }
        count
    });
    drop(accepted);
}

/// Errors about a datagram flow that is there, and about ones that are not: the guest hears of them, and lives.
#[test]
fn a_storm_of_icmp_errors_is_passed_on_and_holds_up_nobody() {
    let Some((mut siege, _sink)) = lay() else {
        return;
    };
    // A flow of the guest's to a peer that reads; its port on the host is the guest's own.
    let peer = servers::udp_socket(&siege.world.outside, (INTERNET4, 5000));
    let socket = siege.guest.host().run(|| UdpSocket::bind((POD4, 4000)));
    let socket = socket.unwrap();
    socket.send_to(b"hello", (INTERNET4, 5000)).unwrap();
    let (_, seen) = uninterrupted(|| peer.recv_from(&mut [0; 16])).unwrap();
    let raw = Raw::open(&siege.world.outside, WIRE);
    let mac = pod_mac(&siege);
    siege.withstand("ICMP error storm", |stop| {
        raw.flood(rate(), stop, |n| {
            let (from, to) = if n % 2 == 0 {
                (seen, (INTERNET4, 5000).into())
            } else {
                ((POD4, 1024 | n as u16).into(), (INTERNET4, 80).into())
            };
            let about = Udp::new(from, to, b"hello").ip().packet();
            // Unreachable, for each of its reasons, and time exceeded.
            let (kind, code) = if n % 8 < 7 {
                (3, (n % 16) as u8)
            } else {
                (11, 0)
            };
            let mut error = Icmp::new(GATEWAY4.into(), POD4.into(), kind, 1400, &about).ip();
            assert_eq!(error.protocol, ICMP);
            error.payload[1] = code;
            error.payload[2..4].fill(0);
            let sum = !smoltcp::wire::checksum::data(&error.payload);
            error.payload[2..4].copy_from_slice(&sum.to_be_bytes());
            outside(&error, mac)
        })
    });
    // The flow still carries.
    socket.send_to(b"again", (INTERNET4, 5000)).unwrap_or(0);
}
