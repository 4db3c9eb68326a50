//! Checkpoints that are not what their config says: the error names the file, the tensor or key, and both sides.

use std::fs;

use inference_core::{Error, ModelManifest};
use serde_json::{Value, json};

use super::fixtures::{Rule, Variant, device};

/// The error that a changed variant gives, as text.
fn refusal(name: &str, change: impl FnOnce(&mut Value, &mut Vec<Rule>)) -> String {
    device();
    match Variant::changed(name, change).try_load() {
        Ok(_) => panic!("{name} loads"),
        Err(error) => {
            assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
            error.to_string()
        }
    }
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn rule<'a>(rules: &'a mut [Rule], name: &str) -> &'a mut Rule {
    rules.iter_mut().find(|rule| rule.0 == name).unwrap()
}

const Q_PROJ: &str = "model.layers.1.self_attn.q_proj.weight";

#[test]
fn a_missing_tensor_is_named() {
    let text = refusal("llama", |_, rules| rules.retain(|rule| rule.0 != Q_PROJ));
    assert_says(&text, &[Q_PROJ, "is missing"]);
}

#[test]
fn tensors_that_nothing_takes_are_listed() {
    let text = refusal("qwen3", |_, rules| {
        rules.push(("model.layers.9.odd.weight".to_owned(), "F32".to_owned(), vec![2], 0.0, 1.0));
        rules.push(("extra".to_owned(), "F32".to_owned(), vec![2], 0.0, 1.0));
    });
    assert_says(&text, &["model.safetensors", "2 tensors", "qwen3", "extra", "model.layers.9.odd.weight"]);
}

#[test]
fn a_wrong_shape_is_shown_beside_the_right_one() {
    let text = refusal("llama", |_, rules| rule(rules, Q_PROJ).2 = vec![32, 128]);
    assert_says(&text, &["model.safetensors", Q_PROJ, "[32, 128]", "[64, 64]"]);
    let text = refusal("llama", |config, _| config["vocab_size"] = json!(129));
    assert_says(&text, &["model.embed_tokens.weight", "[128, 64]", "[129, 64]"]);
}

#[test]
fn a_wrong_type_is_shown_beside_the_right_ones() {
    let text = refusal("llama", |_, rules| {
        let rule = rule(rules, Q_PROJ);
        (rule.1, rule.4) = ("U32".to_owned(), 0.0);
    });
    assert_says(&text, &[Q_PROJ, "U32", "F32"]);
}

#[test]
fn layers_are_counted_in_the_files_not_in_the_config() {
    let text = refusal("llama", |config, _| config["num_hidden_layers"] = json!(1_000_000_000_u64));
    assert_says(&text, &["config.json", "num_hidden_layers", "1000000000", "model.layers.4"]);
    let text = refusal("mixtral", |config, _| config["num_local_experts"] = json!(1_000_000_000_u64));
    assert_says(&text, &["1000000000"]);
}

#[test]
fn each_fault_of_a_config_names_its_key() {
    let cases = [
        ("llama", "/hidden_size", json!(0)),
        ("llama", "/hidden_size", json!("64")),
        ("llama", "/hidden_size", json!(-64)),
        ("llama", "/intermediate_size", json!(1_u64 << 40)),
        ("llama", "/num_hidden_layers", json!(0)),
        ("llama", "/num_hidden_layers", json!(5)),
        ("llama", "/num_attention_heads", json!(0)),
        ("llama", "/num_attention_heads", json!(u64::MAX)),
        ("llama-bias-linear", "/num_attention_heads", json!(3)),
        ("llama", "/num_key_value_heads", json!(0)),
        ("llama", "/num_key_value_heads", json!(3)),
        ("llama", "/head_dim", json!(0)),
        ("llama", "/head_dim", json!(15)),
        ("llama", "/vocab_size", json!(0)),
        ("llama", "/max_position_embeddings", json!(0)),
        ("llama", "/max_position_embeddings", json!(1_u64 << 31)),
        ("llama", "/rms_norm_eps", json!(-1e-5)),
        // Beyond float32: an infinity there.
        ("llama", "/rms_norm_eps", json!(1e300)),
        ("llama", "/hidden_act", json!("cube")),
        ("llama", "/tie_word_embeddings", json!("yes")),
        ("llama", "/rope_theta", json!(-1)),
        ("llama-bias-linear", "/rope_scaling/factor", json!(0)),
        ("llama-bias-linear", "/rope_scaling/type", json!("spiral")),
        ("gemma3", "/text_config/head_dim", json!("32")),
        ("gemma3", "/text_config/query_pre_attn_scalar", json!(0)),
        ("gemma2-window", "/sliding_window", json!(0)),
        ("gemma2-window", "/sliding_window", json!("8")),
        ("gemma3_text-v5", "/layer_types", json!(["full_attention"])),
        ("gemma3_text-v5", "/layer_types", json!("full_attention")),
        ("gemma3_text-v5", "/layer_types/0", json!("backwards")),
        ("mixtral", "/num_experts_per_tok", json!(0)),
        ("qwen3_moe", "/num_experts_per_tok", json!(9)),
        ("qwen3_moe", "/decoder_sparse_step", json!(0)),
        ("qwen3_moe", "/moe_intermediate_size", json!("64")),
        ("gpt_oss", "/swiglu_limit", json!(-1)),
        ("granite", "/logits_scaling", json!(0)),
    ];
    for (name, field, value) in cases {
        let text = refusal(name, |config, _| *config.pointer_mut(field).unwrap() = value.clone());
        let key = field.split('/').rfind(|part| part.parse::<usize>().is_err()).unwrap();
        assert_says(&text, &["config.json", key]);
    }
}

