//! Configs that make no sense: an error each, or a model that runs; never a panic, an abort or memory by a claimed count.

use std::{fs, panic::AssertUnwindSafe};

use inference_core::{Error, ModelManifest};
use serde_json::{Value, json};

use super::fixtures::{Variant, device, tokens};
use crate::nn::Rows;

/// Variants that between them have every field that a family reads.
const VARIANTS: &[&str] = &[
    "gemma2-window",
    "gemma3",
    "gemma3_text-v5",
    "gpt_oss-v5+mxfp4",
    "gpt_oss+mxfp4",
    "mixtral-v5",
    "granite",
    "llama-bias-linear",
    "llama-dynamic",
    "llama-tied-llama3",
    "llama-yarn",
    "mixtral",
    "olmo2+q4",
    "phi3-longrope",
    "qwen2-window",
    "qwen3+mixed",
    "qwen3+nvfp4",
    "qwen3_moe+q4",
    "smollm3",
    "apertus",
    "cohere2",
    "deepseek_v3",
    "ernie4_5",
    "ernie4_5_moe",
    "falcon_h1",
    "gemma4_text",
    "gemma4_text-moe",
    "minimax_m2",
    "exaone4",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "granitemoehybrid",
    "hunyuan_v1_dense",
    "lfm2",
    "lfm2_moe",
    "ministral3",
    "nemotron",
    "olmo3",
    "olmoe",
    "qwen2_moe",
    "qwen3_5_moe",
    "qwen3_next",
    "seed_oss",
    "stablelm",
    "starcoder2",
    "gemma3n_text",
    "llama4_text",
    "mamba2",
    "minicpm",
    "mistral4",
    "nemotron_h",
    "phimoe",
];

fn values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(-1),
        json!(0),
        json!(1),
        json!(3),
        json!(1_000_000_000),
        json!(u64::MAX),
        json!(0.5),
        json!(1e300),
        json!("x"),
        json!(true),
        json!([]),
        json!({}),
    ]
}

/// The paths of everything in a config.
fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    let Value::Object(fields) = value else { return };
    for (key, value) in fields {
        let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        paths(value, &path, found);
        found.push(path);
    }
}

#[test]
fn no_config_panics() {
    device();
    let (mut runs, mut refused) = (0, 0);
    for variant in Variant::all().iter().filter(|variant| VARIANTS.contains(&variant.name.as_str())) {
        let file = variant.folder.path().join("config.json");
        let original: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let mut fields = Vec::new();
        paths(&original, "", &mut fields);
        let fields = fields.iter().filter(|field| !field.contains("vision_config"));
        for (f, field) in fields.enumerate() {
            // Every field meets every third value, and another third in the next variant.
            for value in values().into_iter().skip((f + variant.name.len()) % 3).step_by(3) {
                let mut config = original.clone();
                *config.pointer_mut(field).unwrap() = value.clone();
                fs::write(&file, config.to_string()).unwrap();
                let attempt = AssertUnwindSafe(|| {
                    let manifest = ModelManifest::read(variant.folder.path())?;
                    let model = crate::load::load("cpu", &manifest, &mut |_| true)?;
                    let hidden = model.hidden(&tokens(&variant.golden.prompt[..12]), Rows::Uncached);
                    let logits = hidden.and_then(|hidden| model.logits(&hidden));
                    logits
                        .and_then(|logits| logits.eval())
                        .map_err(|error| Error::backend("cpu", "run", error))
                });
                match std::panic::catch_unwind(attempt) {
                    Ok(Ok(())) => runs += 1,
                    Ok(Err(error)) => {
                        assert!(!error.to_string().is_empty());
                        // What loads must run: the graph's own errors come too late to name a key.
                        let late = matches!(error, Error::Backend { .. });
                        assert!(!late, "{}: {field} = {value}: {error:?}", variant.name);
                        refused += 1;
                    }
                    Err(_) => panic!("{}: {field} = {value} panicked", variant.name),
                }
            }
        }
    }
    println!("{runs} run, {refused} are refused");
    assert!(refused > runs / 2 && runs > 0);
}
