//! The machine against the rules, one by one, and against a model of a guest on a bad link.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const ISS: Seq = Seq(u32::MAX - 5);
const IRS: Seq = Seq(u32::MAX - 100);
const FREE: u32 = 100_000;
const NOW: Now = Now(1_000_000);

fn segment(seq: Seq, ack: Seq, flags: Flags, len: usize) -> Segment {
    let options = Options {
        mss: Some(1460),
        window_scale: Some(7),
    };
    Segment {
        src_port: 1,
        dst_port: 2,
        seq,
        ack,
        flags,
        window: 500,
        options,
        len: 20 + len,
        payload: 54..54 + len,
    }
}

fn syn() -> Segment {
    segment(IRS, Seq(0), Flags::SYN, 0)
}

/// A connection that waits for the guest's ACK.
fn syn_received() -> Conn {
    let mut conn = Conn::new(&syn(), ISS, 65_480);
    assert_eq!(
        conn.connected(NOW),
        Todo {
            syn_ack: true,
            ..Todo::default()
        }
    );
    let fields = conn.syn_ack(FREE);
    assert_eq!(
        (fields.seq, fields.ack, fields.flags),
        (ISS, IRS + 1, Flags::SYN | Flags::ACK)
    );
    conn
}

fn open() -> Conn {
    let mut conn = syn_received();
    let todo = conn.segment(&segment(IRS + 1, ISS + 1, Flags::ACK, 0), NOW);
    assert!(todo.open && todo.pull && !todo.over && todo.dropped.is_none());
    conn.acknowledgement(FREE);
    conn
}

/// The next segment of a guest that has everything.
fn next(conn: &Conn, flags: Flags, len: usize) -> Segment {
    segment(conn.receive.nxt, conn.send.nxt, flags, len)
}

#[test]
fn the_window_of_a_syn_ack_is_not_scaled() {
    let mut conn = syn_received();
    assert_eq!(conn.syn_ack(10_000_000).window, 65_535);
    assert_eq!(
        conn.syn_ack(0).options,
        Some(Options {
            mss: Some(65_480),
            window_scale: Some(8)
        })
    );
}

/// X04: a repetition has the same sequence number.
#[test]
fn an_unanswered_syn_ack_is_repeated_as_it_was_and_then_given_up() {
    let mut conn = syn_received();
    let mut repeated = 0;
    loop {
        let todo = conn.expired(conn.deadline().unwrap());
        if let Some(rst) = todo.rst {
            assert!(todo.abort && rst.flags.has(Flags::RST));
            break;
        }
        assert!(todo.syn_ack);
        assert_eq!(conn.syn_ack(FREE).seq, ISS);
        repeated += 1;
    }
    assert_eq!(repeated, 5);
    assert_eq!(conn.deadline(), None);
}

#[test]
fn a_repeated_syn_is_answered_again_and_another_one_begins_anew() {
    let mut conn = syn_received();
    assert!(conn.segment(&syn(), NOW).syn_ack);
    assert!(
        conn.segment(&segment(IRS + 77, Seq(0), Flags::SYN, 0), NOW)
            .anew
    );
    let mut conn = Conn::new(&syn(), ISS, 1460);
    assert_eq!(conn.segment(&syn(), NOW).dropped, Some(Why::OutOfWindow));
    assert!(
        conn.segment(&segment(IRS + 77, Seq(0), Flags::SYN, 0), NOW)
            .anew
    );
}

/// RFC 9293, section 3.10.7.4, SYN-RECEIVED: an ACK for something else.
#[test]
fn a_wrong_ack_of_the_handshake_is_reset_with_its_own_number() {
    let mut conn = syn_received();
    let todo = conn.segment(&segment(IRS + 1, ISS + 9, Flags::ACK, 0), NOW);
    let rst = todo.rst.unwrap();
    assert_eq!(
        (rst.seq, rst.flags, todo.abort),
        (ISS + 9, Flags::RST, false)
    );
    assert_eq!(conn.phase(), Phase::SynReceived);
}

#[test]
fn data_with_the_handshakes_ack_is_taken() {
    let mut conn = syn_received();
    let todo = conn.segment(&segment(IRS + 1, ISS + 1, Flags::ACK | Flags::PSH, 10), NOW);
    assert!(todo.open);
    assert_eq!((todo.take, todo.ack), (Some((0, 10)), Ack::Burst));
}

