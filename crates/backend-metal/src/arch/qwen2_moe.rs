//! Qwen 2 with mixtures of experts, of which one serves every token.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::{
    config::{Config, top_k},
    qwen2::Windows,
};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, Dimensions, ExpertSizes, Experts, FeedForward,
    GatedMlp, Gating, Linear, Moe, PreNorm, Rope, Routing, SharedExpert, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    qkv_bias: bool,
    #[serde(flatten)]
    windows: Windows,
    #[serde(flatten)]
    moe: SparseMlp,
}

/// Which layers are mixtures of experts, and how those look.
#[derive(Debug, Deserialize)]
pub(super) struct SparseMlp {
    decoder_sparse_step: usize,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
    moe_intermediate_size: usize,
    /// 0: there is no shared expert.
    #[serde(default)]
    shared_expert_intermediate_size: usize,
    #[serde(alias = "num_local_experts")]
    num_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
}

impl SparseMlp {
    /// Checks that the sizes make sense.
    pub(super) fn check(&self, manifest: &ModelManifest) -> LoadResult<()> {
        const LARGEST: usize = 1 << 24;
        let sizes = [
            ("decoder_sparse_step", self.decoder_sparse_step),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("shared_expert_intermediate_size", self.shared_expert_intermediate_size.max(1)),
        ];
        for (key, size) in sizes {
            if size == 0 || size > LARGEST {
                let reason = format!("{size}, expected a number from 1 to {LARGEST}");
                return Err(Error::invalid_key(manifest.config_path(), key, reason));
            }
        }
        top_k(manifest, self.num_experts_per_tok, self.num_experts).map(drop)
    }

    /// The feed-forward part of layer `i`, at `weights`.
    pub(super) fn load(
        &self,
        weights: &Weights<'_>,
        dims: &Dimensions,
        i: usize,
    ) -> LoadResult<Box<dyn FeedForward>> {
        if self.mlp_only_layers.contains(&i) || !(i + 1).is_multiple_of(self.decoder_sparse_step) {
            return Ok(Box::new(GatedMlp::load(weights, dims, false)?));
        }
        let sizes = ExpertSizes {
            experts: self.num_experts,
            hidden_size: dims.hidden_size,
            intermediate_size: self.moe_intermediate_size,
        };
        let shared = (self.shared_expert_intermediate_size > 0).then(|| {
            let (mlp, size) = (weights.at("shared_expert"), self.shared_expert_intermediate_size);
            LoadResult::Ok(SharedExpert {
                mlp: GatedMlp::load_sized(&mlp, dims, size)?,
                gate: Some(Linear::load(&weights.at("shared_expert_gate"), 1, dims.hidden_size, false)?),
            })
        });
        let names = ["gate_proj", "up_proj", "down_proj"];
        Ok(Box::new(Moe {
            router: Linear::load(&weights.at("gate"), self.num_experts, dims.hidden_size, false)?,
            routing: Routing::softmax(self.num_experts_per_tok, self.norm_topk_prob),
            experts: Experts::load(weights, names, sizes, Gating::Glu(dims.hidden_act))?,
            shared: shared.transpose()?,
        }))
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "qkv_bias": true, "tie_word_embeddings": false, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
        "decoder_sparse_step": 1, "norm_topk_prob": false, "shared_expert_intermediate_size": 5632,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, None, defaults)?;
    own.moe.check(manifest)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let windows =
        own.windows.by_rule(manifest, &dims, |i| i % 2 == 0 && i < own.windows.max_window_layers)?;
    let layers = dims.layers(&model)?.zip(windows).enumerate().map(|(i, (layer, window))| {
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let (attention, bias) = (layer.at("self_attn"), [own.qkv_bias, false]);
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?;
        PreNorm::load(&layer, &dims, self_attn, own.moe.load(&layer.at("mlp"), &dims, i)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
