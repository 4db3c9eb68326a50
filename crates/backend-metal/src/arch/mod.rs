//! Model architectures: one file a family, one table of them all.

mod config;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;
#[cfg(test)]
mod tests;

use inference_core::Result as LoadResult;

use crate::nn::{Architecture, Weights};

/// A family of models.
#[derive(Debug)]
pub(crate) struct Family {
    /// The `model_type`s of config.json that it knows.
    pub(crate) model_types: &'static [&'static str],
    /// Binds a checkpoint.
    pub(crate) load: fn(&Weights<'_>) -> LoadResult<Box<dyn Architecture>>,
}

// ANCHOR: table
/// Every family.
pub(crate) const ARCHITECTURES: &[Family] = &[
    Family { model_types: &["gemma"], load: gemma::load },
    Family { model_types: &["gemma2"], load: gemma2::load },
    Family { model_types: &["gemma3", "gemma3_text"], load: gemma3::load },
    Family { model_types: &["gpt_oss"], load: gpt_oss::load },
    Family { model_types: &["granite"], load: granite::load },
    Family { model_types: &["llama"], load: llama::load },
    Family { model_types: &["mistral"], load: mistral::load },
    Family { model_types: &["mixtral"], load: mixtral::load },
    Family { model_types: &["olmo2"], load: olmo2::load },
    Family { model_types: &["phi3"], load: phi3::load },
    Family { model_types: &["qwen2"], load: qwen2::load },
    Family { model_types: &["qwen3"], load: qwen3::load },
    Family { model_types: &["qwen3_moe"], load: qwen3_moe::load },
    Family { model_types: &["smollm3"], load: smollm3::load },
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
