//! Which character comes next, in the contract's order as far as the capabilities go: bias, log-softmax, temperature, draw.

use inference_core::SamplingOptions;

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

fn log_softmax(values: &mut [f32]) {
    let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if highest > f32::NEG_INFINITY {
        let total = values.iter().map(|x| (x - highest).exp()).sum::<f32>().ln() + highest;
        values.iter_mut().for_each(|x| *x -= total);
    }
}
