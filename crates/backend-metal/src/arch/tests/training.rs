//! Losses, gradients and five steps of AdamW against what torch and mlx_lm made of the same.

use std::{collections::BTreeMap, fs, rc::Rc};

use inference_core::train::{AdapterOptions, FullOptions, Method, Optimizer as Rule, TokenExample};
use mlx_rs::{Array, Dtype, transforms};
use serde::Deserialize;

use super::fixtures::{Variant, device, root, tensor};
use crate::{
    nn::{Architecture, ExecMode, ParamOverride, TrainMode},
    train::{HeadLoss, LossAndGrad, Optimizer, TrainableParams},
};

/// The agreement that is asked for, relative to the largest element of a tensor.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    rank: usize,
    scale: f32,
    eps: f32,
    weight_decay: f32,
    layers: usize,
    batch: Vec<Vec<u32>>,
    lengths: Vec<[usize; 2]>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    variant: String,
    method: String,
    keys: Vec<String>,
    rate: f32,
    bias_correction: bool,
    losses: Vec<f32>,
    gradients: BTreeMap<String, Digest>,
    changes: BTreeMap<String, Digest>,
}

#[derive(Deserialize)]
struct Digest {
    max: f32,
    norm: f32,
    at: Vec<usize>,
    values: Vec<f32>,
}

impl Digest {
    /// How far an array is from it, relative to its largest element.
    fn distance(&self, array: &Array) -> f32 {
        let array = array.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap();
        let values = array.to_vec_exact::<f32>().unwrap();
        let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
        let differences = self.at.iter().zip(&self.values).map(|(at, value)| (values[*at] - value).abs());
        let worst = differences.fold(0.0, f32::max) / self.max;
        worst.max((norm - self.norm).abs() / self.norm)
    }
}

fn examples(golden: &Golden) -> Vec<TokenExample> {
    let learnt = |[first, last]: [usize; 2]| move |at| at > 0 && at >= first && at <= last;
    let rows = golden.batch.iter().zip(&golden.lengths);
    let example = rows.map(|(tokens, lengths)| {
        let learnt = (0..tokens.len()).map(learnt(*lengths)).collect();
        TokenExample::new(tokens.clone(), learnt).unwrap()
    });
    example.collect()
}

fn method(golden: &Golden, case: &Case) -> Method {
    let adapter = AdapterOptions::new().rank(golden.rank).scale(golden.scale).layers(golden.layers);
    match case.method.as_str() {
        "lora" => Method::Lora(adapter.keys(&case.keys)),
        "dora" => Method::Dora(adapter.keys(&case.keys)),
        _ => Method::Full(FullOptions::new()),
    }
}

/// The start that the references were given.
fn begin(trainable: &TrainableParams, values: &mut [Array]) {
    for (param, value) in trainable.params().iter().zip(values) {
        let shape: Vec<_> = value.shape().iter().map(|n| *n as usize).collect();
        let inputs = if shape.len() == 3 { shape[2] } else { shape[0] };
        let spread = match param.name().rsplit_once('.') {
            Some((_, "lora_a")) => f64::from((inputs as f64).powf(-0.5) as f32),
            Some((_, "lora_b")) => 0.02,
            _ => continue,
        };
        let bytes = tensor(&(param.name().to_owned(), "F32".to_owned(), shape, 0.0, spread));
        let numbers: Vec<_> = bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        *value = Array::from_slice(&numbers, value.shape());
    }
}

/// How gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Plain,
    /// As on other devices than the CPU, with a batch that is padded.
    Compiled,
    /// As on a GPU: with MLX's operations alone, and with the logits, and what comes after them, in pieces.
    InPieces,
}

