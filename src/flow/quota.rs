//! How many flows there may be in all, where several reactors have them: half of the room is split into equal parts, one for
//! each reactor that serves a queue, and the rest is whoever's who takes it first.
//!
//! So a reactor that has fewer flows than its part has room always, whatever the others do; one that has more can end a flow
//! of its own. Never is there need to ask another for room. No locks: a reactor counts its own flows, and takes of the rest
//! only what is there.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

/// The room that all reactors share.
#[derive(Debug)]
pub struct Quota {
    most: usize,
    /// What is left of the rest. Less than nothing for a while where parts grew, or flows came that could not be refused.
    rest: AtomicIsize,
    members: Box<[Member]>,
}

/// What one reactor has; only its own thread writes it, or another while that stands still.
#[derive(Debug, Default)]
struct Member {
    flows: AtomicUsize,
    part: AtomicUsize,
}

impl Member {
    fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    fn part(&self) -> usize {
        self.part.load(Ordering::Relaxed)
    }
}

impl Quota {
    /// For `most` flows of `count` reactors together, of which the first serves a queue.
    pub fn new(most: usize, count: usize) -> Self {
        let quota = Self {
            most,
            rest: AtomicIsize::new(0),
            members: (0..count).map(|_| Member::default()).collect(),
        };
        quota.divide(|member| member == 0);
        quota
    }

    /// Splits the room anew among those that serve a queue, while nobody else looks.
    pub fn divide(&self, serves: impl Fn(usize) -> bool) {
        let count = (0..self.members.len()).filter(|&n| serves(n)).count();
        let part = (self.most / count.max(1)).div_ceil(2);
        let mut rest = self.most.cast_signed();
        for (n, member) in self.members.iter().enumerate() {
            let part = if serves(n) { part } else { 0 };
            member.part.store(part, Ordering::Relaxed);
            rest -= member.flows().max(part).cast_signed();
        }
        self.rest.store(rest, Ordering::Relaxed);
    }

    /// Whether a reactor serves a queue, by the last word, and has room for another flow, as things are.
    pub fn welcomes(&self, member: usize) -> bool {
        let room = self.room(member);
        let welcomes = |member: &Member| member.part() > 0 && member.flows() < room;
        self.members.get(member).is_some_and(welcomes)
    }

    /// Counts one flow more of a reactor's. `false` if it has no room for it.
    pub fn take(&self, member: usize) -> bool {
        let Some(member) = self.members.get(member) else {
            return false;
        };
        let flows = member.flows();
        let left = |rest: isize| (rest > 0).then(|| rest - 1);
        let taken = flows < member.part()
            || self
                .rest
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_ok();
        if taken {
            member.flows.store(flows + 1, Ordering::Relaxed);
        }
        taken
    }

    /// Counts a flow that is there already as [`Quota::take`] does, whether there is room or not.
    pub fn note(&self, member: usize) {
        if let Some(member) = self.members.get(member) {
            let flows = member.flows();
            member.flows.store(flows + 1, Ordering::Relaxed);
            if flows >= member.part() {
                self.rest.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Counts one flow less.
    pub fn give_back(&self, member: usize) {
        if let Some(member) = self.members.get(member) {
            let flows = member.flows().saturating_sub(1);
            member.flows.store(flows, Ordering::Relaxed);
            if flows >= member.part() {
                self.rest.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many flows a reactor may have as things are.
    pub fn room(&self, member: usize) -> usize {
        let rest = self.rest.load(Ordering::Relaxed).max(0).cast_unsigned();
        let member = self.members.get(member);
        member.map_or(0, |member| member.flows().max(member.part()) + rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{sync::Arc, thread};

    const MEMBERS: usize = 4;

    fn flows(quota: &Quota) -> Vec<usize> {
        quota.members.iter().map(Member::flows).collect()
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Take(usize),
        GiveBack(usize),
        Divide(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..MEMBERS).prop_map(Step::Take),
            4 => (0..MEMBERS).prop_map(Step::GiveBack),
            1 => (0_usize..1 << MEMBERS).prop_map(Step::Divide),
        ]
    }

    /// An interpreter (Miri) takes a thousand times as long.
    const STEPS: usize = if cfg!(miri) { 40 } else { 400 };

    proptest! {
        /// Whatever the others have: who has less than its part gets more, and all together never have too many.
        #[test]
        fn nobody_can_keep_another_from_its_part(
            most in 0_usize..40,
            steps in prop::collection::vec(step(), 0..STEPS),
        ) {
            let quota = Quota::new(most, MEMBERS);
            let mut model = [0; MEMBERS];
            let mut parts = [most.div_ceil(2), 0, 0, 0];
            for step in steps {
                let held = |model: &[usize; MEMBERS]| -> usize {
                    model.iter().zip(parts).map(|(&flows, part)| flows.max(part)).sum()
                };
                match step {
                    Step::Take(n) => {
                        let (room, welcome) = (quota.room(n), quota.welcomes(n));
                        let taken = quota.take(n);
                        prop_assert_eq!(taken, model[n] < parts[n] || held(&model) < most);
                        prop_assert_eq!(taken, model[n] < room);
                        prop_assert_eq!(welcome, taken && parts[n] > 0);
                        model[n] += usize::from(taken);
                    }
                    Step::GiveBack(n) if model[n] > 0 => {
                        quota.give_back(n);
                        model[n] -= 1;
                    }
                    Step::GiveBack(_) => {}
                    Step::Divide(mask) => {
                        quota.divide(|n| mask >> n & 1 == 1);
                        let count = mask.count_ones() as usize;
                        parts = std::array::from_fn(|n| {
                            (mask >> n & 1) * (most / count.max(1)).div_ceil(2)
                        });
                        prop_assert!(parts.iter().sum::<usize>() <= most);
                    }
                }
                prop_assert_eq!(flows(&quota), model);
            }
        }
    }

    #[test]
    fn flows_that_are_there_already_are_counted_however_many_they_are() {
        let quota = Quota::new(4, 2);
        for _ in 0..6 {
            quota.note(0);
        }
        assert!(!quota.take(0) && !quota.take(1));
        quota.divide(|_| true);
        // Its part is there for the second, though all together are too many by now.
        assert!(quota.take(1) && !quota.take(1));
        for _ in 0..4 {
            quota.give_back(0);
            assert!(!quota.take(0) || flows(&quota)[0] <= 3);
        }
        assert!(flows(&quota).iter().sum::<usize>() <= 4);
    }

    #[test]
    fn threads_together_never_have_too_many() {
        const MOST: usize = 60;
        const ROUNDS: usize = if cfg!(miri) { 200 } else { 20_000 };
        let quota = Arc::new(Quota::new(MOST, 3));
        quota.divide(|_| true);
        let threads: Vec<_> = (0..3)
            .map(|me| {
                let quota = Arc::clone(&quota);
                thread::spawn(move || {
                    for round in 0..ROUNDS {
                        let had = flows(&quota)[me];
                        let taken = quota.take(me);
                        assert!(taken || had >= MOST / 6);
                        if !taken || round % 3 == 0 && had > 0 {
                            quota.give_back(me);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let flows = flows(&quota);
        let held: usize = flows.iter().map(|&flows| flows.max(MOST / 6)).sum();
        assert!(held <= MOST, "{flows:?}");
        assert_eq!(quota.rest.load(Ordering::Relaxed), (MOST - held) as isize);
    }
}
