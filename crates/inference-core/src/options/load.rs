//! Options of a load.

use std::{any::Any, fmt, path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{Extensions, positive};
use crate::{Error, Feature, Result};

/// Options of a load.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Tokens of prompt and answer together; unset: the model's own.
    pub context_length: Option<usize>,
    /// The folder of a LoRA adapter to apply.
    pub adapter: Option<PathBuf>,
    /// Requests decoded at once; unset: the backend's choice.
    pub max_batch: Option<usize>,
    /// Prompt tokens computed at once; unset: the backend's choice.
    pub prefill_chunk: Option<usize>,
    /// Bytes of keys and values kept of ended texts, for prompts that begin as they did; 0 keeps none; unset: the backend's
    /// choice.
    pub prefix_cache: Option<u64>,
    /// The width of a quantised KV cache; unset: keys and values are not quantised.
    pub kv_bits: Option<KvBits>,
    /// Bytes that the engine may use; process-wide where its allocator is.
    pub memory_limit: Option<u64>,
    /// Bytes that the engine's allocator may keep for reuse.
    pub cache_limit: Option<u64>,
    /// Is told how far the load has come; a backend that cannot tell never calls it.
    pub on_progress: Option<Progress>,
    /// Cancels the load.
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

impl LoadOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds prompt and answer to this many tokens together.
    #[must_use]
    pub fn context_length(mut self, tokens: usize) -> Self {
        self.context_length = Some(tokens);
        self
    }

    /// Applies the LoRA adapter in this folder.
    #[must_use]
    pub fn adapter(mut self, folder: impl Into<PathBuf>) -> Self {
        self.adapter = Some(folder.into());
        self
    }

    /// Decodes at most this many requests at once; more wait.
    #[must_use]
    pub fn max_batch(mut self, requests: usize) -> Self {
        self.max_batch = Some(requests);
        self
    }

    /// Computes prompts in chunks of this many tokens.
    #[must_use]
    pub fn prefill_chunk(mut self, tokens: usize) -> Self {
        self.prefill_chunk = Some(tokens);
        self
    }

    /// Keeps at most this many bytes of keys and values of ended texts: a prompt that begins as one of them did computes only
    /// what is new. 0 keeps none.
    #[must_use]
    pub fn prefix_cache(mut self, bytes: u64) -> Self {
        self.prefix_cache = Some(bytes);
        self
    }

    /// Quantises the KV cache to this many bits: texts take about half or a quarter of the memory that they take in 16 bits, and
    /// differ a little. The load fails with [`Error::InvalidOption`](crate::Error::InvalidOption) where the width of the
    /// model's heads has no [`group_size`](KvBits::group_size).
    #[must_use]
    pub fn kv_bits(mut self, bits: KvBits) -> Self {
        self.kv_bits = Some(bits);
        self
    }

    /// Limits the engine's memory to this many bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Limits what the engine's allocator keeps for reuse to this many bytes; 0 keeps nothing.
    #[must_use]
    pub fn cache_limit(mut self, bytes: u64) -> Self {
        self.cache_limit = Some(bytes);
        self
    }

    /// Calls this as the load goes on, from a thread of the backend: it must be quick and must not block.
    #[must_use]
    pub fn on_progress(mut self, callback: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Progress(Arc::new(callback)));
        self
    }

    /// Cancels the load when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Adds an option of one backend; see the backend's documentation for its types.
    #[must_use]
    pub fn extension<T: Any + Send + Sync>(mut self, option: T) -> Self {
        self.extensions.insert(option);
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) names the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        positive("context_length", self.context_length)?;
        positive("max_batch", self.max_batch)?;
        positive("prefill_chunk", self.prefill_chunk)
    }

    /// The features that the set fields need.
    pub fn required_features(&self) -> impl Iterator<Item = Feature> {
        [
            self.context_length.map(|_| Feature::ContextLength),
            self.adapter.as_ref().map(|_| Feature::Adapter),
            self.max_batch.map(|_| Feature::MaxBatch),
            self.prefill_chunk.map(|_| Feature::PrefillChunk),
            self.prefix_cache.map(|_| Feature::PrefixCache),
            self.kv_bits.map(|_| Feature::KvBits),
            self.memory_limit.map(|_| Feature::MemoryLimit),
            self.cache_limit.map(|_| Feature::CacheLimit),
        ]
        .into_iter()
        .flatten()
    }
}

/// Bits of one element of keys and values that are quantised: whole numbers with a scale and a bias for each group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvBits {
    /// 4
    Four,
    /// 8
    Eight,
}

impl KvBits {
    /// How many they are.
    #[must_use]
    pub fn get(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// Elements that share a scale and a bias, of a head that is so wide: 64, or 32 where 64 does not divide the width, or none
    /// where 32 does not.
    #[must_use]
    pub fn group_size(self, head_dim: usize) -> Option<usize> {
        [64, 32].into_iter().find(|size| head_dim > 0 && head_dim.is_multiple_of(*size))
    }

    /// The error of a model whose heads are so wide and have no group size.
    #[must_use]
    pub fn unsupported_error(self, head_dim: usize) -> Error {
        let reason = format!(
            "{}: the model's heads are {head_dim} wide, which groups of 32 do not divide",
            self.get()
        );
        Error::invalid_option("kv_bits", reason)
    }
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Bytes of weights that are in place.
    pub loaded_bytes: u64,
    /// Bytes of all weights.
    pub total_bytes: u64,
}

impl LoadProgress {
    /// `loaded` bytes of `total`.
    #[must_use]
    pub fn new(loaded_bytes: u64, total_bytes: u64) -> Self {
        Self { loaded_bytes, total_bytes }
    }
}

/// Who is told how far a load has come. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(LoadProgress) + Send + Sync>);

impl Progress {
    /// Tells it.
    pub fn report(&self, progress: LoadProgress) {
        (self.0)(progress);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_divide_the_width_of_a_head() {
        for bits in [KvBits::Four, KvBits::Eight] {
            let groups = [128, 64, 96, 32, 80, 0].map(|head_dim| bits.group_size(head_dim));
            assert_eq!(groups, [Some(64), Some(64), Some(32), Some(32), None, None]);
        }
        let options = LoadOptions::new().kv_bits(KvBits::Four);
        assert_eq!(options.required_features().collect::<Vec<_>>(), [Feature::KvBits]);
    }
}