/// RFC 5961, section 3.2; X09.
#[test]
fn only_an_exact_rst_resets() {
    let mut conn = open();
    let exact = conn.receive.nxt;
    for (seq, challenged) in [
        (exact + 1, true),
        (exact + 50_000, true),
        (exact - 1, false),
        (exact + 900_000_000, false),
    ] {
        let todo = conn.segment(&segment(seq, Seq(0), Flags::RST, 0), NOW);
        assert_eq!(
            (todo.abort, todo.ack == Ack::Now),
            (false, challenged),
            "{seq:?}"
        );
    }
    assert!(
        conn.segment(&segment(exact, Seq(0), Flags::RST, 0), NOW)
            .abort
    );
    assert_eq!(conn.phase(), Phase::Closed);
}

/// RFC 5961, section 4.2; X08.
#[test]
fn a_syn_of_a_rebooted_guest_is_challenged_and_its_rst_believed() {
    let mut conn = open();
    let todo = conn.segment(&segment(IRS + 70_000, Seq(0), Flags::SYN, 0), NOW);
    assert_eq!((todo.ack, todo.abort), (Ack::Now, false));
    let challenge = conn.acknowledgement(FREE);
    assert!(
        conn.segment(&segment(challenge.ack, Seq(0), Flags::RST, 0), NOW)
            .abort
    );
}

/// X18.
#[test]
fn a_segment_outside_the_window_is_acknowledged() {
    let mut conn = open();
    for segment in [
        segment(conn.receive.nxt - 10, conn.send.nxt, Flags::ACK, 10),
        segment(conn.receive.nxt - 1, conn.send.nxt, Flags::ACK, 0),
        segment(conn.receive.nxt + 10_000_000, conn.send.nxt, Flags::ACK, 1),
        segment(conn.receive.nxt, conn.send.nxt + 1, Flags::ACK, 0),
    ] {
        let todo = conn.segment(&segment, NOW);
        assert_eq!((todo.ack, todo.take), (Ack::Now, None), "{segment:?}");
    }
}

#[test]
fn text_behind_a_gap_is_answered_with_a_duplicate_ack() {
    let mut conn = open();
    let expected = conn.receive.nxt;
    let todo = conn.segment(
        &segment(expected + 100, conn.send.nxt, Flags::ACK, 100),
        NOW,
    );
    assert_eq!((todo.ack, todo.dropped), (Ack::Now, Some(Why::OutOfOrder)));
    assert_eq!(conn.acknowledgement(FREE).ack, expected);
}

#[test]
fn octets_given_back_are_expected_again() {
    let mut conn = open();
    let expected = conn.receive.nxt;
    conn.segment(&next(&conn, Flags::ACK | Flags::FIN, 1000), NOW);
    assert!(conn.shutdown_due());
    conn.give_back(400);
    assert!(!conn.shutdown_due());
    assert_eq!(conn.acknowledgement(FREE).ack, expected + 600);
    let todo = conn.segment(
        &segment(expected, conn.send.nxt, Flags::ACK | Flags::FIN, 1000),
        NOW,
    );
    assert_eq!(todo.take, Some((600, 400)));
    assert!(conn.shutdown_due());
}

#[test]
fn either_side_may_close_first_and_the_other_go_on() {
    for guest_first in [true, false] {
        let mut conn = open();
        for first in [true, false] {
            if first == guest_first {
                let todo = conn.segment(&next(&conn, Flags::ACK | Flags::FIN, 0), NOW);
                assert_eq!(todo.ack, Ack::Burst);
                assert_eq!(conn.shut_down(), !first);
            } else {
                conn.ended();
                assert!(conn.fin_due());
                conn.fin_sent(NOW);
                assert!(!conn.fin_due());
                let todo = conn.segment(&next(&conn, Flags::ACK, 0), NOW);
                assert_eq!((todo.forget, todo.over), (0, !first));
            }
            if first {
                let open_half = if guest_first {
                    conn.wants_host()
                } else {
                    !conn.shutdown_due()
                };
                assert!(open_half);
            }
        }
        assert_eq!(
            conn.phase(),
            Phase::Open {
                host: Half::Done,
                guest: Half::Done
            }
        );
        assert_eq!(conn.deadline(), None);
    }
}

/// T23: a FIN that is lost comes again. T02: without a fast retransmit.
#[test]
fn a_lost_fin_is_left_to_the_timer() {
    let mut conn = open();
    conn.ended();
    conn.fin_sent(NOW);
    for _ in 0..5 {
        let todo = conn.segment(
            &segment(conn.receive.nxt, conn.send.una, Flags::ACK, 0),
            NOW,
        );
        assert!(!todo.seek);
    }
    let todo = conn.expired(conn.deadline().unwrap());
    assert!(todo.seek && todo.pull);
    assert_eq!(
        (conn.unacknowledged(), conn.fin_due(), conn.sendable()),
        (0, true, 0)
    );
}

