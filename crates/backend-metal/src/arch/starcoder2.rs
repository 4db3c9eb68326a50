//! StarCoder 2: norms of mean and variance, biases everywhere, no gates, a window over all layers.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, LayerNorm, LayerNormBlock, Norm, PlainMlp, Rope,
    Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    use_bias: bool,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "use_bias": true, "tie_word_embeddings": true, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    });
    let manifest = weights.manifest();
    let renamed = [("norm_epsilon", "rms_norm_eps")];
    let Config { dims, own, value } = Config::<Own>::read_renamed(manifest, None, defaults, &renamed)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let norm =
        |weights: &Weights<'_>| LayerNorm::load(weights, dims.hidden_size, dims.rms_norm_eps, true, false);
    let types = own.layers.clone().types(manifest, &dims, |_| LayerType::SlidingAttention)?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let (attention, bias) = (layer.at("self_attn"), [own.use_bias; 2]);
        let window = own.layers.window(layer_type);
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        LoadResult::Ok(LayerNormBlock {
            input_layernorm: norm(&layer.at("input_layernorm"))?,
            self_attn: Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?,
            post_attention_layernorm: Some(norm(&layer.at("post_attention_layernorm"))?),
            mlp: PlainMlp::load(&layer.at("mlp"), ["c_fc", "c_proj"], &dims, own.use_bias)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let last = Norm::Layer(norm(&model.at("norm"))?);
    Ok(Box::new(Decoder::load_named(weights, &model, "embed_tokens", &dims, layers, &[&rope], last)?))
}
