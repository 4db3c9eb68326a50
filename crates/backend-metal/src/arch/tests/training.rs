//! Losses, gradients and five steps of AdamW against what torch and mlx_lm made of the same.

use std::{collections::BTreeMap, fs, rc::Rc};

use inference_core::train::{AdapterOptions, FullOptions, Method, Optimizer as Rule, TokenExample};
use mlx_rs::{Array, Dtype, transforms};
use serde::Deserialize;

use super::fixtures::{Variant, device, root, tensor};
use crate::{
    nn::Architecture,
    train::{LossAndGrad, Optimizer, TrainableParams},
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

/// Everything in which the case differs from its golden figures by more than the tolerance.
fn differences(golden: &Golden, case: &Case, recompute: bool, compiled: bool) -> Vec<String> {
    let model: Rc<dyn Architecture> = Variant::named(&case.variant).load().into();
    let (trainable, mut values) = TrainableParams::new(&*model, &method(golden, case), 0).unwrap();
    begin(&trainable, &mut values);
    let before = values.clone();
    let trainable = Rc::new(trainable);
    let new = if compiled { LossAndGrad::compiled } else { LossAndGrad::new };
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
            found.push(format!(
                "{} {} {recompute} {compiled}: {what}: {distance:e}",
                case.variant, case.method
            ));
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
        .flat_map(|case| [false, true].map(|recompute| differences(&golden, case, recompute, false)))
        .flatten()
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// As on other devices than the CPU, with a batch that is padded.
#[test]
fn a_compiled_step_is_the_same() {
    device();
    let golden: Golden = serde_json::from_slice(&fs::read(root().join("training.json")).unwrap()).unwrap();
    let case = golden.cases.iter().find(|case| case.method == "lora").unwrap();
    let found = differences(&golden, case, true, true);
    assert!(found.is_empty(), "{}", found.join("\n"));
}
