//! Something happened to a connection's socket on the host.

use super::super::{flow::Flow, request::Ready, state::Relay};
use crate::{flow::Id, link::Outbox, net::Now, proto::tcp::Phase};

impl Relay {
    pub(in super::super) fn tcp_ready(
        &mut self,
        id: Id,
        ready: Ready,
        outbox: &mut Outbox,
        now: Now,
    ) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.state.readable |= ready.readable || ready.ended || ready.error;
        flow.state.ended |= ready.ended;
        flow.state.urgent |= ready.urgent;
        if flow.conn.phase() == Phase::Connecting {
            if ready.writable || ready.error || ready.ended {
                self.tcp_outcome(id, ready, outbox, now);
            }
            return;
        }
        flow.state.failed |= ready.error;
        // Every event tells of writability too, as long as there is any: only who waits for it looks.
        let waits = flow.state.wants_space || !flow.spill.is_empty();
        if ready.writable && waits {
            self.tcp_writable(id, outbox, now);
        }
        self.pull(id, outbox, now);
    }

    /// The socket takes more: first what we hold, then what the guest has.
    fn tcp_writable(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.state.wants_space = false;
        flow.space = None;
        if !flow.spill.is_empty() {
            self.drain_spill(id);
        }
        let free = self.space(id);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        if flow.conn.window_would_open(free) {
            self.acknowledge(id, outbox, now);
        }
        self.shut_down_if_due(id);
    }
}
