//! GGUF files, as the Python package gguf writes them, give what the weights give that they were made of.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use futures::executor::block_on;
use inference::{
    ClassifyOptions, GenerateOptions, Prompt, TemplateOptions, TextModel, TextModelExt as _, load_model,
    manifest::{ModelManifest, QuantMode, Quantization},
    metal::{ConvertOptions, convert},
};
use inference_core::backend::ModelFiles;
use serde_json::Value;
use tempfile::TempDir;
use tests::gguf_file::GgufFile;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// How far logits of float32 are from the reference's at most.
const TOLERANCE: f32 = 2e-4;

/// The files that `xtask/python/gguf/make.py` writes.
fn files() -> &'static Path {
    static FILES: OnceLock<TempDir> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        tests::gguf_file::write_fixtures(folder.path());
        folder
    });
    files.path()
}

fn file(name: &str) -> PathBuf {
    files().join(format!("{name}.gguf"))
}

fn load(path: &Path) -> Arc<dyn TextModel> {
    let model = block_on(async { load_model(path).backend("cpu").await });
    model.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The logits behind each of these beginnings of the prompt.
fn logits(model: &dyn TextModel, prompt: &[u32], lengths: &[usize]) -> Vec<Vec<f32>> {
    let prompts = lengths.iter().map(|length| Prompt::Tokens(prompt[..*length].to_vec())).collect();
    let classified = block_on(model.classify(prompts, ClassifyOptions::new().logits(true))).unwrap();
    classified.into_iter().map(|one| one.logits.unwrap()).collect()
}

fn apart(one: &[Vec<f32>], other: &[Vec<f32>]) -> f32 {
    assert!(one.iter().flatten().all(|logit| logit.is_finite()));
    let pairs = one.iter().flatten().zip(other.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn numbers<T: serde::de::DeserializeOwned>(golden: &Value, key: &str) -> Vec<T> {
    serde_json::from_value(golden[key].clone()).unwrap()
}

/// Names, order of rows, norms, rope, experts: each family's logits are those that transformers computes with the weights before they
/// were converted.
#[test]
fn every_architecture_gives_what_transformers_gives() {
    let variants = [
        "llama",
        "llama-tied-llama3",
        "llama-yarn",
        "llama-bias-linear",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2-window",
        "gemma3_text",
        "phi3",
        "phi3-partial",
        "phi3-longrope",
        "olmo2",
        "granite",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "glm4",
        "glm4_moe",
        "hunyuan_v1_dense",
        "lfm2",
        "lfm2_moe",
        "minicpm",
        "minicpm-tied",
        "minimax_m2",
        "nemotron",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_next",
        "qwen3_next-legacy",
        "seed_oss",
        "stablelm",
        "apertus",
        "apertus-unbiased",
        "deepseek_v3-unbiased",
        "deepseek_v3-unbiased-joined",
        "falcon_h1-untied",
        "gemma3n_text",
        "gemma3n_text-four",
        "gemma4_text",
        "gemma4_text-kv",
        "gemma4_text-moe",
        "granitemoehybrid",
        "granitemoehybrid-dense",
        "granitemoehybrid-nope",
        "mamba2-unlimited",
        "nemotron_h-dense",
        "nemotron_h-experts",
    ];
    let mut failures = Vec::new();
    for name in variants {
        let fixture = name.trim_end_matches("-legacy").trim_end_matches("-joined");
        let golden = format!("{ROOT}/crates/backend-metal/tests/fixtures/{fixture}/golden.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
        let prompt: Vec<u32> = numbers(&golden, "prompt");
        let mut lengths: Vec<usize> = numbers::<usize>(&golden, "positions").iter().map(|p| p + 1).collect();
        let mut expected: Vec<Vec<f32>> = numbers(&golden, "logits");
        if name == "phi3-longrope" {
            // How positions turn depends on the length of the whole text.
            (lengths, expected) = (lengths.split_off(3), expected.split_off(3));
        }
        let model = load(&file(name));
        let worst = apart(&logits(&*model, &prompt, &lengths), &expected);
        let options = GenerateOptions::new().max_tokens(16).temperature(0.0).ignore_eos(true);
        let said = block_on(model.complete(Prompt::Tokens(prompt), options)).unwrap();
        let said: Vec<u32> = said.tokens.iter().map(|token| token.id).collect();
        let (greedy, margins): (Vec<u32>, Vec<f32>) =
            (numbers(&golden, "greedy"), numbers(&golden, "margins"));
        // Up to where the reference's own choice is a matter of rounding.
        let sure = margins.iter().take_while(|margin| **margin > 2.0 * TOLERANCE).count();
        println!("{name}: max Δ {worst:.1e}, {sure} greedy tokens");
        if worst > TOLERANCE || said[..sure] != greedy[..sure] {
            failures.push(format!("{name}: {worst} apart, said {said:?}, expected {greedy:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What GGUF files do not say, and llama.cpp takes for granted, the fixtures have otherwise: so these are compared with the same
/// weights as safetensors, with the values that are taken for granted.
#[test]
fn families_with_fixed_settings_give_what_their_folders_give() {
    let prompt: Vec<u32> = (0..32).map(|i| 3 + i * 7 % 120).collect();
    let settings: [(&str, &[(&str, Value)]); 9] = [
        ("gpt_oss", &[("swiglu_limit", 7.0.into())]),
        ("gpt_oss+mxfp4", &[("swiglu_limit", 7.0.into())]),
        ("smollm3", &[("no_rope_layers", vec![1, 1, 1, 0].into())]),
        ("cohere2", &[("sliding_window_pattern", 4.into())]),
        ("deepseek_v3-dense", &[("rope_interleave", true.into())]),
        ("starcoder2", &[("sliding_window", Value::Null)]),
        ("phimoe", &[("router_jitter_noise", 0.01.into())]),
        ("olmoe", &[("norm_topk_prob", false.into())]),
        ("qwen2_moe", &[("norm_topk_prob", false.into()), ("use_sliding_window", false.into())]),
    ];
    for (name, values) in settings {
        let fixture = |part: &str| {
            let path = format!("{ROOT}/crates/backend-metal/tests/fixtures/{name}/{part}.json");
            std::fs::read(path).unwrap()
        };
        let mut config: Value = serde_json::from_slice(&fixture("config")).unwrap();
        for (key, value) in values {
            config[*key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        let rules: Vec<tests::checkpoint::Rule> = serde_json::from_slice(&fixture("tensors")).unwrap();
        tests::checkpoint::write(folder.path(), &config, &rules).unwrap();
        for (name, bytes) in ModelFiles::open(&file(name)).unwrap().made().unwrap() {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let lengths = [1, 9, 32];
        let [one, other] = [&file(name), folder.path()].map(|path| logits(&*load(path), &prompt, &lengths));
        let worst = apart(&one, &other);
        println!("{name}: max Δ {worst:.1e}");
        assert!(worst <= TOLERANCE, "{name}: {worst} apart");
    }
}

/// A quantised file gives the logits of the same file with its elements in full, and takes less memory where MLX has a form for it.
#[test]
fn block_types_lose_nothing() {
    let prompt: Vec<u32> = (0..24).map(|i| 3 + i * 5 % 120).collect();
    let mut failures = Vec::new();
    for (name, bits) in [
        ("Q4_0", Some(4)),
        ("Q4_1", Some(4)),
        ("Q5_0", Some(5)),
        ("Q5_1", Some(5)),
        ("Q8_0", Some(8)),
        ("Q4_K", Some(4)),
        ("Q5_K", Some(5)),
        ("MXFP4", Some(4)),
        ("Q4_K_M", Some(4)),
        ("Q4_K_M-moe", Some(4)),
        ("Q4_K_M-hybrid", Some(4)),
        ("Q8_0-latent", Some(8)),
        ("Q2_K", None),
        ("Q3_K", None),
        ("Q6_K", None),
    ] {
        let (packed, full) = (file(name), file(&format!("{name}-full")));
        let [one, other] = [&packed, &full].map(|path| ModelManifest::read(path).unwrap());
        assert_eq!(one.parameters(), other.parameters(), "{name}");
        assert_eq!(one.quantization().map(|quantization| quantization.bits), bits, "{name}");
        assert_eq!(one.weight_bytes() < other.weight_bytes(), bits.is_some(), "{name}");
        let lengths = [1, 7, 24];
        let [one, other] = [&packed, &full].map(|path| logits(&*load(path), &prompt, &lengths));
        let spread = other.iter().flatten().fold(0.0_f32, |most, logit| most.max(logit.abs()));
        let worst = apart(&one, &other);
        println!("{name}: max Δ {worst:.1e} of logits up to {spread:.1}");
        if worst > TOLERANCE || spread < 0.5 {
            failures.push(format!("{name}: {worst} apart, of logits up to {spread}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Ways to cut words by their names, and a SentencePiece that lists its merges.
#[test]
fn tokenizers_merge_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (kind, pre, expected) in [
        ("gpt2", "deepseek-v3", &[5, 3][..]),
        ("gpt2", "hunyuan-dense", &[5, 3]),
        ("gpt2", "kimi-k2", &[5, 3]),
        // Which begins a text with <s>.
        ("gemma4", "gemma4", &[1, 5, 3]),
    ] {
        let mut changed = GgufFile::read(&file("llama")).unwrap();
        changed.set_text("tokenizer.ggml.model", kind);
        changed.set_text("tokenizer.ggml.pre", pre);
        changed.write(&path).unwrap();
        let ids = block_on(load(&path).tokenize("aba".into(), TemplateOptions::default())).unwrap();
        assert_eq!(ids, expected, "{kind} {pre}");
    }
}

/// A folder that `convert` writes of a GGUF file says the same as the file.
#[test]
fn conversion_keeps_what_loads() {
    let prompt: Vec<u32> = (0..24).map(|i| 3 + i * 5 % 120).collect();
    let place = tempfile::tempdir().unwrap();
    let source = ModelManifest::read(file("Q4_K_M")).unwrap();
    let expected = logits(&*load(&file("Q4_K_M")), &prompt, &[24]);
    let mut options = ConvertOptions::default();
    options.keep = true;
    let kept = place.path().join("kept");
    convert(&source, &kept, &options, &mut |_| true).unwrap();
    let folder = ModelManifest::read(&kept).unwrap();
    assert!(folder.no_safetensors().is_none() && source.no_safetensors().is_some());
    assert_eq!(folder.quantization(), source.quantization());
    assert!(kept.join("tokenizer.json").is_file());
    let worst = apart(&logits(&*load(&kept), &prompt, &[24]), &expected);
    assert!(worst <= TOLERANCE, "{worst}");
    // Quantised anew, from the elements in full: an explicit choice, which rounds.
    let source = ModelManifest::read(file("Q8_0")).unwrap();
    let expected = logits(&*load(&file("Q8_0")), &prompt, &[24]);
    let mut options = ConvertOptions::default();
    options.quantization = Some(Quantization::new(8, 32, QuantMode::Affine));
    let eight = place.path().join("eight");
    convert(&source, &eight, &options, &mut |_| true).unwrap();
    let folder = ModelManifest::read(&eight).unwrap();
    assert_eq!(folder.quantization().unwrap().bits, 8);
    assert_eq!(folder.parameters(), source.parameters());
    let worst = apart(&logits(&*load(&eight), &prompt, &[24]), &expected);
    let largest = expected[0].iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
    assert!(worst > 0.0 && worst < 0.02 * largest, "{worst} of {largest}");
}
