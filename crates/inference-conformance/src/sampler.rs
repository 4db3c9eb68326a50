//! How the next token is chosen, in plain `f64`: what every engine's sampler is compared with.
//!
//! The steps stand in the contract's order, which is mlx-lm's (`mlx_lm/sample_utils.py`). With logits `x`, the last
//! [`SamplingOptions::window`] tokens `w` (prompt and answer), and `#w(i)` the number of times that `i` stands in them:
//!
//! | step | formula | edge |
//! |---|---|---|
//! | logit bias | `x[i] += b[i]` | biases of one id add up; −∞ bans |
//! | repetition penalty `r` | `x[i] = x[i] / r` if `x[i] ≥ 0`, else `x[i] · r`, for `i` in `w` | once, however often `i` was seen |
//! | presence penalty `a` | `x[i] -= a` for `i` in `w` | once |
//! | frequency penalty `f` | `x[i] -= f · #w(i)` | an empty window penalises nothing |
//! | processor | the caller's own edit | not part of this reference |
//! | log-softmax | `l = x − ln Σ exp x` | this is what log-probabilities report |
//! | top-p `p` | keeps `i` if `Σ {exp l[j] : l[j] > l[i]} < p`, roughly | see [`top_p`] |
//! | min-p `m` | keeps `i` if `l[i] ≥ max l + ln m` | equality keeps; 0 keeps all |
//! | XTC `(q, t)` | with probability `q` drops every `i` above the threshold but the least likely | see [`xtc`] |
//! | top-k `k` | keeps the `k` likeliest | 0 keeps all; among equals the lower id |
//! | temperature `T` | `P = softmax(l / T)` over what is kept | 0: the likeliest, among equals the lower id |
//!
//! At temperature 0 the filters do not act: the answer is the likeliest token after bias and penalties, also where XTC would
//! have dropped it. Temperature comes last, unlike in transformers and llama.cpp, so the filters see the model's own
//! probabilities.

mod chi_square;
mod golden;

use inference_core::{SamplingOptions, Xtc};

pub use chi_square::{ChiSquare, chi_square};
pub use golden::{GoldenCase, golden_cases};

/// The probability of each token to be the next. `history` is prompt and answer so far; only its last
/// [`SamplingOptions::window`] ids count. The draw of XTC is averaged over: its two outcomes are weighted by its probability.
///
/// Returns as many probabilities as there are logits; they add up to 1 unless every token is banned, where all are 0.
#[must_use]
pub fn probabilities(logits: &[f64], history: &[u32], options: &SamplingOptions) -> Vec<f64> {
    let log_probabilities = log_probabilities(logits, history, options);
    let temperature = f64::from(options.temperature_or_greedy());
    if temperature == 0.0 {
        let mut point = vec![0.0; logits.len()];
        if let Some(likeliest) = argmax(&log_probabilities) {
            point[likeliest] = 1.0;
        }
        return point;
    }
    let share = options.xtc.map_or(0.0, |xtc| f64::from(xtc.probability));
    let branch = |act: bool| {
        let mut kept = log_probabilities.clone();
        filter(&mut kept, options, act);
        temper(&kept, temperature)
    };
    let without = branch(false);
    if share == 0.0 {
        return without;
    }
    let with = branch(true);
    without.iter().zip(&with).map(|(a, b)| (1.0 - share) * a + share * b).collect()
}

/// The log-probabilities after bias and penalties, before filters and temperature: what `Token::log_probability` reports.
#[must_use]
pub fn log_probabilities(logits: &[f64], history: &[u32], options: &SamplingOptions) -> Vec<f64> {
    let mut logits = logits.to_vec();
    bias(&mut logits, options);
    penalise(&mut logits, history, options);
    log_softmax(&logits)
}

/// Adds [`SamplingOptions::logit_bias`]; ids past the end are ignored.
pub fn bias(logits: &mut [f64], options: &SamplingOptions) {
    for (id, bias) in options.logit_bias.iter().flat_map(|biases| biases.iter()) {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += f64::from(*bias);
        }
    }
}

