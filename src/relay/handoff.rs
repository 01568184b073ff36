//! Connections from outside that one relay has accepted and another is to have: their way there. It is bounded, and takes no
//! memory and no locks on the way.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
};

use crate::flow::{ClaimSlot, Guest, Key};

/// Connections that may be on their way to a relay at a time.
const MOST: usize = 256;

/// A connection to a forwarded port.
#[derive(Debug)]
pub struct Accepted {
    pub socket: OwnedFd,
    pub peer: SocketAddr,
    /// As the guest is to see it, if that can be, and the slot that it counts on meanwhile.
    pub key: Key,
    pub slot: ClaimSlot,
    /// What is known of the guest, which need not have shown itself to each relay.
    pub guest: Guest,
}

/// The end that connections go in at.
#[derive(Debug)]
pub struct Entry {
    sender: SyncSender<Accepted>,
    count: Arc<AtomicUsize>,
}

/// The end that they come out of.
#[derive(Debug)]
pub struct Exit {
    receiver: Receiver<Accepted>,
    count: Arc<AtomicUsize>,
}

/// A way from one relay to another.
pub fn handoff() -> (Entry, Exit) {
    let (sender, receiver) = sync_channel(MOST);
    let count = Arc::new(AtomicUsize::new(0));
    let entry = Entry {
        sender,
        count: Arc::clone(&count),
    };
    (entry, Exit { receiver, count })
}

impl Entry {
    /// Sends a connection, whose receiver is to be woken.
    ///
    /// # Errors
    /// The connection's socket, if there is no room for it.
    pub fn send(&self, accepted: Accepted) -> Result<(), OwnedFd> {
        self.count.fetch_add(1, Ordering::Release);
        self.sender.try_send(accepted).map_err(|error| {
            self.count.fetch_sub(1, Ordering::Release);
            match error {
                TrySendError::Full(back) | TrySendError::Disconnected(back) => back.socket,
            }
        })
    }
}

impl Exit {
    /// Whether there is something, or is about to be.
    pub fn has_any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    pub fn take(&self) -> Option<Accepted> {
        let accepted = self.receiver.try_recv().ok()?;
        self.count.fetch_sub(1, Ordering::Release);
        Some(accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::Claims,
        net::{Endpoint, Protocol},
    };
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn connections_come_out_in_order_until_there_is_no_room() {
        let (entry, exit) = handoff();
        let key = |port| Key {
            protocol: Protocol::Tcp,
            guest: Endpoint::new([10, 0, 0, 1].into(), 80),
            remote: Endpoint::new([10, 0, 0, 2].into(), port),
        };
        let claims = Claims::default();
        let send = |port: u16| {
            entry.send(Accepted {
                socket: UnixDatagram::unbound().unwrap().into(),
                peer: ([10, 0, 0, 2], port).into(),
                key: key(port),
                slot: claims.slot(&key(port)),
                guest: Guest::new(None, None),
            })
        };
        for round in 0..3 {
            assert!(!exit.has_any() && exit.take().is_none());
            let ports = (0..MOST as u16).map(|n| 1000 * round + n);
            assert!(ports.clone().all(|port| send(port).is_ok()));
            assert!(send(7).is_err());
            assert!(exit.has_any());
            for port in ports {
                assert_eq!(exit.take().unwrap().key, key(port));
            }
        }
        drop(exit);
        assert!(send(7).is_err());
    }
}
