//! Steps of recurrent layers on plain memory: convolutions of channels, and linear attention token by token.

use half::{bf16, f16};
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    super::{activation::Activation, exec::ExecMode},
    kernel::{KernelResult, kernels, promoted},
};
use crate::mlx::primitive::{Element, Input, Output, Shape, primitive};

/// Multiplications that are worth another thread.
const THREAD_WORK: usize = 1 << 20;

/// A float in memory.
trait Float: Element + Send + Sync {
    fn wide(self) -> f32;
    fn narrow(x: f32) -> Self;
}

impl Float for f32 {
    fn wide(self) -> f32 {
        self
    }
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Float for f16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Float for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// The convolution of each channel over its last tokens: x `[B, T, channels]`, the inputs before `[B, kernel - 1, channels]`, the
/// weights `[channels, kernel]` → the output, and the inputs before the next token.
pub(in crate::nn) fn causal_conv(
    [x, state, weight]: [&Array; 3],
    bias: Option<&Array>,
    activation: Option<Activation>,
) -> Option<Result<[Array; 2]>> {
    let dtype = x.dtype();
    let known = promoted([dtype]).is_some() && [state, weight].iter().all(|of| of.dtype() == dtype);
    let silu = match activation {
        None => false,
        Some(Activation::Silu) => true,
        Some(_) => return None,
    };
    if ExecMode::current() != ExecMode::CpuKernels || !known || bias.is_some_and(|bias| bias.dtype() != dtype)
    {
        return None;
    }
    let arrays: Vec<_> = [x, state, weight].into_iter().chain(bias).collect();
    let shapes = [x, state].map(|of| Shape { sizes: of.shape(), dtype, donor: None });
    Some(primitive(c"causal_conv", &arrays, shapes, move |inputs, outputs| match dtype {
        Dtype::Float16 => convolve::<f16>(inputs, outputs, silu),
        Dtype::Bfloat16 => convolve::<bf16>(inputs, outputs, silu),
        _ => convolve::<f32>(inputs, outputs, silu),
    }))
}

fn convolve<T: Float>(inputs: &[Input<'_>], outputs: &mut [Output<'_>], silu: bool) -> KernelResult {
    let (&[_, tokens, channels], &[_, kernel]) = (inputs[0].shape(), inputs[2].shape()) else {
        return Err("a convolution of [B, T, channels]".into());
    };
    let [tokens, channels, kernel] = [tokens, channels, kernel].map(|size| size as usize);
    let (x, state) = (inputs[0].elements::<T>()?, inputs[1].elements::<T>()?);
    let weight = inputs[2].transposed::<T>()?;
    let weight: Vec<f32> = weight.iter().map(|weight| weight.wide()).collect();
    let bias = inputs.get(3).map(|bias| bias.elements::<T>()).transpose()?;
    let bias: Vec<f32> =
        bias.map_or_else(|| vec![0.0; channels], |bias| bias.iter().map(|b| b.wide()).collect());
    let before = kernel - 1;
    let [output, after] = outputs else { return Err("two outputs were expected".into()) };
    let rows = x.chunks_exact(tokens * channels).zip(state.chunks_exact(before * channels));
    let output = output.elements::<T>()?.chunks_exact_mut(tokens * channels);
    let after = after.elements::<T>()?.chunks_exact_mut(before * channels);
    let mut sums = vec![0.0; channels];
    for (((x, state), output), after) in rows.zip(output).zip(after) {
        // The inputs of token `at`, where the first `before` are those of the state.
        let input = |at: usize| match at.checked_sub(before) {
            None => &state[at * channels..(at + 1) * channels],
            Some(at) => &x[at * channels..(at + 1) * channels],
        };
        for (token, output) in output.chunks_exact_mut(channels).enumerate() {
            sums.copy_from_slice(&bias);
            for (tap, weight) in weight.chunks_exact(channels).enumerate() {
                for ((sum, x), weight) in sums.iter_mut().zip(input(token + tap)).zip(weight) {
                    *sum += x.wide() * weight;
                }
            }
            for (output, sum) in output.iter_mut().zip(&sums) {
                *output = T::narrow(if silu { sum / (1.0 + exp(-sum)) } else { *sum });
            }
        }
        for (at, after) in after.chunks_exact_mut(channels).enumerate() {
            after.copy_from_slice(input(tokens + at));
        }
    }
    Ok(())
}

/// eˣ to about the last bit, in operations that compilers turn into those of vectors.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // 1.5 · 2²³: what is added to it is rounded to a whole number, which its lowest bits are.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let r = x - whole * LN2_HIGH - whole * LN2_LOW;
    let p = ((((r / 720.0 + 1.0 / 120.0) * r + 1.0 / 24.0) * r + 1.0 / 6.0) * r + 0.5) * r * r + r + 1.0;
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

/// Linear attention, in single precision: queries, keys, values and decay, β and the state, as `nn::LinearAttention` has them → the
/// output `[B, T, heads, value_dim]` and the state after it, `[B, heads, key_dim, value_dim]`.
pub(in crate::nn) fn linear_attention(
    [queries, keys, values, decay]: [&Array; 4],
    beta: Option<&Array>,
    state: &Array,
) -> Option<Result<[Array; 2]>> {
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let arrays: Vec<_> = [queries, keys, values, decay, state].into_iter().chain(beta).collect();
    if arrays.iter().any(|array| array.dtype() != Dtype::Float32) {
        return None;
    }
    let shapes = [
        Shape { sizes: values.shape(), dtype: Dtype::Float32, donor: None },
        Shape { sizes: state.shape(), dtype: Dtype::Float32, donor: Some(4) },
    ];
    Some(primitive(c"linear_attention", &arrays, shapes, scan))
}

/// The heads of one row that a thread computes.
struct Scan<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    decay: &'a [f32],
    beta: Option<&'a [f32]>,
    /// Tokens, heads of keys, heads, and the widths of keys and values.
    sizes: [usize; 5],
}

