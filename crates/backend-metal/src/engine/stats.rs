//! A model's running totals, written by the engine and read by anyone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use inference_core::{Error, FinishReason, Metrics, ModelStats};

use crate::mlx::memory;

/// Totals since the model was loaded.
#[derive(Debug, Default)]
pub(crate) struct Stats(Mutex<ModelStats>);

impl Stats {
    /// The totals now, with the memory in use.
    pub(crate) fn snapshot(&self) -> ModelStats {
        let mut stats = self.lock().clone();
        stats.memory = memory::usage();
        stats
    }

    /// Counts a request, which is active until the guard is gone.
    pub(crate) fn begin(self: &Arc<Self>) -> ActiveRequest {
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
pub(crate) struct ActiveRequest(Option<Arc<Stats>>);

impl ActiveRequest {
    /// Counts how the request ended and what it cost.
    pub(crate) fn end(mut self, metrics: &Metrics, result: Result<&FinishReason, &Error>) {
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
        let stats = Arc::new(Stats::default());
        let counts = || {
            let now = stats.lock().clone();
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
