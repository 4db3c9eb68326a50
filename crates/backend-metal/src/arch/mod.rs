//! Model architectures: one file a family, one table of them all.

mod config;
mod deepseek_v3;
mod gemma;
mod gemma2;
mod gemma3;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod lfm2;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod smollm3;
#[cfg(test)]
mod tests;

use inference_core::Result as LoadResult;

use self::SkippedPart::{Mtp, Vision};
use crate::nn::{Architecture, Weights};

/// A family of models.
#[derive(Debug)]
pub(crate) struct Family {
    /// What people call it.
    pub(crate) name: &'static str,
    /// The `model_type`s of config.json that it knows.
    pub(crate) model_types: &'static [&'static str],
    /// Binds a checkpoint.
    pub(crate) load: fn(&Weights<'_>) -> LoadResult<Box<dyn Architecture>>,
    /// Parts of checkpoints that it does without.
    pub(crate) skips: &'static [SkippedPart],
}

/// A part of a checkpoint that a family does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SkippedPart {
    /// What sees images.
    Vision,
    /// What hears.
    Audio,
    /// What predicts tokens after the next one.
    Mtp,
}

impl SkippedPart {
    /// Whether a tensor of this name is of the part.
    pub(crate) fn holds(self, tensor: &str) -> bool {
        let name = tensor.strip_prefix("model.").unwrap_or(tensor);
        let prefixes: &[&str] = match self {
            Self::Vision => &["vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "embed_vision."],
            Self::Audio => &["audio_tower.", "embed_audio."],
            Self::Mtp => &["mtp.", "language_model.mtp."],
        };
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Audio => "audio",
            Self::Mtp => "multi-token prediction",
        }
    }
}

// ANCHOR: table
/// Every family.
pub(crate) const ARCHITECTURES: &[Family] = &[
    Family { name: "DeepSeek V3, Kimi K2", model_types: &["deepseek_v3", "kimi_k2"], load: deepseek_v3::load, skips: &[] },
    Family { name: "Gemma", model_types: &["gemma"], load: gemma::load, skips: &[] },
    Family { name: "Gemma 2", model_types: &["gemma2"], load: gemma2::load, skips: &[] },
    Family { name: "Gemma 3", model_types: &["gemma3", "gemma3_text"], load: gemma3::load, skips: &[Vision] },
    Family { name: "GLM 4.5 to 4.7", model_types: &["glm4_moe"], load: glm4_moe::load, skips: &[] },
    Family { name: "GLM 4.7 Flash", model_types: &["glm4_moe_lite"], load: deepseek_v3::load_glm, skips: &[] },
    Family { name: "gpt-oss", model_types: &["gpt_oss"], load: gpt_oss::load, skips: &[] },
    Family { name: "Granite 3", model_types: &["granite"], load: granite::load, skips: &[] },
    Family { name: "LFM 2", model_types: &["lfm2"], load: lfm2::load_dense, skips: &[] },
    Family { name: "LFM 2 MoE", model_types: &["lfm2_moe"], load: lfm2::load_moe, skips: &[] },
    Family { name: "Llama 2, 3", model_types: &["llama"], load: llama::load, skips: &[] },
    Family { name: "Mistral", model_types: &["mistral"], load: mistral::load, skips: &[] },
    Family { name: "Mixtral", model_types: &["mixtral"], load: mixtral::load, skips: &[] },
    Family { name: "OLMo 2", model_types: &["olmo2"], load: olmo2::load, skips: &[] },
    Family { name: "Phi 3, 4", model_types: &["phi3"], load: phi3::load, skips: &[] },
    Family { name: "Qwen 2 MoE", model_types: &["qwen2_moe"], load: qwen2_moe::load, skips: &[] },
    Family { name: "Qwen 2, 2.5", model_types: &["qwen2"], load: qwen2::load, skips: &[] },
    Family { name: "Qwen 3", model_types: &["qwen3"], load: qwen3::load, skips: &[] },
    Family { name: "Qwen 3 MoE", model_types: &["qwen3_moe"], load: qwen3_moe::load, skips: &[] },
    Family { name: "Qwen 3.5", model_types: &["qwen3_5", "qwen3_5_text"], load: qwen3_5::load_dense, skips: &[Vision, Mtp] },
    Family { name: "Qwen 3.5 MoE", model_types: &["qwen3_5_moe", "qwen3_5_moe_text"], load: qwen3_5::load_moe, skips: &[Vision, Mtp] },
    Family { name: "Qwen3-Next", model_types: &["qwen3_next"], load: qwen3_5::load_next, skips: &[Mtp] },
    Family { name: "SmolLM 3", model_types: &["smollm3"], load: smollm3::load, skips: &[] },
];
// ANCHOR_END: table

/// Parts of tensors' names that transformers 5 changed, and what their publishers and mlx_lm call them.
const RENAMED: &[(&str, &str, &str)] = &[("mixtral", ".mlp.", ".block_sparse_moe.")];

/// A tensor's name as the publisher of its family gives it.
pub(crate) fn published_name(model_type: &str, name: &str) -> String {
    let renamed = RENAMED.iter().find(|(family, ..)| *family == model_type);
    renamed.map_or_else(|| name.to_owned(), |(_, new, old)| name.replace(new, old))
}

/// The family of a `model_type`, or why there is none: the types that there are.
pub(crate) fn lookup(model_type: &str) -> Result<&'static Family, String> {
    ARCHITECTURES.iter().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let mut known: Vec<_> = ARCHITECTURES.iter().flat_map(|family| family.model_types).copied().collect();
        known.sort_unstable();
        format!("it has no architecture {model_type:?}, only: {}", known.join(", "))
    })
}
