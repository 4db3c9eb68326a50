//! Qwen 3: a Llama whose queries and keys are normalised head by head.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::{
    Architecture,
    config::{Config, LayerType, Layers},
    llama::PreNormBlock,
};
use crate::nn::{Attend, Attention, Decoder, GatedMlp, QkNorm, RmsNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    use_sliding_window: bool,
    max_window_layers: usize,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let Config { dims, own, value } = Config::<Own>::read(
        weights.manifest(),
        None,
        json!({
            "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "head_dim": 128,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "use_sliding_window": false,
            "sliding_window": 4096, "max_window_layers": 28,
        }),
    )?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let types = own.layers.clone().types(weights.manifest(), &dims, |i| {
        if i < own.max_window_layers { LayerType::FullAttention } else { LayerType::SlidingAttention }
    })?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let window = own.layers.window(layer_type).filter(|_| own.use_sliding_window);
        let attend = Attend { scale: dims.scale(), window, softcap: None, sinks: None };
        let norm = |name| RmsNorm::load(&layer.at(name), dims.hidden_size, dims.rms_norm_eps);
        let (attention, mlp) = (layer.at("self_attn"), layer.at("mlp"));
        let head_norm = |name| RmsNorm::load(&attention.at(name), dims.head_dim(), dims.rms_norm_eps);
        LoadResult::Ok(PreNormBlock {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(
                &attention,
                dims.heads(),
                [own.attention_bias; 2],
                Some(rope.clone()),
                attend,
            )?
            .with_norm(QkNorm::Heads(head_norm("q_norm")?, head_norm("k_norm")?)),
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: GatedMlp::load(&mlp, dims.hidden_size, dims.intermediate_size, dims.hidden_act, false)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, rope.switch())?))
}
