//! Adapters' folders: what mlx_lm writes is read, and whatever else is named.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use inference_core::{
    Error, ModelManifest,
    backend::{ADAPTER_FILE, AdapterConfig, AdapterManifest},
    train::{AdapterOptions, FullOptions, Method},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model of two blocks, `q_proj` [6, 4] and `down_proj` quantised to 8 bits [4, 64], with a tied embedding [10, 4].
fn model() -> (TempDir, ModelManifest) {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "num_hidden_layers": 2, "quantization": {"bits": 8, "group_size": 32}
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), "F32", vec![10, 4])];
    for block in 0..2 {
        let layer = |name: &str| format!("model.layers.{block}.{name}");
        tensors.push((layer("self_attn.q_proj.weight"), "F32", vec![6, 4]));
        tensors.push((layer("mlp.down_proj.weight"), "U32", vec![4, 16]));
        tensors.push((layer("mlp.down_proj.scales"), "F32", vec![4, 2]));
        tensors.push((layer("mlp.down_proj.biases"), "F32", vec![4, 2]));
    }
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    let manifest = ModelManifest::read(folder.path()).unwrap();
    (folder, manifest)
}

fn write_tensors(path: &Path, tensors: &[(impl AsRef<str>, &str, Vec<usize>)]) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape) in tensors {
        let size = if *dtype == "BF16" { 2 } else { 4 };
        let start = end;
        end += size * shape.iter().product::<usize>();
        let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.as_ref().to_owned(), tensor);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    std::fs::write(path, bytes).unwrap();
}

fn adapter(config: &Value, tensors: &[(&str, &str, Vec<usize>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    write_tensors(&folder.path().join(ADAPTER_FILE), tensors);
    folder
}

/// As mlx_lm writes it: all of its arguments, most of which say nothing about the adapter.
fn config() -> Value {
    json!({
        "model": "somewhere", "adapter_path": "adapters", "batch_size": 4, "iters": 100, "lr_schedule": null,
        "fine_tune_type": "lora", "num_layers": 1, "seed": 0, "mask_prompt": true,
        "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0},
    })
}

const Q: &str = "model.layers.1.self_attn.q_proj";

fn lora(path: &str, a: [usize; 2], b: [usize; 2]) -> Vec<(String, &'static str, Vec<usize>)> {
    vec![(format!("{path}.lora_a"), "F32", a.to_vec()), (format!("{path}.lora_b"), "F32", b.to_vec())]
}

fn borrowed<'a>(
    tensors: &'a [(String, &'static str, Vec<usize>)],
) -> Vec<(&'a str, &'static str, Vec<usize>)> {
    tensors.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.clone())).collect()
}

#[test]
fn an_adapter_of_mlx_lm_is_read_and_its_layers_are_the_models() {
    let (_folder, model) = model();
    let mut tensors = lora(Q, [4, 2], [2, 6]);
    tensors.extend(lora("model.layers.1.mlp.down_proj", [64, 2], [2, 4]));
    let folder = adapter(&config(), &borrowed(&tensors));
    let read = AdapterManifest::read(folder.path(), &model).unwrap();
    let expected = AdapterOptions::new().rank(2).layers(1);
    assert_eq!(read.config().method, Method::Lora(expected));
    let layers: Vec<_> =
        read.layers().iter().map(|l| (l.path.as_str(), l.inputs, l.outputs, l.experts)).collect();
    assert_eq!(layers, [("model.layers.1.mlp.down_proj", 64, 4, None), (Q, 4, 6, None)]);
    assert_eq!(read.parameters(), 8 + 12 + 128 + 8);
}

