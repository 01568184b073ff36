//! The machine between a model of a guest and a model of a host, on a link that loses, repeats and reorders.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::wire::headers::TcpFields;

/// What the guest's stack can, and how its link is.
#[derive(Debug, Clone, Copy)]
struct Nature {
    mss: u16,
    sack: bool,
    timestamps: bool,
    /// It keeps what comes behind a gap.
    keeps: bool,
    /// It shuts its window now and then, and reads slowly what it has room for.
    shuts: bool,
    room: usize,
    /// Nothing is lent to the connection.
    destitute: bool,
    /// Of 256 segments, these many are lost.
    loss: u8,
    iss: u32,
    irs: u32,
}

/// Timeouts in a row that the link may be bad for.
const WORST: u8 = 8;

/// A stream at its receiver: octets that came, and up to where there is no gap.
#[derive(Debug, Default)]
struct Stream {
    octets: Vec<Option<u8>>,
    nxt: usize,
}

impl Stream {
    fn take(&mut self, at: usize, octets: &[u8]) {
        if self.octets.len() < at + octets.len() {
            self.octets.resize(at + octets.len(), None);
        }
        for (place, octet) in self.octets[at..].iter_mut().zip(octets) {
            assert!(
                place.is_none_or(|had| had == *octet),
                "two octets in one place"
            );
            *place = Some(*octet);
        }
        while self.octets.get(self.nxt).is_some_and(Option::is_some) {
            self.nxt += 1;
        }
    }

    /// Stretches behind the first gap.
    fn islands(&self) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        for at in (self.nxt..self.octets.len()).filter(|&at| self.octets[at].is_some()) {
            match found.last_mut() {
                Some((_, end)) if *end == at => *end += 1,
                _ => found.push((at, at + 1)),
            }
        }
        found
    }

    fn whole(self) -> Vec<u8> {
        self.octets.into_iter().map(Option::unwrap).collect()
    }
}

/// The guest: its two streams and what it heard of us.
#[derive(Debug, Default)]
struct Guest {
    send: Vec<u8>,
    una: usize,
    nxt: usize,
    fin_acked: bool,
    /// The right edge we gave it.
    edge: usize,
    /// What we said we hold of its stream, for ever.
    sacked: Vec<bool>,
    got: Stream,
    fin_at: Option<usize>,
    shut: bool,
    /// Octets that came, up to the first gap, and were not read.
    unread: usize,
    /// The highest timestamp heard.
    recent: u32,
}

struct World {
    nature: Nature,
    conn: Conn,
    disorder: Option<Disorder>,
    now: Now,
    dice: u64,
    /// What the host sends, how much of it its socket was given, how much of that was forgotten, and the peek offset.
    down: Vec<u8>,
    given: usize,
    forgotten: usize,
    peek: usize,
    host: Stream,
    host_ended: bool,
    guest: Guest,
    to_guest: VecDeque<(TcpFields, Vec<u8>)>,
    to_us: VecDeque<(Segment, Vec<u8>)>,
}

