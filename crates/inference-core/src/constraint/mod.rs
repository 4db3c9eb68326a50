//! What an answer has to look like, token by token.

mod custom;
mod mask;
mod run;

use std::{fmt, sync::Arc};

use serde_json::Value;

pub use self::{
    custom::{ConstraintState, ConstraintVocabulary, TokenConstraint},
    mask::TokenMask,
    run::ConstraintRun,
};
use crate::{Error, Result};

/// The shape that an answer is held to: of all tokens, only those can be chosen with which it can still take that shape, by their
/// own probabilities, renormalised. The text ends by an end-of-sequence token, and only where it has the shape; `max_tokens` may
/// cut it before, which is [`FinishReason::Length`](crate::FinishReason::Length).
///
/// It holds for what follows the model's reasoning, where the model reasons.
///
/// ```
/// use inference_core::{Constraint, GenerateOptions};
/// use serde_json::json;
///
/// let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]});
/// let options = GenerateOptions::new().constraint(Constraint::json_schema(schema));
/// let yes_or_no = GenerateOptions::new().constraint(Constraint::choice(["yes", "no"]));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Constraint {
    /// A JSON text that is valid by this schema (draft 2020-12, or the older one that its `$schema` names). Properties come in
    /// the schema's order. What cannot be held to, such as `not` or `uniqueItems`, is refused and never ignored.
    JsonSchema(Arc<Value>),
    /// A text that this regular expression matches as a whole (the syntax of the crate `regex`).
    Regex(Arc<str>),
    /// A text of this grammar: Lark's notation as llguidance has it, beginning at the rule `start`.
    Lark(Arc<str>),
    /// One of these texts.
    Choice(Arc<[String]>),
    /// What the caller's own code allows.
    Custom(CustomConstraint),
}

impl Constraint {
    /// [`JsonSchema`](Self::JsonSchema).
    #[must_use]
    pub fn json_schema(schema: Value) -> Self {
        Self::JsonSchema(Arc::new(schema))
    }

    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::json_schema(serde_json::json!({"type": "object"}))
    }

    /// [`Regex`](Self::Regex).
    #[must_use]
    pub fn regex(expression: impl Into<String>) -> Self {
        Self::Regex(expression.into().into())
    }

    /// [`Lark`](Self::Lark).
    #[must_use]
    pub fn lark(grammar: impl Into<String>) -> Self {
        Self::Lark(grammar.into().into())
    }

    /// [`Choice`](Self::Choice).
    #[must_use]
    pub fn choice<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        Self::Choice(texts.into_iter().map(Into::into).collect())
    }

    /// [`Custom`](Self::Custom).
    #[must_use]
    pub fn custom(constraint: impl TokenConstraint + 'static) -> Self {
        Self::Custom(CustomConstraint(Arc::new(constraint)))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let reason = match self {
            Self::Choice(texts) if texts.is_empty() => "the list of texts is empty".to_owned(),
            Self::Choice(texts) if texts.iter().any(String::is_empty) => "a text is empty".to_owned(),
            _ => return Ok(()),
        };
        Err(Error::invalid_option("constraint", reason))
    }
}

/// A constraint of the caller's. Cheap to clone.
#[derive(Clone)]
pub struct CustomConstraint(Arc<dyn TokenConstraint>);

impl CustomConstraint {
    /// The state of one request, behind the checks that an engine owes its other requests.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: it refused, or panicked.
    pub fn start(&self, vocabulary: &ConstraintVocabulary) -> Result<ConstraintRun> {
        let state = run::guarded(|| self.0.start(vocabulary))?;
        Ok(ConstraintRun::new(state, vocabulary.vocab_size))
    }
}

impl fmt::Debug for CustomConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomConstraint")
    }
}