#[test]
fn what_does_not_fit_is_named() {
    let (_folder, model) = model();
    let changed = |pointer: &str, value: Value| {
        let mut config = config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() {
            parent.remove(key)
        } else {
            parent.insert(key.to_owned(), value)
        };
        config
    };
    let good = || lora(Q, [4, 2], [2, 6]);
    let with = |path: &str, a, b| lora(path, a, b);
    let cases = [
        (changed("/num_layers", Value::Null), good(), "num_layers: is missing"),
        (changed("/num_layers", json!("all")), good(), "num_layers: invalid type"),
        (changed("/lora_parameters", Value::Null), good(), "lora_parameters: is missing"),
        (changed("/lora_parameters/rank", json!(0)), good(), "lora_parameters.rank: 0, expected"),
        (changed("/lora_parameters/rank", json!(3)), good(), "has shape [4, 2]"),
        (changed("/lora_parameters/scale", Value::Null), good(), "missing field `scale`"),
        (changed("/lora_parameters/dropout", json!(1.5)), good(), "lora_parameters.dropout: 1.5"),
        (
            changed("/lora_parameters/keys", json!(["mlp.down_proj"])),
            good(),
            "does not name: self_attn.q_proj",
        ),
        (changed("/fine_tune_type", json!("prefix")), good(), "fine_tune_type: unknown variant"),
        (changed("/fine_tune_type", json!("dora")), good(), "has no m"),
        (changed("/peft_type", json!("LORA")), good(), "peft's format"),
        (
            config(),
            with("model.layers.0.self_attn.q_proj", [4, 2], [2, 6]),
            "is of block 0, expected from 1 to 1",
        ),
        (config(), with("model.layers.7.self_attn.q_proj", [4, 2], [2, 6]), "is of block 7"),
        (config(), with(Q, [5, 2], [2, 6]), "another model's adapter"),
        (config(), with("model.embed_tokens", [10, 2], [2, 4]), "outside the blocks"),
        (config(), good()[..1].to_vec(), "has no lora_b"),
        (config(), good()[1..].to_vec(), "has no lora_a"),
        (config(), vec![(format!("{Q}.weight"), "F32", vec![6, 4])], "is no part of a low-rank adapter"),
        (config(), vec![(format!("{Q}.lora_a"), "U32", vec![4, 2])], "has type u32"),
        (config(), vec![], "holds no tensors"),
    ];
    for (config, tensors, expected) in cases {
        let folder = adapter(&config, &borrowed(&tensors));
        let error = AdapterManifest::read(folder.path(), &model).unwrap_err();
        assert!(matches!(error, Error::InvalidModel { .. }), "{expected}: {error:?}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[test]
fn folders_that_are_no_adapters_are_named() {
    let (folder, model) = model();
    let error = |path: &Path| AdapterManifest::read(path, &model).unwrap_err().to_string();
    assert!(error(folder.path()).contains("is a model's folder"));
    assert!(error(&folder.path().join("config.json")).contains("is no folder"));
    assert!(error(&folder.path().join("nothing")).contains("cannot read"));
    let peft = tempfile::tempdir().unwrap();
    std::fs::write(peft.path().join("adapter_model.safetensors"), "").unwrap();
    assert!(error(peft.path()).contains("peft's format"));
}

#[test]
fn a_dora_of_the_embedding_and_a_full_training_are_read() {
    let (_folder, model) = model();
    let mut config = config();
    config["fine_tune_type"] = json!("dora");
    config["lora_parameters"]["keys"] = json!(["model.embed_tokens"]);
    let mut tensors = lora("model.embed_tokens", [10, 2], [2, 4]);
    tensors.push(("model.embed_tokens.m".to_owned(), "F32", vec![10]));
    let folder = adapter(&config, &borrowed(&tensors));
    let read = AdapterManifest::read(folder.path(), &model).unwrap();
    assert_eq!(read.layers()[0].inputs, 10);

    let full = json!({"fine_tune_type": "full", "num_layers": -1, "lora_parameters": null});
    let weight = format!("{Q}.weight");
    let folder = adapter(&full, &[(&weight, "BF16", vec![6, 4])]);
    let read = AdapterManifest::read(folder.path(), &model).unwrap();
    assert_eq!(read.config().method, Method::Full(FullOptions::new()));
    let folder = adapter(&full, &[(&weight, "F32", vec![4, 6])]);
    let error = AdapterManifest::read(folder.path(), &model).unwrap_err();
    assert!(error.to_string().contains("has shape [4, 6], the model's own [6, 4]"), "{error}");
    let folder = adapter(&full, &[("model.layers.0.mlp.down_proj.weight", "F32", vec![4, 64])]);
    let error = AdapterManifest::read(folder.path(), &model).unwrap_err();
    assert!(error.to_string().contains("quantised"), "{error}");
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        rank in 1..64_usize, scale in 0.1..50_f32, dropout in 0.0..0.9_f32, layers in 1..9_usize, kind in 0..3,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let options = AdapterOptions::new().rank(rank).scale(scale).dropout(dropout).layers(layers);
        let method = match kind {
            0 => Method::Lora(options),
            1 => Method::Dora(options),
            _ => Method::Full(FullOptions::new().layers(layers)),
        };
        let config = AdapterConfig::new(&method, 9, vec!["self_attn.q_proj".to_owned()]);
        config.write(folder.path()).unwrap();
        prop_assert_eq!(AdapterConfig::read(folder.path()).unwrap(), config);
    }

    #[test]
    fn arbitrary_configurations_are_an_error_or_make_sense(text in "\\PC{0,80}") {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
        if let Ok(config) = AdapterConfig::read(folder.path()) {
            prop_assert!(config.method.adapter().is_none_or(|adapter| adapter.rank > 0));
        }
    }
}
