//! Loss and silence, rule by rule.

use super::*;

/// A connection with a guest that tells what it holds, ten segments of 1000 octets in flight, and a round trip of 1 ms.
fn in_flight() -> (Conn, Disorder, Now) {
    let mut syn = syn();
    syn.options.sack_permitted = true;
    syn.options.mss = Some(1000);
    let mut conn = Conn::new(&syn, ORIGIN, 1460);
    conn.connected(NOW);
    let now = NOW + Span::millis(1);
    let todo = conn.segment(&segment(IRS + 1, ISS + 1, Flags::ACK, 0), None, now);
    assert!(todo.open);
    for n in 0..10 {
        conn.sent(1000, now + Span(n));
    }
    (conn, Disorder::default(), now + Span::millis(1))
}

/// The octet `thousands` segments into the stream.
fn at(thousands: u32) -> Seq {
    ISS + 1 + 1000 * thousands
}

/// An acknowledgement of so many segments, with blocks of others.
fn ack(conn: &Conn, thousands: u32, blocks: &[(u32, u32)]) -> Segment {
    let mut segment = segment(conn.receive.nxt, at(thousands), Flags::ACK, 0);
    for &(start, end) in blocks {
        segment.options.sack.push(at(start), at(end));
    }
    segment
}

/// What is to be sent again now, in order.
fn again(conn: &mut Conn, disorder: &mut Disorder, now: Now) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    while let Some((seq, octets)) = conn.resend(Some(disorder), now) {
        conn.resent(seq, octets, Some(disorder), now);
        found.push((seq.since(at(0)) / 1000, octets));
    }
    found
}

/// RFC 8985, section 6.2.
#[test]
fn holes_are_sent_again_once() {
    let (mut conn, mut disorder, now) = in_flight();
    let holes = ack(&conn, 1, &[(5, 10), (2, 4)]);
    assert!(conn.is_disordered_by(&holes));
    let todo = conn.segment(&holes, Some(&mut disorder), now);
    assert!(todo.pull && !todo.seek && todo.forget == 1000);
    assert_eq!(again(&mut conn, &mut disorder, now), [(1, 1000), (4, 1000)]);
    // The same told again changes nothing, however often.
    for _ in 0..5 {
        conn.segment(&holes, Some(&mut disorder), now + Span(50));
        assert_eq!(again(&mut conn, &mut disorder, now + Span(50)), []);
    }
    conn.segment(&ack(&conn, 10, &[]), Some(&mut disorder), now + Span(900));
    assert!(disorder.is_over());
    assert_eq!(conn.deadline(), Some(conn.idle.deadline()));
}

/// RFC 8985, section 6.2, step 5: what was sent again and lost again is known by something sent after it.
#[test]
fn a_hole_that_is_lost_again_is_sent_again_again() {
    let (mut conn, mut disorder, now) = in_flight();
    conn.segment(&ack(&conn, 0, &[(1, 10)]), Some(&mut disorder), now);
    assert_eq!(again(&mut conn, &mut disorder, now), [(0, 1000)]);
    let later = now + Span::millis(1);
    conn.sent(1000, later);
    let now = later + Span::millis(1);
    conn.segment(&ack(&conn, 0, &[(1, 11)]), Some(&mut disorder), now);
    assert_eq!(again(&mut conn, &mut disorder, now), [(0, 1000)]);
}

/// A guest with little room takes the first of what is sent again together, and nothing sent after that tells of the rest.
#[test]
fn a_hole_of_which_a_part_is_lost_again_does_not_wait_for_the_timeout() {
    let (mut conn, mut disorder, now) = in_flight();
    conn.segment(&ack(&conn, 0, &[(6, 10)]), Some(&mut disorder), now);
    let octets = |again: Vec<(u32, u32)>| again.iter().map(|&(_, octets)| octets).sum::<u32>();
    assert_eq!(octets(again(&mut conn, &mut disorder, now)), 6000);
    let now = now + Span::millis(1);
    conn.segment(&ack(&conn, 3, &[(6, 10)]), Some(&mut disorder), now);
    assert_eq!(again(&mut conn, &mut disorder, now), []);
    let due = conn.deadline().unwrap();
    assert!(due <= now + Span::millis(20), "{:?}", due.since(now));
    let todo = conn.expired(Some(&mut disorder), due);
    assert!(todo.pull && !todo.seek);
    assert_eq!(again(&mut conn, &mut disorder, due), [(3, 1000)]);
    let now = due + Span::millis(1);
    conn.segment(&ack(&conn, 4, &[(6, 10)]), Some(&mut disorder), now);
    assert_eq!(octets(again(&mut conn, &mut disorder, now)), 2000);
}

