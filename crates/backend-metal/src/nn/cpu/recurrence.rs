//! Recurrent layers: convolutions of channels, and linear attention behind them.

use std::borrow::Cow;

use cpu_kernels::{Floats, FloatsMut, GatedNorm, LinearAttention, RmsNorm, Sequences};
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops,
};

use super::{
    super::{
        activation::Activation,
        exec::ExecMode,
        forward_pass::{RecurrentInput, Step},
    },
    kernel::{KernelResult, kernel_result, kernels, promoted},
    operand::{FloatView, floats_mut, sequences},
};
use crate::mlx::primitive::{Input, Output, Shape, primitive};

/// A convolution of each channel over its latest tokens.
#[derive(Debug)]
pub(in crate::nn) struct ConvWeights {
    /// The taps of each channel, oldest first: `[channels, kernel]`, with any axes of one element.
    pub(in crate::nn) weight: Array,
    /// `[channels]`
    pub(in crate::nn) bias: Option<Array>,
    pub(in crate::nn) activation: Option<Activation>,
}

impl ConvWeights {
    /// Whether the activation is SiLU; `None` if the kernels lack it.
    pub(super) fn silu(&self) -> Option<bool> {
        match self.activation {
            None => Some(false),
            Some(Activation::Silu) => Some(true),
            Some(_) => None,
        }
    }
}

/// The convolution: x `[B, T, channels]`, the inputs before `[B, kernel - 1, channels]` → the output, and the inputs before the next
/// token. `lengths` `[B]` (i32): how many tokens of each row are not padding.
pub(in crate::nn) fn causal_conv(
    [x, window]: [&Array; 2],
    weights: &ConvWeights,
    lengths: Option<&Array>,
) -> Option<Result<[Array; 2]>> {
    let dtype = x.dtype();
    let arrays = [x, window, &weights.weight].into_iter().chain(&weights.bias).chain(lengths);
    let floats = [x, window, &weights.weight].into_iter().chain(&weights.bias);
    promoted(floats.map(Array::dtype))?;
    let silu = weights.silu()?;
    if ExecMode::current() != ExecMode::CpuKernels || window.dtype() != dtype {
        return None;
    }
    let arrays: Vec<_> = arrays.collect();
    let (biased, padded) = (weights.bias.is_some(), lengths.is_some());
    let shapes = [x, window].map(|of| Shape { sizes: of.shape(), dtype, donor: None });
    Some(primitive(c"causal_conv", &arrays, shapes, move |inputs, outputs| {
        let ([x, window, weight], rest) = inputs.split_first_chunk().ok_or(MISSING)?;
        let bias = rest.first().filter(|_| biased).copied().map(FloatView::of).transpose()?;
        let lengths = lengths_of(inputs.last().filter(|_| padded))?;
        let [rows, tokens, channels] = sizes_of(*x)?;
        let (window, weight) = (FloatView::of(*window)?, FloatView::of(*weight)?);
        let [output, after] = outputs else { return Err("two outputs were expected".into()) };
        kernel_result(kernels()?.causal_conv(
            [rows, tokens],
            lengths.as_deref(),
            &sequences(*x)?,
            &conv(channels, &weight, bias.as_ref(), silu),
            window.floats(),
            [floats_mut(output)?, floats_mut(after)?],
        ))
    }))
}

const MISSING: &str = "inputs are missing";

/// Rows, tokens and width of an input `[B, T, ..]`.
fn sizes_of(input: Input<'_>) -> KernelResult<[usize; 3]> {
    let sizes =
        <[i32; 3]>::try_from(input.shape()).map_err(|_| "vectors that are not [rows, tokens, width]")?;
    Ok(sizes.map(|size| size as usize))
}

/// The lengths of rows, where padding is known.
fn lengths_of<'a>(input: Option<&Input<'a>>) -> KernelResult<Option<Cow<'a, [i32]>>> {
    input.map(|input| input.elements::<i32>()).transpose()
}

pub(super) fn conv<'a>(
    channels: usize,
    weight: &'a FloatView<'_>,
    bias: Option<&'a FloatView<'_>>,
    silu: bool,
) -> cpu_kernels::CausalConv<'a> {
    let weight = weight.floats();
    let kernel = weight.len().checked_div(channels).unwrap_or(0);
    cpu_kernels::CausalConv { channels, kernel, weight, bias: bias.map(FloatView::floats), silu }
}

/// The sizes of linear attention.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) struct HeadSizes {
    pub(in crate::nn) key_heads: usize,
    pub(in crate::nn) heads: usize,
    pub(in crate::nn) key_dim: usize,
    pub(in crate::nn) value_dim: usize,
    /// Where queries, keys and values begin in the output of the convolution.
    pub(in crate::nn) starts: [usize; 3],
}

