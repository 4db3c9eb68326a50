//! Options of embeddings and of reranking.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Extensions, positive};
use crate::{Error, Result};

/// How the vector of a text is made of the vectors of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
    /// The largest of each element.
    Max,
    /// Their sum, divided by the square root of how many they are.
    MeanSqrtLen,
    /// Their mean, in which token `i` counts `i` times, from 1.
    WeightedMean,
}

/// The form of a vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EmbeddingFormat {
    /// Single precision.
    #[default]
    Float,
    /// 8 bits an element, with a scale for each vector.
    Int8,
    /// A bit an element: its sign.
    Binary,
}

/// Options of one call of [`TextModel::embed`](crate::TextModel::embed).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EmbedOptions {
    /// How the vector of a text is made of those of its tokens; unset: as the model's folder says, else the mean for an encoder and
    /// the last token for a decoder.
    pub pooling: Option<Pooling>,
    /// Whether vectors have the length 1; unset: as the model's folder says, and yes where it says nothing.
    pub normalize: Option<bool>,
    /// Keeps so many elements of each vector, from the first on; unset: all. Models that are trained for it (Matryoshka) keep their
    /// meaning.
    pub dimensions: Option<usize>,
    /// A text that is put before each text, such as `query: `.
    pub prefix: Option<String>,
    /// The name of a prefix of the model's folder, such as `query` or `document`; unset, without [`prefix`](Self::prefix): the folder's
    /// default, where it has one.
    pub prefix_name: Option<String>,
    /// Whether texts are cut to what the model can take in; unset: they are refused.
    pub truncate: bool,
    /// The form of the vectors.
    pub format: EmbeddingFormat,
    /// Is told how far the call has come.
    pub on_progress: Option<TextObserver>,
    /// Cancels the call, which then fails with [`Error::Cancelled`].
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

impl EmbedOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the vector of a text in this way.
    #[must_use]
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = Some(pooling);
        self
    }

    /// Sets whether vectors have the length 1.
    #[must_use]
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = Some(normalize);
        self
    }

    /// Keeps so many elements of each vector.
    #[must_use]
    pub fn dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }

    /// Puts this before each text.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Puts the prefix of this name of the model's folder before each text.
    #[must_use]
    pub fn prefix_name(mut self, name: impl Into<String>) -> Self {
        self.prefix_name = Some(name.into());
        self
    }

    /// Cuts texts that are too long for the model.
    #[must_use]
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.truncate = truncate;
        self
    }

    /// Returns vectors in this form.
    #[must_use]
    pub fn format(mut self, format: EmbeddingFormat) -> Self {
        self.format = format;
        self
    }

    /// Calls this as the call goes on, from a thread of the backend: it must be quick and must not block.
    #[must_use]
    pub fn on_progress(mut self, callback: impl Fn(TextProgress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(TextObserver(Arc::new(callback)));
        self
    }

    /// Cancels the call when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: no dimensions; a prefix and the name of one.
    pub fn validate(&self) -> Result<()> {
        positive("dimensions", self.dimensions)?;
        if self.prefix.is_some() && self.prefix_name.is_some() {
            let reason = "is set beside `prefix`, expected one of them".to_owned();
            return Err(Error::invalid_option("prefix_name", reason));
        }
        Ok(())
    }
}

/// Options of one call of [`TextModel::rerank`](crate::TextModel::rerank).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RerankOptions {
    /// What makes a document relevant, for models that read an instruction (Qwen3-Reranker); unset: the model's own.
    pub instruction: Option<String>,
    /// Whether scores are the model's logits, of any size; unset: σ of them, between 0 and 1.
    pub raw: bool,
    /// Whether documents are cut to what the model can take in; unset: they are refused.
    pub truncate: bool,
    /// Is told how far the call has come.
    pub on_progress: Option<TextObserver>,
    /// Cancels the call, which then fails with [`Error::Cancelled`].
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

impl RerankOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what makes a document relevant.
    #[must_use]
    pub fn instruction(mut self, instruction: impl Into<String>) -> Self {
        self.instruction = Some(instruction.into());
        self
    }

    /// Returns the model's logits.
    #[must_use]
    pub fn raw(mut self, raw: bool) -> Self {
        self.raw = raw;
        self
    }

    /// Cuts documents that are too long for the model.
    #[must_use]
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.truncate = truncate;
        self
    }

    /// Calls this as the call goes on, from a thread of the backend: it must be quick and must not block.
    #[must_use]
    pub fn on_progress(mut self, callback: impl Fn(TextProgress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(TextObserver(Arc::new(callback)));
        self
    }

    /// Cancels the call when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }
}

/// How far a call over many texts has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextProgress {
    /// Texts that are done.
    pub done: usize,
    /// All texts.
    pub total: usize,
}

impl TextProgress {
    /// `done` of `total` texts.
    #[must_use]
    pub fn new(done: usize, total: usize) -> Self {
        Self { done, total }
    }
}

/// Who is told how far a call over many texts has come. Cheap to clone.
#[derive(Clone)]
pub struct TextObserver(Arc<dyn Fn(TextProgress) + Send + Sync>);

impl TextObserver {
    /// Tells it.
    pub fn report(&self, progress: TextProgress) {
        (self.0)(progress);
    }
}

impl fmt::Debug for TextObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TextObserver")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_itself_is_refused() {
        EmbedOptions::new().dimensions(1).prefix("").truncate(true).validate().unwrap();
        let error = EmbedOptions::new().dimensions(0).validate().unwrap_err();
        assert!(matches!(error, Error::InvalidOption { option: "dimensions", .. }), "{error}");
        let error = EmbedOptions::new().prefix("a").prefix_name("query").validate().unwrap_err();
        assert!(matches!(error, Error::InvalidOption { option: "prefix_name", .. }), "{error}");
    }
}