#[test]
fn three_duplicates_mean_loss_once() {
    let mut conn = open();
    conn.sent(10_000, NOW);
    let duplicate = segment(conn.receive.nxt, conn.send.una, Flags::ACK, 0);
    let lost: Vec<bool> = (0..6).map(|_| conn.segment(&duplicate, NOW).seek).collect();
    assert_eq!(lost, [false, false, true, false, false, false]);
    assert_eq!(conn.unacknowledged(), 0);
    assert!(conn.sendable() >= 10_000);
}

/// T20, T40, X12: a shut window is probed with one octet, for as long as the guest answers.
#[test]
fn a_shut_window_is_probed_with_one_octet() {
    let mut conn = open();
    let shut = Segment {
        window: 0,
        ..next(&conn, Flags::ACK, 0)
    };
    conn.segment(&shut, NOW);
    assert_eq!(conn.sendable(), 0);
    conn.blocked(NOW);
    for _ in 0..100 {
        let at = conn.deadline().unwrap();
        let todo = conn.expired(at);
        assert!(todo.pull && todo.rst.is_none());
        assert_eq!(conn.sendable(), 1);
        conn.sent(1, at);
        assert_eq!(conn.sendable(), 0);
        conn.segment(&shut, at);
    }
    let todo = conn.segment(
        &segment(shut.seq, shut.ack + 1, Flags::ACK, 0),
        conn.deadline().unwrap(),
    );
    assert_eq!((todo.forget, todo.pull), (1, true));
    assert!(conn.sendable() > 10_000);
}

/// A guest whose window was shut need not have kept the octets of probes: they are sent again when it opens.
#[test]
fn what_probed_a_shut_window_is_sent_again_when_it_opens() {
    let mut conn = open();
    let shut = Segment {
        window: 0,
        ..next(&conn, Flags::ACK, 0)
    };
    let una = conn.send.una;
    conn.segment(&shut, NOW);
    conn.blocked(NOW);
    for _ in 0..4 {
        let at = conn.deadline().unwrap();
        assert!(conn.expired(at).pull);
        conn.sent(1, at);
        conn.segment(&shut, at);
    }
    let todo = conn.segment(&segment(shut.seq, una, Flags::ACK, 0), NOW);
    assert!(todo.seek && todo.pull);
    assert_eq!(conn.data(0, Flags::NONE, FREE).seq, una);
    // And a loss behind it is repaired by duplicates, as any other.
    conn.sent(10_000, NOW);
    let duplicate = segment(shut.seq, una, Flags::ACK, 0);
    assert!((0..3).any(|_| conn.segment(&duplicate, NOW).seek));
}

/// A stream of the host that has ended and been acknowledged needs no timer, however long the guest's goes on.
#[test]
fn a_half_closed_connection_lives_as_long_as_the_guest_sends() {
    let mut conn = open();
    conn.ended();
    conn.fin_sent(NOW);
    conn.segment(&next(&conn, Flags::ACK, 0), NOW);
    conn.blocked(NOW);
    assert_eq!(conn.deadline(), None);
    // Nor does a window that shuts over nothing end it.
    let mut conn = open();
    conn.segment(
        &Segment {
            window: 0,
            ..next(&conn, Flags::ACK, 0)
        },
        NOW,
    );
    conn.blocked(NOW);
    assert!(conn.expired(conn.deadline().unwrap()).pull);
    assert_eq!(conn.deadline(), None);
}

/// An old acknowledgement tells nothing of the window.
#[test]
fn the_window_of_an_old_acknowledgement_is_not_believed() {
    let mut conn = open();
    let old = segment(conn.receive.nxt, conn.send.una, Flags::ACK, 0);
    conn.sent(10_000, NOW);
    conn.segment(
        &Segment {
            window: 10,
            ..next(&conn, Flags::ACK, 0)
        },
        NOW,
    );
    let before = conn.sendable();
    conn.segment(&old, NOW);
    assert_eq!(conn.sendable(), before);
}

#[test]
fn a_silent_guest_is_given_up_after_fifteen_retries() {
    let mut conn = open();
    conn.sent(100, NOW);
    let mut retries = 0;
    let rst = loop {
        let at = conn.deadline().unwrap();
        let todo = conn.expired(at);
        if let Some(rst) = todo.rst {
            break rst;
        }
        conn.sent(100, at);
        retries += 1;
    };
    assert_eq!((retries, rst.flags), (15, Flags::RST | Flags::ACK));
}

