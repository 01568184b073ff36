//! Whether to hear of room on the link's socket. Every frame the guest takes makes some, and that is worth waking up for only
//! while something waits.

/// What is known of it; the default is that nothing waits and nothing is watched.
#[derive(Debug, Default)]
pub(super) struct Room {
    watched: bool,
    wanted: bool,
    /// How often in a row room was told of that nobody wanted.
    idle: u8,
}

/// So often is cheaper than to unwatch and to watch again.
const IDLE_MOST: u8 = 16;

impl Room {
    /// Notes whether something waits; `true` if room is to be watched from now on.
    pub(super) const fn want(&mut self, wanted: bool) -> bool {
        self.wanted = wanted;
        if !wanted {
            return false;
        }
        self.idle = 0;
        !std::mem::replace(&mut self.watched, true)
    }

    /// Notes that there is room; `true` if it is not to be watched any more.
    pub(super) const fn told(&mut self) -> bool {
        if self.wanted || !self.watched {
            return false;
        }
        self.idle += 1;
        if self.idle <= IDLE_MOST {
            return false;
        }
        self.idle = 0;
        std::mem::replace(&mut self.watched, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_watched_while_it_is_wanted_and_a_little_longer() {
        let mut room = Room::default();
        assert!(!room.told());
        assert!(room.want(true));
        assert!(!room.want(true) && !room.told());
        assert!(!room.want(false));
        let told = (0..IDLE_MOST).filter(|_| room.told()).count();
        assert_eq!((told, room.told()), (0, true));
        assert!(!room.told());
        assert!(room.want(true));
    }
}
