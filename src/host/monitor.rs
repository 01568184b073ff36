//! Hears that the host's interfaces, addresses, routes or next hops changed (rtnetlink(7)). What changed is found out by
//! reading the tables again: events can be lost, tables cannot.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

/// Multicast groups of rtnetlink(7): RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR,
/// RTMGRP_IPV6_ROUTE, and RTNLGRP_NEXTHOP: IPv4 routes go with a next hop without a word of their own.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 31;

/// Events read at a time.
const EVENTS_MOST: usize = 4096;

/// A netlink socket that is told of changes.
#[derive(Debug)]
pub struct Monitor(Socket);

impl Monitor {
    /// Begins to listen; changes from here on are heard.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// Forgets the events so far. `false` if there are more.
    pub fn drain(&self) -> bool {
        let mut start = [0; 16];
        for _ in 0..EVENTS_MOST {
            match recv(self.0.as_raw_fd(), &mut start, MsgFlags::empty()) {
                // The kernel had more to say than it could hold; the tables say it too.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
        false
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
