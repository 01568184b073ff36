//! Flows from outside by the port of the host that they came to, each port's in a row.

use std::collections::HashMap;

use super::lru::{Ends, Link};

/// The rows of all ports.
#[derive(Debug)]
pub struct Visitors {
    /// For each slot; zeroed memory, backed on use.
    links: Vec<Link>,
    /// Of ports that have any.
    ports: HashMap<u16, Row>,
}

#[derive(Debug, Default)]
struct Row {
    ends: Ends,
    len: usize,
}

impl Visitors {
    /// Of flows in slots below `capacity`.
    pub fn new(capacity: usize) -> Self {
        Self {
            links: vec![Link::default(); capacity],
            ports: HashMap::new(),
        }
    }

    /// Notes a new flow.
    pub fn enter(&mut self, port: u16, slot: u32) {
        let row = self.ports.entry(port).or_default();
        row.ends.touch(&mut self.links, slot);
        row.len += 1;
    }

    /// Notes the end of one.
    pub fn leave(&mut self, port: u16, slot: u32) {
        let Some(row) = self.ports.get_mut(&port) else {
            return;
        };
        row.ends.remove(&mut self.links, slot);
        row.len = row.len.saturating_sub(1);
        if row.len == 0 {
            self.ports.remove(&port);
        }
    }

    /// How many a port has.
    pub fn len(&self, port: u16) -> usize {
        self.ports.get(&port).map_or(0, |row| row.len)
    }

    /// The first of a port's, which is the last from now on: so all have their turn to be looked at.
    pub fn take_turn(&mut self, port: u16) -> Option<u32> {
        let ends = &mut self.ports.get_mut(&port)?.ends;
        let first = ends.oldest()?;
        ends.touch(&mut self.links, first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_port_have_their_turn_and_no_others() {
        let mut visitors = Visitors::new(8);
        for (port, slot) in [(53, 0), (80, 1), (53, 2), (53, 3), (80, 4)] {
            visitors.enter(port, slot);
        }
        assert_eq!(
            (visitors.len(53), visitors.len(80), visitors.len(7)),
            (3, 2, 0)
        );
        let turns = |visitors: &mut Visitors, port| [(); 4].map(|()| visitors.take_turn(port));
        assert_eq!(turns(&mut visitors, 53), [0, 2, 3, 0].map(Some));
        visitors.leave(53, 2);
        assert_eq!(turns(&mut visitors, 53), [3, 0, 3, 0].map(Some));
        visitors.leave(80, 1);
        assert_eq!(turns(&mut visitors, 80), [Some(4); 4]);
        visitors.leave(80, 4);
        assert_eq!((visitors.take_turn(80), visitors.len(80)), (None, 0));
        assert_eq!(visitors.ports.len(), 1);
    }
}
