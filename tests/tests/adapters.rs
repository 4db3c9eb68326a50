//! Adapters go both ways: what one engine trains, the other applies, and both say the same with it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{fs, path::Path, process::Command};

use futures::{StreamExt as _, executor::block_on};
use inference::{
    Completion, GenerateOptions, LoadOptions, Message, Prompt, TextModelExt as _, load_model,
    manifest::ModelManifest,
    metal::{FuseOptions, fuse},
    train::{AdapterOptions, Example, Method, TrainOptions, TrainingData},
};
use inference_core::backend::AdapterManifest;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo");

/// Log-probabilities of two engines in f32 differ by rounding alone.
const ROUNDING: f32 = 1e-3;

fn question(n: usize) -> String {
    format!("What colour is box {n}?")
}

fn answer(n: usize) -> String {
    format!("Box {n} is {}.", ["red", "blue", "green", "grey"][n])
}

/// What an engine says to the questions, with its log-probabilities.
fn texts(engine: &str, model: &Path, adapter: Option<&Path>) -> Vec<Completion> {
    block_on(async {
        let options = LoadOptions::new().context_length(512);
        let options = adapter.into_iter().fold(options, LoadOptions::adapter);
        let model = load_model(model).backend(engine).options(options).await.unwrap();
        let prompts: Vec<Prompt> = (0..4).map(|n| Prompt::Chat(vec![Message::user(question(n))])).collect();
        let texts =
            model.batch_generate(prompts, GenerateOptions::new().max_tokens(12).log_probabilities(2)).await;
        texts.into_iter().map(Result::unwrap).collect()
    })
}

/// The two say the same, but for rounding.
fn assert_alike(one: &[Completion], other: &[Completion]) {
    for (a, b) in one.iter().zip(other) {
        for (a, b) in a.tokens.iter().zip(&b.tokens) {
            let margin = a.top[0].log_probability - a.top[1].log_probability;
            if a.id != b.id && margin < ROUNDING {
                break; // a tie, after which the texts go different ways
            }
            let apart = (a.log_probability.unwrap() - b.log_probability.unwrap()).abs();
            assert!(a.id == b.id && apart < ROUNDING, "{} and {}, {apart} apart", a.text, b.text);
        }
    }
}

/// Both engines say the same with the adapter, and with a model that it is fused into; and something else than without.
fn assert_applied(adapter: &Path) {
    let demo = Path::new(DEMO);
    let cpu = texts("cpu", demo, Some(adapter));
    assert_alike(&cpu, &texts("mlx_lm", demo, Some(adapter)));
    let folder = tempfile::tempdir().unwrap();
    let fused = folder.path().join("fused");
    let manifest = ModelManifest::read(demo).unwrap();
    let mut options = FuseOptions::default();
    // Eight bits would round what was learnt.
    options.dequantize = true;
    let read = AdapterManifest::read(adapter, &manifest).unwrap();
    fuse(&manifest, &read, &fused, &options, &mut |_| true).unwrap();
    for engine in ["cpu", "mlx_lm"] {
        assert_alike(&cpu, &texts(engine, &fused, None));
    }
    let first =
        |texts: &[Completion]| texts.iter().map(|text| text.tokens.first().cloned()).collect::<Vec<_>>();
    assert_ne!(first(&cpu), first(&texts("cpu", demo, None)));
}

#[test]
fn what_we_train_mlx_lm_applies() {
    let output = tempfile::tempdir().unwrap();
    let adapter = || AdapterOptions::new().rank(4).scale(4.0).layers(3);
    for (name, method) in [
        ("lora", Method::Lora(adapter())),
        ("dora", Method::Dora(adapter())),
        ("embeddings", Method::Lora(adapter().embeddings(true).keys(["self_attn.q_proj"]))),
    ] {
        let folder = output.path().join(name);
        block_on(async {
            let model = load_model(DEMO).backend("cpu").await.unwrap();
            let example = |n| Example::chat(vec![Message::user(question(n)), Message::assistant(answer(n))]);
            let data = TrainingData::new((0..4).map(example).collect(), Vec::new());
            let options = TrainOptions::new(&folder).method(method).steps(8).learning_rate(2e-3);
            let mut events = model.trainable().unwrap().train(data, options).await.unwrap();
            while let Some(event) = events.next().await {
                event.unwrap();
            }
        });
        assert_applied(&folder);
    }
}

#[test]
fn what_mlx_lm_trains_we_apply() {
    let folder = tempfile::tempdir().unwrap();
    let (data, output) = (folder.path().join("data"), folder.path().join("adapter"));
    fs::create_dir(&data).unwrap();
    let line = |n| {
        let (question, answer) = (question(n), answer(n));
        format!("{{\"prompt\": {question:?}, \"completion\": {answer:?}}}\n")
    };
    fs::write(data.join("train.jsonl"), (0..4).map(line).collect::<String>()).unwrap();
    let python = std::env::var("INFERENCE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    for method in ["lora", "dora"] {
        let trained = Command::new(&python)
            .args(["-m", "mlx_lm", "lora", "--train", "--mask-prompt", "--model", DEMO])
            .args(["--fine-tune-type", method, "--num-layers", "3", "--iters", "8", "--batch-size", "4"])
            .args(["--learning-rate", "2e-3", "--val-batches", "0", "--seed", "1"])
            .arg("--data")
            .arg(&data)
            .arg("--adapter-path")
            .arg(&output)
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&trained.stderr);
        assert!(trained.status.success() && output.join("adapters.safetensors").exists(), "{said}");
        assert_applied(&output);
    }
}
