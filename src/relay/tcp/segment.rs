//! A segment of a known connection: the machine decides, this carries out.

use super::super::{flow::Flow, state::Relay};
use crate::{
    flow::{Id, Key},
    link::{Flushed, Inbox, Outbox, Slot},
    net::{Now, Span, Why},
    proto::tcp::{Ack, Todo},
    wire::frame::{Ip, Segment},
};

/// How long a retransmission is put off while the link itself is blocked.
const PATIENCE: Span = Span::millis(200);

impl Relay {
    /// A TCP segment from the guest; `frame` is where it lies.
    pub(in super::super) fn tcp_segment(
        &mut self,
        ip: &Ip,
        segment: &Segment,
        frame: Slot,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let key = Key {
            protocol: crate::net::Protocol::Tcp,
            guest: ip.source(segment.src_port),
            remote: ip.destination(segment.dst_port),
        };
        let Some(id) = self.find(&key) else {
            return self.tcp_unknown(key, ip, segment, outbox, now);
        };
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return Err(Why::NoFlow);
        };
        let todo = flow.conn.segment(segment, now);
        if todo.anew {
            self.abort(id);
            return self.tcp_unknown(key, ip, segment, outbox, now);
        }
        self.carry_out(id, todo, segment, frame, inbox, outbox);
        todo.dropped.map_or(Ok(()), Err)
    }

    fn carry_out(
        &mut self,
        id: Id,
        todo: Todo,
        segment: &Segment,
        frame: Slot,
        inbox: &Inbox,
        outbox: &mut Outbox,
    ) {
        if let Some(fields) = todo.rst {
            self.say(id, fields, outbox);
        }
        if todo.abort {
            return self.abort(id);
        }
        if todo.syn_ack {
            self.send_syn_ack(id, outbox);
        }
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.forget += todo.forget;
        if let Some((skip, take)) = todo.take {
            let start = segment.payload.start + skip as usize;
            self.burst.push(
                &mut flow.pieces,
                frame.part(&(start..start + take as usize)),
            );
        }
        flow.state.ack |= todo.ack == Ack::Burst;
        flow.state.pull |= todo.pull;
        flow.state.over |= todo.over;
        if !std::mem::replace(&mut flow.state.touched, true) {
            self.burst.touched.push(id);
        }
        if todo.seek {
            self.seek(id);
        }
        if todo.ack == Ack::Now {
            // What is acknowledged must be held first.
            self.deliver(id, inbox);
            self.ask_space(id);
            self.acknowledge(id, outbox);
        }
    }

    /// A deadline of a flow has come.
    pub(in super::super) fn tcp_expired(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.armed = None;
        // A guest that does not read is not one that does not answer.
        if outbox.flush() == Flushed::Blocked {
            return Self::arm(&mut self.wheel, id, &mut flow.armed, now + PATIENCE);
        }
        let todo = flow.conn.expired(now);
        if let Some(fields) = todo.rst {
            self.say(id, fields, outbox);
        }
        if todo.abort {
            return self.abort(id);
        }
        if todo.syn {
            self.send_syn(id, outbox);
        }
        if todo.syn_ack {
            self.send_syn_ack(id, outbox);
        }
        if todo.seek {
            self.seek(id);
        }
        if todo.pull {
            self.pull(id, outbox, now);
        }
        self.schedule(id);
    }
}
