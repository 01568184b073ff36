//! The end of a burst: what the guest sent goes to the host's sockets, and acknowledgements go back.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

use super::super::{
    flow::{Flow, State, TcpFlow},
    request::Request,
    state::Relay,
};
use super::window::window_space;
use crate::{
    flow::{Id, Pool},
    link::{Inbox, Outbox, Slot},
    net::{Now, Why},
    proto::tcp::DELAY,
    sys::{Iovecs, msg},
    wire::frame::Segment,
};

/// Octets of spill one flow may hold.
pub(in super::super) const SPILL_MAX: usize = 256 * 1024;

/// Octets of the stream one flow may hold behind a gap, the gap included.
const EARLY_MAX: usize = 1024 * 1024;

/// A segment, where its frame lies, and what in.
#[derive(Clone, Copy)]
pub(in super::super) struct Placed<'a> {
    pub segment: &'a Segment,
    pub frame: Slot,
    pub inbox: &'a Inbox,
}

impl Relay {
    /// Has a flow looked at when the burst is over.
    pub(in super::super) fn touch(&mut self, id: Id) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id)
            && !mem::replace(&mut flow.state.touched, true)
        {
            self.burst.touched.push(id);
        }
    }

    /// Hands the burst's payloads on, connection by connection, and answers the guest.
    pub(in super::super) fn end_touched(&mut self, inbox: &Inbox, outbox: &mut Outbox, now: Now) {
        while let Some(id) = self.burst.touched.pop() {
            self.end_burst_of(id, inbox, outbox, now);
        }
        self.burst.clear();
    }

    /// Hands one flow's payloads on, and answers.
    pub(in super::super) fn end_burst_of(
        &mut self,
        id: Id,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) {
        self.deliver(id, inbox);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.state.touched = false;
        let (ack, pull) = (flow.state.ack, flow.state.pull);
        (flow.state.ack, flow.state.pull) = (false, false);
        if flow.conn.shutdown_due() && flow.spill.is_empty() {
            self.shut_down(id);
        }
        if pull {
            self.pull(id, outbox, now);
        }
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        let over = flow.is_over();
        if ack && flow.state.owes_ack {
            self.acknowledge(id, outbox, now);
        } else if ack && flow.conn.ack_due() {
            if self.postponed.len() < self.limits.flows && flow.conn.ack_may_wait(now) {
                self.postponed.push_back((id, now));
            } else {
                self.acknowledge(id, outbox, now);
            }
        }
        if over {
            self.finish(id);
        } else {
            self.schedule(id);
        }
    }

    /// Writes what the current burst brought for a flow. What the kernel refuses goes to the pool; what that cannot hold is
    /// given back, so that it is never acknowledged.
    pub(in super::super) fn deliver(&mut self, id: Id, inbox: &Inbox) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        let Some(chain) = flow.pieces.take() else {
            return;
        };
        let mut space = flow.space.take();
        let mut slots = self.burst.chain(Some(chain)).peekable();
        while slots.peek().is_some() {
            let mut octets = 0;
            let mut written = 0;
            let mut batch = self.iovecs.gather();
            let mut listed = slots.clone();
            while let Some(&slot) = slots.peek() {
                if !inbox.gather(slot, &mut batch) {
                    break;
                }
                octets += slot.len();
                slots.next();
            }
            if flow.state.failed {
                // Nothing follows what was lost: the host's side is gone.
                lose(&mut flow.state);
                written = octets;
            } else if flow.spill.is_empty() {
                flow.ready_to_write();
                written = match msg::send(flow.socket.as_fd(), &batch) {
                    Ok(written) => written,
                    Err(error) if passes(&error) => 0,
                    // The host's side is gone, and with it these octets.
                    Err(_) => {
                        lose(&mut flow.state);
                        octets
                    }
                };
            }
            if written > 0 && flow.spill.span() > 0 {
                self.pool.skip(&mut flow.spill, written);
            }
            if written < octets {
                let refused = spill(&mut self.pool, flow, inbox, &mut listed, written, octets);
                if refused > 0 {
                    let rest: usize = slots.map(|slot| slot.len()).sum();
                    flow.conn.give_back((refused + rest) as u32);
                    // Though nothing may be left to acknowledge: the guest has to hear of its window.
                    flow.state.owes_ack = true;
                    self.drops.count(Why::PromiseBroken);
                    break;
                }
            } else {
                flow.space = space
                    .take()
                    .and_then(|space| flow.space_after(written, space));
            }
        }
    }

    /// Keeps the first `octets` of a segment that came before others.
    pub(in super::super) fn keep_early(&mut self, id: Id, placed: Placed<'_>, octets: u32) {
        let Placed {
            segment,
            frame,
            inbox,
        } = placed;
        // The place is counted from those in order.
        self.deliver(id, inbox);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        let mut ahead = flow.conn.ahead(segment.seq) as usize;
        let start = segment.payload.start;
        let mut kept = true;
        inbox.copy(frame.part(&(start..start + octets as usize)), |bytes| {
            kept = kept && self.pool.place(&mut flow.spill, ahead, bytes, EARLY_MAX);
            ahead += bytes.len();
        });
        let disorder = self.disorders.get_mut(flow.state.disorder);
        if !kept || !disorder.is_some_and(|disorder| flow.conn.held(segment.seq, octets, disorder))
        {
            self.drops.count(Why::OutOfOrder);
        }
    }

    /// Hands on what was kept, as the gap before it is filled.
    pub(in super::super) fn admit(&mut self, id: Id, octets: u32) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
            self.pool.admit(&mut flow.spill, octets as usize);
        }
        self.drain_spill(id);
    }

    /// Writes what a flow's spill holds, as far as the socket takes it.
    pub(in super::super) fn drain_spill(&mut self, id: Id) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.space = None;
        while !flow.spill.is_empty() {
            if flow.state.failed {
                lose(&mut flow.state);
                let held = flow.spill.len();
                return self.pool.consume(&mut flow.spill, held);
            }
            flow.ready_to_write();
            match send_front(&mut self.iovecs, &self.pool, flow) {
                Ok(octets) => self.pool.consume(&mut flow.spill, octets),
                Err(error) if passes(&error) => return,
                Err(_) => flow.state.failed = true,
            }
        }
    }

    /// Tells the host that the guest's stream has ended.
    pub(in super::super) fn shut_down(&mut self, id: Id) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        self.requests
            .push(Request::ShutDown(flow.socket.as_raw_fd()));
        flow.conn.shut_down();
    }

    /// Tells the host that the guest's stream has ended, where that is so and nobody has.
    pub(in super::super) fn shut_down_if_due(&mut self, id: Id) {
        let due = match self.flows.get(id) {
            Some(Flow::Tcp(flow)) => flow.conn.shutdown_due() && flow.spill.is_empty(),
            _ => false,
        };
        if due {
            self.shut_down(id);
            if matches!(self.flows.get(id), Some(Flow::Tcp(flow)) if flow.is_over()) {
                self.finish(id);
            }
        }
    }

    /// Sends a bare acknowledgement with the window of the moment.
    pub(in super::super) fn acknowledge(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let waits = !outbox.has_room();
        let most = self.company.window(self.turn);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        if flow.state.failed && flow.conn.is_over() {
            // A reset is to follow, which says what became of the last octets.
            flow.state.owes_ack = false;
            return;
        }
        flow.state.owes_ack = waits;
        if waits {
            return self.starve(id);
        }
        let free = window_space(flow, id, most, &mut self.pool, &mut self.requests);
        let disorder = self.disorders.get(flow.state.disorder);
        let fields = flow.conn.acknowledgement(free, disorder, now);
        self.say(id, fields, outbox);
    }

    /// Sends acknowledgements that have waited for an answer in vain, and forgets those that went with one.
    pub(in super::super) fn acknowledge_postponed(&mut self, outbox: &mut Outbox, now: Now) {
        while let Some(&(id, asked)) = self.postponed.front() {
            if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id)
                && flow.conn.ack_waits_since(asked)
            {
                if asked + DELAY > now {
                    return;
                }
                flow.conn.waited_in_vain();
                self.acknowledge(id, outbox, now);
            }
            self.postponed.pop_front();
        }
        // Back to the start of its memory, so that not all of it is ever touched.
        self.postponed.clear();
    }
}

