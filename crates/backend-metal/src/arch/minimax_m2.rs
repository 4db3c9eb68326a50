//! MiniMax M2: mixtures of experts with sigmoid scores, norms over all heads, and a part of each head rotated.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, top_k};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, ExpertSizes, Experts, Gating, Linear, Moe, PreNorm,
    QkNorm, Rope, Routing, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    num_local_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    rotary_dim: Option<usize>,
    use_qk_norm: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "tie_word_embeddings": false, "hidden_act": "silu", "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 196_608, "rms_norm_eps": 1e-6, "num_local_experts": 256,
        "num_experts_per_tok": 8, "use_qk_norm": true,
    });
    let manifest = weights.manifest();
    let Config { dims, own, mut value } = Config::<Own>::read(manifest, None, defaults)?;
    let top_k = top_k(manifest, own.num_experts_per_tok, own.num_local_experts)?;
    if let (Some(rotated), Some(config)) = (own.rotary_dim, value.as_object_mut())
        && !config.contains_key("partial_rotary_factor")
    {
        if rotated == 0 || rotated > dims.head_dim() || !rotated.is_multiple_of(2) {
            let reason = format!("{rotated}, expected an even number up to head_dim {}", dims.head_dim());
            return Err(Error::invalid_key(manifest.config_path(), "rotary_dim", reason));
        }
        let part = rotated as f64 / dims.head_dim() as f64;
        config.insert("partial_rotary_factor".to_owned(), json!(part));
    }
    let sizes = ExpertSizes {
        experts: own.num_local_experts,
        hidden_size: dims.hidden_size,
        intermediate_size: dims.intermediate_size,
    };
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 5_000_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, moe) = (layer.at("self_attn"), layer.at("block_sparse_moe"));
        let params = AttentionParams::full(dims.scale());
        let mut self_attn =
            Attention::load(&attention, dims.heads(), [false; 2], Some(rope.clone()), params)?;
        if own.use_qk_norm {
            self_attn = self_attn.with_norm(QkNorm::load_whole(&attention, &dims)?);
        }
        let bias = moe.take_wide("e_score_correction_bias", &[own.num_local_experts])?;
        let moe = Moe {
            router: Linear::load(&moe.at("gate"), own.num_local_experts, dims.hidden_size, false)?,
            routing: Routing { bias: Some(bias), ..Routing::sigmoid(top_k, true) },
            experts: Experts::load(&moe, ["w1", "w3", "w2"], sizes, Gating::Glu(dims.hidden_act))?,
            shared: None,
        };
        PreNorm::load(&layer, &dims, self_attn, moe)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
