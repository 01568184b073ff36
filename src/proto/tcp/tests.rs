//! The machine against the rules, one by one, and against a model of a guest on a bad link.

use super::*;
use crate::wire::tcp::{Options, Sack, Timestamps};

mod ends;

mod loss;

mod model;

const ISS: Seq = Seq(u32::MAX - 5);
const ORIGIN: Origin = Origin { iss: ISS, clock: 7 };
const IRS: Seq = Seq(u32::MAX - 100);
const FREE: u32 = 100_000;
const NOW: Now = Now(1_000_000);

fn segment(seq: Seq, ack: Seq, flags: Flags, len: usize) -> Segment {
    let options = Options {
        mss: Some(1460),
        window_scale: Some(7),
        ..Options::default()
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
    let mut conn = Conn::new(&syn(), ORIGIN, 65_480);
    assert_eq!(
        conn.connected(NOW),
        Todo {
            syn_ack: true,
            ..Todo::default()
        }
    );
    let fields = conn.syn_ack(FREE, NOW);
    assert_eq!(
        (fields.seq, fields.ack, fields.flags),
        (ISS, IRS + 1, Flags::SYN | Flags::ACK)
    );
    conn
}

fn open() -> Conn {
    let mut conn = syn_received();
    let todo = conn.segment(&segment(IRS + 1, ISS + 1, Flags::ACK, 0), None, NOW);
    assert!(todo.open && todo.pull && !conn.is_over() && todo.dropped.is_none());
    conn.acknowledgement(FREE, None, NOW);
    conn
}

/// The next segment of a guest that has everything.
fn next(conn: &Conn, flags: Flags, len: usize) -> Segment {
    segment(conn.receive.nxt, conn.send.nxt, flags, len)
}

/// Regressions T34 and T81.
#[test]
fn the_window_of_a_syn_ack_is_not_scaled() {
    let mut conn = syn_received();
    assert_eq!(conn.syn_ack(10_000_000, NOW).window, 65_535);
    assert_eq!(
        conn.syn_ack(0, NOW).options,
        Some(Options {
            mss: Some(65_480),
            window_scale: Some(8),
            ..Options::default()
        })
    );
}

/// X04: a repetition has the same sequence number.
#[test]
fn an_unanswered_syn_ack_is_repeated_as_it_was_and_then_given_up() {
    let mut conn = syn_received();
    let mut repeated = 0;
    loop {
        let todo = conn.expired(None, conn.deadline().unwrap());
        if let Some(rst) = todo.rst {
            assert!(todo.abort && rst.flags.has(Flags::RST));
            break;
        }
        assert!(todo.syn_ack);
        assert_eq!(conn.syn_ack(FREE, NOW).seq, ISS);
        repeated += 1;
    }
    assert_eq!(repeated, 5);
    assert_eq!(conn.deadline(), None);
}

#[test]
fn a_repeated_syn_is_answered_again_and_another_one_begins_anew() {
    let mut conn = syn_received();
    assert!(conn.segment(&syn(), None, NOW).syn_ack);
    assert!(
        conn.segment(&segment(IRS + 77, Seq(0), Flags::SYN, 0), None, NOW)
            .anew
    );
    let mut conn = Conn::new(&syn(), ORIGIN, 1460);
    assert_eq!(
        conn.segment(&syn(), None, NOW).dropped,
        Some(Why::OutOfWindow)
    );
    assert!(
        conn.segment(&segment(IRS + 77, Seq(0), Flags::SYN, 0), None, NOW)
            .anew
    );
}

/// Which SYN,ACK the guest answers cannot be told (Karn; RFC 6298, section 3).
#[test]
fn a_handshake_with_a_repeated_syn_measures_nothing() {
    for repeated in [false, true] {
        let mut conn = syn_received();
        let now = NOW + Span::millis(900);
        if repeated {
            assert!(conn.segment(&syn(), None, now).syn_ack);
        }
        let ack = segment(IRS + 1, ISS + 1, Flags::ACK, 0);
        assert!(conn.segment(&ack, None, now).open);
        let measured = conn.send.rtt.smoothed();
        assert_eq!(measured == Span::ZERO, repeated, "{measured:?}");
    }
}

/// A guest that only sends acknowledges nothing but the handshake, which may have waited in its
/// queue; the timestamps it echoes tell of each round trip.
#[test]
fn a_guest_whose_handshake_waited_is_near_once_it_echoes_sooner() {
    let stamps = |conn: &Conn, at: Now| {
        let echo = conn.clock.stamp(at).value;
        Some(Timestamps { value: 1, echo })
    };
    for (trip, far) in [(Span::millis(1), false), (Span::millis(20), true)] {
        let mut stamped = syn();
        stamped.options.timestamps = Some(Timestamps { value: 1, echo: 0 });
        let mut conn = Conn::new(&stamped, ORIGIN, 65_480);
        conn.connected(NOW);
        conn.syn_ack(FREE, NOW);
        let mut ack = segment(IRS + 1, ISS + 1, Flags::ACK, 0);
        ack.options.timestamps = stamps(&conn, NOW);
        let mut now = NOW + Span::millis(10);
        assert!(conn.segment(&ack, None, now).open && conn.is_far());
        for _ in 0..3 {
            conn.acknowledgement(FREE, None, now);
            let mut data = next(&conn, Flags::ACK, 100);
            data.options.timestamps = stamps(&conn, now);
            now = now + trip;
            assert!(conn.segment(&data, None, now).take.is_some());
        }
        assert_eq!(conn.is_far(), far, "{trip:?}");
    }
}

/// RFC 9293, section 3.10.7.4, SYN-RECEIVED: an ACK for something else.
#[test]
fn a_wrong_ack_of_the_handshake_is_reset_with_its_own_number() {
    let mut conn = syn_received();
    let todo = conn.segment(&segment(IRS + 1, ISS + 9, Flags::ACK, 0), None, NOW);
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
    let todo = conn.segment(
        &segment(IRS + 1, ISS + 1, Flags::ACK | Flags::PSH, 10),
        None,
        NOW,
    );
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
        let todo = conn.segment(&segment(seq, Seq(0), Flags::RST, 0), None, NOW);
        assert_eq!(
            (todo.abort, todo.ack == Ack::Now),
            (false, challenged),
            "{seq:?}"
        );
    }
    assert!(
        conn.segment(&segment(exact, Seq(0), Flags::RST, 0), None, NOW)
            .abort
    );
    assert_eq!(conn.phase(), Phase::Closed);
}

