//! Causal convolutions, one for each channel.

use inference_core::Result as LoadResult;
use mlx_rs::{Array, Dtype, error::Result, ops};

use super::{
    activation::Activation,
    cpu::{self, ConvWeights, Recorded, Recording, Value},
    forward_pass::RecurrentInput,
    parameter::{Weight, WeightTransform},
    weights::Weights,
};
use crate::mlx::slice;

/// A convolution over the last `kernel` tokens of each channel. Its state is the inputs of the `kernel - 1` tokens before,
/// `[B, kernel - 1, channels]`.
#[derive(Debug)]
pub(crate) struct CausalConv {
    /// `[channels, 1, kernel]` or `[channels, kernel, 1]`: the taps, oldest first.
    weight: Weight,
    /// `[channels]`
    bias: Option<Weight>,
    channels: i32,
    kernel: i32,
    activation: Option<Activation>,
}

impl CausalConv {
    /// The convolution at `weights`: as torch stores it, or with its last axes swapped, as mlx_lm does.
    pub(crate) fn load(
        weights: &Weights<'_>,
        [channels, kernel]: [usize; 2],
        bias: bool,
        activation: Option<Activation>,
    ) -> LoadResult<Self> {
        let shape =
            if is_converted(weights)? { vec![channels, kernel, 1] } else { vec![channels, 1, kernel] };
        Ok(Self {
            weight: Weight::load(&[weights], None, "weight", &[shape], WeightTransform::Stored)?,
            bias: bias.then(|| weights.take("bias", &[channels])).transpose()?,
            channels: channels as i32,
            kernel: kernel as i32,
            activation,
        })
    }

    /// Its weights.
    pub(super) fn weights(&self) -> Result<ConvWeights> {
        Ok(ConvWeights {
            weight: self.weight.get()?,
            bias: self.bias.as_ref().map(Weight::get).transpose()?,
            activation: self.activation,
        })
    }

    /// The state before the first token of inputs `[B, T, channels]`.
    pub(crate) fn no_state(&self, x: &Array) -> Result<Array> {
        ops::zeros_dtype(&[x.dim(0), self.kernel - 1, self.channels], x.dtype())
    }

    /// `[B, T, channels]` → the same, and the state after the tokens.
    pub(crate) fn forward(
        &self,
        x: &Array,
        input: &RecurrentInput,
        state: Option<&Array>,
    ) -> Result<[Array; 2]> {
        let (batch, tokens, before) = (x.dim(0), x.dim(1), self.kernel - 1);
        let weights = self.weights()?;
        let state = state.map_or_else(|| self.no_state(x), |state| Ok(state.clone()))?;
        if let Some(output) = cpu::causal_conv([x, &state], &weights, input.lengths.as_ref()) {
            return output;
        }
        let ConvWeights { weight, bias, .. } = weights;
        let weight = weight.reshape(&[self.channels, self.kernel])?;
        let all = ops::concatenate(&[&state, x], 1)?;
        let state = match &input.lengths {
            None => slice(&all, 1, tokens, tokens + before)?,
            Some(lengths) => {
                let places = ops::arange::<_, i32>(0, before, None)?.expand_dims(0)?;
                let places = places.add(lengths.expand_dims(1)?)?.expand_dims(2)?;
                all.take_along_axis(ops::broadcast_to(&places, &[batch, before, self.channels])?, 1)?
            }
        };
        let (wide, weight) =
            (all.as_dtype(Dtype::Float32)?, weight.as_dtype(Dtype::Float32)?.swap_axes(0, 1)?);
        let mut sum = self.taps(&wide, &weight, tokens)?;
        if let Some(bias) = bias {
            sum = sum.add(bias.as_dtype(Dtype::Float32)?)?;
        }
        if let Some(activation) = self.activation {
            sum = activation.apply(&sum)?;
        }
        Ok([sum.as_dtype(x.dtype())?, state])
    }

    /// The same in a recording, where that can be.
    pub(crate) fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        recording.convolve(layer, x, &self.weights()?)
    }

    /// The sums of `[B, before + T, channels]` by the taps `[kernel, channels]`.
    fn taps(&self, all: &Array, weight: &Array, tokens: i32) -> Result<Array> {
        if tokens == 1 {
            return all.multiply(weight)?.sum_axis(1, true);
        }
        let tap = |at: i32| slice(all, 1, at, at + tokens)?.multiply(slice(weight, 0, at, at + 1)?);
        let mut sum = tap(0)?;
        for at in 1..self.kernel {
            sum = sum.add(tap(at)?)?;
        }
        Ok(sum)
    }

    /// The sizes of its state: tokens and channels.
    pub(crate) fn state(&self) -> usize {
        ((self.kernel - 1) * self.channels) as usize
    }
}

/// Whether mlx_lm has converted the checkpoint with this convolution.
pub(crate) fn is_converted(weights: &Weights<'_>) -> LoadResult<bool> {
    Ok(weights.info("weight")?.shape.last() == Some(&1) && weights.info("weight")?.shape.get(1) != Some(&1))
}
