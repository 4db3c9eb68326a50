//! How tensors lie in files, and how transformers has them.

use crate::{Error, Result, Tensor};

/// A tensor with transformers' name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Named {
    /// Its name, `.weight` included.
    pub name: String,
    /// Its place in the list of tensors.
    pub tensor: usize,
    /// The order of its rows.
    pub rows: Rows,
    /// The order of the parts of each row; `None` where it is transformers' own.
    pub columns: Option<Tiles>,
    /// What became of its elements.
    pub change: Change,
    /// Where it had an extent of 1, which the converter drops.
    pub dropped: Option<Dropped>,
}

/// The order of a tensor's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As transformers has them.
    Same,
    /// Of so many heads, the two rows that rope rotates together stand side by side; transformers has them half a head apart.
    Paired {
        /// Heads, which the rows divide into.
        heads: usize,
    },
    /// The heads that the last rows divide into are in another order.
    Tiled {
        /// The rows before them.
        first: usize,
        /// The order of the heads.
        tiles: Tiles,
    },
    /// These are one half of each group of rows.
    Half {
        /// Groups, which twice the rows divide into.
        groups: usize,
        /// Whether it is the second half.
        second: bool,
    },
}

/// Heads that share what there is one of for each group: transformers has the heads of a group side by side, the file first one of
/// each group, then the next of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiles {
    /// Groups, which the heads divide into.
    pub groups: usize,
    /// Heads.
    pub heads: usize,
}

impl Tiles {
    /// The stored head that is head `head` for transformers.
    #[must_use]
    pub fn stored(self, head: usize) -> usize {
        let each = self.heads / self.groups;
        head % each * self.groups + head / each
    }
}

/// What the converter does to the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// They stay.
    Nothing,
    /// This is added.
    Added(f32),
    /// `-exp(x)` is in the place of `x`.
    NegativeExponential,
}

impl Change {
    /// The element before the change; `None` where the change has no such result.
    #[must_use]
    pub fn undo(self, stored: f32) -> Option<f32> {
        match self {
            Self::Nothing => Some(stored),
            Self::Added(added) => Some(stored - added),
            Self::NegativeExponential => (stored < 0.0).then(|| (-stored).ln()),
        }
    }
}

/// Where a tensor had an extent of 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It was a matrix of one row.
    First,
    /// It was a convolution, as mlx_lm has it: channels, taps, 1.
    Last,
}

impl Dropped {
    pub(super) fn of(name: &str, tensor: &Tensor) -> Option<Self> {
        const ROWS: [&str; 2] = [".shared_expert_gate.weight", ".moe_statics.e_score_correction_bias"];
        const CONVOLUTIONS: [&str; 2] = [".conv1d.weight", ".conv.conv.weight"];
        match tensor.shape.len() {
            1 if ROWS.iter().any(|end| name.ends_with(end)) => Some(Self::First),
            2 if CONVOLUTIONS.iter().any(|end| name.ends_with(end)) => Some(Self::Last),
            _ => None,
        }
    }
}

impl Rows {
    /// The order of a tensor whose rows are paired by so many heads.
    ///
    /// # Errors
    /// [`Error::Invalid`]: its rows do not divide into them.
    pub(super) fn paired(tensor: &Tensor, heads: usize) -> Result<Self> {
        let rows =
            if tensor.shape.len() == 1 { tensor.shape[0] } else { tensor.shape[tensor.shape.len() - 2] };
        if tensor.shape.len() > 2 || heads == 0 || !rows.is_multiple_of(2 * heads) {
            let reason =
                format!("has the extents {:?}, expected rows that divide into {heads} heads", tensor.shape);
            return Err(Error::at(&tensor.name, reason));
        }
        Ok(Self::Paired { heads })
    }

    /// How many rows transformers has of so many that are stored.
    #[must_use]
    pub fn count(self, stored: usize) -> usize {
        if matches!(self, Self::Half { .. }) { stored / 2 } else { stored }
    }

    /// The stored row that is row `row` of `rows` for transformers.
    #[must_use]
    pub fn stored(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Paired { heads } => {
                let width = rows / heads;
                let (head, within) = (row / width, row % width);
                head * width + within % (width / 2) * 2 + within / (width / 2)
            }
            Self::Tiled { first, .. } if row < first => row,
            Self::Tiled { first, tiles } => {
                let width = (rows - first) / tiles.heads;
                let (head, within) = ((row - first) / width, (row - first) % width);
                first + tiles.stored(head) * width + within
            }
            Self::Half { groups, second } => {
                let width = rows / groups;
                row / width * (2 * width) + usize::from(second) * width + row % width
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiled_heads_are_put_by_groups() {
        let tiles = Tiles { groups: 2, heads: 4 };
        let rows = Rows::Tiled { first: 3, tiles };
        let stored: Vec<_> = (0..11).map(|row| rows.stored(row, 11)).collect();
        assert_eq!(stored, [0, 1, 2, 3, 4, 7, 8, 5, 6, 9, 10]);
    }

    #[test]
    fn halves_are_taken_of_each_group() {
        let half = |second| {
            let rows = Rows::Half { groups: 2, second };
            (0..rows.count(8)).map(|row| rows.stored(row, 4)).collect::<Vec<_>>()
        };
        assert_eq!([half(false), half(true)], [[0, 1, 4, 5], [2, 3, 6, 7]]);
    }

    #[test]
    fn changes_are_undone() {
        assert_eq!(Change::Nothing.undo(3.0), Some(3.0));
        assert_eq!(Change::Added(1.0).undo(3.0), Some(2.0));
        assert_eq!(Change::NegativeExponential.undo(-1.0), Some(0.0));
        for wrong in [0.0, 1.0, f32::NAN] {
            assert_eq!(Change::NegativeExponential.undo(wrong), None);
        }
    }

    #[test]
    fn paired_rows_are_put_half_a_head_apart() {
        let rows = Rows::Paired { heads: 2 };
        let stored: Vec<_> = (0..8).map(|row| rows.stored(row, 8)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(Rows::Same.stored(5, 8), 5);
    }
}