/// RFC 5961, section 4.2; X08.
#[test]
fn a_syn_of_a_rebooted_guest_is_challenged_and_its_rst_believed() {
    let mut conn = open();
    let todo = conn.segment(&segment(IRS + 70_000, Seq(0), Flags::SYN, 0), None, NOW);
    assert_eq!((todo.ack, todo.abort), (Ack::Now, false));
    let challenge = conn.acknowledgement(FREE, None, NOW);
    assert!(
        conn.segment(&segment(challenge.ack, Seq(0), Flags::RST, 0), None, NOW)
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
        let todo = conn.segment(&segment, None, NOW);
        assert_eq!((todo.ack, todo.take), (Ack::Now, None), "{segment:?}");
    }
}

#[test]
fn text_behind_a_gap_is_answered_with_a_duplicate_ack() {
    let mut conn = open();
    let expected = conn.receive.nxt;
    let todo = conn.segment(
        &segment(expected + 100, conn.send.nxt, Flags::ACK, 100),
        None,
        NOW,
    );
    assert_eq!((todo.ack, todo.dropped), (Ack::Now, Some(Why::OutOfOrder)));
    assert_eq!(conn.acknowledgement(FREE, None, NOW).ack, expected);
}

#[test]
fn octets_given_back_are_expected_again() {
    let mut conn = open();
    let expected = conn.receive.nxt;
    conn.segment(&next(&conn, Flags::ACK | Flags::FIN, 1000), None, NOW);
    assert!(conn.shutdown_due());
    conn.give_back(400);
    assert!(!conn.shutdown_due());
    assert_eq!(conn.acknowledgement(FREE, None, NOW).ack, expected + 600);
    let todo = conn.segment(
        &segment(expected, conn.send.nxt, Flags::ACK | Flags::FIN, 1000),
        None,
        NOW,
    );
    assert_eq!(todo.take, Some((600, 400)));
    assert!(conn.shutdown_due());
}