impl World {
    fn new(nature: Nature, down: Vec<u8>, up: Vec<u8>, seed: u64) -> Self {
        let mut world = Self {
            nature,
            conn: Conn::new(&syn(), ORIGIN, 1460),
            disorder: (!nature.destitute).then(Disorder::default),
            now: NOW,
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            down,
            given: 0,
            forgotten: 0,
            peek: 0,
            host: Stream::default(),
            host_ended: false,
            guest: Guest {
                sacked: vec![false; up.len()],
                send: up,
                ..Guest::default()
            },
            to_guest: VecDeque::new(),
            to_us: VecDeque::new(),
        };
        let origin = Origin {
            iss: Seq(nature.iss),
            ..ORIGIN
        };
        let mut syn = world.segment(0, 0, Flags::SYN);
        syn.seq = Seq(nature.irs);
        syn.options.mss = Some(nature.mss);
        syn.options.window_scale = Some(2);
        syn.options.sack_permitted = nature.sack;
        world.conn = Conn::new(&syn, origin, 1460);
        world.conn.connected(NOW);
        let answer = world.conn.syn_ack(20_000, NOW);
        world.guest.edge = usize::from(answer.window);
        let ack = world.segment(0, 0, Flags::ACK);
        let todo = world.conn.segment(&ack, None, NOW);
        assert!(todo.open);
        world.pull();
        world
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 20) % sides
    }

    /// Octets that the guest can take from the first gap on.
    const fn room(&self) -> usize {
        self.nature.room.saturating_sub(self.guest.unread)
    }

    /// A segment of the guest at an octet of its stream.
    fn segment(&mut self, at: usize, len: usize, flags: Flags) -> Segment {
        let got = self.guest.got.nxt;
        let fin = self.guest.fin_at == Some(got);
        let mut segment = segment(
            Seq(self.nature.irs) + 1 + at as u32,
            Seq(self.nature.iss) + 1 + got as u32 + u32::from(fin),
            flags,
            len,
        );
        segment.options = Options::default();
        segment.window = if self.guest.shut {
            0
        } else {
            (self.room() >> 2) as u16
        };
        if self.nature.timestamps {
            segment.options.timestamps = Some(Timestamps {
                value: (self.now.0 / 1000) as u32,
                echo: self.guest.recent,
            });
        }
        if self.nature.sack {
            let mut sack = Sack::default();
            for (start, end) in self.guest.got.islands().into_iter().rev().take(4) {
                let first = Seq(self.nature.iss) + 1;
                sack.push(first + start as u32, first + end as u32);
            }
            segment.options.sack = sack;
        }
        segment
    }

    /// What `relay` does to send again and on.
    fn pull(&mut self) {
        while let Some((seq, count)) = self.conn.resend(self.disorder.as_ref(), self.now) {
            let at = self.forgotten + self.conn.behind(seq) as usize;
            let octets = self.down[at..at + count as usize].to_vec();
            assert!(at + octets.len() <= self.given);
            if count == 0 {
                let fields = self.conn.data(seq, Flags::FIN, 20_000, self.now);
                self.to_guest.push_back((fields, vec![]));
            }
            for (n, octets) in octets.chunks(self.conn.mss()).enumerate() {
                let seq = seq + (n * self.conn.mss()) as u32;
                let fields = self.conn.data(seq, Flags::NONE, 20_000, self.now);
                self.to_guest.push_back((fields, octets.to_vec()));
            }
            self.conn
                .resent(seq, count, self.disorder.as_mut(), self.now);
        }
        loop {
            let mut sendable = self.conn.sendable();
            if let Some(disorder) = &self.disorder {
                if self.conn.step_over(disorder) {
                    self.peek = self.forgotten + self.conn.unacknowledged() as usize;
                }
                sendable = self.conn.sendable().min(self.conn.gap(disorder));
            }
            if self.conn.gathers() || self.conn.is_silly() && self.conn.unacknowledged() > 0 {
                sendable = 0;
            }
            if self.conn.fin_due() {
                let fields = self
                    .conn
                    .data(self.conn.next(), Flags::FIN, 20_000, self.now);
                self.conn.fin_sent(self.now);
                self.to_guest.push_back((fields, vec![]));
                return;
            }
            let end = self.given.min(self.peek + sendable.min(self.conn.mss()));
            if end <= self.peek {
                if self.peek == self.down.len() && self.conn.wants_host() {
                    self.conn.ended();
                    continue;
                }
                if sendable == 0 && (self.peek < self.given || self.conn.fin_waits()) {
                    self.conn.blocked(self.now);
                }
                return;
            }
            if self.conn.is_silly() && end - self.peek == sendable {
                self.conn.blocked(self.now);
                return;
            }
            let octets = self.down[self.peek..end].to_vec();
            let fields = self
                .conn
                .data(self.conn.next(), Flags::NONE, 20_000, self.now);
            self.conn.sent(octets.len() as u32, self.now);
            self.peek = end;
            self.to_guest.push_back((fields, octets));
        }
    }

    fn carry_out(&mut self, todo: Todo, segment: Option<&Segment>, payload: &[u8]) {
        assert!(
            !todo.abort && todo.rst.is_none() && !todo.anew,
            "{todo:?} {:?}",
            self.conn
        );
        self.forgotten += todo.forget as usize;
        if todo.seek {
            self.peek = self.forgotten + self.conn.unacknowledged() as usize;
        }
        assert_eq!(
            self.peek,
            self.forgotten + self.conn.unacknowledged() as usize
        );
        let first = Seq(self.nature.irs) + 1;
        if let (Some((skip, take)), Some(segment)) = (todo.take, segment) {
            let at = (segment.seq + skip).since(first) as usize;
            assert_eq!(at, self.host.nxt);
            let nxt = self.host.nxt + (take + todo.admit) as usize;
            self.host
                .take(at, &payload[skip as usize..(skip + take) as usize]);
            assert_eq!(self.host.nxt, nxt, "what is admitted is there");
        }
        if let (Some(octets), Some(segment)) = (todo.hold, segment) {
            let at = segment.seq.since(first) as usize;
            assert_eq!(at - self.host.nxt, self.conn.ahead(segment.seq) as usize);
            // Now and then there is no room.
            if self.roll(8) > 0
                && self
                    .conn
                    .held(segment.seq, octets, self.disorder.as_mut().unwrap())
            {
                self.host.take(at, &payload[..octets as usize]);
            }
        }
        if self.conn.shutdown_due() {
            assert_eq!(self.host.nxt, self.guest.send.len());
            self.conn.shut_down();
            self.host_ended = true;
        }
        if todo.pull {
            self.pull();
        }
        if todo.ack != Ack::No {
            let disorder = self.disorder.as_ref();
            let fields = self.conn.acknowledgement(20_000, disorder, self.now);
            self.to_guest.push_back((fields, vec![]));
        }
    }

    /// The guest takes a segment of ours, and answers.
    fn guest_takes(&mut self, fields: TcpFields, octets: &[u8]) {
        let room = self.room();
        let guest = &mut self.guest;
        let options = fields.options.unwrap_or_default();
        assert_eq!(options.timestamps.is_some(), self.nature.timestamps);
        assert!(self.nature.sack || options.sack.is_empty());
        let length = octets.len() + if self.nature.timestamps { 12 } else { 0 };
        assert!(length <= usize::from(self.nature.mss.max(64)), "{length}");
        let first = Seq(self.nature.irs) + 1;
        let acked = fields.ack.since(first) as usize;
        guest.una = guest.una.max(acked.min(guest.send.len()));
        guest.fin_acked |= acked > guest.send.len();
        guest.edge = guest.edge.max(acked + (usize::from(fields.window) << 8));
        // A FIN that came twice is told of too.
        let sent = guest.nxt + usize::from(guest.nxt == guest.send.len());
        for &(start, end) in options.sack.blocks() {
            let (start, end) = (start.since(first) as usize, end.since(first) as usize);
            assert!(start < end && end <= sent);
            let octets = end.min(guest.nxt);
            guest.sacked[start..octets].fill(true);
        }
        if let Some(stamps) = options.timestamps {
            guest.recent = guest.recent.max(stamps.value);
        }
        let at = fields.seq.0.wrapping_sub(self.nature.iss.wrapping_add(1)) as usize;
        let fin = fields.flags.has(Flags::FIN);
        if octets.is_empty() && !fin {
            return;
        }
        let fits = at + octets.len() <= guest.got.nxt + room;
        if !guest.shut && fits && (self.nature.keeps || at <= guest.got.nxt) {
            let before = guest.got.nxt;
            guest.got.take(at, octets);
            guest.unread += if self.nature.shuts {
                guest.got.nxt - before
            } else {
                0
            };
            if fin {
                guest.fin_at = Some(at + octets.len());
            }
        }
        let answer = self.segment(sent, 0, Flags::ACK);
        self.to_us.push_back((answer, vec![]));
    }

    /// The guest's timer: what is not acknowledged is sent again, if we did not say that we hold it; and new octets.
    fn guest_sends(&mut self) {
        let mut at = self.guest.una;
        for _ in 0..20 {
            let end = (at + 1400).min(self.guest.send.len()).min(self.guest.edge);
            if at >= end {
                break;
            }
            if !self.guest.sacked[at..end].iter().all(|&sacked| sacked) {
                let segment = self.segment(at, end - at, Flags::ACK);
                self.to_us
                    .push_back((segment, self.guest.send[at..end].to_vec()));
            }
            self.guest.nxt = self.guest.nxt.max(end);
            at = end;
        }
        if at == self.guest.send.len() && !self.guest.fin_acked {
            let fin = self.segment(at, 0, Flags::ACK | Flags::FIN);
            self.to_us.push_back((fin, vec![]));
        }
    }

    /// Lets something happen to what is on its way.
    fn fate<T: Clone>(&mut self, queue: fn(&mut Self) -> &mut VecDeque<T>) -> Vec<T> {
        let late = self.roll(12) == 0;
        let waiting = queue(self).len() as u64;
        if waiting == 0 {
            return vec![];
        }
        let at = if late { self.roll(waiting.min(6)) } else { 0 };
        let Some(taken) = queue(self).remove(at as usize) else {
            return vec![];
        };
        // A link that lost all of fifteen timeouts in a row would be given up by anybody, and some case has one.
        let works = self.conn.send.retries() > WORST;
        match self.roll(256) {
            roll if roll < u64::from(self.nature.loss) && !works => vec![],
            240.. => vec![taken.clone(), taken],
            _ => vec![taken],
        }
    }

    fn step(&mut self) {
        self.now = self.now + Span(self.roll(200));
        if self.nature.shuts && self.roll(64) == 0 {
            self.guest.shut ^= true;
            let update = self.segment(self.guest.nxt, 0, Flags::ACK);
            self.to_us.push_back((update, vec![]));
        }
        if self.guest.unread > 0 && self.roll(24) == 0 {
            self.read();
        }
        if self.given < self.down.len() {
            self.given = (self.given + self.roll(7000) as usize).min(self.down.len());
            self.pull();
        }
        for (fields, octets) in self.fate(|world| &mut world.to_guest) {
            self.guest_takes(fields, &octets);
        }
        for (segment, octets) in self.fate(|world| &mut world.to_us) {
            let todo = self
                .conn
                .segment(&segment, self.disorder.as_mut(), self.now);
            self.carry_out(todo, Some(&segment), &octets);
        }
        if self.to_us.is_empty() && self.to_guest.is_empty() {
            self.quiet();
        } else if self.conn.deadline().is_some_and(|at| at <= self.now) {
            let todo = self.conn.expired(self.disorder.as_mut(), self.now);
            self.carry_out(todo, None, &[]);
        }
    }

    /// The guest's process reads something, and the guest says how much fits now.
    fn read(&mut self) {
        let most = self.guest.unread as u64 + 1;
        self.guest.unread -= self.roll(most).max(most / 4) as usize;
        let update = self.segment(self.guest.nxt, 0, Flags::ACK);
        self.to_us.push_back((update, vec![]));
    }

    /// Nothing is on its way: timers run on both sides.
    fn quiet(&mut self) {
        if self.guest.una < self.guest.send.len() || !self.guest.fin_acked {
            self.guest_sends();
        }
        if (self.guest.shut || self.guest.unread > 0) && self.roll(2) == 0 {
            self.guest.shut = false;
            return self.read();
        }
        let waits = self.conn.send.in_flight() > 0 || self.peek < self.given;
        assert!(
            !waits || self.conn.send.deadline().is_some(),
            "no timer: {:?}",
            self.conn
        );
        let before = self.conn.send.retries();
        if let Some(at) = self.conn.deadline() {
            self.now = at.max(self.now);
            let todo = self.conn.expired(self.disorder.as_mut(), self.now);
            let timeout = self.conn.send.retries() > before;
            self.carry_out(todo, None, &[]);
            assert!(
                !timeout || !waits || !self.to_guest.is_empty(),
                "a timeout that sends nothing: {:?}",
                self.conn
            );
        }
    }

    fn done(&self) -> bool {
        self.guest.fin_at == Some(self.guest.got.nxt) && self.guest.fin_acked && self.conn.is_over()
    }
}

