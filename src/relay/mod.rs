//! Both sides: the only place that knows the guest's link and the host's sockets. Frames and events come in here, the
//! machines decide, and the files below carry it out.

mod request;

mod limit;

mod audience;

mod flow;

mod run;

mod reassembly;

mod waiting;

mod backlog;

mod away;

mod state;

mod report;

mod errors;

mod services;

mod tcp;

mod fragments;

mod udp;

mod udp_out;

mod udp_in;

mod groups;

mod guest_errors;

mod echo;

mod neighbour;

mod lan;

mod arrival;

mod departure;

mod settling;

pub use limit::RateLimit;
pub use report::Report;
pub use request::{Ready, Request};
pub use state::{Limits, Relay};

use std::io;

use flow::{ECHO_TIMEOUT, Flow};
use state::is_news;

use crate::{
    flow::Id,
    link::{Flushed, Frame, Inbox, Outbox},
    net::{Mac, Now, Protocol, Span, Why},
    wire::{
        self,
        frame::{Body, classify},
    },
};

impl Relay {
    /// Takes a burst of frames from the guest.
    pub fn from_guest(&mut self, inbox: &Inbox, outbox: &mut Outbox, now: Now) {
        for index in 0..inbox.frames() {
            let Some(frame) = inbox.frame(index) else {
                break;
            };
            self.passed.count(frame.payload.len());
            if let Err(why) = self.frame(frame, inbox, outbox, now) {
                log::trace!("frame of {} octets dropped: {why:?}", frame.payload.len());
                self.count(why);
            }
        }
        self.send_run(inbox, outbox);
        self.end_burst(inbox, outbox, now);
        self.release_waiting(outbox, now);
    }

    fn frame(
        &mut self,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        let read = classify(frame.head, frame.payload.len())?;
        let first = self.guest.mac == Mac::BROADCAST;
        if first {
            self.expect_groups(now);
        }
        self.met = true;
        if self.guest.saw_mac(read.mac) {
            // A guest may change its mind as often as it likes, the log need not hear of it.
            let said = format_args!("New guest MAC address observed: {}", read.mac);
            if first {
                self.sighted.log(log::Level::Info, now, said);
            } else {
                log::debug!("{said}");
            }
        }
        match self.packet(&read, frame, inbox, outbox, now) {
            Err(Why::Backlog) if self.backlog.push(inbox, frame.payload) => Ok(()),
            done => done,
        }
    }

    /// What a frame carries, or several that were parts of a packet.
    fn packet(
        &mut self,
        read: &wire::frame::Frame,
        frame: Frame<'_>,
        inbox: &Inbox,
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<(), Why> {
        if self.serve(read, frame.head, outbox, now)? {
            return Ok(());
        }
        if let Some(message) = services::membership(&read.body) {
            let v4 = matches!(read.body, Body::Igmp(..));
            return self.membership(frame.head.get(message).unwrap_or_default(), v4, now);
        }
        let protocol = match &read.body {
            Body::Arp | Body::Igmp(..) => return Err(Why::Unanswered),
            Body::Tcp(..) => Protocol::Tcp,
            Body::Udp(..) => Protocol::Udp,
            Body::Icmp(..) => Protocol::Echo,
            Body::Fragment(ip, part) => {
                return self.fragment(read.mac, ip, part, frame, inbox, outbox, now);
            }
        };
        if !self.serves(protocol) {
            return Err(Why::Disabled);
        }
        match &read.body {
            Body::Arp | Body::Igmp(..) | Body::Fragment(..) => Err(Why::Unanswered),
            Body::Tcp(ip, segment) => {
                self.tcp_segment(ip, segment, frame.payload, inbox, outbox, now)
            }
            Body::Udp(ip, datagram) => self.udp_datagram(ip, datagram, frame, inbox, outbox, now),
            Body::Icmp(ip, message) => {
                self.icmp_message(ip, message, frame.payload, inbox, outbox, now)
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
                    if flow.state.owes_ack {
                        self.acknowledge(id, outbox, now);
                    }
                    self.pull(id, outbox, now);
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
        while self.beginnings > 0 && !self.backlog.is_empty() && outbox.has_room() {
            let Some(mut held) = self.backlog.held.take() else {
                return;
            };
            self.backlog.pop(&mut held);
            if let Some(frame) = held.frame(0)
                && let Err(why) = self.frame(frame, &held, outbox, now)
            {
                self.count(why);
            }
            self.send_run(&held, outbox);
            self.end_burst(&held, outbox, now);
            self.backlog.held = Some(held);
        }
    }

    /// A flow's socket cannot be watched: nothing would ever be heard of it, so the flow ends.
    pub fn unwatched(&mut self, id: Id, error: &io::Error, outbox: &mut Outbox) {
        if is_news(&mut self.unwatched, self.turn) {
            log::warn!("Cannot watch more sockets, flows are refused: {error}");
        }
        match self.flows.get(id) {
            Some(Flow::Tcp(_)) => self.reset(id, outbox),
            Some(Flow::Udp(_) | Flow::Echo(_) | Flow::Group(_)) => self.remove(id),
            None => {}
        }
    }

    /// Begins a turn of the loop: carries out what is due by now.
    pub fn expire(&mut self, outbox: &mut Outbox, now: Now) {
        if self.away.on_the_way {
            return;
        }
        self.begin_turn(now);
        self.expire_fragments(outbox, now);
        self.wake_rested(now);
        self.ask_for_groups(outbox, now);
        self.ask_for_guest(outbox, now);
        while let Some(slot) = self.wheel.expired(now) {
            let Some(id) = self.flows.at(slot) else {
                continue;
            };
            let idle_until = match self.flows.get(id) {
                Some(Flow::Tcp(_)) => {
                    self.tcp_expired(id, outbox, now);
                    continue;
                }
                Some(Flow::Udp(flow)) => flow.last + self.udp_timeout(flow),
                Some(Flow::Echo(flow)) => flow.last + ECHO_TIMEOUT,
                // Members stay until the guest leaves the group.
                Some(Flow::Group(flow)) if flow.member => continue,
                Some(Flow::Group(flow)) => flow.last + self.limits.udp_stream,
                None => continue,
            };
            if idle_until <= now {
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
        let others = [self.waiting.ask, self.rested, fragments, self.groups.ask];
        let others = others.into_iter().flatten().min();
        let others = others.map(|at| at.since(now));
        self.wheel.next(now).into_iter().chain(others).min()
    }

    /// The guest is gone: every connection's peer hears a reset, unless the connection moved with the guest.
    pub fn guest_left(&mut self) {
        self.let_go();
        let mut slot = 0;
        while let Some(id) = self.flows.from(slot) {
            slot = id.slot + 1;
            self.abort(id);
        }
        self.starved.clear();
        self.weary.clear();
        self.reassembly.clear(&mut self.pool);
        self.groups.clear();
        self.backlog.clear();
        self.waiting.flows.clear();
        self.waiting.ask = None;
        self.guest.left();
    }
}
