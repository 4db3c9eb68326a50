//! Every variant of every family against what the reference implementations made of the same weights.

use mlx_rs::{Array, Dtype, ops::indexing::TryIndexOp as _};

use super::fixtures::{Variant, device, tokens};
use crate::{
    mlx::primitive::built,
    nn::{Architecture, ExecMode, KvCache, Rows},
};

/// The agreement that the fixtures' float32 logits must show, in the same unit.
pub(super) const TOLERANCE: f32 = 2e-4;

/// Logits `[T][V]` of row 0 in float32.
pub(super) fn rows(logits: &Array) -> Vec<Vec<f32>> {
    let logits = logits.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap();
    let vocab = *logits.shape().last().unwrap() as usize;
    logits.to_vec_exact::<f32>().unwrap().chunks(vocab).map(<[f32]>::to_vec).collect()
}

pub(super) fn whole(model: &dyn Architecture, ids: &[u32]) -> Vec<Vec<f32>> {
    rows(&model.logits(&model.hidden(&tokens(ids), Rows::Uncached).unwrap()).unwrap())
}

pub(super) fn cached(model: &dyn Architecture, ids: &[u32], cache: &mut KvCache) -> Vec<Vec<f32>> {
    let hidden = model.hidden(&tokens(ids), Rows::cached(&mut [cache])).unwrap();
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

/// What one variant came to.
struct Outcome {
    /// The largest difference of a logit.
    worst: f32,
    /// Their root mean square.
    rms: f32,
    /// Steps at which our greedy token is the reference's, or the reference's own choice is a matter of rounding.
    agreeing: usize,
}

fn compare(variant: &Variant, model: &dyn Architecture) -> Outcome {
    let golden = &variant.golden;
    let ours = whole(model, &golden.prompt);
    let picked: Vec<_> = golden.positions.iter().map(|position| &ours[*position]).collect();
    let worst = picked.iter().zip(&golden.logits).map(|(a, b)| distance(a, b)).fold(0.0, larger);
    let mut cache = model.new_cache();
    let mut logits = cached(model, &golden.prompt, &mut cache).pop().unwrap();
    let mut agreeing = 0;
    for (id, margin) in golden.greedy.iter().zip(&golden.margins) {
        agreeing += usize::from(argmax(&logits) == *id || *margin <= 2.0 * TOLERANCE);
        // The reference's token, whatever ours.
        logits = cached(model, &[*id], &mut cache).pop().unwrap();
    }
    Outcome { worst, rms: rms(&picked, &golden.logits), agreeing }
}

/// With `ACCURACY_TABLE` set, the figures go to that file as Markdown.
#[test]
fn logits_and_greedy_tokens_are_the_references() {
    device();
    let mut failures = Vec::new();
    let mut table = String::from(
        "| variant | std of logits | max Δ | rms Δ | greedy | mlx_lm: max Δ |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for variant in Variant::all() {
        let Variant { name, golden, .. } = &variant;
        let Outcome { worst, rms, agreeing } = compare(&variant, &*variant.load());
        let (steps, std) = (golden.greedy.len(), golden.std);
        let mlx = golden.mlx_lm.max.map_or("–".to_owned(), |max| format!("{max:.1e}"));
        table += &format!("| {name} | {std:.1} | {worst:.1e} | {rms:.1e} | {agreeing}/{steps} | {mlx} |\n");
        if variant.is_half() {
            // The reference computed in float32.
            let limit = golden.half_limit();
            let near = rms <= limit;
            if !near {
                failures.push(format!("{name}: rms {rms} from the reference, expected {limit}"));
            }
            continue;
        }
        let right = worst <= TOLERANCE && agreeing == steps;
        if !right {
            failures
                .push(format!("{name}: logits differ by {worst}, {agreeing} of {steps} greedy tokens agree"));
        }
    }
    println!("{table}");
    if let Some(path) = std::env::var_os("ACCURACY_TABLE") {
        std::fs::write(path, table).unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What Metal and CUDA execute, on the CPU: `quantized_matmul`, `gather_qmm`, `addmm`, `matmul` and the fused attention. No kernel
/// of the CPU may run in it.
#[test]
fn mlx_alone_gives_what_the_references_give() {
    device();
    let mut failures = Vec::new();
    for variant in Variant::all() {
        let name = &variant.name;
        let before = built();
        let Outcome { worst, rms, agreeing } = ExecMode::Mlx.scope(|| compare(&variant, &*variant.load()));
        assert_eq!(built(), before, "{name}: kernels of the CPU ran");
        let right = if variant.is_half() {
            rms <= variant.golden.half_limit()
        } else {
            worst <= TOLERANCE && agreeing == variant.golden.greedy.len()
        };
        if !right {
            failures
                .push(format!("{name}: logits differ by {worst}, rms {rms}, {agreeing} greedy tokens agree"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// With the CPU's kernels, and with MLX's operations alone.
#[test]
fn chunks_cache_and_batch_change_nothing() {
    device();
    for variant in Variant::all() {
        let model = variant.load();
        chunks_cache_and_batch_are_the_whole(&variant, &*model);
        if !variant.is_half() {
            ExecMode::Mlx.scope(|| chunks_cache_and_batch_are_the_whole(&variant, &*model));
        }
    }
}

fn chunks_cache_and_batch_are_the_whole(variant: &Variant, model: &dyn Architecture) {
    let Variant { name, golden, .. } = variant;
    let tolerance = if variant.is_half() { golden.std / 2.0 } else { TOLERANCE };
    let mut text = golden.prompt.clone();
    let reference = whole(model, &text);
    // Windows of 8 are met, filled and crossed by chunks of 5; one by one after 20.
    for sizes in [vec![32], vec![5; 7], vec![7, 1, 1, 12, 3, 8], [vec![20], vec![1; 12]].concat()] {
        let mut cache = model.new_cache();
        cache.set_expected_len(text.len());
        let mut at = 0;
        for size in sizes {
            let end = (at + size).min(text.len());
            let logits = cached(model, &text[at..end], &mut cache);
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
            let _ = cached(model, &text[..*length], &mut cache);
            cache
        })
        .collect();
    text.extend(&golden.greedy[..3]);
    for step in 0..3 {
        let alone: Vec<_> = caches
            .iter()
            .zip(lengths)
            .map(|(cache, length)| cached(model, &text[length + step..=length + step], &mut cache.clone()))
            .collect();
        let next: Vec<_> = lengths.iter().map(|length| text[length + step]).collect();
        let mut together: Vec<_> = caches.iter_mut().collect();
        let hidden = model.hidden(&Array::from_slice(&next, &[4, 1]), Rows::cached(&mut together)).unwrap();
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
        // The same behind tokens that both rows begin with.
        let (nothing, mut beginning) = Default::default();
        let fresh = Rows::Prefixed { prefix: &nothing, store: Some(&mut beginning) };
        let _ = model.hidden(&tokens(&text[..5]), fresh).unwrap();
        let mut padded = text[5..32].to_vec();
        padded.extend(text[5..9].iter().chain(&[0; 23]));
        let fresh = Rows::Prefixed { prefix: &beginning, store: None };
        let hidden = model.hidden(&Array::from_slice(&padded, &[2, 27]), fresh).unwrap();
        let second = hidden.try_index((1, .., ..)).unwrap();
        let d = distance(&rows(&model.logits(&second).unwrap())[3], &reference[8]);
        assert!(d <= tolerance, "{name}: a row behind a beginning differs by {d}");
    }
}
