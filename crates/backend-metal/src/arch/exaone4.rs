//! EXAONE 4: norms after each part; where some layers have a window, the others see no positions.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    config::{Config, LayerType, Layers},
    olmo2::PostNorm,
};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, QkNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    /// Every n-th layer sees all, or a letter for each layer in turn: L has a window, G sees all.
    #[serde(default)]
    sliding_window_pattern: Option<Value>,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "tie_word_embeddings": false, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "sliding_window": 4096, "sliding_window_pattern": 4,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let any_window = value.get("sliding_window").is_some();
    let number = own.sliding_window_pattern.as_ref().and_then(Value::as_u64).map(|n| n as usize);
    let letters = own.sliding_window_pattern.as_ref().and_then(Value::as_str).unwrap_or_default().as_bytes();
    if any_window && number.unwrap_or(letters.len()) == 0 {
        let reason = "expected a positive number, or letters such as LLLG";
        return Err(Error::invalid_key(manifest.config_path(), "sliding_window_pattern", reason));
    }
    let types = own.layers.clone().types(manifest, &dims, |i| {
        let slides = match number {
            Some(number) => number > 0 && !(i + 1).is_multiple_of(number),
            None => !letters.is_empty() && letters[i % letters.len()] == b'L',
        };
        if slides && any_window { LayerType::SlidingAttention } else { LayerType::FullAttention }
    })?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let attention = layer.at("self_attn");
        let window = own.layers.window(layer_type);
        let sees = layer_type == LayerType::SlidingAttention || !any_window;
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let rope = sees.then(|| rope.clone());
        let self_attn = Attention::load(&attention, dims.heads(), [false; 2], rope, attend)?
            .with_norm(QkNorm::load_heads(&attention, &dims)?);
        PostNorm::load(&layer, &dims, self_attn)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