/// RFC 8985, section 6.2, step 4: a single segment that seems late is waited for, a quarter of a round trip.
#[test]
fn what_may_only_be_late_is_waited_for() {
    let (mut conn, mut disorder, now) = in_flight();
    conn.segment(&ack(&conn, 0, &[(1, 2)]), Some(&mut disorder), now);
    assert_eq!(again(&mut conn, &mut disorder, now), []);
    let due = conn.deadline().unwrap();
    assert!(due > now && due <= now + Span::millis(1));
    assert!(conn.expired(Some(&mut disorder), due).pull);
    assert_eq!(again(&mut conn, &mut disorder, due), [(0, 1000)]);
}

/// An acknowledgement that was overtaken says what the guest held then, which it has acknowledged since.
#[test]
fn what_a_late_acknowledgement_says_was_held_is_no_gap() {
    let (mut conn, mut disorder, now) = in_flight();
    conn.segment(&ack(&conn, 8, &[]), Some(&mut disorder), now);
    let probe = conn.deadline();
    let late = ack(&conn, 2, &[(4, 6), (3, 3)]);
    conn.segment(&late, Some(&mut disorder), now);
    assert!(disorder.is_over());
    conn.segment(&ack(&conn, 2, &[(4, 9)]), Some(&mut disorder), now);
    assert_eq!(disorder.sacked.iter().next(), Some((at(8), at(9))));
    assert_eq!(conn.deadline(), probe);
}

/// RFC 8985, section 7.
#[test]
fn the_tail_is_probed_before_the_timeout() {
    let (mut conn, mut disorder, now) = in_flight();
    conn.segment(&ack(&conn, 8, &[]), None, now);
    let due = conn.deadline().unwrap();
    assert!(due < now + Span::millis(200));
    let todo = conn.expired(None, due);
    assert!(todo.pull && !todo.seek);
    assert_eq!(again(&mut conn, &mut disorder, due), [(9, 1000)]);
    // Then the timeout, which is not put off by it.
    assert_eq!(conn.deadline(), Some(due + Span::millis(200)));
}

/// Only a timeout halves what may be in flight; what the guest holds is stepped over.
#[test]
fn a_timeout_halves_the_flight_and_sends_only_what_the_guest_lacks() {
    let (mut conn, mut disorder, now) = in_flight();
    conn.segment(&ack(&conn, 0, &[(1, 3)]), Some(&mut disorder), now);
    assert!(conn.sendable() > 10_000);
    let mut todo = Todo::default();
    while !todo.seek {
        let due = conn.deadline().unwrap();
        todo = conn.expired(Some(&mut disorder), due);
        again(&mut conn, &mut disorder, due);
    }
    assert_eq!((conn.next(), conn.sendable()), (at(0), 5000));
    assert_eq!(conn.gap(&disorder), 1000);
    conn.sent(1000, now);
    assert!(conn.step_over(&disorder));
    assert_eq!((conn.next(), conn.sendable()), (at(3), 2000));
    // Each acknowledgement lets it grow again.
    conn.segment(&ack(&conn, 3, &[]), Some(&mut disorder), now);
    assert_eq!(conn.sendable(), 8000);
}

/// Regressions T18 and T39: a guest that has said its last word is sent what it lacks all the same.
#[test]
fn a_guest_that_has_closed_is_served_on() {
    let (mut conn, _, now) = in_flight();
    conn.segment(&next(&conn, Flags::ACK | Flags::FIN, 0), None, now);
    conn.shut_down();
    conn.sent(1000, now);
    let duplicate = segment(conn.receive.nxt, at(10), Flags::ACK, 0);
    for _ in 0..3 {
        conn.segment(&duplicate, None, now);
    }
    assert_eq!(conn.resend(None, now), Some((at(10), 1000)));
    let shut = Segment {
        window: 0,
        ..segment(conn.receive.nxt, at(11), Flags::ACK, 0)
    };
    conn.segment(&shut, None, now);
    assert_eq!(conn.sendable(), 0);
    let opened = segment(conn.receive.nxt, at(11), Flags::ACK, 0);
    assert!(conn.segment(&opened, None, now).pull);
    assert!(conn.sendable() > 0);
}

