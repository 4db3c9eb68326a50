//! Matrices that the checkpoint holds dense or quantised.

use inference_core::{Dtype, Error, Result as LoadResult};
use mlx_rs::{Array, error::Result, ops};

use super::{
    adapter::RowSource,
    cpu::{self, Operand},
    exec::{ExecMode, on_cpu, on_cuda},
    parameter::{Weight, WeightTransform},
    weights::{FLOATS, Weights, take_joined},
};
use crate::mlx::{QuantizationScheme, QuantizedMatrix, dequantize, gather_qmm, quantized_matmul, slice};

/// From this many rows on, dequantising first is cheaper on CUDA: MLX's quantised kernels read the matrix once for every few rows.
/// On an H200, 4096 × 4096 in 4 bits: 101 µs against 108 for 16 rows, 139 against 112 for 32.
const DEQUANTISE_FROM: usize = 16;

/// A matrix `[out, in]`, or a stack of matrices `[n, out, in]`.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// Transposed for the product: `[.., in, out]`.
    Dense(Weight),
    /// Quantised, as stored.
    Quantized(QuantizedMatrix),
}

impl Matrix {
    /// The matrix at `weights`, dense or quantised as stored.
    pub(crate) fn load(weights: &Weights<'_>, outputs: usize, inputs: usize) -> LoadResult<Self> {
        Self::load_joined(&[weights], None, &[outputs], inputs)
    }

