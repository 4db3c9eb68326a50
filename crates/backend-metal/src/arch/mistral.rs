//! Mistral: a Llama with a sliding window over all layers, in its first versions.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "num_key_value_heads": 8, "tie_word_embeddings": false, "hidden_act": "silu", "sliding_window": 4096,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
    });
    let Config { dims, own, value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let types = own.layers.clone().types(weights.manifest(), &dims, |_| LayerType::SlidingAttention)?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let attend =
            AttentionParams { window: own.layers.window(layer_type), ..AttentionParams::full(dims.scale()) };
        let attention = layer.at("self_attn");
        let self_attn = Attention::load(&attention, dims.heads(), [false; 2], Some(rope.clone()), attend)?;
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, false)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
