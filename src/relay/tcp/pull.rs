//! From the host's socket to the guest.

use std::{io, os::fd::AsFd};

use super::super::{
    flow::{Flow, Peeks, TcpFlow},
    state::Relay,
};
use super::window::window_space;
use crate::{
    flow::Id,
    link::{Flushed, Outbox},
    net::{Now, Seq},
    sys::msg,
    wire::{headers::TcpFields, tcp::Flags},
};

/// Octets one flow may send to the guest before it is another's turn.
const TURN: usize = 256 * 1024;

/// More octets than any socket holds unread.
const UNREAD: usize = 1 << 30;

/// Reads that empty a socket, each of which may stop at urgent data, of a peer that never pauses too.
const TRIES: usize = 8;

/// What a look into the socket brought.
enum Look {
    /// This many octets were sent.
    Octets(usize),
    Nothing,
    /// Fewer octets fit the guest's window than are worth a segment.
    Silly,
    End,
    Failed,
}

impl Relay {
    /// Sends what was lost, then what the socket holds, as far as window, link and turn allow.
    pub(in super::super) fn pull(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let mut left = TURN.saturating_sub(self.resend(id, outbox, now));
        loop {
            self.step_over(id);
            let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
                return;
            };
            flow.forget();
            if flow.conn.fin_due() {
                self.send_fin(id, outbox, now);
                break;
            }
            // Nothing more comes from the host, or the guest does not read it; and nothing gets there.
            let unread = flow.state.lost && flow.conn.window_is_shut();
            if flow.state.failed && !flow.conn.wants_host() || unread {
                return self.reset(id, outbox);
            }
            let sendable = self.sendable(id);
            let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
                return;
            };
            if sendable == 0 && (flow.state.readable || flow.conn.fin_waits()) {
                flow.conn.blocked(now);
            }
            if sendable == 0 || !flow.state.readable {
                break;
            }
            if left == 0 || self.budget == 0 {
                self.starve(id);
                break;
            }
            match self.pull_once(id, sendable.min(left), outbox, now) {
                Look::Octets(octets) => left = left.saturating_sub(octets),
                Look::End if self.has_failed(id) => return self.reset(id, outbox),
                // Who is in line may have had no room to look.
                Look::Nothing if self.has_failed(id) && !self.is_starved(id) => {
                    return self.reset(id, outbox);
                }
                Look::End => match self.flows.get_mut(id) {
                    Some(Flow::Tcp(flow)) if flow.conn.wants_host() => flow.conn.ended(),
                    _ => break,
                },
                Look::Silly => {
                    self.hold_back(id, now);
                    break;
                }
                Look::Nothing => break,
                Look::Failed => return self.reset(id, outbox),
            }
        }
        self.schedule(id);
    }

    /// Octets the guest takes now, and not yet has.
    fn sendable(&self, id: Id) -> usize {
        let Some(Flow::Tcp(flow)) = self.flows.get(id) else {
            return 0;
        };
        // An acknowledgement is on its way that will open more.
        if flow.conn.gathers() || flow.conn.is_silly() && flow.conn.unacknowledged() > 0 {
            return 0;
        }
        let disorder = self.disorders.get(flow.state.disorder);
        let gap = disorder.map_or(usize::MAX, |disorder| flow.conn.gap(disorder));
        flow.conn.sendable().min(gap)
    }

    /// Where everything is sent again, what the guest holds is not.
    fn step_over(&mut self, id: Id) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id)
            && let Some(disorder) = self.disorders.get(flow.state.disorder)
            && flow.conn.step_over(disorder)
        {
            self.seek(id);
        }
    }

    /// More waits than the guest's window is worth filling with: until it opens, or the timer says so.
    fn hold_back(&mut self, id: Id, now: Now) {
        self.seek(id);
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
            flow.conn.blocked(now);
        }
    }

    /// Sends again what was lost. Returns how many octets.
    fn resend(&mut self, id: Id, outbox: &mut Outbox, now: Now) -> usize {
        let (mut octets, mut moved) = (0, false);
        while octets < TURN {
            let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
                return octets;
            };
            let disorder = self.disorders.get(flow.state.disorder);
            let Some((seq, count)) = flow.conn.resend(disorder, now) else {
                break;
            };
            let sent = if count == 0 {
                self.say_fin(id, seq, outbox, now).then_some(0)
            } else {
                moved = true;
                self.seek_to(id, seq);
                match self.look(id, seq, count as usize, outbox, now) {
                    Look::Octets(0) => continue,
                    Look::Octets(octets) => Some(octets),
                    _ => None,
                }
            };
            let (Some(sent), Some(Flow::Tcp(flow))) = (sent, self.flows.get_mut(id)) else {
                break;
            };
            let disorder = self.disorders.get_mut(flow.state.disorder);
            flow.conn.resent(seq, sent as u32, disorder, now);
            octets += sent;
        }
        if moved {
            self.seek(id);
        }
        octets
    }

    /// Sends up to `want` octets that follow those sent.
    fn pull_once(&mut self, id: Id, want: usize, outbox: &mut Outbox, now: Now) -> Look {
        let Some(Flow::Tcp(flow)) = self.flows.get(id) else {
            return Look::Nothing;
        };
        let looked = self.look(id, flow.conn.next(), want, outbox, now);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return Look::Nothing;
        };
        match looked {
            Look::Octets(octets) if octets > 0 => flow.conn.sent(octets as u32, now),
            _ => {}
        }
        looked
    }

    /// Sends up to `want` octets of the socket from sequence number `seq` on, which is where its peek offset stands.
    fn look(&mut self, id: Id, seq: Seq, want: usize, outbox: &mut Outbox, now: Now) -> Look {
        let Some(key) = self.flows.key(id) else {
            return Look::Nothing;
        };
        let template = self.template(&key);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return Look::Nothing;
        };
        let cut = flow.conn.mss();
        let headers = template.tcp_len(flow.conn.options());
        let room = match outbox.lend(want, cut, headers) {
            None if outbox.flush() == Flushed::Done && outbox.has_guest() => {
                outbox.lend(want, cut, headers)
            }
            room => room,
        };
        let Some(room) = room else {
            return self.starved(id);
        };
        let behind = (flow.forget + flow.conn.behind(seq)) as usize;
        if flow.peeks == Peeks::AtStart {
            flow.seek(flow.conn.behind(seq));
        }
        let peeks = flow.peeks != Peeks::All;
        let mut scatter = self.iovecs.scatter();
        let skip = if peeks {
            0
        } else {
            scatter.push_waste(&mut self.large, behind)
        };
        if skip < behind && !peeks || !outbox.scatter(&room, &mut scatter) {
            // More is in flight than a list of waste can step over: acknowledgements will make it less.
            return Look::Nothing;
        }
        let looked =
            msg::peek(flow.socket.as_fd(), &mut scatter).map(|octets| octets.checked_sub(skip));
        let octets = match looked {
            // Where reads stop at urgent data, the end is what is found once nothing has to be stepped over.
            Ok(Some(0)) if skip == 0 || flow.state.ended && !flow.state.urgent => return Look::End,
            Ok(Some(0) | None) if flow.state.urgent => return Look::Nothing,
            Ok(Some(0) | None) => return nothing(flow),
            // The kernel need not know of an end that its predecessor saw, before the guest moved.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && flow.state.ended => {
                return Look::End;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return nothing(flow),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Look::Octets(0),
            Err(_) => return Look::Failed,
            Ok(Some(octets)) => octets,
        };
        if octets == want && seq == flow.conn.next() && flow.conn.is_silly() {
            return Look::Silly;
        }
        // A short read has emptied the socket; should the end wait behind it, the next look will find it.
        if octets < room.len && !flow.state.ended && !flow.state.urgent {
            flow.state.readable = false;
        }
        self.budget = self.budget.saturating_sub(octets);
        let most = self.company.window(self.turn);
        let free = window_space(flow, id, most, &mut self.pool, &mut self.requests);
        let conn = &mut flow.conn;
        outbox.commit(room, octets, cut, |part, headers| {
            let flags = if part.last { Flags::PSH } else { Flags::NONE };
            let fields = conn.data(seq + part.at as u32, flags, free, now);
            template.tcp(headers, fields, part.len, part.sum)
        });
        Look::Octets(octets)
    }

    /// Whether a write to the socket failed.
    fn has_failed(&self, id: Id) -> bool {
        matches!(self.flows.get(id), Some(Flow::Tcp(flow)) if flow.state.failed)
    }

    fn is_starved(&self, id: Id) -> bool {
        matches!(self.flows.get(id), Some(Flow::Tcp(flow)) if flow.state.starved)
    }

    fn starved(&mut self, id: Id) -> Look {
        self.starve(id);
        Look::Nothing
    }

    fn send_fin(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let Some(Flow::Tcp(flow)) = self.flows.get(id) else {
            return;
        };
        if self.say_fin(id, flow.conn.next(), outbox, now)
            && let Some(Flow::Tcp(flow)) = self.flows.get_mut(id)
        {
            flow.conn.fin_sent(now);
        }
    }

    /// Says our FIN, which has number `seq`, first or again. `false` if the link had no room.
    fn say_fin(&mut self, id: Id, seq: Seq, outbox: &mut Outbox, now: Now) -> bool {
        let free = self.space(id);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return false;
        };
        let fields = flow.conn.data(seq, Flags::FIN, free, now);
        let said = self.say(id, fields, outbox);
        if !said {
            self.starve(id);
        }
        said
    }

    /// Sends a segment without payload. `false` if the link had no room.
    pub(in super::super) fn say(&mut self, id: Id, fields: TcpFields, outbox: &mut Outbox) -> bool {
        let Some(key) = self.flows.key(id) else {
            return true;
        };
        let template = self.template(&key);
        let queue = |outbox: &mut Outbox| {
            outbox
                .bare(|headers| template.tcp(headers, fields, 0, crate::wire::checksum::Sum::new()))
        };
        match queue(outbox).or_else(|_| {
            outbox.flush();
            queue(outbox)
        }) {
            Ok(()) => true,
            Err(why) => {
                self.count(why);
                false
            }
        }
    }

    /// Sets the peek offset to where the next octet to send is.
    pub(in super::super) fn seek(&mut self, id: Id) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.state.readable = true;
        flow.seek(flow.conn.unacknowledged());
    }

    /// Sets the peek offset to an octet that was sent before.
    fn seek_to(&mut self, id: Id, seq: Seq) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) {
            flow.seek(flow.conn.behind(seq));
        }
    }

    /// Resets the guest's connection: the host's is gone.
    pub(in super::super) fn reset(&mut self, id: Id, outbox: &mut Outbox) {
        let waits = !outbox.has_room();
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        if waits {
            // Nothing would repeat it: it is said when there is room.
            (flow.state.failed, flow.state.readable) = (true, true);
            return self.starve(id);
        }
        let fields = flow.conn.reset();
        self.say(id, fields, outbox);
        self.abort(id);
    }

    /// Ends a flow whose streams have both ended, once the guest was told that its own has.
    pub(in super::super) fn finish(&mut self, id: Id) {
        if !matches!(self.flows.get(id), Some(Flow::Tcp(flow)) if flow.state.owes_ack) {
            self.end(id);
        }
    }

    /// Ends a flow whose streams have both ended: the kernel does the rest.
    pub(in super::super) fn end(&mut self, id: Id) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id)
            && (flow.forget > 0 || !flow.conn.host_is_done())
        {
            // Octets left unread would turn the close into a reset, and take with it what the host has yet to send.
            for _ in 0..TRIES {
                if !matches!(msg::discard(flow.socket.as_fd(), UNREAD), Ok(1..)) {
                    break;
                }
            }
        }
        self.remove(id);
    }

    /// Arms the wheel for a flow's next deadline.
    pub(in super::super) fn schedule(&mut self, id: Id) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id)
            && let Some(at) = flow.conn.deadline()
        {
            Self::arm(&mut self.wheel, id, &mut flow.armed, at);
        }
    }
}

