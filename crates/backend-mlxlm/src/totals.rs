//! A model's running totals.

use std::sync::{Mutex, MutexGuard, PoisonError};

use inference_core::{Error, FinishReason, Metrics, ModelStats, Result};

/// The totals of all requests of one model.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<ModelStats>);

impl Totals {
    pub(crate) fn lock(&self) -> MutexGuard<'_, ModelStats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn began(&self) {
        let mut stats = self.lock();
        stats.requests += 1;
        stats.active += 1;
    }

    pub(crate) fn ended(&self, metrics: &Metrics, reason: Result<&FinishReason, &Error>) {
        let mut stats = self.lock();
        stats.active -= 1;
        stats.failed += u64::from(reason.is_err());
        stats.cancelled += u64::from(matches!(reason, Ok(FinishReason::Cancelled)));
        stats.prompt_tokens += metrics.prompt_tokens as u64;
        stats.cached_tokens += metrics.cached_tokens as u64;
        stats.generated_tokens += metrics.generated_tokens as u64;
    }
}
