//! A loaded model, as the engine sees it.

use std::rc::Rc;

use mlx_rs::{
    Array,
    error::{Exception, Result},
};

use super::{
    cache::{KvCache, LayerState},
    cpu::{Recorded, Unrecorded},
    cuda::{Description, Unsupported},
    forward_pass::Rows,
    packed::PackedTokens,
    parameter::Param,
    registry::ParamRegistry,
};

/// A loaded model: builds the graphs that compute it. Everything runs on the thread that loaded it.
pub(crate) trait Architecture {
    /// What the engine needs to know.
    fn config(&self) -> &ModelConfig;

    /// An empty cache for one row.
    fn new_cache(&self) -> KvCache;

    /// The last hidden states `[B, T, hidden_size]`, after the final norm, of `tokens` `[B, T]` (u32). Ids must be less than
    /// `config().vocab_size`: MLX's lookup is unchecked. After an error the rows' caches are of no further use.
    ///
    /// # Errors
    /// MLX's own, while the graph is built.
    fn hidden(&self, tokens: &Array, rows: Rows<'_>) -> Result<Array>;

    /// As [`hidden`](Self::hidden) of uncached rows, for a training step.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn hidden_for_training(&self, tokens: &Array, mode: &TrainMode<'_>) -> Result<Array>;

    /// What the kernels of CUDA need to know to compute a decode step, if they can.
    ///
    /// # Errors
    /// Why they cannot.
    fn describe(&self) -> std::result::Result<Description, Unsupported> {
        Err(Unsupported("models of this family".to_owned()))
    }

    /// Whether decode steps are one operation of the CPU's kernels, in the mode [`CpuKernels`](super::ExecMode::CpuKernels).
    ///
    /// # Errors
    /// Why they are not.
    fn records(&self) -> Recorded<()> {
        Err(Unrecorded::Never("models of this family"))
    }

    /// The trainable parameters.
    fn registry(&self) -> &ParamRegistry;

    /// The logits `[.., vocab_size]` of hidden states `[.., hidden_size]`. Apart from [`hidden`](Self::hidden), so that a
    /// prompt pays for its last position only.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn logits(&self, hidden: &Array) -> Result<Array>;

    /// The logits `[texts]` of pairs of texts, of their hidden states `[N, 1, hidden_size]`: how relevant the second text of each is to
    /// the first. Only where [`ModelConfig::scores`].
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn relevance(&self, hidden: &Array, texts: &PackedTokens) -> Result<Array> {
        let _ = (hidden, texts);
        Err(Exception::custom("the model scores no pairs of texts"))
    }
}

/// How a training step computes the blocks of a model.
#[derive(Debug, Default)]
pub(crate) struct TrainMode<'a> {
    /// Gradient checkpointing: activations are recomputed in the backward pass. For each block, its trained params.
    pub(crate) recompute: Option<&'a [Vec<Rc<Param>>]>,
    /// Residual dropout: the rate, and a random key for each block.
    pub(crate) dropout: Option<(f32, Vec<Array>)>,
}

/// What the engine needs to know about a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ModelConfig {
    /// Rows of the embedding, and columns of the logits.
    pub(crate) vocab_size: usize,
    /// Transformer blocks.
    pub(crate) layers: usize,
    /// The width of the residual stream.
    pub(crate) hidden_size: usize,
    /// The most tokens of prompt and answer together.
    pub(crate) context_length: usize,
    /// Heads of keys and values.
    pub(crate) kv_heads: usize,
    /// The width of one head.
    pub(crate) head_dim: usize,
    /// What each layer keeps of a text.
    pub(crate) states: Vec<LayerState>,
    /// The number of weights before quantisation.
    pub(crate) parameters: u64,
    /// Whether position encoding depends on the length of the whole text. Then chunks of a text need
    /// `KvCache::set_expected_len`, and rows of an uncached pass one length.
    pub(crate) length_dependent: bool,
    /// The element type of weights that are not quantised: `bf16`, ….
    pub(crate) dtype: String,
    /// Whether it generates text: an encoder does not, nor does a checkpoint without an output layer.
    pub(crate) generates: bool,
    /// Whether tokens attend both ways, and passes are of [`Rows::Packed`].
    pub(crate) encodes: bool,
    /// Whether it has a head that scores pairs of texts.
    pub(crate) scores: bool,
}

impl ModelConfig {
    /// The most bytes that a cache keeps of one position, and of its recurrent states.
    pub(crate) fn cache_bytes(&self) -> (u64, u64) {
        let positions = self.states.iter().filter_map(|state| state.attention);
        let recurrent = self.states.iter().filter_map(|state| state.recurrent);
        let position = positions.map(|kept| 4 * kept.elements as u64).fold(0, u64::saturating_add);
        let states = recurrent.map(|state| 4 * (state.floats + state.activations) as u64);
        (position, states.fold(0, u64::saturating_add))
    }
}
