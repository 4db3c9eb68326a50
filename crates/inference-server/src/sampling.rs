//! How tokens are chosen, as OpenAI's APIs say it, with the further options that local servers have.

use std::collections::BTreeMap;

use inference_core::GenerateOptions;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};

/// A text or a list of them.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// The options of a request that say how tokens are chosen. What is unset is left to the model's own defaults.
#[derive(Debug, Default)]
pub(crate) struct Sampling {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) min_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) min_p: Option<f32>,
    pub(crate) seed: Option<i64>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) stop: Option<OneOrMany>,
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    pub(crate) ignore_eos: Option<bool>,
}

impl Sampling {
    /// The library's options.
    ///
    /// # Errors
    /// A key of `logit_bias` is no token id, or a value makes no sense.
    pub(crate) fn options(self) -> ApiResult<GenerateOptions> {
        let mut options = GenerateOptions::new().ignore_eos(self.ignore_eos.unwrap_or(false));
        options.max_tokens = self.max_tokens;
        options.min_tokens = self.min_tokens;
        let sampling = &mut options.sampling;
        sampling.temperature = self.temperature;
        sampling.top_p = self.top_p;
        sampling.top_k = self.top_k;
        sampling.min_p = self.min_p;
        // Any number is as good a seed as any other.
        sampling.seed = self.seed.map(i64::cast_unsigned);
        sampling.repetition_penalty = self.repetition_penalty;
        // Many clients send the zero that changes nothing.
        sampling.presence_penalty = self.presence_penalty.filter(|penalty| *penalty != 0.0);
        sampling.frequency_penalty = self.frequency_penalty.filter(|penalty| *penalty != 0.0);
        if let Some(biases) = self.logit_bias.filter(|biases| !biases.is_empty()) {
            let biases = biases.into_iter().map(|(id, bias)| {
                let parsed = id.parse::<u32>().map(|id| (id, bias));
                parsed.map_err(|_| ApiError::invalid("logit_bias", format!("{id:?}, expected a token's id")))
            });
            options = options.logit_bias(biases.collect::<ApiResult<Vec<_>>>()?);
        }
        let stop: Vec<String> = self.stop.map(OneOrMany::into_vec).unwrap_or_default();
        if !stop.is_empty() {
            options = options.stop(stop);
        }
        if let Some(ids) = self.stop_token_ids.filter(|ids| !ids.is_empty()) {
            options = options.stop_tokens(ids);
        }
        options.validate()?;
        Ok(options)
    }
}

/// The options of one of several answers to the same request: each draws its own.
pub(crate) fn of_answer(options: &GenerateOptions, number: usize) -> GenerateOptions {
    let mut options = options.clone();
    options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(number as u64));
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unset_stays_so_and_zero_penalties_need_no_feature() {
        let sampling = Sampling { presence_penalty: Some(0.0), seed: Some(-1), ..Sampling::default() };
        let options = sampling.options().unwrap();
        assert_eq!((options.sampling.presence_penalty, options.sampling.temperature), (None, None));
        assert_eq!(options.sampling.seed, Some(u64::MAX));
        assert_eq!(of_answer(&options, 2).sampling.seed, Some(1));
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let wrong = |sampling: Sampling| sampling.options().unwrap_err().param.unwrap();
        assert_eq!(wrong(Sampling { top_p: Some(2.0), ..Sampling::default() }), "top_p");
        let logit_bias = Some(BTreeMap::from([("a".to_owned(), 1.0)]));
        assert_eq!(wrong(Sampling { logit_bias, ..Sampling::default() }), "logit_bias");
        let stop = Some(OneOrMany::One(String::new()));
        assert_eq!(wrong(Sampling { stop, ..Sampling::default() }), "stop");
    }
}
