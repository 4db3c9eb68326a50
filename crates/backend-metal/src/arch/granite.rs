//! Granite 3: a Llama with factors on embeddings, attention, residuals and logits.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, positive};
use crate::mlx::scalar;
use crate::nn::{
    Architecture, Attention, AttentionParams, Block, Decoder, Dimensions, FeedForward, ForwardPass, GatedMlp,
    LayerState, Mixer, Recorded, Recording, RmsNorm, Rope, Value, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
    embedding_multiplier: f32,
    attention_multiplier: f32,
    residual_multiplier: f32,
    logits_scaling: f32,
}

/// x + r · mixer(norm(x)), then the same with the feed-forward block.
#[derive(Debug)]
pub(super) struct ScaledPreNorm<F, M> {
    input_layernorm: RmsNorm,
    self_attn: M,
    post_attention_layernorm: RmsNorm,
    mlp: F,
    residual_multiplier: f32,
}

impl<F: FeedForward, M: Mixer> ScaledPreNorm<F, M> {
    /// The block of the layer at `weights`, around its parts.
    pub(super) fn load(
        weights: &Weights<'_>,
        dims: &Dimensions,
        self_attn: M,
        mlp: F,
        residual_multiplier: f32,
    ) -> LoadResult<Self> {
        Ok(Self {
            input_layernorm: dims.norm(&weights.at("input_layernorm"))?,
            self_attn,
            post_attention_layernorm: dims.norm(&weights.at("post_attention_layernorm"))?,
            mlp,
            residual_multiplier,
        })
    }
}

impl<F: FeedForward, M: Mixer> Block for ScaledPreNorm<F, M> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let factor = scalar(self.residual_multiplier, x.dtype())?;
        let mixed = self.self_attn.forward(&self.input_layernorm.forward(x)?, pass, layer)?;
        let x = x.add(mixed.multiply(&factor)?)?;
        let fed = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        x.add(fed.multiply(&factor)?)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let normalised = recording.rms_norm(x, &self.input_layernorm)?;
        let mixed = self.self_attn.record(normalised, recording, layer)?;
        let mixed = recording.scale(mixed, self.residual_multiplier);
        let x = recording.add(x, mixed, None)?;
        let normalised = recording.rms_norm(x, &self.post_attention_layernorm)?;
        let fed = self.mlp.record(normalised, recording)?;
        let fed = recording.scale(fed, self.residual_multiplier);
        recording.add(x, fed, None)
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let scale = positive(manifest, "attention_multiplier", own.attention_multiplier)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let rope = Some(rope.clone());
        let self_attn = Attention::load(&attention, dims.heads(), bias, rope, AttentionParams::full(scale))?;
        let mlp = GatedMlp::load(&layer.at("mlp"), &dims, own.mlp_bias)?;
        ScaledPreNorm::load(&layer, &dims, self_attn, mlp, own.residual_multiplier)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let decoder = Decoder::load(weights, &model, &dims, layers, &[&rope])?;
    Ok(Box::new(Decoder {
        embed_scale: Some(own.embedding_multiplier),
        logit_scale: Some(positive(manifest, "logits_scaling", own.logits_scaling)?.recip()),
        ..decoder
    }))
}