/// Everything in which the case differs from its golden figures by more than the tolerance.
fn differences(golden: &Golden, case: &Case, recompute: bool, how: How) -> Vec<String> {
    let model: Rc<dyn Architecture> = Variant::named(&case.variant).load().into();
    let (trainable, mut values) = TrainableParams::new(&*model, &method(golden, case), 0).unwrap();
    begin(&trainable, &mut values);
    let before = values.clone();
    let trainable = Rc::new(trainable);
    let new = match how {
        How::Plain => LossAndGrad::new,
        How::Compiled => LossAndGrad::compiled,
        How::InPieces => LossAndGrad::in_pieces,
    };
    let mut loss_and_grad = new(model, trainable.clone(), recompute);
    let rule = Rule::AdamW {
        betas: [0.9, 0.999],
        eps: golden.eps,
        weight_decay: golden.weight_decay,
        bias_correction: case.bias_correction,
    };
    let mut optimizer = Optimizer::new(&rule, None, &values).unwrap();
    let examples = examples(golden);
    let batch = loss_and_grad.batch(&examples.iter().collect::<Vec<_>>());
    let mut found = Vec::new();
    let mut compare = |what: String, distance: f32| {
        // A NaN is no agreement.
        if distance.is_nan() || distance > TOLERANCE {
            found.push(format!("{} {} {recompute} {how:?}: {what}: {distance:e}", case.variant, case.method));
        }
    };
    for (step, expected) in case.losses.iter().enumerate() {
        let (loss, gradients) =
            loss_and_grad.gradient(&values, &batch, step as u64, batch.target_count).unwrap();
        let loss = loss.try_item_exact::<f32>().unwrap();
        compare(format!("loss {step}, {loss} for {expected}"), (loss - expected).abs() / expected);
        if step == 0 {
            let names: Vec<_> = trainable.params().iter().map(|param| param.name()).collect();
            let mut sorted = names.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, case.gradients.keys().collect::<Vec<_>>());
            for (name, gradient) in names.iter().zip(&gradients) {
                compare(format!("gradient of {name}"), case.gradients[*name].distance(gradient));
            }
        }
        optimizer.step(&mut values, &gradients, case.rate, step + 1).unwrap();
        transforms::eval(values.iter().chain(optimizer.state.iter().flatten())).unwrap();
    }
    for ((param, after), before) in trainable.params().iter().zip(&values).zip(&before) {
        let change = after.subtract(before).unwrap();
        // Relative to what the weights are, as the references were compared; what they change by is smaller.
        let largest = after.abs().unwrap().max(None).unwrap().try_item_exact::<f32>().unwrap();
        let golden = &case.changes[param.name()];
        compare(format!("change of {}", param.name()), golden.distance(&change) * golden.max / largest);
    }
    found
}

