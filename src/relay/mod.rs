//! Both sides: the only place that knows the guest's link and the host's sockets. Frames and events come in here, the
//! machines decide, and the files below carry it out.

mod request;

mod limit;

mod company;

mod kinds;

mod group_state;

mod flow;

mod run;

mod reassembly;

mod waiting;

mod migrating;

mod handoff;

mod whose;

mod label;

mod share;

mod backlog;

mod state;

#[cfg(test)]
mod fixture;

mod pairs;

mod table;

mod report;

mod errors;

mod services;

mod tcp;

mod fragments;

mod udp;

mod tftp;

mod udp_to_host;

mod udp_to_guest;

mod groups;

mod guest_errors;

mod echo;

mod find_guest;

mod neighbours;

mod forwarded;

mod migrate_out;

mod migrate_in;

mod takeover;

mod forward_changes;

mod following;

mod leaving;

pub use limit::RateLimit;
pub use report::Report;
pub use request::{Ready, Request};
pub use share::{Forwarded, Share};
pub use state::{Limits, Relay};
pub use takeover::Moved;

use std::io;

use flow::{ECHO_TIMEOUT, Flow};
use label::Label;
use share::Destination;

use crate::{
    flow::{ClaimSlot, Id, Key},
    link::{Flushed, Frame, Inbox, Outbox},
    net::{Now, Protocol, Span, Why},
    proto::tcp::DELAY,
    sys::reason,
    wire::{
        self,
        frame::{Body, classify, sender},
    },
};

/// Frames in line that are looked at in a turn: some begin nothing.
const WORKED_OFF: usize = 1024;

impl Relay {
    /// Takes a burst of frames from the guest.
    ///
    /// How many were taken: where several relays serve a guest, another may have no room for the next one.
    pub fn from_guest(&mut self, inbox: &Inbox, outbox: &mut Outbox, now: Now) -> usize {
        let mut taken = 0;
        let discards = inbox.discards();
        while let Some(frame) = inbox.frame(taken) {
            let done = if discards {
                Some(Err(Why::Disabled))
            } else {
                self.take_frame(frame, inbox, outbox, now)
            };
            let Some(done) = done else {
                break;
            };
            if let Err(why) = done {
                self.drop_frame(frame, why);
            }
            self.passed.count(frame.whole.len());
            taken += 1;
        }
        self.end_burst(inbox, outbox, now);
        self.release_waiting(outbox, now);
        taken
    }

    /// Takes the frames and connections that other relays have handed over, as many as fit at once.
    pub fn take_handed(&mut self, outbox: &mut Outbox, now: Now) {
        self.take_accepted(outbox, now);
        let Some(held) = self.take_held() else {
            return;
        };
        for index in 0..held.frames() {
            let Some(frame) = held.frame(index) else {
                break;
            };
            let label = self.share.as_ref().and_then(|share| share.label(index));
            let in_parts = label.is_some_and(|label| label.in_parts);
            self.take_again(frame, in_parts, &held, outbox, now);
        }
        self.end_burst(&held, outbox, now);
        self.release_waiting(outbox, now);
        self.note_drift(&held);
        self.put_held(held);
    }

    /// Hands on what flows have collected of these frames, before their memory is another's.
    fn end_burst(&mut self, inbox: &Inbox, outbox: &mut Outbox, now: Now) {
        self.send_run(inbox, outbox);
        self.end_touched(inbox, outbox, now);
    }

