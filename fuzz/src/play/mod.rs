//! One life of the whole data path: the guest's frames, the host's events, the clock and the link, in any order the input
//! says, over the scripted [`kernel`](crate::kernel). The parts are those of the program; only the poll is played.

mod script;

mod guest;

mod host;

mod queue;

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use passt_rs::{
    config::{Enabled, Forwards},
    flow::Id,
    host::{
        listen::{Options, Ports},
        socket::Features,
    },
    link::{Flushed, Inbox, Outbox},
    net::{Now, Protocol, Span},
    proto::tcp::SynRetries,
    relay::{Limits, Ready, Relay, Request},
};

use crate::{
    kernel::{self, Kernel, Kind, is_stream},
    sound::{Ear, Segment},
};
use queue::Queue;
use script::{Conn, Script};

/// Everything that plays.
struct Play {
    relay: Relay,
    inbox: Inbox,
    outbox: Outbox,
    now: Now,
    watched: HashMap<RawFd, Id>,
    conns: Vec<Conn>,
    ports: Vec<(u32, RawFd)>,
    /// The largest MTU there was.
    mtu: u16,
    ear: Ear,
    /// Tells the guest's packets in parts apart.
    parts: u16,
    guest: Guest,
    queue: Option<Queue>,
    /// The first octet of the input.
    setting: u8,
}

/// What the guest is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// It sends what its connections say, and sound datagrams, so that all its streams can be checked.
    Connections,
    /// It sends parts of packets and hardly anything else.
    Parts,
    /// It sends octets too that are no frame of its own.
    Anything,
    /// As the first, behind a vhost-user front-end, until that or its driver misbehaves.
    Queues,
}

/// Plays what `input` says.
pub fn run(input: &[u8], guest: Guest) {
    let (script, faults) = input.split_at(input.len() - input.len() / 4);
    let mut script = Script(script);
    Kernel::start(&[]);
    let mut play = Play::new(script.byte(), guest);
    kernel::with(|kernel| {
        kernel.script(faults);
        kernel.checks_upload = guest != Guest::Anything;
    });
    let mut turns = 0;
    while !script.0.is_empty() && turns < 400 {
        play.step(&mut script);
        play.settle();
        turns += 1;
    }
    play.end();
}

impl Play {
    fn new(setting: u8, guest: Guest) -> Self {
        let mut net = crate::net();
        net.mtu = [65_520, 1500, 1280, 576][usize::from(setting & 3)];
        let mtu = net.mtu;
        let features = Features {
            peek_offset4: setting & 4 == 0,
            peek_offset6: setting & 8 == 0,
        };
        let limits = Limits {
            flows: 8,
            spill: if setting & 16 == 0 { 1 << 18 } else { 1 << 13 },
            udp: Span::secs(30),
            udp_stream: Span::secs(180),
        };
        let mut relay = Relay::new(net, features, limits);
        let ports = forwarded();
        relay.forward(ports, SynRetries::default());
        let ports: Vec<_> = relay.forwarded().collect();
        kernel::with(|kernel| {
            for (_, fd) in &ports {
                // Those of UDP too: they are open as long as we are.
                if let Some(socket) = kernel.socket(*fd) {
                    socket.kind = Kind::Listener;
                }
            }
        });
        let conns = (0..6_u16).map(|n| Conn::new(n & 1 == 1, (40_000 + n / 2, 80), 1, false));
        let mut play = Self {
            relay,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            now: Now(1_000_000),
            watched: HashMap::new(),
            conns: conns.collect(),
            ports,
            mtu,
            ear: Ear::default(),
            parts: 0,
            guest,
            queue: None,
            setting,
        };
        play.attach();
        play
    }