#[test]
fn losses_gradients_and_steps_are_the_references() {
    device();
    let golden: Golden = serde_json::from_slice(&fs::read(root().join("training.json")).unwrap()).unwrap();
    let found: Vec<_> = golden
        .cases
        .iter()
        .filter(|case| {
            std::env::var("VARIANT").is_ok_and(|name| name == case.variant)
                || std::env::var_os("VARIANT").is_none()
        })
        .flat_map(|case| {
            let hows = [(false, How::Plain), (true, How::Plain), (false, How::InPieces)];
            hows.map(|(recompute, how)| match how {
                How::InPieces => ExecMode::Mlx.scope(|| differences(&golden, case, recompute, how)),
                _ => differences(&golden, case, recompute, how),
            })
        })
        .flatten()
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_compiled_step_is_the_same() {
    device();
    let golden: Golden = serde_json::from_slice(&fs::read(root().join("training.json")).unwrap()).unwrap();
    let case = golden.cases.iter().find(|case| case.method == "lora").unwrap();
    let found = differences(&golden, case, true, How::Compiled);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn largest(array: &Array) -> f32 {
    array.abs().unwrap().max(None).unwrap().try_item_exact::<f32>().unwrap()
}

/// How far apart two arrays are.
fn far(found: &Array, expected: &Array) -> f32 {
    assert_eq!((found.shape(), found.dtype()), (expected.shape(), expected.dtype()));
    largest(&found.subtract(expected).unwrap())
}

/// Models with a head of their own, with the embedding for one, with a soft cap and with a scale of logits; whole weights, and adapters
/// on blocks alone and on the embedding.
#[test]
fn gradients_of_logits_in_pieces_are_those_of_all_at_once() {
    device();
    let golden: Golden = serde_json::from_slice(&fs::read(root().join("training.json")).unwrap()).unwrap();
    let examples = examples(&golden);
    let adapter = || AdapterOptions::new().rank(2);
    for name in ["llama", "qwen3", "gemma2-window", "cohere2", "gemma3_text"] {
        for method in [
            Method::Full(FullOptions::new()),
            Method::Full(FullOptions::new().layers(1)),
            Method::Lora(adapter()),
            Method::Lora(adapter().embeddings(true)),
        ] {
            let model: Rc<dyn Architecture> = Variant::named(name).load().into();
            let (trainable, mut values) = TrainableParams::new(&*model, &method, 3).unwrap();
            begin(&trainable, &mut values);
            let trainable = Rc::new(trainable);
            let results = [LossAndGrad::new, LossAndGrad::in_pieces].map(|new| {
                let mut gradient = new(model.clone(), trainable.clone(), false);
                let batch = gradient.batch(&examples.iter().collect::<Vec<_>>());
                let (loss, mut results) = gradient.gradient(&values, &batch, 0, batch.target_count).unwrap();
                results.push(loss);
                results
            });
            assert_eq!(results[0].len(), values.len() + 1);
            let of_all = results[0][..values.len()].iter().map(largest).fold(0.0, f32::max);
            for (n, (whole, pieces)) in results[0].iter().zip(&results[1]).enumerate() {
                let what = trainable.params().get(n).map_or("loss", |param| param.name());
                // Some are nothing but rounding: a bias of keys changes no weight of attention.
                let far = far(pieces, whole) / largest(whole).max(1e-2 * of_all);
                assert!(far < 1e-5, "{name} {}: {what} is off by {far}", method.name());
            }
        }
    }
}

#[test]
fn a_loss_in_pieces_is_that_of_all_at_once() {
    device();
    let model: Rc<dyn Architecture> = Variant::named("gemma2-window").load().into();
    let (count, width) = (11, model.config().hidden_size as i32);
    let hidden =
        mlx_rs::random::uniform::<f32, f32>(-1.0, 1.0, &[count, width], &mlx_rs::random::key(5).unwrap())
            .unwrap();
    let targets: Vec<u32> = (0..count as u32).map(|n| n * 7 % 100).collect();
    let weights: Vec<f32> = (0..count).map(|n| n as f32 / 8.0).collect();
    let losses = |rows| {
        let loss = HeadLoss {
            model: model.clone(),
            params: Vec::new(),
            targets: Array::from_slice(&targets, &[count]),
            weights: Array::from_slice(&weights, &[count]),
            rows,
        };
        let hidden = std::slice::from_ref(&hidden);
        ExecMode::current().differentiable().scope(|| [loss.value(hidden), loss.differentiable(hidden)])
    };
    let expected = losses(count as usize).map(Result::unwrap);
    for rows in [1, 3, 10] {
        for loss in losses(rows) {
            let far = far(&loss.unwrap(), &expected[0]) / largest(&expected[0]);
            assert!(far < 1e-6, "{rows} rows at once: {far}");
        }
    }
}

/// Tensors that are one matrix when text is generated are several when they are trained.
#[test]
fn weights_that_are_trained_compute_what_they_did() {
    device();
    let tokens = Array::from_slice(&(1..25_u32).collect::<Vec<_>>(), &[2, 12]);
    let mut compared = 0;
    for variant in Variant::all() {
        let model = variant.load();
        if model.config().vocab_size < 25 {
            continue;
        }
        let Ok((trainable, values)) = TrainableParams::new(&*model, &Method::Full(FullOptions::new()), 0)
        else {
            continue;
        };
        // With the CPU's kernels they stay one matrix.
        for mode in [ExecMode::current(), ExecMode::Mlx] {
            let hidden =
                || mode.differentiable().scope(|| model.hidden_for_training(&tokens, &TrainMode::default()));
            let Ok(expected) = hidden() else { continue };
            // In 16 bits sums in another order may round otherwise; every structure is there in float32.
            if expected.dtype() != Dtype::Float32 {
                continue;
            }
            let _override = ParamOverride::new(trainable.params(), &values);
            let far = far(&hidden().unwrap(), &expected) / largest(&expected);
            assert!(far < 1e-5, "{} {mode:?}: {far}", variant.name);
            compared += 1;
        }
    }
    assert!(compared > 20 || std::env::var_os("VARIANT").is_some(), "{compared} models");
}
