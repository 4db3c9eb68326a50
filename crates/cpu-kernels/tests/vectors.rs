//! Norms, rotations and gates against double precision: every element type and instruction set, at odd shapes.
#![allow(clippy::unwrap_used, reason = "a failed kernel fails the test")]

mod common;

use common::{Kind, Vector, kinds, vector};
use cpu_kernels::{
    ElementActivation, Floats, FloatsMut, Glu, GluInput, Heads, Isa, Kernels, LayerNorm, Queries, RmsNorm,
    RotaryTable,
};
use proptest::{prelude::*, test_runner::TestCaseError};

fn kernels() -> impl Strategy<Value = Kernels> {
    let all: Vec<_> = Isa::ALL.iter().filter_map(|isa| Kernels::with_isa(*isa).unwrap()).collect();
    prop::sample::select(all)
}

/// That a value is right but for rounding, to the type's precision and single precision's in sums of numbers up to `scale`.
fn near(kind: Kind, found: f64, exact: f64, scale: f64) -> Result<(), TestCaseError> {
    let unit = match kind {
        Kind::F32 => 0.0,
        Kind::F16 => 2.0_f64.powi(-11),
        Kind::Bf16 => 2.0_f64.powi(-8),
    };
    let tolerance =
        unit * exact.abs() + 2e-6 * scale.max(exact.abs()) + if kind == Kind::F16 { 6e-8 } else { 0.0 };
    prop_assert!((found - exact).abs() <= tolerance, "{kind:?}: {found}, expected {exact}");
    Ok(())
}

fn normalised(x: &[f64], weight: &Vector, eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().enumerate().map(|(i, x)| x / (mean + f64::from(eps)).sqrt() * weight.get(i)).collect()
}

#[test]
fn activations_pass_on_what_is_no_number() {
    let x = [f32::NAN; 3];
    use ElementActivation::{Clip, Gelu, GeluTanh, Relu, Relu2, Silu};
    for activation in [Gelu, GeluTanh, Silu, Relu, Relu2, Clip(0.5)] {
        let mut out = [0.0; 3];
        Kernels::new().unwrap().activate(Floats::F32(&x), activation, FloatsMut::F32(&mut out)).unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "{activation:?}: {out:?}");
    }
}

