//! Where several relays serve a guest, flows follow their frames: to the relay whose queue these keep coming by.

use super::{
    flow::Flow,
    share::Share,
    state::{DRIFTERS, LARGE, Relay, SPILL_BLOCK},
    takeover::Moved,
    whose::key_of,
};
use crate::{
    flow::{Id, Key},
    link::Inbox,
    proto::tcp::Phase,
    wire::frame::classify,
};

/// Blocks of the pool that a flow's largest segment takes at most, and one more.
const SET_ASIDE: usize = LARGE / SPILL_BLOCK + 1;

impl Relay {
    /// Notes which flows of what was handed over are to follow their frames.
    pub(super) fn note_drift(&mut self, held: &Inbox) {
        let Some(share) = &self.share else { return };
        for &(index, to) in share.drifted() {
            let read = held.frame(index).and_then(|frame| {
                let read = classify(frame.head, frame.whole.len()).ok()?;
                key_of(&self.net, &read.body, frame.head)
            });
            if let Some(key) = read
                && self.drifters.len() < DRIFTERS
                && !self.drifters.iter().any(|(known, _)| *known == key)
            {
                self.drifters.push((key, to));
            }
        }
    }

    /// Whether flows are to go to another relay.
    pub const fn has_drifters(&self) -> bool {
        !self.drifters.is_empty()
    }

    /// Forgets one of the flows that are to go, and returns it with the number of the relay that it is to go to.
    pub fn next_drifter(&mut self) -> Option<(Key, usize)> {
        self.drifters.pop()
    }

    /// Whether this relay has a queue, and room for one more flow and what is set aside for it.
    pub fn welcomes(&self) -> bool {
        self.flows.len() < self.flows.capacity()
            && self.pool.free() >= SET_ASIDE
            && self.share.as_ref().is_some_and(Share::welcomes)
    }

    /// Gives away a flow that is to follow its frames, if it can go now, while nobody else runs: none of its frames is on its
    /// way, and there is nothing that only this relay could go on with.
    pub fn let_follow(&mut self, key: &Key) -> Option<Moved> {
        let id = self.flows.find(key)?;
        let alone = self.share.as_ref()?.is_alone(key);
        (alone && self.is_at_rest(id))
            .then(|| self.give_up(id, Some(self.guest)))
            .flatten()
    }

    fn is_at_rest(&self, id: Id) -> bool {
        match self.flows.get(id) {
            Some(Flow::Tcp(flow)) => {
                matches!(flow.conn.phase(), Phase::Open { .. })
                    && flow.spill.span() == 0
                    // What is only set aside is set aside anew there; where the socket waits for room it would not be.
                    && (flow.spill.is_unused() || !flow.state.wants_space)
                    && flow.state.disorder.is_none()
                    && !flow.state.failed
            }
            Some(Flow::Udp(flow)) => !flow.waits && self.waiting.of(id).is_none(),
            Some(Flow::Echo(_)) => true,
            Some(Flow::Group(_)) | None => false,
        }
    }
}
