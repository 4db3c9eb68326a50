//! Granite 4: Mamba 2 on most layers and attention on the others, with mixtures of experts beside a shared one, or that one alone.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    config::{Config, Layers, positive, top_k},
    granite::ScaledPreNorm,
};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, Dimensions, ExpertSizes, Experts, FeedForward,
    GatedMlp, Gating, Linear, Mamba2, Mixer, Moe, Rope, Routing, SharedExpert, SsmNorm, SsmSizes,
    TimeStepLimit, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    embedding_multiplier: f32,
    attention_multiplier: f32,
    residual_multiplier: f32,
    logits_scaling: f32,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    shared_intermediate_size: usize,
    #[serde(default)]
    position_embedding_type: Option<String>,
    mamba_n_heads: usize,
    mamba_n_groups: usize,
    mamba_d_state: usize,
    /// A number, or "auto".
    mamba_d_head: Value,
    mamba_d_conv: usize,
    mamba_expand: usize,
    mamba_conv_bias: bool,
    mamba_proj_bias: bool,
    #[serde(default)]
    time_step_limit: TimeStepLimit,
    #[serde(flatten)]
    layers: Layers<LayerType>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    #[serde(alias = "linear_attention")]
    Mamba,
    #[serde(alias = "full_attention")]
    Attention,
}

impl Own {
    fn ssm(&self, manifest: &ModelManifest, dims: &Dimensions) -> LoadResult<SsmSizes> {
        let inner = self.mamba_expand.saturating_mul(dims.hidden_size);
        let head_dim = match self.mamba_d_head.as_u64() {
            Some(head_dim) => head_dim as usize,
            None => inner / self.mamba_n_heads.max(1),
        };
        let sizes = SsmSizes {
            hidden_size: dims.hidden_size,
            heads: self.mamba_n_heads,
            head_dim,
            groups: self.mamba_n_groups,
            state: self.mamba_d_state,
            kernel: self.mamba_d_conv,
            conv_bias: self.mamba_conv_bias,
            activation: dims.hidden_act,
            proj_bias: [self.mamba_proj_bias; 2],
            time_step_limit: self.time_step_limit,
            norm: SsmNorm::AfterGate,
            multipliers: None,
            eps: dims.rms_norm_eps,
        };
        let keys = ["mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"];
        sizes.check(manifest, keys)?;
        if sizes.heads * sizes.head_dim != inner {
            let reason = format!("{head_dim} times mamba_n_heads is not mamba_expand times hidden_size");
            return Err(Error::invalid_key(manifest.config_path(), "mamba_d_head", reason));
        }
        Ok(sizes)
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "intermediate_size": 11008,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0, "num_local_experts": 8,
        "num_experts_per_tok": 2, "shared_intermediate_size": 1024, "mamba_n_heads": 128, "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_head": "auto", "mamba_d_conv": 4, "mamba_expand": 2,
        "mamba_conv_bias": true, "mamba_proj_bias": false,
    });
    let manifest = weights.manifest();
    let renamed = [("layers_block_type", "layer_types")];
    let Config { dims, own, value } = Config::<Own>::read_renamed(manifest, None, defaults, &renamed)?;
    let ssm = own.ssm(manifest, &dims)?;
    let scale = positive(manifest, "attention_multiplier", own.attention_multiplier)?;
    if own.num_local_experts > 0 {
        top_k(manifest, own.num_experts_per_tok, own.num_local_experts)?;
    }
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let sees = own.position_embedding_type.as_deref() == Some("rope");
    let types = own.layers.clone().types(manifest, &dims, |_| LayerType::Mamba)?;
    let layers = dims.layers(&model)?.zip(types).map(|(layer, layer_type)| {
        let mixer: Box<dyn Mixer> = match layer_type {
            LayerType::Mamba => Box::new(Mamba2::load(&layer.at("mamba"), ssm)?),
            LayerType::Attention => Box::new(Attention::load(
                &layer.at("self_attn"),
                dims.heads(),
                [own.attention_bias; 2],
                sees.then(|| rope.clone()),
                AttentionParams::full(scale),
            )?),
        };
        ScaledPreNorm::load(&layer, &dims, mixer, feed_forward(&layer, &dims, &own)?, own.residual_multiplier)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let ropes: &[&Rope] = if sees { &[&rope] } else { &[] };
    let decoder = Decoder::load(weights, &model, &dims, layers, ropes)?;
    Ok(Box::new(Decoder {
        embed_scale: Some(own.embedding_multiplier),
        logit_scale: Some(positive(manifest, "logits_scaling", own.logits_scaling)?.recip()),
        ..decoder
    }))
}

/// The feed-forward part of the layer at `weights`, by its publisher's names or by mlx_lm's.
fn feed_forward(weights: &Weights<'_>, dims: &Dimensions, own: &Own) -> LoadResult<Box<dyn FeedForward>> {
    let size = own.shared_intermediate_size;
    let shared = if weights.has_any("mlp") {
        GatedMlp::load_sized(&weights.at("mlp"), dims, size)?
    } else {
        let width = Dimensions { intermediate_size: size, ..dims.clone() };
        GatedMlp::load_fused(&weights.at("shared_mlp"), ["input_linear", "output_linear"], &width)?
    };
    if own.num_local_experts == 0 {
        return Ok(Box::new(shared));
    }
    let moe = weights.at("block_sparse_moe");
    let sizes = ExpertSizes {
        experts: own.num_local_experts,
        hidden_size: dims.hidden_size,
        intermediate_size: dims.intermediate_size,
    };
    let router = if moe.has_any("router.layer") { moe.at("router.layer") } else { moe.at("router") };
    Ok(Box::new(Moe {
        router: Linear::load(&router, own.num_local_experts, dims.hidden_size, false)?,
        routing: Routing::softmax(own.num_experts_per_tok, true),
        experts: Experts::load_fused(
            &moe,
            ["input_linear", "output_linear"],
            sizes,
            Gating::Glu(dims.hidden_act),
        )?,
        shared: Some(SharedExpert { mlp: shared, gate: None }),
    }))
}