fn scan(inputs: &[Input<'_>], outputs: &mut [Output<'_>]) -> KernelResult {
    let (&[_, tokens, key_heads, key_dim], &[_, _, heads, value_dim]) =
        (inputs[1].shape(), inputs[2].shape())
    else {
        return Err("linear attention of [B, T, heads, head_dim]".into());
    };
    let sizes = [tokens, key_heads, heads, key_dim, value_dim].map(|size| size as usize);
    let [tokens, key_heads, heads, key_dim, value_dim] = sizes;
    let (queries, keys) = (inputs[0].elements::<f32>()?, inputs[1].elements::<f32>()?);
    let (values, decay) = (inputs[2].elements::<f32>()?, inputs[3].elements::<f32>()?);
    let beta = inputs.get(5).map(|beta| beta.elements::<f32>()).transpose()?;
    let [output, state] = outputs else { return Err("two outputs were expected".into()) };
    let (output, state) = (output.elements::<f32>()?, state.elements::<f32>()?);
    let work = tokens * heads * key_dim * value_dim;
    let threads = kernels()?.threads().min(work / THREAD_WORK).clamp(1, heads);
    let share = heads.div_ceil(threads);
    let rows = output.chunks_exact_mut(tokens * heads * value_dim);
    for (row, (output, state)) in rows.zip(state.chunks_exact_mut(heads * key_dim * value_dim)).enumerate() {
        let scan = Scan {
            queries: &queries[row * tokens * key_heads * key_dim..],
            keys: &keys[row * tokens * key_heads * key_dim..],
            values: &values[row * tokens * heads * value_dim..],
            decay: &decay[row * tokens * heads..],
            beta: beta.as_deref().map(|beta| &beta[row * tokens * heads..]),
            sizes,
        };
        if threads == 1 {
            scan.run(0, state, |token, head, head_output| {
                output[(token * heads + head) * value_dim..][..value_dim].copy_from_slice(head_output);
            });
        } else {
            scan.run_on_threads(share, state, output)?;
        }
    }
    Ok(())
}