/// A guest that heard of a wider window acknowledges from its edge (RFC 7323, section 2.4), or from where it now is.
#[test]
fn acknowledgements_count_though_octets_were_given_back() {
    let mut conn = open();
    let (expected, una) = (conn.receive.nxt, conn.send.nxt);
    let promised = conn.promised();
    conn.segment(&next(&conn, Flags::ACK, 1000), None, NOW);
    conn.give_back(1000);
    assert_eq!(conn.promised(), 0);
    conn.sent(5000, NOW);
    let behind = segment(expected + 100, una, Flags::ACK, 100);
    conn.segment(&behind, None, NOW);
    let mut acknowledging = segment(expected, una + 1000, Flags::ACK, 0);
    acknowledging.window = 40;
    assert_eq!(conn.segment(&acknowledging, None, NOW).forget, 1000);
    assert_eq!(conn.send.sendable(), conn.send.octets(40, false) - 4000);
    let edge = segment(expected + promised, una + 2000, Flags::ACK, 0);
    assert_eq!(conn.segment(&edge, None, NOW).forget, 1000);
    acknowledging.ack = edge.ack;
    conn.segment(&acknowledging, None, NOW);
    assert_eq!(conn.send.sendable(), conn.send.octets(40, false) - 3000);
    let rest = segment(expected, una + 2000, Flags::ACK, promised as usize);
    assert_eq!(conn.segment(&rest, None, NOW).take, Some((0, promised)));
    assert_eq!(conn.promised(), 0);
}

#[test]
fn segments_get_smaller_where_an_error_is_about_one_in_flight_and_says_so() {
    let mut conn = open();
    let una = conn.send.nxt;
    conn.sent(5000, NOW);
    let mss = conn.mss() as u16;
    assert!(!conn.narrow(una - 1, 600, None));
    assert!(!conn.narrow(una + 5000, 600, None));
    assert!(!conn.narrow(una, mss + conn.options() as u16, None));
    assert_eq!((conn.next(), conn.mss()), (una + 5000, mss.into()));
    assert!(conn.narrow(una + 1460, 600, None));
    assert_eq!(conn.next(), una);
    assert_eq!(conn.mss() + conn.options(), 600);
    // The other errors of the same burst.
    assert!(!conn.narrow(una + 2920, 600, None));
    conn.sent(5000, NOW);
    assert!(!conn.narrow(una, 600, None));
}

