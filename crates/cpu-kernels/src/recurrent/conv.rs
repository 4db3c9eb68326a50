//! Causal convolutions, one for each channel.

use super::sequences::{Block, Sequences};
use crate::{
    element::Element,
    error::{Error, Result},
    glu::sigmoid,
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, product, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// Channels of a task.
const CHANNELS: usize = 512;

/// A convolution of each channel over its latest tokens.
#[derive(Debug, Clone, Copy)]
pub struct CausalConv<'a> {
    /// Channels.
    pub channels: usize,
    /// Taps.
    pub kernel: usize,
    /// The taps of each channel, the oldest token's first: `[channels, kernel]`.
    pub weight: Floats<'a>,
    /// What is added to the sums: `[channels]`.
    pub bias: Option<Floats<'a>>,
    /// Whether the output is x · σ(x) of the sum x.
    pub silu: bool,
}

impl CausalConv<'_> {
    pub(super) fn check(
        &self,
        [rows, tokens]: [usize; 2],
        x: &Sequences<'_>,
        window: Floats<'_>,
    ) -> Result<()> {
        let Self { channels, kernel, weight, bias, .. } = self;
        if *kernel == 0 {
            return Err(Error::Invalid { name: "kernel", found: 0, expected: "at least 1".into() });
        }
        length("weight", weight.len(), product("weight", &[*channels, *kernel])?)?;
        length("window", window.len(), product("window", &[rows, kernel - 1, *channels])?)?;
        if let Some(bias) = bias {
            length("bias", bias.len(), *channels)?;
        }
        x.check("x", [rows, tokens, *channels])
    }
}

/// Operands of several types where one was expected.
fn types_differ() -> Error {
    Error::Invalid { name: "the number of types", found: 2, expected: "1".into() }
}

impl Kernels {
    /// Convolves `x` `[rows, tokens, channels]` → the first output, the same. `window` `[rows, kernel − 1, channels]` has the inputs
    /// before the first token, of the type of `x`, and the second output gets those before the next one. `lengths`: see
    /// [`RecurrentLayer`](super::RecurrentLayer).
    ///
    /// # Errors
    /// Operands whose sizes or types do not match.
    pub fn causal_conv(
        &self,
        [rows, tokens]: [usize; 2],
        lengths: Option<&[i32]>,
        x: &Sequences<'_>,
        conv: &CausalConv<'_>,
        window: Floats<'_>,
        [out, window_after]: [FloatsMut<'_>; 2],
    ) -> Result<()> {
        conv.check([rows, tokens], x, window)?;
        length("out", out.len(), product("out", &[rows, tokens, conv.channels])?)?;
        if let Some(lengths) = lengths {
            length("lengths", lengths.len(), rows)?;
        }
        self.convolve(conv, x, window, &Block { rows: 0..rows, tokens: 0..tokens }, out)?;
        shift_window([rows, tokens], lengths, x, conv, window, window_after)
    }

    /// The convolution of a block of tokens → `out`, the block's own.
    pub(super) fn convolve(
        &self,
        conv: &CausalConv<'_>,
        x: &Sequences<'_>,
        window: Floats<'_>,
        block: &Block,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        match (x.data, window) {
            (Floats::F32(data), Floats::F32(window)) => {
                self.convolve_of_type(conv, x, [data, window], block, out);
            }
            (Floats::F16(data), Floats::F16(window)) => {
                self.convolve_of_type(conv, x, [data, window], block, out);
            }
            (Floats::Bf16(data), Floats::Bf16(window)) => {
                self.convolve_of_type(conv, x, [data, window], block, out);
            }
            _ => return Err(types_differ()),
        }
        Ok(())
    }

    fn convolve_of_type<E: Element>(
        &self,
        conv: &CausalConv<'_>,
        x: &Sequences<'_>,
        [data, window]: [&[E]; 2],
        block: &Block,
        out: FloatsMut<'_>,
    ) {
        let CausalConv { channels, kernel, .. } = *conv;
        let parts = channels.div_ceil(CHANNELS);
        let row_window = (kernel - 1) * channels;
        with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            self.pool.run(if block.tokens.is_empty() { 0 } else { block.rows.len() * parts }, &|task| {
                let (index, first) = (task / parts, task % parts * CHANNELS);
                let (row, own) = (block.rows.start + index, (channels - first).min(CHANNELS));
                let place = index * block.tokens.len() * channels + first;
                let [weight, bias] = taps(conv, first, own);
                self.isa.run(Channels {
                    x: &data[x.at(row, 0) + first..],
                    token_stride: x.token_stride,
                    window: &window[row * row_window..][..row_window],
                    window_part: [first, channels],
                    weight: &weight,
                    bias: &bias,
                    silu: conv.silu,
                    tokens: block.tokens.clone(),
                    // SAFETY: each token's part of these channels belongs to one task.
                    out: |token: usize| unsafe { out.part(place + token * channels, own) },
                });
            });
        });
    }
}

