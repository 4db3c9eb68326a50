//! Phi 3.5 MoE: norms of mean and variance, and two experts for each token, which are weighted against those that nearly tie with them.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{self, indexing::take_along_axis},
    stop_gradient,
};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, top_k};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, Dimensions, ExpertSizes, Experts, FeedForward, Gating,
    LayerNorm, LayerNormBlock, Linear, Norm, Rope, Weights, mix,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    router_jitter_noise: f32,
    #[serde(flatten)]
    layers: Layers,
}

/// A mixture of experts that SparseMixer picks (Liu et al. 2024, arXiv 2409.12136).
#[derive(Debug)]
struct SparseMixture {
    router: Linear,
    experts: Experts,
    /// Scores further than this from the best one, relative to the larger of both, do not count against it.
    band: f32,
}

impl SparseMixture {
    fn load(weights: &Weights<'_>, dims: &Dimensions, own: &Own) -> LoadResult<Self> {
        let experts = own.num_local_experts;
        let (hidden_size, intermediate_size) = (dims.hidden_size, dims.intermediate_size);
        let sizes = ExpertSizes { experts, hidden_size, intermediate_size };
        Ok(Self {
            router: Linear::load(&weights.at("gate"), experts, hidden_size, false)?,
            experts: Experts::load(weights, ["w1", "w3", "w2"], sizes, Gating::Glu(dims.hidden_act))?,
            band: 2.0 * own.router_jitter_noise,
        })
    }

    /// Scores `[.., experts]` → the best expert among those that `left` has as numbers, and its weight, `[.., 1]` each.
    fn best(&self, scores: &Array, left: &Array) -> Result<[Array; 2]> {
        let pick = stop_gradient(ops::indexing::argmax_axis(left, -1, true)?)?;
        let top = take_along_axis(left, &pick, -1)?;
        let distance = top.subtract(scores)?.divide(ops::maximum(scores.abs()?, &top)?)?;
        let is_far = stop_gradient(distance.gt(Array::from_f32(self.band))?)?;
        let near = ops::select(&is_far, Array::from_f32(f32::NEG_INFINITY), left)?;
        let weight = take_along_axis(&ops::softmax_axis(&near, -1, true)?, &pick, -1)?;
        Ok([pick, weight])
    }
}

impl FeedForward for SparseMixture {
    fn forward(&self, x: &Array) -> Result<Array> {
        let scores = self.router.forward(x)?.as_dtype(Dtype::Float32)?;
        let first = self.best(&scores, &scores)?;
        let places = ops::arange::<_, u32>(0, scores.dim(-1), None)?;
        let left = ops::select(places.eq(&first[0])?, Array::from_f32(f32::NEG_INFINITY), &scores)?;
        let second = self.best(&scores, &left)?;
        let both = |part: usize| ops::concatenate(&[&first[part], &second[part]], -1);
        let outputs = self.experts.forward(x, &both(0)?)?;
        mix(&outputs, &both(1)?)
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "num_key_value_heads": 8,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "num_local_experts": 16, "num_experts_per_tok": 2,
        "router_jitter_noise": 0.01,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let invalid = |key: &str, reason: String| Error::invalid_key(manifest.config_path(), key, reason);
    if top_k(manifest, own.num_experts_per_tok, own.num_local_experts)? != 2 {
        return Err(invalid("num_experts_per_tok", format!("{}, expected 2", own.num_experts_per_tok)));
    }
    if !(own.router_jitter_noise >= 0.0 && own.router_jitter_noise.is_finite()) {
        let reason = format!("{}, expected a number from 0 on", own.router_jitter_noise);
        return Err(invalid("router_jitter_noise", reason));
    }
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 1_000_000.0)?);
    let norm =
        |weights: &Weights<'_>| LayerNorm::load(weights, dims.hidden_size, dims.rms_norm_eps, true, false);
    let types = own.layers.clone().types(manifest, &dims, |_| LayerType::SlidingAttention)?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let window = own.layers.window(layer_type);
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        LoadResult::Ok(LayerNormBlock {
            input_layernorm: norm(&layer.at("input_layernorm"))?,
            self_attn: Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?,
            post_attention_layernorm: Some(norm(&layer.at("post_attention_layernorm"))?),
            mlp: SparseMixture::load(&layer.at("block_sparse_moe"), &dims, &own)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let last = Norm::Layer(norm(&model.at("norm"))?);
    Ok(Box::new(Decoder::load_named(weights, &model, "embed_tokens", &dims, layers, &[&rope], last)?))
}