/// Applies the repetition, presence and frequency penalties, in that order.
pub fn penalise(logits: &mut [f64], history: &[u32], options: &SamplingOptions) {
    let window = &history[history.len().saturating_sub(options.window())..];
    let mut counts = std::collections::BTreeMap::new();
    for id in window {
        *counts.entry(*id as usize).or_insert(0_u32) += 1;
    }
    let repetition = f64::from(options.repetition_penalty.unwrap_or(1.0));
    let presence = f64::from(options.presence_penalty.unwrap_or(0.0));
    let frequency = f64::from(options.frequency_penalty.unwrap_or(0.0));
    for (id, count) in counts {
        if let Some(logit) = logits.get_mut(id) {
            *logit = if *logit < 0.0 { *logit * repetition } else { *logit / repetition };
            *logit -= presence + frequency * f64::from(count);
        }
    }
}

/// `x − ln Σ exp x`, computed without overflow.
#[must_use]
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if highest == f64::NEG_INFINITY {
        return logits.to_vec();
    }
    let total = highest + logits.iter().map(|x| (x - highest).exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - total).collect()
}

/// Applies top-p, min-p, XTC (if it `acts` this time) and top-k: what is dropped becomes −∞.
pub fn filter(log_probabilities: &mut [f64], options: &SamplingOptions, acts: bool) {
    if let Some(p) = options.top_p {
        top_p(log_probabilities, f64::from(p));
    }
    if let Some(p) = options.min_p {
        min_p(log_probabilities, f64::from(p));
    }
    if let Some(choice) = options.xtc.filter(|_| acts) {
        xtc(log_probabilities, choice);
    }
    if let Some(k) = options.top_k {
        top_k(log_probabilities, k);
    }
}

/// Nucleus sampling (Holtzman et al. 2019). In descending order of likelihood, a token is kept while the mass of those before
/// it is below `p` of the whole: the token that crosses the threshold is kept, one that begins at it is not. Tokens as
/// likely as the last one kept are kept. 1 keeps all.
pub fn top_p(log_probabilities: &mut [f64], p: f64) {
    if p >= 1.0 {
        return;
    }
    let mut sorted = log_probabilities.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sorted.iter().map(|l| l.exp()).sum();
    let mut before = 0.0;
    let mut last = f64::NEG_INFINITY;
    for l in sorted {
        if before >= p * total {
            break;
        }
        last = l;
        before += l.exp();
    }
    drop_if(log_probabilities, |l| l < last);
}

/// Drops tokens less likely than `p` times the likeliest (Nguyen et al. 2024).
pub fn min_p(log_probabilities: &mut [f64], p: f64) {
    let highest = log_probabilities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = highest + p.ln();
    drop_if(log_probabilities, |l| l < least);
}

/// Exclude top choices, where it acts: of the tokens whose probability, among those that are left, is above the threshold,
/// only the least likely stays, with its equals. Fewer than two such tokens: nothing is dropped.
pub fn xtc(log_probabilities: &mut [f64], xtc: Xtc) {
    let threshold = f64::from(xtc.threshold);
    let left = log_softmax(log_probabilities);
    let above = left.iter().map(|l| l.exp()).filter(|p| *p > threshold);
    let least = above.fold(f64::INFINITY, f64::min);
    for (l, left) in log_probabilities.iter_mut().zip(left) {
        if left.exp() > least {
            *l = f64::NEG_INFINITY;
        }
    }
}

/// Keeps the `k` likeliest, among equals the lower ids; 0 keeps all.
pub fn top_k(log_probabilities: &mut [f64], k: usize) {
    if k == 0 || k >= log_probabilities.len() {
        return;
    }
    let mut order: Vec<usize> = (0..log_probabilities.len()).collect();
    order.sort_by(|a, b| log_probabilities[*b].total_cmp(&log_probabilities[*a]).then(a.cmp(b)));
    for dropped in &order[k..] {
        log_probabilities[*dropped] = f64::NEG_INFINITY;
    }
}