    fn attach(&mut self) {
        if self.guest == Guest::Queues {
            return self.attach_front_end();
        }
        let link = |kernel: &mut Kernel| {
            kernel.from_guest.clear();
            kernel.to_guest.clear();
            (kernel.link(), kernel.link())
        };
        let (a, b) = kernel::with(link);
        // SAFETY: the scripted kernel has just made both, and nobody else has them.
        let (a, b) = unsafe { (OwnedFd::from_raw_fd(a), OwnedFd::from_raw_fd(b)) };
        self.inbox.attach(Some(a));
        self.outbox.attach(Some(b));
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        if self.guest == Guest::Parts && what >= 0x40 {
            return self.part(what, script);
        }
        match what % 16 {
            0 | 1 => self.segment(script),
            2 => self.syn(script),
            3 => self.data(script),
            4 | 5 => self.host_sends(script),
            6 => self.host_event(script),
            7 => self.arrivals(script),
            8 => self.datagram(script),
            9 => self.time(script),
            10 => self.link_room(script),
            11 => self.answer(script),
            12 if self.guest == Guest::Anything => self.raw(script),
            12 if self.guest == Guest::Queues => self.misbehave(script),
            13 => self.socket_room(script),
            14 => self.other(script),
            _ => self.burst(),
        }
    }

    fn time(&mut self, script: &mut Script<'_>) {
        let span = match script.byte() {
            octet @ 0..=0x7f => Span::millis(u64::from(octet)),
            octet @ 0x80..=0xef => Span::millis(u64::from(octet & 0x7f) * 40),
            octet => Span::secs(u64::from(octet & 0xf) * 1000),
        };
        let heard = self.now;
        self.now = self.now + span;
        // As after standing still: nobody was asked since.
        self.relay.expire(&mut self.outbox, heard, self.now);
        self.turn();
    }

    /// What the reactor does before it sleeps.
    fn turn(&mut self) {
        for turn in 0.. {
            assert!(turn < 10_000, "never comes to rest");
            self.relay.expire(&mut self.outbox, self.now, self.now);
            self.settle();
            let done = self.outbox.flush() == Flushed::Done;
            let more = done && self.relay.resume(&mut self.outbox, self.now);
            self.settle();
            if !more || self.outbox.flush() == Flushed::Blocked {
                break;
            }
        }
    }

    /// What is rarer.
    fn other(&mut self, script: &mut Script<'_>) {
        match script.byte() {
            0xf1.. => self.leave(),
            0x80..=0xb0 => self.parts(script),
            0xb1..=0xd0 => self.host_changes(script),
            0xd1..=0xf0 => self.group(script),
            count @ 0x40..=0x7f => self.row(count & 0x3f, script),
            _ => {}
        }
    }

    fn link_room(&mut self, script: &mut Script<'_>) {
        let room = script.number();
        kernel::with(|kernel| kernel.link_room = room as usize * 16);
        self.lend_buffers(room as usize & 0x3f, room >> 6 << 6);
    }

    fn leave(&mut self) {
        if self.queue.is_some() {
            self.detach_front_end();
            return self.attach_front_end();
        }
        kernel::with(|kernel| kernel.link_closed = true);
        self.burst();
        kernel::with(|kernel| kernel.link_closed = false);
    }

