//! Linear layers and embeddings.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops,
};

use super::{
    adapter::{AdapterSlots, RowSource, SlotKind},
    matrix::{Matrix, alike, plus},
    parameter::{Weight, WeightTransform},
    weights::Weights,
};

/// A linear map with an optional bias.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    matrix: Matrix,
    /// `[out]`
    bias: Option<Weight>,
    slots: AdapterSlots,
}

impl Linear {
    /// The map at `weights`. `bias` says whether there is one.
    pub(crate) fn load(weights: &Weights<'_>, outputs: usize, inputs: usize, bias: bool) -> LoadResult<Self> {
        Self::load_joined(&[weights], &[outputs], inputs, bias)
    }

    fn load_joined(parts: &[&Weights<'_>], outputs: &[usize], inputs: usize, bias: bool) -> LoadResult<Self> {
        let matrix = Matrix::load_joined(parts, None, outputs, inputs)?;
        let shapes: Vec<_> = outputs.iter().map(|rows| vec![*rows]).collect();
        let bias =
            bias.then(|| Weight::load(parts, None, "bias", &shapes, WeightTransform::Stored)).transpose()?;
        let rows: Rc<dyn RowSource> = Rc::new(matrix.clone());
        let mut start = 0;
        let slots = parts.iter().zip(outputs).map(|(part, outputs)| {
            let slot = part.slot("", SlotKind::Linear, inputs, *outputs);
            slot.bind(rows.clone(), start);
            start += outputs;
            slot
        });
        let slots = AdapterSlots::new(slots.collect());
        Ok(Self { matrix, bias, slots })
    }

    /// `[.., in]` → `[.., out]`
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        if self.slots.is_plain() {
            return self.matrix.multiply(x, self.bias.as_ref());
        }
        let y = self.slots.adapt(x, self.matrix.multiply(x, None)?)?;
        plus(y, self.bias.as_ref())
    }
}

/// Linear maps that share their input: computed as one where the checkpoint stores them alike.
#[derive(Debug, Clone)]
pub(crate) struct Projections {
    linears: Vec<Linear>,
    /// Where to cut the output of a single map, for several.
    cuts: Vec<i32>,
}

impl Projections {
    /// The maps at `names` below `weights`, each with its number of outputs, or all in one at `joined`, where the checkpoint
    /// holds them so.
    pub(crate) fn load<const N: usize>(
        weights: &Weights<'_>,
        joined: &str,
        names: [(&str, usize); N],
        inputs: usize,
        bias: bool,
    ) -> LoadResult<Self> {
        let outputs = names.map(|(_, outputs)| outputs);
        if weights.has_any(joined) {
            let linear = Linear::load(&weights.at(joined), outputs.iter().sum(), inputs, bias)?;
            return Ok(Self { linears: vec![linear], cuts: cuts(&outputs) });
        }
        let parts = names.map(|(name, _)| weights.at(name));
        let parts: Vec<_> = parts.iter().collect();
        if alike(&parts)? {
            let linear = Linear::load_joined(&parts, &outputs, inputs, bias)?;
            return Ok(Self { linears: vec![linear], cuts: cuts(&outputs) });
        }
        let linears =
            parts.iter().zip(outputs).map(|(part, outputs)| Linear::load(part, outputs, inputs, bias));
        Ok(Self { linears: linears.collect::<LoadResult<_>>()?, cuts: Vec::new() })
    }

    /// All maps as one, their outputs one behind the other, where they are held so.
    pub(crate) fn joined(&self) -> Option<&Linear> {
        match self.linears.as_slice() {
            [linear] => Some(linear),
            _ => None,
        }
    }

    /// `[.., in]` → one `[.., out]` for each of the N maps.
    pub(crate) fn forward<const N: usize>(&self, x: &Array) -> Result<[Array; N]> {
        let outputs: Vec<_> = match self.linears.as_slice() {
            [linear] => ops::split_at_indices(linear.forward(x)?, &self.cuts, -1)?,
            linears => linears.iter().map(|linear| linear.forward(x)).collect::<Result<_>>()?,
        };
        let found = outputs.len();
        outputs.try_into().map_err(|_| Exception::custom(format!("{found} projections, expected {N}")))
    }
}

fn cuts(outputs: &[usize]) -> Vec<i32> {
    let ends = outputs.iter().scan(0, |end, outputs| {
        *end += *outputs as i32;
        Some(*end)
    });
    ends.take(outputs.len().saturating_sub(1)).collect()
}

/// A table of vectors, one for each token id.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    matrix: Matrix,
    slots: AdapterSlots,
    dtype: mlx_rs::Dtype,
}

impl Embedding {
    /// The table at `weights`.
    pub(crate) fn load(weights: &Weights<'_>, vocab_size: usize, hidden_size: usize) -> LoadResult<Self> {
        let matrix = Matrix::load(weights, vocab_size, hidden_size)?;
        let slot = weights.slot("", SlotKind::Embedding, vocab_size, hidden_size);
        Ok(Self { matrix, slots: AdapterSlots::new(vec![slot]), dtype: weights.float_dtype() })
    }

    /// Ids `[..]` → `[.., hidden_size]`. Every id is less than the table is long: MLX does not check.
    pub(crate) fn forward(&self, ids: &Array) -> Result<Array> {
        self.slots.adapt_rows(ids, self.matrix.rows(ids, self.dtype)?)
    }

    /// The table as an output layer, where the checkpoint ties them: `[.., hidden_size]` → `[.., vocab_size]`.
    pub(crate) fn as_linear(&self) -> Linear {
        Linear { matrix: self.matrix.clone(), bias: None, slots: self.slots.clone() }
    }
}