    /// Reads a frame, and takes it or hands it to the relay it belongs to. `None` if that has no room.
    fn take_frame(
        &mut self,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Option<Result<(), Why>> {
        match &classify(frame.head, frame.whole.len()) {
            Err(why) => {
                if let Some(mac) = sender(frame.head) {
                    self.guest.saw_known(mac, now);
                }
                Some(Err(*why))
            }
            Ok(read) if self.share.is_none() => Some(self.frame(read, frame, inbox, outbox, now)),
            Ok(read) => self.place(read, frame, inbox, outbox, now),
        }
    }

    /// Takes a frame where several relays serve the guest, or hands it to the one it belongs to. `None` if that has no room.
    fn place(
        &mut self,
        read: &wire::frame::Classified,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Option<Result<(), Why>> {
        let share = self.share.as_mut()?;
        match share.place(&self.net, read, frame, inbox) {
            Destination::Elsewhere => {
                self.overhear(read, frame.head, now);
                Some(Ok(()))
            }
            Destination::Stays => None,
            Destination::Here(slot) => {
                let done = self.frame(read, frame, inbox, outbox, now);
                self.looked_at(slot);
                Some(done)
            }
        }
    }

    /// Takes a frame that was read before, and found to be this relay's.
    fn take_again(
        &mut self,
        frame: Frame<'_>,
        in_parts: bool,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) {
        let done = classify(frame.head, frame.whole.len()).and_then(|mut read| {
            if in_parts {
                read.body.allow_parts();
            }
            self.frame(&read, frame, inbox, outbox, now)
        });
        if let Err(why) = done {
            self.drop_frame(frame, why);
        }
    }

    fn drop_frame(&mut self, frame: Frame<'_>, why: Why) {
        log::trace!("frame of {} octets dropped: {why}", frame.whole.len());
        self.count(why);
    }

    fn frame(
        &mut self,
        read: &wire::frame::Classified,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let first = !self.guest.is_heard();
        if first && self.share.as_ref().is_none_or(Share::is_first) {
            self.expect_groups(now);
        }
        self.met = true;
        let news = self.guest.news();
        let new = self.guest.saw_frame(read.mac, read.body.source(), now);
        self.note_news(self.guest.news() != news);
        if new {
            // A guest may change its mind as often as it likes, the log need not hear of it.
            let said = format_args!("New guest MAC address observed: {}", read.mac);
            if first {
                self.sighted.log(log::Level::Info, now, said);
            } else {
                log::debug!("{said}");
            }
        }
        match self.packet(read, frame, inbox, outbox, now) {
            Err(Why::Backlog) if self.line_up(read, frame, inbox) => Ok(()),
            done => done,
        }
    }

    /// Puts a frame that begins a flow behind those that wait for their turn; `false` if there is no room.
    fn line_up(&mut self, read: &wire::frame::Classified, frame: Frame<'_>, inbox: &Inbox) -> bool {
        let share = self.share.as_ref();
        let slot = share.and_then(|share| share.count_on(&self.net, &read.body, frame.head));
        let label = Label::new(slot, &read.body, frame);
        let waits = self.backlog.push(inbox, frame, label);
        if !waits {
            self.looked_at(slot);
        }
        waits
    }

    /// The slot of a flow that can be this relay's, if it has one: it is counted on until it has been looked at. `None` where
    /// the flow can only be another's.
    fn claim(&self, key: &Key) -> Option<Option<ClaimSlot>> {
        let share = self.share.as_ref();
        share.map_or(Some(None), |share| share.claim(key))
    }

    /// A frame that was looked at counts on its slot no more.
    fn looked_at(&self, slot: Option<ClaimSlot>) {
        if let (Some(slot), Some(share)) = (slot, &self.share) {
            share.looked_at(slot);
        }
    }

    /// What a frame carries, or several that were parts of a packet.
    fn packet(
        &mut self,
        read: &wire::frame::Classified,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        if self.serve(read, frame.head, outbox, now)? {
            return Ok(());
        }
        if let Some(message) = kinds::membership(&read.body) {
            let v4 = matches!(read.body, Body::Igmp(..));
            return self.membership(frame.head.get(message).unwrap_or_default(), v4, now);
        }
        match &read.body {
            Body::Arp | Body::Igmp(..) => Err(Why::Unanswered),
            Body::Fragment(ip, part) => {
                self.fragment(read.mac, ip, part, frame, inbox, outbox, now)
            }
            Body::Tcp(ip, segment) => {
                self.served(Protocol::Tcp)?;
                self.tcp_segment(ip, segment, frame.whole, inbox, outbox, now)
            }
            Body::Udp(ip, datagram) => {
                self.served(Protocol::Udp)?;
                self.udp_datagram(ip, datagram, frame, inbox, outbox, now)
            }
            Body::Icmp(ip, message) => {
                self.served(Protocol::Echo)?;
                self.icmp_message(ip, message, frame.whole, inbox, outbox, now)
            }
        }
    }

    /// Takes an event of a flow's socket; one for a flow that is gone finds nothing.
    pub fn from_host(&mut self, id: Id, ready: Ready, outbox: &mut Outbox, now: Now) {
        if self.away.on_the_way {
            return;
        }
        match self.flows.get(id) {
            Some(Flow::Tcp(_)) => self.tcp_ready(id, ready, outbox, now),
            Some(Flow::Udp(_)) => self.udp_ready(id, ready, outbox, now),
            Some(Flow::Echo(_)) => self.echo_ready(id, ready, outbox, now),
            Some(Flow::Group(_)) => self.group_ready(id, ready, outbox, now),
            None => {}
        }
    }

    /// Lets flows go on that waited for room on the link, each for one turn. `true` if some still wait though there is room.
    pub fn resume(&mut self, outbox: &mut Outbox, now: Now) -> bool {
        if self.away.on_the_way {
            return false;
        }
        self.say_farewells(outbox);
        let knocks = self.answer_knocks(outbox, now);
        self.work_off(outbox, now);
        for _ in 0..self.starved.len() {
            if self.budget == 0 {
                break;
            }
            let Some(id) = self.starved.pop_front() else {
                break;
            };
            match self.flows.get_mut(id) {
                Some(Flow::Tcp(flow)) => {
                    flow.state.starved = false;
                    let over = flow.is_over();
                    if flow.state.owes_ack {
                        self.acknowledge(id, outbox, now);
                    }
                    if over {
                        self.finish(id);
                    } else {
                        self.pull(id, outbox, now);
                    }
                }
                Some(Flow::Udp(flow)) => {
                    flow.starved = false;
                    self.udp_pull(id, outbox, now);
                }
                Some(Flow::Echo(flow)) => {
                    flow.starved = false;
                    self.echo_pull(id, outbox, now);
                }
                Some(Flow::Group(flow)) => {
                    flow.starved = false;
                    self.group_pull(id, outbox, now);
                }
                None => {}
            }
            // Who is behind keeps its place.
            if outbox.flush() == Flushed::Blocked {
                break;
            }
        }
        knocks || !self.starved.is_empty() || !self.backlog.is_empty()
    }

    /// Begins flows that wait for their turn.
    fn work_off(&mut self, outbox: &mut Outbox, now: Now) {
        for _ in 0..WORKED_OFF {
            if self.beginnings == 0 || self.backlog.is_empty() || !outbox.has_room() {
                break;
            }
            let Some(mut held) = self.backlog.held.take() else {
                return;
            };
            let label = self.backlog.pop(&mut held);
            if let (Some(frame), Some(label)) = (held.frame(0), label) {
                self.take_again(frame, label.in_parts, &held, outbox, now);
            }
            self.end_burst(&held, outbox, now);
            self.looked_at(label.and_then(|label| label.slot));
            self.backlog.held = Some(held);
        }
    }

    /// A flow's socket cannot be watched: nothing would ever be heard of it, so the flow ends.
    pub fn unwatched(&mut self, id: Id, error: &io::Error, outbox: &mut Outbox) {
        if self.warned_unwatched.is_due(self.turn) {
            log::warn!(
                "Cannot watch more sockets, flows are refused: {}",
                reason(error)
            );
        }
        match self.flows.get(id) {
            Some(Flow::Tcp(_)) => self.reset(id, outbox),
            Some(Flow::Udp(_) | Flow::Echo(_) | Flow::Group(_)) => self.remove(id),
            None => {}
        }
    }

    /// Begins a turn of the loop: carries out what is due by now. What guest and host have said by `heard` was told of: whoever
    /// said nothing was silent until then, and not longer.
    pub fn expire(&mut self, outbox: &mut Outbox, heard: Now, now: Now) {
        if self.away.on_the_way {
            return;
        }
        self.begin_turn(now);
        self.expire_fragments(outbox, heard);
        self.wake_rested(now);
        self.ask_for_groups(outbox, heard, now);
        self.ask_for_guest(outbox, heard, now);
        self.acknowledge_postponed(outbox, now);
        while let Some(slot) = self.wheel.expired(heard) {
            let Some(id) = self.flows.at(slot) else {
                continue;
            };
            let idle_until = match self.flows.get(id) {
                Some(Flow::Tcp(_)) => {
                    self.tcp_expired(id, outbox, heard, now);
                    continue;
                }
                Some(Flow::Udp(flow)) => flow.last + self.udp_timeout(flow),
                Some(Flow::Echo(flow)) => flow.last + ECHO_TIMEOUT,
                // Members stay until the guest leaves the group.
                Some(Flow::Group(flow)) if flow.member => continue,
                Some(Flow::Group(flow)) => flow.last + self.limits.udp_stream,
                None => continue,
            };
            if idle_until <= heard {
                self.remove(id);
            } else {
                self.wheel.arm(slot, idle_until);
            }
        }
    }

    /// The time until [`Relay::expire`] may have something to do.
    pub fn next_deadline(&self, now: Now) -> Option<Span> {
        if self.away.on_the_way {
            return None;
        }
        let fragments = self.reassembly.deadline();
        let postponed = self.postponed.front().map(|&(_, asked)| asked + DELAY);
        let others = [
            self.waiting.ask,
            self.rested,
            fragments,
            self.groups.ask,
            postponed,
        ];
        let others = others.into_iter().flatten().min();
        let others = others.map(|at| at.since(now));
        self.wheel.next(now).into_iter().chain(others).min()
    }

    /// The guest is gone: every connection's peer hears a reset, unless the connection moved with the guest or was over.
    pub fn guest_left(&mut self) {
        self.let_go();
        let mut slot = 0;
        while let Some(id) = self.flows.from(slot) {
            slot = id.slot + 1;
            match self.flows.get(id) {
                Some(Flow::Tcp(flow)) if flow.is_over() => self.end(id),
                _ => self.abort(id),
            }
        }
        self.starved.clear();
        self.postponed.clear();
        self.weary.clear();
        self.reassembly.clear(&mut self.pool);
        self.forget_parts();
        self.groups.clear();
        self.release_line();
        self.backlog.clear();
        self.waiting.flows.clear();
        self.waiting.doubts.clear();
        self.waiting.ask = None;
        self.guest.left();
    }
}