/// Keeps octets `skip..octets` of the listed payloads. Returns how many found no place.
fn spill(
    pool: &mut Pool,
    flow: &mut TcpFlow,
    inbox: &Inbox,
    slots: &mut dyn Iterator<Item = Slot>,
    skip: usize,
    octets: usize,
) -> usize {
    let (mut at, mut refused) = (0, 0);
    for slot in slots {
        if at >= octets {
            break;
        }
        let part = slot.part(&(skip.saturating_sub(at)..slot.len()));
        at += slot.len();
        inbox.copy(part, |bytes| {
            let kept = if refused == 0 {
                pool.append(&mut flow.spill, bytes, SPILL_MAX)
            } else {
                0
            };
            refused += bytes.len() - kept;
        });
    }
    refused
}

fn send_front(iovecs: &mut Iovecs, pool: &Pool, flow: &TcpFlow) -> io::Result<usize> {
    let mut gather = iovecs.gather();
    let _ = gather.push(pool.front(&flow.spill));
    msg::send(flow.socket.as_fd(), &gather)
}

/// Notes that the socket takes nothing any more, and octets went nowhere; pulling finds out what it still holds.
fn lose(state: &mut State) {
    (state.failed, state.lost) = (true, true);
    (state.readable, state.pull) = (true, true);
}

/// Whether the socket will take octets later: it is full, or the system is short of memory.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests;
