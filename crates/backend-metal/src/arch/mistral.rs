//! Mistral, Ministral 3, and the language towers of Mistral Small: a Llama with a sliding window over all layers in its first
//! versions, and queries that are scaled by their positions in its last.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    config::{Config, LayerType, Layers, query_scale, text_section, tower},
    mistral4,
};
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
    load_with(weights, None, defaults)
}

/// Binds a checkpoint of Ministral 3.
pub(super) fn load_ministral(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load_with(weights, None, ministral())
}

/// Binds the language tower of a multimodal checkpoint.
pub(super) fn load_tower(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let manifest = weights.manifest();
    let kind = manifest.config().pointer("/text_config/model_type").and_then(Value::as_str);
    if kind == Some("mistral4") {
        return mistral4::load(weights);
    }
    let defaults = match kind {
        Some("ministral3") => ministral(),
        None | Some("mistral") => json!({
            "num_key_value_heads": 8, "tie_word_embeddings": false, "hidden_act": "silu", "head_dim": 128,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
        }),
        Some(other) => {
            let reason = format!("{other:?}, expected mistral, ministral3 or mistral4");
            return Err(Error::invalid_key(manifest.config_path(), "text_config.model_type", reason));
        }
    };
    load_with(weights, text_section(manifest), defaults)
}

fn ministral() -> Value {
    json!({
        "num_key_value_heads": 8, "tie_word_embeddings": false, "hidden_act": "silu", "head_dim": 128,
        "max_position_embeddings": 262_144, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
        },
    })
}

fn load_with(
    weights: &Weights<'_>,
    section: Option<&str>,
    defaults: Value,
) -> LoadResult<Box<dyn Architecture>> {
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, section, defaults)?;
    let [root, model] = tower(weights);
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let query_scale = query_scale(weights, &value)?;
    let types = own.layers.clone().types(manifest, &dims, |_| LayerType::SlidingAttention)?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let attend =
            AttentionParams { window: own.layers.window(layer_type), ..AttentionParams::full(dims.scale()) };
        let attention = layer.at("self_attn");
        let self_attn = Attention::load(&attention, dims.heads(), [false; 2], Some(rope.clone()), attend)?
            .with_query_scale(query_scale);
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, false)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(&root, &model, &dims, layers, &[&rope])?))
}
