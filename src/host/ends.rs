//! The ends of sockets: the peer, and ours, which `--outbound`, `--outbound-if4` and `-if6` give an address and an interface.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::IpBindAddressNoPort},
};
use socket2::{SockAddr, Socket};

use crate::{config::Outbound, flow::Target, net::Endpoint};

/// Where a flow's socket is to be connected, and over which link if the address alone does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub endpoint: Endpoint,
    /// Interface index for link-local IPv6 addresses, else 0.
    pub scope: u32,
}

impl From<Target> for Peer {
    fn from(target: Target) -> Self {
        Self {
            endpoint: target.addr,
            scope: target.scope,
        }
    }
}

impl Peer {
    pub fn address(self) -> SocketAddr {
        let Endpoint { addr, port } = self.endpoint;
        match addr {
            IpAddr::V4(_) => SocketAddr::new(addr, port),
            IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, self.scope)),
        }
    }
}

/// Whether a peer is reached without any network.
pub fn is_local(peer: Peer) -> bool {
    peer.endpoint.addr.is_loopback()
}

/// Binds to the address and interface for `peer`, and to `port` unless that is 0.
pub fn bind(socket: &Socket, peer: Peer, outbound: &Outbound, port: u16) -> io::Result<()> {
    bind_interface(socket, peer, outbound)?;
    let addr = address(peer, outbound);
    if addr.is_some() || port != 0 {
        let any = match peer.endpoint.addr {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let local = SocketAddr::new(addr.unwrap_or(any), port);
        socket.bind(&SockAddr::from(local)).map_err(no_way_out)?;
    }
    Ok(())
}

/// The same for a TCP socket whose port is chosen as it is connected: each port serves towards every peer then, as it does
/// without an address (IP_BIND_ADDRESS_NO_PORT, ip(7)).
pub fn bind_address(socket: &Socket, peer: Peer, outbound: &Outbound) -> io::Result<()> {
    if address(peer, outbound).is_some() {
        setsockopt(socket, IpBindAddressNoPort, &true)?;
    }
    bind(socket, peer, outbound, 0)
}

/// The address that packets to `peer` are to leave from. What is mapped to the host itself is reached from its own.
fn address(peer: Peer, outbound: &Outbound) -> Option<IpAddr> {
    let addr = match peer.endpoint.addr {
        IpAddr::V4(_) => outbound.addr4.map(IpAddr::V4),
        IpAddr::V6(_) => outbound.addr6.map(IpAddr::V6),
    };
    addr.filter(|_| !is_local(peer))
}

/// What is mapped to the host itself is reached over no other interface than its own.
pub fn bind_interface(socket: &Socket, peer: Peer, outbound: &Outbound) -> io::Result<()> {
    let interface = match peer.endpoint.addr {
        IpAddr::V4(_) => &outbound.interface4,
        IpAddr::V6(_) => &outbound.interface6,
    };
    match interface {
        Some(name) if !is_local(peer) => socket
            .bind_device(Some(name.as_bytes()))
            .map_err(no_way_out),
        _ => Ok(()),
    }
}

/// The host has no such interface or address now: nothing is short, the network is out of reach.
pub fn no_way_out(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::EADDRNOTAVAIL) => Errno::ENETUNREACH.into(),
        _ => error,
    }
}

/// Whether a failure is about one port, where others may be had all the same.
pub fn is_of_port(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRINUSE | libc::EACCES | libc::EPERM)
    )
}
