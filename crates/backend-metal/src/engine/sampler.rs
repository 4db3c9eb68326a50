//! From logits to a token id, on the device, in the contract's order.
//!
//! Logit bias → repetition, presence, frequency penalties → the caller's processor → log-probabilities → top-p → min-p → XTC → top-k →
//! temperature → draw. Draws take their noise from the row's own seed and step, so that they do not depend on the batch: rows that
//! only draw are computed together.

use inference_core::{GenerateOptions, SamplingOptions};
use mlx_rs::{
    Array,
    error::Result,
    ops::{self, indexing::scatter_add_single},
};

use crate::{
    mlx::random_bits,
    nn::{self, Draw, Sampling, argmax, argmax_with_score},
};

/// What is wrong with logits that no token can be chosen from.
pub(super) const NOT_FINITE: &str = "the logits are not finite numbers: weights or activations are NaN or infinite, or \
                                    every token is banned";

/// How one row chooses its tokens.
#[derive(Debug)]
pub(super) struct Sampler {
    options: SamplingOptions,
    method: Method,
    /// [1, V], added to the logits.
    bias: Option<Array>,
    /// [1, V], −∞ at the end-of-sequence ids, added before `min_tokens`.
    eos_mask: Option<Array>,
    min_tokens: usize,
    seed: u64,
    /// How many likeliest tokens to report, if log-probabilities are asked for.
    top_logprobs: Option<usize>,
}

/// What a choice is made from, which says whether rows can choose together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// The likeliest token of the raw logits.
    Greedy,
    /// A draw from the raw logits.
    PureSampling,
    /// Logits that are edited first, or log-probabilities that are reported.
    Custom,
}

/// Tokens that were chosen, not yet computed.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// [n], u32.
    pub(super) ids: Array,
    /// [n], f32: finite where the logits that each was chosen from are.
    pub(super) scores: Array,
    pub(super) logprobs: Option<LogprobArrays>,
}

/// The log-probabilities of a choice, not yet computed.
#[derive(Debug, Clone)]
pub(super) struct LogprobArrays {
    /// [1, 1], f32: the chosen token's.
    pub(super) chosen: Array,
    /// [1, n], u32 and f32: the n likeliest, in no order.
    pub(super) top: Option<(Array, Array)>,
}

impl LogprobArrays {
    /// All that has to be computed.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let top = self.top.iter().flat_map(|(ids, values)| [ids, values]);
        std::iter::once(&self.chosen).chain(top)
    }
}

impl Sampler {
    /// A sampler for one request; `eos` are the ids that end its text.
    pub(super) fn new(options: &GenerateOptions, eos: &[u32], vocab_size: usize) -> Self {
        let dense = |entries: &mut dyn Iterator<Item = (u32, f32)>| {
            let mut values = vec![0.0; vocab_size];
            for (id, bias) in entries {
                if let Some(value) = values.get_mut(id as usize) {
                    *value += bias;
                }
            }
            Array::from_slice(&values, &[1, vocab_size as i32])
        };
        let sampling = &options.sampling;
        let biases = sampling.logit_bias.as_deref().filter(|biases| !biases.is_empty());
        let min_tokens = options.min_tokens.unwrap_or(0);
        let method = if sampling.edits_logits() || min_tokens > 0 || options.log_probabilities.is_some() {
            Method::Custom
        } else if sampling.temperature_or_greedy() == 0.0 {
            Method::Greedy
        } else {
            Method::PureSampling
        };
        Self {
            method,
            bias: biases.map(|biases| dense(&mut biases.iter().copied())),
            eos_mask: (min_tokens > 0).then(|| dense(&mut eos.iter().map(|id| (*id, f32::NEG_INFINITY)))),
            min_tokens,
            seed: sampling.seed.unwrap_or_else(rand::random),
            top_logprobs: options.log_probabilities,
            options: sampling.clone(),
        }
    }

    /// Whether the choice is the likeliest of the raw logits, which a whole batch can share one operation for.
    pub(super) fn is_greedy(&self) -> bool {
        self.method == Method::Greedy
    }

