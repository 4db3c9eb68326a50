//! Sampling options as llama.cpp's.
//!
//! llama.cpp adds the logit bias first. The order of the rest is the request's: penalties → top-p → min-p → XTC → top-k →
//! temperature, as the contract has it. What a request leaves out would be llama-server's defaults, which filter: so every value is
//! given.

use std::collections::BTreeMap;

use inference_core::{Error, GenerateOptions, Result, SamplingOptions};
use serde_json::{Map, Value, json};

/// llama.cpp takes this seed for a wish for a random one.
const RANDOM_SEED: u32 = u32::MAX;

/// Logit biases up to which logits are not far apart.
const MOST_BIAS: f32 = 32.0;

/// Apart in the seeds of one token's draws.
const DRAW: u64 = 0xd1b5_4a32_d192_ed03;

/// How the tokens of one answer are chosen.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    fields: Map<String, Value>,
    biases: BTreeMap<u32, f32>,
    seed: u64,
    filtered: bool,
    liftable: bool,
}

impl Sampler {
    /// The sampler of these options, for a model of so many ids and a context of so many tokens.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names options that exclude each other here.
    pub(crate) fn new(options: &GenerateOptions, vocab_size: usize, context: usize) -> Result<Self> {
        let sampling = &options.sampling;
        check(options)?;
        let mut biases = BTreeMap::new();
        for (id, bias) in sampling.logit_bias.iter().flat_map(|biases| biases.iter()) {
            if (*id as usize) < vocab_size {
                *biases.entry(*id).or_insert(0.0) += bias;
            }
        }
        let is_greedy = sampling.temperature_or_greedy() == 0.0;
        let fields = fields(sampling, is_greedy, context);
        let filters = [
            sampling.top_p.is_some_and(|p| p < 1.0),
            sampling.min_p.is_some_and(|p| p > 0.0),
            sampling.top_k.is_some_and(|k| k > 0),
            sampling.xtc.is_some(),
        ];
        let scaled = sampling.repetition_penalty.is_some_and(|penalty| penalty != 1.0);
        let liftable = !scaled && biases.values().all(|bias| *bias <= MOST_BIAS);
        Ok(Self {
            fields,
            biases,
            seed: sampling.seed_or_random(),
            filtered: !is_greedy && filters.contains(&true),
            liftable,
        })
    }

    /// Whether some tokens that have a probability cannot be drawn.
    pub(crate) fn is_filtered(&self) -> bool {
        self.filtered
    }

    /// Whether tokens whose logits are lifted far above the others keep their distances, and are above them.
    pub(crate) fn is_liftable(&self) -> bool {
        self.liftable
    }

    /// The fields of a request whose answer begins with token number `step`, for draw number `draw` of that token, with more biases.
    pub(crate) fn fields(&self, step: usize, draw: u64, more: &BTreeMap<u32, f32>) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        let mut biases = self.biases.clone();
        for (id, bias) in more {
            *biases.entry(*id).or_insert(0.0) += bias;
        }
        // `false` is how a token is banned.
        let biases = biases
            .into_iter()
            .map(|(id, bias)| if bias.is_finite() { json!([id, bias]) } else { json!([id, false]) });
        fields.insert("logit_bias".to_owned(), biases.collect());
        fields
            .insert("seed".to_owned(), json!(seed_of(self.seed.wrapping_add(draw.wrapping_mul(DRAW)), step)));
        fields
    }
}

/// Refuses what cannot be had together.
fn check(options: &GenerateOptions) -> Result<()> {
    if options.log_probabilities.is_some() && options.sampling.edits_logits() {
        let reason = "llama-server reports the model's own, before logit bias and penalties, and one of those is set: leave one of \
            the two out";
        return Err(Error::invalid_option("log_probabilities", reason));
    }
    if options.log_probabilities.is_some() && options.is_constrained() {
        let reason = "llama-server reports the model's own, not those of the tokens that a constraint leaves: leave one of the two out";
        return Err(Error::invalid_option("log_probabilities", reason));
    }
    Ok(())
}

