//! The kernels beside double precision. They need a GPU: `cargo test -p inferlm-backend-metal --lib fused -- --ignored` on such a
//! machine.

use mlx_rs::{Array, Device, Dtype, random, with_device};

use super::{Gate, QkNormRope, Rotation, add_rms_norm, glu, qk_norm_rope};

const TYPES: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

/// Numbers between −2 and 2, as they are in this type.
fn drawn(seed: u64, shape: &[i32], dtype: Dtype) -> (Array, Vec<f64>) {
    let x = random::uniform::<f32, f32>(-2.0, 2.0, shape, &random::key(seed).unwrap()).unwrap();
    let x = x.as_dtype(dtype).unwrap();
    let values = values(&x);
    (x, values)
}

fn values(x: &Array) -> Vec<f64> {
    let wide = x.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap().reshape(&[-1]).unwrap();
    wide.to_vec_exact::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn assert_near(what: &str, found: &Array, expected: &[f64]) {
    let epsilon = match found.dtype() {
        Dtype::Bfloat16 => 1.0 / 256.0,
        Dtype::Float16 => 1.0 / 2048.0,
        _ => 2e-5,
    };
    let found = values(found);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let far = (found - expected).abs();
        assert!(far <= epsilon * (expected.abs() + 0.25), "{what}: {found} at {place}, expected {expected}");
    }
}

