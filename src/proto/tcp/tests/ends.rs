//! How connections begin and end where both sides act at once, or one is gone.

use super::*;

/// A connection that asks the guest.
fn asking() -> Conn {
    let mut conn = Conn::toward_guest(ORIGIN, 1460, SynRetries::default(), NOW);
    assert_eq!(conn.syn(FREE, NOW).seq, ISS);
    conn
}

/// The guest has sent `len` octets and its FIN, and the host was told.
fn guest_ended(conn: &mut Conn, len: usize) {
    let fin = next(conn, Flags::ACK | Flags::FIN, len);
    conn.segment(&fin, None, NOW);
    assert!(conn.shutdown_due());
    conn.shut_down();
}

/// RFC 9293, section 3.5, figure 7: both SYNs cross.
#[test]
fn both_may_open_at_once() {
    // The guest repeats its SYN with the ACK, or acknowledges ours alone.
    for syn in [true, false] {
        let mut conn = asking();
        let todo = conn.segment(&segment(IRS, Seq(0), Flags::SYN, 0), None, NOW);
        assert!(todo.syn_ack && !todo.open);
        let answer = conn.syn_ack(FREE, NOW);
        assert_eq!((answer.seq, answer.ack), (ISS, IRS + 1));
        let (seq, flags) = if syn {
            (IRS, Flags::SYN | Flags::ACK)
        } else {
            (IRS + 1, Flags::ACK)
        };
        let todo = conn.segment(&segment(seq, ISS + 1, flags, 0), None, NOW);
        assert!(todo.open && todo.pull && !todo.abort);
        assert_eq!(conn.phase(), Phase::established());
        // The window of a SYN is not scaled.
        let window = if syn { 500 } else { 500 << 7 };
        assert_eq!(conn.sendable(), window);
        assert_eq!(todo.ack == Ack::Now, syn);
    }
}

/// RFC 9293, section 3.10.7.3.
#[test]
fn our_syn_is_answered_by_the_rules() {
    for (flags, ack, reset, abort) in [
        (Flags::ACK, ISS, true, false),
        (Flags::SYN | Flags::ACK, ISS + 2, true, false),
        (Flags::RST | Flags::ACK, ISS + 1, false, true),
        (Flags::RST | Flags::ACK, ISS + 2, false, false),
        (Flags::RST, Seq(0), false, false),
        (Flags::ACK, ISS + 1, false, false),
        (Flags::NONE, Seq(0), false, false),
    ] {
        let todo = asking().segment(&segment(IRS, ack, flags, 0), None, NOW);
        assert_eq!(
            (todo.rst.is_some(), todo.abort, todo.open),
            (reset, abort, false),
            "{flags:?} {ack:?}"
        );
    }
    let todo = asking().segment(
        &segment(IRS, ISS + 1, Flags::SYN | Flags::ACK, 0),
        None,
        NOW,
    );
    assert!(todo.open && todo.ack == Ack::Now);
}

/// RFC 9293, section 3.6, figure 13.
#[test]
fn both_may_close_at_once() {
    let mut conn = open();
    conn.ended();
    conn.fin_sent(NOW);
    // The guest's FIN does not acknowledge ours yet.
    let fin = segment(conn.receive.nxt, conn.send.una, Flags::ACK | Flags::FIN, 0);
    conn.segment(&fin, None, NOW);
    assert!(!conn.is_over() && conn.shutdown_due());
    conn.shut_down();
    assert!(!conn.is_over());
    conn.segment(&next(&conn, Flags::ACK, 0), None, NOW);
    assert!(conn.is_over());
}

/// A FIN that comes again was not acknowledged in time (RFC 9293, section 3.10.7.4, eighth).
#[test]
fn a_repeated_fin_is_acknowledged_again() {
    let mut conn = open();
    let fin = next(&conn, Flags::ACK | Flags::FIN, 3);
    conn.segment(&fin, None, NOW);
    conn.shut_down();
    for _ in 0..3 {
        assert_eq!(conn.segment(&fin, None, NOW).ack, Ack::Now);
        assert_eq!(conn.acknowledgement(FREE, None, NOW).ack, fin.seq + 4);
    }
}

/// A guest whose FIN was lost may send it again with text before it, though that has arrived.
#[test]
fn a_fin_behind_text_that_came_before_is_taken() {
    let mut conn = open();
    let text = next(&conn, Flags::ACK, 3);
    conn.segment(&text, None, NOW);
    conn.acknowledgement(FREE, None, NOW);
    let both = segment(text.seq, text.ack, Flags::ACK | Flags::FIN, 3);
    let todo = conn.segment(&both, None, NOW);
    assert_eq!((todo.take, todo.ack), (None, Ack::Now));
    assert!(conn.shutdown_due());
    assert_eq!(conn.acknowledgement(FREE, None, NOW).ack, text.seq + 4);
}

