//! `inference bench --embed`: many texts in one call, of one length and of many.

use std::time::{Duration, Instant};

use inference::{CancellationToken, EmbedOptions, ModelInfo, Prompt, TextModel};
use inference_core::backend::BackendInfo;
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use serde::Serialize;

use super::report::{Program, Spread, subject};
use crate::render::{self, Out};

/// What one trial showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    even: Measured,
    mixed: Measured,
}

/// One call.
#[derive(Debug, Clone, Copy)]
struct Measured {
    tokens: usize,
    took: Duration,
}

impl Trial {
    /// Embeds `count` texts of `length` tokens in one call, then as many whose lengths are spread over 1 to `length`, in random order.
    pub(super) async fn run(
        model: &dyn TextModel,
        (count, length): (usize, usize),
        random: &mut StdRng,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let even = measure(model, &vec![length; count], random, cancel).await?;
        let mut lengths: Vec<usize> = (0..count).map(|number| 1 + number * length / count).collect();
        lengths.shuffle(random);
        Ok(Self { even, mixed: measure(model, &lengths, random, cancel).await? })
    }
}

async fn measure(
    model: &dyn TextModel,
    lengths: &[usize],
    random: &mut StdRng,
    cancel: &CancellationToken,
) -> anyhow::Result<Measured> {
    let vocab_size = model.info().vocab_size.max(1) as u32;
    let text =
        |length: &usize| Prompt::Tokens((0..*length).map(|_| random.random_range(0..vocab_size)).collect());
    let prompts: Vec<Prompt> = lengths.iter().map(text).collect();
    let began = Instant::now();
    let embeddings = model.embed(prompts, EmbedOptions::new().cancel(cancel.clone())).await?;
    let took = began.elapsed();
    Ok(Measured { tokens: embeddings.iter().map(|embedding| embedding.prompt_tokens).sum(), took })
}

/// The figures of all trials.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    model: &'a ModelInfo,
    backend: &'a BackendInfo,
    program: Program,
    texts: usize,
    trials: usize,
    seed: u64,
    tokens: Spread,
    texts_per_second: Spread,
    tokens_per_second: Spread,
    mixed_tokens: Spread,
    mixed_tokens_per_second: Spread,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        texts: usize,
        seed: u64,
        (model, backend): (&'a ModelInfo, &'a BackendInfo),
        trials: &[Trial],
    ) -> Self {
        let spread = |figure: &dyn Fn(&Trial) -> f64| Spread::of(trials.iter().map(figure).collect());
        let speed = |call: Measured| call.tokens as f64 / call.took.as_secs_f64();
        Self {
            model,
            backend,
            program: Program::this(),
            texts,
            trials: trials.len(),
            seed,
            tokens: spread(&|trial| trial.even.tokens as f64),
            texts_per_second: spread(&|trial| texts as f64 / trial.even.took.as_secs_f64()),
            tokens_per_second: spread(&|trial| speed(trial.even)),
            mixed_tokens: spread(&|trial| trial.mixed.tokens as f64),
            mixed_tokens_per_second: spread(&|trial| speed(trial.mixed)),
        }
    }

    pub(super) fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        let trials = format!("{} of {}", self.trials, render::things(self.texts, "text"));
        out.table(&subject(self.model, self.backend, trials))?;
        out.line("")?;
        let mut table = Spread::table();
        for (name, spread, digits) in [
            ("tokens of all texts", self.tokens, 0),
            ("texts/s", self.texts_per_second, 1),
            ("tokens/s", self.tokens_per_second, 0),
            ("tokens of all texts, mixed lengths", self.mixed_tokens, 0),
            ("tokens/s, mixed lengths", self.mixed_tokens_per_second, 0),
        ] {
            spread.add_to(&mut table, name, &|value| format!("{value:.digits$}"));
        }
        out.table(&table)
    }
}
