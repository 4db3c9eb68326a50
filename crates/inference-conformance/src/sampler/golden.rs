//! A small set of cases with their answers, for samplers on a device.

use inference_core::{SamplingOptions, Xtc};
use serde::{Deserialize, Serialize};

/// A distribution that a sampler has to give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GoldenCase {
    /// What the case is about.
    pub name: String,
    /// The logits, one for each id.
    pub logits: Vec<f32>,
    /// Prompt and answer so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<u32>,
    options: Options,
    /// The log-probabilities after bias and penalties.
    pub log_probabilities: Vec<f64>,
    /// What the draw follows, XTC averaged over.
    pub probabilities: Vec<f64>,
}

impl GoldenCase {
    /// The options of the case.
    #[must_use]
    pub fn options(&self) -> SamplingOptions {
        self.options.clone().into()
    }
}

/// The cases: every option alone and some together, at their edges and between.
///
/// # Panics
/// Never: the file is part of the crate and tested.
#[must_use]
pub fn golden_cases() -> Vec<GoldenCase> {
    serde_json::from_str(include_str!("golden.json")).expect("the committed cases parse")
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xtc: Option<(f32, f32)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logit_bias: Vec<(u32, f32)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    penalty_window: Option<usize>,
}

impl From<Options> for SamplingOptions {
    fn from(options: Options) -> Self {
        let mut sampling = Self::default();
        sampling.temperature = options.temperature;
        sampling.top_p = options.top_p;
        sampling.min_p = options.min_p;
        sampling.top_k = options.top_k;
        sampling.xtc = options.xtc.map(|(probability, threshold)| Xtc::new(probability, threshold));
        sampling.logit_bias = (!options.logit_bias.is_empty()).then(|| options.logit_bias.into());
        sampling.repetition_penalty = options.repetition_penalty;
        sampling.presence_penalty = options.presence_penalty;
        sampling.frequency_penalty = options.frequency_penalty;
        sampling.penalty_window = options.penalty_window;
        sampling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler;

    /// The cases as the reference answers them now; `golden.json` is this, written down.
    fn computed() -> Vec<GoldenCase> {
        let set = |f: fn(&mut Options)| {
            let mut options = Options { temperature: Some(1.0), ..Options::default() };
            f(&mut options);
            options
        };
        let cases = [
            ("greedy", Options::default()),
            ("plain draw", set(|_| {})),
            ("cold", set(|o| o.temperature = Some(0.3))),
            ("hot", set(|o| o.temperature = Some(2.5))),
            ("top-p 0.1", set(|o| o.top_p = Some(0.1))),
            ("top-p 0.7", set(|o| o.top_p = Some(0.7))),
            ("top-p 1", set(|o| o.top_p = Some(1.0))),
            ("min-p 0", set(|o| o.min_p = Some(0.0))),
            ("min-p 0.1", set(|o| o.min_p = Some(0.1))),
            ("min-p 1", set(|o| o.min_p = Some(1.0))),
            ("top-k 0", set(|o| o.top_k = Some(0))),
            ("top-k 1", set(|o| o.top_k = Some(1))),
            ("top-k 5", set(|o| o.top_k = Some(5))),
            ("top-k past the vocabulary", set(|o| o.top_k = Some(99))),
            ("xtc always", set(|o| o.xtc = Some((1.0, 0.1)))),
            ("xtc half the time", set(|o| o.xtc = Some((0.5, 0.05)))),
            ("xtc never", set(|o| o.xtc = Some((0.0, 0.1)))),
            ("logit bias", set(|o| o.logit_bias = vec![(0, 4.0), (3, -1.5), (0, 0.5)])),
            ("repetition penalty", set(|o| o.repetition_penalty = Some(1.7))),
            ("repetition reward", set(|o| o.repetition_penalty = Some(0.6))),
            ("presence penalty", set(|o| o.presence_penalty = Some(1.25))),
            ("frequency penalty", set(|o| o.frequency_penalty = Some(0.75))),
            ("a short window", set(|o| (o.frequency_penalty, o.penalty_window) = (Some(0.75), Some(2)))),
            ("an empty window", set(|o| (o.presence_penalty, o.penalty_window) = (Some(2.0), Some(0)))),
            ("top-p before a hot draw", set(|o| (o.top_p, o.temperature) = (Some(0.6), Some(3.0)))),
            ("greedy with penalties", {
                let penalty = Some(3.0);
                Options { repetition_penalty: penalty, presence_penalty: penalty, ..Options::default() }
            }),
            (
                "everything",
                Options {
                    temperature: Some(0.8),
                    top_p: Some(0.95),
                    min_p: Some(0.02),
                    top_k: Some(8),
                    xtc: Some((0.4, 0.15)),
                    logit_bias: vec![(2, 1.0)],
                    repetition_penalty: Some(1.2),
                    presence_penalty: Some(0.3),
                    frequency_penalty: Some(0.2),
                    penalty_window: Some(4),
                },
            ),
        ];
        let mut state = 1_u64;
        let mut logit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Eighths are exact in every float type down to bf16.
            ((state >> 33) % 64) as f32 / 8.0 - 4.0
        };
        let history = vec![1, 4, 4, 9, 2, 4];
        let case = |(name, options): (&str, Options)| {
            // Distinct logits: ties are the reference's own choice.
            let mut logits: Vec<f32> = Vec::new();
            while logits.len() < 16 {
                let next = logit();
                if !logits.contains(&next) {
                    logits.push(next);
                }
            }
            let exact: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
            let sampling = SamplingOptions::from(options.clone());
            let round = |values: Vec<f64>| values.iter().map(|v| (v * 1e10).round() / 1e10).collect();
            GoldenCase {
                name: name.to_owned(),
                log_probabilities: round(sampler::log_probabilities(&exact, &history, &sampling)),
                probabilities: round(sampler::probabilities(&exact, &history, &sampling)),
                logits,
                history: history.clone(),
                options,
            }
        };
        cases.into_iter().map(case).collect()
    }

    /// `cargo test -p inferlm-conformance -- --ignored write_golden` rewrites the file.
    #[test]
    #[ignore = "writes golden.json"]
    fn write_golden() {
        let lines: Vec<_> = computed().iter().map(|case| serde_json::to_string(case).unwrap()).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sampler/golden.json");
        std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }

    #[test]
    fn the_reference_still_gives_the_golden_answers() {
        let (now, then) = (computed(), golden_cases());
        assert_eq!(now.len(), then.len());
        for (now, then) in now.iter().zip(&then) {
            assert_eq!((&now.name, &now.logits, &now.options), (&then.name, &then.logits, &then.options));
            for (a, b) in now.probabilities.iter().zip(&then.probabilities) {
                assert!((a - b).abs() < 1e-9, "{}: {a} and {b}", now.name);
            }
        }
    }
}
