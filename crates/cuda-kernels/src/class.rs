//! What steps are captured for.

use crate::{Error, Result};

/// Numbers of rows that steps are captured for. Fewer rows run in the next larger one, and the others are idle.
pub const BUCKETS: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Rows of the largest bucket.
pub(crate) const MAX_ROWS: usize = BUCKETS[BUCKETS.len() - 1];

/// Positions that steps are captured for: the blocks of attention depend on them.
const LENGTHS: [usize; 4] = [2048, 4096, 8192, i32::MAX as usize];

/// What a step does with its logits. Those that are stored are there for [`logits`](crate::Executor::logits) or at
/// [`Options::logits`](crate::Options::logits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Logits {
    /// It chooses the likeliest tokens only.
    Discard,
    /// It does so, and stores them.
    Keep,
    /// It stores them, and chooses each row's token as [`set_sampling`](crate::Executor::set_sampling) says.
    Draw,
}

/// What steps are captured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Class {
    /// One of [`BUCKETS`].
    pub(crate) rows: usize,
    /// The most positions that a row attends to.
    pub(crate) positions: usize,
    pub(crate) logits: Logits,
}

impl Class {
    /// What the step for these is captured for.
    pub(crate) fn of(rows: usize, positions: usize, logits: Logits) -> Result<Self> {
        let bucket = BUCKETS.into_iter().find(|&bucket| rows >= 1 && rows <= bucket);
        let length = LENGTHS.into_iter().find(|&length| positions <= length);
        match (bucket, length) {
            (Some(rows), Some(positions)) => Ok(Self { rows, positions, logits }),
            (None, _) => Err(Error::invalid("the number of rows", rows, format!("1 to {MAX_ROWS}"))),
            (_, None) => Err(Error::invalid("a position", positions, "below 2^31")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_captured_for_the_next_larger_rows_and_positions() {
        let of = |rows, positions| {
            Class::of(rows, positions, Logits::Keep).map(|class| (class.rows, class.positions)).ok()
        };
        assert_eq!(of(1, 0), Some((1, 2048)));
        assert_eq!(of(3, 2048), Some((4, 2048)));
        assert_eq!(of(8, 2049), Some((8, 4096)));
        assert_eq!(of(8, 100_000), Some((8, i32::MAX as usize)));
        assert_eq!([of(9, 1), of(17, 1)], [Some((16, 2048)), Some((32, 2048))]);
        assert_eq!([of(0, 1), of(33, 1), of(1, 1 << 31)], [None; 3]);
    }
}
