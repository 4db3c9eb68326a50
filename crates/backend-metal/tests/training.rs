//! Runs of training on a real model: what they learn, save, resume and leave alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use backend_metal as _;
use futures::StreamExt as _;
use inference_core::{
    CancellationToken, Error, GenerateOptions, LoadOptions, Message, Prompt, TextModel, TextModelExt as _,
    load_model,
    train::{
        AdapterOptions, Example, FullOptions, Method, Schedule, TrainEnd, TrainEvent, TrainOptions,
        TrainingData,
    },
};

fn demo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"))
}

async fn load(folder: &Path, options: LoadOptions) -> Arc<dyn TextModel> {
    load_model(folder).backend("cpu").options(options).await.unwrap()
}

async fn model() -> Arc<dyn TextModel> {
    load(&demo(), LoadOptions::new()).await
}

/// A folder with the demo model in it, dense: `model`.
fn dense_demo() -> tempfile::TempDir {
    let dense = tempfile::tempdir().unwrap();
    let manifest = inference_core::ModelManifest::read(demo()).unwrap();
    let options = backend_metal::ConvertOptions::default();
    backend_metal::convert(&manifest, &dense.path().join("model"), &options, &mut |_| true).unwrap();
    dense
}

fn pair(question: &str, answer: &str) -> Example {
    Example::chat(vec![Message::user(question), Message::assistant(answer)])
}

/// Colours that the model does not know.
fn data() -> TrainingData {
    let colours = ["red", "blue", "green", "grey", "pink", "brown"];
    let example = |(n, colour): (usize, &&str)| {
        pair(&format!("What colour is box {n}?"), &format!("Box {n} is {colour}."))
    };
    let train: Vec<_> = colours.iter().enumerate().map(example).collect();
    TrainingData::new(train.clone(), train[..2].to_vec())
}

fn options(output: &Path) -> TrainOptions {
    let method = Method::Lora(AdapterOptions::new().rank(4).scale(4.0).dropout(0.1).layers(3));
    TrainOptions::new(output)
        .method(method)
        .learning_rate(4e-3)
        .schedule(Schedule::Cosine, 2)
        .steps(12)
        .batch_size(2)
        .gradient_accumulation_steps(2)
        .max_grad_norm(1.0)
        .save_every(4)
        .evaluate_every(6, None)
        .seed(7)
}

async fn events(model: &dyn TextModel, data: TrainingData, options: TrainOptions) -> Vec<TrainEvent> {
    let stream = model.trainable().unwrap().train(data, options).await.unwrap();
    stream.map(Result::unwrap).collect().await
}

/// Each step's number, loss and norm of gradients, to the bit.
fn curve(events: &[TrainEvent]) -> Vec<(usize, u32, Option<u32>)> {
    let steps = events.iter().filter_map(|event| match event {
        TrainEvent::Step { step, loss, gradient_norm, .. } => {
            Some((*step, loss.to_bits(), gradient_norm.map(f32::to_bits)))
        }
        _ => None,
    });
    steps.collect()
}

fn validations(events: &[TrainEvent]) -> Vec<(usize, f32)> {
    let losses = events.iter().filter_map(|event| match event {
        TrainEvent::Validation { step, loss, .. } => Some((*step, *loss)),
        _ => None,
    });
    losses.collect()
}

fn adapters(output: &Path) -> Vec<u8> {
    std::fs::read(output.join("adapters.safetensors")).unwrap()
}

async fn answer(model: &dyn TextModel, question: &str) -> String {
    let prompt = Prompt::Chat(vec![Message::user(question)]);
    model.complete(prompt, GenerateOptions::new().max_tokens(12)).await.unwrap().text
}

#[tokio::test]
async fn what_was_learnt_is_in_the_adapter_and_the_model_is_as_it_was() {
    const QUESTION: &str = "What colour is box 3?";
    let output = tempfile::tempdir().unwrap();
    let model = model().await;
    let before = answer(&*model, QUESTION).await;
    let run =
        events(&*model, data(), options(output.path()).steps(60).save_every(60).gradient_checkpointing(true))
            .await;
    let TrainEvent::Started(plan) = &run[0] else { panic!("{:?}", run[0]) };
    // Rank 4, of 3 blocks: q, k, v, o, gate, up and down.
    let widths = (256 + 384) + 2 * (256 + 128) + (384 + 256) + 3 * (256 + 768);
    assert_eq!(plan.trainable_parameters, 3 * 4 * widths);
    assert_eq!((plan.steps, plan.examples, plan.validation_examples), (60, 6, 2));
    let validations = validations(&run);
    let (first, last) = (validations[0], validations[validations.len() - 1]);
    assert_eq!((first.0, last.0), (0, 60));
    assert!(last.1 < 0.1 * first.1, "{validations:?}");
    assert_eq!(answer(&*model, QUESTION).await, before);
    assert_ne!(before, "Box 3 is grey.");
    let adapted = load(&demo(), LoadOptions::new().adapter(output.path())).await;
    assert_eq!(answer(&*adapted, QUESTION).await, "Box 3 is grey.");
    // A second training on top of an adapter would lose the first.
    let again = adapted.trainable().unwrap().train(data(), options(&output.path().join("again"))).await;
    assert!(matches!(again.map(|_| ()), Err(Error::InvalidOption { option: "method", .. })));
}

