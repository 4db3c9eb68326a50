//! Random numbers that depend on a request's seed and step alone.

/// Draw number `step` of a seed, in [0, 1): SplitMix64 of both. Requests share no state, so a seed gives the same draws
/// whatever runs beside its request.
#[must_use]
pub fn uniform(seed: u64, step: usize) -> f64 {
    (mix(mix(seed) ^ step as u64) >> 11) as f64 / (1_u64 << 53) as f64
}

fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_evenly_over_seeds_and_steps() {
        let draws: Vec<f64> = (0..10_000).map(|n| uniform(n / 100, n as usize % 100)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        for tenth in 0..10 {
            let count = draws.iter().filter(|draw| (**draw * 10.0) as usize == tenth).count();
            assert!((850..1150).contains(&count), "{tenth}: {count}");
        }
        assert_eq!(uniform(7, 3), uniform(7, 3));
    }
}