fn gated(gate: f64, up: f64, how: Gate) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match how {
        Gate::Silu => gate * sigmoid(gate) * up,
        // erf by its series, good for |x| ≤ 2.
        Gate::Gelu => {
            let x = gate / 2.0_f64.sqrt();
            let (mut term, mut sum) = (x, x);
            for n in 1..60 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            0.5 * gate * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * sum) * up
        }
        Gate::GeluTanh => {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            0.5 * gate * (1.0 + z.tanh()) * up
        }
        Gate::Relu2 => gate.max(0.0).powi(2) * up,
        Gate::Clamped { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let gate = gate.min(limit);
            gate * sigmoid(alpha * gate) * (up.clamp(-limit, limit) + 1.0)
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn gates_are_those_of_double_precision() {
    with_device(Device::gpu(), || {
        let gates =
            [Gate::Silu, Gate::Gelu, Gate::GeluTanh, Gate::Relu2, Gate::Clamped { alpha: 1.7, limit: 0.5 }];
        for (rows, size, gate) in gates.into_iter().flat_map(|gate| [(1, 64, gate), (7, 4352, gate)]) {
            for (dtype, interleaved) in TYPES.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
                let (joined, x) = drawn(3, &[1, rows, 2 * size], dtype);
                let found = glu(&joined, gate, interleaved).unwrap().unwrap();
                assert_eq!(found.shape(), [1, rows, size]);
                let size = size as usize;
                let expected: Vec<f64> = x
                    .chunks(2 * size)
                    .flat_map(|row| {
                        (0..size).map(move |i| match interleaved {
                            true => gated(row[2 * i], row[2 * i + 1], gate),
                            false => gated(row[i], row[size + i], gate),
                        })
                    })
                    .collect();
                assert_near(&format!("{gate:?} of {rows} × {size} in {dtype:?}"), &found, &expected);
            }
        }
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn sums_and_norms_are_those_of_double_precision() {
    with_device(Device::gpu(), || {
        for (rows, size) in [(1, 64), (5, 1152), (3, 4096), (2, 16384)] {
            for dtype in TYPES {
                let ((x, xs), (y, ys)) = (drawn(1, &[rows, size], dtype), drawn(2, &[rows, size], dtype));
                let ((before, bs), (after, afters)) = (drawn(3, &[size], dtype), drawn(4, &[size], dtype));
                let size = size as usize;
                let norm = |row: &[f64], weights: &[f64], eps: f64| -> Vec<f64> {
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / size as f64;
                    row.iter().zip(weights).map(|(x, w)| x * w / (mean + eps).sqrt()).collect()
                };
                let normed: Vec<f64> = ys.chunks(size).flat_map(|row| norm(row, &bs, 1e-2)).collect();
                // Not rounded: what is found may be half a unit off either way.
                let added = |y: &[f64]| -> Vec<f64> { xs.iter().zip(y).map(|(x, y)| x + y).collect() };
                let after_of = |sum: &[f64]| -> Vec<f64> {
                    sum.chunks(size).flat_map(|row| norm(row, &afters, 1e-5)).collect()
                };
                let what = format!("{rows} × {size} in {dtype:?}");
                let (first, second) = (Some((&before, 1e-2)), Some((&after, 1e-5)));
                let [sum, out] = add_rms_norm([&x, &y], None, second).unwrap().unwrap();
                assert_near(&what, &sum, &added(&ys));
                assert_near(&what, &out, &after_of(&values(&sum)));
                let [sum, out] = add_rms_norm([&x, &y], first, second).unwrap().unwrap();
                assert_near(&what, &sum, &added(&normed));
                assert_near(&what, &out, &after_of(&values(&sum)));
                let [sum] = add_rms_norm([&x, &y], first, None).unwrap().unwrap();
                assert_near(&what, &sum, &added(&normed));
            }
        }
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn rotated_heads_are_those_of_double_precision() {
    let sizes =
        [(1, 1, [4, 2, 64], 32), (2, 5, [6, 3, 128], 64), (3, 40, [4, 1, 256], 128), (2, 3, [2, 2, 80], 24)];
    with_device(Device::gpu(), || {
        for (batch, tokens, [heads, kv_heads, width], pairs) in sizes {
            for (dtype, flags) in TYPES.into_iter().flat_map(|dtype| (0..4).map(move |flags| (dtype, flags)))
            {
                let (interleaved, with_norms) = (flags & 1 != 0, flags & 2 != 0);
                let all = heads + 2 * kv_heads;
                let (qkv, x) = drawn(1, &[batch, tokens, all * width], dtype);
                let (weights, ws) = drawn(2, &[width], dtype);
                let frequencies: Vec<f32> = (0..pairs).map(|pair| 0.5_f32.powi(pair)).collect();
                let starts: Vec<i32> = (0..batch).map(|row| 17 * row + 3).collect();
                let rotation = Rotation {
                    frequencies: &Array::from_slice(&frequencies, &[pairs]),
                    magnitude: 1.25,
                    interleaved,
                };
                let norms = with_norms.then_some([(&weights, 1e-5); 2]);
                let how = QkNormRope { heads: [heads, kv_heads, width], norms, rotation: Some(rotation) };
                let found = qk_norm_rope(&qkv, &Array::from_slice(&starts, &[batch]), &how).unwrap().unwrap();
                let head = |batch: i32, token: i32, head: i32| -> Vec<f64> {
                    let from = (((batch * tokens + token) * all + head) * width) as usize;
                    let mut x = x[from..from + width as usize].to_vec();
                    if head >= heads + kv_heads {
                        return x;
                    }
                    if with_norms {
                        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
                        x.iter_mut().zip(&ws).for_each(|(x, w)| *x *= w / (mean + 1e-5).sqrt());
                    }
                    for (pair, frequency) in frequencies.iter().enumerate() {
                        let (a, b) = if interleaved {
                            (2 * pair, 2 * pair + 1)
                        } else {
                            (pair, pair + pairs as usize)
                        };
                        let angle = f64::from(starts[batch as usize] + token) * f64::from(*frequency);
                        let (sin, cos) = angle.sin_cos();
                        (x[a], x[b]) = (1.25 * (x[a] * cos - x[b] * sin), 1.25 * (x[b] * cos + x[a] * sin));
                    }
                    x
                };
                let mut expected = [Vec::new(), Vec::new(), Vec::new()];
                for row in 0..batch {
                    for token in 0..tokens {
                        (0..heads).for_each(|h| expected[0].extend(head(row, token, h)));
                    }
                    for (index, first) in [(1, heads), (2, heads + kv_heads)] {
                        for h in first..first + kv_heads {
                            (0..tokens).for_each(|token| expected[index].extend(head(row, token, h)));
                        }
                    }
                }
                for (found, expected) in found.iter().zip(&expected) {
                    assert_near(
                        &format!("{batch} × {tokens}, {heads} heads of {width}, {dtype:?}, {flags}"),
                        found,
                        expected,
                    );
                }
            }
        }
    });
}
