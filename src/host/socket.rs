//! Opens sockets of the host for flows of the guest.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::ends::{Peer, bind, bind_address, bind_interface, is_local, no_way_out};
use crate::{
    config::Outbound,
    net::{Endpoint, Span},
    sys::{Control, Marks, sockopt},
    wire::frame::Ip,
};

/// What this kernel can do, found out once at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// SO_PEEK_OFF on TCP sockets; IPv4 since Linux 6.9, IPv6 since 6.11.
    pub peek_offset4: bool,
    pub peek_offset6: bool,
}

impl Features {
    /// Asks the kernel.
    pub fn probe() -> Self {
        let peek = |domain| {
            Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
                .and_then(|socket| sockopt::set_peek_offset(socket.as_fd(), 0))
                .is_ok()
        };
        Self {
            peek_offset4: peek(Domain::IPV4),
            peek_offset6: peek(Domain::IPV6),
        }
    }

    /// Without anything newer than the oldest kernel we serve.
    pub const fn none() -> Self {
        Self {
            peek_offset4: false,
            peek_offset6: false,
        }
    }

    /// Whether TCP sockets of this address's family have a peek offset.
    pub const fn peek_offset(self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(_) => self.peek_offset4,
            IpAddr::V6(_) => self.peek_offset6,
        }
    }
}

/// How packets travel: what of their IP headers a socket can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Time to live, or hop limit; 1 at least.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Whether fragments are forbidden: what exceeds the path MTU is then refused (EMSGSIZE).
    pub whole: bool,
}

impl Manner {
    /// As a packet of the guest is sent.
    pub fn of(ip: &Ip) -> Self {
        Self {
            ttl: ip.ttl.max(1),
            tos: ip.tos,
            whole: ip.whole,
        }
    }
}

impl Default for Manner {
    /// As hosts send what nobody asks more of.
    fn default() -> Self {
        Self {
            ttl: 64,
            tos: 0,
            whole: true,
        }
    }
}

/// Opens a TCP socket and begins to connect it. The flag tells whether it is connected already. Errors that pass will end it
/// until [`ignore_passing_errors`] says otherwise.
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2), but for EINPROGRESS.
pub fn tcp(peer: Peer, outbound: &Outbound, manner: Manner) -> io::Result<(OwnedFd, bool)> {
    let socket = open(peer, Type::STREAM, Protocol::TCP)?;
    let (v6, local) = (peer.endpoint.addr.is_ipv6(), is_local(peer));
    if manner.tos != 0 {
        sockopt::set_tos(socket.as_fd(), v6, manner.tos)?;
    }
    prepare_tcp(&socket)?;
    // There are no routers on the way to oneself.
    if !local {
        sockopt::set_ttl(socket.as_fd(), v6, manner.ttl)?;
        // Until it is connected: afterwards every error would end it, those that pass too (ip(7)).
        sockopt::set_receive_errors(socket.as_fd(), v6, true)?;
    }
    bind_address(&socket, peer, outbound)?;
    let address = SockAddr::from(peer.address());
    let connected = match socket.connect(&address) {
        // Who talks to oneself has the answer by now.
        Err(error) if local && error.raw_os_error() == Some(libc::EINPROGRESS) => {
            socket.connect(&address)
        }
        connected => connected,
    };
    match connected {
        Ok(()) => Ok((socket.into(), true)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS | libc::EALREADY) => Ok((socket.into(), false)),
            // Want of a port towards this peer, or of any address: datagrams are never short of ports.
            Some(libc::EADDRNOTAVAIL) => Err(udp(peer, outbound, 0, false).err().unwrap_or(error)),
            _ => Err(error),
        },
    }
}

/// Takes the next connection that waits at a listening socket, which [`prepare_tcp`] has seen, with its peer.
///
/// # Errors
/// Those of accept(2); `WouldBlock` when none waits.
pub fn accept(listener: &impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let (socket, peer) = SockRef::from(listener).accept()?;
    let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    socket.set_nonblocking(true)?;
    Ok((socket.into(), canonical(peer)))
}

/// Has a TCP socket take and give what flows rely on. Connections have it from the socket they are accepted at.
///
/// # Errors
/// Those of setsockopt(2).
pub fn prepare_tcp(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    // Urgent data stays in the stream; the guest's URG is not reproduced.
    socket.set_out_of_band_inline(true)?;
    // A window promises room, which net.ipv4.tcp_notsent_lowat would have the kernel refuse to fill.
    socket.set_tcp_notsent_lowat(u32::MAX)
}

