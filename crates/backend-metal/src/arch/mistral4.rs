//! Mistral Small 4: latent attention as in DeepSeek V3, with queries that are scaled by their positions, and experts that are picked by
//! their probabilities.

use inference_core::Result as LoadResult;
use serde_json::json;

use super::{config::text_section, deepseek_v3::load_with};
use crate::nn::{Architecture, Scoring, Weights};

/// Binds a checkpoint, or the language tower of a multimodal one.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load_with(
        weights,
        text_section(weights.manifest()),
        Scoring::Softmax,
        json!({
            "max_position_embeddings": 1_048_576, "rms_norm_eps": 1e-6, "kv_lora_rank": 256, "q_lora_rank": 1024,
            "qk_nope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 2048, "n_routed_experts": 128,
            "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 4,
            "first_k_dense_replace": 0,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 128.0,
                "original_max_position_embeddings": 8192, "beta_fast": 32.0, "beta_slow": 1.0,
                "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
            },
        }),
    )
}