#[tokio::test]
async fn a_seed_fixes_a_run_to_the_bit_and_a_cancelled_one_goes_on_as_if_it_had_not_been() {
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let model = model().await;
    let whole = events(&*model, data(), options(folders[0].path())).await;
    assert_eq!(curve(&whole).len(), 12);
    let same = events(&*model, data(), options(folders[1].path())).await;
    assert_eq!(curve(&same), curve(&whole));
    assert!(adapters(folders[0].path()) == adapters(folders[1].path()));
    let other = events(&*model, data(), options(folders[2].path()).seed(8)).await;
    assert_ne!(curve(&other), curve(&whole));

    let (cancel, output) = (CancellationToken::new(), folders[3].path());
    let training = model.trainable().unwrap();
    let stream = training.train(data(), options(output).cancel(cancel.clone())).await.unwrap();
    let cancelled: Vec<_> = stream
        .map(Result::unwrap)
        .inspect(|event| {
            if matches!(event, TrainEvent::Step { step: 6, .. }) {
                cancel.cancel();
            }
        })
        .collect()
        .await;
    let Some(TrainEvent::Finished { step, reason: TrainEnd::Cancelled, .. }) = cancelled.last() else {
        panic!("{:?}", cancelled.last())
    };
    assert!((6..12).contains(step));
    let resumed = events(&*model, data(), options(output).resume(true)).await;
    let TrainEvent::Started(plan) = &resumed[0] else { panic!("{:?}", resumed[0]) };
    assert_eq!(plan.resumed_at, *step);
    assert_eq!([curve(&cancelled), curve(&resumed)].concat(), curve(&whole));
    assert!(adapters(output) == adapters(folders[0].path()));

    // The output of a run is not another's.
    let other = training.train(data(), options(output)).await;
    assert!(matches!(other.map(|_| ()), Err(Error::InvalidOption { option: "output", .. })));
    let other = training.train(data(), options(output).resume(true).seed(8)).await;
    assert!(matches!(other.map(|_| ()), Err(Error::InvalidOption { option: "resume", .. })));
}

/// The child of the next test; by itself it does nothing.
#[tokio::test]
async fn child_that_is_killed() {
    let Some(output) = std::env::var_os("TRAIN_UNTIL_KILLED") else { return };
    let model = model().await;
    let training = model.trainable().unwrap();
    let mut stream = training.train(data(), options(Path::new(&output)).steps(12)).await.unwrap();
    while let Some(event) = stream.next().await {
        if let TrainEvent::Step { step, .. } = event.unwrap() {
            println!("step {step}");
        }
    }
}

#[tokio::test]
async fn a_killed_run_goes_on_as_if_nothing_had_happened() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env("TRAIN_UNTIL_KILLED", killed.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let seen = lines.filter(|line| line.ends_with("step 7")).take(1).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, 1);
    let model = model().await;
    let expected = curve(&events(&*model, data(), options(whole.path())).await);
    let resumed = events(&*model, data(), options(killed.path()).resume(true)).await;
    let TrainEvent::Started(plan) = &resumed[0] else { panic!("{:?}", resumed[0]) };
    assert!([4, 8].contains(&plan.resumed_at), "{}", plan.resumed_at);
    assert_eq!(curve(&resumed), expected[plan.resumed_at..]);
    assert!(adapters(killed.path()) == adapters(whole.path()));
}

#[tokio::test]
async fn others_are_served_meanwhile_and_a_dropped_stream_ends_the_run() {
    let output = tempfile::tempdir().unwrap();
    let model = model().await;
    let alone = answer(&*model, "What is 2+2?").await;
    let mut stream =
        model.trainable().unwrap().train(data(), options(output.path()).steps(100_000)).await.unwrap();
    while !matches!(stream.next().await.unwrap().unwrap(), TrainEvent::Step { step: 2, .. }) {}
    assert_eq!(answer(&*model, "What is 2+2?").await, alone);
    assert!(matches!(stream.next().await.unwrap().unwrap(), TrainEvent::Step { .. }));
    drop(stream);
    // Closing waits for the thread, which is free soon after.
    model.close().await.unwrap();
    assert!(!output.path().join("checkpoints/0100000").exists());
}

