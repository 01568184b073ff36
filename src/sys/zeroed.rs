//! Words for several threads, in zeroed memory that is backed on use.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// So many words of 64 bits, all 0.
pub fn words(count: usize) -> Box<[AtomicU64]> {
    let words = Box::into_raw(vec![0_u64; count].into_boxed_slice());
    // SAFETY: the box was ours alone; `AtomicU64` has the same size, alignment (on all 64-bit machines) and bit validity.
    unsafe { Box::from_raw(words as *mut [AtomicU64]) }
}

/// So many words of 32 bits, all 0.
pub fn halves(count: usize) -> Box<[AtomicU32]> {
    let halves = Box::into_raw(vec![0_u32; count].into_boxed_slice());
    // SAFETY: the box was ours alone; `AtomicU32` has the same size, alignment and bit validity.
    unsafe { Box::from_raw(halves as *mut [AtomicU32]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn all_words_are_zero_and_can_be_written() {
        let (words, halves) = (words(100_000), halves(100_000));
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        assert!(halves.iter().all(|half| half.load(Ordering::Relaxed) == 0));
        words[99_999].store(7, Ordering::Relaxed);
        halves[99_999].store(7, Ordering::Relaxed);
        assert_eq!(words[99_999].load(Ordering::Relaxed), 7);
        assert_eq!(halves[99_999].load(Ordering::Relaxed), 7);
    }
}
