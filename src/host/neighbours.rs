//! Hears of the neighbours that the kernel knows on the host's links (rtnetlink(7), RTM_NEWNEIGH).
//!
//! Events come by a socket of their own: what comes during the first dump is heard after it, and what changes twice counts as
//! it was at last.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
};

use netlink_packet_core::{NlaBuffer, NlasIterator, ParseableParametrized};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
        NeighbourState,
    },
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

use super::netlink::{RTM_DELNEIGH, RTM_NEWNEIGH, dump, messages};
use crate::{
    flow::Neighbour,
    net::{Mac, Now, Span},
};

/// Multicast group of rtnetlink(7): RTMGRP_NEIGH.
const GROUP: u32 = 0x4;

/// Size of the fixed header before the attributes: ndmsg (rtnetlink(7)).
const HEADER: usize = 12;

/// Octets of events read at a time, and how many times before it is others' turn.
const BUFFER: usize = 16 * 1024;
const READS: usize = 64;

/// After events were lost the whole table is read, but no more often than that.
const REST: Span = Span::secs(1);

/// A netlink socket that is told of neighbours.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    buffer: Box<[u8]>,
    /// When to read the whole table.
    due: Option<Now>,
    rest: Now,
}

impl Watch {
    /// Begins to listen; the whole table is due at once.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, GROUP))?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            due: Some(Now(0)),
            rest: Now(0),
        })
    }

    /// What became known since, to be noted in this order.
    pub fn events(&mut self, now: Now) -> Vec<Neighbour> {
        let mut heard = Vec::new();
        for _ in 0..READS {
            match recv(
                self.socket.as_raw_fd(),
                &mut self.buffer,
                MsgFlags::MSG_TRUNC,
            ) {
                Ok(len) if len <= self.buffer.len() => {
                    let bytes = self.buffer.get(..len).unwrap_or_default();
                    heard.extend(of_messages(bytes));
                }
                Err(Errno::EINTR) => {}
                // The kernel had more to say than it could hold, or we.
                Ok(_) | Err(Errno::ENOBUFS) => self.ask_for_all(now),
                Err(_) => return heard,
            }
        }
        // There may be more, and no other event tells.
        self.ask_for_all(now);
        heard
    }

    /// Has the whole table read as soon as that may be.
    pub fn ask_for_all(&mut self, now: Now) {
        let soonest = now.max(self.rest);
        self.due.get_or_insert(soonest);
    }

    /// When to call [`Watch::all`] next.
    pub const fn due(&self) -> Option<Now> {
        self.due
    }

    /// The whole table, if it is due; `None` too if the kernel would not tell, which is asked again.
    pub fn all(&mut self, now: Now) -> Option<Vec<Neighbour>> {
        self.due.take_if(|due| *due <= now)?;
        self.rest = now + REST;
        // First the events, then the table: what changes in between is an event again.
        self.events(now);
        match dump(RouteNetlinkMessage::GetNeighbour(
            NeighbourMessage::default(),
        )) {
            Ok(dump) => {
                let all = dump.messages();
                Some(
                    all.filter_map(|(kind, body)| neighbour(kind, body))
                        .collect(),
                )
            }
            Err(_) => {
                self.ask_for_all(now);
                None
            }
        }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What messages say of neighbours, from whatever source: octets that make no sense say nothing.
pub fn of_messages(octets: &[u8]) -> Vec<Neighbour> {
    let all = messages(octets);
    all.filter_map(|m| neighbour(m.message_type(), m.payload()))
        .collect()
}

/// What a message says of a neighbour; of bridges and proxies it says something else.
fn neighbour(kind: u16, body: &[u8]) -> Option<Neighbour> {
    let known = match kind {
        RTM_NEWNEIGH => true,
        RTM_DELNEIGH => false,
        _ => return None,
    };
    let header = NeighbourHeader::parse(body).ok()?;
    if header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut addr, mut mac) = (None, None);
    for attribute in attributes(body) {
        match NeighbourAttribute::parse_with_param(&attribute, header.family) {
            Ok(NeighbourAttribute::Destination(found)) => addr = ip(header.family, &found),
            Ok(NeighbourAttribute::LinkLayerAddress(octets)) => {
                mac = octets.try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    Some(Neighbour {
        interface: header.ifindex,
        addr: addr?,
        mac: mac.filter(|_| known && is_valid(header.state)),
        router: header.flags.contains(NeighbourFlags::Router),
    })
}

fn attributes(body: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(body.get(HEADER..).unwrap_or_default()).map_while(Result::ok)
}

const fn ip(family: AddressFamily, addr: &NeighbourAddress) -> Option<IpAddr> {
    match (family, addr) {
        (AddressFamily::Inet, NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// Whether the kernel would send to the address it has (NUD_VALID, net/neighbour.h).
const fn is_valid(state: NeighbourState) -> bool {
    matches!(
        state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An event as the kernel writes it.
    fn event(family: u8, state: u8, flags: u8, addr: &[u8], mac: &[u8]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0, 3, 0, 0, 0, state, 0, flags, 1];
        for (kind, value) in [(1, addr), (2, mac)] {
            body.extend([(value.len() + 4) as u8, 0, kind, 0]);
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    #[test]
    fn an_event_tells_where_a_neighbour_is_while_it_is_known() {
        let mac = [2, 0, 0, 0, 0, 7];
        let read = |kind, state, flags| {
            let told = neighbour(kind, &event(2, state, flags, &[192, 0, 2, 7], &mac))?;
            assert_eq!((told.interface, told.addr), (3, [192, 0, 2, 7].into()));
            Some((told.mac, told.router))
        };
        for state in [2, 4, 8, 0x10, 0x40, 0x80] {
            assert_eq!(read(28, state, 0), Some((Some(Mac(mac)), false)));
        }
        for state in [0, 1, 0x20] {
            assert_eq!(read(28, state, 0), Some((None, false)), "{state}");
        }
        assert_eq!(read(28, 2, 0x80), Some((Some(Mac(mac)), true)));
        assert_eq!(read(29, 2, 0), Some((None, false)));
        assert_eq!(read(28, 2, 8), None, "a proxy");
        assert_eq!(read(30, 2, 0), None);
        let bridge = event(7, 2, 0, &mac, &mac);
        assert_eq!(neighbour(28, &bridge), None);
        let tunnel = event(2, 2, 0, &[192, 0, 2, 7], &[0; 20]);
        assert_eq!(neighbour(28, &tunnel).unwrap().mac, None);
    }

    proptest! {
        #[test]
        fn any_octets_can_be_read(kind in 27..31_u16, body: Vec<u8>) {
            let _ = neighbour(kind, &body);
        }
    }
}
