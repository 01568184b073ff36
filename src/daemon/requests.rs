//! What the relay asks of the poll.

use std::io;

use mio::{Interest, Registry, unix::SourceFd};
use nix::sys::socket::Shutdown;

use super::event::Source;
use crate::relay::Request;

/// Carries a request out.
///
/// # Errors
/// Of epoll_ctl(2), and whose socket it is that nothing will be heard of.
pub fn carry_out(registry: &Registry, request: Request) -> Result<(), (Source, io::Error)> {
    // Reads stop at urgent data, so it has to be told of.
    let readable = Interest::READABLE | Interest::PRIORITY;
    let all = readable | Interest::WRITABLE;
    let (fd, source, interest) = match request {
        Request::Watch(fd, id) => (fd, Source::Flow(id), all),
        Request::Hear(fd, id) => (fd, Source::Flow(id), readable),
        Request::Listen(fd, place) => (fd, Source::Port(place), Interest::READABLE),
        Request::Rewatch(fd, id) => {
            let source = Source::Flow(id);
            let done = registry.reregister(&mut SourceFd(&fd), source.token(), all);
            return done.map_err(|error| (source, error));
        }
        Request::ShutDown(fd) => {
            // Where the peer is gone already there is nobody to tell.
            let _ = nix::sys::socket::shutdown(fd, Shutdown::Write);
            return Ok(());
        }
        Request::Close(socket) => {
            drop(socket);
            return Ok(());
        }
    };
    registry
        .register(&mut SourceFd(&fd), source.token(), interest)
        .map_err(|error| (source, error))
}