/// What a guest sent before its FIN was acknowledged. If it forgets the connection then, as a guest does some time after it
/// closed or when it starts anew, the host gets all of it all the same.
#[test]
fn a_guest_that_has_ended_its_stream_cannot_abort_it() {
    let mut conn = open();
    guest_ended(&mut conn, 10);
    let rst = segment(conn.receive.nxt, Seq(0), Flags::RST, 0);
    let todo = conn.segment(&rst, None, NOW);
    assert!(conn.is_over() && !todo.abort);
    // Where the host has not taken everything, the flow lingers for that, as long as it takes a silent guest to be given up.
    let mut conn = open();
    conn.sent(100, NOW);
    conn.segment(&next(&conn, Flags::ACK | Flags::FIN, 10), None, NOW);
    let rst = segment(conn.receive.nxt, Seq(0), Flags::RST, 0);
    let todo = conn.segment(&rst, None, NOW);
    assert!(!conn.is_over() && !todo.abort && conn.shutdown_due());
    assert_eq!(conn.sendable(), 0);
    let todo = conn.segment(&rst, None, NOW);
    assert!(!conn.is_over() && !todo.abort);
    let elsewhere = Conn::restored(&conn.save(NOW).unwrap(), SynRetries::default(), NOW);
    assert_eq!(elsewhere.unwrap().phase(), conn.phase());
    let mut lingering = conn;
    conn.shut_down();
    assert!(conn.is_over());
    let due = lingering.deadline().unwrap();
    assert!(due > NOW + Span::secs(7200));
    let early = Now(due.0 - 1_000_000);
    assert_eq!(lingering.expired(None, early), Todo::default());
    assert!(lingering.expired(None, due).abort);
    assert_eq!(lingering.deadline(), None);
}

/// The same where it falls silent instead.
#[test]
fn a_guest_that_vanishes_after_its_end_is_not_reset_towards_the_host() {
    let mut conn = open();
    guest_ended(&mut conn, 10);
    conn.sent(100, NOW);
    let todo = loop {
        let at = conn.deadline().unwrap();
        let todo = conn.expired(None, at);
        if todo.rst.is_some() {
            break todo;
        }
        conn.sent(100, at);
    };
    assert!(conn.is_over() && !todo.abort);
}

/// RFC 9293, section 3.10.7.4: a guest in FIN-WAIT-2 or CLOSE-WAIT may be quiet for as long as it answers.
#[test]
fn a_half_closed_connection_lives_on_for_days() {
    for guest_first in [true, false] {
        let mut conn = open();
        if guest_first {
            guest_ended(&mut conn, 0);
        } else {
            conn.ended();
            conn.fin_sent(NOW);
            conn.segment(&next(&conn, Flags::ACK, 0), None, NOW);
        }
        let mut at = NOW;
        while at < NOW + Span::secs(3 * 24 * 3600) {
            at = conn.deadline().unwrap();
            let todo = conn.expired(None, at);
            assert!(todo.ask && !todo.abort && !conn.is_over());
            let question = conn.question(FREE, at);
            let answer = segment(question.ack, conn.send.nxt, Flags::ACK, 0);
            conn.segment(&answer, None, at);
        }
    }
}

/// RFC 9293, section 3.10.7.2: text with the SYN; the guest sends it again.
#[test]
fn text_with_a_syn_is_left_to_be_repeated() {
    let mut conn = Conn::new(&segment(IRS, Seq(0), Flags::SYN, 5), ORIGIN, 1460);
    conn.connected(NOW);
    assert_eq!(conn.syn_ack(FREE, NOW).ack, IRS + 1);
    let todo = conn.segment(&segment(IRS + 1, ISS + 1, Flags::ACK, 5), None, NOW);
    assert_eq!(todo.take, Some((0, 5)));
}

/// RFC 9293, section 3.10.7.4, sixth: URG changes nothing, the octets are in the stream.
#[test]
fn urgent_octets_are_octets() {
    let mut conn = open();
    let urgent = next(&conn, Flags::ACK | Flags(0x20), 7);
    assert_eq!(conn.segment(&urgent, None, NOW).take, Some((0, 7)));
}

/// RFC 9293, section 3.10.7.4: what has no ACK says nothing.
#[test]
fn a_segment_without_ack_is_dropped() {
    let mut conn = open();
    let todo = conn.segment(&next(&conn, Flags::PSH, 7), None, NOW);
    assert_eq!(todo, Todo::dropped(Why::OutOfWindow));
}

