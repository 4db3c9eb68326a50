//! Command R7B and A: attention and feed-forward part side by side; the layers without a window see no positions.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, positive};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, GatedMlp, LayerNorm, LayerNormBlock, Norm, Rope,
    Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    logit_scale: f32,
    sliding_window_pattern: usize,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": true, "hidden_act": "silu", "logit_scale": 0.0625,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4,
    });
    let manifest = weights.manifest();
    let renamed = [("layer_norm_eps", "rms_norm_eps")];
    let Config { dims, own, value } = Config::<Own>::read_renamed(manifest, None, defaults, &renamed)?;
    if own.sliding_window_pattern == 0 {
        let reason = "0, expected a positive number";
        return Err(Error::invalid_key(manifest.config_path(), "sliding_window_pattern", reason));
    }
    let types = own.layers.clone().types(manifest, &dims, |i| {
        let sees_all = (i + 1).is_multiple_of(own.sliding_window_pattern);
        if sees_all { LayerType::FullAttention } else { LayerType::SlidingAttention }
    })?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?.interleaved());
    let norm =
        |weights: &Weights<'_>| LayerNorm::load(weights, dims.hidden_size, dims.rms_norm_eps, false, false);
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let window = own.layers.window(layer_type);
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let rope = (layer_type == LayerType::SlidingAttention).then(|| rope.clone());
        LoadResult::Ok(LayerNormBlock {
            input_layernorm: norm(&layer.at("input_layernorm"))?,
            self_attn: Attention::load(&attention, dims.heads(), bias, rope, attend)?,
            post_attention_layernorm: None,
            mlp: GatedMlp::load(&layer.at("mlp"), &dims, false)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let last = Norm::Layer(norm(&model.at("norm"))?);
    let decoder = Decoder::load_named(weights, &model, "embed_tokens", &dims, layers, &[&rope], last)?;
    let logit_scale = Some(positive(manifest, "logit_scale", own.logit_scale)?);
    Ok(Box::new(Decoder { logit_scale, ..decoder }))
}
