//! Gated delta nets: linear attention by the gated delta rule, behind a convolution.

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{self, sigmoid},
};
use serde::Deserialize;

use super::{
    activation::Activation,
    block::Mixer,
    cache::LayerState,
    causal_conv::CausalConv,
    cpu::{
        self, GateNorm, HeadSizes, Part, Recorded, RecordedRecurrence, RecordedRule, Recording,
        RecurrentLayer, Rule, Value,
    },
    dimensions::Dimensions,
    exec::ExecMode,
    forward_pass::{ForwardPass, RecurrentInput, Step},
    linear::{Linear, Projections},
    linear_attention::LinearAttention,
    norm::RmsNorm,
    parameter::Weight,
    weights::Weights,
};

/// The sizes of a gated delta net, by their names in config.json.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct DeltaSizes {
    pub(crate) linear_conv_kernel_dim: usize,
    pub(crate) linear_key_head_dim: usize,
    pub(crate) linear_value_head_dim: usize,
    pub(crate) linear_num_key_heads: usize,
    pub(crate) linear_num_value_heads: usize,
}

impl DeltaSizes {
    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key that does not.
    pub(crate) fn check(&self, manifest: &ModelManifest) -> LoadResult<()> {
        const LARGEST: usize = 1 << 16;
        let sizes = [
            ("linear_conv_kernel_dim", self.linear_conv_kernel_dim),
            ("linear_key_head_dim", self.linear_key_head_dim),
            ("linear_value_head_dim", self.linear_value_head_dim),
            ("linear_num_key_heads", self.linear_num_key_heads),
            ("linear_num_value_heads", self.linear_num_value_heads),
        ];
        for (key, size) in sizes {
            let least = if key == "linear_conv_kernel_dim" { 2 } else { 1 };
            if !(least..=LARGEST).contains(&size) {
                let reason = format!("{size}, expected a number from {least} to {LARGEST}");
                return Err(Error::invalid_key(manifest.config_path(), key, reason));
            }
        }
        let (keys, values) = (self.linear_num_key_heads, self.linear_num_value_heads);
        if !values.is_multiple_of(keys) {
            let reason = format!("{keys} do not divide linear_num_value_heads {values}");
            return Err(Error::invalid_key(manifest.config_path(), "linear_num_key_heads", reason));
        }
        Ok(())
    }

    fn keys(&self) -> usize {
        self.linear_num_key_heads * self.linear_key_head_dim
    }

    fn heads(&self) -> HeadSizes {
        let keys = self.keys();
        HeadSizes {
            key_heads: self.linear_num_key_heads,
            heads: self.linear_num_value_heads,
            key_dim: self.linear_key_head_dim,
            value_dim: self.linear_value_head_dim,
            starts: [0, keys, 2 * keys],
        }
    }

    fn values(&self) -> usize {
        self.linear_num_value_heads * self.linear_value_head_dim
    }
}

/// Where the inputs come from.
#[derive(Debug)]
enum Inputs {
    /// Queries, keys and values; gates z; b; a.
    Apart(Projections),
    /// Two matrices, whose rows are sorted by heads of keys: q, k, v and z; b and a.
    Grouped(Linear, Linear),
}

/// A gated delta net.
#[derive(Debug)]
pub(crate) struct GatedDeltaNet {
    inputs: Inputs,
    conv: CausalConv,
    /// `[value_heads]`
    dt_bias: Weight,
    /// `[value_heads]`
    a_log: Weight,
    norm: RmsNorm,
    out_proj: Linear,
    sizes: DeltaSizes,
}