#[test]
fn nan_is_larger_than_any_number() {
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let mut found = [7; 4];
    let x = [nan, nan, nan, 1.0, nan, 2.0, -infinity, -infinity, -infinity, 0.0, infinity, nan];
    Kernels::new().unwrap().argmax(Floats::F32(&x), &mut found).unwrap();
    assert_eq!(found, [0, 1, 0, 2]);
    // Wherever it is among many.
    for place in [0, 700, 1023, 2500, 2999] {
        let mut x: Vec<f32> = (0..3000).map(|i| i as f32).collect();
        x[5] = -infinity;
        x[place] = nan;
        let mut found = [7];
        Kernels::new().unwrap().argmax(Floats::F32(&x), &mut found).unwrap();
        assert_eq!(found, [place as u32]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn rms_norm(rows in 1..80_usize, size in 1..700_usize, seed in any::<u64>(), x_kind in kinds(), out_kind in kinds(),
                kernels in kernels()) {
        let (x, weight) = (vector(x_kind, rows * size, seed), vector(x_kind, size, seed ^ 1));
        let mut out = vector(out_kind, rows * size, 0);
        kernels.rms_norm(x.floats(), &RmsNorm { weight: weight.floats(), eps: 1e-5 }, out.floats_mut()).unwrap();
        for row in 0..rows {
            let values: Vec<_> = (0..size).map(|i| x.get(row * size + i)).collect();
            for (i, exact) in normalised(&values, &weight, 1e-5).into_iter().enumerate() {
                near(out_kind, out.get(row * size + i), exact, 1.0)?;
            }
        }
    }

    #[test]
    fn layer_norm(rows in 1..60_usize, size in 1..700_usize, seed in any::<u64>(), x_kind in kinds(), out_kind in kinds(),
                  [adds, biased] in any::<[bool; 2]>(), kernels in kernels()) {
        let [x, y] = [0, 1].map(|i| vector(x_kind, rows * size, seed ^ i));
        let [weight, bias] = [2, 3].map(|i| vector(x_kind, size, seed ^ i));
        let norm = LayerNorm { weight: weight.floats(), bias: biased.then(|| bias.floats()), eps: 1e-3 };
        let mut out = vector(out_kind, rows * size, 0);
        kernels.layer_norm(x.floats(), adds.then(|| y.floats()), &norm, out.floats_mut()).unwrap();
        for row in 0..rows {
            let value = |i: usize| x.get(row * size + i) + if adds { y.get(row * size + i) } else { 0.0 };
            let mean = (0..size).map(value).sum::<f64>() / size as f64;
            let variance = (0..size).map(|i| (value(i) - mean).powi(2)).sum::<f64>() / size as f64;
            for i in 0..size {
                let exact = (value(i) - mean) / (variance + 1e-3).sqrt() * weight.get(i);
                let exact = exact + if biased { bias.get(i) } else { 0.0 };
                near(out_kind, out.get(row * size + i), exact, 4.0 + exact.abs())?;
            }
        }
    }

    #[test]
    fn activate(size in 1..5000_usize, seed in any::<u64>(), x_kind in kinds(), out_kind in kinds(), kernels in kernels()) {
        let x = vector(x_kind, size, seed);
        use ElementActivation::{Clip, Gelu, GeluTanh, Relu, Relu2, Silu};
        for activation in [Gelu, GeluTanh, Silu, Relu, Relu2, Clip(0.5)] {
            let mut out = vector(out_kind, size, 0);
            kernels.activate(x.floats(), activation, out.floats_mut()).unwrap();
            for i in 0..size {
                let x = x.get(i);
                let exact = match activation {
                    Relu => x.max(0.0),
                    Relu2 => x.max(0.0).powi(2),
                    Clip(limit) => x.clamp(-f64::from(limit), f64::from(limit)),
                    Silu => x / (1.0 + (-x).exp()),
                    Gelu => gelu(x),
                    _ => x * 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
                };
                near(out_kind, out.get(i), exact, 2.0)?;
            }
        }
    }

    #[test]
    fn add(rows in 1..80_usize, size in 1..700_usize, seed in any::<u64>(), kind in kinds(), [first, second] in any::<[bool; 2]>(),
           kernels in kernels()) {
        let [x, y] = [0, 1].map(|i| vector(kind, rows * size, seed ^ i));
        let [before, after] = [2, 3].map(|i| vector(kind, size, seed ^ i));
        let norm = |weight| RmsNorm { weight, eps: 1e-5 };
        let [before_norm, after_norm] = [&before, &after].map(|weight| norm(weight.floats()));
        let [mut sum, mut out] = [0, 1].map(|i| vector(kind, rows * size, i));
        let wanted = second.then(|| (&after_norm, out.floats_mut()));
        kernels.add_rms_norm([x.floats(), y.floats()], size, first.then_some(&before_norm), sum.floats_mut(), wanted).unwrap();
        let row_of = |of: &Vector, row: usize| (0..size).map(|i| of.get(row * size + i)).collect::<Vec<_>>();
        for row in 0..rows {
            let mut terms = row_of(&y, row);
            if first {
                terms = normalised(&terms, &before, 1e-5);
            }
            // What is added was rounded as well: in bf16 to 2⁻⁸ of it, which is 2,000 times what `near` leaves to sums.
            let rounding = if kind == Kind::F32 { 0.0 } else { 2e3 };
            for (i, (x, y)) in row_of(&x, row).into_iter().zip(terms).enumerate() {
                near(kind, sum.get(row * size + i), x + y, 1.0 + rounding * y.abs())?;
            }
            if second {
                for (i, exact) in normalised(&row_of(&sum, row), &after, 1e-5).into_iter().enumerate() {
                    near(kind, out.get(row * size + i), exact, 1.0)?;
                }
            }
        }
    }

    #[test]
    fn largest(rows in 1..40_usize, size in 1..5000_usize, seed in any::<u64>(), kind in kinds(), kernels in kernels()) {
        let x = vector(kind, rows * size, seed);
        let mut found = vec![0; rows];
        kernels.argmax(x.floats(), &mut found).unwrap();
        for (row, found) in found.into_iter().enumerate() {
            let largest = (0..size).map(|i| x.get(row * size + i)).fold(f64::NEG_INFINITY, f64::max);
            let first = (0..size).position(|i| x.get(row * size + i) == largest);
            prop_assert_eq!(Some(found as usize), first);
        }
    }

    #[test]
    fn rotate([rows, heads, tokens] in [1..4_usize, 1..5, 1..40], half in 1..140_usize, odd in 0..2_usize,
              seed in any::<u64>(), kind in kinds(), [with_norm, interleaved] in any::<[bool; 2]>(), kernels in kernels()) {
        let head_dim = 2 * half + odd;
        let pairs = half.div_ceil(2);
        // Other vectors lie between those of two tokens, as keys do between queries.
        let token_stride = (heads + 2) * head_dim;
        let x = vector(kind, rows * tokens * token_stride, seed);
        let weight = vector(kind, head_dim, seed ^ 1);
        let norm = RmsNorm { weight: weight.floats(), eps: 1e-6 };
        let cos_sin: Vec<f32> = (0..rows * tokens).flat_map(|token| {
            let angles: Vec<f32> = (0..pairs).map(|pair| token as f32 / (pair + 1) as f32).collect();
            angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect::<Vec<_>>()
        }).collect();
        let first = Heads { data: x.floats(), head_stride: head_dim, token_stride };
        let queries = Queries { first, row_stride: tokens * token_stride, tokens };
        let mut out = vector(kind, rows * heads * tokens * head_dim, 0);
        kernels.norm_rope(&queries, [rows, heads, head_dim], with_norm.then_some(&norm), Some(&RotaryTable { pairs, cos_sin: &cos_sin, interleaved }),
                       out.floats_mut()).unwrap();
        for index in 0..rows * heads * tokens {
            let (row, head, token) = (index / tokens / heads, index / tokens % heads, index % tokens);
            let start = (row * tokens + token) * token_stride + head * head_dim;
            let mut values: Vec<_> = (0..head_dim).map(|i| x.get(start + i)).collect();
            if with_norm {
                values = normalised(&values, &weight, 1e-6);
            }
            let cos_sin = &cos_sin[(row * tokens + token) * 2 * pairs..][..2 * pairs];
            for (i, exact) in (0..head_dim).map(|i| {
                let turn = |pair: usize| (f64::from(cos_sin[pair]), f64::from(cos_sin[pairs + pair]));
                match i {
                    i if i < 2 * pairs && interleaved => {
                        let (even, odd) = (values[i & !1], values[i | 1]);
                        let (cosine, sine) = turn(i / 2);
                        if i % 2 == 0 { cosine * even - sine * odd } else { sine * even + cosine * odd }
                    }
                    i if i < pairs => turn(i).0 * values[i] - turn(i).1 * values[i + pairs],
                    i if i < 2 * pairs => turn(i - pairs).1 * values[i - pairs] + turn(i - pairs).0 * values[i],
                    i => values[i],
                }
            }).enumerate() {
                near(kind, out.get(index * head_dim + i), exact, 8.0)?;
            }
        }
    }

    #[test]
    fn gate(rows in 1..70_usize, size in 1..900_usize, apart in any::<bool>(), seed in any::<u64>(), kind in kinds(),
            gating in prop::sample::select(vec![
                Glu::Silu, Glu::Gelu, Glu::GeluTanh, Glu::Clamped { alpha: 1.7, limit: 0.5 }, Glu::Sigmoid, Glu::Product,
            ]),
            kernels in kernels()) {
        let x = vector(kind, 2 * rows * size, seed);
        let mut out = vector(kind, rows * size, 0);
        let (offset, step) = if apart { (size, 1) } else { (1, 2) };
        let ups = vector_from(&x, offset);
        let gates = GluInput { gates: x.floats(), ups: ups.floats(), row_stride: 2 * size, step };
        kernels.glu(&gates, gating, size, out.floats_mut()).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for index in 0..rows * size {
            let at = index / size * 2 * size + index % size * step;
            let (gate, up) = (x.get(at), x.get(at + offset));
            let exact = match gating {
                Glu::Silu => gate * sigmoid(gate) * up,
                Glu::Gelu => gelu(gate) * up,
                Glu::GeluTanh => {
                    let z = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
                    0.5 * gate * (1.0 + z.tanh()) * up
                }
                Glu::Clamped { alpha, limit } => {
                    let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                    let gate = gate.min(limit);
                    gate * sigmoid(alpha * gate) * (up.clamp(-limit, limit) + 1.0)
                }
                Glu::Sigmoid => sigmoid(gate) * up,
                Glu::Product => gate * up,
            };
            near(kind, out.get(index), exact, 1.0)?;
        }
    }

    #[test]
    fn gate_heads([rows, heads, tokens] in [1..4_usize, 1..5, 1..40], head_dim in 1..140_usize, seed in any::<u64>(),
                  kind in kinds(), kernels in kernels()) {
        // Gates lie behind each head of queries, and keys and values behind all of them.
        let width = (2 * heads + 3) * head_dim;
        let all = vector_from(&vector(kind, rows * tokens * width, seed), head_dim);
        let x = vector(kind, rows * tokens * heads * head_dim, seed ^ 1);
        let mut out = vector(kind, rows * tokens * heads * head_dim, 0);
        let first = Heads { data: all.floats(), head_stride: 2 * head_dim, token_stride: width };
        let gates = Queries { first, row_stride: tokens * width, tokens };
        kernels.gate_heads(&gates, [rows, heads, head_dim], x.floats(), out.floats_mut()).unwrap();
        for index in 0..rows * tokens * heads * head_dim {
            let (vector, i) = (index / head_dim, index % head_dim);
            let gate = all.get(vector / heads * width + vector % heads * 2 * head_dim + i);
            near(kind, out.get(index), x.get(index) / (1.0 + (-gate).exp()), 1.0)?;
        }
    }
}

/// x · Φ(x), by the Taylor series of the error function.
fn gelu(x: f64) -> f64 {
    let z = x / 2.0_f64.sqrt();
    let (mut term, mut sum) = (z, z);
    for n in 1..60 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    0.5 * x * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
}

/// The elements from `start` on.
fn vector_from(x: &Vector, start: usize) -> Vector {
    match x {
        Vector::F32(x) => Vector::F32(x[start..].to_vec()),
        Vector::F16(x) => Vector::F16(x[start..].to_vec()),
        Vector::Bf16(x) => Vector::Bf16(x[start..].to_vec()),
    }
}

#[test]
fn sizes_that_do_not_go_together_are_errors() {
    let kernels = Kernels::new().unwrap();
    let (x, weight) = (vector(Kind::F32, 12, 1), vector(Kind::F32, 5, 2));
    let mut out = vector(Kind::F32, 12, 0);
    let norm = RmsNorm { weight: weight.floats(), eps: 0.0 };
    assert!(kernels.rms_norm(x.floats(), &norm, out.floats_mut()).is_err());
    let first = Heads { data: x.floats(), head_stride: 4, token_stride: 8 };
    let queries = Queries { first, row_stride: 0, tokens: 3 };
    assert!(kernels.norm_rope(&queries, [1, 1, 4], None, None, out.floats_mut()).is_err());
    let gates = GluInput { gates: x.floats(), ups: x.floats(), row_stride: 12, step: 1 };
    assert!(kernels.glu(&gates, Glu::Silu, 6, out.floats_mut()).is_err());
    assert!(kernels.gate_heads(&queries, [1, 1, 4], x.floats(), out.floats_mut()).is_err());
}
