//! Llama 2, 3 and 3.x.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, Rope, Weights};

// ANCHOR: config
/// The keys of config.json that only this family has.
#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
}
// ANCHOR_END: config

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    // ANCHOR: defaults
    let defaults = json!({
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    });
    let Config { dims, own, value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    // ANCHOR_END: defaults
    // ANCHOR: rope
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    // ANCHOR_END: rope
    // ANCHOR: layers
    let layers = dims.layers(&model)?.map(|layer| {
        let attention = layer.at("self_attn");
        let bias = [own.attention_bias; 2];
        let params = AttentionParams::full(dims.scale());
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        let mlp = GatedMlp::load(&layer.at("mlp"), &dims, own.mlp_bias)?;
        PreNorm::load(&layer, &dims, self_attn, mlp)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    // ANCHOR_END: layers
    // ANCHOR: decoder
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
    // ANCHOR_END: decoder
}
