//! MiniCPM: a Llama with factors on embeddings, residuals and logits, which follow from depth and width.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::{
    config::{Config, positive},
    granite::ScaledPreNorm,
};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, GatedMlp, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    scale_emb: f32,
    scale_depth: f32,
    dim_model_base: f32,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": true, "hidden_act": "silu", "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "scale_emb": 1.0, "scale_depth": 1.0, "dim_model_base": 1.0,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let depth = positive(manifest, "scale_depth", own.scale_depth)? / (dims.num_hidden_layers as f32).sqrt();
    let base = positive(manifest, "dim_model_base", own.dim_model_base)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let params = AttentionParams::full(dims.scale());
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        ScaledPreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, false)?, depth)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let decoder = Decoder::load(weights, &model, &dims, layers, &[&rope])?;
    Ok(Box::new(Decoder {
        embed_scale: Some(positive(manifest, "scale_emb", own.scale_emb)?),
        logit_scale: Some(base / dims.hidden_size as f32),
        ..decoder
    }))
}
