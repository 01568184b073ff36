//! What threads share without locks, made of loom's atomics: its tests see every order of what they do, and every value that a
//! load may see (<https://docs.rs/loom>). What it does not see is a load done later than a store that follows it, so that the
//! `Release` by which the ring's reader gives room back is left to reasoning.

#[path = "../../../src/flow/claims.rs"]
pub mod claims;

#[path = "../../../src/flow/ring.rs"]
pub mod ring;

/// What claims are made of besides.
mod key {
    #[derive(Debug, Hash)]
    pub struct Key;
}

mod sys {
    /// Loom's atomics have a history, so there is no memory of theirs but what is used.
    pub mod zeroed {
        use loom::sync::atomic::{AtomicU32, AtomicU64};

        pub fn words(count: usize) -> Box<[AtomicU64]> {
            (0..count).map(|_| AtomicU64::new(0)).collect()
        }

        /// The first of them only.
        pub fn halves(_: usize) -> Box<[AtomicU32]> {
            [AtomicU32::new(0)].into()
        }
    }
}
