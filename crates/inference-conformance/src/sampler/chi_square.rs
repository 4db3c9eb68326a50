//! Whether draws follow a distribution: Pearson's test.

/// The outcome of [`chi_square`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChiSquare {
    /// `Σ (observed − expected)² / expected` over the bins.
    pub statistic: f64,
    /// Bins less one.
    pub degrees: usize,
    /// The probability of a statistic at least as large where the draws do follow the distribution.
    pub p_value: f64,
}

/// Tests how often each outcome was drawn against its probability. Outcomes expected fewer than five times are counted
/// together with the next such ones until five are expected, as the test wants; one that was drawn although its probability is
/// 0 makes the p-value 0.
///
/// ```
/// use inference_conformance::sampler::chi_square;
///
/// assert!(chi_square(&[5060, 4940], &[0.5, 0.5]).p_value > 0.1);
/// assert!(chi_square(&[6000, 4000], &[0.5, 0.5]).p_value < 1e-9);
/// ```
///
/// # Panics
/// The slices differ in length.
#[must_use]
pub fn chi_square(observed: &[u64], probabilities: &[f64]) -> ChiSquare {
    assert_eq!(observed.len(), probabilities.len(), "one count for each probability");
    let draws = observed.iter().sum::<u64>() as f64;
    let (mut statistic, mut bins, mut rare) = (0.0, 0_usize, (0.0, 0.0));
    let mut term = |seen: f64, expected: f64| {
        statistic += (seen - expected).powi(2) / expected;
        bins += 1;
    };
    for (seen, probability) in observed.iter().zip(probabilities) {
        let (seen, expected) = (*seen as f64, probability * draws);
        if *probability == 0.0 && seen > 0.0 {
            return ChiSquare { statistic: f64::INFINITY, degrees: 0, p_value: 0.0 };
        } else if expected < 5.0 {
            rare = (rare.0 + seen, rare.1 + expected);
            if rare.1 >= 5.0 {
                term(rare.0, rare.1);
                rare = (0.0, 0.0);
            }
        } else {
            term(seen, expected);
        }
    }
    if rare.1 > 0.0 {
        term(rare.0, rare.1);
    }
    let degrees = bins.saturating_sub(1);
    let p_value = if degrees == 0 { 1.0 } else { upper_gamma(degrees as f64 / 2.0, statistic / 2.0) };
    ChiSquare { statistic, degrees, p_value }
}

/// The regularised upper incomplete gamma function `Q(a, x)`: by its series below `a + 1`, by Legendre's continued fraction
/// above (Abramowitz and Stegun 6.5.29 and 6.5.31).
fn upper_gamma(a: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    if x <= 0.0 {
        return 1.0;
    }
    let scale = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for n in 1..10_000 {
            term *= x / (a + f64::from(n));
            sum += term;
            if term < sum * 1e-15 {
                break;
            }
        }
        return (1.0 - scale * sum).clamp(0.0, 1.0);
    }
    // Lentz's evaluation from the front.
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1.0 / TINY, 1.0 / b);
    let mut fraction = d;
    for n in 1..10_000 {
        let n = f64::from(n);
        let numerator = -n * (n - a);
        b += 2.0;
        let nonzero = |v: f64| if v.abs() < TINY { TINY } else { v };
        d = 1.0 / nonzero(numerator * d + b);
        c = nonzero(b + numerator / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    (scale * fraction).clamp(0.0, 1.0)
}

/// `ln Γ(x)` for `x > 0`: Stirling's series, shifted to where it is exact to double precision.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 12.0 {
        shift += x.ln();
        x += 1.0;
    }
    let square = x * x;
    let series = 1.0 / (12.0 * x)
        * (1.0 - 1.0 / (30.0 * square) * (1.0 - 2.0 / (7.0 * square) * (1.0 - 3.0 / (4.0 * square))));
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gamma_functions_have_their_known_values() {
        assert!((ln_gamma(5.0) - 24.0_f64.ln()).abs() < 1e-12);
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-12);
        // The critical values of the printed tables: 3.841 at one degree, 18.307 at ten, 124.342 at a hundred.
        for (degrees, critical) in [(1.0, 3.841_459), (10.0, 18.307_038), (100.0, 124.342_113)] {
            let p = upper_gamma(degrees / 2.0, critical / 2.0);
            assert!((p - 0.05).abs() < 1e-6, "{degrees}: {p}");
        }
    }

    #[test]
    fn an_impossible_outcome_is_no_chance() {
        assert_eq!(chi_square(&[9999, 1], &[1.0, 0.0]).p_value, 0.0);
        assert_eq!(chi_square(&[100], &[1.0]).p_value, 1.0);
    }

    #[test]
    fn twenty_thousand_draws_tell_a_temperature_from_its_neighbour() {
        use crate::sampler::temper;
        let logits: Vec<f64> = (0..24).map(|i| f64::from(i * 7 % 24) / 6.0).collect();
        let right = temper(&logits, 0.9);
        let mut state = 7_u64;
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut u = (state >> 11) as f64 / (1_u64 << 53) as f64;
            let drawn = right
                .iter()
                .position(|p| {
                    u -= p;
                    u < 0.0
                })
                .unwrap_or(logits.len() - 1);
            counts[drawn] += 1;
        }
        assert!(chi_square(&counts, &right).p_value > 1e-3);
        assert!(chi_square(&counts, &temper(&logits, 1.0)).p_value < 1e-6);
    }
}
