//! Matrices that the checkpoint holds dense or quantised, and the layers made of them.

use inference_core::{Dtype, Error, Result as LoadResult};
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops,
};

use super::{
    adapter::{SiteKind, Sites},
    native,
    ops::{Packed, Scheme, dequantize, gather_qmm, on_cpu, on_cuda, quantized_matmul, slice},
    parameter::{Form, Parameter},
    weights::{FLOATS, Weights, take_joined},
};

/// MLX's CUDA kernels for products with quantised matrices read the matrix once for every few rows. From about this many rows on
/// it is cheaper to write the matrix out in full and multiply with that: on an H200, 4096 × 4096 in 4 bits, 101 µs against 108
/// for 16 rows, 139 against 112 for 32.
const DEQUANTISE_FROM: usize = 16;

/// A matrix `[out, in]`, or a stack of matrices `[n, out, in]`.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// Transposed, so that products need no further step: `[.., in, out]`.
    Dense(Parameter),
    /// As the checkpoint has it.
    Packed(Packed),
}

impl Matrix {
    /// The matrix at `weights`, in the form that the checkpoint has.
    pub(crate) fn load(weights: &Weights<'_>, outputs: usize, inputs: usize) -> LoadResult<Self> {
        Self::load_joined(&[weights], None, &[outputs], inputs)
    }

    /// Matrices that share their inputs, in one: see [`take_joined`]. They are stored alike: see [`alike`].
    pub(crate) fn load_joined(
        parts: &[&Weights<'_>],
        stack: Option<usize>,
        outputs: &[usize],
        inputs: usize,
    ) -> LoadResult<Self> {
        let shapes = |columns| outputs.iter().map(|rows| vec![*rows, columns]).collect::<Vec<_>>();
        if !parts[0].has("scales") {
            let form = Form::Transposed;
            return Ok(Self::Dense(Parameter::load(parts, stack, "weight", &shapes(inputs), form)?));
        }
        let take = |name: &str, columns: usize, dtypes: &[Dtype]| {
            take_joined(parts, stack, name, &shapes(columns), dtypes)
        };
        Self::load_packed(parts[0], inputs, take)
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
            return Ok(Self::Dense(Parameter::load(&[weights], None, "weight", &shape, Form::Transposed)?));
        }
        Self::load_packed(weights, inputs, |name, columns, dtypes| {
            weights.take_as(name, &shape(columns), dtypes)
        })
    }

    /// A stack of `n` matrices that the tensor `name` is by itself, without a `.weight`: so transformers holds experts.
    pub(crate) fn load_bare(
        weights: &Weights<'_>,
        name: &str,
        n: usize,
        outputs: usize,
        inputs: usize,
    ) -> LoadResult<Self> {
        let shape = [vec![n, outputs, inputs]];
        Parameter::load(&[weights], None, name, &shape, Form::Transposed).map(Self::Dense)
    }

    fn load_packed(
        weights: &Weights<'_>,
        inputs: usize,
        take: impl Fn(&str, usize, &[Dtype]) -> LoadResult<Array>,
    ) -> LoadResult<Self> {
        let scheme = weights.scheme()?;
        weights.inventory().add_packed(weights.name("weight"));
        let Scheme { mode, bits, group_size } = scheme;
        if !inputs.is_multiple_of(group_size) || !(inputs * bits).is_multiple_of(32) {
            let reason =
                format!("{inputs} inputs do not divide into groups of {group_size} with {bits} bits");
            return Err(Error::invalid_key(weights.manifest().config_path(), weights.name("weight"), reason));
        }
        let groups = inputs / group_size;
        let scales = if mode.has_biases() { FLOATS } else { &[Dtype::U8, Dtype::F8E8m0, Dtype::F8E4m3] };
        Ok(Self::Packed(Packed {
            weight: take("weight", inputs * bits / 32, &[Dtype::U32])?,
            scales: take("scales", groups, scales)?,
            biases: mode.has_biases().then(|| take("biases", groups, scales)).transpose()?,
            scheme,
        }))
    }

