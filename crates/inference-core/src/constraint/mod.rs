//! What an answer has to look like, token by token.

mod mask;
mod run;

use std::{fmt, sync::Arc};

use serde_json::Value;

pub use self::{mask::TokenMask, run::ConstraintRun};
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

/// What a constraint is told of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConstraintVocabulary {
    /// One more than the largest id.
    pub vocab_size: usize,
    /// The ids that end a text. A constraint allows one of them where the text may end.
    pub eos_token_ids: Vec<u32>,
}

impl ConstraintVocabulary {
    /// Of a model with these ids.
    #[must_use]
    pub fn new(vocab_size: usize, eos_token_ids: impl Into<Vec<u32>>) -> Self {
        Self { vocab_size, eos_token_ids: eos_token_ids.into() }
    }
}

/// A constraint of one's own: which tokens may come next.
///
/// ```
/// use inference_core::{Constraint, ConstraintState, ConstraintVocabulary, TokenConstraint, TokenMask};
///
/// /// Says three even ids.
/// struct ThreeEven;
///
/// struct Said(usize, Vec<u32>);
///
/// impl TokenConstraint for ThreeEven {
///     fn start(&self, vocabulary: &ConstraintVocabulary) -> Result<Box<dyn ConstraintState>, String> {
///         Ok(Box::new(Said(0, vocabulary.eos_token_ids.clone())))
///     }
/// }
///
/// impl ConstraintState for Said {
///     fn mask(&mut self, mask: &mut TokenMask) -> Result<(), String> {
///         if self.0 == 3 {
///             self.1.iter().for_each(|id| mask.allow(*id));
///         } else {
///             (0..mask.len() as u32).step_by(2).filter(|id| !self.1.contains(id)).for_each(|id| mask.allow(id));
///         }
///         Ok(())
///     }
///
///     fn accept(&mut self, _id: u32) -> Result<(), String> {
///         self.0 += 1;
///         Ok(())
///     }
///
///     fn rollback(&mut self, tokens: usize) -> Result<(), String> {
///         self.0 -= tokens;
///         Ok(())
///     }
/// }
///
/// let constraint = Constraint::custom(ThreeEven);
/// ```
pub trait TokenConstraint: Send + Sync {
    /// The state of one request, before its first token.
    ///
    /// # Errors
    /// A reason why the model cannot be held to it; the request is refused with it.
    fn start(&self, vocabulary: &ConstraintVocabulary) -> Result<Box<dyn ConstraintState>, String>;
}

/// What a [`TokenConstraint`] knows of one answer.
///
/// An engine calls it from a thread of its own, while the device computes the logits that the mask is for. It should take
/// microseconds: all requests of the model wait for it.
pub trait ConstraintState: Send {
    /// Allows in `mask`, which allows none, the ids that may come next: at least one.
    ///
    /// # Errors
    /// A reason, with which the request ends.
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), String>;

    /// Takes the token that was chosen. It may be one that ends the text.
    ///
    /// # Errors
    /// A reason, with which the request ends.
    fn accept(&mut self, id: u32) -> Result<(), String>;

    /// Takes the last so many tokens back: an engine chooses them again.
    ///
    /// # Errors
    /// A reason, with which the request ends.
    fn rollback(&mut self, tokens: usize) -> Result<(), String>;
}
