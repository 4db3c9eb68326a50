//! Every variant of every family against what the reference implementations made of the same weights.

use mlx_rs::{Array, Device, Dtype, ops::indexing::TryIndexOp as _};

use super::fixtures::{Variant, tokens};
use crate::{
    arch::Architecture,
    nn::{KvCache, Rows},
};

/// The agreement that the fixtures' float32 logits must show, in the same unit.
pub(super) const TOLERANCE: f32 = 2e-4;

/// Logits `[T][V]` of row 0 in float32.
fn rows(logits: &Array) -> Vec<Vec<f32>> {
    let logits = logits.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap();
    let vocab = *logits.shape().last().unwrap() as usize;
    logits.to_vec_exact::<f32>().unwrap().chunks(vocab).map(<[f32]>::to_vec).collect()
}

pub(super) fn whole(model: &dyn Architecture, ids: &[u32]) -> Vec<Vec<f32>> {
    rows(&model.logits(&model.hidden(&tokens(ids), Rows::Uncached).unwrap()).unwrap())
}

fn cached(model: &dyn Architecture, ids: &[u32], cache: &mut KvCache) -> Vec<Vec<f32>> {
    let hidden = model.hidden(&tokens(ids), Rows::Cached(&mut [cache])).unwrap();
    rows(&model.logits(&hidden).unwrap())
}

pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, larger)
}

/// The larger of two distances; none is larger than one that is no number.
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}

fn rms(a: &[&Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let squares: Vec<_> =
        a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| (a - b) * (a - b)).collect();
    (squares.iter().sum::<f32>() / squares.len() as f32).sqrt()
}

fn argmax(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32
}

#[test]
fn logits_and_greedy_tokens_are_the_references() {
    Device::set_default(&Device::cpu());
    let mut failures = Vec::new();
    for variant in Variant::all() {
        let golden = &variant.golden;
        let model = variant.load();
        let ours = whole(&*model, &golden.prompt);
        let picked: Vec<_> = golden.positions.iter().map(|position| &ours[*position]).collect();
        let worst = picked.iter().zip(&golden.logits).map(|(a, b)| distance(a, b)).fold(0.0, larger);
        let rms = rms(&picked, &golden.logits);
        println!("{}: at most {worst:.1e}, rms {rms:.1e}, mlx_lm's {:?}", variant.name, golden.mlx_lm.rms);
        if variant.is_half() {
            // The reference computed in float32. We are as far from it as half precision makes mlx_lm, or nearer.
            let limit = golden.mlx_lm.rms.unwrap_or(0.05 * golden.std);
            let near = rms <= 1.02 * limit;
            if !near {
                failures.push(format!("{}: rms {rms} from the reference, mlx_lm {limit}", variant.name));
            }
            continue;
        }
        let right = worst <= TOLERANCE;
        if !right {
            failures.push(format!("{}: logits differ by {worst}", variant.name));
            continue;
        }
        let mut cache = model.new_cache();
        let mut logits = cached(&*model, &golden.prompt, &mut cache).pop().unwrap();
        for (step, (id, margin)) in golden.greedy.iter().zip(&golden.margins).enumerate() {
            // Under this margin the reference's own choice is a matter of rounding.
            let pick = argmax(&logits);
            if pick != *id && *margin > 2.0 * TOLERANCE {
                failures.push(format!("{}: step {step} gives {pick}, the reference {id}", variant.name));
                break;
            }
            logits = cached(&*model, &[*id], &mut cache).pop().unwrap();
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn chunks_cache_and_batch_change_nothing() {
    Device::set_default(&Device::cpu());
    for variant in Variant::all() {
        let Variant { name, golden, .. } = &variant;
        let model = variant.load();
        let tolerance = if variant.is_half() { golden.std / 2.0 } else { TOLERANCE };
        let mut text = golden.prompt.clone();
        let reference = whole(&*model, &text);
        // Windows of 8 are met, filled and crossed by chunks of 5; one by one after 20.
        for sizes in [vec![32], vec![5; 7], vec![7, 1, 1, 12, 3, 8], [vec![20], vec![1; 12]].concat()] {
            let mut cache = model.new_cache();
            cache.expect(text.len());
            let mut at = 0;
            for size in sizes {
                let end = (at + size).min(text.len());
                let logits = cached(&*model, &text[at..end], &mut cache);
                for (p, logits) in (at..end).zip(&logits) {
                    let d = distance(logits, &reference[p]);
                    assert!(d <= tolerance, "{name}: position {p} of a chunk at {at} differs by {d}");
                }
                at = end;
                assert_eq!(cache.len(), at);
            }
        }
        // Rows of other lengths beside it: each gets what it gets alone.
        let lengths = [3, 17, 9, 32];
        let mut caches: Vec<_> = lengths
            .iter()
            .map(|length| {
                let mut cache = model.new_cache();
                let _ = cached(&*model, &text[..*length], &mut cache);
                cache
            })
            .collect();
        text.extend(&golden.greedy[..3]);
        for step in 0..3 {
            let alone: Vec<_> = caches
                .iter()
                .zip(lengths)
                .map(|(cache, length)| {
                    cached(&*model, &text[length + step..=length + step], &mut cache.clone())
                })
                .collect();
            let next: Vec<_> = lengths.iter().map(|length| text[length + step]).collect();
            let mut together: Vec<_> = caches.iter_mut().collect();
            let hidden =
                model.hidden(&Array::from_slice(&next, &[4, 1]), Rows::Cached(&mut together)).unwrap();
            let logits = rows(&model.logits(&hidden).unwrap());
            for (row, (alone, together)) in alone.iter().zip(&logits).enumerate() {
                let d = distance(&alone[0], together);
                assert!(d <= tolerance, "{name}: row {row} in step {step} differs by {d} from the row alone");
            }
        }
        // Right-padded rows of one uncached pass.
        if !model.config().length_dependent {
            let mut padded = text[..32].to_vec();
            padded.extend(text[..9].iter().chain(&[0; 23]));
            let hidden = model.hidden(&Array::from_slice(&padded, &[2, 32]), Rows::Uncached).unwrap();
            let second = hidden.try_index((1, .., ..)).unwrap();
            let d = distance(&rows(&model.logits(&second).unwrap())[8], &reference[8]);
            assert!(d <= tolerance, "{name}: a padded row differs by {d}");
        }
    }
}
