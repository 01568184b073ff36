//! Where a connection stands.

use super::syn::Asking;

/// The life of a connection, opened by the guest or towards it.
///
/// This is a translator's view, not the diagram of RFC 9293, figure 5; seen as the guest's peer it maps like this:
///
/// | phase | RFC 9293 |
/// |---|---|
/// | `SynSent` | SYN-SENT |
/// | `Connecting` | LISTEN: the SYN is here, the host decides what becomes of it |
/// | `SynReceived` | SYN-RECEIVED |
/// | `Open`, both halves open | ESTABLISHED |
/// | `Open`, `guest` beyond `Open`, `host` open | CLOSE-WAIT |
/// | `Open`, `host` is `FinSent`, `guest` open | FIN-WAIT-1 |
/// | `Open`, `host` is `Done`, `guest` open | FIN-WAIT-2 |
/// | `Open`, both beyond `Open`, `host` not `Done` | CLOSING, LAST-ACK |
/// | `Closed` | CLOSED; the host's kernel does the waiting of TIME-WAIT |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The host's peer is accepted and our SYN is sent; the guest's answer is awaited.
    SynSent(Asking),
    /// The guest's SYN was seen; the host's connect() is under way.
    Connecting,
    /// The host is connected and our SYN,ACK is sent; the guest's ACK is awaited.
    SynReceived,
    /// Established. `host` is the stream from host to guest, `guest` the one from guest to host.
    Open {
        host: Half,
        guest: Half,
    },
    Closed,
}

impl Phase {
    /// The handshake is done.
    pub const fn established() -> Self {
        Self::Open {
            host: Half::Open,
            guest: Half::Open,
        }
    }

    /// Whether the handshake is still to be done.
    pub const fn is_handshake(self) -> bool {
        matches!(
            self,
            Self::SynSent(_) | Self::Connecting | Self::SynReceived
        )
    }
}

/// How far one direction's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Open,
    /// The sender has no more; what came before may still be on its way through us.
    FinSeen,
    /// The receiver was told.
    FinSent,
    /// The receiver acknowledged; where that is the host's kernel, it took over.
    Done,
}
