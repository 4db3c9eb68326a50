//! Attention against the definition in double precision: every element type and instruction set, at odd shapes.
#![allow(clippy::unwrap_used, reason = "a failed kernel fails the test")]

mod common;

use common::{Kind, Vector, close, kernels, kinds, vector};
use cpu_kernels::{
    AttentionParams, Floats, FloatsMut, Heads, Kernels, KvCache, KvView, PackedTexts, QuantizedHeads, Queries,
};
use proptest::prelude::*;

/// Keys or values `[kv_heads, capacity, head_dim]`.
fn heads(data: &Vector, capacity: usize, head_dim: usize) -> Heads<'_> {
    Heads { data: data.floats(), head_stride: capacity * head_dim, token_stride: head_dim }
}

fn one_head(head_dim: usize) -> AttentionParams<'static> {
    AttentionParams { heads: 1, kv_heads: 1, head_dim, scale: 1.0, window: None, softcap: None, sinks: None }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn attend(
        (kv_heads, sharing, head_dim) in (1..4_usize, 1..6_usize, 1..140_usize),
        (tokens, lens) in (
            prop_oneof![Just(1_usize), 1..90_usize],
            prop::collection::vec(prop_oneof![0..10_usize, 0..200_usize], 1..4),
        ),
        window in prop::option::of(1..120_usize),
        softcap in prop::option::of(1.0..50.0_f32),
        with_sinks in any::<bool>(),
        seed in any::<u64>(),
        kind in kinds(),
        kernels in kernels(),
    ) {
        let (heads_of_queries, rows, scale) = (kv_heads * sharing, lens.len(), 1.3 / (head_dim as f32).sqrt());
        // Tokens before heads, as projections make them, where keys are the other way round.
        let queries = vector(kind, rows * tokens * heads_of_queries * head_dim, seed);
        let lens: Vec<_> = lens.iter().map(|before| before + tokens).collect();
        let capacity = lens.iter().max().unwrap() + 3;
        let memory = |salt| (0..rows as u64).map(|row| vector(kind, kv_heads * capacity * head_dim, seed ^ salt ^ row << 32)).collect::<Vec<_>>();
        let (keys, values) = (memory(1), memory(2));
        let caches: Vec<_> = (0..rows).map(|row| KvCache {
            keys: KvView::Floats(heads(&keys[row], capacity, head_dim)),
            values: KvView::Floats(heads(&values[row], capacity, head_dim)),
            len: lens[row],
        }).collect();
        let sinks = vector(kind, heads_of_queries, seed ^ 3);
        let how = AttentionParams {
            heads: heads_of_queries, kv_heads, head_dim, scale, window, softcap,
            sinks: with_sinks.then(|| sinks.floats()),
        };
        let first = Heads { data: queries.floats(), head_stride: head_dim, token_stride: heads_of_queries * head_dim };
        let row_stride = tokens * heads_of_queries * head_dim;
        let mut out = vector(kind, rows * row_stride, 0);
        kernels.attention(&Queries { first, row_stride, tokens }, &caches, &how, out.floats_mut()).unwrap();
        for row in 0..rows {
            for token in 0..tokens {
                for head in 0..heads_of_queries {
                    let start = ((row * tokens + token) * heads_of_queries + head) * head_dim;
                    let position = lens[row] - tokens + token;
                    let from = window.map_or(0, |window| (position + 1).saturating_sub(window));
                    let at = |key: usize, i: usize| (head / sharing * capacity + key) * head_dim + i;
                    let weights: Vec<f64> = (from..=position).map(|key| {
                        let product: f64 = (0..head_dim).map(|i| queries.get(start + i) * keys[row].get(at(key, i))).sum();
                        let score = product * f64::from(scale);
                        softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                    }).collect();
                    let total = weights.iter().sum::<f64>() + if with_sinks { sinks.get(head).exp() } else { 0.0 };
                    for i in 0..head_dim {
                        let mixed: f64 = (from..=position).zip(&weights).map(|(key, weight)| weight * values[row].get(at(key, i))).sum();
                        // Values are within ±1, and each weight is right to a few units of its score's last place.
                        close(out.get(start + i), mixed / total, 2.0, kind)?;
                    }
                }
            }
        }
    }
}

/// Quantised vectors, and what they stand for.
#[derive(Debug)]
struct Packed {
    words: Vec<u32>,
    scales: Vector,
    biases: Vector,
    full: Vec<f32>,
}

impl Packed {
    fn whole(&self, bits: usize, group_size: usize, capacity: usize) -> KvView<'_> {
        let (scales, biases) = (self.scales.floats(), self.biases.floats());
        KvView::Quantized(QuantizedHeads { bits, group_size, words: &self.words, scales, biases, capacity })
    }
}

fn heads_of(data: &[f32], capacity: usize, head_dim: usize) -> Heads<'_> {
    Heads { data: Floats::F32(data), head_stride: capacity * head_dim, token_stride: head_dim }
}

