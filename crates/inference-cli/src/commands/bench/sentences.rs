//! `inference bench --classify`: many short prompts in one call, beside one after the other.

use std::time::{Duration, Instant};

use inference::{CancellationToken, ClassifyOptions, GenerateOptions, ModelInfo, Prompt, TextModel};
use inference_core::backend::BackendInfo;
use rand::{rngs::StdRng, seq::IndexedRandom as _};
use serde::Serialize;

use super::report::{Program, Spread, subject};
use crate::render::{self, Out};

/// What one trial showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    /// Tokens of all sentences.
    tokens: usize,
    classify: Duration,
    generate: Duration,
}

impl Trial {
    /// Classifies `count` sentences in one call, then generates one token after each of them, one after the other.
    pub(super) async fn run(
        model: &dyn TextModel,
        count: usize,
        random: &mut StdRng,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        // New ones each time: a prefix that the engine has kept would not be computed again.
        let prompts: Vec<Prompt> = (0..count).map(|number| sentence(number, random).into()).collect();
        let began = Instant::now();
        let classified =
            model.classify(prompts.clone(), ClassifyOptions::new().cancel(cancel.clone())).await?;
        let classify = began.elapsed();
        let options = GenerateOptions::new().max_tokens(1).ignore_eos(true).cancel(cancel.clone());
        let began = Instant::now();
        for prompt in prompts {
            model.generate(prompt, options.clone()).await?.finish().await?;
        }
        let tokens = classified.iter().map(|classification| classification.prompt_tokens).sum();
        Ok(Self { tokens, classify, generate: began.elapsed() })
    }
}

/// A short sentence, different for each number.
fn sentence(number: usize, random: &mut StdRng) -> String {
    const WHO: [&str; 10] = [
        "My uncle",
        "The baker",
        "A young sailor",
        "The new teacher",
        "Our neighbour",
        "Her brother",
        "The museum",
        "An old farmer",
        "The team",
        "Their doctor",
    ];
    const DID: [&str; 10] =
        ["sold", "found", "painted", "counted", "wanted", "lost", "bought", "repaired", "drew", "carried"];
    const WHAT: [&str; 10] = [
        "apples",
        "red boats",
        "letters",
        "green bottles",
        "maps",
        "songs",
        "chairs",
        "tickets",
        "coins",
        "lamps",
    ];
    const WHEN: [&str; 10] = [
        "yesterday",
        "in the morning",
        "at the market",
        "by the river",
        "before dinner",
        "last winter",
        "in Paris",
        "after the match",
        "on Monday",
        "at school",
    ];
    let mut one_of = |words: &[&'static str; 10]| *words.choose(random).unwrap_or(&words[0]);
    format!("{} {} {number} {} {}.", one_of(&WHO), one_of(&DID), one_of(&WHAT), one_of(&WHEN))
}

/// The figures of all trials.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    model: &'a ModelInfo,
    backend: &'a BackendInfo,
    program: Program,
    sentences: usize,
    trials: usize,
    seed: u64,
    prompt_tokens: Spread,
    classify_ms: Spread,
    generate_ms: Spread,
    generate_over_classify: Spread,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        sentences: usize,
        seed: u64,
        (model, backend): (&'a ModelInfo, &'a BackendInfo),
        trials: &[Trial],
    ) -> Self {
        let spread = |figure: fn(&Trial) -> f64| Spread::of(trials.iter().map(figure).collect());
        Self {
            model,
            backend,
            program: Program::this(),
            sentences,
            trials: trials.len(),
            seed,
            prompt_tokens: spread(|trial| trial.tokens as f64),
            classify_ms: spread(|trial| trial.classify.as_secs_f64() * 1e3),
            generate_ms: spread(|trial| trial.generate.as_secs_f64() * 1e3),
            generate_over_classify: spread(|trial| {
                trial.generate.as_secs_f64() / trial.classify.as_secs_f64()
            }),
        }
    }

    pub(super) fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        let trials = format!("{} of {}", self.trials, render::things(self.sentences, "sentence"));
        out.table(&subject(self.model, self.backend, trials))?;
        out.line("")?;
        let mut table = Spread::table();
        for (name, spread, digits) in [
            ("tokens of all sentences", self.prompt_tokens, 0),
            ("one classification of all, ms", self.classify_ms, 1),
            ("a token after each in turn, ms", self.generate_ms, 1),
            ("the latter over the former", self.generate_over_classify, 1),
        ] {
            spread.add_to(&mut table, name, &|value| format!("{value:.digits$}"));
        }
        out.table(&table)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn sentences_differ() {
        let mut random = StdRng::seed_from_u64(0);
        let sentences: HashSet<_> = (0..1000).map(|number| sentence(number, &mut random)).collect();
        assert_eq!(sentences.len(), 1000);
    }
}
