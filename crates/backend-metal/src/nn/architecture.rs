//! What a loaded model is to the engine, whatever its family.

use std::rc::Rc;

use mlx_rs::{Array, error::Result};

use super::{cache::KvCache, forward_pass::Rows, parameter::Param, registry::ParamRegistry};

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
    fn hidden_for_training(&self, tokens: &Array, mode: &TrainMode<'_>) -> Result<Array>;

    /// What of it can be trained.
    fn registry(&self) -> &ParamRegistry;

    /// The logits `[.., vocab_size]` of hidden states `[.., hidden_size]`. Apart from [`hidden`](Self::hidden), so that a
    /// prompt pays for its last position only.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn logits(&self, hidden: &Array) -> Result<Array>;
}

/// How a training step computes the blocks of a model.
#[derive(Debug, Default)]
pub(crate) struct TrainMode<'a> {
    /// Where activations are computed anew in the backward pass in place of being kept: for each block, the params in it that
    /// are trained.
    pub(crate) recompute: Option<&'a [Vec<Rc<Param>>]>,
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
    /// `KvCache::set_expected_len`, and rows of an uncached pass one length.
    pub(crate) length_dependent: bool,
    /// The element type of weights that are not quantised: `bf16`, ….
    pub(crate) dtype: String,
    /// Ids that end a text, by config.json alone.
    pub(crate) eos_token_ids: Vec<u32>,
}
