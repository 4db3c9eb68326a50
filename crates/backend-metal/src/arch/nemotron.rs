//! Nemotron and Minitron: norms of mean and variance, stored less one, and squares of positive numbers instead of gates.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, LayerNorm, LayerNormBlock, Norm, PlainMlp, Rope,
    Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "hidden_act": "relu2",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
    });
    let renamed = [("norm_eps", "rms_norm_eps"), ("partial_rotary_percent", "partial_rotary_factor")];
    let Config { dims, own, value } =
        Config::<Own>::read_renamed(weights.manifest(), None, defaults, &renamed)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let norm =
        |weights: &Weights<'_>| LayerNorm::load(weights, dims.hidden_size, dims.rms_norm_eps, true, true);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let bias = [own.attention_bias; 2];
        LoadResult::Ok(LayerNormBlock {
            input_layernorm: norm(&layer.at("input_layernorm"))?,
            self_attn: Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?,
            post_attention_layernorm: Some(norm(&layer.at("post_attention_layernorm"))?),
            mlp: PlainMlp::load(&layer.at("mlp"), ["up_proj", "down_proj"], &dims, own.mlp_bias)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let last = Norm::Layer(norm(&model.at("norm"))?);
    Ok(Box::new(Decoder::load_named(weights, &model, "embed_tokens", &dims, layers, &[&rope], last)?))
}
