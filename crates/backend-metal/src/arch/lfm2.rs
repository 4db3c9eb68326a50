//! LFM 2: short convolutions with gates, and attention on some layers; with or without mixtures of experts.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{Config, Layers, parse, positive, top_k};
use crate::{
    mlx::slice,
    nn::{
        self, Architecture, Attention, AttentionParams, CausalConv, Decoder, Dimensions, ExpertSizes,
        Experts, FeedForward, ForwardPass, GatedMlp, Gating, LayerState, Linear, Mixer, Moe, Norm, PreNorm,
        QkNorm, Recorded, Recording, Rope, Routing, Weights,
    },
};

#[derive(Debug, Deserialize)]
struct Own {
    conv_bias: bool,
    #[serde(rename = "conv_L_cache")]
    conv_l_cache: usize,
    #[serde(default)]
    full_attn_idxs: Option<Vec<usize>>,
    #[serde(flatten)]
    layers: Layers<LayerType>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    FullAttention,
    Conv,
}

/// How the width of the feed-forward blocks follows from `intermediate_size`.
#[derive(Debug, Deserialize)]
struct Width {
    block_auto_adjust_ff_dim: bool,
    #[serde(default)]
    block_ffn_dim_multiplier: Option<f64>,
    block_multiple_of: usize,
}

#[derive(Debug, Deserialize)]
struct Sparse {
    moe_intermediate_size: usize,
    num_dense_layers: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
    use_expert_bias: bool,
    routed_scaling_factor: f32,
    norm_topk_prob: bool,
}

/// A convolution between two gates: `out(c · conv(b · x))`.
#[derive(Debug)]
struct ShortConv {
    in_proj: Linear,
    conv: CausalConv,
    out_proj: Linear,
}

impl Mixer for ShortConv {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let width = x.dim(2);
        let all = self.in_proj.forward(x)?;
        let part = |at: i32| slice(&all, 2, at * width, (at + 1) * width);
        let gated = part(0)?.multiply(part(2)?)?;
        let mixed = pass.recur(layer, |input| {
            let window = input.states.as_ref().and_then(|states| states.first());
            let [mixed, window] = self.conv.forward(&gated, &input, window)?;
            Ok((mixed, vec![window]))
        })?;
        self.out_proj.forward(&part(1)?.multiply(mixed)?)
    }

    fn record(&self, x: nn::Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let (width, all) = (x.width(), recording.linear(x, &self.in_proj)?);
        let [b, c, x] = [0, 1, 2].map(|at| recording.part(all, at * width));
        let gated = recording.multiply([b, x], width);
        let mixed = self.conv.record(gated, recording, layer)?;
        let mixed = recording.multiply([c, recording.part(mixed, 0)], width);
        recording.linear(mixed, &self.out_proj)
    }

    fn state(&self) -> LayerState {
        LayerState::recurrent(0, self.conv.state())
    }
}