/// Regression T15.
#[test]
fn data_behind_a_fin_is_not_taken_but_what_it_acknowledges_is() {
    let (mut conn, _, now) = in_flight();
    conn.segment(&next(&conn, Flags::ACK | Flags::FIN, 0), None, now);
    conn.sent(1000, now);
    let todo = conn.segment(&next(&conn, Flags::ACK, 50), None, now);
    assert_eq!((todo.take, todo.forget, todo.ack), (None, 1000, Ack::Now));
}

/// Regression T73.
#[test]
fn an_acknowledgement_of_a_part_keeps_the_timer() {
    let (mut conn, _, now) = in_flight();
    conn.segment(&ack(&conn, 4, &[]), None, now);
    assert!(conn.send.deadline().is_some_and(|due| due > now));
    conn.segment(&ack(&conn, 3, &[]), None, now);
    assert!(conn.send.deadline().is_some());
}

/// Regression T86.
#[test]
fn a_fin_with_the_same_acknowledgement_is_no_duplicate() {
    let (mut conn, _, now) = in_flight();
    let fin = segment(conn.receive.nxt, at(0), Flags::ACK | Flags::FIN, 0);
    for _ in 0..4 {
        conn.segment(&fin, None, now);
    }
    assert_eq!(conn.resend(None, now), None);
}

/// Regression T41: an octet before those expected, but a new window.
#[test]
fn the_window_of_a_keepalive_is_believed() {
    let mut conn = open();
    let shut = Segment {
        window: 0,
        ..next(&conn, Flags::ACK, 0)
    };
    conn.segment(&shut, None, NOW);
    let question = segment(conn.receive.nxt - 1, conn.next(), Flags::ACK, 0);
    let todo = conn.segment(&question, None, NOW + Span::secs(40));
    assert!(todo.pull && todo.ack == Ack::Now && conn.sendable() > 0);
    assert!(
        todo.keep_alive
            .is_some_and(|silence| silence > Span::secs(30))
    );
}

/// Regressions T29 and T72: a guest that is silent over nothing is asked, and after two hours given up; an answer begins anew.
#[test]
fn a_guest_that_falls_silent_is_asked_and_given_up() {
    let mut conn = open();
    let mut asked = 0;
    let ended = loop {
        let due = conn.deadline().unwrap();
        let todo = conn.expired(None, due);
        if let Some(rst) = todo.rst {
            assert!(todo.abort && rst.flags.has(Flags::RST));
            break due;
        }
        assert!(todo.ask);
        asked += 1;
        assert_eq!(conn.asked_once(), asked % 27 == 1);
        assert_eq!(conn.question(FREE, due).seq, conn.next() - 1);
        if asked == 26 {
            conn.segment(&next(&conn, Flags::ACK, 0), None, due);
            asked = 27;
        }
    };
    assert!(asked > 50 && ended.since(NOW) > Span::secs(4 * 3600));
}

/// What is sent anew into a window that was shut has just left: nothing that came before says that it is lost.
#[test]
fn what_a_window_that_opens_takes_is_not_lost_for_what_arrived_before() {
    let (mut conn, mut disorder, now) = in_flight();
    let shut = Segment {
        window: 0,
        ..ack(&conn, 0, &[(1, 4)])
    };
    conn.segment(&shut, Some(&mut disorder), now);
    let opened = ack(&conn, 0, &[(1, 4)]);
    assert!(
        conn.segment(&opened, Some(&mut disorder), now + Span(10))
            .seek
    );
    conn.sent(1000, now + Span(20));
    assert_eq!(again(&mut conn, &mut disorder, now + Span(30)), []);
}

