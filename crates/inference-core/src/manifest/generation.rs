//! generation_config.json: the sampling values that the model's publisher recommends.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::config::{Config, shown};
use crate::{Feature, GenerateOptions, Result, capabilities::Capabilities, files::read_value};

/// The file's name in a model's folder.
const FILE: &str = "generation_config.json";

/// The longest generation_config.json, in bytes; published ones stay under 2 kB.
const LONGEST: u64 = 1 << 20;

/// The sampling values of generation_config.json, checked. All are unset where the folder has no such file.
///
/// [`load_model`](crate::load_model) applies them to every request that leaves the value unset, as transformers does:
///
/// - `do_sample: true` draws at `temperature`, or 1 where the file has none. Without `do_sample`, a request that sets no
///   temperature is greedy.
/// - `top_p`, `top_k` and `min_p` apply where the request draws: at a temperature above 0.
/// - `repetition_penalty` applies to every request, and looks at the whole context, where the request sets no penalty.
///
/// [`GenerateOptions::generation_config(false)`](crate::GenerateOptions::generation_config) leaves all of them out, and
/// `temperature(0.0)` makes a request greedy. A value that the backend cannot honour is reported in
/// [`Finish::without_effect`](crate::Finish::without_effect).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Whether the model is sampled from, rather than decoded greedily.
    pub do_sample: Option<bool>,
    /// See [`SamplingOptions::temperature`](crate::SamplingOptions::temperature).
    pub temperature: Option<f32>,
    /// See [`SamplingOptions::top_p`](crate::SamplingOptions::top_p).
    pub top_p: Option<f32>,
    /// See [`SamplingOptions::min_p`](crate::SamplingOptions::min_p).
    pub min_p: Option<f32>,
    /// See [`SamplingOptions::top_k`](crate::SamplingOptions::top_k).
    pub top_k: Option<usize>,
    /// See [`SamplingOptions::repetition_penalty`](crate::SamplingOptions::repetition_penalty).
    pub repetition_penalty: Option<f32>,
    /// Ids that end a text; unset where the file leaves them to config.json.
    pub eos_token_ids: Option<Vec<u32>>,
}