    /// Several matrices with the same inputs, fused into one: see [`take_joined`]. They must be stored [`alike`].
    pub(crate) fn load_joined(
        parts: &[&Weights<'_>],
        stack: Option<usize>,
        outputs: &[usize],
        inputs: usize,
    ) -> LoadResult<Self> {
        let shapes = |columns| outputs.iter().map(|rows| vec![*rows, columns]).collect::<Vec<_>>();
        if !parts[0].has("scales") {
            let form = WeightTransform::Transposed;
            return Ok(Self::Dense(Weight::load(parts, stack, "weight", &shapes(inputs), form)?));
        }
        let take = |name: &str, columns: usize, dtypes: &[Dtype]| {
            take_joined(parts, stack, name, &shapes(columns), dtypes)
        };
        Self::load_quantized(parts[0], inputs, take)
    }

    /// A stack of `n` matrices that the checkpoint holds as one tensor.
    pub(crate) fn load_stack(
        weights: &Weights<'_>,
        n: usize,
        outputs: usize,
        inputs: usize,
    ) -> LoadResult<Self> {
        let shape = |columns| vec![n, outputs, columns];
        if !weights.has("scales") {
            let shape = [shape(inputs)];
            return Ok(Self::Dense(Weight::load(
                &[weights],
                None,
                "weight",
                &shape,
                WeightTransform::Transposed,
            )?));
        }
        Self::load_quantized(weights, inputs, |name, columns, dtypes| {
            weights.take_as(name, &shape(columns), dtypes)
        })
    }

    /// A stack of `n` matrices in the tensor `name`, without `.weight`: transformers stores experts so.
    pub(crate) fn load_bare(
        weights: &Weights<'_>,
        name: &str,
        n: usize,
        outputs: usize,
        inputs: usize,
    ) -> LoadResult<Self> {
        let shape = [vec![n, outputs, inputs]];
        Weight::load(&[weights], None, name, &shape, WeightTransform::Transposed).map(Self::Dense)
    }

    fn load_quantized(
        weights: &Weights<'_>,
        inputs: usize,
        take: impl Fn(&str, usize, &[Dtype]) -> LoadResult<Array>,
    ) -> LoadResult<Self> {
        let scheme = weights.scheme()?;
        weights.registry().add_quantized(weights.name("weight"));
        let QuantizationScheme { mode, bits, group_size } = scheme;
        if !inputs.is_multiple_of(group_size) || !(inputs * bits).is_multiple_of(32) {
            let reason =
                format!("{inputs} inputs do not divide into groups of {group_size} with {bits} bits");
            return Err(Error::invalid_key(weights.manifest().config_path(), weights.name("weight"), reason));
        }
        let groups = inputs / group_size;
        let scales = if mode.has_biases() { FLOATS } else { &[Dtype::U8, Dtype::F8E8m0, Dtype::F8E4m3] };
        Ok(Self::Quantized(QuantizedMatrix {
            weight: take("weight", inputs * bits / 32, &[Dtype::U32])?,
            scales: take("scales", groups, scales)?,
            biases: mode.has_biases().then(|| take("biases", groups, scales)).transpose()?,
            scheme,
        }))
    }

    /// `x · wᵀ + bias`: `[.., in]`, `[out]` → `[.., out]`.
    pub(crate) fn multiply(&self, x: &Array, bias: Option<&Weight>) -> Result<Array> {
        let operand = self.operand()?;
        let vector = bias.map(Weight::get).transpose()?;
        if let Some(product) = cpu::matmul(x, &operand, vector.as_ref()) {
            return product;
        }
        if let (Some(_), Some(product)) = (bias, cpu::matmul(x, &operand, None)) {
            return plus(product?, bias);
        }
        let product = match (self, vector) {
            (Self::Dense(transposed), Some(bias)) => {
                return ops::addmm(bias, x, factor(x, &transposed.get()?)?, None, None);
            }
            (Self::Dense(transposed), None) => return x.matmul(factor(x, &transposed.get()?)?),
            (Self::Quantized(packed), _) => {
                let rows = x.size() / x.dim(-1).max(1) as usize;
                // MLX's CUDA kernel is not deterministic with one group per row and several rows of x.
                let single = packed.scales.dim(-1) == 1 && rows > 1;
                if (rows >= DEQUANTISE_FROM || single) && on_cuda() {
                    x.matmul(dequantize(packed, x.dtype())?.swap_axes(-1, -2)?)?
                } else {
                    quantized_matmul(x, packed)?
                }
            }
        };
        plus(product, bias)
    }

    /// The same with each of the dense matrices that it is made of: see [`Weight::is_apart`].
    pub(super) fn multiply_apart(&self, x: &Array, bias: Option<&Weight>) -> Result<Vec<Array>> {
        let Self::Dense(transposed) = self else { return Ok(vec![self.multiply(x, bias)?]) };
        let mut biases = bias.map(Weight::get_parts);
        let products = transposed.get_parts().map(|w| {
            let w = w?;
            let product = match cpu::matmul(x, &Operand::Dense(w.clone()), None) {
                Some(product) => product?,
                None => x.matmul(&w)?,
            };
            match biases.as_mut().and_then(Iterator::next) {
                Some(bias) => product.add(bias?),
                None => Ok(product),
            }
        });
        products.collect()
    }

    /// Product with a stack, `x · w[i]ᵀ`: one `i` of `indices` for each matrix of x: `[.., M, in]`, `[..]` → `[.., M, out]`.
    ///
    /// On the CPU, MLX's `gather_mm` aborts the process for half precision: the matrices are converted to float32 first.
    pub(crate) fn gather(&self, x: &Array, indices: &Array, sorted: bool) -> Result<Array> {
        if let Some(product) = cpu::gather_matmul(x, &self.operand()?, indices) {
            return product;
        }
        match self {
            Self::Quantized(packed) => {
                gather_qmm(x, packed, places(x, indices, sorted).as_ref(), indices, sorted)
            }
            Self::Dense(transposed) if transposed.bound().dtype() == mlx_rs::Dtype::Float32 || !on_cpu() => {
                ops::gather_mm(x, transposed.get()?, places(x, indices, sorted).as_ref(), indices, sorted)
            }
            Self::Dense(transposed) => {
                let wide = mlx_rs::Dtype::Float32;
                ops::gather_mm(x.as_dtype(wide)?, transposed.get()?.as_dtype(wide)?, None, indices, sorted)?
                    .as_dtype(x.dtype())
            }
        }
    }

    /// The operand of the CPU's kernels.
    pub(super) fn operand(&self) -> Result<Operand<'_>> {
        Ok(match self {
            Self::Dense(transposed) => Operand::Dense(transposed.get()?),
            Self::Quantized(packed) => Operand::Quantized(packed),
        })
    }

