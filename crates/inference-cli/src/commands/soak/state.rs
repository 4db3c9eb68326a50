//! What all parts of a soak share: its clock and its totals.

use std::time::{Duration, Instant};

use inference::CancellationToken;
use serde::Serialize;

/// How long the run goes on.
pub(super) struct Clock {
    pub(super) began: Instant,
    pub(super) length: Duration,
    pub(super) stop: CancellationToken,
}

impl Clock {
    pub(super) fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.began.elapsed() >= self.length
    }
}

/// What happened so far.
#[derive(Debug, Default, Serialize)]
pub(super) struct Totals {
    pub(super) requests: u64,
    pub(super) tokens: u64,
    pub(super) cancelled: u64,
    pub(super) dropped: u64,
    pub(super) loads: u64,
    pub(super) sessions: u64,
    pub(super) failures: u64,
    /// The first failures, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) first_failures: Vec<String>,
}

impl Totals {
    /// Counts a failure.
    pub(super) fn fail(&mut self, text: String) {
        self.failures += 1;
        if self.first_failures.len() < 5 {
            self.first_failures.push(text);
        }
    }
}
