//! GLM 4: norms before and after each part, and half of each head rotated, neighbour by neighbour.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::{config::Config, gemma2::SandwichNorm};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": true, "tie_word_embeddings": false, "hidden_act": "silu", "num_key_value_heads": 2,
        "head_dim": 128, "max_position_embeddings": 131_072, "rms_norm_eps": 1.5625e-7,
        "partial_rotary_factor": 0.5,
    });
    let Config { dims, own, value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?.interleaved());
    let norms =
        ["input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"];
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let bias = [own.attention_bias, false];
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        SandwichNorm::load_named(&layer, norms, &dims, self_attn)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
