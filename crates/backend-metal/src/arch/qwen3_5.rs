//! Qwen 3.5 and Qwen3-Next: three gated delta nets for each layer of gated attention, with or without mixtures of experts.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    config::{Config, Layers, parse, text_section, tower},
    qwen2_moe::SparseMlp,
};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, DeltaSizes, Dimensions, FeedForward, GatedDeltaNet,
    GatedMlp, Mixer, PreNorm, QkNorm, Rope, Weights, is_converted,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    full_attention_interval: usize,
    #[serde(flatten)]
    layers: Layers<LayerType>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    FullAttention,
    LinearAttention,
}

/// Binds a checkpoint without experts.
pub(super) fn load_dense(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load(weights, json!({}))
}

/// Binds a checkpoint with experts.
pub(super) fn load_moe(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load(
        weights,
        json!({
            "intermediate_size": 512, "num_key_value_heads": 2, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8, "norm_topk_prob": true,
            "decoder_sparse_step": 1,
        }),
    )
}

/// Binds a checkpoint of Qwen3-Next.
pub(super) fn load_next(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load(
        weights,
        json!({
            "intermediate_size": 5632, "num_key_value_heads": 2, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10,
            "norm_topk_prob": true, "decoder_sparse_step": 1,
        }),
    )
}

/// `family`: the defaults of the family, with those of experts where it has any.
fn load(weights: &Weights<'_>, family: Value) -> LoadResult<Box<dyn Architecture>> {
    let mut defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "head_dim": 256,
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "partial_rotary_factor": 0.25, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    });
    let has_experts = family.get("num_experts").is_some();
    if let (Value::Object(all), Value::Object(family)) = (&mut defaults, family) {
        all.extend(family);
    }
    let manifest = weights.manifest();
    let section = text_section(manifest);
    let Config { mut dims, own, value } = Config::<Own>::read(manifest, section, defaults)?;
    let sizes: DeltaSizes = parse(manifest, section, &value)?;
    sizes.check(manifest)?;
    let moe: Option<SparseMlp> = has_experts.then(|| parse(manifest, section, &value)).transpose()?;
    moe.iter().try_for_each(|moe| moe.check(manifest))?;
    if own.full_attention_interval == 0 {
        let reason = "0, expected a positive number";
        return Err(Error::invalid_key(manifest.config_path(), "full_attention_interval", reason));
    }
    let [root, model] = tower(weights);
    // The publisher stores norms minus one; mlx_lm adds it, and swaps the axes of convolutions.
    let convolution =
        dims.layers(&model)?.map(|layer| layer.at("linear_attn.conv1d")).find(|conv| conv.has("weight"));
    dims.norm_offset = !convolution.map_or(Ok(false), |conv| is_converted(&conv))?;
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000_000.0)?);
    let types = own.layers.clone().types(manifest, &dims, |i| {
        if (i + 1).is_multiple_of(own.full_attention_interval) {
            LayerType::FullAttention
        } else {
            LayerType::LinearAttention
        }
    })?;
    let layers = dims.layers(&model)?.zip(types).enumerate().map(|(i, (layer, layer_type))| {
        let mixer: Box<dyn Mixer> = match layer_type {
            LayerType::FullAttention => Box::new(attention(&layer.at("self_attn"), &dims, &own, &rope)?),
            LayerType::LinearAttention => {
                Box::new(GatedDeltaNet::load(&layer.at("linear_attn"), &dims, sizes)?)
            }
        };
        let mlp: Box<dyn FeedForward> = match &moe {
            Some(moe) => moe.load(&layer.at("mlp"), &dims, i)?,
            None => Box::new(GatedMlp::load(&layer.at("mlp"), &dims, false)?),
        };
        PreNorm::load(&layer, &dims, mixer, mlp)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(&root, &model, &dims, layers, &[&rope])?))
}

fn attention(weights: &Weights<'_>, dims: &Dimensions, own: &Own, rope: &Rc<Rope>) -> LoadResult<Attention> {
    let params = AttentionParams::full(dims.scale());
    let attention = Attention::load_gated(weights, dims.heads(), own.attention_bias, rope.clone(), params)?;
    Ok(attention.with_norm(QkNorm::load_heads(weights, dims)?))
}