    /// Carries out requests, and reads what came to the guest.
    fn settle(&mut self) {
        let requests: Vec<Request> = self.relay.requests().drain(..).collect();
        for request in requests {
            match request {
                Request::Watch(fd, id) | Request::Hear(fd, id) | Request::Rewatch(fd, id) => {
                    let open = kernel::with(|kernel| kernel.socket(fd).is_some());
                    assert!(open, "a descriptor that is closed is to be watched");
                    self.watched.insert(fd, id);
                }
                Request::Listen(fd, place) => {
                    self.ports.retain(|(known, _)| *known != place);
                    self.ports.push((place, fd));
                }
                Request::ShutDown(fd) => {
                    let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Write);
                }
                Request::Close(socket) => {
                    self.watched.remove(&socket.as_raw_fd());
                    drop(socket);
                }
            }
        }
        if let Some(frames) = self.collect() {
            for (offload, mut frame) in frames {
                offload.complete(&mut frame);
                self.hear_frame(&frame, offload.cut);
            }
            return;
        }
        let octets = kernel::with(|kernel| std::mem::take(&mut kernel.to_guest));
        let mut rest = &octets[..];
        while let Some((prefix, behind)) = rest.split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            let Some(frame) = behind.get(..len) else {
                break;
            };
            self.hear_frame(frame, 0);
            rest = &behind[len..];
        }
        // The end of a frame may still be on its way.
        kernel::with(|kernel| kernel.to_guest = rest.to_vec());
    }

    /// The guest takes a frame; of more than one segment if it cuts it itself, into `cut` octets each.
    fn hear_frame(&mut self, frame: &[u8], cut: u16) {
        let mtu = if cut == 0 { self.mtu } else { u16::MAX };
        if let Some(segment) = self.ear.hear(frame, mtu, cut) {
            trace!("ours: {segment:?}");
            let headers = segment.payload.start - 14;
            assert!(usize::from(cut) + headers <= usize::from(self.mtu.max(1280)));
            self.hear(&segment, frame);
        }
    }

    /// The guest takes a segment, which must be of the stream its peer sends.
    fn hear(&mut self, segment: &Segment, frame: &[u8]) {
        let ports = (segment.ports.1, segment.ports.0);
        let same = |conn: &&mut Conn| {
            (conn.v6, conn.ports, conn.remote) == (segment.v6, ports, segment.remote)
        };
        let honest = self.guest != Guest::Anything && self.is_sane();
        let Some(conn) = self.conns.iter_mut().find(same) else {
            if segment.flags & 0x12 == 2 && self.conns.len() < 12 {
                let mut conn = Conn::new(segment.v6, ports, segment.remote, true);
                (conn.irs, conn.expected) = (Some(segment.seq), segment.seq.wrapping_add(1));
                self.conns.push(conn);
            }
            return;
        };
        if segment.flags & 4 != 0 {
            return;
        }
        if segment.flags & 2 != 0 && conn.irs != Some(segment.seq) {
            (conn.irs, conn.expected) = (Some(segment.seq), segment.seq.wrapping_add(1));
        }
        let Some(irs) = conn.irs else { return };
        let at = segment.seq.wrapping_sub(irs).wrapping_sub(1);
        let payload = &frame[segment.payload.clone()];
        assert!(
            is_stream(at.into(), payload),
            "octets {at} and on of the host's stream arrive changed"
        );
        let end = segment
            .seq
            .wrapping_add(payload.len() as u32 + u32::from(segment.flags & 1));
        if end.wrapping_sub(conn.expected).cast_signed() > 0 {
            conn.expected = end;
        }
        if honest && segment.flags & 0x10 != 0 {
            let acknowledged = segment.ack.wrapping_sub(conn.iss);
            assert!(
                acknowledged <= conn.most + 2 || acknowledged >= 0x4000_0000,
                "acknowledges what was never sent"
            );
        }
    }

    /// Everything settles: nobody spins, and nothing is left when the guest has gone.
    fn end(&mut self) {
        kernel::with(Kernel::behave);
        self.burst();
        for round in 0..40 {
            self.lend_buffers(64, 1 << 16);
            let open: Vec<RawFd> = self.watched.keys().copied().collect();
            for fd in open {
                let ready = kernel::with(|kernel| {
                    let socket = kernel.socket(fd)?;
                    (socket.room, socket.connecting) = (1 << 20, false);
                    Some(Ready {
                        readable: true,
                        writable: true,
                        ended: socket.ended,
                        error: false,
                        urgent: false,
                    })
                });
                self.ready(fd, ready.unwrap_or_default());
                self.settle();
            }
            self.turn();
            let mut still = 0;
            while self.relay.next_deadline(self.now) == Some(Span(0)) {
                self.turn();
                still += 1;
                assert!(still < 1000, "timers spin");
            }
            match self.relay.next_deadline(self.now) {
                Some(span) if round > 2 => self.now = self.now + span,
                Some(_) => {}
                None => break,
            }
        }
        self.relay.guest_left();
        self.settle();
        let left = kernel::with(|kernel| kernel.flows());
        assert!(left.is_empty(), "{} sockets leak", left.len());
    }
}

/// A port of each protocol, for both families.
fn forwarded() -> Ports {
    let mut forwards = Forwards::default();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let added = forwards.add(protocol, "22", &(32_768..=60_999));
        added.expect("a specifier");
    }
    let all = Enabled {
        v4: true,
        v6: true,
        tcp: true,
        udp: true,
    };
    let (rules, _) = forwards.finish(all).expect("rules");
    let options = Options {
        v4: true,
        v6: true,
        freebind: false,
        most: 8,
    };
    let (ports, _) = Ports::open(&rules, options).expect("ports");
    ports
}
