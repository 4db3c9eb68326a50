//! Recurrent layers, and the states that they keep.

use cpu_kernels::{Floats, FloatsMut, Sequences};
use mlx_rs::{Array, Dtype, error::Result, ops};

use super::{
    super::{
        kernel::{KernelResult, kernel_result},
        operand::{FloatView, floats_mut},
        recurrence::{
            ConvWeights, GateNorm, HeadSizes, How, LayerMemory, Weights, conv, no_states, run_layer,
        },
    },
    call::{Part, Recorded, Unrecorded, Value, require},
    recorder::{Besides, Recording},
};

/// A recurrent layer between its projections: see `RecurrentLayer`.
pub(in crate::nn) struct RecordedRecurrence<'a> {
    /// The inputs of the convolution.
    pub(in crate::nn) x: Part,
    pub(in crate::nn) conv: ConvWeights,
    pub(in crate::nn) sizes: HeadSizes,
    pub(in crate::nn) steps: Part,
    /// `[heads]` each.
    pub(in crate::nn) dt_bias: &'a Array,
    pub(in crate::nn) a_log: &'a Array,
    pub(in crate::nn) rule: RecordedRule<'a>,
    pub(in crate::nn) gates: Part,
    pub(in crate::nn) norm: GateNorm<'a>,
}

/// What becomes of a value: see `Rule`.
pub(in crate::nn) enum RecordedRule<'a> {
    Delta { betas: Part },
    StateSpace { limits: [f32; 2], skip: &'a Array },
}

impl Recording<'_, '_> {
    /// The states of a layer before the tokens, and how many tokens of each row are not padding. `none` are those before the first token.
    fn states_before<const N: usize>(
        &mut self,
        layer: usize,
        none: impl FnOnce([usize; 2], Dtype) -> Result<[Array; N]>,
    ) -> Recorded<([Array; N], Option<Vec<i32>>)> {
        let Some(pass) = &mut self.pass else { return Ok((none(self.sizes, self.dtype)?, None)) };
        let states = pass.states(layer).ok_or(Unrecorded::Now("states are not kept"))??;
        let states = <[Array; N]>::try_from(states.unwrap_or_default());
        Ok((states.map_err(|_| Unrecorded::Now("no states are kept yet"))?, pass.padded_counts()))
    }

    /// Has the operation compute the states after the tokens: the last inputs of a convolution, and a state in single precision in place of
    /// the one before. Where those before are among the inputs, and those after among the outputs.
    fn replace_states<const N: usize>(&mut self, layer: usize, states: &[Array; N]) -> Recorded<[usize; 2]> {
        let dtypes = [self.dtype, Dtype::Float32];
        if states.iter().map(Array::dtype).ne(dtypes.into_iter().take(N)) {
            return Err(Unrecorded::Now("states of another type"));
        }
        let (before, after) = (self.inputs(states).start, self.outputs.len());
        for (index, state) in states.iter().enumerate() {
            let donor = (index == 1).then_some(before + 1);
            self.outputs.push(Besides { sizes: state.shape().to_vec(), dtype: dtypes[index], donor });
        }
        self.states.push((layer, after..after + N));
        Ok([before, after])
    }

    /// A convolution of each channel of a value. Its last inputs are kept.
    pub(in crate::nn) fn convolve(&mut self, layer: usize, x: Value, weights: &ConvWeights) -> Recorded {
        let silu = weights.silu().ok_or(Unrecorded::Never("a convolution of another activation"))?;
        let ([rows, tokens], channels) = (self.sizes, x.width);
        let all = [&weights.weight].into_iter().chain(&weights.bias);
        self.keeps_type(all.clone().map(Array::dtype))?;
        let before = weights.weight.size() / channels.max(1) - 1;
        let (states, lengths) = self.states_before(layer, |[rows, _], dtype| {
            Ok([ops::zeros_dtype(&[rows, before, channels].map(|size| size as i32), dtype)?])
        })?;
        let (of_weights, [before, after]) = (self.inputs(all), self.replace_states(layer, &states)?);
        let [mixed] = self.call([x], [channels], move |context, [data], [output]| {
            let weights = context.inputs[of_weights.clone()].iter().map(|input| FloatView::of(*input));
            let weights = weights.collect::<KernelResult<Vec<_>>>()?;
            let [weight, bias @ ..] = weights.as_slice() else { return Err("weights were expected".into()) };
            let window = FloatView::of(context.inputs[before])?;
            let mut outputs = context.outputs.borrow_mut();
            kernel_result(context.kernels.causal_conv(
                [rows, tokens],
                lengths.as_deref(),
                &sequences(Part { value: x, start: 0 }, data, tokens),
                &conv(channels, weight, bias.first(), silu),
                window.floats(),
                [output, floats_mut(&mut outputs[after])?],
            ))
        });
        Ok(mixed)
    }

