//! What a request cost, and what a model has done so far.

use std::time::Duration;

use serde::Serialize;

/// What one generation cost. Durations are wall time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Metrics {
    /// Tokens of the prompt, those found in a cache included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were found in a cache and not computed again.
    pub cached_tokens: usize,
    /// Tokens generated, without the one that ended the text.
    pub generated_tokens: usize,
    /// From the call until the engine began with it.
    #[serde(serialize_with = "seconds", rename = "queued_seconds")]
    pub queued: Duration,
    /// From there until the whole prompt was computed.
    #[serde(serialize_with = "seconds", rename = "prefill_seconds")]
    pub prefill: Duration,
    /// From there until the last token.
    #[serde(serialize_with = "seconds", rename = "decode_seconds")]
    pub decode: Duration,
    /// From the call until the first token was delivered; `None` where there was none.
    #[serde(serialize_with = "optional_seconds", rename = "time_to_first_token_seconds")]
    pub time_to_first_token: Option<Duration>,
    /// Time between successive tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inter_token: Option<Percentiles>,
    /// The highest memory use of the engine while the request ran, in bytes; the whole engine's, not the request's.
    pub peak_memory_bytes: u64,
    /// The engine's memory in use when the request ended, in bytes.
    pub active_memory_bytes: u64,
}

impl Metrics {
    /// Prompt tokens computed per second of prefill; 0 where nothing was computed.
    #[must_use]
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens.saturating_sub(self.cached_tokens), self.prefill)
    }

    /// Tokens per second of decode. The first token falls out of the prefill and does not count.
    #[must_use]
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }
}

/// The spread of a set of durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Percentiles {
    /// The median.
    #[serde(serialize_with = "seconds", rename = "p50_seconds")]
    pub p50: Duration,
    /// Nine of ten are no longer.
    #[serde(serialize_with = "seconds", rename = "p90_seconds")]
    pub p90: Duration,
    /// 99 of a hundred are no longer.
    #[serde(serialize_with = "seconds", rename = "p99_seconds")]
    pub p99: Duration,
    /// The longest.
    #[serde(serialize_with = "seconds", rename = "max_seconds")]
    pub max: Duration,
}

impl Percentiles {
    /// The spread of `durations`, which are sorted in place; `None` where there are none. Nearest-rank percentiles.
    pub fn from_durations(durations: &mut [Duration]) -> Option<Self> {
        durations.sort_unstable();
        let max = *durations.last()?;
        let rank = |percent: usize| durations[(durations.len() * percent).div_ceil(100).max(1) - 1];
        Some(Self { p50: rank(50), p90: rank(90), p99: rank(99), max })
    }
}

/// Running totals of one loaded model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelStats {
    /// Requests taken in, whatever became of them.
    pub requests: u64,
    /// Requests that ended in an error.
    pub failed: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests in the engine now.
    pub active: u64,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from a cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Memory of the engine.
    pub memory: MemoryUsage,
}

/// An engine's memory, in bytes. Process-wide where the engine's allocator is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// In use by arrays.
    pub active_bytes: u64,
    /// The highest use since the start, or since it was last reset.
    pub peak_bytes: u64,
    /// Freed by arrays and kept by the allocator for reuse.
    pub cache_bytes: u64,
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn optional_seconds<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => seconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_leave_out_what_was_not_computed() {
        let metrics = Metrics {
            prompt_tokens: 100,
            cached_tokens: 60,
            generated_tokens: 11,
            prefill: Duration::from_secs(2),
            decode: Duration::from_secs(5),
            ..Metrics::default()
        };
        assert_eq!(metrics.prefill_tokens_per_second(), 20.0);
        assert_eq!(metrics.decode_tokens_per_second(), 2.0);
        assert_eq!(Metrics::default().decode_tokens_per_second(), 0.0);
    }

    #[test]
    fn percentiles_are_members_of_the_set() {
        let mut durations: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let percentiles = Percentiles::from_durations(&mut durations).unwrap();
        assert_eq!(percentiles.p50, Duration::from_millis(100));
        assert_eq!(percentiles.p99, Duration::from_millis(198));
        assert_eq!(percentiles.max, Duration::from_millis(200));
        assert_eq!(Percentiles::from_durations(&mut []), None);
    }
}
