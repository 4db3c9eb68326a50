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
    /// Which matrix of the stored stack it is; `None` where it is all that is stored.
    pub matrix: Option<usize>,
    /// The order of its rows.
    pub rows: Rows,
    /// The order of the parts of each row; `None` where it is transformers' own.
    pub columns: Option<Tiles>,
    /// What became of its elements.
    pub change: Change,
    /// Its extents, where the converter changes them.
    pub extents: Extents,
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

/// What becomes of a tensor's extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extents {
    /// They stay.
    Same,
    /// It was a matrix of one row.
    Row,
    /// It was a convolution, as mlx_lm has it: channels, taps, 1.
    Convolution,
    /// It was a vector, whose elements stand in groups or in rows of one each.
    Vector,
}

impl Extents {
    pub(super) fn of(name: &str, tensor: &Tensor) -> Self {
        const ROWS: [&str; 2] = [".shared_expert_gate.weight", ".moe_statics.e_score_correction_bias"];
        const CONVOLUTIONS: [&str; 2] = [".conv1d.weight", ".conv.conv.weight"];
        // Of Mamba 2.
        const VECTORS: [&str; 4] = [".A_log", ".D", ".mixer.norm.weight", ".mamba.norm.weight"];
        let is = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        match tensor.shape.len() {
            1 if is(&ROWS) => Self::Row,
            2 if is(&CONVOLUTIONS) => Self::Convolution,
            2 if is(&VECTORS) => Self::Vector,
            _ => Self::Same,
        }
    }

    /// The extents before the change.
    pub fn undo(self, shape: &mut Vec<usize>) {
        match self {
            Self::Same => {}
            Self::Row => shape.insert(0, 1),
            Self::Convolution => shape.push(1),
            // Checked with the file: it has as many elements.
            Self::Vector => *shape = vec![shape.iter().product()],
        }
    }
}

impl Named {
    /// A tensor that is stored as it is.
    pub(super) fn new(name: String, index: usize, tensor: &Tensor) -> Self {
        let extents = Extents::of(&name, tensor);
        let (rows, change) = (Rows::Same, Change::Nothing);
        Self { name, tensor: index, matrix: None, rows, columns: None, change, extents }
    }

    /// The matrices of a stack, numbered behind a name.
    ///
    /// # Errors
    /// [`Error::Invalid`]: it is no stack, or one of more than a model has.
    pub(super) fn stack(name: &str, index: usize, tensor: &Tensor) -> Result<Vec<Self>> {
        const MOST: usize = 64;
        match tensor.shape[..] {
            [matrices @ 1..=MOST, _, _] => {
                let each = |matrix| {
                    let name = format!("{name}.{matrix}.weight");
                    Self { matrix: Some(matrix), ..Self::new(name, index, tensor) }
                };
                Ok((0..matrices).map(each).collect())
            }
            _ => {
                let reason = format!("has the extents {:?}, expected up to {MOST} matrices", tensor.shape);
                Err(Error::at(&tensor.name, reason))
            }
        }
    }

    /// The halves of a tensor's rows.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is an odd number of rows.
    pub(super) fn halves(names: [String; 2], index: usize, tensor: &Tensor) -> Result<[Self; 2]> {
        if !tensor.shape.iter().nth_back(1).is_some_and(|rows| rows.is_multiple_of(2)) {
            let reason = format!("has the extents {:?}, expected an even number of rows", tensor.shape);
            return Err(Error::at(&tensor.name, reason));
        }
        let [first, second] = names.map(|name| Self::new(name, index, tensor));
        let half = |second| Rows::Half { groups: 1, second };
        Ok([Self { rows: half(false), ..first }, Self { rows: half(true), ..second }])
    }

    /// What is stored of it.
    #[must_use]
    pub fn stored(&self, tensor: &Tensor) -> Tensor {
        let Some(matrix) = self.matrix else { return tensor.clone() };
        let bytes = (tensor.range.end - tensor.range.start) / tensor.shape[0].max(1) as u64;
        let start = tensor.range.start + matrix as u64 * bytes;
        Tensor { shape: tensor.shape[1..].to_vec(), range: start..start + bytes, ..tensor.clone() }
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

    fn tensor(shape: &[usize]) -> Tensor {
        let elements = shape.iter().product::<usize>() as u64;
        Tensor {
            name: "blk.0.some.weight".into(),
            shape: shape.to_vec(),
            kind: crate::TensorType::F32,
            range: 32..32 + 4 * elements,
        }
    }

    #[test]
    fn stacks_and_halves_are_taken_apart() {
        let stack = Named::stack("model.altup_projections", 5, &tensor(&[3, 2, 4])).unwrap();
        let stored: Vec<_> = stack.iter().map(|named| named.stored(&tensor(&[3, 2, 4]))).collect();
        assert_eq!((stack[2].name.as_str(), stack[2].tensor), ("model.altup_projections.2.weight", 5));
        assert_eq!((&stored[2].shape[..], stored[2].range.clone()), (&[2, 4][..], 96..128));
        for wrong in [&[2, 4][..], &[0, 2, 4], &[65, 1, 1]] {
            assert!(Named::stack("model.altup_projections", 5, &tensor(wrong)).is_err(), "{wrong:?}");
        }
        let names = || ["gate".to_owned(), "up".to_owned()];
        let [gate, up] = Named::halves(names(), 5, &tensor(&[2, 6, 4])).unwrap();
        assert_eq!([gate.rows.stored(2, 3), up.rows.stored(0, 3), up.rows.count(6)], [2, 3, 3]);
        for wrong in [&[2, 5, 4][..], &[6]] {
            assert!(Named::halves(names(), 5, &tensor(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn extents_are_given_back() {
        for (name, stored, expected) in [
            ("a.mamba.D", &[6, 1][..], &[6][..]),
            ("a.mixer.norm.weight", &[2, 48], &[96]),
            ("a.linear_attn.norm.weight", &[32], &[32]),
            ("a.mixer.conv1d.weight", &[160, 4], &[160, 4, 1]),
            ("a.mlp.shared_expert_gate.weight", &[64], &[1, 64]),
            ("a.q_proj.weight", &[64, 64], &[64, 64]),
        ] {
            let mut shape = stored.to_vec();
            Named::new(name.to_owned(), 0, &tensor(stored)).extents.undo(&mut shape);
            assert_eq!(shape, expected, "{name}");
        }
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
