//! Mamba 2 (Dao and Gu 2024, arXiv 2405.21060): a state space model behind a convolution, computed as linear attention.

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{self, sigmoid},
};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    activation::Activation,
    block::Mixer,
    cache::LayerState,
    causal_conv::CausalConv,
    cpu::{
        self, GateNorm, HeadSizes, Recorded, RecordedRecurrence, RecordedRule, Recording, RecurrentLayer,
        Rule, Value,
    },
    exec::ExecMode,
    forward_pass::{ForwardPass, RecurrentInput, Step},
    linear::Linear,
    linear_attention::LinearAttention,
    parameter::Weight,
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
    /// Of the convolution.
    pub(crate) activation: Activation,
    /// Of the projection into the block and of that out of it.
    pub(crate) proj_bias: [bool; 2],
    /// Limits of the time step.
    pub(crate) time_step_limit: TimeStepLimit,
    pub(crate) norm: SsmNorm,
    /// Factors of what the input projection gives: gates, values, B, C and time steps.
    pub(crate) multipliers: Option<[f32; 5]>,
    /// Epsilon of the norm.
    pub(crate) eps: f32,
}

/// The least and the greatest time step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TimeStepLimit(pub(crate) [f32; 2]);

impl Default for TimeStepLimit {
    fn default() -> Self {
        Self([0.0, f32::INFINITY])
    }
}

impl<'de> Deserialize<'de> for TimeStepLimit {
    /// JSON has no infinity: transformers writes `{"__float__": "Infinity"}` for it, and manifests do where a file has it bare.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Float {
            Number(f32),
            Tagged {
                #[serde(rename = "__float__")]
                name: String,
            },
        }
        let limits = <[Float; 2]>::deserialize(deserializer)
            .map_err(|_| D::Error::custom("time_step_limit: expected two numbers"))?;
        let [low, high] = limits.map(|limit| match limit {
            Float::Number(number) => number,
            Float::Tagged { name } => name.parse().unwrap_or(f32::NAN),
        });
        // A NaN is in no order.
        if low <= high {
            return Ok(Self([low, high]));
        }
        Err(D::Error::custom(format_args!(
            "time_step_limit: {low} and {high}, expected the smaller one first"
        )))
    }
}

/// What is done to the output of a state space model with its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SsmNorm {
    /// The gate, and then a norm of each group.
    AfterGate,
    /// A norm of each group, and then the gate.
    BeforeGate,
    /// The gate alone.
    None,
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

    fn factors(&self) -> Option<Array> {
        let shared = self.groups * self.state;
        let widths = [self.inner(), self.inner(), shared, shared, self.heads];
        let factors = self.multipliers?.into_iter().zip(widths);
        let factors: Vec<f32> =
            factors.flat_map(|(factor, width)| std::iter::repeat_n(factor, width)).collect();
        Some(Array::from_slice(&factors, &[factors.len() as i32]))
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
    norm: Option<Weight>,
    /// Of what `in_proj` gives.
    factors: Option<Array>,
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
            in_proj: Linear::load(&weights.at("in_proj"), outputs, hidden_size, proj_bias[0])?,
            conv: CausalConv::load(&weights.at("conv1d"), channels, conv_bias, Some(sizes.activation))?,
            dt_bias: weights.take_exact("dt_bias", &[heads])?,
            a_log: weights.take_exact("A_log", &[heads])?,
            d: weights.take_exact("D", &[heads])?,
            norm: (sizes.norm != SsmNorm::None)
                .then(|| weights.at("norm").take("weight", &[sizes.inner()]))
                .transpose()?,
            factors: sizes.factors(),
            out_proj: Linear::load(&weights.at("out_proj"), hidden_size, sizes.inner(), proj_bias[1])?,
            sizes,
        })
    }

    /// The output with its gate and norm: `[B, T, inner]` each, in single precision → the same in the type of activations.
    fn gated(&self, x: &Array, gate: &Array, dtype: Dtype) -> Result<Array> {
        let opened = gate.multiply(sigmoid(gate)?)?;
        let Some(weight) = &self.norm else { return x.multiply(opened)?.as_dtype(dtype) };
        let grouped = |x: &Array| x.reshape(&[x.dim(0), x.dim(1), self.sizes.groups as i32, -1]);
        let normalised = |x: &Array| {
            let mean = x.multiply(x)?.mean_axis(-1, true)?;
            x.multiply(ops::rsqrt(mean.add(Array::from_f32(self.sizes.eps))?)?)?.reshape(gate.shape())
        };
        if self.sizes.norm == SsmNorm::BeforeGate {
            let normalised = normalised(&grouped(x)?)?.multiply(weight.get()?.as_dtype(Dtype::Float32)?)?;
            return normalised.multiply(opened)?.as_dtype(dtype);
        }
        normalised(&grouped(&x.multiply(opened)?)?)?.as_dtype(dtype)?.multiply(weight.get()?)
    }
}