    /// Whether the choice is drawn from the raw logits, which rows can do together: see [`draw`].
    pub(super) fn is_pure_sampling(&self) -> bool {
        self.method == Method::PureSampling
    }

    /// How many of the last tokens [`adjust`](Self::adjust) wants to see.
    pub(super) fn window(&self) -> usize {
        if self.options.has_penalties() { self.options.window() } else { 0 }
    }

    /// The logits of the token at `step` (from 0) of the answer after bias and penalties: [1, V], f32.
    ///
    /// `logits` is [1, V]; `recent` is [n], u32: the last tokens, at most [`window`](Self::window) of them.
    pub(super) fn adjust(&self, logits: &Array, recent: Option<&Array>, step: usize) -> Result<Array> {
        let mut logits = logits.as_type::<f32>()?;
        if let Some(bias) = &self.bias {
            logits = logits.add(bias)?;
        }
        if let Some(eos_mask) = self.eos_mask.as_ref().filter(|_| step < self.min_tokens) {
            logits = logits.add(eos_mask)?;
        }
        match recent {
            Some(recent) => self.penalize(logits, recent),
            None => Ok(logits),
        }
    }

    /// Chooses the token at `step` from adjusted logits [1, V].
    pub(super) fn choose(&self, logits: &Array, step: usize) -> Result<Choice> {
        let temperature = self.options.temperature_or_greedy();
        if temperature == 0.0 && self.top_logprobs.is_none() {
            return greedy(logits);
        }
        if self.top_logprobs.is_none() {
            return draw_from(&[(self, step)], logits);
        }
        let log_probabilities = log_softmax(logits)?;
        let ids = if temperature == 0.0 {
            argmax(logits)?
        } else {
            draw(&[(self, step)], log_probabilities.clone())?
        };
        let scores = pick(&log_probabilities, &ids)?;
        let logprobs = self.top_logprobs.map(|top| report(&log_probabilities, &ids, top)).transpose()?;
        Ok(Choice { ids, scores, logprobs })
    }

    /// The draws from the token at `step` on as the CUDA kernels take them; `None` with XTC, which they do not have.
    pub(super) fn replayed_draws(&self, step: usize) -> Option<Sampling> {
        let SamplingOptions { top_p, min_p, top_k, xtc, .. } = self.options;
        xtc.is_none().then(|| Sampling {
            seed: self.seed,
            step: step as u64,
            temperature: self.options.temperature_or_greedy(),
            top_p: top_p.filter(|p| *p < 1.0),
            min_p: min_p.filter(|p| *p > 0.0),
            top_k: top_k.filter(|k| *k > 0),
        })
    }

    /// The draw of the token at `step` as the CPU's kernels take it; `None` with XTC, which they do not have.
    fn kernel_draw(&self, step: usize) -> Option<Draw> {
        let Sampling { seed, step, temperature, top_p, min_p, top_k } = self.replayed_draws(step)?;
        let random = mix(seed, step);
        let key = [(random >> 32) as u32, random as u32];
        Some(Draw { key, temperature, top_p, min_p, top_k })
    }

    /// Takes this token, whatever the adjusted logits [1, V] say.
    pub(super) fn force(&self, logits: &Array, id: u32) -> Result<Choice> {
        let ids = Array::from_slice(&[id], &[1]);
        let logprobs = self.top_logprobs.map(|top| report(&log_softmax(logits)?, &ids, top)).transpose()?;
        // The caller decided: the logits may say what they like.
        Ok(Choice { ids, scores: Array::from_slice(&[0.0_f32], &[1]), logprobs })
    }

