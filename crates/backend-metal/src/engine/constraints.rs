//! What a caller has put between a row's logits and the choice of its token: a processor, and a limit on reasoning.
//!
//! Both look at every token before the next one is chosen, so their rows do without the overlap of device and host: a
//! row with a processor always, one with a limit when that is near.

use std::collections::VecDeque;

use inference_core::{Error, GenerateOptions, backend::Processor};
use inference_text::ThinkingBudget;
use mlx_rs::{
    Array,
    error::{Exception, Result},
};

use super::sampler::NOT_FINITE;

/// A row's processor and its limit on reasoning, where it has them.
#[derive(Debug)]
pub(super) struct Constraints {
    processor: Option<Processor>,
    budget: Option<ThinkingBudget>,
    /// Tokens that come next, whatever the logits say.
    forced: VecDeque<u32>,
    /// How many of them were not read yet.
    unread: usize,
    failure: Option<Error>,
}

impl Constraints {
    pub(super) fn new(options: &GenerateOptions, budget: Option<ThinkingBudget>) -> Self {
        let processor = options.logits_processor.clone();
        let mut constraints = Self { processor, budget, forced: VecDeque::new(), unread: 0, failure: None };
        constraints.force_the_end();
        constraints
    }

    /// Whether the logits decide the next token alone.
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
            Ok(()) => Ok(Array::from_slice(&values, logits.shape())),
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
