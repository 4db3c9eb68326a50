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
    /// Answers that differ from the lone run from a token on that is a near tie: see `--near-ties`.
    pub(super) near_ties: u64,
    /// How long after each request over HTTP its first token came.
    #[serde(skip)]
    pub(super) first_tokens: Vec<Duration>,
    /// The first failures, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) first_failures: Vec<String>,
}

impl Totals {
    /// The times to the first token that half and 99 of 100 requests over HTTP kept to, and the longest; `None` without such requests.
    pub(super) fn first_token(&self) -> Option<[Duration; 3]> {
        let mut times = self.first_tokens.clone();
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        // The nearest rank.
        let at =
            |share: f64| times[((times.len() as f64 * share).ceil() as usize).saturating_sub(1).min(last)];
        Some([at(0.5), at(0.99), times[last]])
    }

    /// Counts a failure.
    pub(super) fn fail(&mut self, text: String) {
        self.failures += 1;
        if self.first_failures.len() < 5 {
            self.first_failures.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_the_first_token_are_ranked() {
        let mut totals = Totals::default();
        assert_eq!(totals.first_token(), None);
        totals.first_tokens = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(totals.first_token(), Some([100, 198, 200].map(Duration::from_millis)));
        totals.first_tokens.truncate(1);
        assert_eq!(totals.first_token(), Some([Duration::from_millis(200); 3]));
    }
}
