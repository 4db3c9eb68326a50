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

/// A linear layer with an optional bias.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    matrix: Matrix,
    /// `[out]`
    bias: Option<Weight>,
    slots: AdapterSlots,
}

impl Linear {
    /// The layer at `weights`. `bias` says whether it has one.
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

    /// Its matrix, without adapters.
    pub(super) fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// Whether it has no adapter.
    pub(super) fn is_plain(&self) -> bool {
        self.slots.is_plain()
    }

    /// The matrix and the bias, if no adapter changes the layer.
    pub(super) fn parts(&self) -> Option<(&Matrix, Option<&Weight>)> {
        self.slots.is_plain().then_some((&self.matrix, self.bias.as_ref()))
    }

    /// Whether training keeps the parts of its matrix [apart](Weight::is_apart).
    fn is_apart(&self) -> bool {
        matches!(&self.matrix, Matrix::Dense(weight) if weight.is_apart())
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

/// Linear layers with the same input, fused into one if the checkpoint stores them alike.
#[derive(Debug, Clone)]
pub(crate) struct Projections {
    linears: Vec<Linear>,
    /// Where to split the output of a fused layer.
    cuts: Vec<i32>,
}

impl Projections {
    /// The layers at `names` below `weights`, each with its number of outputs, or one at `joined` if the checkpoint has it.
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

    /// The layers, one if they are fused, and where the outputs of a fused one are split.
    pub(super) fn parts(&self) -> (&[Linear], &[i32]) {
        (&self.linears, &self.cuts)
    }

    /// The fused layer, if they are fused.
    pub(crate) fn joined(&self) -> Option<&Linear> {
        match self.linears.as_slice() {
            [linear] if !linear.is_apart() => Some(linear),
            _ => None,
        }
    }

    /// `[.., in]` → one `[.., out]` for each of the N layers.
    pub(crate) fn forward<const N: usize>(&self, x: &Array) -> Result<[Array; N]> {
        let outputs: Vec<_> = match self.linears.as_slice() {
            [linear] if linear.is_apart() => linear.matrix.multiply_apart(x, linear.bias.as_ref())?,
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

/// An embedding: one vector for each token id.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    matrix: Matrix,
    slots: AdapterSlots,
    dtype: mlx_rs::Dtype,
}

impl Embedding {
    /// The embedding at `weights`.
    pub(crate) fn load(weights: &Weights<'_>, vocab_size: usize, hidden_size: usize) -> LoadResult<Self> {
        let matrix = Matrix::load(weights, vocab_size, hidden_size)?;
        let slot = weights.slot("", SlotKind::Embedding, vocab_size, hidden_size);
        Ok(Self { matrix, slots: AdapterSlots::new(vec![slot]), dtype: weights.float_dtype() })
    }

    /// The matrix, if no adapter changes the layer.
    pub(super) fn matrix(&self) -> Option<&Matrix> {
        self.slots.is_plain().then_some(&self.matrix)
    }

    /// Ids `[..]` → `[.., hidden_size]`. MLX does not check that ids are below the vocabulary's size.
    pub(crate) fn forward(&self, ids: &Array) -> Result<Array> {
        self.slots.adapt_rows(ids, self.matrix.rows(ids, self.dtype)?)
    }

    /// The embedding as a tied output layer: `[.., hidden_size]` → `[.., vocab_size]`.
    pub(crate) fn as_linear(&self) -> Linear {
        Linear { matrix: self.matrix.clone(), bias: None, slots: self.slots.clone() }
    }
}