prop_compose! {
    fn nature()(
        mss in prop_oneof![Just(1460_u16), Just(64), 1_u16..2000],
        sack: bool,
        timestamps: bool,
        keeps in prop::bool::weighted(0.8),
        shuts in prop::bool::weighted(0.3),
        room in prop_oneof![Just(24_000_usize), 64_usize..8_000],
        destitute in prop::bool::weighted(0.2),
        loss in 0_u8..77,
        iss in prop_oneof![any::<u32>(), u32::MAX - 20_000..],
        irs in prop_oneof![any::<u32>(), u32::MAX - 20_000..],
    ) -> Nature {
        // Who tells what it holds, holds something.
        Nature { mss, sack, timestamps, keeps: keeps || sack, shuts, room, destitute, loss, iss, irs }
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = seed | 1;
    let mut next = || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Cases, and octets each way at most: an interpreter (Miri) takes a thousand times as long.
const CASES: u32 = if cfg!(miri) { 2 } else { 128 };
const OCTETS: usize = if cfg!(miri) { 600 } else { 60_000 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]
    /// Every octet arrives once and in order, both sides close, and only then the timers rest.
    #[test]
    fn every_octet_arrives_once_and_in_order_on_a_bad_link(
        nature in nature(),
        down in 0..OCTETS,
        up in 0..OCTETS,
        seed: u64,
    ) {
        let (down, up) = (noise(down, seed), noise(up, !seed));
        let mut world = World::new(nature, down.clone(), up.clone(), seed);
        let mut steps = 0;
        while !world.done() {
            steps += 1;
            prop_assert!(
                steps < 3_000_000,
                "stuck: {:?} guest got {} of {}, acked {} of {}",
                world.conn, world.guest.got.nxt, down.len(), world.guest.una, up.len()
            );
            world.step();
        }
        prop_assert!(world.host_ended);
        prop_assert_eq!(world.guest.got.whole(), down);
        prop_assert_eq!(world.host.whole(), up);
    }
}
