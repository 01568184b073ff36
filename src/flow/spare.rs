//! Things that few owners need at a time and that are too large to give one to each: a fixed number, lent and taken back.

use std::num::NonZeroU16;

/// Up to a fixed number of things. Memory is reserved at the start and touched on use.
#[derive(Debug)]
pub struct Spare<T> {
    things: Vec<T>,
    /// Those that were taken back.
    vacant: Vec<Lent>,
    most: usize,
}

/// A thing that was lent; it goes back by [`Spare::take_back`]. Counted from one, so that none of it takes no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent(NonZeroU16);

impl Lent {
    const fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl<T: Default> Spare<T> {
    /// Room for `most` things, 65,535 at most.
    pub fn new(most: usize) -> Self {
        Self {
            things: Vec::with_capacity(most),
            vacant: Vec::with_capacity(most),
            most: most.min(u16::MAX.into()),
        }
    }

    /// Lends a thing as new; `None` if all are lent.
    pub fn lend(&mut self) -> Option<Lent> {
        if let Some(lent) = self.vacant.pop() {
            if let Some(thing) = self.things.get_mut(lent.place()) {
                *thing = T::default();
            }
            return Some(lent);
        }
        if self.things.len() >= self.most {
            return None;
        }
        self.things.push(T::default());
        NonZeroU16::new(self.things.len() as u16).map(Lent)
    }

    /// The thing of an owner, if it has one.
    pub fn get(&self, lent: Option<Lent>) -> Option<&T> {
        self.things.get(lent?.place())
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, lent: Option<Lent>) -> Option<&mut T> {
        self.things.get_mut(lent?.place())
    }

    /// Takes a thing back, once.
    pub fn take_back(&mut self, lent: Lent) {
        if self.vacant.len() < self.things.len() {
            self.vacant.push(lent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_lent_than_there_are_and_all_come_back_as_new() {
        let mut spare = Spare::<u8>::new(2);
        let (a, b) = (spare.lend(), spare.lend());
        *spare.get_mut(a).unwrap() = 7;
        assert_eq!((spare.lend(), spare.get(b)), (None, Some(&0)));
        spare.take_back(a.unwrap());
        let again = spare.lend();
        assert_eq!(spare.get(again), Some(&0));
        assert_eq!(spare.lend(), None);
    }
}