#[test]
fn quantisation_must_fit_the_tensors() {
    let text = refusal("llama+q4", |config, _| config["quantization"]["bits"] = json!(8));
    assert_says(&text, &["q_proj.weight", "[64, 8]", "[64, 16]"]);
    let text =
        refusal("qwen3+mixed", |config, _| config["quantization"]["model.embed_tokens"]["bits"] = json!(7));
    assert_says(&text, &["config.json", "quantization.model.embed_tokens", "7"]);
    let text = refusal("llama+q4", |config, _| drop(config.as_object_mut().unwrap().remove("quantization")));
    assert_says(&text, &["config.json", "quantization", "is missing"]);
    let text = refusal("llama+q4", |config, _| config["quantization"]["mode"] = json!("int4"));
    assert_says(&text, &["quantization.mode", "int4"]);
    let scales = "model.layers.0.mlp.down_proj.scales";
    let text = refusal("llama+q4", |_, rules| rules.retain(|rule| rule.0 != scales));
    assert_says(&text, &["model.layers.0.mlp.down_proj.weight"]);
}

#[test]
fn an_unknown_architecture_is_told_what_there_is() {
    let variant = Variant::changed("llama", |config, _| config["model_type"] = json!("perceptron"));
    let Err(error) = variant.try_load() else { panic!("it loads") };
    assert!(matches!(error, Error::UnsupportedModel { .. }), "{error:?}");
    assert_says(&error.to_string(), &["perceptron", "README"]);
}

#[test]
fn loading_tells_how_far_it_is_and_can_be_cancelled() {
    device();
    let variant = Variant::changed("llama", |_, _| {});
    let manifest = ModelManifest::read(variant.folder.path()).unwrap();
    let mut seen = Vec::new();
    crate::load::load("cpu", &manifest, &mut |progress| {
        seen.push(progress.bytes);
        assert_eq!(progress.total, manifest.weight_bytes());
        true
    })
    .map(drop)
    .unwrap();
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&manifest.weight_bytes()));
    let mut calls = 0;
    let cancelled = crate::load::load("cpu", &manifest, &mut |_| {
        calls += 1;
        calls < 3
    });
    assert!(matches!(cancelled.map(drop), Err(Error::Cancelled)));
    assert_eq!(calls, 3);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    device();
    let variant = Variant::changed("llama", |_, _| {});
    let manifest = ModelManifest::read(variant.folder.path()).unwrap();
    let file = variant.folder.path().join("model.safetensors");
    let half = fs::metadata(&file).unwrap().len() / 2;
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(half).unwrap();
    let Err(error) = crate::load::load("cpu", &manifest, &mut |_| true) else { panic!("it loads") };
    assert_says(&error.to_string(), &["model.safetensors", "shorter"]);
}

#[test]
fn tied_heads_and_old_buffers_are_no_surplus() {
    device();
    let variant = Variant::changed("llama-tied-llama3", |_, rules| {
        rules.push(("lm_head.weight".to_owned(), "F32".to_owned(), vec![128, 64], 0.0, 1.0));
        rules.push((
            "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(),
            "F32".to_owned(),
            vec![8],
            0.0,
            1.0,
        ));
    });
    variant.load();
}

/// As published, gpt-oss packs two weights of four bits into a byte.
#[test]
fn parameters_are_those_before_quantisation() {
    device();
    let count = |name: &str| Variant::named(name).load().config().parameters;
    for (dense, quantised) in [("gpt_oss", "gpt_oss+mxfp4"), ("gpt_oss", "gpt_oss+q4"), ("llama", "llama+q8")]
    {
        assert_eq!(count(dense), count(quantised), "{quantised}");
    }
}