#[test]
fn a_stray_segment_is_reset_by_the_rule() {
    let with_ack = reset_for(&segment(Seq(5), Seq(99), Flags::ACK, 3));
    assert_eq!((with_ack.seq, with_ack.flags), (Seq(99), Flags::RST));
    let without = reset_for(&segment(Seq(5), Seq(0), Flags::SYN | Flags::FIN, 3));
    assert_eq!(
        (without.seq, without.ack, without.flags),
        (Seq(0), Seq(10), Flags::RST | Flags::ACK)
    );
}

#[test]
fn hot_state_is_small() {
    assert!(size_of::<Conn>() <= 160, "{}", size_of::<Conn>());
}

/// A guest and a host around the machine, on a link that loses, repeats and reorders.
struct World {
    conn: Conn,
    now: Now,
    /// What the host sends: octets not yet forgotten, and how many of these were sent.
    socket: VecDeque<u8>,
    host_rest: Vec<u8>,
    peeked: usize,
    host_got: Vec<u8>,
    host_ended: bool,
    to_guest: Vec<(TcpFields, Vec<u8>)>,
    to_us: Vec<(Segment, Vec<u8>)>,
    // The guest.
    guest_send: Vec<u8>,
    guest_una: usize,
    guest_nxt: usize,
    guest_got: Vec<u8>,
    guest_fin_got: bool,
    guest_fin_sent: bool,
    guest_fin_acked: bool,
    guest_edge: usize,
}

impl World {
    fn new(down: Vec<u8>, up: Vec<u8>) -> Self {
        Self {
            conn: open(),
            now: NOW,
            socket: VecDeque::new(),
            host_rest: down,
            peeked: 0,
            host_got: Vec::new(),
            host_ended: false,
            to_guest: Vec::new(),
            to_us: Vec::new(),
            guest_send: up,
            guest_una: 0,
            guest_nxt: 0,
            guest_got: Vec::new(),
            guest_fin_got: false,
            guest_fin_sent: false,
            guest_fin_acked: false,
            guest_edge: 64_000,
        }
    }

    fn pull(&mut self) {
        loop {
            if self.conn.fin_due() {
                let fields = self.conn.data(0, Flags::FIN, FREE);
                self.conn.fin_sent(self.now);
                self.to_guest.push((fields, vec![]));
                return;
            }
            let allowed = self.conn.sendable().min(self.conn.mss()).min(5000);
            let octets: Vec<u8> = self
                .socket
                .iter()
                .skip(self.peeked)
                .take(allowed)
                .copied()
                .collect();
            if octets.is_empty() {
                if self.peeked == self.socket.len()
                    && self.host_rest.is_empty()
                    && self.conn.wants_host()
                {
                    self.conn.ended();
                    continue;
                }
                if allowed == 0 {
                    self.conn.blocked(self.now);
                }
                return;
            }
            let fields = self.conn.data(0, Flags::NONE, FREE);
            self.peeked += octets.len();
            self.conn.sent(octets.len() as u32, self.now);
            self.to_guest.push((fields, octets));
        }
    }

    fn carry_out(&mut self, todo: Todo, payload: &[u8]) {
        assert!(
            !todo.abort && todo.rst.is_none() && !todo.anew,
            "{todo:?} {:?}",
            self.conn
        );
        self.socket.drain(..todo.forget as usize);
        self.peeked = self.peeked.saturating_sub(todo.forget as usize);
        if todo.seek {
            self.peeked = self.conn.unacknowledged() as usize;
        }
        assert_eq!(
            self.peeked,
            self.conn.unacknowledged() as usize,
            "the peek offset is where the machine thinks"
        );
        if let Some((skip, take)) = todo.take {
            self.host_got
                .extend(&payload[skip as usize..(skip + take) as usize]);
        }
        if self.conn.shutdown_due() {
            self.conn.shut_down();
            self.host_ended = true;
        }
        if todo.pull {
            self.pull();
        }
        if todo.ack != Ack::No {
            let fields = self.conn.acknowledgement(FREE);
            self.to_guest.push((fields, vec![]));
        }
    }

