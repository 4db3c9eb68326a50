//! Gemma: a Llama with scaled embeddings and norms stored less one.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{
    Activation, Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, Rope, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": true, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    });
    let Config { mut dims, own, value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    dims.norm_offset = true;
    // The first configs say `gelu` and mean its approximation.
    if dims.hidden_act == Activation::Gelu {
        dims.hidden_act = Activation::GeluTanh;
    }
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let attention = layer.at("self_attn");
        let bias = [own.attention_bias; 2];
        let self_attn = Attention::load(
            &attention,
            dims.heads(),
            bias,
            Some(rope.clone()),
            AttentionParams::full(dims.scale()),
        )?;
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, false)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let decoder = Decoder::load(weights, &model, &dims, layers, &[&rope])?;
    Ok(Box::new(Decoder { embed_scale: Some((dims.hidden_size as f32).sqrt()), ..decoder }))
}
