//! What the relay asks of whoever polls: values, carried out in order.

use std::os::fd::{OwnedFd, RawFd};

use crate::flow::Id;

/// A registration, or its end. Closing goes the same way, so that no descriptor's number is used again while a request
/// about its last bearer waits.
#[derive(Debug)]
pub enum Request {
    /// Tell of every change of this flow's socket.
    Watch(RawFd, Id),
    /// Tell when this flow's socket has something to read: that somebody takes what it sent is no news, unless asked for by
    /// [`Request::Rewatch`].
    Hear(RawFd, Id),
    /// Tell when something waits at this forwarded port.
    Listen(RawFd, u32),
    /// Look again now, and let the kernel know that we wait for space to send (`epoll_ctl(2)`, EPOLL_CTL_MOD).
    Rewatch(RawFd, Id),
    /// Tell the host that nothing more comes by this socket (shutdown(2)). The guest need not wait for that, nor for closing:
    /// frames to it come first.
    ShutDown(RawFd),
    /// Close this socket.
    Close(OwnedFd),
}

/// What happened to a flow's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "the bits of an epoll event")]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The peer sends no more, or the connection is gone.
    pub ended: bool,
    pub error: bool,
    /// There is urgent data.
    pub urgent: bool,
}
