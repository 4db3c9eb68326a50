//! A model's running totals, written by its engine and read by anyone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, FinishReason, Metrics, ModelStats};

/// The totals of a model's requests since it was loaded. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct SharedStats(Arc<Mutex<ModelStats>>);

impl SharedStats {
    /// The totals now. Memory is the engine's to add.
    #[must_use]
    pub fn snapshot(&self) -> ModelStats {
        self.lock().clone()
    }

    /// Counts a request, which is active until the guard is gone.
    pub(super) fn begin(&self) -> ActiveRequest {
        let mut stats = self.lock();
        stats.requests += 1;
        stats.active += 1;
        ActiveRequest(Some(self.clone()))
    }

    fn end(&self, metrics: &Metrics, result: Result<&FinishReason, &Error>) {
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

    fn lock(&self) -> MutexGuard<'_, ModelStats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that its model's totals count as active. Wherever it is dropped, it is active no more.
#[derive(Debug)]
pub(super) struct ActiveRequest(Option<SharedStats>);

impl ActiveRequest {
    /// Counts how the request ended and what it cost.
    pub(super) fn end(mut self, metrics: &Metrics, result: Result<&FinishReason, &Error>) {
        if let Some(stats) = self.0.take() {
            stats.end(metrics, result);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(stats) = self.0.take() {
            stats.end(&Metrics::default(), Err(&Error::Closed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_never_reached_the_engine_is_not_active() {
        let stats = SharedStats::default();
        let counts = || {
            let now = stats.snapshot();
            (now.requests, now.active, now.failed, now.cancelled)
        };
        let (lost, ended) = (stats.begin(), stats.begin());
        assert_eq!(counts(), (2, 2, 0, 0));
        drop(lost);
        assert_eq!(counts(), (2, 1, 1, 0));
        ended.end(&Metrics::default(), Ok(&FinishReason::Cancelled));
        assert_eq!(counts(), (2, 0, 1, 1));
    }
}