/// Of what left at many moments and is not told apart, what arrives may have left before what was sent again since.
#[test]
fn what_left_earlier_takes_nothing_sent_again_for_lost() {
    let (mut conn, mut disorder, now) = in_flight();
    conn.segment(&ack(&conn, 0, &[(1, 4)]), Some(&mut disorder), now);
    assert_eq!(again(&mut conn, &mut disorder, now), [(0, 1000)]);
    for n in 4..9 {
        let now = now + Span(10 * u64::from(n));
        conn.sent(1000, now);
        let more = ack(&conn, 0, &[(1, n + 1)]);
        conn.segment(&more, Some(&mut disorder), now + Span(5));
        assert_eq!(again(&mut conn, &mut disorder, now + Span(5)), []);
    }
    // What left last has come, and left later for sure.
    let (end, late) = (15, now + Span::millis(2));
    conn.segment(&ack(&conn, 0, &[(1, end)]), Some(&mut disorder), late);
    assert_eq!(again(&mut conn, &mut disorder, late), [(0, 1000)]);
}

/// A hole in what is not told apart is one all the same: the guest holds what left behind it.
#[test]
fn a_hole_among_many_moments_is_sent_again_at_once() {
    let (mut conn, mut disorder, now) = in_flight();
    let holes = ack(&conn, 4, &[(5, 8)]);
    conn.segment(&holes, Some(&mut disorder), now);
    assert_eq!(again(&mut conn, &mut disorder, now), [(4, 1000)]);
}

/// RFC 6298, section 3: a measurement is the time of something that left, however much is in flight.
#[test]
fn round_trips_are_measured_as_they_are_in_a_steady_stream() {
    // Acknowledged one by one, and several at once.
    for each in [1, 2, 7] {
        let mut conn = open();
        let first = conn.next();
        let time = |millis: u32| NOW + Span::millis(u64::from(millis));
        for sent in 1..5_000 {
            conn.sent(100, time(sent));
            let here = sent.saturating_sub(100);
            if here > 0 && here % each == 0 {
                let ack = segment(conn.receive.nxt, first + 100 * here, Flags::ACK, 0);
                conn.segment(&ack, None, time(sent));
            }
            let smoothed = conn.send.rtt.smoothed().as_millis();
            assert!(sent < 4_000 || (95..=107).contains(&smoothed), "{smoothed}");
        }
    }
}

/// A guest that broke its word on what it holds, and opens its window: what it says next is told from a duplicate again.
#[test]
fn what_is_sent_anew_into_a_window_that_opens_has_no_gaps() {
    let (mut conn, mut disorder, now) = in_flight();
    let shut = Segment {
        window: 0,
        ..ack(&conn, 0, &[(1, 4)])
    };
    conn.segment(&shut, Some(&mut disorder), now);
    // Acknowledged into what it said it held.
    let shut = Segment {
        window: 0,
        ..ack(&conn, 2, &[])
    };
    conn.segment(&shut, Some(&mut disorder), now);
    let opened = ack(&conn, 2, &[]);
    assert!(conn.segment(&opened, Some(&mut disorder), now).seek);
    assert!(disorder.no_holes());
    conn.sent(8000, now);
    assert!((0..3).any(|_| conn.segment(&opened, Some(&mut disorder), now).pull));
    assert_eq!(again(&mut conn, &mut disorder, now), [(2, 1000)]);
}

/// However late the timer comes, a guest has its time to answer each question.
#[test]
fn a_pause_of_ours_is_no_silence_of_the_guest() {
    let mut conn = open();
    let mut now = NOW + Span::secs(4 * 3600);
    for _ in 0..2 {
        assert!(conn.expired(None, now).ask);
        let due = conn.deadline().unwrap();
        assert!(due >= now + Span::secs(299), "{due:?} {now:?}");
        now = now + Span::secs(3600);
    }
}

/// A guest probes a shut window with what looks like a keepalive, and asks for room only.
#[test]
fn a_probe_of_a_shut_window_is_no_keepalive() {
    let mut conn = open();
    let all = next(&conn, Flags::ACK, conn.promised() as usize);
    conn.segment(&all, None, NOW);
    conn.acknowledgement(0, None, NOW);
    assert_eq!(conn.promised(), 0);
    let probe = segment(conn.receive.nxt - 1, conn.next(), Flags::ACK, 0);
    let todo = conn.segment(&probe, None, NOW + Span::millis(300));
    assert_eq!((todo.keep_alive, todo.ack), (None, Ack::Now));
}

