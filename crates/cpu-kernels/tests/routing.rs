//! Routing of tokens to experts, against its definition in double precision.
#![allow(clippy::unwrap_used, reason = "a failed kernel fails the test")]

mod common;

use common::{Kind, Vector, kernels, kinds, vector};
use cpu_kernels::{Floats, FloatsMut, Kernels, Routing};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn picks_are_the_largest([tokens, groups, size] in [1..40_usize, 1..6, 1..20], top_k in 1..12_usize, best in 1..6_usize,
                             [sigmoid, biased, grouped, normalized] in any::<[bool; 4]>(), seed in any::<u64>(), kind in kinds(),
                             kernels in kernels()) {
        let (experts, best) = (groups * size, best.min(groups));
        let top_k = top_k.min(if grouped { best * size } else { experts });
        let scores = vector(kind, tokens * experts, seed);
        let Vector::F32(bias) = vector(Kind::F32, experts, seed ^ 1) else { unreachable!() };
        let routing = Routing {
            sigmoid, bias: biased.then_some(&bias[..]), groups: grouped.then_some([groups, best]), top_k,
            normalize: normalized.then_some(1e-3), scale: 1.7,
        };
        let (mut picks, mut weights) = (vec![0; tokens * top_k], vec![0.0; tokens * top_k]);
        kernels.route(scores.floats(), experts, &routing, &mut picks, &mut weights).unwrap();
        for token in 0..tokens {
            let score = |expert: usize| scores.get(token * experts + expert);
            let all: f64 = (0..experts).map(|expert| score(expert).exp()).sum();
            let probability = |expert: usize| if sigmoid { 1.0 / (1.0 + (-score(expert)).exp()) } else { score(expert).exp() / all };
            let choice = |expert: usize| probability(expert) + if biased { f64::from(bias[expert]) } else { 0.0 };
            let worth = |group: usize| {
                let mut own: Vec<f64> = (group * size..(group + 1) * size).map(choice).collect();
                own.sort_by(|a, b| b.total_cmp(a));
                own.iter().take(2).sum::<f64>()
            };
            let picks = &picks[token * top_k..][..top_k];
            let sum: f64 = picks.iter().map(|pick| probability(*pick as usize)).sum();
            for (index, pick) in picks.iter().enumerate() {
                let pick = *pick as usize;
                prop_assert!(!picks[..index].contains(&(pick as u32)), "{picks:?}");
                let exact = probability(pick) / if normalized { sum + f64::from(1e-3_f32) } else { 1.0 } * f64::from(1.7_f32);
                let found = f64::from(weights[token * top_k + index]);
                prop_assert!((found - exact).abs() < 1e-5, "{found}, expected {exact}");
                // No group that is left out is better, and no expert of the groups that are not.
                let better = (0..groups).filter(|group| worth(*group) > worth(pick / size) + 1e-5).count();
                prop_assert!(!grouped || better < best);
            }
            let own: Vec<usize> = (0..groups).filter(|group| {
                !grouped || (0..groups).filter(|other| worth(*other) > worth(*group) + 1e-5).count() < best
            }).collect();
            let worst = picks.iter().map(|pick| choice(*pick as usize)).fold(f64::INFINITY, f64::min);
            let missed = own.iter().flat_map(|group| group * size..(group + 1) * size)
                .filter(|expert| !picks.contains(&(*expert as u32)) && choice(*expert) > worst + 1e-5).count();
            // A tie of groups lets experts of either be picked.
            prop_assert!(missed == 0 || (grouped && own.len() > best), "{missed} of {picks:?}");
        }
    }

    #[test]
    fn mixtures_are_weighted_sums([tokens, top_k, size] in [1..20_usize, 1..9, 1..300], seed in any::<u64>(), kind in kinds(),
                                  kernels in kernels()) {
        let y = vector(kind, tokens * top_k * size, seed);
        let Vector::F32(weights) = vector(Kind::F32, tokens * top_k, seed ^ 1) else { unreachable!() };
        let mut out = vec![f32::NAN; tokens * size];
        kernels.mix(y.floats(), &weights, FloatsMut::F32(&mut out)).unwrap();
        for (index, found) in out.iter().enumerate() {
            let (token, element) = (index / size, index % size);
            let term = |pick: usize| {
                let place = token * top_k + pick;
                y.get(place * size + element) * f64::from(weights[place])
            };
            let exact: f64 = (0..top_k).map(term).sum();
            prop_assert!((f64::from(*found) - exact).abs() < 1e-5, "{found}, expected {exact}");
        }
    }
}

#[test]
fn senseless_scores_and_sizes() {
    let kernels = Kernels::new().unwrap();
    let routing = Routing { sigmoid: true, bias: None, groups: None, top_k: 2, normalize: None, scale: 1.0 };
    let scores = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let (mut picks, mut weights) = ([9; 2], [0.0; 2]);
    kernels.route(Floats::F32(&scores), 4, &routing, &mut picks, &mut weights).unwrap();
    assert!(picks.iter().all(|pick| *pick < 4) && picks[0] != picks[1]);
    for wrong in [
        Routing { top_k: 0, ..routing },
        Routing { top_k: 5, ..routing },
        Routing { bias: Some(&[0.0]), ..routing },
        Routing { groups: Some([3, 1]), ..routing },
        Routing { groups: Some([2, 3]), ..routing },
    ] {
        assert!(
            kernels.route(Floats::F32(&scores), 4, &wrong, &mut picks, &mut weights).is_err(),
            "{wrong:?}"
        );
    }
}
