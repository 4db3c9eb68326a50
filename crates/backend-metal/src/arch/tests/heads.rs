//! Output layers of checkpoints whose config ties them to the embedding.

use std::fs;

use serde_json::{Value, json};

use super::{
    fixtures::{Rule, Variant, device},
    golden::{distance, whole},
};
use crate::nn::{Architecture, Weight};

const PROMPT: &[u32] = &[5, 17, 90, 33, 25, 7];

const FAMILIES: &[&str] = &[
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3_text-v5",
    "gpt_oss",
    "granite",
    "llama",
    "llama+q4",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

fn set_tied(config: &mut Value, tied: bool) {
    let text = if config.get("text_config").is_some() { &mut config["text_config"] } else { config };
    text["tie_word_embeddings"] = json!(tied);
}

/// Adds a head like the embedding, where the files have none. Returns the head's name.
fn add_head(rules: &mut Vec<Rule>, named: impl Fn(&str) -> String) {
    if rules.iter().any(|rule| rule.0.ends_with("lm_head.weight")) {
        return;
    }
    let mut head = rules.iter().find(|rule| rule.0.ends_with("embed_tokens.weight")).unwrap().clone();
    head.0 = named(&head.0);
    rules.push(head);
}

/// `lm_head` in the scope of the embedding: `language_model.lm_head.weight`.
fn in_scope(embedding: &str) -> String {
    embedding.replace("model.embed_tokens", "lm_head").replace("language_model.language_", "language_model.")
}

fn logits(model: &dyn Architecture) -> Vec<Vec<f32>> {
    whole(model, PROMPT)
}

fn assert_same(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    for (a, b) in a.iter().zip(b) {
        assert!(distance(a, b) == 0.0, "{what}");
    }
}

#[test]
fn a_head_of_its_own_is_used_although_the_config_ties_it() {
    device();
    for name in FAMILIES {
        let load = |tied: bool| {
            let variant = Variant::changed(name, |config, rules| {
                set_tied(config, tied);
                add_head(rules, in_scope);
            });
            variant.load()
        };
        let (tied, apart) = (load(true), load(false));
        assert_same(&logits(&*tied), &logits(&*apart), name);
        let trainable = tied.registry().parameters();
        let mut params = trainable.iter().flat_map(Weight::params);
        let quantized = name.contains("+q");
        assert!(quantized || params.any(|param| param.name().ends_with("lm_head.weight")), "{name}");
    }
}

#[test]
fn a_head_at_the_top_belongs_to_a_language_tower() {
    device();
    let load = |head: bool| {
        let variant = Variant::changed("gemma3", |_, rules| {
            if head {
                add_head(rules, |_| "lm_head.weight".to_owned());
            }
        });
        logits(&*variant.load())
    };
    assert!(distance(&load(true)[0], &load(false)[0]) > 0.1);
}

#[test]
fn an_embedding_that_is_stored_twice_is_tied() {
    device();
    for name in ["llama-tied-llama3", "gemma3", "qwen3"] {
        let once = Variant::changed(name, |config, _| set_tied(config, true));
        let twice = Variant::changed(name, |config, rules| {
            set_tied(config, true);
            add_head(rules, in_scope);
        });
        copy_embedding(&twice.folder.path().join("model.safetensors"));
        let model = twice.load();
        assert_same(&logits(&*model), &logits(&*once.load()), name);
        let trainable = model.registry().parameters();
        let mut params = trainable.iter().flat_map(Weight::params);
        assert!(!params.any(|param| param.name().ends_with("lm_head.weight")), "{name}");
    }
}

#[test]
fn a_head_of_another_shape_is_named() {
    device();
    let variant = Variant::changed("qwen3", |_, rules| {
        rules.push(("lm_head.weight".to_owned(), "F32".to_owned(), vec![2, 64], 0.0, 1.0));
    });
    let Err(error) = variant.try_load() else { panic!("it loads") };
    let text = error.to_string();
    assert!(
        text.contains("lm_head.weight") && text.contains("[2, 64]") && text.contains("[128, 64]"),
        "{text}"
    );
}

/// Writes the embedding's bytes to the head.
fn copy_embedding(path: &std::path::Path) {
    let mut file = fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let range = |end: &str| {
        let (_, info) = tensors.as_object().unwrap().iter().find(|(name, _)| name.ends_with(end)).unwrap();
        let at = |index: usize| info["data_offsets"][index].as_u64().unwrap() as usize + 8 + header;
        at(0)..at(1)
    };
    file.copy_within(range("embed_tokens.weight"), range("lm_head.weight").start);
    fs::write(path, file).unwrap();
}
