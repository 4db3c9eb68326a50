//! The program's logits and greedy tokens on random checkpoints, against what transformers makes of the same weights.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::{fs, path::Path};

use serde_json::{Value, json};
use tests::checkpoint;

use support::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../backend-metal/tests/fixtures");

/// The agreement of logits whose standard deviation is about 3, all in float32.
const TOLERANCE: f64 = 2e-4;

/// On the CPU, where float32 is computed as such. One of each kind: windows, scaled positions, stacks and mixtures of experts, packed weights.
const VARIANTS: &[&str] =
    &["gemma3_text", "llama-tied-llama3", "qwen3+q4", "qwen3_moe", "gpt_oss+mxfp4", "mixtral-v5", "phi3"];

/// The checkpoint in a folder of its own, and the reference's figures.
fn variant(name: &str) -> (tempfile::TempDir, Value) {
    let read = |file: &str| fs::read(Path::new(FIXTURES).join(name).join(file)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::from_slice(&read("config.json")).unwrap();
    let rules: Vec<checkpoint::Rule> = serde_json::from_slice(&read("tensors.json")).unwrap();
    checkpoint::write(folder.path(), &config, &rules).unwrap();
    let tokenizer = json!({"model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}});
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    (folder, serde_json::from_slice(&read("golden.json")).unwrap())
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn classify_prints_the_logits_of_each_prompts_last_position() {
    for name in VARIANTS {
        let (folder, golden) = variant(name);
        let prompt = golden["prompt"].as_array().unwrap();
        // What a position sees is what ends there.
        let ends = golden["positions"].as_array().unwrap().iter().map(|p| p.as_u64().unwrap() as usize);
        let prompts: Vec<_> = ends.map(|end| &prompt[..=end]).collect();
        let prompts = json!(prompts).to_string();
        let arguments = ["--backend=cpu", "--logits", "--json", "--prompt-tokens", &prompts];
        let output = inference(&["classify", "--model"]).arg(folder.path()).args(arguments).output().unwrap();
        let lines = json_lines(&output);
        assert_eq!(lines.len(), 4, "{name}: {}", errors(&output));
        for (line, expected) in lines.iter().zip(golden["logits"].as_array().unwrap()) {
            let (found, expected) = (floats(&line["logits"]), floats(expected));
            assert_eq!(found.len(), expected.len());
            let far = found.iter().zip(&expected).find(|(a, b)| (*a - *b).abs() > TOLERANCE);
            assert_eq!(far, None, "{name}");
            let best = (0..found.len()).max_by(|a, b| found[*a].total_cmp(&found[*b]));
            assert_eq!(line["token"].as_u64(), best.map(|id| id as u64), "{name}");
        }
    }
}

#[test]
fn generate_gives_the_references_greedy_tokens() {
    for name in VARIANTS {
        let (folder, golden) = variant(name);
        let prompt = golden["prompt"].to_string();
        let arguments =
            ["--ignore-eos", "--max-tokens=16", "--backend=cpu", "--json", "--prompt-tokens", &prompt];
        let output = inference(&["generate", "--model"]).arg(folder.path()).args(arguments).output().unwrap();
        let lines = json_lines(&output);
        let ids: Vec<_> = lines.iter().filter_map(|line| line["token"]["id"].as_u64()).collect();
        // Past a step at which two tokens are as good as equal, the texts may differ.
        let sure = floats(&golden["margins"]).iter().take_while(|margin| **margin > 2.0 * TOLERANCE).count();
        let expected: Vec<_> =
            golden["greedy"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        assert!(sure > 0 && ids.len() == 16, "{name}: {}", errors(&output));
        assert_eq!(ids[..sure], expected[..sure], "{name}");
    }
}