/// What becomes of a value: see `cpu_kernels::Rule`.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) enum Rule<'a> {
    /// The gated delta rule, with β before its sigmoid, `[B, T, heads]`.
    Delta { betas: &'a Array },
    /// A state space model: limits of the time step, and the factors of values in the output, `[heads]`.
    StateSpace { limits: [f32; 2], skip: &'a Array },
}

/// The norm of the output and its gate: see `cpu_kernels::GatedNorm`.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) struct GateNorm<'a> {
    pub(in crate::nn) norm: Option<(&'a Array, f32)>,
    pub(in crate::nn) group: usize,
    pub(in crate::nn) gate_first: bool,
}

/// A recurrent layer between its projections.
#[derive(Debug)]
pub(in crate::nn) struct RecurrentLayer<'a> {
    /// The inputs of the convolution, `[B, T, channels]`.
    pub(in crate::nn) x: &'a Array,
    pub(in crate::nn) conv: ConvWeights,
    pub(in crate::nn) sizes: HeadSizes,
    /// The time steps before bias and softplus, `[B, T, heads]`.
    pub(in crate::nn) steps: &'a Array,
    /// `[heads]` each.
    pub(in crate::nn) dt_bias: &'a Array,
    pub(in crate::nn) a_log: &'a Array,
    pub(in crate::nn) rule: Rule<'a>,
    /// `[B, T, heads · value_dim]`
    pub(in crate::nn) gates: &'a Array,
    pub(in crate::nn) norm: GateNorm<'a>,
}

/// The layer's output `[B, T, heads · value_dim]`, of the type of x, and its state after the tokens: the inputs of the convolution before
/// the next token, `[B, kernel - 1, channels]`, and `[B, heads, key_dim, value_dim]` in single precision.
pub(in crate::nn) fn recurrent_layer(
    layer: &RecurrentLayer<'_>,
    input: &RecurrentInput,
) -> Option<Result<Step>> {
    let RecurrentLayer { x, conv: weights, sizes, steps, dt_bias, a_log, gates, norm, .. } = layer;
    let (limits, own) = match layer.rule {
        Rule::Delta { betas } => (None, betas),
        Rule::StateSpace { limits, skip } => (Some(limits), skip),
    };
    let floats = [*x, steps, gates, &weights.weight, dt_bias, a_log];
    let (betas, skip) = match limits {
        None => (Some(own), None),
        Some(_) => (None, Some(own)),
    };
    let optional = weights.bias.iter().chain(norm.norm.map(|(weight, _)| weight)).chain(skip).chain(betas);
    promoted(floats.into_iter().chain(optional.clone()).map(Array::dtype))?;
    let (silu, dtype) = (weights.silu()?, x.dtype());
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let states = match input.states.as_deref() {
        Some([window, state]) => Ok([window.clone(), state.clone()]),
        _ => no_states(x.shape(), dtype, &weights.weight, sizes),
    };
    let [window, state] = match states {
        Ok(states) => states,
        Err(error) => return Some(Err(error)),
    };
    if window.dtype() != dtype || state.dtype() != Dtype::Float32 {
        return None;
    }
    let arrays = [&state, &window].into_iter().chain(floats).chain(optional).chain(&input.lengths);
    let arrays: Vec<_> = arrays.collect();
    let how = How {
        sizes: *sizes,
        silu,
        limits,
        biased: weights.bias.is_some(),
        eps: norm.norm.map(|(_, eps)| eps),
        group: norm.group,
        gate_first: norm.gate_first,
    };
    let padded = input.lengths.is_some();
    let out = [x.dim(0), x.dim(1), (sizes.heads * sizes.value_dim) as i32];
    let shapes = [
        Shape { sizes: &out, dtype, donor: None },
        Shape { sizes: window.shape(), dtype, donor: None },
        Shape { sizes: state.shape(), dtype: Dtype::Float32, donor: Some(0) },
    ];
    let computed = primitive(c"recurrent_layer", &arrays, shapes, move |inputs, outputs| {
        run_operation(&how, padded, inputs, outputs)
    });
    Some(computed.map(|[output, window, state]| (output, vec![window, state])))
}

/// [`recurrent_layer`], once its inputs are computed.
fn run_operation(how: &How, padded: bool, inputs: &[Input<'_>], outputs: &mut [Output<'_>]) -> KernelResult {
    let [output, after, state] = outputs else { return Err("three outputs were expected".into()) };
    let ([_, window, x, steps, gates, weights @ ..], lengths) =
        inputs.split_at(inputs.len() - usize::from(padded))
    else {
        return Err(MISSING.into());
    };
    // Those of the delta rule are behind the weights.
    let betas = if how.limits.is_none() { weights.last().ok_or(MISSING)? } else { steps };
    let (window, lengths) = (FloatView::of(*window)?, lengths_of(lengths.first())?);
    let memory = LayerMemory {
        sizes: sizes_of(*x)?,
        lengths: lengths.as_deref(),
        sequences: [sequences(*x)?, sequences(*steps)?, sequences(*gates)?, sequences(*betas)?],
        window: window.floats(),
        state: state.elements::<f32>()?,
        outputs: [floats_mut(output)?, floats_mut(after)?],
    };
    run_layer(how, &Weights::of(how, weights)?, memory)
}