/// Opens a UDP socket for what `peer` sent to one of our ports: bound to that very address, so that what goes back comes from
/// there, and connected. What others sent meanwhile may be in it.
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2).
pub fn udp_reply(
    local: SocketAddr,
    peer: SocketAddr,
    interface: Option<&str>,
    freebind: bool,
) -> io::Result<OwnedFd> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(peer), kind, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    prepare_udp(&socket, peer.is_ipv6())?;
    if peer.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match peer {
        SocketAddr::V4(_) if freebind => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) if freebind => socket.set_freebind_v6(true)?,
        _ => {}
    }
    if let Some(name) = interface {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    socket.bind(&SockAddr::from(local)).map_err(no_way_out)?;
    connect(&socket, peer)?;
    Ok(socket.into())
}

/// Opens a UDP socket for a flow that had these ends elsewhere, and was bound to this interface; of ours the port counts, and
/// the address and the interface where the host has them.
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2).
pub fn udp_again(
    local: SocketAddr,
    remote: Peer,
    interface: Option<&str>,
    outbound: &Outbound,
) -> io::Result<OwnedFd> {
    let peer = remote.address();
    udp_reply(local, peer, interface, false)
        .or_else(|_| udp_reply(local, peer, None, false))
        .or_else(|_| udp(remote, outbound, local.port(), true))
}

/// The interface a socket is bound to, but for the peer's sake only (link-local IPv6 addresses).
pub fn device(socket: &impl AsFd, peer: IpAddr) -> Option<String> {
    if matches!(peer, IpAddr::V6(v6) if crate::net::is_link_local6(v6)) {
        return None;
    }
    String::from_utf8(SockRef::from(socket).device().ok()??).ok()
}

/// Whether the interface a socket is bound to is gone; another of its name is not the one.
pub fn has_lost_interface(socket: &impl AsFd) -> bool {
    let failed = SockRef::from(socket).device().err();
    failed.and_then(|error| error.raw_os_error()) == Some(libc::ENODEV)
}

/// Binds a socket to the interface it was bound to elsewhere. Where there is none of this name the routes decide.
pub fn bind_again(socket: &impl AsFd, interface: Option<&str>) {
    if let Some(name) = interface {
        let _ = SockRef::from(socket).bind_device(Some(name.as_bytes()));
    }
}

/// The two ends of a connected socket.
pub fn ends(socket: &impl AsFd) -> Option<(SocketAddr, SocketAddr)> {
    Some((local(socket)?, peer(socket)?))
}

/// Whether a socket whose peer this is to be is its own peer.
pub fn is_own_peer(socket: &impl AsFd, peer: Peer) -> bool {
    local(socket).is_some_and(|local| Endpoint::from(local) == peer.endpoint)
}

/// Our end of a socket, which one of echo requests has too.
pub fn local(socket: &impl AsFd) -> Option<SocketAddr> {
    let local = SockRef::from(socket).local_addr().ok()?.as_socket()?;
    Some(canonical(local))
}

/// The peer a socket is connected to.
pub fn peer(socket: &impl AsFd) -> Option<SocketAddr> {
    let peer = SockRef::from(socket).peer_addr().ok()?.as_socket()?;
    Some(canonical(peer))
}

/// An IPv4 address in the guise of an IPv6 one, made plain.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// A datagram that came to a forwarded port or to a socket of [`udp_reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Octets received.
    pub len: usize,
    pub from: SocketAddr,
    /// Our address that a reply is to come from, where the socket tells: unspecified if `from` used a multicast address.
    pub to: Option<SocketAddr>,
    pub marks: Marks,
}