    fn penalize(&self, mut logits: Array, recent: &Array) -> Result<Array> {
        let ids = recent.reshape(&[1, -1])?;
        if let Some(penalty) = self.options.repetition_penalty.filter(|p| *p != 1.0) {
            let seen = logits.take_along_axis(&ids, -1)?;
            let penalty = Array::from_f32(penalty);
            let seen = ops::select(
                seen.lt(Array::from_f32(0.0))?,
                seen.multiply(&penalty)?,
                seen.divide(&penalty)?,
            )?;
            logits = logits.put_along_axis(&ids, seen, -1)?;
        }
        if let Some(penalty) = self.options.presence_penalty.filter(|p| *p != 0.0) {
            // A token that was seen twice is written twice, with the same value.
            let seen = logits.take_along_axis(&ids, -1)?.subtract(Array::from_f32(penalty))?;
            logits = logits.put_along_axis(&ids, seen, -1)?;
        }
        if let Some(penalty) = self.options.frequency_penalty.filter(|p| *p != 0.0) {
            let count = recent.dim(0);
            let updates = ops::full::<f32>(&[count, 1, 1], Array::from_f32(-penalty))?;
            logits = scatter_add_single(&logits, recent, updates, 1)?;
        }
        Ok(logits)
    }
}

/// The likeliest token of each row of logits [B, V].
pub(super) fn greedy(logits: &Array) -> Result<Choice> {
    let (ids, scores) = argmax_with_score(logits)?;
    Ok(Choice { ids, scores, logprobs: None })
}

/// Of each row of [B, V] the value of one token: [B].
fn pick(values: &Array, ids: &Array) -> Result<Array> {
    values.take_along_axis(ids.reshape(&[-1, 1])?, -1)?.reshape(&[-1])
}

/// Draws a token for each row, a sampler at a step, from the rows' logits [B, V].
pub(super) fn draw_from(rows: &[(&Sampler, usize)], logits: &Array) -> Result<Choice> {
    let draws: Option<Vec<Draw>> = rows.iter().map(|(sampler, step)| sampler.kernel_draw(*step)).collect();
    if let Some(drawn) = draws.and_then(|draws| nn::draw(logits, draws)) {
        let [ids, scores] = drawn?;
        return Ok(Choice { ids, scores, logprobs: None });
    }
    let log_probabilities = log_softmax(&logits.as_type::<f32>()?)?;
    let ids = draw(rows, log_probabilities.clone())?;
    Ok(Choice { scores: pick(&log_probabilities, &ids)?, ids, logprobs: None })
}

/// Draws a token for each row, a sampler at a step, from the rows' log-probabilities [B, V], by the Gumbel-max trick: [B], u32. The
/// noise belongs to the ids, so that two tokens which change places by rounding do not change the draw.
fn draw(rows: &[(&Sampler, usize)], log_probabilities: Array) -> Result<Array> {
    let width = log_probabilities.dim(-1);
    let scores = filter(rows, log_probabilities)?
        .divide(column(rows.iter().map(|(sampler, _)| sampler.options.temperature_or_greedy())))?;
    let bits = rows.iter().map(|(sampler, step)| {
        let random = mix(sampler.seed, *step as u64);
        random_bits(&[1, width], &Array::from_slice(&[(random >> 32) as u32, random as u32], &[2]))
    });
    let bits = bits.collect::<Result<Vec<_>>>()?;
    let bits = if let [bits] = &bits[..] { bits.clone() } else { ops::concatenate(&bits, 0)? };
    // Below 1, which would always win.
    let largest = Array::from_f32(1.0 - f32::EPSILON / 2.0);
    let uniform = ops::minimum(bits.as_type::<f32>()?.multiply(Array::from_f32(0.5_f32.powi(32)))?, largest)?;
    argmax(&scores.subtract(uniform.log()?.negative()?.log()?)?)
}

