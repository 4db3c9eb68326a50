//! Options of one classification.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Extensions, TemplateOptions};
use crate::{Error, Feature, Result};

/// Options of one classification: a single forward pass over each prompt.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ClassifyOptions {
    /// Texts to score as the continuation of each prompt; unset: only the likeliest next token is returned.
    pub labels: Option<Arc<[String]>>,
    /// Whether to return the logits of the next token, one for each id of the vocabulary.
    pub logits: bool,
    /// What the chat template is given besides the messages.
    pub template: TemplateOptions,
    /// Cancels the call, which then fails with [`Error::Cancelled`].
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

impl ClassifyOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Scores each of these texts as the continuation of each prompt.
    #[must_use]
    pub fn labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }

    /// Returns the next token's logits.
    #[must_use]
    pub fn logits(mut self, logits: bool) -> Self {
        self.logits = logits;
        self
    }

    /// Gives the chat template a variable.
    #[must_use]
    pub fn template_variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template.set_variable(name, value);
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
    /// [`Error::InvalidOption`] if the labels are an empty list, or one of them is empty or stands twice.
    pub fn validate(&self) -> Result<()> {
        let Some(labels) = &self.labels else { return Ok(()) };
        let invalid = |reason: String| Err(Error::invalid_option("labels", reason));
        if labels.is_empty() {
            return invalid("the list is empty; leave it unset to get only the likeliest token".to_owned());
        }
        for (i, label) in labels.iter().enumerate() {
            if label.is_empty() {
                return invalid(format!("label {i} is empty"));
            }
            if labels[..i].contains(label) {
                return invalid(format!("{label:?} stands twice"));
            }
        }
        Ok(())
    }

    /// The features that the set fields need.
    pub fn required_features(&self) -> impl Iterator<Item = Feature> {
        self.logits.then_some(Feature::Logits).into_iter().chain(self.template.required_features())
    }
}
