//! ERNIE 4.5 with mixtures of experts, some of which serve every token.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, top_k};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, Dimensions, ExpertSizes, Experts, FeedForward,
    GatedMlp, Gating, Linear, Moe, PreNorm, Rope, Routing, SharedExpert, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    use_bias: bool,
    moe_intermediate_size: usize,
    moe_k: usize,
    moe_num_experts: usize,
    moe_num_shared_experts: usize,
    moe_layer_start_index: usize,
    /// -1 is the last layer.
    moe_layer_end_index: i64,
    moe_layer_interval: usize,
}

impl Own {
    fn is_sparse(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.moe_layer_interval)
            && layer >= self.moe_layer_start_index
            && (self.moe_layer_end_index < 0 || layer as i64 <= self.moe_layer_end_index)
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "use_bias": false, "tie_word_embeddings": true, "hidden_act": "silu", "num_key_value_heads": 4,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "moe_intermediate_size": 1536, "moe_k": 6,
        "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    top_k(manifest, own.moe_k, own.moe_num_experts)?;
    let sizes = [
        ("moe_layer_interval", own.moe_layer_interval),
        ("moe_intermediate_size", own.moe_intermediate_size),
        ("moe_num_shared_experts", own.moe_num_shared_experts.max(1)),
    ];
    for (key, size) in sizes {
        if size == 0 || size > 1 << 20 {
            let reason = format!("{size}, expected a number from 1 to 1048576");
            return Err(Error::invalid_key(manifest.config_path(), key, reason));
        }
    }
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 500_000.0)?.interleaved());
    let layers = dims.layers(&model)?.enumerate().map(|(i, layer)| {
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let bias = [own.use_bias; 2];
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        let mlp: Box<dyn FeedForward> = if own.is_sparse(i) {
            Box::new(moe(&layer.at("mlp"), &dims, &own)?)
        } else {
            Box::new(GatedMlp::load(&layer.at("mlp"), &dims, own.use_bias)?)
        };
        PreNorm::load(&layer, &dims, self_attn, mlp)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}

fn moe(weights: &Weights<'_>, dims: &Dimensions, own: &Own) -> LoadResult<Moe> {
    let experts = own.moe_num_experts;
    let (hidden_size, intermediate_size) = (dims.hidden_size, own.moe_intermediate_size);
    let sizes = ExpertSizes { experts, hidden_size, intermediate_size };
    let shared = (own.moe_num_shared_experts > 0).then(|| {
        let width =
            Dimensions { intermediate_size: own.moe_num_shared_experts * intermediate_size, ..dims.clone() };
        LoadResult::Ok(SharedExpert {
            mlp: GatedMlp::load(&weights.at("shared_experts"), &width, own.use_bias)?,
            gate: None,
        })
    });
    // The publisher keeps the bias beside the router, transformers within.
    let beside = weights.at("moe_statics");
    let statics = if beside.has_any("") { beside } else { weights.at("gate.moe_statics") };
    let bias = statics.take_wide("e_score_correction_bias", &[1, experts])?;
    let names = ["gate_proj", "up_proj", "down_proj"];
    Ok(Moe {
        router: Linear::load(&weights.at("gate"), experts, hidden_size, false)?,
        routing: Routing { bias: Some(bias), ..Routing::softmax(own.moe_k, true) },
        experts: Experts::load(weights, names, sizes, Gating::Glu(dims.hidden_act))?,
        shared: shared.transpose()?,
    })
}