fn nothing(flow: &mut TcpFlow) -> Look {
    flow.state.readable = false;
    Look::Nothing
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture;
    use super::*;
    use socket2::SockRef;
    use std::{
        io::{Read, Write},
        time::Duration,
    };

    /// Where a frame has its flags.
    const FLAGS: usize = 47;

    const NOW: Now = Now(1_000_000);

    #[test]
    fn the_last_acknowledgement_waits_for_room_and_the_connection_for_it() {
        let (mut outbox, guest) = fixture::link();
        let mut relay = fixture::relay(16);
        let (id, mut peer) = fixture::ended_connection(&mut relay, NOW);
        relay.finish(id);
        assert!(relay.flows.get(id).is_some());
        relay.resume(&mut outbox, NOW);
        assert!(relay.flows.get(id).is_none());
        relay.requests().clear();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        let frames = guest.frames(outbox);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][42..46], (fixture::IRS + 2).0.to_be_bytes());
        assert_eq!(frames[0][FLAGS], 0x10);
    }

    /// Octets it has acknowledged never got there.
    #[test]
    fn a_connection_that_was_reset_last_is_not_acknowledged_to_its_end() {
        let (mut outbox, guest) = fixture::link();
        let mut relay = fixture::relay(16);
        let (id, _peer) = fixture::ended_connection(&mut relay, NOW);
        if let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) {
            flow.state.failed = true;
        }
        relay.resume(&mut outbox, NOW);
        assert!(relay.flows.get(id).is_none());
        let frames = guest.frames(outbox);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][FLAGS] & 0x04, 0x04);
    }

    /// A stream that looks complete is worse than one that is reset (RFC 9293, section 3.10.7.4).
    #[test]
    fn a_reset_that_a_write_has_met_is_no_end_of_the_stream_for_who_stands_in_line() {
        let (mut outbox, guest) = fixture::link();
        let mut relay = fixture::relay(16);
        let (id, mut peer) = fixture::connection(&mut relay, NOW);
        peer.write_all(b"octets").unwrap();
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
        let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) else {
            panic!("no connection");
        };
        // The kernel tells once.
        SockRef::from(&flow.socket).send(b"lost").unwrap_err();
        (flow.state.failed, flow.state.ended, flow.state.readable) = (true, true, true);
        relay.starve(id);
        relay.pull(id, &mut outbox, NOW);
        relay.resume(&mut outbox, NOW);
        assert!(relay.flows.get(id).is_none());
        let frames = guest.frames(outbox);
        let flags: Vec<u8> = frames.iter().map(|frame| frame[FLAGS] & 7).collect();
        assert_eq!(flags, [0, 4]);
    }

    /// A machine that is stopped takes nothing, and goes on later.
    #[test]
    fn what_a_paused_guest_is_to_hear_is_owed() {
        let mut outbox = Outbox::new();
        outbox.attach_queue(true);
        let mut relay = fixture::relay(16);
        let (id, _peer) = fixture::connection(&mut relay, NOW);
        relay.acknowledge(id, &mut outbox, NOW);
        assert!(matches!(relay.flows.get(id), Some(Flow::Tcp(flow)) if flow.state.owes_ack));
        relay.reset(id, &mut outbox);
        assert!(matches!(relay.flows.get(id), Some(Flow::Tcp(flow)) if flow.state.failed));
    }

    /// Its peer gets what the guest has sent, and no reset.
    #[test]
    fn a_connection_that_is_over_ends_in_order_though_the_guest_leaves_meanwhile() {
        let mut relay = fixture::relay(16);
        let (_, mut peer) = fixture::ended_connection(&mut relay, NOW);
        relay.guest_left();
        relay.requests().clear();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
