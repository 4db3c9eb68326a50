//! Falcon-H1: attention and Mamba 2 side by side in every layer, with factors everywhere.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::Config;
use crate::{
    mlx::scalar,
    nn::{
        self, Activation, Architecture, Attention, AttentionParams, Block, Decoder, Dimensions, ForwardPass,
        Gating, LayerState, Linear, Mamba2, Mixer, Norm, Recorded, Recording, RmsNorm, Rope, SsmNorm,
        SsmSizes, TimeStepLimit, Weights, is_converted,
    },
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
    projectors_bias: bool,
    #[serde(default)]
    mamba_d_ssm: Option<usize>,
    mamba_expand: usize,
    mamba_n_heads: usize,
    /// A number, or "auto".
    mamba_d_head: Value,
    mamba_n_groups: usize,
    mamba_d_state: usize,
    mamba_d_conv: usize,
    mamba_conv_bias: bool,
    mamba_proj_bias: bool,
    mamba_rms_norm: bool,
    mamba_norm_before_gate: bool,
    #[serde(default)]
    time_step_limit: TimeStepLimit,
    #[serde(flatten)]
    factors: Factors,
}

/// Factors of all kinds of activations.
#[derive(Debug, Clone, Deserialize)]
struct Factors {
    lm_head_multiplier: f32,
    embedding_multiplier: f32,
    mlp_multipliers: [f32; 2],
    key_multiplier: f32,
    attention_out_multiplier: f32,
    attention_in_multiplier: f32,
    ssm_multipliers: [f32; 5],
    ssm_in_multiplier: f32,
    ssm_out_multiplier: f32,
}

impl Factors {
    /// Those of a checkpoint in which mlx_lm has multiplied them into the weights.
    fn folded() -> Self {
        Self {
            lm_head_multiplier: 1.0,
            embedding_multiplier: 1.0,
            mlp_multipliers: [1.0; 2],
            key_multiplier: 1.0,
            attention_out_multiplier: 1.0,
            attention_in_multiplier: 1.0,
            ssm_multipliers: [1.0; 5],
            ssm_in_multiplier: 1.0,
            ssm_out_multiplier: 1.0,
        }
    }
}

impl Own {
    fn ssm(&self, manifest: &ModelManifest, dims: &Dimensions, factors: &Factors) -> LoadResult<SsmSizes> {
        let inner = self.mamba_d_ssm.unwrap_or(self.mamba_expand.saturating_mul(dims.hidden_size));
        let head_dim = match self.mamba_d_head.as_u64() {
            Some(head_dim) => head_dim as usize,
            None => inner / self.mamba_n_heads.max(1),
        };
        let norm = match (self.mamba_rms_norm, self.mamba_norm_before_gate) {
            (false, _) => SsmNorm::None,
            (true, true) => SsmNorm::BeforeGate,
            (true, false) => SsmNorm::AfterGate,
        };
        let sizes = SsmSizes {
            hidden_size: dims.hidden_size,
            heads: self.mamba_n_heads,
            head_dim,
            groups: self.mamba_n_groups,
            state: self.mamba_d_state,
            kernel: self.mamba_d_conv,
            conv_bias: self.mamba_conv_bias,
            activation: dims.hidden_act,
            proj_bias: [self.mamba_proj_bias, self.projectors_bias],
            time_step_limit: self.time_step_limit,
            norm,
            multipliers: Some(factors.ssm_multipliers),
            eps: dims.rms_norm_eps,
        };
        let keys = ["mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"];
        sizes.check(manifest, keys)?;
        if sizes.heads * sizes.head_dim != inner {
            let reason = format!("{head_dim} times mamba_n_heads is not mamba_d_ssm");
            return Err(Error::invalid_key(manifest.config_path(), "mamba_d_head", reason));
        }
        Ok(sizes)
    }
}

/// A block: x + mamba(norm(x)) + attention(norm(x)), then x + mlp(norm(x)).
#[derive(Debug)]
struct FalconBlock {
    input_layernorm: RmsNorm,
    mamba: Mamba2,
    self_attn: Attention,
    pre_ff_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
    factors: Factors,
}