/// `softmax(l / temperature)`, for a temperature above 0.
#[must_use]
pub fn temper(log_probabilities: &[f64], temperature: f64) -> Vec<f64> {
    let tempered: Vec<f64> = log_probabilities.iter().map(|l| l / temperature).collect();
    log_softmax(&tempered).into_iter().map(f64::exp).collect()
}

/// The likeliest token, the lowest id among equals; `None` where all are −∞.
#[must_use]
pub fn argmax(values: &[f64]) -> Option<usize> {
    let best = |best: Option<usize>, i: usize| match best {
        Some(b) if values[b] >= values[i] => Some(b),
        _ if values[i] == f64::NEG_INFINITY => best,
        _ => Some(i),
    };
    (0..values.len()).fold(None, best)
}

fn drop_if(log_probabilities: &mut [f64], drop: impl Fn(f64) -> bool) {
    for l in log_probabilities {
        if drop(*l) {
            *l = f64::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use inference_core::GenerateOptions;
    use proptest::prelude::*;

    use super::*;

    fn kept(log_probabilities: &[f64]) -> Vec<usize> {
        (0..log_probabilities.len()).filter(|i| log_probabilities[*i] > f64::NEG_INFINITY).collect()
    }

    fn ln(probabilities: &[f64]) -> Vec<f64> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_and_not_the_one_after() {
        let mut l = ln(&[0.5, 0.25, 0.125, 0.125]);
        top_p(&mut l, 0.5);
        assert_eq!(kept(&l), [0], "0.5 is reached by the first alone");
        let mut l = ln(&[0.5, 0.25, 0.125, 0.125]);
        top_p(&mut l, 0.6);
        assert_eq!(kept(&l), [0, 1]);
        let mut l = ln(&[0.5, 0.25, 0.125, 0.125]);
        top_p(&mut l, 0.8);
        assert_eq!(kept(&l), [0, 1, 2, 3], "equals of the last one kept are kept");
    }

    #[test]
    fn xtc_leaves_the_least_likely_top_choice() {
        let mut l = ln(&[0.4, 0.3, 0.2, 0.1]);
        xtc(&mut l, Xtc::new(1.0, 0.15));
        assert_eq!(kept(&l), [2, 3]);
        let mut l = ln(&[0.9, 0.05, 0.05]);
        xtc(&mut l, Xtc::new(1.0, 0.15));
        assert_eq!(kept(&l), [0, 1, 2], "a lone top choice stays");
    }

    #[test]
    fn penalties_count_within_the_window_only() {
        let options = GenerateOptions::new()
            .repetition_penalty(2.0)
            .presence_penalty(0.5)
            .frequency_penalty(0.25)
            .penalty_window(3)
            .sampling;
        let mut logits = [4.0, -4.0, 1.0, 0.0];
        penalise(&mut logits, &[2, 0, 0, 1], &options);
        assert_eq!(logits, [4.0 / 2.0 - 0.5 - 0.5, -8.0 - 0.5 - 0.25, 1.0, 0.0]);
        let mut logits = [4.0];
        penalise(&mut logits, &[0], &GenerateOptions::new().presence_penalty(1.0).penalty_window(0).sampling);
        assert_eq!(logits, [4.0]);
    }

    #[test]
    fn temperature_comes_after_the_filters() {
        let logits = ln(&[0.5, 0.3, 0.2]);
        let options = GenerateOptions::new().top_p(0.6).temperature(10.0).sampling;
        let p = probabilities(&logits, &[], &options);
        assert_eq!(p[2], 0.0, "tempered first, 0.6 would keep all three");
    }

    #[test]
    fn a_ban_of_everything_leaves_nothing() {
        let options = GenerateOptions::new().logit_bias([(0, f32::NEG_INFINITY)]).temperature(1.0).sampling;
        assert!(probabilities(&[1.0], &[], &options).iter().all(|p| *p == 0.0 || p.is_nan()));
        let greedy = GenerateOptions::new().logit_bias([(0, f32::NEG_INFINITY)]).sampling;
        assert_eq!(probabilities(&[1.0], &[], &greedy), [0.0]);
    }

    prop_compose! {
        fn options()(
            temperature in prop_oneof![Just(0.0_f32), 0.05_f32..4.0],
            top_p in prop::option::of(0.01_f32..=1.0),
            min_p in prop::option::of(0.0_f32..=1.0),
            top_k in prop::option::of(0_usize..40),
            xtc in prop::option::of((0.0_f32..=1.0, 0.0_f32..=0.5)),
            penalties in prop::option::of((0.1_f32..3.0, -2.0_f32..2.0, -2.0_f32..2.0, 0_usize..12)),
            biases in prop::collection::vec((0_u32..32, prop_oneof![-9.0_f32..9.0, Just(f32::NEG_INFINITY)]), 0..4),
        ) -> SamplingOptions {
            let mut options = GenerateOptions::new().temperature(temperature).logit_bias(biases);
            options.sampling.top_p = top_p;
            options.sampling.min_p = min_p;
            options.sampling.top_k = top_k;
            options.sampling.xtc = xtc.map(|(probability, threshold)| Xtc::new(probability, threshold));
            if let Some((repetition, presence, frequency, window)) = penalties {
                options = options.repetition_penalty(repetition).presence_penalty(presence);
                options = options.frequency_penalty(frequency).penalty_window(window);
            }
            options.sampling
        }
    }

    proptest! {
        #[test]
        fn probabilities_add_up_and_the_order_of_likelihood_stays(
            logits in prop::collection::vec(-20.0_f64..20.0, 8..32),
            history in prop::collection::vec(0_u32..32, 0..20),
            options in options(),
        ) {
            let before = log_probabilities(&logits, &history, &options);
            let after = probabilities(&logits, &history, &options);
            prop_assert!((after.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(after.iter().all(|p| (0.0..=1.0 + 1e-12).contains(p)));
            if options.xtc.is_none() {
                // Filters remove from below and the temperature is monotone: no two tokens change places.
                for (i, j) in (0..logits.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
                    prop_assert!(!(before[i] > before[j] && after[i] < after[j]));
                }
            }
        }

        #[test]
        fn filters_only_remove_and_leave_something(
            logits in prop::collection::vec(-20.0_f64..20.0, 1..32),
            options in options(),
            acts: bool,
        ) {
            let before = log_softmax(&logits);
            let mut after = before.clone();
            filter(&mut after, &options, acts);
            prop_assert!(!kept(&after).is_empty());
            for (a, b) in after.iter().zip(&before) {
                prop_assert!(a == b || *a == f64::NEG_INFINITY);
            }
        }

        #[test]
        fn stricter_filters_keep_less(logits in prop::collection::vec(-9.0_f64..9.0, 2..32), p in 0.01_f64..0.98, k in 1_usize..31) {
            let l = log_softmax(&logits);
            let run = |f: &dyn Fn(&mut [f64])| { let mut l = l.clone(); f(&mut l); kept(&l) };
            let subset = |a: Vec<usize>, b: Vec<usize>| a.iter().all(|i| b.contains(i));
            prop_assert!(subset(run(&|l| top_p(l, p)), run(&|l| top_p(l, p + 0.02))));
            prop_assert!(subset(run(&|l| min_p(l, p + 0.02)), run(&|l| min_p(l, p))));
            prop_assert!(subset(run(&|l| top_k(l, k)), run(&|l| top_k(l, k + 1))));
        }

        #[test]
        fn a_lower_temperature_sharpens(logits in prop::collection::vec(-9.0_f64..9.0, 2..32), t in 0.1_f64..2.0) {
            let highest = |t: f64| temper(&log_softmax(&logits), t).into_iter().fold(0.0, f64::max);
            prop_assert!(highest(t) >= highest(t * 1.5) - 1e-12);
        }
    }
}