/// Sets what top-p, min-p, XTC and top-k drop from log-probabilities [B, V] to −∞. What one row does not ask for drops nothing of
/// it where another asks.
fn filter(rows: &[(&Sampler, usize)], log_probabilities: Array) -> Result<Array> {
    let vocab_size = log_probabilities.dim(-1);
    let options = || rows.iter().map(|(sampler, _)| &sampler.options);
    let top_k = |o: &SamplingOptions| {
        o.top_k.and_then(|k| i32::try_from(k).ok()).filter(|k| *k > 0 && *k < vocab_size)
    };
    let top_p = |o: &SamplingOptions| o.top_p.filter(|p| *p < 1.0);
    let min_p = |o: &SamplingOptions| o.min_p.filter(|p| *p > 0.0);
    let xtc = rows.iter().map(|(sampler, step)| {
        let chance = unit(mix(!sampler.seed, *step as u64));
        sampler.options.xtc.filter(|xtc| xtc.probability > chance)
    });
    let xtc: Vec<_> = xtc.collect();
    let with_min_p = options().any(|o| min_p(o).is_some());
    let at_least = |log_probabilities: Array| {
        if !with_min_p {
            return Ok(log_probabilities);
        }
        let shares = column(options().map(|o| min_p(o).map_or(f32::NEG_INFINITY, f32::ln)));
        let floor = ops::max_axis(&log_probabilities, -1, true)?.add(shares)?;
        ops::select(log_probabilities.ge(floor)?, &log_probabilities, Array::from_f32(f32::NEG_INFINITY))
    };
    let (with_top_p, with_top_k) =
        (options().any(|o| top_p(o).is_some()), options().any(|o| top_k(o).is_some()));
    if !(with_top_p || with_top_k || xtc.iter().any(Option::is_some)) {
        return at_least(log_probabilities);
    }

    // These look at ranks: here tokens are in order, the likeliest first.
    let order = ops::argsort_axis(log_probabilities.negative()?, -1)?;
    let mut kept = log_probabilities.take_along_axis(&order, -1)?;
    let nothing = Array::from_f32(f32::NEG_INFINITY);
    if with_top_p {
        let before = kept.exp()?.cumsum(-1, false, false)?;
        let shares = column(options().map(|o| top_p(o).unwrap_or(f32::INFINITY)));
        kept = ops::select(before.lt(shares)?, &kept, &nothing)?;
    }
    kept = at_least(kept)?;
    if xtc.iter().any(Option::is_some) {
        let probabilities = ops::softmax_axis(&kept, -1, true)?;
        let thresholds = column(xtc.iter().map(|xtc| xtc.map_or(f32::INFINITY, |xtc| xtc.threshold)));
        let above = probabilities.gt(thresholds)?;
        let least = ops::select(&above, &probabilities, Array::from_f32(f32::INFINITY))?;
        let least = ops::min_axis(least, -1, true)?;
        kept = ops::select(probabilities.gt(least)?, &nothing, &kept)?;
    }
    if with_top_k {
        let rank = kept.gt(&nothing)?.as_type::<i32>()?.cumsum(-1, false, true)?;
        let last: Vec<i32> = options().map(|o| top_k(o).unwrap_or(vocab_size)).collect();
        let last = Array::from_slice(&last, &[last.len() as i32, 1]);
        kept = ops::select(rank.le(last)?, &kept, &nothing)?;
    }
    log_probabilities.put_along_axis(&order, kept, -1)
}

/// A number for each row, [B, 1].
fn column(values: impl Iterator<Item = f32>) -> Array {
    let values: Vec<f32> = values.collect();
    Array::from_slice(&values, &[values.len() as i32, 1])
}

/// Log-probabilities of logits [B, V], in f32.
fn log_softmax(logits: &Array) -> Result<Array> {
    logits.subtract(ops::logsumexp_axis(logits, -1, true)?)
}

fn report(log_probabilities: &Array, id: &Array, top: usize) -> Result<LogprobArrays> {
    let chosen = log_probabilities.take_along_axis(id.reshape(&[1, 1])?, -1)?;
    let vocab_size = log_probabilities.dim(-1);
    let top = i32::try_from(top).unwrap_or(vocab_size).min(vocab_size);
    if top == 0 {
        return Ok(LogprobArrays { chosen, top: None });
    }
    let order = ops::argsort_axis(log_probabilities.negative()?, -1)?;
    let ids = order.as_strided(&[1, top], None, None)?;
    let values = log_probabilities.take_along_axis(&ids, -1)?;
    Ok(LogprobArrays { chosen, top: Some((ids, values)) })
}