    /// `x · wᵀ + bias`: `[.., in]`, `[out]` → `[.., out]`.
    pub(crate) fn multiply(&self, x: &Array, bias: Option<&Parameter>) -> Result<Array> {
        if let Some(product) = native::multiply(x, self, bias.map(|bias| &**bias)) {
            return product;
        }
        if let (Some(_), Some(product)) = (bias, native::multiply(x, self, None)) {
            return plus(product?, bias);
        }
        let product = match (self, bias) {
            (Self::Dense(transposed), Some(bias)) => {
                return ops::addmm(bias.get()?, x, transposed.get()?, None, None);
            }
            (Self::Dense(transposed), None) => return x.matmul(transposed.get()?),
            (Self::Packed(packed), _) => {
                let rows = x.size() / x.dim(-1).max(1) as usize;
                // With a single group in a row, those kernels give chance results for several rows.
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

    /// Of a stack: `x · w[i]ᵀ`, one `i` of `indices` for each matrix of x: `[.., M, in]`, `[..]` → `[.., M, out]`.
    ///
    /// MLX's own gather of dense half-precision matrices on the CPU aborts the process: while gradients are traced the matrices
    /// are widened for it.
    pub(crate) fn gather(&self, x: &Array, indices: &Array, sorted: bool) -> Result<Array> {
        if let Some(product) = native::gather(x, self, indices) {
            return product;
        }
        match self {
            Self::Packed(packed) => gather_qmm(x, packed, indices, sorted),
            Self::Dense(transposed) if transposed.dtype() == mlx_rs::Dtype::Float32 || !on_cpu() => {
                ops::gather_mm(x, transposed.get()?, None, indices, sorted)
            }
            Self::Dense(transposed) => {
                let wide = mlx_rs::Dtype::Float32;
                ops::gather_mm(x.as_dtype(wide)?, transposed.get()?.as_dtype(wide)?, None, indices, sorted)?
                    .as_dtype(x.dtype())
            }
        }
    }

    /// The rows `ids` `[..]` → `[.., in]`, in full.
    pub(crate) fn rows(&self, ids: &Array, dtype: mlx_rs::Dtype) -> Result<Array> {
        match self {
            Self::Dense(transposed) => transposed.get()?.swap_axes(-1, -2)?.take_axis(ids, 0),
            Self::Packed(Packed { weight, scales, biases, scheme }) => {
                let biases = biases.as_ref().map(|biases| biases.take_axis(ids, 0)).transpose()?;
                let (weight, scales) = (weight.take_axis(ids, 0)?, scales.take_axis(ids, 0)?);
                dequantize(&Packed { weight, scales, biases, scheme: *scheme }, dtype)
            }
        }
    }

    /// The rows `start..end`, in full: `[end - start, in]`, quantised ones as float32.
    pub(crate) fn part(&self, start: i32, end: i32) -> Result<Array> {
        match self {
            Self::Dense(transposed) => slice(&transposed.get()?.swap_axes(-1, -2)?, 0, start, end),
            Self::Packed(Packed { weight, scales, biases, scheme }) => {
                let rows = |array: &Array| slice(array, 0, start, end);
                let biases = biases.as_ref().map(rows).transpose()?;
                let packed = Packed { weight: rows(weight)?, scales: rows(scales)?, biases, scheme: *scheme };
                dequantize(&packed, mlx_rs::Dtype::Float32)
            }
        }
    }
}

/// Whether these matrices are stored alike, so that they can be held as one.
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

/// A linear map with an optional bias.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    matrix: Matrix,
    /// `[out]`
    bias: Option<Parameter>,
    sites: Sites,
}

impl Linear {
    /// The map at `weights`. `bias` says whether there is one.
    pub(crate) fn load(weights: &Weights<'_>, outputs: usize, inputs: usize, bias: bool) -> LoadResult<Self> {
        Self::load_joined(&[weights], &[outputs], inputs, bias)
    }

    fn load_joined(parts: &[&Weights<'_>], outputs: &[usize], inputs: usize, bias: bool) -> LoadResult<Self> {
        let matrix = Matrix::load_joined(parts, None, outputs, inputs)?;
        let shapes: Vec<_> = outputs.iter().map(|rows| vec![*rows]).collect();
        let bias = bias.then(|| Parameter::load(parts, None, "bias", &shapes, Form::Stored)).transpose()?;
        let mut start = 0;
        let sites = parts.iter().zip(outputs).map(|(part, outputs)| {
            let site = part.site("", SiteKind::Linear, inputs, *outputs);
            site.bind(&matrix, start);
            start += outputs;
            site
        });
        let sites = Sites::new(sites.collect());
        Ok(Self { matrix, bias, sites })
    }

    /// `[.., in]` → `[.., out]`
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        if self.sites.is_plain() {
            return self.matrix.multiply(x, self.bias.as_ref());
        }
        let y = self.sites.adapt(x, self.matrix.multiply(x, None)?)?;
        plus(y, self.bias.as_ref())
    }
}

/// `x · w`, `[.., in]`, `[in, out]` → `[.., out]`, where a gradient may be taken by both.
pub(super) fn times(x: &Array, w: &Array) -> Result<Array> {
    native::times(x, w).unwrap_or_else(|| x.matmul(w))
}

fn plus(y: Array, bias: Option<&Parameter>) -> Result<Array> {
    match bias {
        Some(bias) => y.add(bias.get()?),
        None => Ok(y),
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
    sites: Sites,
    dtype: mlx_rs::Dtype,
}

impl Embedding {
    /// The table at `weights`.
    pub(crate) fn load(weights: &Weights<'_>, vocab_size: usize, hidden_size: usize) -> LoadResult<Self> {
        let matrix = Matrix::load(weights, vocab_size, hidden_size)?;
        let site = weights.site("", SiteKind::Embedding, vocab_size, hidden_size);
        Ok(Self { matrix, sites: Sites::new(vec![site]), dtype: weights.float_dtype() })
    }

    /// Ids `[..]` → `[.., hidden_size]`. Every id is less than the table is long: MLX does not check.
    pub(crate) fn forward(&self, ids: &Array) -> Result<Array> {
        self.sites.adapt_rows(ids, self.matrix.rows(ids, self.dtype)?)
    }

    /// The table as an output layer, where the checkpoint ties them: `[.., hidden_size]` → `[.., vocab_size]`.
    pub(crate) fn as_linear(&self) -> Linear {
        Linear { matrix: self.matrix.clone(), bias: None, sites: self.sites.clone() }
    }
}