impl Block for FalconBlock {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let times = |x: Array, factor: f32| x.multiply(scalar(factor, x.dtype())?);
        let factors = &self.factors;
        let normalised = self.input_layernorm.forward(x)?;
        let inputs = times(normalised.clone(), factors.ssm_in_multiplier)?;
        let mixed = times(self.mamba.forward(&inputs, pass, layer)?, factors.ssm_out_multiplier)?;
        let inputs = times(normalised, factors.attention_in_multiplier)?;
        let attended = self.self_attn.forward(&inputs, pass, layer)?;
        let x = x.add(mixed.add(times(attended, factors.attention_out_multiplier)?)?)?;
        let normalised = self.pre_ff_layernorm.forward(&x)?;
        let gate = times(self.gate_proj.forward(&normalised)?, factors.mlp_multipliers[0])?;
        let gated = self.activation.apply(&gate)?.multiply(self.up_proj.forward(&normalised)?)?;
        x.add(times(self.down_proj.forward(&gated)?, factors.mlp_multipliers[1])?)
    }

    fn record(&self, x: nn::Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let factors = &self.factors;
        let normalised = recording.rms_norm(x, &self.input_layernorm)?;
        let inputs = recording.scale(normalised, factors.ssm_in_multiplier);
        let mixed = self.mamba.record(inputs, recording, layer)?;
        let mixed = recording.scale(mixed, factors.ssm_out_multiplier);
        let inputs = recording.scale(normalised, factors.attention_in_multiplier);
        let attended = self.self_attn.record(inputs, recording, layer)?;
        let attended = recording.scale(attended, factors.attention_out_multiplier);
        let sum = recording.add(mixed, attended, None)?;
        let x = recording.add(x, sum, None)?;
        let normalised = recording.rms_norm(x, &self.pre_ff_layernorm)?;
        let gate = recording.linear(normalised, &self.gate_proj)?;
        let gate = recording.scale(gate, factors.mlp_multipliers[0]);
        let up = recording.linear(normalised, &self.up_proj)?;
        let halves = [gate, up].map(|half| recording.part(half, 0));
        let gated = recording.glu(halves, Gating::Glu(self.activation))?;
        let output = recording.linear(gated, &self.down_proj)?;
        let output = recording.scale(output, factors.mlp_multipliers[1]);
        recording.add(x, output, None)
    }

    fn state(&self) -> LayerState {
        LayerState { attention: self.self_attn.state().attention, recurrent: self.mamba.state().recurrent }
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "mlp_bias": false, "projectors_bias": false, "tie_word_embeddings": false,
        "hidden_act": "silu", "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "mamba_d_ssm": 1024, "mamba_expand": 2, "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_conv_bias": true, "mamba_proj_bias": false,
        "mamba_rms_norm": false, "mamba_norm_before_gate": true, "lm_head_multiplier": 1.0,
        "embedding_multiplier": 1.0, "mlp_multipliers": [1.0, 1.0], "key_multiplier": 1.0,
        "attention_out_multiplier": 1.0, "attention_in_multiplier": 1.0,
        "ssm_multipliers": [1.0, 1.0, 1.0, 1.0, 1.0], "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let model = weights.at("model");
    let convolution =
        dims.layers(&model)?.map(|layer| layer.at("mamba.conv1d")).find(|conv| conv.has("weight"));
    let folded = convolution.map_or(Ok(false), |conv| is_converted(&conv))?;
    let factors = if folded { Factors::folded() } else { own.factors.clone() };
    let ssm = own.ssm(manifest, &dims, &factors)?;
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let (hidden, inner) = (dims.hidden_size, dims.intermediate_size);
    let layers = dims.layers(&model)?.map(|layer| {
        // A factor of keys is one of the scores.
        let params = AttentionParams::full(dims.scale() * factors.key_multiplier);
        let (attention, mlp) = (layer.at("self_attn"), layer.at("feed_forward"));
        let linear = |name, outputs, inputs| Linear::load(&mlp.at(name), outputs, inputs, own.mlp_bias);
        LoadResult::Ok(FalconBlock {
            input_layernorm: dims.norm(&layer.at("input_layernorm"))?,
            mamba: Mamba2::load(&layer.at("mamba"), ssm)?,
            self_attn: Attention::load(
                &attention,
                dims.heads(),
                [own.attention_bias; 2],
                Some(rope.clone()),
                params,
            )?,
            pre_ff_layernorm: dims.norm(&layer.at("pre_ff_layernorm"))?,
            gate_proj: linear("gate_proj", inner, hidden)?,
            up_proj: linear("up_proj", inner, hidden)?,
            down_proj: linear("down_proj", hidden, inner)?,
            activation: dims.hidden_act,
            factors: factors.clone(),
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let norm = Norm::Rms(dims.norm(&model.at("final_layernorm"))?);
    let decoder = Decoder::load_named(weights, &model, "embed_tokens", &dims, layers, &[&rope], norm)?;
    Ok(Box::new(Decoder {
        embed_scale: Some(factors.embedding_multiplier),
        logit_scale: Some(factors.lm_head_multiplier),
        ..decoder
    }))
}