impl GatedDeltaNet {
    /// The block at `weights`.
    pub(crate) fn load(weights: &Weights<'_>, dims: &Dimensions, sizes: DeltaSizes) -> LoadResult<Self> {
        let (hidden, keys, values) = (dims.hidden_size, sizes.keys(), sizes.values());
        let heads = sizes.linear_num_value_heads;
        let inputs = if weights.has_any("in_proj_qkvz") {
            Inputs::Grouped(
                Linear::load(&weights.at("in_proj_qkvz"), 2 * (keys + values), hidden, false)?,
                Linear::load(&weights.at("in_proj_ba"), 2 * heads, hidden, false)?,
            )
        } else {
            let names = [
                ("in_proj_qkv", 2 * keys + values),
                ("in_proj_z", values),
                ("in_proj_b", heads),
                ("in_proj_a", heads),
            ];
            Inputs::Apart(Projections::load(weights, "in_proj", names, hidden, false)?)
        };
        let (channels, kernel) = (2 * keys + values, sizes.linear_conv_kernel_dim);
        let activation = Some(dims.hidden_act);
        Ok(Self {
            inputs,
            conv: CausalConv::load(&weights.at("conv1d"), [channels, kernel], false, activation)?,
            dt_bias: weights.take_exact("dt_bias", &[heads])?,
            a_log: weights.take_exact("A_log", &[heads])?,
            norm: RmsNorm::load(&weights.at("norm"), sizes.linear_value_head_dim, dims.rms_norm_eps, false)?,
            out_proj: Linear::load(&weights.at("out_proj"), hidden, values, false)?,
            sizes,
        })
    }

    /// `[B, T, hidden]` → queries, keys and values in one; z; b; a: `[B, T, ..]` each.
    fn project(&self, x: &Array) -> Result<[Array; 4]> {
        let (qkvz, ba) = match &self.inputs {
            Inputs::Apart(inputs) => return inputs.forward(x),
            Inputs::Grouped(qkvz, ba) => (qkvz.forward(x)?, ba.forward(x)?),
        };
        let (batch, tokens) = (x.dim(0), x.dim(1));
        let DeltaSizes { linear_key_head_dim, linear_value_head_dim, .. } = self.sizes;
        let (groups, heads) =
            (self.sizes.linear_num_key_heads as i32, self.sizes.linear_num_value_heads as i32);
        let (key, value) = (linear_key_head_dim as i32, linear_value_head_dim as i32 * (heads / groups));
        let grouped = |x: Array| x.reshape(&[batch, tokens, groups, -1]);
        let flat = |x: &Array| x.reshape(&[batch, tokens, -1]);
        let qkvz = grouped(qkvz)?.split_at_indices(&[key, 2 * key, 2 * key + value], -1)?;
        let ba = grouped(ba)?.split_equal(2, -1)?;
        let qkvz = qkvz.iter().map(flat).collect::<Result<Vec<_>>>()?;
        let qkv = ops::concatenate(&qkvz[..3], -1)?;
        Ok([qkv, qkvz[3].clone(), flat(&ba[0])?, flat(&ba[1])?])
    }
}

impl GatedDeltaNet {
    /// What lies between the projections, as one operation of the CPU's kernels, if they know it.
    fn on_kernels(&self, [qkv, z, b, a]: [&Array; 4], input: &RecurrentInput) -> Result<Option<Step>> {
        if ExecMode::current() != ExecMode::CpuKernels {
            return Ok(None);
        }
        let (weight, eps) = self.norm.parts()?;
        let layer = RecurrentLayer {
            x: qkv,
            conv: self.conv.weights()?,
            sizes: self.sizes.heads(),
            steps: a,
            dt_bias: &self.dt_bias.get()?,
            a_log: &self.a_log.get()?,
            rule: Rule::Delta { betas: b },
            gates: z,
            norm: GateNorm {
                norm: Some((&weight, eps)),
                group: self.sizes.linear_value_head_dim,
                gate_first: false,
            },
        };
        cpu::recurrent_layer(&layer, input).transpose()
    }