impl Mamba2 {
    /// What lies between the projections, as one operation of the CPU's kernels, if they know it.
    fn on_kernels(&self, [gate, mixed, step]: [&Array; 3], input: &RecurrentInput) -> Result<Option<Step>> {
        if ExecMode::current() != ExecMode::CpuKernels {
            return Ok(None);
        }
        let weight = self.norm.as_ref().map(Weight::get).transpose()?;
        let layer = RecurrentLayer {
            x: mixed,
            conv: self.conv.weights()?,
            sizes: self.head_sizes(),
            steps: step,
            dt_bias: &self.dt_bias.get()?,
            a_log: &self.a_log.get()?,
            rule: Rule::StateSpace { limits: self.sizes.time_step_limit.0, skip: &self.d.get()? },
            gates: gate,
            norm: self.gate_norm(weight.as_ref()),
        };
        cpu::recurrent_layer(&layer, input).transpose()
    }

    fn head_sizes(&self) -> HeadSizes {
        let SsmSizes { heads, head_dim, groups, state, .. } = self.sizes;
        let inner = self.sizes.inner();
        let starts = [inner + groups * state, inner, 0];
        HeadSizes { key_heads: groups, heads, key_dim: state, value_dim: head_dim, starts }
    }

    fn gate_norm<'a>(&self, weight: Option<&'a Array>) -> GateNorm<'a> {
        let SsmSizes { groups, norm, eps, .. } = self.sizes;
        GateNorm {
            norm: weight.map(|weight| (weight, eps)),
            group: self.sizes.inner() / groups,
            gate_first: norm == SsmNorm::AfterGate,
        }
    }

    /// The same with MLX's operations.
    fn on_mlx(&self, [gate, mixed, step]: [&Array; 3], input: &RecurrentInput) -> Result<Step> {
        let (batch, tokens, dtype) = (mixed.dim(0), mixed.dim(1), mixed.dtype());
        let inner = self.sizes.inner() as i32;
        let [groups, state] = [self.sizes.groups, self.sizes.state].map(|size| size as i32);
        let wide = |x: &Array| x.as_dtype(Dtype::Float32);
        let step = ops::logaddexp(wide(step)?.add(wide(&self.dt_bias.get()?)?)?, Array::from_f32(0.0))?;
        let [low, high] = self.sizes.time_step_limit.0.map(Array::from_f32);
        let step = ops::minimum(ops::maximum(&step, low)?, high)?;
        let decay = step.multiply(ops::exp(wide(&self.a_log.get()?)?)?)?.negative()?;
        let (window, before) = match input.states.as_deref() {
            Some([window, state]) => (Some(window), Some(state)),
            _ => (None, None),
        };
        let [mixed, window] = self.conv.forward(mixed, input, window)?;
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
        let [output, after] = attention.forward(input, before)?;
        let output = output.add(values.multiply(wide(&self.d.get()?)?.expand_dims(1)?)?)?;
        let gated = self.gated(&output.reshape(&[batch, tokens, -1])?, &wide(gate)?, dtype)?;
        Ok((gated, vec![window, after]))
    }
}

impl Mixer for Mamba2 {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let (inner, channels) = (self.sizes.inner() as i32, self.sizes.channels() as i32);
        let mut projected = self.in_proj.forward(x)?;
        if let Some(factors) = &self.factors {
            projected = projected.multiply(factors.as_dtype(projected.dtype())?)?;
        }
        let parts = projected.split_at_indices(&[inner, inner + channels], -1)?;
        let parts = [&parts[0], &parts[1], &parts[2]];
        let gated = pass.recur(layer, |input| match self.on_kernels(parts, &input)? {
            Some(computed) => Ok(computed),
            None => self.on_mlx(parts, &input),
        })?;
        self.out_proj.forward(&gated)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let mut projected = recording.linear(x, &self.in_proj)?;
        if let Some(factors) = &self.factors {
            projected = recording.multiply_by(projected, factors)?;
        }
        let inner = self.sizes.inner();
        let weight = self.norm.as_ref().map(Weight::get).transpose()?;
        let recurrence = RecordedRecurrence {
            x: recording.part(projected, inner),
            conv: self.conv.weights()?,
            sizes: self.head_sizes(),
            steps: recording.part(projected, inner + self.sizes.channels()),
            dt_bias: &self.dt_bias.get()?,
            a_log: &self.a_log.get()?,
            rule: RecordedRule::StateSpace { limits: self.sizes.time_step_limit.0, skip: &self.d.get()? },
            gates: recording.part(projected, 0),
            norm: self.gate_norm(weight.as_ref()),
        };
        let mixed = recording.recur(layer, &recurrence)?;
        recording.linear(mixed, &self.out_proj)
    }

    fn state(&self) -> LayerState {
        LayerState::recurrent(self.sizes.inner() * self.sizes.state, self.conv.state())
    }
}
