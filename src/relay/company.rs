//! Whether a connection has the guest's queue to itself. What it may send stands there ahead of all that others send: with the
//! largest frames a window of 512 of them is 32 MiB, which a keystroke would wait for.

use crate::net::{Now, Span};

/// Octets of a connection's window at most while other flows send beside it: enough that the guest hears of the next while it
/// sends these.
const SHARED: u32 = 512 * 1024;

/// How long flows are expected to go on that were heard beside each other.
const STAY: Span = Span::secs(1);

/// Which flows the guest's frames are of, one or several.
#[derive(Debug, Default)]
pub(super) struct Company {
    until: Now,
}

impl Company {
    /// A frame of the guest's came, of another flow than the one before.
    pub const fn joined(&mut self, now: Now) {
        self.until = Now(now.0 + STAY.0);
    }

    /// Octets of a connection's window at most.
    pub fn window(&self, now: Now) -> u32 {
        if now < self.until { SHARED } else { u32::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{fixture, state::Relay};
    use super::*;
    use crate::{flow::Id, net::Protocol};

    const START: Now = Now(1_000_000);

    /// What a connection at port 80 of the guest may send after a turn at `now` that brought frames from these ports.
    fn space_after(relay: &mut Relay, id: Id, ports: &[u16], now: Now) -> u32 {
        relay.begin_turn(now);
        for &port in ports {
            relay.find(&fixture::key(Protocol::Tcp, port)).unwrap();
        }
        relay.space(id)
    }

    /// What the host's kernel takes at once is several times more.
    #[test]
    fn a_window_is_small_while_another_flow_sends_too() {
        let mut relay = fixture::relay(16);
        let (hog, _peer) = fixture::connection(&mut relay, START);
        let (_, _other) = fixture::connection_from(&mut relay, 81, Span::ZERO, START);
        let alone = space_after(&mut relay, hog, &[80, 80], START);
        assert!(alone > SHARED, "{alone}");
        assert_eq!(space_after(&mut relay, hog, &[80, 81], START), SHARED);
        let later = START + STAY;
        let before = Now(later.0 - 1);
        assert_eq!(space_after(&mut relay, hog, &[81], before), SHARED);
        assert_eq!(space_after(&mut relay, hog, &[81, 81], later), alone);
    }

    /// Downloads and uploads one after the other are alone each.
    #[test]
    fn a_flow_that_has_ended_is_no_company() {
        let mut relay = fixture::relay(16);
        let (hog, _peer) = fixture::connection(&mut relay, START);
        let (other, _other) = fixture::connection_from(&mut relay, 81, Span::ZERO, START);
        space_after(&mut relay, hog, &[81], START);
        relay.end(other);
        assert!(space_after(&mut relay, hog, &[80], START) > SHARED);
    }

    /// Such a window would be all that it sends in a round trip.
    #[test]
    fn a_window_is_not_small_for_a_machine_far_behind_the_guest() {
        let mut relay = fixture::relay(16);
        let trip = Span::millis(50);
        let (hog, _peer) = fixture::connection_from(&mut relay, 80, trip, START);
        let (_, _other) = fixture::connection_from(&mut relay, 81, Span::ZERO, START);
        assert!(space_after(&mut relay, hog, &[80, 81], START + trip) > SHARED);
    }
}
