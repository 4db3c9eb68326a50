//! Qwen 3: a Llama whose queries and keys are normalised head by head.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::{
    config::{Config, text_section, tower},
    qwen2::Windows,
};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, QkNorm, Rope, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    #[serde(flatten)]
    windows: Windows,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "head_dim": 128,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "use_sliding_window": false,
        "sliding_window": 4096, "max_window_layers": 28,
    });
    let Config { dims, own, value } =
        Config::<Own>::read(weights.manifest(), text_section(weights.manifest()), defaults)?;
    let [root, model] = tower(weights);
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let windows = own.windows.of_layers(weights.manifest(), &dims)?;
    let layers = dims.layers(&model)?.zip(windows).map(|(layer, window)| {
        let attention = layer.at("self_attn");
        let bias = [own.attention_bias; 2];
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?
            .with_norm(QkNorm::load_heads(&attention, &dims)?);
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, false)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(&root, &model, &dims, layers, &[&rope])?))
}