/// What a guest answers it was asked for: a keepalive of its own is passed on with the interval that it has.
#[test]
fn answers_to_our_questions_do_not_shorten_a_keepalive() {
    let mut conn = open();
    let mut now = NOW;
    while now < NOW + Span::secs(7200) {
        now = conn.deadline().unwrap();
        assert!(conn.expired(None, now).ask);
        conn.segment(&next(&conn, Flags::ACK, 0), None, now);
    }
    let question = segment(conn.receive.nxt - 1, conn.next(), Flags::ACK, 0);
    let mut interval = |now| conn.segment(&question, None, now).keep_alive;
    assert!(interval(now).is_some_and(|silence| silence > Span::secs(7100)));
    assert!(interval(now + Span::secs(60)).is_some_and(|silence| silence < Span::secs(62)));
}

/// What was sent and not acknowledged is sent again with each timeout, however little fits into the window since.
#[test]
fn a_small_window_puts_no_retransmission_off() {
    let mut conn = open();
    let small = Segment {
        window: 2,
        ..next(&conn, Flags::ACK, 0)
    };
    conn.sent(88, NOW);
    conn.segment(&small, None, NOW);
    for _ in 0..5 {
        let due = conn.deadline().unwrap();
        let todo = conn.expired(None, due);
        assert!(todo.seek && todo.pull);
        assert!(!conn.is_silly() && conn.sendable() == 256);
        conn.sent(256, due);
    }
}

/// What a window that grew takes has just left: the timer of what waited for it is not its own.
#[test]
fn a_window_that_grows_ends_the_wait_of_what_did_not_fit() {
    let mut conn = open();
    let [small, large, larger] = [2, 512, 600].map(|window| Segment {
        window,
        ..next(&conn, Flags::ACK, 0)
    });
    conn.segment(&small, None, NOW);
    conn.blocked(NOW);
    let due = conn.deadline().unwrap();
    let late = Now(due.0 - 1);
    assert!(conn.segment(&large, None, late).pull);
    conn.sent(65_000, late);
    assert!(conn.deadline().unwrap().since(late) >= Span::millis(200));
    // In flight, it keeps its own.
    let kept = conn.deadline();
    conn.segment(&larger, None, late + Span::millis(1));
    assert_eq!(conn.deadline(), kept);
}

/// RFC 9293, section 3.8.6.2.1: nothing small is squeezed into a small window, until the timer says so.
#[test]
fn a_window_too_small_for_a_segment_is_not_filled() {
    let mut conn = open();
    assert!(!conn.is_silly());
    let small = Segment {
        window: 2,
        ..next(&conn, Flags::ACK, 0)
    };
    conn.segment(&small, None, NOW);
    assert!(conn.is_silly() && conn.sendable() == 256);
    conn.blocked(NOW);
    let due = conn.deadline().unwrap();
    assert!(conn.expired(None, due).pull);
    assert!(!conn.is_silly() && conn.sendable() == 256);
}

/// A guest that has plenty to do is sent more in pieces that are worth a call; one that has little is sent what there is.
#[test]
fn little_is_not_fetched_for_a_guest_that_has_plenty() {
    let mut syn = syn();
    syn.options.window_scale = Some(12);
    let mut conn = Conn::new(&syn, ORIGIN, 1460);
    conn.connected(NOW);
    conn.segment(&segment(IRS + 1, ISS + 1, Flags::ACK, 0), None, NOW);
    let first = conn.next();
    let most = conn.sendable() as u32;
    assert!(most >= 1 << 20 && !conn.gathers());
    conn.sent(most, NOW);
    assert!(conn.gathers());
    let mut ack = |octets| {
        let ack = segment(conn.receive.nxt, first + octets, Flags::ACK, 0);
        assert!(conn.segment(&ack, None, NOW + Span(100)).pull);
        conn.gathers()
    };
    assert!(ack(2920) && !ack(64 * 1024));
    // The rest was not sent, as there was no more: nothing holds the next octets back.
    assert!(!ack(most - 200_000));
}
