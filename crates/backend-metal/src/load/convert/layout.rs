//! How matrices lie in the arrays that hold them.

use mlx_rs::{Array, error::Result};

/// How matrices lie in what is read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Layout {
    /// Whether columns come before rows.
    pub(super) transposed: bool,
    pub(super) parts: Parts,
}

/// Which matrices a stack `[experts, rows, ..]` holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Parts {
    /// One.
    #[default]
    One,
    /// Two, one below the other.
    Halves,
    /// Two, whose rows take turns.
    Interleaved,
}

impl Layout {
    /// The parts, rows first.
    pub(super) fn cut(self, array: &Array) -> Result<Vec<Array>> {
        let array = if self.transposed { array.swap_axes(-1, -2)? } else { array.clone() };
        match self.parts {
            Parts::One => Ok(vec![array]),
            Parts::Halves => array.split_equal(2, 1),
            Parts::Interleaved => {
                let shape = array.shape();
                let turns = array.reshape(&[&[shape[0], -1, 2], &shape[2..]].concat())?;
                turns.split_equal(2, 2)?.iter().map(|part| part.squeeze_axes(&[2])).collect()
            }
        }
    }
}
