//! Things that few owners need at a time and that are too large to give one to each: a fixed number, lent and taken back.

/// Up to a fixed number of things. Memory is reserved at the start and touched on use.
#[derive(Debug)]
pub struct Spare<T> {
    things: Vec<T>,
    /// Those that were taken back.
    vacant: Vec<u32>,
    most: usize,
}

/// A thing that was lent; it goes back by [`Spare::take_back`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent(u32);

impl<T: Default> Spare<T> {
    /// Room for `most` things.
    pub fn new(most: usize) -> Self {
        Self {
            things: Vec::with_capacity(most),
            vacant: Vec::with_capacity(most),
            most,
        }
    }

    /// Lends a thing as new; `None` if all are lent.
    pub fn lend(&mut self) -> Option<Lent> {
        if let Some(at) = self.vacant.pop() {
            if let Some(thing) = self.things.get_mut(at as usize) {
                *thing = T::default();
            }
            return Some(Lent(at));
        }
        let at = self.things.len();
        (at < self.most).then(|| {
            self.things.push(T::default());
            Lent(at as u32)
        })
    }

    pub fn get(&self, lent: Lent) -> Option<&T> {
        self.things.get(lent.0 as usize)
    }

    pub fn get_mut(&mut self, lent: Lent) -> Option<&mut T> {
        self.things.get_mut(lent.0 as usize)
    }

    /// Takes a thing back, once.
    pub fn take_back(&mut self, lent: Lent) {
        if self.vacant.len() < self.things.len() {
            self.vacant.push(lent.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_lent_than_there_are_and_all_come_back_as_new() {
        let mut spare = Spare::<u8>::new(2);
        let (a, b) = (spare.lend().unwrap(), spare.lend().unwrap());
        *spare.get_mut(a).unwrap() = 7;
        assert_eq!((spare.lend(), spare.get(b)), (None, Some(&0)));
        spare.take_back(a);
        let again = spare.lend().unwrap();
        assert_eq!(spare.get(again), Some(&0));
        assert_eq!(spare.lend(), None);
    }
}