/// SplitMix64 (Steele, Lea, Flood 2014) of a seed and a counter.
fn mix(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add((step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in [0, 1).
fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use inference_conformance::sampler as reference;
    use inference_core::Xtc;
    use mlx_rs::{Device, with_device};
    use proptest::prelude::*;

    use super::*;
    use crate::nn::ExecMode;

    fn array(values: &[f32]) -> Array {
        Array::from_slice(values, &[1, values.len() as i32])
    }

    fn sample(sampler: &Sampler, logits: &Array, step: usize) -> Choice {
        sampler.choose(&sampler.adjust(logits, None, step).unwrap(), step).unwrap()
    }

    fn recent(history: &[u32], sampler: &Sampler) -> Option<Array> {
        let tail = &history[history.len().saturating_sub(sampler.window())..];
        (!tail.is_empty()).then(|| Array::from_slice(tail, &[tail.len() as i32]))
    }

    /// What the draw is made from, as probabilities.
    fn on_device(logits: &[f32], history: &[u32], options: &GenerateOptions) -> Vec<f64> {
        let sampler = Sampler::new(options, &[], logits.len());
        let recent = recent(history, &sampler);
        let values = log_softmax(&sampler.adjust(&array(logits), recent.as_ref(), 0).unwrap()).unwrap();
        // Beside rows that ask for everything, and for nothing.
        let all = GenerateOptions::new().temperature(1.0).top_p(0.3).min_p(0.2).top_k(2).seed(1);
        let all = Sampler::new(&all, &[], logits.len());
        let none = Sampler::new(&GenerateOptions::new().temperature(1.0).seed(1), &[], logits.len());
        let rows = ops::concatenate(&[&values, &values, &values], 0).unwrap();
        let filtered = filter(&[(&all, 0), (&sampler, 0), (&none, 0)], rows).unwrap();
        let filtered = filtered.to_vec_exact::<f32>().unwrap();
        let alone = filter(&[(&sampler, 0)], values).unwrap().to_vec_exact::<f32>().unwrap();
        let filtered = filtered[logits.len()..2 * logits.len()].to_vec();
        assert_eq!(filtered, alone);
        let filtered: Vec<f64> = filtered.into_iter().map(f64::from).collect();
        reference::temper(&filtered, f64::from(options.sampling.temperature_or_greedy()))
    }

    fn options() -> impl Strategy<Value = GenerateOptions> {
        let filters = (
            proptest::option::of(0.05..1.0f32),
            proptest::option::of(0.0..0.5f32),
            proptest::option::of(0usize..12),
            proptest::option::of((prop_oneof![Just(0.0f32), Just(1.0)], 0.0..0.5f32)),
        );
        let penalties = (
            proptest::option::of(0.5..2.0f32),
            proptest::option::of(-1.0..1.0f32),
            proptest::option::of(-1.0..1.0f32),
            1usize..8,
            proptest::option::of(proptest::collection::vec((0u32..24, -3.0..3.0f32), 1..4)),
        );
        (filters, penalties, 0.2..2.0f32).prop_map(|((p, m, k, x), (r, pr, f, w, b), t)| {
            let mut o = GenerateOptions::new().temperature(t).penalty_window(w).seed(3);
            o.sampling.top_p = p;
            o.sampling.min_p = m;
            o.sampling.top_k = k;
            o.sampling.xtc = x.map(|(probability, threshold)| Xtc::new(probability, threshold));
            o.sampling.repetition_penalty = r;
            o.sampling.presence_penalty = pr;
            o.sampling.frequency_penalty = f;
            o.sampling.logit_bias = b.map(Into::into);
            o
        })
    }

    proptest! {
        /// A probability may fall on either side of a threshold by rounding; such a case says nothing and is drawn anew.
        #[test]
        fn the_distribution_is_the_contracts(
            logits in proptest::collection::vec(-6.0..6.0f32, 24),
            history in proptest::collection::vec(0u32..24, 1..10),
            options in options(),
        ) {
            with_device(Device::cpu(), || {
                let exact: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
                let expected = reference::probabilities(&exact, &history, &options.sampling);
                let mut nudged = options.sampling.clone();
                let steady = [1.0 - 1e-5, 1.0 + 1e-5].iter().all(|nudge| {
                    nudged.top_p = options.sampling.top_p.map(|p| (p * nudge).min(1.0));
                    nudged.min_p = options.sampling.min_p.map(|p| p * nudge);
                    nudged.xtc = options.sampling.xtc.map(|x| Xtc::new(x.probability, x.threshold * nudge));
                    let other = reference::probabilities(&exact, &history, &nudged);
                    other.iter().zip(&expected).all(|(a, b)| (*a > 0.0) == (*b > 0.0))
                });
                prop_assume!(steady);
                let found = on_device(&logits, &history, &options);
                for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    prop_assert!((found - expected).abs() < 1e-4, "token {id}: {found}, expected {expected}");
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        with_device(Device::cpu(), || {
            let logits = [1.0, 0.5, -0.3, 2.0, -4.0, 0.0, 1.7, -1.0];
            let options = GenerateOptions::new().temperature(0.8).top_p(0.95).seed(11);
            let sampler = Sampler::new(&options, &[], logits.len());
            let values = array(&logits);
            let mut observed = vec![0; logits.len()];
            for start in (0..20_000).step_by(500) {
                let ids: Vec<_> =
                    (start..start + 500).map(|step| sample(&sampler, &values, step).ids).collect();
                let ids = ops::concatenate(&ids, 0).unwrap().to_vec_exact::<u32>().unwrap();
                ids.into_iter().for_each(|id| observed[id as usize] += 1);
            }
            let exact = logits.map(f64::from);
            let expected = reference::probabilities(&exact, &[], &options.sampling);
            let test = reference::chi_square(&observed, &expected);
            assert!(test.p_value > 1e-3, "{test:?}: {observed:?} against {expected:?}");
        });
    }

    #[test]
    fn a_draw_depends_on_seed_and_step_alone() {
        with_device(Device::cpu(), || {
            let logits = array(&[0.0; 64]);
            let ids = |seed| {
                let sampler = Sampler::new(&GenerateOptions::new().temperature(1.0).seed(seed), &[], 64);
                (0..16)
                    .map(|step| sample(&sampler, &logits, step).ids.item_exact::<u32>())
                    .collect::<Vec<_>>()
            };
            assert_eq!(ids(5), ids(5));
            assert_ne!(ids(5), ids(6));
        });
    }

    #[test]
    fn a_row_draws_beside_others_what_it_draws_alone() {
        with_device(Device::cpu(), || {
            let options = |n: u64| match n % 3 {
                0 => GenerateOptions::new().temperature(1.2).seed(n),
                1 => GenerateOptions::new().temperature(0.7).top_p(0.8).seed(n),
                _ => GenerateOptions::new().temperature(1.0).top_k(5).min_p(0.1).seed(n),
            };
            let samplers: Vec<_> = (0..6).map(|n| Sampler::new(&options(n), &[], 64)).collect();
            let logits = (0..6 * 64).map(|i| (i * 37 % 101) as f32 / 20.0).collect::<Vec<_>>();
            let logits = log_softmax(&Array::from_slice(&logits, &[6, 64])).unwrap();
            let rows: Vec<_> = samplers.iter().zip(3..).collect();
            let together = draw(&rows, logits.clone()).unwrap().to_vec_exact::<u32>().unwrap();
            let parts = logits.split_equal(6, 0).unwrap();
            let alone =
                rows.iter().zip(parts).map(|(row, part)| draw(&[*row], part).unwrap().item_exact::<u32>());
            assert_eq!(together, alone.collect::<Vec<_>>());
        });
    }

    /// Both have the noise of the same bits, and filters that differ by rounding alone.
    #[test]
    fn the_kernels_draw_what_mlx_draws() {
        with_device(Device::cpu(), || {
            for size in [1, 2, 63, 64, 1001] {
                let options = |n: u64| {
                    let o = GenerateOptions::new().temperature(0.5 + n as f32 / 7.0).seed(n * 77);
                    match n % 6 {
                        0 => o,
                        1 => o.top_p(0.8),
                        2 => o.top_k(5).min_p(0.1),
                        3 => o.min_p(0.02),
                        4 => o.top_k(40).top_p(0.95),
                        _ => o.top_k(2000).top_p(0.999),
                    }
                };
                let samplers: Vec<_> = (0..12).map(|n| Sampler::new(&options(n), &[], size)).collect();
                let logits =
                    (0..12 * size).map(|i| (i * i * 37 % 10_007) as f32 / 1000.0).collect::<Vec<_>>();
                let logits = Array::from_slice(&logits, &[12, size as i32]);
                for step in 0..20 {
                    let rows: Vec<_> = samplers.iter().map(|sampler| (sampler, step)).collect();
                    let log_probabilities = log_softmax(&logits).unwrap();
                    let expected = draw(&rows, log_probabilities.clone()).unwrap();
                    let drawn = ExecMode::CpuKernels.scope(|| draw_from(&rows, &logits)).unwrap();
                    let [ids, expected_ids] =
                        [&drawn.ids, &expected].map(|ids| ids.to_vec_exact::<u32>().unwrap());
                    assert_eq!(ids, expected_ids, "{size} tokens, step {step}");
                    let scores = pick(&log_probabilities, &expected).unwrap().to_vec_exact::<f32>().unwrap();
                    for (score, expected) in drawn.scores.to_vec_exact::<f32>().unwrap().iter().zip(scores) {
                        assert!((score - expected).abs() < 1e-5, "{score} for {expected}");
                    }
                }
            }
        });
    }

    #[test]
    fn logits_that_are_no_numbers_have_no_finite_score() {
        with_device(Device::cpu(), || {
            let (nan, inf) = (f32::NAN, f32::INFINITY);
            let drawn = GenerateOptions::new().temperature(1.0).seed(1);
            let reported = GenerateOptions::new().log_probabilities(1);
            for options in [GenerateOptions::new(), drawn, reported.clone(), reported.temperature(0.5)] {
                let sampler = Sampler::new(&options, &[], 4);
                let is_finite = |logits: &[f32]| {
                    let choice = sample(&sampler, &array(logits), 0);
                    choice.scores.item_exact::<f32>().is_finite()
                };
                assert!(is_finite(&[1.0, 2.0, -inf, 0.0]), "{options:?}");
                for bad in
                    [[1.0, 2.0, nan, 0.0], [nan; 4], [1.0, inf, 0.0, 0.0], [-inf; 4], [inf, -inf, nan, 0.0]]
                {
                    assert!(!is_finite(&bad), "{bad:?}, {options:?}");
                }
            }
        });
    }

    #[test]
    fn no_end_is_chosen_before_min_tokens() {
        with_device(Device::cpu(), || {
            let logits = array(&[9.0, 1.0, 0.0]);
            let sampler = Sampler::new(&GenerateOptions::new().min_tokens(2), &[0], 3);
            let id = |step| sample(&sampler, &logits, step).ids.item_exact::<u32>();
            assert_eq!([id(0), id(1), id(2)], [1, 1, 0]);
        });
    }

    #[test]
    fn reported_log_probabilities_are_those_before_temperature() {
        with_device(Device::cpu(), || {
            let logits = array(&[1.0, 3.0, 2.0, 0.0]);
            let sampler = Sampler::new(&GenerateOptions::new().log_probabilities(2), &[], 4);
            let choice = sample(&sampler, &logits, 0);
            let report = choice.logprobs.unwrap();
            let expected = reference::log_softmax(&[1.0, 3.0, 2.0, 0.0]);
            assert!((f64::from(report.chosen.item_exact::<f32>()) - expected[1]).abs() < 1e-6);
            let (ids, values) = report.top.unwrap();
            assert_eq!(ids.to_vec_exact::<u32>().unwrap(), [1, 2]);
            assert!((f64::from(values.to_vec_exact::<f32>().unwrap()[1]) - expected[2]).abs() < 1e-6);
        });
    }
}
