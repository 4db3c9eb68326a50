//! OLMo 3: an OLMo 2 with a window on three of four layers.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::{
    config::{Config, LayerType, Layers, rope_by_type},
    olmo2::PostNorm,
};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, QkNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "sliding_window": 4096,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let settings = rope_by_type(&value, [("rope_theta", 10_000.0); 2]);
    let rope = |name| Rope::load(weights, &settings, Some(name), dims.rope(), 10_000.0).map(Rc::new);
    let (full, sliding) = (rope("full_attention")?, rope("sliding_attention")?);
    let types = own.layers.clone().types(manifest, &dims, |i| {
        if (i + 1) % 4 == 0 { LayerType::FullAttention } else { LayerType::SlidingAttention }
    })?;
    let model = weights.at("model");
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let window = own.layers.window(layer_type);
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let rope = if layer_type == LayerType::FullAttention { &full } else { &sliding };
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?
            .with_norm(QkNorm::load_whole(&attention, &dims)?);
        PostNorm::load(&layer, &dims, self_attn)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&full, &sliding])?))
}
