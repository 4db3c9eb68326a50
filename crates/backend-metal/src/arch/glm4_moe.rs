//! GLM 4.5, 4.6 and 4.7: attention with half of each head rotated, and mixtures of experts that are picked from the best groups.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::{
    config::{Config, parse},
    deepseek_v3::{GroupedExperts, skip_mtp_layers},
};
use crate::nn::{Architecture, Attention, AttentionParams, Decoder, PreNorm, QkNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    use_qk_norm: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "num_key_value_heads": 8,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
        "use_qk_norm": false, "moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "n_routed_experts": 128, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "norm_topk_prob": true,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let moe: GroupedExperts = parse(manifest, None, &value)?;
    moe.check(manifest, &dims)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.enumerate().map(|(i, layer)| {
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias, false]);
        let params = AttentionParams::full(dims.scale());
        let mut self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        if own.use_qk_norm {
            self_attn = self_attn.with_norm(QkNorm::load_heads(&attention, &dims)?);
        }
        PreNorm::load(&layer, &dims, self_attn, moe.load(&layer.at("mlp"), &dims, i)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    skip_mtp_layers(weights, &dims);
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
