//! gpt-oss: mixtures of experts in four-bit floats, attention with sinks, a window on every other layer.

use std::rc::Rc;

use inference_core::{Dtype, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, positive, top_k};
use crate::{
    mlx::{MXFP4, QuantizedMatrix},
    nn::{
        Architecture, Attention, AttentionParams, Decoder, Dimensions, ExpertSizes, Experts, Gating, Linear,
        Matrix, Moe, PreNorm, Rope, Routing, Weight, WeightTransform, Weights,
    },
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    swiglu_alpha: f32,
    swiglu_limit: f32,
    #[serde(flatten)]
    layers: Layers,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": true, "tie_word_embeddings": false, "hidden_act": "silu", "head_dim": 64,
        "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "sliding_window": 128,
        "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
            "original_max_position_embeddings": 4096,
        },
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    let gating = Gating::Clamped {
        alpha: positive(manifest, "swiglu_alpha", own.swiglu_alpha)?,
        limit: positive(manifest, "swiglu_limit", own.swiglu_limit)?,
    };
    let top_k = top_k(manifest, own.num_experts_per_tok, own.num_local_experts)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 150_000.0)?);
    let types = own.layers.clone().types(manifest, &dims, |i| {
        if i % 2 == 0 { LayerType::SlidingAttention } else { LayerType::FullAttention }
    })?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let (attention, mlp) = (layer.at("self_attn"), layer.at("mlp"));
        let sinks = attention.take("sinks", &[dims.num_attention_heads])?;
        let window = own.layers.window(layer_type);
        let attend = AttentionParams { window, sinks: Some(sinks), ..AttentionParams::full(dims.scale()) };
        let bias = [own.attention_bias; 2];
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?;
        let mlp = Moe {
            router: Linear::load(&mlp.at("router"), own.num_local_experts, dims.hidden_size, true)?,
            experts: experts(&mlp.at("experts"), &dims, own.num_local_experts, gating)?,
            routing: Routing::softmax(top_k, true),
            shared: None,
        };
        PreNorm::load(&layer, &dims, self_attn, mlp)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}

/// The experts at `weights`: as mlx_lm writes them, as the publisher packs them, or in full.
fn experts(weights: &Weights<'_>, dims: &Dimensions, experts: usize, gating: Gating) -> LoadResult<Experts> {
    let (hidden, intermediate) = (dims.hidden_size, dims.intermediate_size);
    if weights.has_any("gate_proj") {
        let sizes = ExpertSizes { experts, hidden_size: hidden, intermediate_size: intermediate };
        return Experts::load_stacked(weights, sizes, gating, true);
    }
    let matrix = |name: &str, outputs: usize, inputs: usize| {
        let blocks = format!("{name}_blocks");
        if !weights.has(&blocks) {
            let shape = [vec![experts, inputs, outputs]];
            return Ok(Matrix::Dense(Weight::load(&[weights], None, name, &shape, WeightTransform::Stored)?));
        }
        let groups = inputs / MXFP4.group_size;
        let stored = [experts, outputs, groups, MXFP4.group_size * MXFP4.bits / 8];
        let scales = [Dtype::U8, Dtype::F8E8m0];
        Ok(Matrix::Quantized(QuantizedMatrix {
            weight: weights.take_words(&blocks, &stored, &[experts, outputs, inputs * MXFP4.bits / 32])?,
            scales: weights.take_as(&format!("{name}_scales"), &[experts, outputs, groups], &scales)?,
            biases: None,
            scheme: MXFP4,
        }))
    };
    let gate_up = matrix("gate_up_proj", 2 * intermediate, hidden)?;
    let down = matrix("down_proj", hidden, intermediate)?;
    let biases = [
        weights.take("gate_up_proj_bias", &[experts, 2 * intermediate])?,
        weights.take("down_proj_bias", &[experts, hidden])?,
    ];
    Ok(Experts::interleaved(gate_up, down, biases, gating))
}
