//! A whole guest: smoltcp's stack over the UNIX socket, with helpers that block, but never for ever.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, DeviceCapabilities, Medium},
    socket::{dhcpv4, icmp, tcp, udp},
    time::Instant as Clock,
    wire::{EthernetAddress, HardwareAddress, IpCidr},
};

use super::{
    assert_pattern,
    frame::GUEST_MAC,
    pattern,
    wire::{framed, split},
};
use crate::lab::LONG;

/// What DHCP gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
}

/// A machine with one Ethernet card.
pub struct Guest {
    nic: Nic,
    iface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
}

impl Guest {
    /// A machine without addresses whose card has this MTU. With `slaac` it asks for a router at once.
    pub fn new(stream: UnixStream, mtu: usize, slaac: bool) -> Self {
        stream.set_nonblocking(true).expect("nonblocking");
        let mut nic = Nic {
            stream,
            mtu,
            rx: VecDeque::new(),
            partial: Vec::new(),
            tx: Vec::new(),
            closed: false,
        };
        let mac = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC));
        let mut config = Config::new(mac);
        config.slaac = slaac;
        config.random_seed = 0x5eed;
        let mut iface = Interface::new(config, &mut nic, Clock::ZERO);
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
        iface.update_ip_addrs(|addrs| {
            addrs
                .push(IpCidr::new(link_local.into(), 64))
                .expect("room");
        });
        Self {
            nic,
            iface,
            sockets: SocketSet::new(Vec::new()),
            start: Instant::now(),
            next_port: 40_000,
        }
    }

    /// A machine with the addresses the translator would give in [`crate::lab::World::pod`].
    pub fn online(stream: UnixStream, mtu: usize) -> Self {
        use crate::lab::world::{GATEWAY4, GATEWAY6, POD4, POD6};
        let mut guest = Self::new(stream, mtu, false);
        guest.configure(IpCidr::new(POD4.into(), 24), GATEWAY4.into());
        guest.configure(IpCidr::new(POD6.into(), 64), GATEWAY6.into());
        guest
    }

    /// Takes an address and a default route.
    pub fn configure(&mut self, cidr: IpCidr, router: IpAddr) {
        self.iface
            .update_ip_addrs(|addrs| addrs.push(cidr).expect("room"));
        let routes = self.iface.routes_mut();
        match router {
            IpAddr::V4(router) => routes.add_default_ipv4_route(router),
            IpAddr::V6(router) => routes.add_default_ipv6_route(router),
        }
        .expect("room");
    }

    /// Gets an address, a router and resolvers by DHCP, and takes them.
    pub fn lease(&mut self) -> Lease {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let mut lease = None;
        self.until("DHCP lease", |sockets| {
            if let Some(dhcpv4::Event::Configured(config)) =
                sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll()
            {
                lease = Some(Lease {
                    address: config.address.address(),
                    prefix: config.address.prefix_len(),
                    router: config.router,
                    dns: config.dns_servers.to_vec(),
                });
            }
            lease.is_some()
        });
        let lease = lease.expect("just seen");
        self.sockets.remove(handle);
        if let Some(router) = lease.router {
            let cidr = IpCidr::new(lease.address.into(), lease.prefix);
            self.configure(cidr, router.into());
        }
        lease
    }

    /// Waits for a global IPv6 address from router advertisements.
    pub fn slaac(&mut self) -> Ipv6Addr {
        let deadline = Instant::now() + LONG;
        loop {
            let global = self.iface.ip_addrs().iter().find_map(|cidr| match cidr {
                IpCidr::Ipv6(v6) if !v6.address().is_unicast_link_local() => Some(v6.address()),
                _ => None,
            });
            if let Some(addr) = global {
                return addr;
            }
            assert!(Instant::now() < deadline, "no router advertisement");
            self.turn(Duration::from_millis(100));
        }
    }

    /// Waits for one connection at a port of its own.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 19]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.listen(port).expect("listen");
        self.sockets.add(socket)
    }

    /// Runs until somebody has connected to a listening socket; whom it sees.
    pub fn accept(&mut self, handle: SocketHandle) -> SocketAddr {
        self.until("connection from outside", |sockets| {
            sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Established
        });
        let remote = self.tcp(handle).remote_endpoint().expect("connected");
        SocketAddr::new(remote.addr.into(), remote.port)
    }

    /// Begins to connect, from a port of its own choice.
    pub fn start_connect(&mut self, remote: SocketAddr) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 19]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.next_port += 1;
        socket
            .connect(self.iface.context(), remote, self.next_port)
            .expect("connect");
        self.sockets.add(socket)
    }

    /// Connects; the test fails if that fails.
    pub fn connect(&mut self, remote: SocketAddr) -> SocketHandle {
        let handle = self.start_connect(remote);
        self.finish_connect(handle);
        handle
    }

    pub fn finish_connect(&mut self, handle: SocketHandle) {
        self.until("connection", |sockets| {
            let state = sockets.get::<tcp::Socket<'_>>(handle).state();
            assert_ne!(state, tcp::State::Closed, "the connection was refused");
            state != tcp::State::SynSent
        });
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn tcp_state(&self, handle: SocketHandle) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(handle).state()
    }

    /// Sends octets `0..len` of the test stream.
    pub fn upload(&mut self, handle: SocketHandle, len: usize) {
        let data = pattern(0, len);
        self.send(handle, &data);
    }

    /// Sends all of `data`, and waits until it is acknowledged.
    pub fn send(&mut self, handle: SocketHandle, data: &[u8]) {
        let mut at = 0;
        self.until("room to send", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            at += socket.send_slice(&data[at..]).expect("an open connection");
            at == data.len() && socket.send_queue() == 0
        });
    }

    /// Receives octets `0..len` of the test stream.
    pub fn download(&mut self, handle: SocketHandle, len: usize) {
        let mut at = 0;
        self.until("data", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            while socket.can_recv() {
                let got = socket.recv(|bytes| (bytes.len(), bytes.to_vec()));
                let got = got.expect("can_recv");
                assert_pattern(at as u64, &got);
                at += got.len();
            }
            assert!(at == len || socket.may_recv(), "closed after {at} octets");
            at >= len
        });
        assert_eq!(at, len);
    }

    /// Sends `len` octets of the test stream and receives them back.
    pub fn echo(&mut self, handle: SocketHandle, len: usize) {
        let data = pattern(0, len);
        let (mut sent, mut got) = (0, 0);
        self.until("echo", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            sent += socket
                .send_slice(&data[sent..])
                .expect("an open connection");
            while socket.can_recv() {
                let bytes = socket.recv(|bytes| (bytes.len(), bytes.to_vec()));
                let bytes = bytes.expect("can_recv");
                assert_pattern(got as u64, &bytes);
                got += bytes.len();
            }
            got == len
        });
    }

    /// Says that it has nothing more to send.
    pub fn shutdown(&mut self, handle: SocketHandle) {
        self.tcp(handle).close();
        self.turn(Duration::ZERO);
    }

    /// Waits until the other side has said so too, and nothing is left to read.
    pub fn expect_eof(&mut self, handle: SocketHandle) {
        self.until("end of the stream", |sockets| {
            !sockets.get::<tcp::Socket<'_>>(handle).may_recv()
        });
    }

    /// Both ends close, then the socket is gone.
    pub fn close(&mut self, handle: SocketHandle) {
        self.shutdown(handle);
        self.until("close", |sockets| {
            use tcp::State::{Closed, TimeWait};
            let state = sockets.get::<tcp::Socket<'_>>(handle).state();
            matches!(state, Closed | TimeWait)
        });
        self.sockets.remove(handle);
    }

    /// A UDP socket on this port.
    pub fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 1 << 18]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("bind");
        self.sockets.add(socket)
    }

    /// A socket for ICMP errors about datagrams from this port.
    pub fn udp_errors(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1 << 12]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Udp(port.into())).expect("bind");
        self.sockets.add(socket)
    }

    pub fn send_to(&mut self, handle: SocketHandle, remote: SocketAddr, data: &[u8]) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(data, remote).expect("room");
        self.turn(Duration::ZERO);
    }

    /// The next datagram, and whom it is from.
    pub fn recv_from(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        let mut got = None;
        self.until("datagram", |sockets| {
            let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
            got = socket.recv().ok().map(|(data, meta)| {
                let from = meta.endpoint;
                (data.to_vec(), SocketAddr::new(from.addr.into(), from.port))
            });
            got.is_some()
        });
        got.expect("just seen")
    }

    /// Runs until `condition` holds; the test fails if it never does.
    pub fn until(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut SocketSet<'static>) -> bool,
    ) {
        let deadline = Instant::now() + LONG;
        loop {
            let now = self.clock();
            self.iface.poll(now, &mut self.nic, &mut self.sockets);
            if condition(&mut self.sockets) {
                // What the condition did may want to be sent.
                self.turn(Duration::ZERO);
                return;
            }
            assert!(!self.nic.closed, "no {what}: the link was closed");
            let left = deadline.checked_duration_since(Instant::now());
            self.turn(left.unwrap_or_else(|| panic!("no {what} came")));
        }
    }

    /// Runs for this long.
    pub fn run_for(&mut self, span: Duration) {
        let deadline = Instant::now() + span;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            self.turn(left);
        }
    }

    /// Lets the stack work once, and waits for the link or a timer of the stack, at most for `patience`.
    fn turn(&mut self, patience: Duration) {
        let now = self.clock();
        self.iface.poll(now, &mut self.nic, &mut self.sockets);
        let delay = self.iface.poll_delay(self.clock(), &self.sockets);
        let delay = delay.map_or(patience, |d| patience.min(d.into()));
        self.nic.pump(delay);
    }

    fn clock(&self) -> Clock {
        Clock::from_micros(i64::try_from(self.start.elapsed().as_micros()).expect("soon"))
    }
}

