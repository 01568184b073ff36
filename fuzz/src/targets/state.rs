//! The state of a guest that moves, from a host that may be hostile: refused, or sound.

use passt_rs::{
    net::Now,
    proto::{
        state::{State, seal},
        tcp::{Conn, SynRetries},
    },
};

pub fn run(input: &[u8]) {
    let _ = State::decode(input);
    // Whoever can write a state can write its end.
    let mut octets = b"passt-rs\0\x01".to_vec();
    octets.extend(input);
    let Ok(state) = State::decode(&seal(octets)) else {
        return;
    };
    assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&state));
    for tcp in &state.tcp {
        let now = Now(1_000_000);
        let conn = Conn::restored(&tcp.conn, SynRetries::default(), now);
        let mut conn = conn.expect("what is read is sound");
        conn.expired(None, now);
        if conn.sendable() > 0 {
            conn.sent(1, now);
        }
        let _ = (
            conn.unacknowledged(),
            conn.resend(None, now),
            conn.deadline(),
        );
        conn.acknowledgement(65_535, None, now);
        conn.reset();
    }
}
