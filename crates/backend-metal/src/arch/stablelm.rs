//! StableLM: norms of mean and variance, a quarter of each head rotated.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, Dimensions, GatedMlp, LayerNorm, LayerNormBlock, Norm,
    QkNorm, Rope, Weight, WeightTransform, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    use_qkv_bias: bool,
    qk_layernorm: bool,
    use_parallel_residual: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false, "tie_word_embeddings": false,
        "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
    });
    let renamed = [("layer_norm_eps", "rms_norm_eps"), ("norm_eps", "rms_norm_eps")];
    let Config { dims, own, value } =
        Config::<Own>::read_renamed(weights.manifest(), None, defaults, &renamed)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let norm =
        |weights: &Weights<'_>| LayerNorm::load(weights, dims.hidden_size, dims.rms_norm_eps, true, false);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let bias = [own.use_qkv_bias, false];
        let mut self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        if own.qk_layernorm {
            let heads = dims.heads();
            let norms = [
                head_norms(&attention.at("q_layernorm.norms"), heads.heads, &dims)?,
                head_norms(&attention.at("k_layernorm.norms"), heads.kv_heads, &dims)?,
            ];
            self_attn = self_attn.with_norm(QkNorm::Own(norms, dims.rms_norm_eps));
        }
        let after = (!own.use_parallel_residual).then(|| norm(&layer.at("post_attention_layernorm")));
        LoadResult::Ok(LayerNormBlock {
            input_layernorm: norm(&layer.at("input_layernorm"))?,
            self_attn,
            post_attention_layernorm: after.transpose()?,
            mlp: GatedMlp::load(&layer.at("mlp"), &dims, false)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let last = Norm::Layer(norm(&model.at("norm"))?);
    Ok(Box::new(Decoder::load_named(weights, &model, "embed_tokens", &dims, layers, &[&rope], last)?))
}

/// The weights of the norms of so many heads, in one.
fn head_norms(weights: &Weights<'_>, heads: usize, dims: &Dimensions) -> LoadResult<Weight> {
    // The files must have them before anything is sized by their number.
    let last = weights.index(heads.saturating_sub(1));
    last.info("weight")?;
    let parts: Vec<_> = (0..heads).map(|head| weights.index(head)).collect();
    let parts: Vec<_> = parts.iter().collect();
    Weight::load(&parts, None, "weight", &vec![vec![dims.head_dim()]; heads], WeightTransform::Stored)
}