    /// The guest takes a segment of ours, and answers.
    fn guest_takes(&mut self, fields: TcpFields, octets: &[u8]) {
        let acked = fields.ack.since(IRS + 1) as usize;
        self.guest_una = self.guest_una.max(acked.min(self.guest_send.len()));
        self.guest_fin_acked |= acked > self.guest_send.len();
        self.guest_edge = self
            .guest_edge
            .max(acked + (usize::from(fields.window) << 8));
        let at = fields.seq.0.wrapping_sub((ISS + 1).0) as usize;
        let have = self.guest_got.len();
        if fields.seq.before(ISS + 1) {
            return;
        }
        if at <= have && at + octets.len() > have {
            self.guest_got.extend(&octets[have - at..]);
        }
        if fields.flags.has(Flags::FIN) && at + octets.len() == self.guest_got.len() {
            self.guest_fin_got = true;
        }
        if !octets.is_empty() || fields.flags.has(Flags::FIN) {
            // A FIN that was sent counts, acknowledged or not.
            let fin = usize::from(self.guest_fin_sent && self.guest_nxt == self.guest_send.len());
            let segment = self.guest_segment(self.guest_nxt + fin, 0, false);
            self.to_us.push((segment, vec![]));
        }
    }

    fn guest_segment(&self, at: usize, len: usize, fin: bool) -> Segment {
        let ack = ISS + 1 + self.guest_got.len() as u32 + u32::from(self.guest_fin_got);
        let flags = if fin {
            Flags::ACK | Flags::FIN
        } else {
            Flags::ACK
        };
        segment(IRS + 1 + at as u32, ack, flags, len)
    }

    fn guest_sends(&mut self) {
        while self.guest_nxt < self.guest_send.len().min(self.guest_edge) {
            let len = (self.guest_send.len().min(self.guest_edge) - self.guest_nxt).min(1460);
            let octets = self.guest_send[self.guest_nxt..self.guest_nxt + len].to_vec();
            self.to_us
                .push((self.guest_segment(self.guest_nxt, len, false), octets));
            self.guest_nxt += len;
        }
        if self.guest_nxt == self.guest_send.len() && !self.guest_fin_acked {
            self.guest_fin_sent = true;
            self.to_us
                .push((self.guest_segment(self.guest_nxt, 0, true), vec![]));
        }
    }

    fn done(&self) -> bool {
        self.guest_fin_got && self.guest_fin_acked && self.conn.is_over()
    }
}

fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ x << 17
}

/// Takes from a queue by a fate: lost, twice, or out of order.
fn fate<T: Clone>(queue: &mut Vec<T>, fate: u8, loss: u8) -> Vec<T> {
    if queue.is_empty() {
        return vec![];
    }
    let at = if fate % 16 == 15 {
        (fate as usize / 16) % queue.len()
    } else {
        0
    };
    let taken = queue.remove(at);
    if fate < loss {
        vec![]
    } else if fate % 16 == 14 {
        vec![taken.clone(), taken]
    } else {
        vec![taken]
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_octet_arrives_once_and_in_order_on_a_bad_link(
        down in proptest::collection::vec(any::<u8>(), 0..40_000),
        up in proptest::collection::vec(any::<u8>(), 0..40_000),
        seed in 1_u64..,
        loss in 0_u8..51,
    ) {
        let mut world = World::new(down.clone(), up.clone());
        let mut fates = std::iter::successors(Some(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), |x| Some(xorshift(*x))).map(|x| (x >> 32) as u8);
        let mut steps = 0;
        while !world.done() {
            steps += 1;
            prop_assert!(steps < 200_000, "stuck: {:?} guest got {} una {}", world.conn, world.guest_got.len(), world.guest_una);
            if !world.host_rest.is_empty() {
                let more = world.host_rest.len().min(7000);
                world.socket.extend(world.host_rest.drain(..more));
                world.pull();
            }
            for (fields, octets) in fate(&mut world.to_guest, fates.next().unwrap(), loss) {
                world.guest_takes(fields, &octets);
            }
            for (segment, octets) in fate(&mut world.to_us, fates.next().unwrap(), loss) {
                let todo = world.conn.segment(&segment, world.now);
                world.carry_out(todo, &octets);
            }
            if world.to_us.is_empty() && world.to_guest.is_empty() {
                // Nothing is on its way: timers run on both sides.
                if world.guest_una < world.guest_send.len() || !world.guest_fin_acked {
                    world.guest_nxt = world.guest_una;
                    world.guest_sends();
                }
                world.pull();
                if let Some(at) = world.conn.deadline() {
                    world.now = at.max(world.now);
                    let todo = world.conn.expired(world.now);
                    world.carry_out(todo, &[]);
                }
            }
        }
        prop_assert_eq!(world.guest_got, down);
        prop_assert_eq!(world.host_got, up);
    }
}