/// `vectors` of them, `head_dim` wide, drawn by `seed`.
fn packed(bits: usize, group_size: usize, vectors: usize, head_dim: usize, kind: Kind, seed: u64) -> Packed {
    let groups = vectors * head_dim / group_size;
    let (scales, biases) = (vector(kind, groups, seed), vector(kind, groups, seed ^ 1));
    let mut state = seed | 1;
    let mut words = vec![0; vectors * head_dim * bits / 32];
    for word in &mut words {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *word = (state >> 32) as u32;
    }
    let full = (0..vectors * head_dim).map(|i| {
        let number = words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
        (f64::from(number) * scales.get(i / group_size) + biases.get(i / group_size)) as f32
    });
    let full = full.collect();
    Packed { words, scales, biases, full }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn quantised_keys_and_values_are_what_they_stand_for(
        (kv_heads, sharing, groups) in (1..3_usize, 1..5_usize, 1..4_usize),
        (bits, group_size) in (prop_oneof![Just(4_usize), Just(8)], prop_oneof![Just(32_usize), Just(64)]),
        (tokens, before) in (prop_oneof![Just(1_usize), 1..40_usize], 0..90_usize),
        seed in any::<u64>(),
        kind in kinds(),
        kernels in kernels(),
    ) {
        let (head_dim, len, heads) = (groups * group_size, before + tokens, kv_heads * sharing);
        let capacity = len + 3;
        let kept = [2, 3].map(|salt| packed(bits, group_size, kv_heads * capacity, head_dim, kind, seed ^ salt << 8));
        let (whole, plain) = (
            kept.each_ref().map(|kept| kept.whole(bits, group_size, capacity)),
            kept.each_ref().map(|kept| KvView::Floats(heads_of(&kept.full, capacity, head_dim))),
        );
        let queries = vector(Kind::F32, tokens * heads * head_dim, seed);
        let queries = Queries {
            first: Heads { data: queries.floats(), head_stride: head_dim, token_stride: heads * head_dim },
            row_stride: 0,
            tokens,
        };
        // Products come to thousands: scores of a few units keep what rounds in them from growing in the weights.
        let how = AttentionParams { heads, kv_heads, head_dim, scale: 1e-3, window: None, softcap: None, sinks: None };
        let run = |[keys, values]: [KvView<'_>; 2]| {
            let mut out = vector(Kind::F32, tokens * heads * head_dim, 0);
            kernels.attention(&queries, &[KvCache { keys, values, len }], &how, out.floats_mut()).unwrap();
            out
        };
        let (ours, expected) = (run(whole), run(plain));
        for i in 0..tokens * heads * head_dim {
            // Numbers up to 255, and a rounding of each.
            close(ours.get(i), expected.get(i), 256.0, Kind::F32)?;
        }
    }
}

#[test]
fn quantised_operands_that_do_not_fit_are_refused() {
    let kernels = Kernels::new().unwrap();
    let kept = packed(8, 32, 4, 32, Kind::F32, 1);
    let queries = vector(Kind::F32, 32, 1);
    let queries = Queries {
        first: Heads { data: queries.floats(), head_stride: 32, token_stride: 32 },
        row_stride: 0,
        tokens: 1,
    };
    let how = one_head(32);
    let run = |bits, group_size, words: &[u32], capacity, len| {
        let (scales, biases) = (kept.scales.floats(), kept.biases.floats());
        let all = KvView::Quantized(QuantizedHeads { bits, group_size, words, scales, biases, capacity });
        let mut out = vector(Kind::F32, 32, 0);
        kernels.attention(&queries, &[KvCache { keys: all, values: all, len }], &how, out.floats_mut())
    };
    assert!(run(8, 32, &kept.words, 4, 4).is_ok());
    assert!(run(3, 32, &kept.words, 4, 4).is_err());
    assert!(run(8, 12, &kept.words, 4, 4).is_err());
    assert!(run(8, 32, &kept.words[1..], 4, 4).is_err());
    assert!(run(8, 32, &kept.words, 4, 5).is_err());
    assert!(run(8, 16, &kept.words, 4, 4).is_err());
}

