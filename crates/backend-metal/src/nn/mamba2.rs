//! Mamba 2 (Dao and Gu 2024, arXiv 2405.21060): a state space model behind a convolution, computed as linear attention.

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{self, sigmoid},
};

use super::{
    activation::Activation, block::Mixer, cache::LayerState, causal_conv::CausalConv,
    forward_pass::ForwardPass, linear::Linear, linear_attention::LinearAttention, parameter::Weight,
    weights::Weights,
};

/// The sizes of a Mamba 2 block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SsmSizes {
    /// The width of the residual stream.
    pub(crate) hidden_size: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// Heads that share B and C.
    pub(crate) groups: usize,
    /// The width of B and C.
    pub(crate) state: usize,
    /// Taps of the convolution.
    pub(crate) kernel: usize,
    pub(crate) conv_bias: bool,
    pub(crate) proj_bias: bool,
    /// Limits of the time step.
    pub(crate) time_step_limit: [f32; 2],
    /// Epsilon of the norm.
    pub(crate) eps: f32,
}

impl SsmSizes {
    /// Checks that the sizes make sense. `keys` are the names in config.json of heads, width, groups, state and taps.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key that does not.
    pub(crate) fn check(&self, manifest: &ModelManifest, keys: [&str; 5]) -> LoadResult<()> {
        const LARGEST: usize = 1 << 20;
        let sizes = [self.heads, self.head_dim, self.groups, self.state, self.kernel];
        for (i, (key, size)) in keys.into_iter().zip(sizes).enumerate() {
            let least = if i == 4 { 2 } else { 1 };
            if !(least..=LARGEST).contains(&size) {
                let reason = format!("{size}, expected a number from {least} to {LARGEST}");
                return Err(Error::invalid_key(manifest.config_path(), key, reason));
            }
        }
        if !self.heads.is_multiple_of(self.groups) {
            let reason = format!("{} do not divide {} heads", self.groups, self.heads);
            return Err(Error::invalid_key(manifest.config_path(), keys[2], reason));
        }
        Ok(())
    }

    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }
}

/// A Mamba 2 block.
#[derive(Debug)]
pub(crate) struct Mamba2 {
    in_proj: Linear,
    conv: CausalConv,
    dt_bias: Weight,
    a_log: Weight,
    d: Weight,
    /// `[heads · head_dim]`
    norm: Weight,
    out_proj: Linear,
    sizes: SsmSizes,
}

impl Mamba2 {
    /// The block at `weights`.
    pub(crate) fn load(weights: &Weights<'_>, sizes: SsmSizes) -> LoadResult<Self> {
        let SsmSizes { hidden_size, heads, kernel, conv_bias, proj_bias, .. } = sizes;
        let outputs = sizes.inner() + sizes.channels() + heads;
        let channels = [sizes.channels(), kernel];
        Ok(Self {
            in_proj: Linear::load(&weights.at("in_proj"), outputs, hidden_size, proj_bias)?,
            conv: CausalConv::load(&weights.at("conv1d"), channels, conv_bias, Some(Activation::Silu))?,
            dt_bias: weights.take_exact("dt_bias", &[heads])?,
            a_log: weights.take_exact("A_log", &[heads])?,
            d: weights.take_exact("D", &[heads])?,
            norm: weights.at("norm").take("weight", &[sizes.inner()])?,
            out_proj: Linear::load(&weights.at("out_proj"), hidden_size, sizes.inner(), proj_bias)?,
            sizes,
        })
    }

    /// The norm of each group after the gate: `[B, T, inner]` each, in single precision.
    fn gated_norm(&self, x: &Array, gate: &Array) -> Result<Array> {
        let gated = x.multiply(gate.multiply(sigmoid(gate)?)?)?;
        let shape = [gated.dim(0), gated.dim(1), self.sizes.groups as i32, -1];
        let grouped = gated.reshape(&shape)?;
        let mean = grouped.multiply(&grouped)?.mean_axis(-1, true)?;
        let scale = ops::rsqrt(mean.add(Array::from_f32(self.sizes.eps))?)?;
        grouped.multiply(scale)?.reshape(gated.shape())
    }
}

impl Mixer for Mamba2 {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let (batch, tokens) = (x.dim(0), x.dim(1));
        let (inner, channels) = (self.sizes.inner() as i32, self.sizes.channels() as i32);
        let [groups, state] = [self.sizes.groups, self.sizes.state].map(|size| size as i32);
        let wide = |x: &Array| x.as_dtype(Dtype::Float32);
        let parts = self.in_proj.forward(x)?.split_at_indices(&[inner, inner + channels], -1)?;
        let (gate, mixed, step) = (&parts[0], &parts[1], &parts[2]);
        let step = ops::logaddexp(wide(step)?.add(wide(&self.dt_bias.get()?)?)?, Array::from_f32(0.0))?;
        let [low, high] = self.sizes.time_step_limit.map(Array::from_f32);
        let step = ops::minimum(ops::maximum(&step, low)?, high)?;
        let decay = step.multiply(ops::exp(wide(&self.a_log.get()?)?)?)?.negative()?;
        let mixed = pass.recur(layer, |input| {
            let (window, before) = match input.states.as_deref() {
                Some([window, state]) => (Some(window), Some(state)),
                _ => (None, None),
            };
            let [mixed, window] = self.conv.forward(mixed, &input, window)?;
            let parts = wide(&mixed)?.split_at_indices(&[inner, inner + groups * state], -1)?;
            let split = |x: &Array, width: i32| x.reshape(&[batch, tokens, -1, width]);
            let values = split(&parts[0], self.sizes.head_dim as i32)?;
            let attention = LinearAttention {
                queries: split(&parts[2], state)?,
                keys: split(&parts[1], state)?,
                values: values.multiply(step.expand_dims(3)?)?,
                decay,
                beta: None,
            };
            let [output, after] = attention.forward(&input, before)?;
            let skipped = values.multiply(wide(&self.d.get()?)?.expand_dims(1)?)?;
            Ok((output.add(skipped)?, vec![window, after]))
        })?;
        let normalised = self.gated_norm(&mixed.reshape(&[batch, tokens, -1])?, &wide(gate)?)?;
        self.out_proj.forward(&normalised.as_dtype(x.dtype())?.multiply(self.norm.get()?)?)
    }

    fn state(&self) -> LayerState {
        LayerState::recurrent(self.sizes.inner() * self.sizes.state, self.conv.state())
    }
}
