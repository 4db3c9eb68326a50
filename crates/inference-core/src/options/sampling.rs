//! How the next token is chosen.

use std::{
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
};

use super::{DEFAULT_PENALTY_WINDOW, within};
use crate::{Error, Feature, Result};

/// How the next token is chosen. What is unset comes from the model's
/// [generation_config.json](crate::GenerationConfig); where that has no temperature either, the likeliest token is taken.
///
/// The order is part of the contract, so that every backend gives one distribution: logit bias → repetition, presence,
/// frequency penalties → the caller's processor → on log-probabilities: top-p → min-p → XTC → top-k → temperature → draw.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SamplingOptions {
    /// The divisor of log-probabilities before the draw; 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Keeps the likeliest tokens whose probabilities add up to this, in (0, 1].
    pub top_p: Option<f32>,
    /// Drops tokens less likely than this share of the likeliest one's probability, in [0, 1].
    pub min_p: Option<f32>,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Excludes top choices.
    pub xtc: Option<Xtc>,
    /// Makes the request reproducible, whatever runs beside it; unset: another draw each time.
    pub seed: Option<u64>,
    /// Added to the logits of these ids.
    pub logit_bias: Option<Arc<[(u32, f32)]>>,
    /// Divides positive and multiplies negative logits of tokens seen within the window; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logit of each token seen within the window.
    pub presence_penalty: Option<f32>,
    /// Subtracted from a token's logit once for each time it was seen within the window.
    pub frequency_penalty: Option<f32>,
    /// How many of the last tokens, prompt included, the penalties look at; unset: [`DEFAULT_PENALTY_WINDOW`].
    pub penalty_window: Option<usize>,
}

/// Exclude top choices: with a probability, all tokens above the threshold but the least likely of them are dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Xtc {
    /// How often the filter acts, in [0, 1].
    pub probability: f32,
    /// The probability above which a token counts as a top choice, in [0, 0.5].
    pub threshold: f32,
}

impl Xtc {
    /// Acts with `probability` on tokens that are likelier than `threshold`.
    #[must_use]
    pub fn new(probability: f32, threshold: f32) -> Self {
        Self { probability, threshold }
    }
}

impl SamplingOptions {
    /// The temperature that applies; 0 where unset.
    #[must_use]
    pub fn temperature_or_greedy(&self) -> f32 {
        self.temperature.unwrap_or(0.0)
    }

    /// The seed, or a random one where it is unset.
    #[must_use]
    pub fn seed_or_random(&self) -> u64 {
        // The standard library seeds each map's hasher from the system's randomness.
        self.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish())
    }

    /// The penalties' window that applies.
    #[must_use]
    pub fn window(&self) -> usize {
        self.penalty_window.unwrap_or(DEFAULT_PENALTY_WINDOW)
    }

    /// Whether any penalty looks at earlier tokens.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty.is_some_and(|p| p != 1.0)
            || self.presence_penalty.is_some_and(|p| p != 0.0)
            || self.frequency_penalty.is_some_and(|p| p != 0.0)
    }

    /// Whether something edits the logits before the choice: a bias or a penalty.
    #[must_use]
    pub fn edits_logits(&self) -> bool {
        // Whoever adds an option has to say here what it does.
        let Self {
            logit_bias,
            repetition_penalty: _,
            presence_penalty: _,
            frequency_penalty: _,
            // Those act on the choice itself, or on the draw.
            temperature: _,
            top_p: _,
            min_p: _,
            top_k: _,
            xtc: _,
            seed: _,
            penalty_window: _,
        } = self;
        self.has_penalties() || logit_bias.as_ref().is_some_and(|biases| !biases.is_empty())
    }

    pub(super) fn validate(&self) -> Result<()> {
        within("temperature", self.temperature, "a finite number from 0", |t| t >= 0.0)?;
        within("top_p", self.top_p, "above 0, up to 1", |p| p > 0.0 && p <= 1.0)?;
        within("min_p", self.min_p, "from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        within("xtc probability", self.xtc.map(|x| x.probability), "from 0 to 1", |p| {
            (0.0..=1.0).contains(&p)
        })?;
        within("xtc threshold", self.xtc.map(|x| x.threshold), "from 0 to 0.5", |p| {
            (0.0..=0.5).contains(&p)
        })?;
        within("repetition_penalty", self.repetition_penalty, "a finite number above 0", |p| p > 0.0)?;
        within("presence_penalty", self.presence_penalty, "a finite number", |_| true)?;
        within("frequency_penalty", self.frequency_penalty, "a finite number", |_| true)?;
        let biases = self.logit_bias.iter().flat_map(|biases| biases.iter());
        // −∞ is how a token is banned.
        if let Some((id, bias)) = biases.into_iter().find(|(_, b)| b.is_nan() || *b == f32::INFINITY) {
            let reason = format!("token {id} has {bias}; expected a number, or −∞ to ban the token");
            return Err(Error::invalid_option("logit_bias", reason));
        }
        Ok(())
    }

    pub(super) fn required_features(&self) -> impl Iterator<Item = Feature> {
        [
            self.temperature.filter(|t| *t > 0.0).map(|_| Feature::Sampling),
            self.top_p.map(|_| Feature::TopP),
            self.min_p.map(|_| Feature::MinP),
            self.top_k.map(|_| Feature::TopK),
            self.xtc.map(|_| Feature::Xtc),
            self.seed.map(|_| Feature::Seed),
            self.logit_bias.as_ref().map(|_| Feature::LogitBias),
            self.repetition_penalty.map(|_| Feature::RepetitionPenalty),
            self.presence_penalty.map(|_| Feature::PresencePenalty),
            self.frequency_penalty.map(|_| Feature::FrequencyPenalty),
        ]
        .into_iter()
        .flatten()
    }
}