/// What a layer is computed with, besides its arrays.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) sizes: HeadSizes,
    /// Whether the convolution has SiLU behind it.
    pub(super) silu: bool,
    /// Of the time step of a state space model; `None` is the delta rule.
    pub(super) limits: Option<[f32; 2]>,
    /// Whether the convolution has a bias.
    pub(super) biased: bool,
    /// Epsilon of the norm, if there is one.
    pub(super) eps: Option<f32>,
    pub(super) group: usize,
    pub(super) gate_first: bool,
}

/// The weights of a layer.
pub(super) struct Weights<'a> {
    conv: FloatView<'a>,
    dt_bias: FloatView<'a>,
    a_log: FloatView<'a>,
    bias: Option<FloatView<'a>>,
    norm: Option<FloatView<'a>>,
    skip: Option<FloatView<'a>>,
}

impl<'a> Weights<'a> {
    /// Those of the convolution, `dt_bias` and `a_log`, and behind them what the layer has of bias, norm and skip.
    pub(super) fn of(how: &How, inputs: &[Input<'a>]) -> KernelResult<Self> {
        let ([conv, dt_bias, a_log], rest) = inputs.split_first_chunk().ok_or(MISSING)?;
        let mut rest = rest.iter().copied().peekable();
        let mut floats = |is_there: bool| rest.next_if(|_| is_there).map(FloatView::of).transpose();
        Ok(Self {
            conv: FloatView::of(*conv)?,
            dt_bias: FloatView::of(*dt_bias)?,
            a_log: FloatView::of(*a_log)?,
            bias: floats(how.biased)?,
            norm: floats(how.eps.is_some())?,
            skip: floats(how.limits.is_some())?,
        })
    }
}

/// What a layer reads and writes.
pub(super) struct LayerMemory<'a> {
    /// Rows, tokens of each, channels of the convolution.
    pub(super) sizes: [usize; 3],
    pub(super) lengths: Option<&'a [i32]>,
    /// The inputs of the convolution, time steps, gates, and β of the delta rule.
    pub(super) sequences: [Sequences<'a>; 4],
    pub(super) window: Floats<'a>,
    pub(super) state: &'a mut [f32],
    /// The output, and the inputs of the convolution before the next token.
    pub(super) outputs: [FloatsMut<'a>; 2],
}

pub(super) fn run_layer(how: &How, weights: &Weights<'_>, memory: LayerMemory<'_>) -> KernelResult {
    let LayerMemory { sizes: [rows, tokens, channels], lengths, sequences, window, state, outputs } = memory;
    let [x, steps, gates, betas] = sequences;
    let rule = match (how.limits, &weights.skip) {
        (None, _) => cpu_kernels::Rule::Delta { betas },
        (Some(limits), Some(skip)) => cpu_kernels::Rule::StateSpace { limits, skip: skip.floats() },
        (Some(_), None) => return Err(MISSING.into()),
    };
    let HeadSizes { key_heads, heads, key_dim, value_dim, starts } = how.sizes;
    let norm = weights.norm.as_ref().zip(how.eps);
    let layer = cpu_kernels::RecurrentLayer {
        sizes: [rows, tokens],
        lengths,
        x,
        conv: conv(channels, &weights.conv, weights.bias.as_ref(), how.silu),
        attention: LinearAttention {
            key_heads,
            heads,
            key_dim,
            value_dim,
            starts,
            steps,
            dt_bias: weights.dt_bias.floats(),
            a_log: weights.a_log.floats(),
            rule,
        },
        gates,
        norm: GatedNorm {
            norm: norm.map(|(weight, eps)| RmsNorm { weight: weight.floats(), eps }),
            group: how.group,
            gate_first: how.gate_first,
        },
    };
    kernel_result(kernels()?.recurrent_layer(&layer, window, state, outputs))
}

/// The states before the first token of inputs of this shape, `[B, T, channels]`.
pub(super) fn no_states(x: &[i32], dtype: Dtype, weight: &Array, sizes: &HeadSizes) -> Result<[Array; 2]> {
    let &[rows, _, channels] = x else { return Err(Exception::custom("inputs must be [B, T, channels]")) };
    let before = weight.size() as i32 / channels - 1;
    let state = [sizes.heads, sizes.key_dim, sizes.value_dim].map(|size| size as i32);
    Ok([
        ops::zeros_dtype(&[rows, before, channels], dtype)?,
        ops::zeros_dtype(&[rows, state[0], state[1], state[2]], Dtype::Float32)?,
    ])
}
