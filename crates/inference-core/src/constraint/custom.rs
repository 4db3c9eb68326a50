//! Constraints of the caller's own.

use super::mask::TokenMask;

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
