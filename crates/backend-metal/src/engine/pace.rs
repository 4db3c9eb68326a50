//! How much of a prefill one scheduler step computes.
//!
//! The engine looks at cancellations and new requests between steps, so a step should be short; but a matrix product is the
//! faster the more tokens it has. So a chunk of a prompt stays long, and a step computes as many of its layers as take about
//! [`TARGET`]. Where even one layer takes longer than [`LONGEST`], chunks become shorter.

use std::time::Duration;

/// How long the prefill of one step should take.
const TARGET: Duration = Duration::from_millis(40);

/// How long a step may take that computes one layer.
const LONGEST: Duration = Duration::from_millis(100);

/// Shorter chunks would cost too much: each reads all weights.
const SHORTEST_CHUNK: usize = 128;

/// The first chunk's tokens, before anything was measured.
const FIRST_CHUNK: usize = 256;

/// The time of fewer tokens says little about more: it goes into reading the weights.
const MEASURED_FROM: usize = 64;

/// The measured speed of a model's prefill.
#[derive(Debug)]
pub(super) struct Pace {
    layers: usize,
    /// For one token and layer.
    seconds: Option<f64>,
}

impl Pace {
    /// The unknown pace of a model with so many layers.
    pub(super) fn new(layers: usize) -> Self {
        Self { layers: layers.max(1), seconds: None }
    }

    /// Tokens of the next chunk, at most `most`: that, or a power of two.
    pub(super) fn chunk(&self, most: usize) -> usize {
        let fitting = self.seconds.map_or(FIRST_CHUNK, |seconds| (LONGEST.as_secs_f64() / seconds) as usize);
        if fitting >= most {
            return most;
        }
        let bucket = (fitting + 1).next_power_of_two() / 2;
        bucket.max(SHORTEST_CHUNK).min(most)
    }

    /// Layers that a step computes of so many tokens.
    pub(super) fn layers(&self, tokens: usize) -> usize {
        let Some(seconds) = self.seconds else {
            return if tokens < MEASURED_FROM { self.layers } else { 1 };
        };
        let layers = TARGET.as_secs_f64() / (seconds * tokens.max(1) as f64);
        (layers as usize).clamp(1, self.layers)
    }

    /// Tokens that one step computes whole.
    pub(super) fn short_prompt(&self) -> usize {
        let tokens = self.seconds.map(|seconds| TARGET.as_secs_f64() / (seconds * self.layers as f64));
        tokens.map_or(0, |tokens| tokens as usize).max(MEASURED_FROM - 1)
    }

    /// Takes note of how long some layers of so many tokens took.
    pub(super) fn measured(&mut self, tokens: usize, layers: usize, elapsed: Duration) {
        if tokens < MEASURED_FROM || layers == 0 {
            return;
        }
        let now = (elapsed.as_secs_f64() / (tokens * layers) as f64).max(f64::MIN_POSITIVE);
        self.seconds = Some(self.seconds.map_or(now, |before| f64::midpoint(before, now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(seconds_of_a_layer: f64) -> Pace {
        let mut pace = Pace::new(28);
        pace.measured(1024, 1, Duration::from_secs_f64(seconds_of_a_layer));
        pace
    }

    #[test]
    fn a_step_computes_as_many_layers_as_the_time_allows() {
        assert_eq!((measured(0.012).layers(1024), measured(0.012).chunk(1024)), (3, 1024));
        assert_eq!((measured(1e-5).layers(1024), measured(1e-5).chunk(1024)), (28, 1024));
        assert_eq!((measured(0.09).layers(1024), measured(0.09).chunk(1024)), (1, 1024));
        // One layer of a chunk takes longer than a step may.
        let slow = measured(0.3);
        assert_eq!((slow.layers(1024), slow.chunk(1024), slow.chunk(100)), (1, 256, 100));
        assert_eq!(measured(3.0).chunk(1024), 128);
    }

    #[test]
    fn an_unknown_pace_is_tried_on_one_layer() {
        let pace = Pace::new(28);
        assert_eq!((pace.layers(1024), pace.layers(10), pace.chunk(1024)), (1, 28, 256));
        assert_eq!(pace.short_prompt(), 63);
    }

    #[test]
    fn few_tokens_say_nothing_and_later_measurements_count_more() {
        let mut pace = measured(0.02);
        pace.measured(1, 28, Duration::from_secs(1));
        assert_eq!(pace.layers(1024), 2);
        (0..8).for_each(|_| pace.measured(1024, 2, Duration::from_millis(10)));
        assert_eq!(pace.layers(1024), 7);
        // 40 ms for 28 layers of 5 ms per 1,024 tokens.
        assert!((285..300).contains(&pace.short_prompt()), "{}", pace.short_prompt());
    }
}