/// A model whose weights are no numbers must not look as if it worked.
#[test]
fn a_query_that_is_no_number_shows() {
    let how = one_head(32);
    for tokens in (1..40).chain([64, 65, 100]) {
        let keys = vector(Kind::F32, tokens * 32, 1);
        let (bad, all) = (vec![f32::NAN; tokens * 32], heads(&keys, tokens, 32));
        let queries = Heads { data: Floats::F32(&bad), head_stride: tokens * 32, token_stride: 32 };
        let mut out = vec![0.0_f32; tokens * 32];
        let (cache, kernels) = (KvView::Floats(all), Kernels::new().unwrap());
        let caches = [KvCache { keys: cache, values: cache, len: tokens }];
        let rows = Queries { first: queries, row_stride: 0, tokens };
        kernels.attention(&rows, &caches, &how, FloatsMut::F32(&mut out)).unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "{tokens} tokens");
        out.fill(0.0);
        let texts = PackedTexts { queries, keys: all, values: all, lengths: &[tokens] };
        kernels.attention_packed(&texts, &how, false, FloatsMut::F32(&mut out)).unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "{tokens} tokens of a text");
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let kernels = Kernels::new().unwrap();
    let (data, mut out) = (vector(Kind::F32, 8, 1), vector(Kind::F32, 8, 0));
    let all = heads(&data, 2, 4);
    let how = one_head(4);
    let mut run = |tokens, len, how: &AttentionParams<'_>| {
        let queries = Queries { first: all, row_stride: 8, tokens };
        kernels.attention(
            &queries,
            &[KvCache { keys: KvView::Floats(all), values: KvView::Floats(all), len }],
            how,
            out.floats_mut(),
        )
    };
    run(2, 2, &how).unwrap();
    assert_eq!(run(2, 3, &how).unwrap_err().to_string(), "keys has 8 elements, expected 12");
    assert_eq!(run(1, 2, &how).unwrap_err().to_string(), "out has 8 elements, expected 4");
    let refused = run(2, 1, &how).unwrap_err().to_string();
    assert_eq!(refused, "the number of positions is 1, expected at least the 2 new ones");
    let odd = AttentionParams { heads: 3, kv_heads: 2, ..how };
    assert_eq!(
        run(2, 2, &odd).unwrap_err().to_string(),
        "the number of heads is 3, expected a multiple of the 2 heads of keys"
    );
    assert!(run(2, 2, &AttentionParams { window: Some(0), ..how }).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn texts_attend_to_themselves(
        (kv_heads, sharing, head_dim) in (1..4_usize, 1..4_usize, 1..70_usize),
        lengths in prop::collection::vec(prop_oneof![1..10_usize, 1..150_usize], 1..5),
        window in prop::option::of(1..90_usize),
        causal in any::<bool>(),
        seed in any::<u64>(),
        kind in kinds(),
        kernels in kernels(),
    ) {
        let (heads, scale) = (kv_heads * sharing, 1.3 / (head_dim as f32).sqrt());
        let tokens: usize = lengths.iter().sum();
        // Queries, keys and values in one, as one projection makes them.
        let stride = (heads + 2 * kv_heads) * head_dim;
        let qkv = vector(kind, tokens * stride, seed);
        let part = |first: usize| {
            let data = match qkv.floats() {
                Floats::F32(data) => Floats::F32(&data[first * head_dim..]),
                Floats::F16(data) => Floats::F16(&data[first * head_dim..]),
                Floats::Bf16(data) => Floats::Bf16(&data[first * head_dim..]),
            };
            Heads { data, head_stride: head_dim, token_stride: stride }
        };
        let texts = PackedTexts { queries: part(0), keys: part(heads), values: part(heads + kv_heads), lengths: &lengths };
        let how = AttentionParams { heads, kv_heads, head_dim, scale, window, softcap: None, sinks: None };
        let mut out = vector(kind, tokens * heads * head_dim, 0);
        kernels.attention_packed(&texts, &how, causal, out.floats_mut()).unwrap();
        let mut start = 0;
        for length in &lengths {
            for token in 0..*length {
                let reach = window.unwrap_or(usize::MAX);
                let seen: Vec<usize> = (0..*length)
                    .filter(|key| key.abs_diff(token) < reach && (!causal || *key <= token))
                    .collect();
                for head in 0..heads {
                    let at = |token: usize, head: usize, i: usize| (start + token) * stride + head * head_dim + i;
                    let (key_head, value_head) = (heads + head / sharing, heads + kv_heads + head / sharing);
                    let weights: Vec<f64> = seen.iter().map(|key| {
                        let product = |i| qkv.get(at(token, head, i)) * qkv.get(at(*key, key_head, i));
                        ((0..head_dim).map(product).sum::<f64>() * f64::from(scale)).exp()
                    }).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..head_dim {
                        let mixed: f64 =
                            seen.iter().zip(&weights).map(|(key, weight)| weight * qkv.get(at(*key, value_head, i))).sum();
                        close(out.get(((start + token) * heads + head) * head_dim + i), mixed / total, 2.0, kind)?;
                    }
                }
            }
            start += length;
        }
    }
}

#[test]
fn texts_that_do_not_fit_are_refused() {
    let (data, mut out) = (vector(Kind::F32, 12, 1), vector(Kind::F32, 12, 0));
    let all = Heads { data: data.floats(), head_stride: 4, token_stride: 4 };
    let how = one_head(4);
    let mut run = |lengths: &[usize]| {
        let texts = PackedTexts { queries: all, keys: all, values: all, lengths };
        Kernels::new().unwrap().attention_packed(&texts, &how, false, out.floats_mut())
    };
    run(&[1, 2]).unwrap();
    assert!(run(&[1, 0, 2]).is_err());
    assert!(run(&[1, 1]).is_err());
    assert!(run(&[usize::MAX, 4]).is_err());
}
