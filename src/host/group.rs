//! Sockets for multicast and broadcast: some send to a group from a port of the guest's and hear whoever answers, others are
//! members of a group and hear what is sent to one port of it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, OwnedFd},
};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};

use super::socket::{Peer, bind};
use crate::{config::Outbound, sys::sockopt};

/// A socket that sends to a group.
#[derive(Debug)]
pub struct Sender {
    pub socket: OwnedFd,
    /// How others, and our own members of the group, see what it sends.
    pub own: Option<SocketAddr>,
}

/// Opens a socket that sends to a group or broadcast address, from `port` where that can be shared. It is not connected, so
/// that answers from anyone come back; what is sent to groups comes to members only.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2).
pub fn sender(peer: Peer, outbound: &Outbound, port: u16) -> io::Result<Sender> {
    let socket = open(peer.endpoint.addr)?;
    let v6 = peer.endpoint.addr.is_ipv6();
    sockopt::set_receive_marks(socket.as_fd(), v6)?;
    if v6 {
        if peer.scope != 0 {
            socket.set_multicast_if_v6(peer.scope)?;
        }
        socket.set_multicast_all_v6(false)?;
    } else {
        socket.set_broadcast(true)?;
        if let Some(addr) = outbound.addr4 {
            socket.set_multicast_if_v4(&addr)?;
        }
        socket.set_multicast_all_v4(false)?;
    }
    if bind(&socket, peer, outbound, port).is_err() {
        bind(&socket, peer, outbound, 0)?;
    }
    // An address of all zeroes is bound as soon as something is sent; here it is wanted before.
    if local(&socket).is_none_or(|local| local.port() == 0) {
        let any = match peer.address() {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        socket.bind(&SockAddr::from(SocketAddr::new(any, 0)))?;
    }
    let own = source(peer, outbound)
        .zip(local(&socket))
        .map(|(addr, local)| SocketAddr::new(addr, local.port()));
    Ok(Sender {
        socket: socket.into(),
        own,
    })
}

/// Opens a socket that is a member of a group and hears what is sent to this port of it. Others may do the same.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2).
pub fn member(group: IpAddr, port: u16, scope: u32, outbound: &Outbound) -> io::Result<OwnedFd> {
    let socket = open(group)?;
    sockopt::set_receive_marks(socket.as_fd(), group.is_ipv6())?;
    let addr = match group {
        IpAddr::V4(_) => SocketAddr::new(group, port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope).into(),
    };
    socket.bind(&SockAddr::from(addr))?;
    match group {
        IpAddr::V4(v4) => {
            // By address, or by the route to the group.
            let through = outbound.addr4.unwrap_or(Ipv4Addr::UNSPECIFIED);
            socket.join_multicast_v4_n(&v4, &InterfaceIndexOrAddress::Address(through))?;
        }
        IpAddr::V6(v6) => socket.join_multicast_v6(&v6, scope)?,
    }
    Ok(socket.into())
}

/// Sets how far multicast goes.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_ttl(socket: &OwnedFd, v6: bool, ttl: u8) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    if v6 {
        socket.set_multicast_hops_v6(ttl.into())
    } else {
        sockopt::set_ttl(socket.as_fd(), false, ttl)?;
        socket.set_multicast_ttl_v4(ttl.into())
    }
}

/// Sends a datagram.
///
/// # Errors
/// Those of sendto(2).
pub fn send(socket: &OwnedFd, peer: Peer, payload: &[u8]) -> io::Result<usize> {
    socket2::SockRef::from(socket).send_to(payload, &SockAddr::from(peer.address()))
}

fn open(addr: IpAddr) -> io::Result<Socket> {
    let domain = if addr.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// The address that what goes to `peer` comes from.
fn source(peer: Peer, outbound: &Outbound) -> Option<IpAddr> {
    let probe = open(peer.endpoint.addr).ok()?;
    probe.set_broadcast(true).ok()?;
    bind(&probe, peer, outbound, 0).ok()?;
    probe.connect(&SockAddr::from(peer.address())).ok()?;
    local(&probe).map(|local| local.ip())
}

fn local(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}
