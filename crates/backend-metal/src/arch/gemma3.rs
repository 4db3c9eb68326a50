//! Gemma 3: the text models, and the language towers of the multimodal ones.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::{
    config::{Config, LayerType, Layers, positive, rope_by_type, text_section, tower},
    gemma2::SandwichNorm,
};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, ModelConfig, QkNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    query_pre_attn_scalar: f32,
    #[serde(default)]
    final_logit_softcapping: Option<f32>,
    #[serde(default)]
    sliding_window_pattern: Option<usize>,
    #[serde(default)]
    _sliding_window_pattern: Option<usize>,
    #[serde(default)]
    use_bidirectional_attention: Option<bool>,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    });
    let manifest = weights.manifest();
    let section = text_section(manifest);
    let Config { mut dims, own, value } = Config::<Own>::read(manifest, section, defaults)?;
    dims.norm_offset = true;
    let invalid = |key: &str, reason: &str| Err(Error::invalid_key(manifest.config_path(), key, reason));
    let both_ways = own.use_bidirectional_attention == Some(true);
    let pattern = own.sliding_window_pattern.or(own._sliding_window_pattern).unwrap_or(6);
    if pattern == 0 {
        return invalid("sliding_window_pattern", "0, expected a positive number");
    }
    let [root, model] = tower(weights);
    let scale = positive(manifest, "query_pre_attn_scalar", own.query_pre_attn_scalar)?.sqrt().recip();
    let settings = rope_by_type(&value, [("rope_theta", 1_000_000.0), ("rope_local_base_freq", 10_000.0)]);
    let rope = |name| Rope::load(weights, &settings, Some(name), dims.rope(), 10_000.0).map(Rc::new);
    let (global, local) = (rope("full_attention")?, rope("sliding_attention")?);
    let types = own.layers.clone().types(manifest, &dims, |i| {
        if (i + 1) % pattern == 0 { LayerType::FullAttention } else { LayerType::SlidingAttention }
    })?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        // Both ways, the window has half of its positions on each side, and the token itself.
        let window =
            own.layers.window(layer_type).map(|window| if both_ways { window / 2 + 1 } else { window });
        let attend = AttentionParams { both_ways, window, ..AttentionParams::full(scale) };
        let rope = match layer_type {
            LayerType::FullAttention => &global,
            LayerType::SlidingAttention => &local,
        };
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?
            .with_norm(QkNorm::load_heads(&attention, &dims)?);
        SandwichNorm::load(&layer, &dims, self_attn)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let decoder = Decoder::load(&root, &model, &dims, layers, &[&global, &local])?;
    let config = decoder.config.clone();
    let generates = config.generates && !both_ways;
    let cap = own.final_logit_softcapping;
    Ok(Box::new(Decoder {
        config: ModelConfig { generates, encodes: both_ways, ..config },
        embed_scale: Some((dims.hidden_size as f32).sqrt()),
        logit_cap: cap.map(|cap| positive(manifest, "final_logit_softcapping", cap)).transpose()?,
        ..decoder
    }))
}
