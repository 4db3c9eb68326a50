//! A model's running totals, written by the engine and read by anyone.

use std::sync::{Mutex, PoisonError};

use inference_core::{Error, FinishReason, Metrics, ModelStats};

/// Totals since the model was loaded.
#[derive(Debug, Default)]
pub(crate) struct Stats(Mutex<ModelStats>);

impl Stats {
    /// The totals now, with the memory in use.
    pub(crate) fn snapshot(&self) -> ModelStats {
        let mut stats = self.lock().clone();
        stats.memory = super::memory::usage();
        stats
    }

    /// A request was handed to the engine.
    pub(crate) fn began(&self) {
        let mut stats = self.lock();
        stats.requests += 1;
        stats.active += 1;
    }

    /// A request came to its end.
    pub(crate) fn ended(&self, metrics: &Metrics, result: Result<&FinishReason, &Error>) {
        let mut stats = self.lock();
        stats.active = stats.active.saturating_sub(1);
        stats.prompt_tokens += metrics.prompt_tokens as u64;
        stats.cached_tokens += metrics.cached_tokens as u64;
        stats.generated_tokens += metrics.generated_tokens as u64;
        match result {
            Ok(FinishReason::Cancelled) | Err(Error::Cancelled) => stats.cancelled += 1,
            Ok(_) => {}
            Err(_) => stats.failed += 1,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ModelStats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
