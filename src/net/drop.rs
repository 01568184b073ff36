//! Why a frame or datagram was dropped: one list for the whole program, each entry counted.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal),+ $(,)?) => {
        /// The reason a frame, datagram or segment went no further.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Why {
            $($(#[doc = $doc])+ $name),+
        }

        impl Why {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
        }

        impl fmt::Display for Why {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text),+
                })
            }
        }
    };
}

reasons! {
    /// Shorter than the headers it announces.
    Truncated = "truncated",
    /// A header field contradicts itself (version, length, offset).
    Malformed = "malformed header",
    /// The IPv4 header, ICMP, DHCP or ND checksum is wrong.
    Checksum = "wrong checksum",
    /// An EtherType we do not serve.
    EtherType = "EtherType not served",
    /// A frame of a VLAN: the guest's link has none.
    Vlan = "VLAN tag",
    /// A frame with a length where the EtherType is, as spanning tree and old protocols have it (IEEE 802.3, LLC).
    Llc = "LLC frame",
    /// An IP protocol we do not serve.
    IpProtocol = "IP protocol not served",
    /// A fragment that contradicts others of its packet, or a packet some of which never came.
    Fragment = "fragments that do not fit",
    /// No memory was left to hold it.
    NoMemory = "no memory",
    /// An IPv4 option or IPv6 extension header that asks for what we cannot do.
    Extension = "IP option or extension header not served",
    /// Not addressed to us: another host's MAC, or a port that is not forwarded.
    NotForUs = "not for us",
    /// The source address may not stand there: loopback, multicast, unspecified, broadcast or our own.
    Source = "bad source address",
    /// The destination address may not be reached from a guest: loopback, unspecified.
    Destination = "bad destination address",
    /// Port 0.
    PortZero = "port 0",
    /// The family, the protocol or the guest's queue is switched off.
    Disabled = "switched off",
    /// A service has nothing to say to this request.
    Unanswered = "request without an answer",
    /// A TCP segment outside the receive window, or one that fits no state.
    OutOfWindow = "TCP segment outside the window",
    /// A TCP segment ahead of a gap.
    OutOfOrder = "TCP segment ahead of a gap",
    /// A guest ICMP message that is neither echo request nor error.
    IcmpType = "ICMP type not served",
    /// An ICMP error of the guest, which no socket passes on.
    GuestError = "ICMP error from the guest",
    /// An ICMP error about a TCP connection beyond its handshake, which the host's kernel rode out in vain; counted when the
    /// connection ends.
    HostError = "ICMP error from the host",
    /// The flow table or the descriptors are exhausted.
    NoFlow = "no flow or descriptor left",
    /// Peers have as many flows as they may: the rest is kept for the guest's own, and for other peers.
    Share = "share of peers used up",
    /// More new flows at once than can have their turn soon.
    Backlog = "too many new flows at once",
    /// The flow ended in the midst of the burst.
    Gone = "flow ended meanwhile",
    /// Too many peers of a forwarded port look the same to the guest.
    Alike = "peers look the same",
    /// Others make way for the guest's new flows no faster: TCP and ping ask again, datagrams are lost.
    Turnover = "too many new flows in place of others",
    /// The socket could not be opened, bound or connected.
    Socket = "no socket to be had",
    /// The host would not send a datagram, for another reason than a full socket or its size.
    Unsent = "host refused to send",
    /// The host's socket would not take a datagram.
    HostFull = "socket of the host full",
    /// The link had no room for an answer; the guest will ask again.
    LinkFull = "link full",
    /// The guest's buffers would not hold the frame, however long it waited.
    TooLong = "larger than the guest's buffers",
    /// No guest is connected, or nothing is known of where it is.
    NoGuest = "no guest",
    /// A datagram that must not be fragmented, and that the path takes only in parts.
    TooBig = "larger than the path MTU",
    /// Multicast or broadcast that stays on the guest's link.
    Multicast = "multicast that stays on the link",
    /// Accepted-window data that neither the socket nor the spill pool could take; the guest sends it again.
    PromiseBroken = "window promised and not kept",
}

/// A counter for each [`Why`].
#[derive(Debug, Clone)]
pub struct Drops([u64; Why::ALL.len()]);

impl Drops {
    pub const fn new() -> Self {
        Self([0; Why::ALL.len()])
    }

    pub fn count(&mut self, why: Why) {
        if let Some(counter) = self.0.get_mut(why as usize) {
            *counter += 1;
        }
    }

    pub fn of(&self, why: Why) -> u64 {
        self.0.get(why as usize).copied().unwrap_or(0)
    }

    /// The reasons that occurred, with how often.
    pub fn seen(&self) -> impl Iterator<Item = (Why, u64)> + '_ {
        Why::ALL
            .iter()
            .map(|&why| (why, self.of(why)))
            .filter(|&(_, n)| n > 0)
    }
}

impl Default for Drops {
    fn default() -> Self {
        Self::new()
    }
}
