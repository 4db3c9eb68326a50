//! A caller's own step between the model's logits and the choice of a token.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{Error, Result};

/// Edits the logits that a token is chosen from. Closures of the same form are processors.
///
/// Called once for each token, in order, from a thread of the engine: nothing else of the engine goes on meanwhile. The same
/// arguments should give the same edit; a request is reproducible only then.
pub trait LogitsProcessor: Send + Sync {
    /// Edits `logits`, one for each id of the vocabulary, of the token that follows `prompt` and `answer`. −∞ bans a token; NaN
    /// and ∞ are errors, and so is a ban of all.
    fn process(&self, prompt: &[u32], answer: &[u32], logits: &mut [f32]);
}

impl<F: Fn(&[u32], &[u32], &mut [f32]) + Send + Sync> LogitsProcessor for F {
    fn process(&self, prompt: &[u32], answer: &[u32], logits: &mut [f32]) {
        self(prompt, answer, logits);
    }
}

/// A [`LogitsProcessor`] with the checks that every engine owes its other requests. Cheap to clone.
#[derive(Clone)]
pub struct Processor(Arc<dyn LogitsProcessor>);

impl Processor {
    pub(super) fn new(processor: impl LogitsProcessor + 'static) -> Self {
        Self(Arc::new(processor))
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: it panicked, or left logits that no token can be chosen from.
    pub fn run(&self, prompt: &[u32], answer: &[u32], logits: &mut [f32]) -> Result<()> {
        let invalid = |reason: String| Err(Error::invalid_option("logits_processor", reason));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.0.process(prompt, answer, logits))) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
            return invalid(format!("it panicked: {text}"));
        }
        if let Some(id) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return invalid(format!("it gave token {id} the logit {}, expected a number or −∞", logits[id]));
        }
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            return invalid("it banned every token".to_owned());
        }
        Ok(())
    }
}

impl fmt::Debug for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Processor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_token_can_be_chosen_from_is_an_error() {
        let run = |edit: fn(&mut [f32])| {
            let processor = Processor::new(move |_: &[u32], _: &[u32], logits: &mut [f32]| edit(logits));
            let mut logits = [1.0, 2.0];
            processor.run(&[], &[], &mut logits).map(|()| logits).map_err(|error| error.to_string())
        };
        assert_eq!(run(|logits| logits[1] = f32::NEG_INFINITY), Ok([1.0, f32::NEG_INFINITY]));
        assert!(run(|logits| logits[1] = f32::NAN).unwrap_err().contains("token 1"));
        assert!(run(|logits| logits[0] = f32::INFINITY).unwrap_err().contains("token 0"));
        assert!(run(|logits| logits.fill(f32::NEG_INFINITY)).unwrap_err().contains("every token"));
        assert!(run(|_| panic!("on the edge")).unwrap_err().contains("on the edge"));
    }
}
