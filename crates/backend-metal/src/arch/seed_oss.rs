//! Seed-OSS: a Llama with biases on queries, keys and values.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    attention_out_bias: bool,
    mlp_bias: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": true, "attention_out_bias": false, "mlp_bias": false, "tie_word_embeddings": false,
        "hidden_act": "silu", "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524_288,
        "rms_norm_eps": 1e-6,
    });
    let Config { dims, own, value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let bias = [own.attention_bias, own.attention_out_bias];
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, own.mlp_bias)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
