//! The window: what a connection's guest may send, which is what the host's socket can still take.

use std::os::fd::{AsFd, AsRawFd};

use super::super::{
    flow::{Flow, Space, TcpFlow},
    request::Request,
    state::Relay,
};
use crate::{
    flow::{Id, Pool},
    sys::sockopt::{self, SendMemory},
};

impl Relay {
    /// Has the socket asked anew what it can take: the guest may be waiting for just that.
    pub(in super::super) fn ask_space(&mut self, id: Id) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
            flow.space = None;
        }
    }

    /// The octets a flow may send.
    pub(in super::super) fn space(&mut self, id: Id) -> u32 {
        let most = self.company.window(self.turn);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return 0;
        };
        window_space(flow, id, most, &mut self.pool, &mut self.requests)
    }
}

/// The octets a flow may send: what its socket can take, and `most` at most, as they queue in the guest.
pub(in super::super) fn window_space(
    flow: &mut TcpFlow,
    id: Id,
    most: u32,
    pool: &mut Pool,
    requests: &mut Vec<Request>,
) -> u32 {
    let space = socket_space(flow, id, pool, requests);
    // From somewhere behind the guest they are on the way, which is long.
    if flow.conn.is_far() {
        space
    } else {
        space.min(most)
    }
}

/// The octets a flow's socket can take. Where little is free, asks to be told when that changes: only then does the kernel
/// tell, and only then does its buffer grow. Where it would not tell though less than a segment fits, the pool covers the
/// rest of one: a guest that waits to send a whole segment must not wait for its timer.
fn socket_space(flow: &mut TcpFlow, id: Id, pool: &mut Pool, requests: &mut Vec<Request>) -> u32 {
    if let Some(space) = flow.space {
        return space.octets();
    }
    let memory = sockopt::send_memory(flow.socket.as_fd()).unwrap_or(SendMemory {
        limit: 0,
        queued: 0,
    });
    let blocked = memory.is_low() || !flow.spill.is_empty();
    if blocked && !flow.state.wants_space {
        flow.state.wants_space = true;
        // What is left in the socket would be told of anew.
        flow.forget_all();
        requests.push(Request::Rewatch(flow.socket.as_raw_fd(), id));
    }
    let segment = flow.conn.largest_segment();
    let space = if !flow.spill.is_empty() {
        0
    } else if blocked || usable(memory) >= segment {
        if usable(memory) >= flow.conn.promised() {
            pool.unreserve(&mut flow.spill);
        }
        usable(memory)
    } else {
        let rest = segment - usable(memory);
        usable(memory) + pool.reserve(&mut flow.spill, rest as usize) as u32
    };
    flow.space = Some(Space::new(space));
    space
}

/// What the host's socket can take of the octets the kernel counts as free: buffers cost more than what they hold.
const fn usable(memory: SendMemory) -> u32 {
    memory.free() - memory.free() / 4
}