fn fields(sampling: &SamplingOptions, is_greedy: bool, context: usize) -> Map<String, Value> {
    // At temperature 0 the filters do not act.
    let samplers: &[&str] = if is_greedy {
        &["penalties", "temperature"]
    } else {
        &["penalties", "top_p", "min_p", "xtc", "top_k", "temperature"]
    };
    let (xtc_probability, xtc_threshold) =
        sampling.xtc.map_or((0.0, 1.0), |xtc| (xtc.probability, xtc.threshold));
    let fields = json!({
        "samplers": samplers,
        "temperature": sampling.temperature_or_greedy(),
        "dynatemp_range": 0.0,
        "top_k": sampling.top_k.unwrap_or(0).min(i32::MAX as usize),
        "top_p": sampling.top_p.unwrap_or(1.0),
        "min_p": sampling.min_p.unwrap_or(0.0),
        "min_keep": 0,
        "xtc_probability": xtc_probability,
        "xtc_threshold": xtc_threshold,
        "repeat_penalty": sampling.repetition_penalty.unwrap_or(1.0),
        "presence_penalty": sampling.presence_penalty.unwrap_or(0.0),
        "frequency_penalty": sampling.frequency_penalty.unwrap_or(0.0),
        "repeat_last_n": sampling.window().min(context),
        "mirostat": 0,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// A seed of 32 bits for the request whose answer begins with token number `step`: the finaliser of splitmix64 (Steele, Lea,
/// Flood 2014) of both.
fn seed_of(seed: u64, step: usize) -> u32 {
    let mut mixed = seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let seed = ((mixed ^ (mixed >> 31)) >> 32) as u32;
    if seed == RANDOM_SEED { 0 } else { seed }
}

#[cfg(test)]
mod tests {
    use inference_core::{Constraint, Xtc};

    use super::*;

    fn sampled(options: &GenerateOptions) -> Map<String, Value> {
        Sampler::new(options, 100, 4096).unwrap().fields(0, 0, &BTreeMap::new())
    }

    #[test]
    fn every_value_is_given_in_the_contracts_order() {
        let options =
            GenerateOptions::new().temperature(0.5).top_p(0.5).xtc(Xtc::new(0.25, 0.125)).penalty_window(7);
        let fields = sampled(&options.repetition_penalty(1.5).seed(3));
        assert_eq!(fields["samplers"], json!(["penalties", "top_p", "min_p", "xtc", "top_k", "temperature"]));
        assert_eq!(
            (&fields["top_p"], &fields["top_k"], &fields["min_p"]),
            (&json!(0.5), &json!(0), &json!(0.0))
        );
        assert_eq!((&fields["xtc_probability"], &fields["xtc_threshold"]), (&json!(0.25), &json!(0.125)));
        assert_eq!((&fields["repeat_last_n"], &fields["repeat_penalty"]), (&json!(7), &json!(1.5)));
        let greedy = sampled(&GenerateOptions::new().top_p(0.5));
        assert_eq!(
            (&greedy["samplers"], &greedy["temperature"]),
            (&json!(["penalties", "temperature"]), &json!(0.0))
        );
    }

    #[test]
    fn biases_add_up_and_bans_are_false() {
        let biases = [(1, 2.0), (1, 0.5), (2, f32::NEG_INFINITY), (3, 1.0), (100, 4.0)];
        let sampler = Sampler::new(&GenerateOptions::new().logit_bias(biases), 100, 4096).unwrap();
        let biased =
            |more: &[(u32, f32)]| sampler.fields(0, 0, &more.iter().copied().collect())["logit_bias"].clone();
        assert_eq!(biased(&[]), json!([[1, 2.5], [2, false], [3, 1.0]]));
        let banned = f32::NEG_INFINITY;
        assert_eq!(
            biased(&[(1, 1.0), (2, 8.0), (3, banned), (9, banned)]),
            json!([[1, 3.5], [2, false], [3, false], [9, false]])
        );
    }

    #[test]
    fn seeds_and_steps_give_seeds() {
        let seeds: std::collections::BTreeSet<u32> =
            (0..100).flat_map(|seed| (0..100).map(move |step| seed_of(seed, step))).collect();
        assert!(seeds.len() > 9_990 && !seeds.contains(&RANDOM_SEED));
        assert_eq!(seed_of(u64::MAX, 3), seed_of(u64::MAX, 3));
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        let refused = |options: GenerateOptions| match Sampler::new(&options, 100, 4096) {
            Err(Error::InvalidOption { option, .. }) => option,
            other => panic!("expected a refusal, got {other:?}"),
        };
        let probable = GenerateOptions::new().log_probabilities(2);
        assert_eq!(refused(probable.clone().logit_bias([(1, 1.0)])), "log_probabilities");
        assert_eq!(refused(probable.clone().presence_penalty(1.0)), "log_probabilities");
        assert!(Sampler::new(&probable.presence_penalty(0.0), 100, 4096).is_ok());
        let constrained = GenerateOptions::new().constraint(Constraint::choice(["a"]));
        assert_eq!(refused(constrained.log_probabilities(0)), "log_probabilities");
    }
}
