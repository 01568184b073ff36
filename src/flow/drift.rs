//! When a flow is to follow its frames to another reactor: once so many in a row have come by that one's queue, and none by
//! its own. A guest whose scheduler moved a program is followed; a flow that comes by several queues in turns stays.

use super::claims::ClaimSlot;

/// Frames in a row that come by another's queue before their flow goes there.
const PATIENCE: u8 = 64;

/// Slots watched at a time; a power of two.
const WATCHED: usize = 1024;

/// Frames of a slot that came by another's queue.
#[derive(Debug, Clone, Copy)]
struct Row {
    slot: ClaimSlot,
    from: u8,
    count: u8,
}

/// What a reactor has seen come for its flows by the queues of others.
#[derive(Debug)]
pub struct Drift {
    rows: Box<[Row]>,
}

impl Default for Drift {
    fn default() -> Self {
        let none = Row {
            slot: ClaimSlot::from_bits(u32::MAX),
            from: 0,
            count: 0,
        };
        Self {
            rows: vec![none; WATCHED].into_boxed_slice(),
        }
    }
}

impl Drift {
    /// A frame came by our own queue.
    pub fn came_here(&mut self, slot: ClaimSlot) {
        if let Some(row) = self.row(slot)
            && row.slot == slot
        {
            row.count = 0;
        }
    }

    /// A frame came by the queue of another (below 255). Whether its flow is to go there; that is said once for each row.
    pub fn came_by(&mut self, slot: ClaimSlot, from: usize) -> bool {
        let Some(row) = self.row(slot) else {
            return false;
        };
        if row.slot != slot && row.count > 0 {
            // Of two that share a place the busier one is watched.
            row.count -= 1;
            return false;
        }
        if row.slot != slot || usize::from(row.from) != from {
            (row.slot, row.from, row.count) = (slot, from as u8, 0);
        }
        row.count += 1;
        let goes = row.count == PATIENCE;
        if goes {
            row.count = 0;
        }
        goes
    }

    fn row(&mut self, slot: ClaimSlot) -> Option<&mut Row> {
        self.rows.get_mut(slot.to_bits() as usize & (WATCHED - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: ClaimSlot = ClaimSlot::from_bits(7);

    /// How many frames it takes until the flow is to go; none if it never is.
    fn row(drift: &mut Drift, slot: ClaimSlot, from: usize) -> Option<usize> {
        (1..=1000).find(|_| drift.came_by(slot, from))
    }

    #[test]
    fn a_flow_goes_where_its_frames_keep_coming_by() {
        let mut drift = Drift::default();
        for from in [1, 2, 1] {
            assert_eq!(row(&mut drift, SLOT, from), Some(PATIENCE.into()));
        }
        // It could not go: it is said again, and not at once.
        assert_eq!(row(&mut drift, SLOT, 1), Some(PATIENCE.into()));
    }

    #[test]
    fn a_flow_whose_frames_come_by_several_queues_stays() {
        let mut drift = Drift::default();
        for round in 0..10_000_usize {
            let mut goes = |from| drift.came_by(SLOT, from);
            match round % 3 {
                0 => (0..PATIENCE - 1).for_each(|_| assert!(!goes(1))),
                1 => (0..PATIENCE - 1).for_each(|_| assert!(!goes(2))),
                _ => drift.came_here(SLOT),
            }
        }
    }

    #[test]
    fn one_of_two_that_share_a_place_is_watched() {
        let mut drift = Drift::default();
        let other = ClaimSlot::from_bits(SLOT.to_bits() + WATCHED as u32);
        let gone = (0..1000).find(|n| drift.came_by(if n % 3 == 0 { other } else { SLOT }, 1));
        assert!(gone.is_some_and(|n| n < 4 * usize::from(PATIENCE)));
        drift.came_here(other);
        assert_eq!(row(&mut drift, other, 1), Some(PATIENCE.into()));
    }
}
