//! The features of a backend. The core refuses options that need others, and the conformance kit chooses its clauses by them.

use std::fmt;

use serde::Serialize;

macro_rules! features {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// One thing that a backend may or may not be able to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Feature { $($(#[$doc])* $variant,)+ }

        impl Feature {
            /// Every feature, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in messages and in JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

features! {
    /// `TextModel::generate`.
    Generate = "generate",
    /// `Prompt::Chat`.
    Chat = "chat",
    /// Tools and extra variables given to the chat template.
    ChatTemplateOptions = "chat-template-options",
    /// `TextModel::classify`.
    Classify = "classify",
    /// Full logits in a classification.
    Logits = "logits",
    /// A temperature above zero: sampling instead of greedy decoding.
    Sampling = "sampling",
    /// A seed that makes a request reproducible, whatever other requests run.
    Seed = "seed",
    /// Nucleus sampling.
    TopP = "top-p",
    /// The minimum-probability filter.
    MinP = "min-p",
    /// The k likeliest tokens.
    TopK = "top-k",
    /// Exclude top choices.
    Xtc = "xtc",
    /// Additive biases on logits.
    LogitBias = "logit-bias",
    /// The multiplicative repetition penalty.
    RepetitionPenalty = "repetition-penalty",
    /// The presence penalty.
    PresencePenalty = "presence-penalty",
    /// The frequency penalty.
    FrequencyPenalty = "frequency-penalty",
    /// Log-probabilities of tokens.
    LogProbabilities = "log-probabilities",
    /// Stop strings and further stop tokens.
    Stop = "stop",
    /// A minimum number of tokens before the end of the text.
    MinTokens = "min-tokens",
    /// A logits processor of the caller.
    LogitsProcessor = "logits-processor",
    /// Answers that are held to a shape: `GenerateOptions::constraint`, strict tools, required calls.
    Constraint = "constraint",
    /// A limit on the tokens of reasoning.
    ThinkingBudget = "thinking-budget",
    /// LoRA adapters applied at load.
    Adapter = "adapter",
    /// A context length chosen at load.
    ContextLength = "context-length",
    /// A limit on the memory that the engine may use.
    MemoryLimit = "memory-limit",
    /// A limit on the allocator's cache.
    CacheLimit = "cache-limit",
    /// A cap on requests decoded at once.
    MaxBatch = "max-batch",
    /// A prefill chunk chosen at load.
    PrefillChunk = "prefill-chunk",
    /// A prefix cache: a memory budget for the KV caches of ended requests, reused by prompts with the same beginning.
    PrefixCache = "prefix-cache",
    /// Keys and values in 8 or 4 bits.
    KvBits = "kv-bits",
    /// A policy for texts that outgrow the context.
    ContextOverflow = "context-overflow",
    /// `TextModel::session` and `TextModel::load_session`.
    Session = "session",
    /// `TextModel::trainable`.
    Train = "train",
    /// `TextModel::tokenize` and `TextModel::decode`.
    Tokenize = "tokenize",
    /// `TextModel::embed`.
    Embed = "embed",
    /// `TextModel::rerank`.
    Rerank = "rerank",
}

impl Serialize for Feature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of [`Feature`]s. The default is the empty set: a backend names what it can do one by one, and so never claims a
/// feature that a later version of the contract adds.
///
/// ```
/// use inference_core::{Feature, backend::Capabilities};
///
/// const MINE: Capabilities = Capabilities::from_features(&[Feature::Generate, Feature::Seed]);
/// assert!(MINE.has(Feature::Seed) && !MINE.has(Feature::Classify));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// The set of these features.
    #[must_use]
    pub const fn from_features(features: &[Feature]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < features.len() {
            bits |= 1 << features[i] as u8;
            i += 1;
        }
        Self(bits)
    }

    /// This set and one more feature.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | 1 << feature as u8)
    }

    /// This set without one feature.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !(1 << feature as u8))
    }

    /// Whether the feature is in the set.
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u8) != 0
    }

    /// The features of the set, in the order of declaration.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |feature| self.has(*feature))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_assumed_and_sets_add_up() {
        assert_eq!(Capabilities::default().iter().count(), 0);
        assert_eq!(Capabilities::from_features(Feature::ALL).iter().count(), Feature::ALL.len());
        let set = Capabilities::from_features(&[Feature::Chat]).with(Feature::Train);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Feature::Chat, Feature::Train]);
        assert!(!set.without(Feature::Chat).has(Feature::Chat));
    }
}
