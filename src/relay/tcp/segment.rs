//! A segment of a known connection: the machine decides, this carries out.

use super::super::{flow::Flow, state::Relay};
use super::deliver::Placed;
use crate::{
    flow::{Id, Key},
    host::socket,
    link::{Flushed, Inbox, Outbox, Slot},
    net::{Now, Span, Why},
    proto::tcp::{Ack, Disorder, Todo},
    wire::{
        frame::{Ip, Segment},
        tcp::Flags,
    },
};

/// How long a retransmission is put off while the link itself is blocked.
const PATIENCE: Span = Span::millis(200);

/// Silence after which the peer of a connection that the guest leaves silent too is asked whether it is still there: Linux's
/// tcp_keepalive_time.
const PEER_IDLE: Span = Span::secs(7200);

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
            return Err(Why::Gone);
        };
        if flow.conn.is_over() && segment.flags.has(Flags::SYN) {
            // The connection before came to its end in this very burst, or while the link was full.
            self.end_burst_of(id, inbox, outbox, now);
            self.end(id);
            return self.tcp_unknown(key, ip, segment, outbox, now);
        }
        let lent = &mut flow.state.disorder;
        if lent.is_none() && flow.conn.is_disordered_by(segment) {
            *lent = self.disorders.lend();
        }
        let disorder = self.disorders.get_mut(*lent);
        let todo = flow.conn.segment(segment, disorder, now);
        if todo.anew {
            self.abort(id);
            return self.tcp_unknown(key, ip, segment, outbox, now);
        }
        let placed = Placed {
            segment,
            frame,
            inbox,
        };
        self.carry_out(id, todo, placed, outbox, now);
        self.tidy(id);
        todo.dropped.map_or(Ok(()), Err)
    }

    fn carry_out(&mut self, id: Id, todo: Todo, placed: Placed<'_>, outbox: &mut Outbox, now: Now) {
        let Placed {
            segment,
            frame,
            inbox,
        } = placed;
        if let Some(rst) = todo.rst {
            self.say(id, rst.into(), outbox);
        }
        if todo.abort {
            // What came before in this burst was in order.
            self.deliver(id, inbox);
            return self.abort(id);
        }
        if todo.syn_ack {
            self.send_syn_ack(id, outbox, now);
        }
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.forget += todo.forget;
        if let Some(silence) = todo.keep_alive {
            socket::keep_alive(&flow.socket, silence);
        }
        if let Some((skip, take)) = todo.take {
            let start = segment.payload.start + skip as usize;
            self.burst.push(
                &mut flow.pieces,
                frame.part(&(start..start + take as usize)),
            );
        }
        flow.state.ack |= todo.ack == Ack::Burst;
        flow.state.pull |= todo.pull;
        self.touch(id);
        if todo.seek {
            self.seek(id);
        }
        if let Some(octets) = todo.hold {
            self.keep_early(id, placed, octets);
        }
        if todo.ack == Ack::Now {
            // What is acknowledged must be held first.
            self.deliver(id, inbox);
            if todo.admit > 0 {
                self.admit(id, todo.admit);
            }
            self.ask_space(id);
            self.acknowledge(id, outbox, now);
        }
    }

    /// Takes back what was lent to a flow whose streams have no gaps any more.
    fn tidy(&mut self, id: Id) {
        if let Some(Flow::Tcp(flow)) = self.flows.get_mut(id)
            && let Some(lent) = flow.state.disorder
            && self.disorders.get(Some(lent)).is_none_or(Disorder::is_over)
        {
            flow.state.disorder = None;
            self.disorders.take_back(lent);
        }
    }

    /// Asks a guest that has been silent for long whether it is still there, and has the kernel ask the host's peer.
    fn ask(&mut self, id: Id, outbox: &mut Outbox, now: Now) {
        let free = self.space(id);
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        if flow.conn.asked_once() {
            socket::keep_alive(&flow.socket, PEER_IDLE);
        }
        let fields = flow.conn.question(free, now);
        self.say(id, fields, outbox);
    }

    /// A deadline of a flow may have come, if that was silent until `heard`.
    pub(in super::super) fn tcp_expired(
        &mut self,
        id: Id,
        outbox: &mut Outbox,
        heard: Now,
        now: Now,
    ) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        flow.armed = None;
        if flow.conn.deadline().is_some_and(|due| due > heard) {
            return self.schedule(id);
        }
        // A guest that does not read is not one that does not answer.
        if outbox.flush() == Flushed::Blocked {
            return Self::arm(&mut self.wheel, id, &mut flow.armed, now + PATIENCE);
        }
        let disorder = self.disorders.get_mut(flow.state.disorder);
        let todo = flow.conn.expired(disorder, now);
        let over = flow.is_over();
        if let Some(rst) = todo.rst {
            self.say(id, rst.into(), outbox);
        }
        if todo.abort {
            return self.abort(id);
        }
        if over {
            return self.finish(id);
        }
        if todo.doubt {
            self.doubt_guest(id, now);
        }
        if todo.syn {
            self.send_syn(id, outbox, now);
        }
        if todo.syn_ack {
            self.send_syn_ack(id, outbox, now);
        }
        if todo.ask {
            self.ask(id, outbox, now);
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

#[cfg(test)]
mod tests {
    use super::super::super::fixture;
    use super::*;
    use crate::{net::number, relay::Ready};
    use socket2::SockRef;

    /// We had no processor: what the guest may have said since is not known, and the next timeout counts from now.
    #[test]
    fn a_timeout_takes_as_long_as_the_guest_was_heard_to_be_silent() {
        const START: Now = Now(1_000_000);
        const AWAY: Span = Span::secs(5);
        let (mut outbox, guest) = fixture::link();
        let mut relay = fixture::relay(16);
        let (id, mut peer) = fixture::connection(&mut relay, START);
        std::io::Write::write_all(&mut peer, b"!").unwrap();
        let Some(Flow::Tcp(flow)) = relay.flows.get(id) else {
            panic!("no connection");
        };
        let mut octet = [std::mem::MaybeUninit::uninit()];
        while SockRef::from(&flow.socket).peek(&mut octet).is_err() {
            std::thread::yield_now();
        }
        let ready = Ready {
            readable: true,
            ..Ready::default()
        };
        relay.from_host(id, ready, &mut outbox, START);
        let deadline = |relay: &Relay| match relay.flows.get(id) {
            Some(Flow::Tcp(flow)) => flow.conn.deadline().unwrap(),
            _ => panic!("no connection"),
        };
        let due = deadline(&relay);
        relay.expire(&mut outbox, Now(due.0 - 1), due + AWAY);
        assert_eq!(deadline(&relay), due);
        // The wheel is not that exact.
        relay.expire(&mut outbox, due + Span::millis(50), due + AWAY);
        let next = deadline(&relay);
        assert!(next >= due + AWAY + due.since(START), "{due:?} {next:?}");
        // The octet, twice.
        assert_eq!(guest.frames(outbox).len(), 2);
    }

    /// No timer of its own is left, and its socket has said all it will.
    #[test]
    fn a_connection_that_both_ends_have_reset_is_over() {
        const NOW: Now = Now(1_000_000);
        let (mut outbox, guest) = fixture::link();
        let mut relay = fixture::relay(16);
        let (id, _peer) = fixture::connection(&mut relay, NOW);
        let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) else {
            panic!("no connection");
        };
        flow.state.failed = true;
        let fin = fixture::segment(fixture::IRS + 1, fixture::ISS + 1, Flags::FIN | Flags::ACK);
        flow.conn.segment(&fin, None, NOW);
        flow.conn.shut_down();
        let rst = fixture::segment(fixture::IRS + 2, fixture::ISS + 1, Flags::RST);
        let todo = flow.conn.segment(&rst, None, NOW);
        assert!(!todo.abort && todo.rst.is_none(), "{todo:?}");
        flow.state.pull |= todo.pull;
        relay.end_burst_of(id, &Inbox::new(), &mut outbox, NOW);
        assert!(relay.flows.get(id).is_none());
        drop(guest.frames(outbox));
    }

    /// The guest says nothing for hours, nor does its peer.
    #[test]
    fn both_ends_of_a_silent_connection_are_asked_and_the_guest_is_given_up_at_last() {
        const START: Now = Now(1_000_000);
        let (mut outbox, guest) = fixture::link();
        let mut relay = fixture::relay(16);
        let (id, mut peer) = fixture::connection(&mut relay, START);
        let mut asked = 0;
        let mut now = START;
        while let Some(Flow::Tcp(flow)) = relay.flows.get(id) {
            assert_eq!(SockRef::from(&flow.socket).keepalive().unwrap(), asked > 0);
            now = flow.conn.deadline().unwrap();
            relay.tcp_expired(id, &mut outbox, now, now);
            asked += 1;
        }
        assert!(now > START + Span::secs(7200), "{now:?}");
        relay.requests().clear();
        let error = std::io::Read::read(&mut peer, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let frames = guest.frames(outbox);
        let (reset, questions) = frames.split_last().unwrap();
        let (seq, flags) = (38..42, 47);
        assert_eq!(questions.len(), asked - 1);
        for question in questions {
            assert_eq!(question[23], number::TCP);
            // One octet before what the guest expects, and none to take.
            assert_eq!(question[seq.clone()], fixture::ISS.0.to_be_bytes());
            assert_eq!(question[flags], 0x10);
        }
        assert_eq!(reset[seq], (fixture::ISS + 1).0.to_be_bytes());
        assert_eq!(reset[flags] & 0x04, 0x04);
    }
}
