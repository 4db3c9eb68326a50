//! ERNIE 4.5: a Llama whose neighbouring elements are rotated together.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    use_bias: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "use_bias": false, "tie_word_embeddings": true, "hidden_act": "silu", "num_key_value_heads": 2,
        "head_dim": 128, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    });
    let Config { dims, own, value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 500_000.0)?.interleaved());
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let bias = [own.use_bias; 2];
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, own.use_bias)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