/// Binds a checkpoint without experts.
pub(super) fn load_dense(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load(weights, |manifest, dims, value| {
        let width: Width = parse(manifest, None, value)?;
        let mut size = dims.intermediate_size;
        if width.block_auto_adjust_ff_dim {
            size = (2 * size) / 3;
            if let Some(factor) = width.block_ffn_dim_multiplier {
                size = (factor * size as f64) as usize;
                size = size.div_ceil(width.block_multiple_of.max(1)).saturating_mul(width.block_multiple_of);
            }
        }
        if size == 0 || size > 1 << 24 {
            let reason = format!("gives feed-forward blocks of {size} elements, expected a positive number");
            return Err(Error::invalid_key(manifest.config_path(), "block_ffn_dim_multiplier", reason));
        }
        let dims = Dimensions { intermediate_size: size, ..dims.clone() };
        Ok(Box::new(move |weights: &Weights<'_>, _| mlp(weights, &dims)))
    })
}

/// Binds a checkpoint with experts.
pub(super) fn load_moe(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load(weights, |manifest, dims, value| {
        let own: Sparse = parse(manifest, None, value)?;
        let top_k = top_k(manifest, own.num_experts_per_tok, own.num_experts)?;
        let scale = positive(manifest, "routed_scaling_factor", own.routed_scaling_factor)?;
        let dims = dims.clone();
        Ok(Box::new(move |weights: &Weights<'_>, layer| {
            if layer < own.num_dense_layers {
                return mlp(weights, &dims);
            }
            let sizes = ExpertSizes {
                experts: own.num_experts,
                hidden_size: dims.hidden_size,
                intermediate_size: own.moe_intermediate_size,
            };
            let bias = own.use_expert_bias.then(|| weights.take_wide("expert_bias", &[own.num_experts]));
            let routing = Routing {
                bias: bias.transpose()?,
                scale,
                epsilon: 1e-6,
                ..Routing::sigmoid(top_k, own.norm_topk_prob)
            };
            Ok(Box::new(Moe {
                router: Linear::load(&weights.at("gate"), own.num_experts, dims.hidden_size, false)?,
                routing,
                experts: Experts::load(weights, ["w1", "w3", "w2"], sizes, Gating::Glu(dims.hidden_act))?,
                shared: None,
            }))
        }))
    })
}

/// The feed-forward part at `weights`, by its publisher's names or by mlx_lm's.
fn mlp(weights: &Weights<'_>, dims: &Dimensions) -> LoadResult<Box<dyn FeedForward>> {
    let names =
        if weights.has_any("w1") { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
    Ok(Box::new(GatedMlp::load_named(weights, names, dims)?))
}

/// What loads the feed-forward part of a layer.
type LoadMlp = Box<dyn Fn(&Weights<'_>, usize) -> LoadResult<Box<dyn FeedForward>>>;

fn load(
    weights: &Weights<'_>,
    feed_forward: impl FnOnce(&ModelManifest, &Dimensions, &Value) -> LoadResult<LoadMlp>,
) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "tie_word_embeddings": true, "hidden_act": "silu", "num_key_value_heads": 8, "conv_bias": false,
        "max_position_embeddings": 128_000, "rms_norm_eps": 1e-5, "conv_L_cache": 3, "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": true, "num_dense_layers": 2,
        "use_expert_bias": true, "routed_scaling_factor": 1.0, "norm_topk_prob": true,
    });
    let renamed = [
        ("norm_eps", "rms_norm_eps"),
        ("block_norm_eps", "rms_norm_eps"),
        ("tie_embedding", "tie_word_embeddings"),
        ("block_ff_dim", "intermediate_size"),
    ];
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read_renamed(manifest, None, defaults, &renamed)?;
    if !(2..=1 << 16).contains(&own.conv_l_cache) {
        let reason = format!("{}, expected a number from 2 to 65536", own.conv_l_cache);
        return Err(Error::invalid_key(manifest.config_path(), "conv_L_cache", reason));
    }
    let feed_forward = feed_forward(manifest, &dims, &value)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 1_000_000.0)?);
    let types = own.layers.clone().types(manifest, &dims, |i| match &own.full_attn_idxs {
        Some(full) if !full.contains(&i) => LayerType::Conv,
        _ => LayerType::FullAttention,
    })?;
    let layers = dims.layers(&model)?.zip(types).enumerate().map(|(i, (layer, layer_type))| {
        LoadResult::Ok(PreNorm {
            input_layernorm: dims.norm(&layer.at("operator_norm"))?,
            self_attn: match layer_type {
                LayerType::FullAttention => attention(&layer.at("self_attn"), &dims, &rope)?,
                LayerType::Conv => short_conv(&layer.at("conv"), &dims, &own)?,
            },
            post_attention_layernorm: dims.norm(&layer.at("ffn_norm"))?,
            mlp: feed_forward(&layer.at("feed_forward"), i)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let norm = Norm::Rms(dims.norm(&model.at("embedding_norm"))?);
    Ok(Box::new(Decoder::load_named(weights, &model, "embed_tokens", &dims, layers, &[&rope], norm)?))
}

fn attention(weights: &Weights<'_>, dims: &Dimensions, rope: &Rc<Rope>) -> LoadResult<Box<dyn Mixer>> {
    let (names, params) = (["q_proj", "k_proj", "v_proj", "out_proj"], AttentionParams::full(dims.scale()));
    let attention =
        Attention::load_named(weights, names, dims.heads(), [false; 2], Some(rope.clone()), params)?;
    let norms = QkNorm::load_named(weights, ["q_layernorm", "k_layernorm"], dims)?;
    Ok(Box::new(attention.with_norm(norms)))
}

fn short_conv(weights: &Weights<'_>, dims: &Dimensions, own: &Own) -> LoadResult<Box<dyn Mixer>> {
    let (hidden, bias) = (dims.hidden_size, own.conv_bias);
    Ok(Box::new(ShortConv {
        in_proj: Linear::load(&weights.at("in_proj"), 3 * hidden, hidden, bias)?,
        conv: CausalConv::load(&weights.at("conv"), [hidden, own.conv_l_cache], bias, None)?,
        out_proj: Linear::load(&weights.at("out_proj"), hidden, hidden, bias)?,
    }))
}
