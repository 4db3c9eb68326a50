//! Gemma 2: norms before and after each part, capped scores and logits, a window on every other layer.

use std::rc::Rc;

use cuda_kernels::{FeedForwardSpec, LayerSpec};
use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, positive};
use crate::nn::{
    Architecture, Attention, AttentionParams, Block, Decoder, Dimensions, ForwardPass, GatedMlp, LayerState,
    Recorded, Recording, RmsNorm, Rope, SpecBuilder, Unsupported, Value, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    query_pre_attn_scalar: f32,
    #[serde(default)]
    attn_logit_softcapping: Option<f32>,
    #[serde(default)]
    final_logit_softcapping: Option<f32>,
    #[serde(flatten)]
    layers: Layers,
}

/// x + norm(attention(norm(x))), then the same with the feed-forward block.
#[derive(Debug)]
pub(super) struct SandwichNorm {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
}

impl SandwichNorm {
    /// The block of the layer at `weights`, around its attention.
    pub(super) fn load(weights: &Weights<'_>, dims: &Dimensions, self_attn: Attention) -> LoadResult<Self> {
        let (attention, feed_forward) = ("post_attention_layernorm", "post_feedforward_layernorm");
        let names = ["input_layernorm", attention, "pre_feedforward_layernorm", feed_forward];
        Self::load_named(weights, names, dims, self_attn)
    }

    /// The same with other names of the norms, in the order in which they are applied.
    pub(super) fn load_named(
        weights: &Weights<'_>,
        names: [&str; 4],
        dims: &Dimensions,
        self_attn: Attention,
    ) -> LoadResult<Self> {
        let norm = |index: usize| dims.norm(&weights.at(names[index]));
        Ok(Self {
            input_layernorm: norm(0)?,
            self_attn,
            post_attention_layernorm: norm(1)?,
            pre_feedforward_layernorm: norm(2)?,
            mlp: GatedMlp::load(&weights.at("mlp"), dims, false)?,
            post_feedforward_layernorm: norm(3)?,
        })
    }
}

impl Block for SandwichNorm {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let mixed = self.self_attn.forward(&self.input_layernorm.forward(x)?, pass, layer)?;
        let after = Some(&self.post_attention_layernorm);
        let [x, normalised] = self.pre_feedforward_layernorm.of_sum(x, &mixed, after)?;
        self.post_feedforward_layernorm.add(&x, &self.mlp.forward(&normalised)?)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let normalised = recording.rms_norm(x, &self.input_layernorm)?;
        let mixed = self.self_attn.record(normalised, recording, layer)?;
        let x = recording.add(x, mixed, Some(&self.post_attention_layernorm))?;
        let normalised = recording.rms_norm(x, &self.pre_feedforward_layernorm)?;
        let output = self.mlp.record(normalised, recording)?;
        recording.add(x, output, Some(&self.post_feedforward_layernorm))
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<LayerSpec, Unsupported> {
        let post_norms = [&self.post_attention_layernorm, &self.post_feedforward_layernorm];
        Ok(LayerSpec {
            input_norm: builder.norm(&self.input_layernorm)?,
            attention: self.self_attn.describe(builder)?,
            mlp_norm: builder.norm(&self.pre_feedforward_layernorm)?,
            mlp: FeedForwardSpec::Dense(self.mlp.describe(builder)?),
            post_norms: Some([builder.norm(post_norms[0])?, builder.norm(post_norms[1])?]),
        })
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    });
    let manifest = weights.manifest();
    let Config { mut dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    dims.norm_offset = true;
    let scale = positive(manifest, "query_pre_attn_scalar", own.query_pre_attn_scalar)?.sqrt().recip();
    let cap = |key, cap: Option<f32>| cap.map(|cap| positive(manifest, key, cap)).transpose();
    let softcap = cap("attn_logit_softcapping", own.attn_logit_softcapping)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let types = own.layers.clone().types(manifest, &dims, |i| {
        if i % 2 == 0 { LayerType::SlidingAttention } else { LayerType::FullAttention }
    })?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let attend = AttentionParams {
            window: own.layers.window(layer_type),
            softcap,
            ..AttentionParams::full(scale)
        };
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?;
        SandwichNorm::load(&layer, &dims, self_attn)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let decoder = Decoder::load(weights, &model, &dims, layers, &[&rope])?;
    Ok(Box::new(Decoder {
        embed_scale: Some((dims.hidden_size as f32).sqrt()),
        logit_cap: cap("final_logit_softcapping", own.final_logit_softcapping)?,
        ..decoder
    }))
}