/// The card: whole frames between the stack and the socket.
struct Nic {
    stream: UnixStream,
    mtu: usize,
    rx: VecDeque<Vec<u8>>,
    partial: Vec<u8>,
    /// Frames with their lengths that wait for room in the socket.
    tx: Vec<u8>,
    closed: bool,
}

impl Nic {
    /// Moves what can be moved; before that waits for something to move, at most for `patience`.
    fn pump(&mut self, patience: Duration) {
        self.write();
        if self.rx.is_empty() && !self.closed {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, !self.tx.is_empty());
            let millis = patience.as_micros().div_ceil(1000).min(1000);
            let timeout = PollTimeout::try_from(millis).expect("short");
            let mut fds = [PollFd::new(self.stream.as_fd(), events)];
            poll(&mut fds, timeout).expect("poll");
        }
        self.write();
        self.read();
    }

    fn read(&mut self) {
        let mut bytes = vec![0; 1 << 18];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.closed = true,
            Ok(n) => {
                self.partial.extend_from_slice(&bytes[..n]);
                split(&mut self.partial, &mut self.rx);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
    }

    fn write(&mut self) {
        while !self.tx.is_empty() {
            match self.stream.write(&self.tx) {
                Ok(n) => drop(self.tx.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.closed = true;
                    break;
                }
            }
        }
    }
}

impl phy::Device for Nic {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Clock) -> Option<(Received, Room<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Received(frame), Room(&mut self.tx)))
    }

    fn transmit(&mut self, _: Clock) -> Option<Room<'_>> {
        (self.tx.len() < 1 << 20).then_some(Room(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Room<'a>(&'a mut Vec<u8>);

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.extend_from_slice(&framed(&frame));
        result
    }
}
