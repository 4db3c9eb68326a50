//! What a caller has put between a row's logits and the choice of its token: a processor, a limit on reasoning, and the shape that
//! the answer is held to.
//!
//! The first two look at every token before the next one is chosen, so their rows do without the overlap of device and host: a
//! row with a processor always, one with a limit when that is near. The mask of a shape is computed while the device computes the
//! logits that it is for.

use std::collections::VecDeque;

use inference_core::{
    Error, GenerateOptions, TokenMask,
    backend::{ConstraintRun, Processor},
};
use inference_text::ThinkingBudget;
use mlx_rs::{
    Array,
    error::{Exception, Result},
};

use super::sampler::NOT_FINITE;

/// A row's processor, its limit on reasoning and its shape, where it has them.
#[derive(Debug)]
pub(super) struct Constraints {
    processor: Option<Processor>,
    budget: Option<ThinkingBudget>,
    /// Tokens that come next, whatever the logits say.
    forced: VecDeque<u32>,
    /// How many of them were not read yet.
    unread: usize,
    shape: Option<Shape>,
    failure: Option<Error>,
}

/// What holds an answer to its shape.
#[derive(Debug)]
struct Shape {
    run: ConstraintRun,
    /// The ids that end the text.
    eos: Vec<u32>,
    /// Tokens of the answer that it knows.
    taken: usize,
    /// Whether one of them has ended the text.
    ended: bool,
    /// What may be chosen next, once that is known; nothing where all may.
    mask: Option<TokenMask>,
}

impl Constraints {
    pub(super) fn new(
        options: &GenerateOptions,
        budget: Option<ThinkingBudget>,
        shape: Option<ConstraintRun>,
        eos: &[u32],
    ) -> Self {
        let processor = options.logits_processor.clone();
        let shape = shape.map(|run| Shape { run, eos: eos.to_vec(), taken: 0, ended: false, mask: None });
        let mut constraints =
            Self { processor, budget, forced: VecDeque::new(), unread: 0, shape, failure: None };
        constraints.force_the_end();
        constraints
    }

    /// Whether the logits, those that a mask leaves, decide the next token alone.
    pub(super) fn is_idle(&self) -> bool {
        self.processor.is_none() && self.forced.is_empty()
    }

    /// Whether the tokens that were chosen and not read have to be read before the next choice.
    pub(super) fn waits_for(&self, unread: usize) -> bool {
        let near = |budget: &ThinkingBudget| self.forced.is_empty() && budget.may_be_spent_after(unread);
        unread > 0 && (self.processor.is_some() || self.budget.as_ref().is_some_and(near))
    }

    /// Takes note of a token that was read.
    pub(super) fn note(&mut self, id: u32) {
        if let Some(budget) = &mut self.budget {
            budget.push(id);
            self.unread = self.unread.saturating_sub(1);
            self.force_the_end();
        }
    }

    /// The next token, where the logits have no say.
    pub(super) fn forced(&mut self) -> Option<u32> {
        self.forced.pop_front()
    }

    /// Takes back a forced token that was chosen and never read.
    pub(super) fn unforce(&mut self, id: u32) {
        self.forced.push_front(id);
    }

    /// Tokens of the answer that its shape knows; `None` where the answer has none.
    pub(super) fn taken(&self) -> Option<usize> {
        self.shape.as_ref().map(|shape| shape.taken)
    }

    /// Has the shape know the next token. What goes wrong is kept for [`failure`](Self::failure); so below.
    pub(super) fn take(&mut self, id: u32) {
        let Some(shape) = &mut self.shape else { return };
        shape.taken += 1;
        shape.ended |= shape.eos.contains(&id);
        if let Err(error) = shape.run.accept(id) {
            self.failure.get_or_insert(error);
        }
    }

    /// Has the shape forget its last tokens, which are chosen again.
    pub(super) fn take_back(&mut self, tokens: usize) {
        let Some(shape) = self.shape.as_mut().filter(|_| tokens > 0) else { return };
        shape.taken -= tokens.min(shape.taken);
        shape.ended = false;
        if let Err(error) = shape.run.rollback(tokens) {
            self.failure.get_or_insert(error);
        }
    }

    /// Works out what may be chosen next, of the tokens that the shape knows.
    pub(super) fn compute_mask(&mut self) {
        let Some(shape) = &mut self.shape else { return };
        // A text that has ended has no next token, and what is forced is not chosen.
        if shape.mask.is_some() || shape.ended || !self.forced.is_empty() || self.failure.is_some() {
            return;
        }
        match shape.run.mask() {
            Ok(mask) => shape.mask = Some(mask.clone()),
            Err(error) => self.failure = Some(error),
        }
    }

    /// What may be chosen next; `None` where all may.
    pub(super) fn mask(&self) -> Option<&TokenMask> {
        self.shape.as_ref()?.mask.as_ref()
    }

    /// The choice was made.
    pub(super) fn forget_mask(&mut self) {
        if let Some(shape) = &mut self.shape {
            shape.mask = None;
        }
    }

    /// Whether the text may do nothing but end.
    pub(super) fn has_to_end(&self) -> bool {
        let only_ends = |shape: &Shape| {
            let mask = shape.mask.as_ref()?;
            let ends = shape.eos.iter().filter(|id| mask.allows(**id)).count();
            Some(mask.count() == ends)
        };
        self.shape.as_ref().and_then(only_ends).unwrap_or(false)
    }

    /// Has the processor edit logits [1, V], f32, of the token that follows; waits for the device where there is one. What goes
    /// wrong is kept for [`failure`](Self::failure).
    pub(super) fn process(&mut self, logits: Array, prompt: &[u32], answer: &[u32]) -> Result<Array> {
        let Some(processor) = &self.processor else { return Ok(logits) };
        let mut values =
            logits.to_vec_exact::<f32>().map_err(|error| Exception::custom(error.to_string()))?;
        // A processor may ban tokens with −∞; what it is given should be numbers.
        if values.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(Exception::custom(NOT_FINITE));
        }
        match processor.run(prompt, answer, &mut values) {
            Ok(()) => {
                // It may not bring back what the shape does not have.
                if let Some(mask) = self.mask() {
                    mask.apply(&mut values);
                }
                Ok(Array::from_slice(&values, logits.shape()))
            }
            Err(error) => {
                self.failure = Some(error);
                Ok(logits)
            }
        }
    }

    /// Why the request has to end, once.
    pub(super) fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Where reasoning is over its limit, its end comes next.
    fn force_the_end(&mut self) {
        if let Some(budget) = &self.budget
            && budget.is_spent()
            && self.unread == 0
        {
            self.forced.extend(budget.closing());
            self.unread = self.forced.len();
        }
    }
}