/// RFC 5961, section 5.2: acknowledgements far in the past are not believed, nor those of the future.
#[test]
fn acknowledgements_out_of_range_change_nothing() {
    let mut conn = open();
    conn.sent(1000, NOW);
    let before = (conn.send.una, conn.sendable());
    for ack in [
        conn.send.nxt + 1,
        conn.send.nxt + (1 << 30),
        conn.send.una - 1,
        conn.send.una - (1 << 30),
    ] {
        let todo = conn.segment(&segment(conn.receive.nxt, ack, Flags::ACK, 0), None, NOW);
        assert_eq!(
            (todo.forget, todo.dropped.is_some()),
            (0, ack != before.0 - 1)
        );
        assert_eq!((conn.send.una, conn.sendable()), before, "{ack:?}");
    }
}

/// RFC 9293, section 3.10.7.4, first: with a window of zero an RST is believed, and acknowledgements count.
#[test]
fn a_shut_window_takes_acknowledgements_and_resets() {
    let mut conn = syn_received();
    conn.segment(&segment(IRS + 1, ISS + 1, Flags::ACK, 0), None, NOW);
    let promised = conn.promised();
    conn.receive.take(promised);
    assert_eq!(conn.acknowledgement(0, None, NOW).window, 0);
    conn.sent(1000, NOW);
    let todo = conn.segment(&next(&conn, Flags::ACK, 10), None, NOW);
    assert_eq!((todo.forget, todo.take, todo.ack), (1000, None, Ack::Now));
    let rst = segment(conn.receive.nxt, Seq(0), Flags::RST, 0);
    assert!(conn.segment(&rst, None, NOW).abort);
}

/// RFC 6298, section 3.
#[test]
fn what_was_sent_twice_measures_nothing() {
    let mut conn = open();
    conn.sent(1000, NOW);
    let due = conn.deadline().unwrap();
    assert_eq!(due, NOW + Span::millis(200));
    conn.expired(None, due);
    conn.sent(1000, due);
    let late = due + Span::millis(150);
    conn.segment(&next(&conn, Flags::ACK, 0), None, late);
    conn.sent(1000, late);
    assert_eq!(conn.deadline(), Some(late + Span::millis(200)));
}

/// RFC 7323, sections 5.3 and 5.5.
#[test]
fn old_timestamps_are_believed_after_long_silence_and_of_resets() {
    let stamped = |mut segment: Segment, value| {
        segment.options.timestamps = Some(Timestamps { value, echo: 0 });
        segment
    };
    let open = || {
        let mut conn = Conn::new(&stamped(syn(), 1000), ORIGIN, 1460);
        conn.connected(NOW);
        conn.syn_ack(FREE, NOW);
        let ack = stamped(segment(IRS + 1, ISS + 1, Flags::ACK, 0), 1000);
        assert!(conn.segment(&ack, None, NOW).open);
        conn.acknowledgement(FREE, None, NOW);
        conn
    };
    let mut conn = open();
    let data = stamped(next(&conn, Flags::ACK, 5), 999);
    let later = NOW + Span::secs(23 * 24 * 3600);
    let todo = conn.segment(&data, None, later);
    assert_eq!((todo.take, todo.ack), (None, Ack::Now));
    let todo = conn.segment(&data, None, later + Span::secs(25 * 24 * 3600));
    assert_eq!(todo.take, Some((0, 5)));
    let mut conn = open();
    let rst = stamped(next(&conn, Flags::RST, 0), 1);
    assert!(conn.segment(&rst, None, NOW).abort);
}

/// A hundred thousand connections and their timers: each ends by the rule that is for it, and none outlives its timer.
#[test]
fn a_hundred_thousand_connections_all_come_to_their_end() {
    const COUNT: u32 = if cfg!(miri) { 100 } else { 100_000 };
    let mut wheel = crate::flow::Wheel::new(COUNT as usize);
    let mut conns: Vec<Conn> = (0..COUNT).map(|_| syn_received()).collect();
    let mut ended = [0; 4];
    for (slot, conn) in (0..).zip(&mut conns) {
        let ack = segment(IRS + 1, ISS + 1, Flags::ACK, 0);
        // Some never hear of the guest again, some have octets under way, some nothing, some are half closed.
        if slot % 4 > 0 {
            conn.segment(&ack, None, NOW);
        }
        match slot % 4 {
            2 => conn.sent(1000, NOW),
            3 => guest_ended(conn, 0),
            _ => {}
        }
        wheel.arm(slot, conn.deadline().unwrap());
    }
    let mut now = NOW;
    while let Some(span) = wheel.next(now) {
        now = now + span;
        while let Some(slot) = wheel.expired(now) {
            let conn = &mut conns[slot as usize];
            let todo = conn.expired(None, now);
            if slot % 4 == 2 && todo.pull {
                conn.sent(1000, now);
            }
            if todo.abort || conn.is_over() {
                ended[slot as usize % 4] += 1;
            }
            if let Some(due) = conn.deadline() {
                wheel.arm(slot, due);
            }
        }
    }
    assert_eq!(ended, [COUNT / 4; 4]);
    assert!(now.since(NOW) < Span::secs(3 * 3600));
}
