//! The layout of matrices in the arrays that a checkpoint stores.

use mlx_rs::{Array, error::Result};

/// The layout of matrices in a stored array.
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
    /// Two, one after the other.
    Stacked,
    /// Two, whose rows alternate.
    Interleaved,
}

impl Layout {
    /// The matrices, rows before columns.
    pub(super) fn split(self, array: &Array) -> Result<Vec<Array>> {
        let array = if self.transposed { array.swap_axes(-1, -2)? } else { array.clone() };
        match self.parts {
            Parts::One => Ok(vec![array]),
            Parts::Stacked => array.split_equal(2, 1),
            Parts::Interleaved => {
                let shape = array.shape();
                let turns = array.reshape(&[&[shape[0], -1, 2], &shape[2..]].concat())?;
                turns.split_equal(2, 2)?.iter().map(|part| part.squeeze_axes(&[2])).collect()
            }
        }
    }
}
