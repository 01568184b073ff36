//! The stream that every TCP peer sends, and the guest too.

use std::sync::LazyLock;

/// The stream that every TCP peer sends begins anew after so many octets: a prime, so that no size we use divides it.
const PERIOD: usize = 65_521;

static STREAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let octet = |at: u64| (at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..PERIOD as u64).map(octet).collect()
});

/// The stream from octet `at` on, up to `len` octets, piece by piece: whole slices, as each octet would be instrumented.
pub fn stream(at: u64, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let (mut at, mut left) = ((at % PERIOD as u64) as usize, len);
    std::iter::from_fn(move || {
        let piece = &STREAM[at..PERIOD.min(at + left)];
        (at, left) = (0, left - piece.len());
        (!piece.is_empty()).then_some(piece)
    })
}

/// Whether `octets` are those of the stream from octet `at` on.
pub fn is_stream(at: u64, octets: &[u8]) -> bool {
    let mut rest = octets;
    stream(at, octets.len()).all(|piece| {
        let (head, tail) = rest.split_at(piece.len());
        rest = tail;
        head == piece
    })
}