/// Receives a datagram, its sender, and which of our addresses it was sent to (IP_PKTINFO, ip(7)). The port of `to` is 0.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is none.
pub fn receive_from(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut control = <Control>::new();
    let mut iov = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut control.0),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let from = message.address.as_ref().and_then(socket_addr);
    let from = canonical(from.ok_or(io::ErrorKind::InvalidData)?);
    let (mut to, mut marks) = (None, Marks::default());
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                marks.ttl = u8::try_from(ttl).ok();
            }
            ControlMessageOwned::Ipv4Tos(tos) => marks.tos = Some(tos),
            ControlMessageOwned::Ipv6TClass(tos) => marks.tos = u8::try_from(tos).ok(),
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                // The address routing would answer from: of a broadcast, the interface's own. It is not known of what came
                // before it was asked for.
                let own = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                let used = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                let addr = match own {
                    Ipv4Addr::UNSPECIFIED if !used.is_multicast() => used,
                    own => own,
                };
                to = Some(SocketAddr::new(addr.into(), 0));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) if from.is_ipv6() => {
                let addr = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let addr = if addr.is_multicast() {
                    Ipv6Addr::UNSPECIFIED
                } else {
                    addr
                };
                let scope = if crate::net::is_link_local6(addr) {
                    info.ipi6_ifindex
                } else {
                    0
                };
                to = Some(SocketAddrV6::new(addr, 0, 0, scope).into());
            }
            _ => {}
        }
    }
    Ok(Arrival {
        len: message.bytes,
        from,
        to,
        marks,
    })
}

fn socket_addr(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    storage
        .as_sockaddr_in6()
        .map(|v6| SocketAddr::V6((*v6).into()))
}

/// Opens a UDP socket connected to `peer`, bound to `port` where that can be had. What others sent meanwhile may be in it, or
/// come to it a moment later.
///
/// One that goes `beside` another socket of ours on this port is bound to the very address that it sends from. Otherwise it
/// would move within the kernel's tables as it is connected, and whoever looks there meanwhile for the other may find neither.
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2).
pub fn udp(peer: Peer, outbound: &Outbound, port: u16, beside: bool) -> io::Result<OwnedFd> {
    let source = beside.then(|| source(peer, outbound)).transpose()?;
    let socket = open(peer, Type::DGRAM, Protocol::UDP)?;
    // Flows from one port of the guest to several peers share that port; each hears its own peer only, once connected.
    socket.set_reuse_address(true)?;
    prepare_udp(&socket, peer.endpoint.addr.is_ipv6())?;
    let bound = match source {
        Some(mut addr) => {
            addr.set_port(port);
            bind_interface(&socket, peer, outbound)
                .and_then(|()| socket.bind(&SockAddr::from(addr)))
        }
        None => bind(&socket, peer, outbound, port),
    };
    if bound.is_err() {
        bind(&socket, peer, outbound, 0)?;
    }
    connect(&socket, peer.address())?;
    Ok(socket.into())
}

/// Connects a socket of datagrams, which have no port to be short of: where no address is to be had, none leads there.
///
/// # Errors
/// Those of connect(2).
pub fn connect(socket: &impl AsFd, peer: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.connect(&SockAddr::from(peer)).map_err(no_way_out)
}

/// Has a UDP socket tell of ICMP errors, and of what the headers of received datagrams say.
///
/// # Errors
/// Those of setsockopt(2).
pub fn prepare_udp(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    sockopt::set_receive_errors(socket.as_fd(), v6, true)?;
    sockopt::set_receive_marks(socket.as_fd(), v6)?;
    Ok(())
}

/// Lets a connected UDP socket hand over several datagrams as one; a kernel that cannot hands them over one by one.
pub fn receive_segments(socket: &impl AsFd) {
    let _ = sockopt::set_receive_segments(socket.as_fd());
}

/// Octets of the kernel's memory that a datagram takes at the least while it waits: far less than any does.
const LEAST_HELD: usize = 256;

/// Datagrams that may wait in a UDP socket at the most.
pub fn most_held(socket: &impl AsFd) -> usize {
    let octets = SockRef::from(socket).recv_buffer_size().unwrap_or_default();
    // The last one may exceed the buffer.
    octets / LEAST_HELD + 1
}

/// Octets a roomy UDP socket holds, as far as the system allows (rmem_max): what a fast sender sends while we wait for a
/// processor.
const ROOMY: usize = 1 << 20;

/// Has a UDP socket hold more than is usual.
pub fn make_roomy(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    // The kernel doubles what is asked for (socket(7)); what the system gives every socket may be more than that.
    if socket.recv_buffer_size().is_ok_and(|now| now < 2 * ROOMY) {
        let _ = socket.set_recv_buffer_size(ROOMY);
    }
}