#[tokio::test]
async fn whole_weights_are_trained_where_they_are_dense() {
    let (dense, output) = (dense_demo(), tempfile::tempdir().unwrap());
    let full = |output: &Path| options(output).method(Method::Full(FullOptions::new().dropout(0.1)));
    let quantised = model().await;
    let refused = quantised.trainable().unwrap().train(data(), full(output.path())).await;
    assert!(matches!(refused.map(|_| ()), Err(Error::InvalidOption { option: "method", .. })));

    let folder = dense.path().join("model");
    let model = load(&folder, LoadOptions::new()).await;
    let [whole, mixed] = [false, true].map(|mixed| {
        let folder = output.path().join(mixed.to_string());
        let method = Method::Full(FullOptions::new().dropout(0.1).mixed_precision(mixed));
        options(&folder).method(method).learning_rate(1e-3).steps(20)
    });
    let mut curves = Vec::new();
    for options in [whole, mixed] {
        let weights = options.output.clone();
        let run = events(&*model, data(), options).await;
        let TrainEvent::Started(plan) = &run[0] else { panic!("{:?}", run[0]) };
        assert_eq!(Some(plan.trainable_parameters), Some(model.info().parameters));
        let validations = validations(&run);
        assert!(validations[validations.len() - 1].1 < 0.3 * validations[0].1, "{validations:?}");
        curves.push(curve(&run));
        let tensors = inference_core::backend::read_tensors(weights.join("adapters.safetensors")).unwrap();
        assert!(tensors.values().all(|tensor| tensor.dtype == inference_core::Dtype::F32));
        let trained = load(&folder, LoadOptions::new().adapter(&weights)).await;
        assert_eq!(answer(&*trained, "What colour is box 3?").await, "Box 3 is grey.");
    }
    assert_ne!(curves[0], curves[1]);
}

#[tokio::test]
async fn a_model_that_is_closed_gives_its_weights_to_the_run() {
    let [kept, closed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let dense = dense_demo();
    let mut runs = Vec::new();
    for (output, closes) in [(&kept, false), (&closed, true)] {
        let model = load(&dense.path().join("model"), LoadOptions::new()).await;
        let options = options(output.path()).method(Method::Full(FullOptions::new())).close_model(closes);
        let ask = || {
            let prompt = Prompt::Chat(vec![Message::user("Who are you?")]);
            model.generate(prompt, GenerateOptions::new().max_tokens(4))
        };
        let before = ask().await.unwrap();
        let (before, run) = futures::join!(before.collect::<Vec<_>>(), events(&*model, data(), options));
        assert!(before.iter().all(Result::is_ok), "{before:?}");
        assert_eq!(matches!(ask().await, Err(Error::Closed)), closes);
        runs.push(run);
    }
    assert_eq!(curve(&runs[0]), curve(&runs[1]));
    assert_eq!(validations(&runs[0]), validations(&runs[1]));
    assert_eq!(adapters(kept.path()), adapters(closed.path()));
    let [TrainEvent::Started(kept), TrainEvent::Started(closed)] = [&runs[0][0], &runs[1][0]] else {
        panic!("{:?}", runs[0][0])
    };
    assert_eq!(kept.memory.weights - closed.memory.weights, kept.memory.gradients);
}

#[tokio::test]
async fn what_the_model_has_not_is_named() {
    let output = tempfile::tempdir().unwrap();
    let model = model().await;
    let adapter = AdapterOptions::new().keys(["self_attn.q_proj", "self_attn.x_proj"]);
    let refused = model
        .trainable()
        .unwrap()
        .train(data(), options(output.path()).method(Method::Lora(adapter)))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(refused.to_string().contains("self_attn.x_proj"), "{refused}");
}

#[tokio::test]
async fn a_fused_model_says_what_model_and_adapter_say() {
    let output = tempfile::tempdir().unwrap();
    let model = model().await;
    for (name, method) in [("lora", Method::lora()), ("dora", Method::dora())] {
        let folder = output.path().join(name);
        events(&*model, data(), options(&folder).method(method).learning_rate(1e-3).steps(3)).await;
        let manifest = inference_core::ModelManifest::read(demo()).unwrap();
        let adapter = inference_core::backend::AdapterManifest::read(&folder, &manifest).unwrap();
        let adapted = load(&demo(), LoadOptions::new().adapter(&folder)).await;
        let expected = logits(&*adapted).await;
        // Eight bits round what was learnt; in full there is no rounding but float32's.
        for (dequantize, tolerance) in [(true, 1e-3), (false, 0.5)] {
            let target = output.path().join(format!("{name}-{dequantize}"));
            let mut options = backend_metal::FuseOptions::default();
            options.dequantize = dequantize;
            backend_metal::fuse(&manifest, &adapter, &target, &options, &mut |_| true).unwrap();
            let fused = load(&target, LoadOptions::new()).await;
            assert_eq!(fused.info().quantization.is_some(), !dequantize);
            let distance =
                |other: &[f32]| expected.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let (far, base) = (distance(&logits(&*fused).await), distance(&logits(&*model).await));
            assert!(far < tolerance && far < 0.2 * base, "{name} {dequantize}: {far}, the base {base}");
        }
    }
}

async fn logits(model: &dyn TextModel) -> Vec<f32> {
    let options = inference_core::ClassifyOptions::new().logits(true);
    let prompt = Prompt::Chat(vec![Message::user("What colour is box 3?")]);
    model.classify(vec![prompt], options).await.unwrap().remove(0).logits.unwrap()
}
