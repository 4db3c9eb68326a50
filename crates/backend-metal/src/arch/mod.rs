//! Model architectures: one file a family, one table of them all.

use mlx_rs::{Array, error::Result};

use crate::nn::{KvCache, Rows};

/// A loaded model: builds the graphs that compute it. Everything runs on the thread that loaded it.
pub trait Architecture {
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

    /// The logits `[.., vocab_size]` of hidden states `[.., hidden_size]`. Apart from [`hidden`](Self::hidden), so that a
    /// prompt pays for its last position only.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn logits(&self, hidden: &Array) -> Result<Array>;
}

/// What the engine must know about a model, whatever its family.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelConfig {
    /// The `model_type` of config.json.
    pub model_type: String,
    /// Ids of the embedding, and columns of the logits.
    pub vocab_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// For each layer, the positions that it attends to, itself included; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// Weights of the model, counted before quantisation.
    pub parameters: u64,
    /// The element type of weights that are not quantised: `bf16`, ….
    pub dtype: String,
    /// Ids that end a text, by config.json alone.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Bytes of the cache of one row of `tokens` tokens, with elements of `element_bytes` bytes.
    #[must_use]
    pub fn cache_bytes(&self, tokens: usize, element_bytes: usize) -> u64 {
        let positions: u64 =
            self.windows.iter().map(|window| window.map_or(tokens, |w| w.min(tokens)) as u64).sum();
        2 * positions * (self.kv_heads * self.head_dim * element_bytes) as u64
    }
}