/// Lets a socket send in this manner; `now` is how it sends so far, `None` if it is new.
pub fn set_manner(socket: &impl AsFd, v6: bool, now: &mut Option<Manner>, manner: Manner) {
    if *now == Some(manner) {
        return;
    }
    let socket = socket.as_fd();
    // None of these fails with values of the right range; what failed all the same is tried again with the next change.
    if now.is_none_or(|now| now.ttl != manner.ttl) {
        let _ = sockopt::set_ttl(socket, v6, manner.ttl);
    }
    if now.map_or(0, |now| now.tos) != manner.tos {
        let _ = sockopt::set_tos(socket, v6, manner.tos);
    }
    if now.is_none_or(|now| now.whole != manner.whole) {
        let _ = sockopt::set_dont_fragment(socket, v6, manner.whole);
    }
    *now = Some(manner);
}

/// Opens a ping socket (icmp(7)) connected to `peer`; the kernel chooses the identifier.
///
/// # Errors
/// Those of socket(2), EACCES where net.ipv4.ping_group_range does not name our group; bind(2) and connect(2).
pub fn echo(peer: Peer, outbound: &Outbound) -> io::Result<OwnedFd> {
    let v6 = peer.endpoint.addr.is_ipv6();
    let socket = open(
        peer,
        Type::DGRAM,
        if v6 {
            Protocol::ICMPV6
        } else {
            Protocol::ICMPV4
        },
    )?;
    sockopt::set_receive_errors(socket.as_fd(), v6, true)?;
    sockopt::set_receive_marks(socket.as_fd(), v6)?;
    bind(&socket, peer, outbound, 0)?;
    connect(&socket, peer.address())?;
    Ok(socket.into())
}

/// Whether ping sockets may be opened at all (net.ipv4.ping_group_range, which both families heed).
pub fn may_echo() -> bool {
    let kind = Type::DGRAM.nonblocking().cloexec();
    Socket::new(Domain::IPV4, kind, Some(Protocol::ICMPV4)).is_ok()
}

fn open(peer: Peer, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = Domain::for_address(peer.address());
    Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))
}

/// The address that the routes have this peer's packets leave from; its port means nothing.
fn source(peer: Peer, outbound: &Outbound) -> io::Result<SocketAddr> {
    let probe = open(peer, Type::DGRAM, Protocol::UDP)?;
    bind(&probe, peer, outbound, 0)?;
    connect(&probe, peer.address())?;
    let local = probe.local_addr()?.as_socket();
    Ok(local.ok_or(io::ErrorKind::InvalidInput)?)
}

/// The pending error of a socket, which is cleared by asking.
///
/// # Errors
/// That very error.
pub fn outcome(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).take_error()?.map_or(Ok(()), Err)
}

/// Whether the last that a TCP connection heard was an ICMP error. No event tells of one, but it is kept until the next
/// acknowledgement (icmp_err_convert of the kernel has these numbers of them).
pub fn heard_icmp_error(socket: &impl AsFd) -> bool {
    let error = outcome(socket).err().and_then(|e| e.raw_os_error());
    matches!(
        error,
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::ECONNREFUSED
                | libc::EPROTO
                | libc::EACCES
        )
    )
}

/// Lets a connected TCP socket ride out errors that may pass; those that end it are reported all the same.
pub fn ignore_passing_errors(socket: &OwnedFd, v6: bool) {
    // It could be set, so it can be unset.
    let _ = sockopt::set_receive_errors(socket.as_fd(), v6, false);
}

/// Has the kernel ask the peer after so long a silence, and then every so often, whether it is still there (SO_KEEPALIVE,
/// socket(7)); ten seconds at least and two hours at most.
pub fn keep_alive(socket: &impl AsFd, silence: Span) {
    let silence = Duration::from_millis(silence.as_millis());
    let time = silence.clamp(Duration::from_secs(10), Duration::from_secs(7200));
    let often = TcpKeepalive::new()
        .with_time(time)
        .with_interval(time.min(Duration::from_secs(75)));
    // Kernels have been able to for decades; without, the flow lives on as it would have.
    let _ = SockRef::from(socket).set_tcp_keepalive(&often);
}

/// Undoes [`reset_on_close`].
pub fn close_in_order(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(None);
}

/// Makes close(2) reset the connection instead of ending it in order.
pub fn reset_on_close(socket: &impl AsFd) {
    // Where this fails the connection is gone already.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests;
