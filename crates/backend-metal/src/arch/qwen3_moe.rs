//! Qwen 3 with mixtures of experts.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, text_section, tower};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, ExpertSizes, Experts, FeedForward, GatedMlp, Gating,
    Linear, Moe, PreNorm, QkNorm, Rope, Routing, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    use_sliding_window: bool,
    #[serde(default)]
    sliding_window: Option<usize>,
    decoder_sparse_step: usize,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
    moe_intermediate_size: usize,
    #[serde(alias = "num_local_experts")]
    num_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "use_sliding_window": false, "sliding_window": 4096,
        "decoder_sparse_step": 1, "norm_topk_prob": false,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, text_section(manifest), defaults)?;
    let invalid = |key: &str, reason: String| Error::invalid_key(manifest.config_path(), key, reason);
    if own.decoder_sparse_step == 0 {
        return Err(invalid("decoder_sparse_step", "0, expected a positive number".to_owned()));
    }
    let window = own.sliding_window.filter(|_| own.use_sliding_window);
    if window == Some(0) {
        return Err(invalid("sliding_window", "0, expected a positive number".to_owned()));
    }
    let top_k = super::config::top_k(manifest, own.num_experts_per_tok, own.num_experts)?;
    let sizes = ExpertSizes {
        experts: own.num_experts,
        hidden_size: dims.hidden_size,
        intermediate_size: own.moe_intermediate_size,
    };
    let [root, model] = tower(weights);
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.enumerate().map(|(i, layer)| {
        let (attention, mlp) = (layer.at("self_attn"), layer.at("mlp"));
        let bias = [own.attention_bias; 2];
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?
            .with_norm(QkNorm::load_heads(&attention, &dims)?);
        let dense = own.mlp_only_layers.contains(&i) || !(i + 1).is_multiple_of(own.decoder_sparse_step);
        let mlp: Box<dyn FeedForward> = if dense {
            Box::new(GatedMlp::load(&mlp, &dims, false)?)
        } else {
            let names = ["gate_proj", "up_proj", "down_proj"];
            Box::new(Moe {
                router: Linear::load(&mlp.at("gate"), own.num_experts, dims.hidden_size, false)?,
                experts: Experts::load(&mlp, names, sizes, Gating::Glu(dims.hidden_act))?,
                routing: Routing::softmax(top_k, own.norm_topk_prob),
                shared: None,
            })
        };
        PreNorm::load(&layer, &dims, self_attn, mlp)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(&root, &model, &dims, layers, &[&rope])?))
}
