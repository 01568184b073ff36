//! Dumps of the kernel's interface, address and route tables (rtnetlink(7)).

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Message types of rtnetlink(7).
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;

/// Message types of netlink(7).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// How often a dump that the kernel calls inconsistent is asked for again.
const TRIES: u32 = 8;

/// The messages of one dump, back to back.
#[derive(Debug, Default)]
pub(super) struct Dump(Vec<u8>);

impl Dump {
    pub(super) fn new(messages: Vec<u8>) -> Self {
        Self(messages)
    }

    /// Type and body of each message; stops at the first whose length is a lie.
    pub(super) fn messages(&self) -> impl Iterator<Item = (u16, &[u8])> {
        messages(&self.0).map(|message| (message.message_type(), message.payload()))
    }
}

/// Asks for one table.
///
/// # Errors
/// Those of the socket, what the kernel answers instead of the table, and `Interrupted` if the table changed during each
/// of several dumps.
pub(super) fn dump(request: RouteNetlinkMessage) -> io::Result<Dump> {
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    for _ in 0..TRIES {
        // A socket a try: what is left of an interrupted dump must not be taken for the next.
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&bytes, 0)?;
        if let Some(dump) = collect(&socket)? {
            return Ok(dump);
        }
    }
    Err(io::Error::from(io::ErrorKind::Interrupted))
}

/// Reads to the end of the dump; `None` if the table changed meanwhile.
fn collect(socket: &Socket) -> io::Result<Option<Dump>> {
    let mut dump = Dump::default();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in messages(&datagram) {
            if message.flags() & NLM_F_DUMP_INTR != 0 {
                return Ok(None);
            }
            match message.message_type() {
                NLMSG_DONE => return Ok(Some(dump)),
                NLMSG_ERROR => return Err(refusal(message.buffer)),
                _ => dump.push(message.buffer, message.length()),
            }
        }
    }
}

impl Dump {
    fn push(&mut self, message: &[u8], length: u32) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.0
            .extend_from_slice(message.get(..length).unwrap_or(message));
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

fn refusal(message: &[u8]) -> io::Error {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
        Ok(NetlinkPayload::Error(error)) => error.to_io(),
        _ => io::Error::from(io::ErrorKind::InvalidData),
    }
}

/// The messages of a datagram, each four-octet aligned.
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(message.length()).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(bytes: Vec<u8>) {
            let dump = Dump(bytes.clone());
            let walked: usize = dump.messages().map(|(_, body)| body.len() + 16).sum();
            prop_assert!(walked <= bytes.len());
        }
    }

    #[test]
    fn messages_are_found_one_after_the_other() {
        let mut bytes = vec![18, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 8, 0, 0];
        bytes.extend([17, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        bytes.extend([99, 0, 0, 0]);
        let dump = Dump(bytes);
        let seen: Vec<(u16, &[u8])> = dump.messages().collect();
        assert_eq!(seen, [(16, &[7, 8][..]), (20, &[9][..])]);
    }
}