    /// The rows `ids` `[..]` → `[.., in]`, dequantised.
    pub(crate) fn rows(&self, ids: &Array, dtype: mlx_rs::Dtype) -> Result<Array> {
        match self {
            Self::Dense(transposed) => transposed.get()?.swap_axes(-1, -2)?.take_axis(ids, 0),
            Self::Quantized(QuantizedMatrix { weight, scales, biases, scheme }) => {
                let biases = biases.as_ref().map(|biases| biases.take_axis(ids, 0)).transpose()?;
                let (weight, scales) = (weight.take_axis(ids, 0)?, scales.take_axis(ids, 0)?);
                dequantize(&QuantizedMatrix { weight, scales, biases, scheme: *scheme }, dtype)
            }
        }
    }
}

impl RowSource for Matrix {
    /// Dequantises to float32.
    fn rows_in_full(&self, start: i32, end: i32) -> Result<Array> {
        match self {
            Self::Dense(transposed) => slice(&transposed.get()?.swap_axes(-1, -2)?, 0, start, end),
            Self::Quantized(QuantizedMatrix { weight, scales, biases, scheme }) => {
                let rows = |array: &Array| slice(array, 0, start, end);
                let biases = biases.as_ref().map(rows).transpose()?;
                let packed =
                    QuantizedMatrix { weight: rows(weight)?, scales: rows(scales)?, biases, scheme: *scheme };
                dequantize(&packed, mlx_rs::Dtype::Float32)
            }
        }
    }
}

/// The matrix as x `[.., in]` is multiplied by it: MLX flattens x for a matrix `[in, out]`, which takes two operations more, and not
/// for a stack of one.
fn factor(x: &Array, w: &Array) -> Result<Array> {
    let one_row = ExecMode::current() == ExecMode::Mlx && x.ndim() == 3 && x.dim(0) == 1 && w.ndim() == 2;
    if one_row { w.expand_dims(0) } else { Ok(w.clone()) }
}

/// Which matrix of x each index is for, where MLX would find that out with operations of its own. Its kernels for sorted indices are
/// used only where it does.
fn places(x: &Array, indices: &Array, sorted: bool) -> Option<Array> {
    let (matrices, shape) = (&x.shape()[..x.ndim().checked_sub(2)?], indices.shape());
    let ([own @ .., last], [rows @ .., count]) = (matrices, shape) else { return None };
    if sorted || ExecMode::current() != ExecMode::Mlx || own != rows || ![1, *count].contains(last) {
        return None;
    }
    let each = (count / last).max(1) as u32;
    Some(Array::from_slice(&(0..indices.size() as u32).map(|index| index / each).collect::<Vec<_>>(), shape))
}

/// Whether these matrices have the same types and quantisation, so that they can be fused.
pub(crate) fn alike(parts: &[&Weights<'_>]) -> LoadResult<bool> {
    let mut first = None;
    for part in parts {
        let scales = part.has("scales").then(|| part.info("scales")).transpose()?;
        let scheme = scales.map(|_| part.scheme()).transpose()?;
        let kind = (part.info("weight")?.dtype, scales.map(|scales| scales.dtype), scheme, part.has("bias"));
        if *first.get_or_insert(kind) != kind {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `y + bias`.
pub(super) fn plus(y: Array, bias: Option<&Weight>) -> Result<Array> {
    match bias {
        Some(bias) => y.add(bias.get()?),
        None => Ok(y),
    }
}
