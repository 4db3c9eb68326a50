//! SmolLM 3: a Llama with some layers that see no positions.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
    use_sliding_window: bool,
    /// For each layer 1 where it sees positions and 0 where it does not.
    #[serde(default)]
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: usize,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "hidden_act": "silu",
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "use_sliding_window": false, "no_rope_layer_interval": 4,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let invalid = |key: &str, reason: String| Err(Error::invalid_key(manifest.config_path(), key, reason));
    if own.no_rope_layer_interval == 0 {
        return invalid("no_rope_layer_interval", "0, expected a positive number".to_owned());
    }
    if let Some(list) = &own.no_rope_layers
        && list.len() != dims.num_hidden_layers
    {
        return invalid(
            "no_rope_layers",
            format!("{} entries for {} layers", list.len(), dims.num_hidden_layers),
        );
    }
    let has_rope = |i: usize| match &own.no_rope_layers {
        Some(list) => list[i] != 0,
        None => !(i + 1).is_multiple_of(own.no_rope_layer_interval),
    };
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 2_000_000.0)?);
    let types = own.layers.clone().types(manifest, &dims, |i| {
        if has_rope(i) { LayerType::FullAttention } else { LayerType::SlidingAttention }
    })?;
    let layers = dims.layers(&model)?.zip(types).enumerate().map(|(i, (layer, layer_type))| {
        let window = own.layers.window(layer_type).filter(|_| own.use_sliding_window);
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let rope = has_rope(i).then(|| rope.clone());
        let self_attn = Attention::load(&attention, dims.heads(), bias, rope, attend)?;
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, own.mlp_bias)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
