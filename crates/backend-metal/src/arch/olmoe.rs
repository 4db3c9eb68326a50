//! OLMoE: mixtures of experts, and norms over all heads of queries and keys together.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, positive, top_k};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, ExpertSizes, Experts, Gating, Linear, Moe, PreNorm,
    QkNorm, Rope, Routing, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    #[serde(default)]
    clip_qkv: Option<f32>,
    num_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "num_experts": 64,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts_per_tok": 8, "norm_topk_prob": false,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let top_k = top_k(manifest, own.num_experts_per_tok, own.num_experts)?;
    let clip = own.clip_qkv.map(|clip| positive(manifest, "clip_qkv", clip)).transpose()?;
    let sizes = ExpertSizes {
        experts: own.num_experts,
        hidden_size: dims.hidden_size,
        intermediate_size: dims.intermediate_size,
    };
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, mlp) = (layer.at("self_attn"), layer.at("mlp"));
        let (bias, params) = ([own.attention_bias; 2], AttentionParams::full(dims.scale()));
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?
            .with_norm(QkNorm::load_whole(&attention, &dims)?)
            .with_clip(clip);
        let names = ["gate_proj", "up_proj", "down_proj"];
        let moe = Moe {
            router: Linear::load(&mlp.at("gate"), own.num_experts, dims.hidden_size, false)?,
            routing: Routing::softmax(top_k, own.norm_topk_prob),
            experts: Experts::load(&mlp, names, sizes, Gating::Glu(dims.hidden_act))?,
            shared: None,
        };
        PreNorm::load(&layer, &dims, self_attn, moe)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