impl Scan<'_> {
    /// Computes all heads, `share` of them on each thread.
    fn run_on_threads(&self, share: usize, state: &mut [f32], output: &mut [f32]) -> KernelResult {
        let [tokens, _, heads, key_dim, value_dim] = self.sizes;
        // Each thread fills its own heads, which lie apart in the output.
        let computed = std::thread::scope(|scope| {
            let parts = state.chunks_mut(share * key_dim * value_dim).enumerate();
            let threads = parts.map(|(part, state)| {
                scope.spawn(move || {
                    let (first, own) = (part * share, state.len() / (key_dim * value_dim));
                    let mut output = vec![0.0; tokens * own * value_dim];
                    self.run(first, state, |token, head, head_output| {
                        let at = (token * own + head - first) * value_dim;
                        output[at..at + value_dim].copy_from_slice(head_output);
                    });
                    (first, own, output)
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for part in computed {
            let Ok((first, own, part)) = part else {
                return Err("a thread of linear attention failed".into());
            };
            for (token, part) in part.chunks_exact(own * value_dim).enumerate() {
                let at = (token * heads + first) * value_dim;
                output[at..at + own * value_dim].copy_from_slice(part);
            }
        }
        Ok(())
    }

    /// Computes the heads from `first` on whose states these are.
    fn run(&self, first: usize, state: &mut [f32], mut write: impl FnMut(usize, usize, &[f32])) {
        let [tokens, key_heads, heads, key_dim, value_dim] = self.sizes;
        let group = heads / key_heads;
        let mut work = vec![0.0; 2 * value_dim];
        let (added, output) = work.split_at_mut(value_dim);
        for (index, state) in state.chunks_exact_mut(key_dim * value_dim).enumerate() {
            let head = first + index;
            for token in 0..tokens {
                let key = (token * key_heads + head / group) * key_dim;
                let place = token * heads + head;
                let token_inputs = Token {
                    query: &self.queries[key..key + key_dim],
                    key: &self.keys[key..key + key_dim],
                    value: &self.values[place * value_dim..(place + 1) * value_dim],
                    kept: self.decay[place].exp(),
                    beta: self.beta.map(|beta| beta[place]),
                };
                token_inputs.step(state, added, output);
                write(token, head, output);
            }
        }
    }
}

/// One token of one head.
struct Token<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    /// What is left of the state.
    kept: f32,
    beta: Option<f32>,
}

impl Token<'_> {
    /// Updates the state `[key_dim, value_dim]` and computes the output. `added` is memory to work in.
    fn step(&self, state: &mut [f32], added: &mut [f32], output: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has what the function asks for.
            return unsafe { self.step_avx2(state, added, output) };
        }
        self.step_on(state, added, output);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn step_avx2(&self, state: &mut [f32], added: &mut [f32], output: &mut [f32]) {
        self.step_on(state, added, output);
    }

    #[inline(always)]
    fn step_on(&self, state: &mut [f32], added: &mut [f32], output: &mut [f32]) {
        let width = self.value.len();
        match self.beta {
            None => {
                added.copy_from_slice(self.value);
                state.iter_mut().for_each(|state| *state *= self.kept);
            }
            Some(beta) => {
                added.fill(0.0);
                for (row, key) in state.chunks_exact_mut(width).zip(self.key) {
                    for (state, added) in row.iter_mut().zip(&mut *added) {
                        *state *= self.kept;
                        *added += key * *state;
                    }
                }
                for (added, value) in added.iter_mut().zip(self.value) {
                    *added = (value - *added) * beta;
                }
            }
        }
        output.fill(0.0);
        for ((row, key), query) in state.chunks_exact_mut(width).zip(self.key).zip(self.query) {
            for ((state, added), output) in row.iter_mut().zip(&*added).zip(&mut *output) {
                *state += key * added;
                *output += query * *state;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        for at in -8700..8800 {
            let x = at as f32 / 100.0;
            assert!((exp(x) - x.exp()).abs() <= 3e-7 * x.exp(), "{x}");
        }
    }
}
