//! Mixtral: a Mistral whose feed-forward blocks are mixtures of experts.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, top_k};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, ExpertSizes, Experts, Gating, Linear, Moe, PreNorm,
    Rope, Routing, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    num_local_experts: usize,
    num_experts_per_tok: usize,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "num_key_value_heads": 8, "tie_word_embeddings": false, "hidden_act": "silu",
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let top_k = top_k(manifest, own.num_experts_per_tok, own.num_local_experts)?;
    let sizes = ExpertSizes {
        experts: own.num_local_experts,
        hidden_size: dims.hidden_size,
        intermediate_size: dims.intermediate_size,
    };
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 1_000_000.0)?);
    let types = own.layers.clone().types(manifest, &dims, |_| LayerType::SlidingAttention)?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let attend =
            AttentionParams { window: own.layers.window(layer_type), ..AttentionParams::full(dims.scale()) };
        let (attention, published) = (layer.at("self_attn"), layer.at("block_sparse_moe"));
        // transformers 5 calls it as it does in other families.
        let moe = if layer.has_any("mlp") { layer.at("mlp") } else { published };
        let self_attn = Attention::load(&attention, dims.heads(), [false; 2], Some(rope.clone()), attend)?;
        let moe = Moe {
            router: Linear::load(&moe.at("gate"), own.num_local_experts, dims.hidden_size, false)?,
            experts: Experts::load(&moe, ["w1", "w3", "w2"], sizes, Gating::Glu(dims.hidden_act))?,
            routing: Routing::softmax(top_k, true),
            shared: None,
        };
        PreNorm::load(&layer, &dims, self_attn, moe)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