    /// [`project`](Self::project) in a recording.
    fn record_inputs(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded<[Part; 4]> {
        let (qkvz, ba) = match &self.inputs {
            Inputs::Apart(inputs) => return recording.project(x, inputs),
            Inputs::Grouped(qkvz, ba) => (recording.linear(x, qkvz)?, recording.linear(x, ba)?),
        };
        let groups = self.sizes.linear_num_key_heads;
        let (keys, values, heads) =
            (self.sizes.keys(), self.sizes.values(), self.sizes.linear_num_value_heads);
        let qkvz =
            recording.ungroup(qkvz, groups, &[keys, keys, values, values].map(|width| width / groups))?;
        let ba = recording.ungroup(ba, groups, &[heads / groups; 2])?;
        let z = 2 * keys + values;
        Ok([(qkvz, 0), (qkvz, z), (ba, 0), (ba, heads)].map(|(value, start)| recording.part(value, start)))
    }

    /// The same with MLX's operations.
    fn on_mlx(&self, [qkv, z, b, a]: [&Array; 4], input: &RecurrentInput) -> Result<Step> {
        let (batch, tokens) = (qkv.dim(0), qkv.dim(1));
        let (keys, heads) = (self.sizes.keys() as i32, self.sizes.linear_num_value_heads as i32);
        let (dtype, wide) = (qkv.dtype(), |x: &Array| x.as_dtype(Dtype::Float32));
        let rate = ops::exp(wide(&self.a_log.get()?)?)?;
        let step = ops::logaddexp(wide(a)?.add(wide(&self.dt_bias.get()?)?)?, Array::from_f32(0.0))?;
        let (window, state) = match input.states.as_deref() {
            Some([window, state]) => (Some(window), Some(state)),
            _ => (None, None),
        };
        let [qkv, window] = self.conv.forward(qkv, input, window)?;
        let parts = wide(&qkv)?.split_at_indices(&[keys, 2 * keys], -1)?;
        let split = |x: &Array, dim: usize| x.reshape(&[batch, tokens, -1, dim as i32]);
        let key_dim = self.sizes.linear_key_head_dim;
        let attention = LinearAttention {
            queries: of_length(&split(&parts[0], key_dim)?, (key_dim as f32).sqrt().recip())?,
            keys: of_length(&split(&parts[1], key_dim)?, 1.0)?,
            values: split(&parts[2], self.sizes.linear_value_head_dim)?,
            decay: step.multiply(rate)?.negative()?,
            beta: Some(sigmoid(wide(b)?)?),
        };
        let [mixed, state] = attention.forward(input, state)?;
        let z = z.reshape(&[batch, tokens, heads, -1])?;
        // Rounded where the reference rounds.
        let normalised = self.norm.forward(&mixed.as_dtype(dtype)?)?;
        let gated = wide(&normalised)?.multiply(Activation::Silu.apply(&wide(&z)?)?)?;
        Ok((gated.as_dtype(dtype)?.reshape(&[batch, tokens, -1])?, vec![window, state]))
    }
}

impl Mixer for GatedDeltaNet {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let [qkv, z, b, a] = self.project(x)?;
        let parts = [&qkv, &z, &b, &a];
        let mixed = pass.recur(layer, |input| match self.on_kernels(parts, &input)? {
            Some(computed) => Ok(computed),
            None => self.on_mlx(parts, &input),
        })?;
        self.out_proj.forward(&mixed)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let [x, gates, betas, steps] = self.record_inputs(x, recording)?;
        let (weight, eps) = self.norm.parts()?;
        let group = self.sizes.linear_value_head_dim;
        let recurrence = RecordedRecurrence {
            x,
            conv: self.conv.weights()?,
            sizes: self.sizes.heads(),
            steps,
            dt_bias: &self.dt_bias.get()?,
            a_log: &self.a_log.get()?,
            rule: RecordedRule::Delta { betas },
            gates,
            norm: GateNorm { norm: Some((&weight, eps)), group, gate_first: false },
        };
        let mixed = recording.recur(layer, &recurrence)?;
        recording.linear(mixed, &self.out_proj)
    }

    fn state(&self) -> LayerState {
        let heads = self.sizes.values() * self.sizes.linear_key_head_dim;
        LayerState::recurrent(heads, self.conv.state())
    }
}

/// Vectors of this length: `length · x / √(Σ x² + 1e-6)`, by the norm of the mean.
fn of_length(x: &Array, length: f32) -> Result<Array> {
    let size = x.dim(-1) as f32;
    RmsNorm::without_weight(x, 1e-6 / size)?.multiply(Array::from_f32(length / size.sqrt()))
}