/// The taps `[kernel, own]` of the channels from `first` on, and what is added to their sums.
fn taps(conv: &CausalConv<'_>, first: usize, own: usize) -> [Vec<f32>; 2] {
    let kernel = conv.kernel;
    let mut taps = vec![0.0; kernel * own];
    with_slice!(conv.weight, Floats, weight => {
        for (channel, weights) in weight[first * kernel..].chunks_exact(kernel).take(own).enumerate() {
            for (tap, weight) in weights.iter().enumerate() {
                taps[tap * own + channel] = weight.widen();
            }
        }
    });
    let bias = match conv.bias {
        None => vec![0.0; own],
        Some(bias) => {
            with_slice!(bias, Floats, bias => bias[first..first + own].iter().map(|bias| bias.widen()).collect())
        }
    };
    [taps, bias]
}

/// Some channels of a row.
struct Channels<'a, X, F> {
    /// From the first of the channels of the row's first token on.
    x: &'a [X],
    token_stride: usize,
    /// The inputs before the first token, of all channels.
    window: &'a [X],
    /// The first of the channels, and how many the window has.
    window_part: [usize; 2],
    weight: &'a [f32],
    bias: &'a [f32],
    silu: bool,
    tokens: std::ops::Range<usize>,
    /// Where the output of a token of the block goes.
    out: F,
}

impl<'a, X: Element, O: Element, F: Fn(usize) -> &'a mut [O]> Kernel for Channels<'_, X, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, token_stride, window, window_part: [first, channels], weight, bias, silu, tokens, out } =
            self;
        let own = bias.len();
        let before = weight.len() / own - 1;
        let mut sums = vec![0.0; own];
        for (index, token) in tokens.enumerate() {
            sums.copy_from_slice(bias);
            for (tap, weight) in weight.chunks_exact(own).enumerate() {
                // The window's inputs come first.
                let input = match (token + tap).checked_sub(before) {
                    None => &window[(token + tap) * channels + first..][..own],
                    Some(token) => &x[token * token_stride..][..own],
                };
                for ((sum, x), weight) in sums.iter_mut().zip(input).zip(weight) {
                    *sum += x.widen() * weight;
                }
            }
            let out = out(index);
            if silu {
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out = O::round(sum * sigmoid(*sum));
                }
            } else {
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out = O::round(*sum);
                }
            }
        }
    }
}

/// The inputs before the next token.
pub(super) fn shift_window(
    sizes: [usize; 2],
    lengths: Option<&[i32]>,
    x: &Sequences<'_>,
    conv: &CausalConv<'_>,
    window: Floats<'_>,
    after: FloatsMut<'_>,
) -> Result<()> {
    length("window_after", after.len(), window.len())?;
    match (x.data, window, after) {
        (Floats::F32(data), Floats::F32(window), FloatsMut::F32(after)) => {
            shift(sizes, lengths, x, conv, [data, window], after);
        }
        (Floats::F16(data), Floats::F16(window), FloatsMut::F16(after)) => {
            shift(sizes, lengths, x, conv, [data, window], after);
        }
        (Floats::Bf16(data), Floats::Bf16(window), FloatsMut::Bf16(after)) => {
            shift(sizes, lengths, x, conv, [data, window], after);
        }
        _ => return Err(types_differ()),
    }
    Ok(())
}

fn shift<E: Element>(
    [rows, tokens]: [usize; 2],
    lengths: Option<&[i32]>,
    x: &Sequences<'_>,
    conv: &CausalConv<'_>,
    [data, window]: [&[E]; 2],
    after: &mut [E],
) {
    let (channels, before) = (conv.channels, conv.kernel - 1);
    for row in 0..rows {
        let seen = lengths.map_or(tokens, |lengths| tokens.min(lengths[row].max(0) as usize));
        for place in 0..before {
            let from = match (seen + place).checked_sub(before) {
                None => &window[(row * before + seen + place) * channels..][..channels],
                Some(token) => &data[x.at(row, token)..][..channels],
            };
            after[(row * before + place) * channels..][..channels].copy_from_slice(from);
        }
    }
}