impl GenerationConfig {
    /// Reads the folder's file, if there is one.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(Self::default());
        }
        Self::from_value(&path, &read_value(&path, LONGEST)?)
    }

    /// What the file at `path` says, parsed.
    pub(super) fn from_value(path: &Path, value: &Value) -> Result<Self> {
        let config = Config::new(path, value);
        if !value.is_object() {
            return Err(crate::Error::invalid_file(path, format!("is {}, expected an object", shown(value))));
        }
        let number = |name: &str, expected: &str, ok: fn(f64) -> bool| {
            let Some(value) = value.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
            match value.as_f64().filter(|number| number.is_finite() && ok(*number)) {
                Some(number) => Ok(Some(number as f32)),
                None => Err(config.wrong(name, value, expected)),
            }
        };
        let do_sample = match value.get("do_sample") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(sample)) => Some(*sample),
            Some(other) => return Err(config.wrong("do_sample", other, "true or false")),
        };
        let top_k = match value.get("top_k") {
            None | Some(Value::Null) => None,
            Some(found) => match found.as_u64().and_then(|k| usize::try_from(k).ok()) {
                Some(k) => Some(k),
                None => return Err(config.wrong("top_k", found, "a whole number from 0")),
            },
        };
        Ok(Self {
            do_sample,
            temperature: number("temperature", "a number from 0", |t| t >= 0.0)?,
            top_p: number("top_p", "a number above 0, up to 1", |p| p > 0.0 && p <= 1.0)?,
            min_p: number("min_p", "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?,
            top_k,
            repetition_penalty: number("repetition_penalty", "a number above 0", |p| p > 0.0)?,
            eos_token_ids: config.ids("eos_token_id")?,
        })
    }

    /// Sets what a request leaves unset. Returns the features of values that the backend lacks, which are left out.
    pub(crate) fn apply(
        &self,
        options: &mut GenerateOptions,
        capabilities: Capabilities,
        context_length: usize,
    ) -> Vec<Feature> {
        let mut lacking = Vec::new();
        if options.generation_config == Some(false) {
            return lacking;
        }
        let mut can = |feature| {
            let has = capabilities.has(feature);
            if !has {
                lacking.push(feature);
            }
            has
        };
        let sampling = &mut options.sampling;
        let no_penalty = sampling.repetition_penalty.is_none()
            && sampling.presence_penalty.is_none()
            && sampling.frequency_penalty.is_none();
        if let Some(penalty) = self.repetition_penalty.filter(|penalty| *penalty != 1.0)
            && no_penalty
            && can(Feature::RepetitionPenalty)
        {
            sampling.repetition_penalty = Some(penalty);
            sampling.penalty_window.get_or_insert(context_length);
        }
        if sampling.temperature.is_none() && self.do_sample == Some(true) {
            let temperature = self.temperature.unwrap_or(1.0);
            if temperature > 0.0 && can(Feature::Sampling) {
                sampling.temperature = Some(temperature);
            }
        }
        if sampling.temperature_or_greedy() > 0.0 {
            if let Some(p) = self.top_p.filter(|p| *p < 1.0 && sampling.top_p.is_none())
                && can(Feature::TopP)
            {
                sampling.top_p = Some(p);
            }
            if let Some(k) = self.top_k.filter(|k| *k > 0 && sampling.top_k.is_none())
                && can(Feature::TopK)
            {
                sampling.top_k = Some(k);
            }
            if let Some(p) = self.min_p.filter(|p| *p > 0.0 && sampling.min_p.is_none())
                && can(Feature::MinP)
            {
                sampling.min_p = Some(p);
            }
        }
        lacking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GenerationConfig {
        GenerationConfig {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_p: Some(0.9),
            top_k: Some(20),
            repetition_penalty: Some(1.05),
            ..GenerationConfig::default()
        }
    }

    fn applied(config: &GenerationConfig, mut options: GenerateOptions) -> GenerateOptions {
        assert!(config.apply(&mut options, Capabilities::from_features(Feature::ALL), 512).is_empty());
        options
    }

    #[test]
    fn what_a_request_leaves_unset_is_the_models() {
        let sampling = applied(&config(), GenerateOptions::new().top_k(3)).sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (Some(0.6), Some(0.9), Some(3)));
        assert_eq!((sampling.repetition_penalty, sampling.penalty_window), (Some(1.05), Some(512)));
        let greedy = applied(&config(), GenerateOptions::new().temperature(0.0)).sampling;
        assert_eq!((greedy.temperature, greedy.top_p, greedy.top_k), (Some(0.0), None, None));
        let own = applied(&config(), GenerateOptions::new().presence_penalty(0.5)).sampling;
        assert_eq!((own.repetition_penalty, own.penalty_window), (None, None));
        let none = applied(&config(), GenerateOptions::new().generation_config(false));
        assert_eq!(none.sampling, GenerateOptions::new().sampling);
    }

    #[test]
    fn without_do_sample_a_request_is_greedy_unless_it_draws() {
        let config = GenerationConfig { do_sample: None, repetition_penalty: None, ..config() };
        assert_eq!(applied(&config, GenerateOptions::new()).sampling, GenerateOptions::new().sampling);
        let drawn = applied(&config, GenerateOptions::new().temperature(1.5)).sampling;
        assert_eq!((drawn.temperature, drawn.top_p, drawn.top_k), (Some(1.5), Some(0.9), Some(20)));
        let sample = GenerationConfig { do_sample: Some(true), ..GenerationConfig::default() };
        assert_eq!(applied(&sample, GenerateOptions::new()).sampling.temperature, Some(1.0));
    }

    #[test]
    fn what_the_backend_lacks_is_left_out_and_reported() {
        let mut options = GenerateOptions::new();
        let can = Capabilities::from_features(&[Feature::Sampling, Feature::TopP]);
        let lacking = config().apply(&mut options, can, 512);
        assert_eq!(lacking, [Feature::RepetitionPenalty, Feature::TopK]);
        assert_eq!((options.sampling.temperature, options.sampling.top_k), (Some(0.6), None));
    }
}
