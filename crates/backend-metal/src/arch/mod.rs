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

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};

pub(crate) use config::Dimensions;

use crate::nn::{Inventory, KvCache, Leaf, Rows, Weights};

/// A loaded model: builds the graphs that compute it. Everything runs on the thread that loaded it.
pub(crate) trait Architecture {
    /// What is known about it.
    fn config(&self) -> &ModelConfig;

    /// An empty cache for one row.
    fn new_cache(&self) -> KvCache;

    /// The last hidden states `[B, T, hidden_size]`, after the final norm, of `tokens` `[B, T]` (u32). Ids must be less than
    /// `config().vocab_size`: MLX's lookup is unchecked. After an error the rows' caches are of no further use.
    ///
    /// # Errors
    /// MLX's own, while the graph is built.
    fn hidden(&self, tokens: &Array, rows: Rows<'_>) -> Result<Array>;

    /// As [`hidden`](Self::hidden) of uncached rows, as a step of training wants it.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn hidden_to_learn(&self, tokens: &Array, lesson: &Lesson<'_>) -> Result<Array>;

    /// What of it can be trained.
    fn inventory(&self) -> &Inventory;

    /// The logits `[.., vocab_size]` of hidden states `[.., hidden_size]`. Apart from [`hidden`](Self::hidden), so that a
    /// prompt pays for its last position only.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn logits(&self, hidden: &Array) -> Result<Array>;
}

/// How a training step computes the blocks of a model.
#[derive(Debug, Default)]
pub(crate) struct Lesson<'a> {
    /// Where activations are computed anew in the backward pass in place of being kept: for each block, the leaves in it that
    /// are trained.
    pub(crate) recompute: Option<&'a [Vec<Rc<Leaf>>]>,
    /// The share that is dropped of what a block adds to the residual stream, and a key of chance for each block.
    pub(crate) dropout: Option<(f32, Vec<Array>)>,
}

/// What the engine must know about a model, whatever its family.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ModelConfig {
    /// The `model_type` of config.json.
    pub(crate) model_type: String,
    /// Ids of the embedding, and columns of the logits.
    pub(crate) vocab_size: usize,
    /// Transformer blocks.
    pub(crate) layers: usize,
    /// The width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Tokens of prompt and answer together.
    pub(crate) context_length: usize,
    /// Heads of keys and values.
    pub(crate) kv_heads: usize,
    /// The width of one head.
    pub(crate) head_dim: usize,
    /// For each layer, the positions that it attends to, itself included; `None` is all.
    pub(crate) windows: Vec<Option<usize>>,
    /// Weights of the model, counted before quantisation.
    pub(crate) parameters: u64,
    /// Whether positions are encoded by the length of the text that they are part of. Then chunks of a text need
    /// `KvCache::expect`, and rows of an uncached pass one length.
    pub(crate) length_dependent: bool,
    /// The element type of weights that are not quantised: `bf16`, ….
    pub(crate) dtype: String,
    /// Ids that end a text, by config.json alone.
    pub(crate) eos_token_ids: Vec<u32>,
}

/// A family of models.
#[derive(Debug)]
pub(crate) struct Family {
    /// The `model_type`s of config.json that it knows.
    pub(crate) model_types: &'static [&'static str],
    /// Binds a checkpoint.
    pub(crate) load: fn(&Weights<'_>) -> LoadResult<Box<dyn Architecture>>,
}

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

/// Parts of tensors' names that transformers 5 changed, and what their publishers and mlx_lm call them.
const RENAMED: &[(&str, &str, &str)] = &[("mixtral", ".mlp.", ".block_sparse_moe.")];

/// A tensor's name as the publisher of its family gives it.
pub(crate) fn published_name(model_type: &str, name: &str) -> String {
    let renamed = RENAMED.iter().find(|(family, ..)| *family == model_type);
    renamed.map_or_else(|| name.to_owned(), |(_, new, old)| name.replace(new, old))
}

/// The family of a `model_type`, or why there is none: the types that there are.
pub(crate) fn lookup(model_type: &str) -> std::result::Result<&'static Family, String> {
    ARCHITECTURES.iter().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let mut known: Vec<_> = ARCHITECTURES.iter().flat_map(|family| family.model_types).copied().collect();
        known.sort_unstable();
        format!("it has no architecture {model_type:?}, only: {}", known.join(", "))
    })
}
