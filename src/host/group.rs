//! Sockets for multicast and broadcast: some send to groups from a port of the guest's and hear whoever answers, others are
//! members of a group and hear what is sent to one port of it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockRef, Socket, Type};

use super::ends::{Peer, bind};
use crate::{config::Outbound, sys::sockopt};

/// Opens a socket that sends to groups and broadcast addresses, from `port` where that can be shared. It is not connected, so
/// that answers from anyone come back; what is sent to groups comes to members only.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2).
pub fn sender(peer: Peer, outbound: &Outbound, port: u16) -> io::Result<OwnedFd> {
    let socket = open(peer.endpoint.addr)?;
    sockopt::set_receive_marks(socket.as_fd(), peer.endpoint.addr.is_ipv6())?;
    set_interface(&socket, peer, outbound)?;
    keep_to_members(&socket, peer.endpoint.addr.is_ipv6())?;
    if bind(&socket, peer, outbound, port).is_err() {
        bind(&socket, peer, outbound, 0)?;
    }
    // With no address and no port there was nothing to bind; it must be known before something is sent.
    if local(&socket).is_none_or(|local| local.port() == 0) {
        let any: IpAddr = match peer.endpoint.addr {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket.bind(&SockAddr::from(SocketAddr::new(any, 0)))?;
    }
    Ok(socket.into())
}

/// As whom others, and our own members of the group, see what this sender sends to `peer`; `None` where nothing leads there.
pub fn seen_as(sender: &impl AsFd, peer: Peer, outbound: &Outbound) -> Option<SocketAddr> {
    let port = local(&SockRef::from(sender))?.port();
    // The kernel chooses the address with the route: a connected socket tells, and costs no packet.
    let probe = open(peer.endpoint.addr).ok()?;
    set_interface(&probe, peer, outbound).ok()?;
    bind(&probe, peer, outbound, 0).ok()?;
    probe.connect(&SockAddr::from(peer.address())).ok()?;
    local(&probe).map(|local| SocketAddr::new(local.ip(), port))
}

/// Opens a socket that is a member of a group, through the interface that `group` names, and hears what is sent to its port.
/// Others may do the same.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2).
pub fn member(group: Peer, outbound: &Outbound) -> io::Result<OwnedFd> {
    let addr = group.endpoint.addr;
    let socket = open(addr)?;
    sockopt::set_receive_marks(socket.as_fd(), addr.is_ipv6())?;
    keep_to_members(&socket, addr.is_ipv6())?;
    socket.bind(&SockAddr::from(group.address()))?;
    match addr {
        IpAddr::V4(v4) => {
            let through = match (group.scope, outbound.addr4) {
                // By address, or by the route to the group.
                (0, addr) => {
                    InterfaceIndexOrAddress::Address(addr.unwrap_or(Ipv4Addr::UNSPECIFIED))
                }
                (index, _) => InterfaceIndexOrAddress::Index(index),
            };
            socket.join_multicast_v4_n(&v4, &through)?;
        }
        IpAddr::V6(v6) => socket.join_multicast_v6(&v6, group.scope)?,
    }
    Ok(socket.into())
}

/// Keeps multicast away from a socket that is no member of the group: by default sockets hear what any on the host has joined
/// (IP_MULTICAST_ALL, ip(7)).
///
/// # Errors
/// Those of setsockopt(2).
pub fn keep_to_members(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if v6 {
        socket.set_multicast_all_v6(false)
    } else {
        socket.set_multicast_all_v4(false)
    }
}

/// Sets how far multicast goes, in hops.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_reach(socket: &impl AsFd, v6: bool, hops: u8) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if v6 {
        socket.set_multicast_hops_v6(hops.into())
    } else {
        socket.set_multicast_ttl_v4(hops.into())
    }
}

/// Sends a datagram.
///
/// # Errors
/// Those of sendto(2).
pub fn send(socket: &impl AsFd, peer: Peer, payload: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send_to(payload, &SockAddr::from(peer.address()))
}

fn open(addr: IpAddr) -> io::Result<Socket> {
    let domain = match addr {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    } else {
        socket.set_broadcast(true)?;
    }
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// What goes to groups leaves through the interface that `peer` names.
fn set_interface(socket: &Socket, peer: Peer, outbound: &Outbound) -> io::Result<()> {
    match (peer.endpoint.addr, peer.scope) {
        (IpAddr::V6(_), 0) => Ok(()),
        (IpAddr::V6(_), scope) => socket.set_multicast_if_v6(scope),
        (IpAddr::V4(_), scope) => {
            let addr = outbound.addr4.unwrap_or(Ipv4Addr::UNSPECIFIED);
            sockopt::set_group_interface4(socket.as_fd(), scope, addr)
        }
    }
}

fn local(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}
