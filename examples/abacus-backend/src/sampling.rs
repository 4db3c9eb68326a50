//! Which character comes next, in the contract's order as far as the capabilities go: bias, log-softmax, temperature, draw.

use inference_core::{Alternative, SamplingOptions, Token};

// ANCHOR: sampling
/// The log-probabilities of what comes next.
pub(crate) fn log_probabilities(row: &[f32], options: &SamplingOptions) -> Vec<f32> {
    let mut logits = row.to_vec();
    for (id, bias) in options.logit_bias.iter().flat_map(|biases| biases.iter()) {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    log_softmax(&mut logits);
    logits
}

/// The likeliest, or a draw. `uniform` is in [0, 1).
pub(crate) fn choose(log_probabilities: &[f32], temperature: f32, uniform: f64) -> u32 {
    if temperature == 0.0 {
        return likeliest(log_probabilities);
    }
    let mut tempered: Vec<f32> = log_probabilities.iter().map(|l| l / temperature).collect();
    log_softmax(&mut tempered);
    let mut left = uniform;
    let drawn = tempered.iter().position(|l| {
        left -= f64::from(*l).exp();
        left < 0.0
    });
    // Rounding may leave a sliver over.
    drawn.map_or_else(|| likeliest(log_probabilities), |id| id as u32)
}
// ANCHOR_END: sampling

/// The first of the likeliest.
pub(crate) fn likeliest(values: &[f32]) -> u32 {
    (1..values.len()).fold(0, |best, id| if values[id] > values[best] { id } else { best }) as u32
}

/// Adds the chosen token's log-probability, and those of the `top` likeliest.
pub(crate) fn report(token: &mut Token, log_probabilities: &[f32], top: usize) {
    let alternative = |id: u32| Alternative::new(id, log_probabilities[id as usize]);
    token.log_probability = Some(alternative(token.id).log_probability);
    let mut all: Vec<_> = (0..log_probabilities.len() as u32).map(alternative).collect();
    all.sort_by(|a, b| b.log_probability.total_cmp(&a.log_probability).then(a.id.cmp(&b.id)));
    all.truncate(top);
    token.top = all;
}

/// Draw number `step` of a seed: SplitMix64 of both, so that no state is shared between requests.
pub(crate) fn uniform(seed: u64, step: usize) -> f64 {
    let mix = |z: u64| {
        let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (mix(mix(seed) ^ step as u64) >> 11) as f64 / (1_u64 << 53) as f64
}

pub(crate) fn log_softmax(values: &mut [f32]) {
    let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if highest > f32::NEG_INFINITY {
        let total = values.iter().map(|x| (x - highest).exp()).sum::<f32>().ln() + highest;
        values.iter_mut().for_each(|x| *x -= total);
    }
}