    /// The output of a recurrent layer. Its states after the tokens are kept.
    pub(in crate::nn) fn recur(&mut self, layer: usize, how: &RecordedRecurrence<'_>) -> Recorded {
        let (weight, [rows, tokens]) = (&how.conv.weight, self.sizes);
        let HeadSizes { key_heads, heads, key_dim, value_dim, .. } = how.sizes;
        let channels = 2 * key_heads * key_dim + heads * value_dim;
        let silu = how.conv.silu().ok_or(Unrecorded::Never("a convolution of another activation"))?;
        let norm = how.norm.norm;
        let weights = [weight, how.dt_bias, how.a_log].into_iter();
        let (limits, betas, skip) = match how.rule {
            RecordedRule::Delta { betas } => (None, betas, None),
            // Betas are not read.
            RecordedRule::StateSpace { limits, skip } => (Some(limits), how.steps, Some(skip)),
        };
        let optional = how.conv.bias.iter().chain(norm.map(|(weight, _)| weight)).chain(skip);
        let weights: Vec<_> = weights.chain(optional).collect();
        let known =
            |array: &&Array| matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
        require(weights.iter().all(known), "weights of another type")?;
        let (states, lengths) = self.states_before(layer, |[rows, tokens], dtype| {
            let shape = [rows, tokens, channels].map(|size| size as i32);
            no_states(&shape, dtype, weight, &how.sizes)
        })?;
        let (weights, [before, after]) = (self.inputs(weights), self.replace_states(layer, &states)?);
        let run = How {
            sizes: how.sizes,
            silu,
            limits,
            biased: how.conv.bias.is_some(),
            eps: norm.map(|(_, eps)| eps),
            group: how.norm.group,
            gate_first: how.norm.gate_first,
        };
        let parts = [how.x, how.steps, how.gates, betas];
        let reads = parts.map(|part| part.value);
        let [mixed] = self.call(reads, [heads * value_dim], move |context, values, [output]| {
            let sequences = |index: usize| sequences(parts[index], values[index], tokens);
            let weights = Weights::of(&run, &context.inputs[weights.clone()])?;
            let window = FloatView::of(context.inputs[before])?;
            let mut outputs = context.outputs.borrow_mut();
            let [after, state] = &mut outputs[after..after + 2] else {
                return Err("two states were expected".into());
            };
            let memory = LayerMemory {
                sizes: [rows, tokens, channels],
                lengths: lengths.as_deref(),
                sequences: [sequences(0), sequences(1), sequences(2), sequences(3)],
                window: window.floats(),
                state: state.elements::<f32>()?,
                outputs: [output, floats_mut(after)?],
            };
            run_layer(&run, &weights, memory)
        });
        Ok(mixed)
    }

    /// Vectors of so many groups, in each of which parts of these widths lie one after the other → all that is first in its group, then all
    /// that is second.
    pub(in crate::nn) fn ungroup(&mut self, x: Value, groups: usize, widths: &[usize]) -> Recorded {
        let group: usize = widths.iter().sum();
        require(x.width == groups * group, "groups of another width")?;
        let widths = widths.to_vec();
        let [sorted] = self.call([x], [x.width], move |_, [x], [out]| match (x, out) {
            (Floats::F32(x), FloatsMut::F32(out)) => ungroup(x, out, groups, &widths),
            (Floats::F16(x), FloatsMut::F16(out)) => ungroup(x, out, groups, &widths),
            (Floats::Bf16(x), FloatsMut::Bf16(out)) => ungroup(x, out, groups, &widths),
            _ => Err("values of two types".into()),
        });
        Ok(sorted)
    }

    /// The part of a value from an element on.
    pub(crate) fn part(&self, value: Value, start: usize) -> Part {
        Part { value, start }
    }
}

/// A part of the vectors `[rows, tokens, width]`.
fn sequences(part: Part, data: Floats<'_>, tokens: usize) -> Sequences<'_> {
    let width = part.value.width;
    Sequences { data: part.of(data), row_stride: tokens * width, token_stride: width }
}

fn ungroup<T: Copy>(x: &[T], out: &mut [T], groups: usize, widths: &[usize]) -> KernelResult {
    let group: usize = widths.iter().sum();
    for (x, out) in x.chunks_exact(groups * group).zip(out.chunks_exact_mut(groups * group)) {
        let (mut from, mut rest) = (0, out);
        for width in widths {
            let (to, others) = rest.split_at_mut(groups * width);
            for (x, to) in x.chunks_exact(group).zip(to.chunks_exact_mut(*width)) {
                to.copy_from_slice(&x[from..][..*width]);
            }
            (from, rest) = (from + width, others);
        }
    }
    Ok(())
}