/// Regressions T19 and T85.
#[test]
fn either_side_may_close_first_and_the_other_go_on() {
    for guest_first in [true, false] {
        let mut conn = open();
        for first in [true, false] {
            if first == guest_first {
                let todo = conn.segment(&next(&conn, Flags::ACK | Flags::FIN, 0), None, NOW);
                assert_eq!(todo.ack, Ack::Burst);
                conn.shut_down();
                assert_eq!(conn.is_over(), !first);
            } else {
                conn.ended();
                assert!(conn.fin_due());
                conn.fin_sent(NOW);
                assert!(!conn.fin_due());
                let todo = conn.segment(&next(&conn, Flags::ACK, 0), None, NOW);
                assert_eq!((todo.forget, conn.is_over()), (0, !first));
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
            None,
            NOW,
        );
        assert!(!todo.seek);
    }
    let todo = conn.expired(None, conn.deadline().unwrap());
    assert!(todo.seek && todo.pull);
    assert_eq!(
        (conn.unacknowledged(), conn.fin_due(), conn.sendable()),
        (0, true, 0)
    );
}

/// RFC 6582: for guests that do not tell what they hold. T64: nothing else moves.
#[test]
fn three_duplicates_mean_that_the_first_segment_is_lost_and_a_part_acknowledged_the_next() {
    let mut conn = open();
    let una = conn.next();
    conn.sent(10_000, NOW);
    let duplicate = segment(conn.receive.nxt, una, Flags::ACK, 0);
    let heard = (0..6).map(|_| conn.segment(&duplicate, None, NOW));
    let lost: Vec<bool> = heard.map(|todo| todo.pull && !todo.seek).collect();
    assert_eq!(lost, [false, false, true, false, false, false]);
    assert_eq!(conn.resend(None, NOW), Some((una, 1460)));
    conn.resent(una, 1460, None, NOW);
    assert_eq!(conn.resend(None, NOW), None);
    assert_eq!(conn.unacknowledged(), 10_000);
    let part = segment(conn.receive.nxt, una + 2920, Flags::ACK, 0);
    assert!(conn.segment(&part, None, NOW).pull);
    assert_eq!(conn.resend(None, NOW), Some((una + 2920, 1460)));
    conn.resent(una + 2920, 1460, None, NOW);
    let whole = segment(conn.receive.nxt, una + 10_000, Flags::ACK, 0);
    conn.segment(&whole, None, NOW);
    assert_eq!(conn.resend(None, NOW), None);
}

/// T20, T21, T40, X12: a shut window is probed with one octet, for as long as the guest answers.
#[test]
fn a_shut_window_is_probed_with_one_octet() {
    let mut conn = open();
    let shut = Segment {
        window: 0,
        ..next(&conn, Flags::ACK, 0)
    };
    conn.segment(&shut, None, NOW);
    assert_eq!(conn.sendable(), 0);
    conn.blocked(NOW);
    let mut last = NOW;
    for _ in 0..100 {
        let at = conn.deadline().unwrap();
        // A guest that answers is asked often enough: an update of its window may have been lost.
        assert!(at.since(last) <= Span::secs(10), "{:?}", at.since(last));
        last = at;
        let todo = conn.expired(None, at);
        assert!(todo.pull && todo.rst.is_none());
        assert_eq!(conn.sendable(), 1);
        conn.sent(1, at);
        assert_eq!(conn.sendable(), 0);
        conn.segment(&shut, None, at);
    }
    let todo = conn.segment(
        &segment(shut.seq, shut.ack + 1, Flags::ACK, 0),
        None,
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
    conn.segment(&shut, None, NOW);
    conn.blocked(NOW);
    for _ in 0..4 {
        let at = conn.deadline().unwrap();
        assert!(conn.expired(None, at).pull);
        conn.sent(1, at);
        conn.segment(&shut, None, at);
    }
    let todo = conn.segment(&segment(shut.seq, una, Flags::ACK, 0), None, NOW);
    assert!(todo.seek && todo.pull);
    assert_eq!(conn.data(conn.next(), Flags::NONE, FREE, NOW).seq, una);
    // And a loss behind it is repaired by duplicates, as any other.
    conn.sent(10_000, NOW);
    let duplicate = segment(shut.seq, una, Flags::ACK, 0);
    assert!((0..3).any(|_| conn.segment(&duplicate, None, NOW).pull));
    assert_eq!(conn.resend(None, NOW), Some((una, 1460)));
}

/// RFC 6298, section 5.1: the timer of probes, far off by now, is not that of what the opened window takes.
#[test]
fn a_window_that_opens_ends_the_backoff_of_its_probes() {
    for fin in [false, true] {
        let mut conn = open();
        let shut = Segment {
            window: 0,
            ..next(&conn, Flags::ACK, 0)
        };
        conn.segment(&shut, None, NOW);
        conn.blocked(NOW);
        if fin {
            conn.ended();
        }
        let mut at = NOW;
        for _ in 0..10 {
            at = conn.deadline().unwrap();
            assert!(conn.expired(None, at).pull);
            if !fin {
                conn.sent(1, at);
            }
            conn.segment(&shut, None, at);
            conn.blocked(at);
        }
        let opened = segment(shut.seq, shut.ack, Flags::ACK, 0);
        assert!(conn.segment(&opened, None, at).pull);
        if fin {
            assert!(conn.fin_due());
            conn.fin_sent(at);
        } else {
            conn.sent(1000, at);
        }
        assert!(conn.send.deadline().unwrap() <= at + Span::secs(1));
    }
}

/// T24, T52, T76: a stream of the host that has ended and been acknowledged needs no timer, however long the guest's goes on.
#[test]
fn a_half_closed_connection_lives_as_long_as_the_guest_sends() {
    let mut conn = open();
    conn.ended();
    conn.fin_sent(NOW);
    conn.segment(&next(&conn, Flags::ACK, 0), None, NOW);
    conn.blocked(NOW);
    assert_eq!(conn.send.deadline(), None);
    // Nor does a window that shuts over nothing end it.
    let mut conn = open();
    conn.segment(
        &Segment {
            window: 0,
            ..next(&conn, Flags::ACK, 0)
        },
        None,
        NOW,
    );
    conn.blocked(NOW);
    assert!(conn.expired(None, conn.deadline().unwrap()).pull);
    assert_eq!(conn.send.deadline(), None);
}

/// T84: an old acknowledgement tells nothing of the window.
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
        None,
        NOW,
    );
    let before = conn.sendable();
    conn.segment(&old, None, NOW);
    assert_eq!(conn.sendable(), before);
}

/// Regression T31.
#[test]
fn a_silent_guest_is_given_up_after_fifteen_retries() {
    let mut conn = open();
    conn.sent(100, NOW);
    let mut retries = 0;
    let rst = loop {
        let at = conn.deadline().unwrap();
        let todo = conn.expired(None, at);
        if let Some(rst) = todo.rst {
            break rst;
        }
        conn.sent(100, at);
        retries += 1;
        assert_eq!(todo.doubt, retries >= DOUBTFUL, "of {retries}");
    };
    assert_eq!((retries, rst.flags), (15, Flags::RST | Flags::ACK));
}

/// Regressions T63 and T82.
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
    assert!(size_of::<Conn>() <= 168, "{}", size_of::<Conn>());
}
