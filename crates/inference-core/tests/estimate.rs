//! The memory that a model needs, from its config and headers.

mod common;

use common::{Folder, assert_says, message, tensors};
use inference_core::{Error, KvBits, ModelManifest};
use serde_json::{Value, json};

/// A model of seven layers with this changed in its config.
fn sized(change: &Value) -> Folder {
    let mut config = json!({"model_type":"x", "num_hidden_layers":7, "hidden_size":64,
        "num_attention_heads":4, "num_key_value_heads":2});
    for (key, value) in change.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let folder = Folder::with_model();
    folder.write("config.json", config.to_string());
    let names: Vec<_> = (0..7).map(|layer| format!("model.layers.{layer}.self_attn.k_proj.weight")).collect();
    let list: Vec<_> = names.iter().map(|name| (&**name, "F16", &[24, 64][..])).collect();
    folder.write("model.safetensors", tensors(&list));
    folder
}

#[test]
fn a_model_of_state_spaces_keeps_no_keys() {
    let folder = sized(&json!({"num_attention_heads": null, "num_key_value_heads": null, "state_size": 16}));
    let manifest = ModelManifest::read(folder.path()).unwrap();
    assert_eq!(manifest.estimate(1000, 2, None).unwrap().kv_bytes, 0);
}

#[test]
fn memory_is_estimated_by_the_formula() {
    let weights = 7 * 24 * 64 * 2;
    // Bytes of one position in one layer: keys and values × 2 heads × 16 × 2 bytes.
    let position = 2 * 2 * 16 * 2;
    let kv = |change: Value, context, batch| {
        let estimate = sized(&change).manifest().unwrap().estimate(context, batch, None).unwrap();
        assert_eq!(estimate.weight_bytes, weights);
        assert_eq!(estimate.total_bytes(), weights + estimate.kv_bytes);
        estimate.kv_bytes
    };
    assert_eq!(kv(json!({}), 100, 1), 7 * 100 * position);
    assert_eq!(kv(json!({}), 100, 3), 3 * 7 * 100 * position);
    assert_eq!(kv(json!({"num_key_value_heads":null}), 100, 1), 2 * 7 * 100 * position);
    assert_eq!(kv(json!({"head_dim":32}), 100, 1), 2 * 7 * 100 * position);
    // Layers 3 and 6 of 7 see everything.
    assert_eq!(
        kv(json!({"sliding_window":8, "sliding_window_pattern":3}), 100, 1),
        (2 * 100 + 5 * 8) * position
    );
    assert_eq!(kv(json!({"sliding_window":8, "sliding_window_pattern":3}), 5, 1), 7 * 5 * position);
    let mut types = vec!["full_attention"; 6];
    types.push("sliding_attention");
    assert_eq!(kv(json!({"sliding_window":8, "layer_types":types}), 100, 1), (6 * 100 + 8) * position);
    let off = json!({"sliding_window":8, "layer_types":types, "use_sliding_window":false});
    assert_eq!(kv(off, 100, 1), 7 * 100 * position);
    assert_eq!(kv(json!({"sliding_window":8}), 100, 1), 7 * 100 * position);
    // Of latent attention one short vector and one rotated key.
    assert_eq!(kv(json!({"kv_lora_rank":12, "qk_rope_head_dim":4}), 100, 1), 7 * 100 * (12 + 4) * 2);
    // Without heads in the config, the 24 rows of the key projection tell.
    assert_eq!(kv(json!({"num_attention_heads":null}), 100, 1), 7 * 100 * 2 * 24 * 2);
    // The type of the tensors counts, whatever the config says.
    let folder = sized(&json!({"dtype":"float16"}));
    let name = "model.layers.0.self_attn.k_proj.weight";
    let others: Vec<_> = (0..6).map(|n| n.to_string()).collect();
    let others = others.iter().map(|name| (&**name, "F32", &[1][..]));
    let list: Vec<_> = others.chain([(name, "F32", &[24, 64][..])]).collect();
    folder.write("model.safetensors", tensors(&list));
    assert_eq!(folder.manifest().unwrap().estimate(100, 1, None).unwrap().kv_bytes, 2 * 7 * 100 * position);
    let nested = json!({"num_hidden_layers":null, "text_config":{"num_hidden_layers":7}});
    assert_eq!(kv(nested, 100, 1), 7 * 100 * position);
}

#[test]
fn quantised_keys_and_values_take_their_bits_and_their_scales() {
    let kv = |head: usize, bits| sized(&json!({"head_dim":head})).manifest().unwrap().estimate(10, 3, bits);
    // Two heads; a scale and a bias of two bytes for each group.
    for (head, group) in [(128, 64), (96, 32)] {
        for bits in [KvBits::Eight, KvBits::Four] {
            let position = 2 * 2 * head * bits.get() / 8 + 2 * 2 * (head / group) * 4;
            assert_eq!(kv(head, Some(bits)).unwrap().kv_bytes, (3 * 7 * 10 * position) as u64);
        }
    }
    let error = kv(80, Some(KvBits::Four)).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "kv_bits", .. }), "{error}");
}

#[test]
fn an_estimate_refuses_claims_and_tells_both_numbers() {
    let cases = [
        (json!({"num_hidden_layers":null}), "num_hidden_layers", "is missing"),
        (json!({"num_hidden_layers":1_000_000_000}), "num_hidden_layers", "the files hold 7 tensors"),
        (json!({"num_attention_heads":0}), "num_attention_heads", "is 0"),
        (json!({"num_key_value_heads":-2}), "num_key_value_heads", "is -2"),
        (json!({"head_dim":"16"}), "head_dim", "is \"16\""),
        (json!({"sliding_window":0}), "sliding_window", "is 0"),
        (
            json!({"sliding_window":8, "layer_types":["full_attention"]}),
            "layer_types",
            "1 entries, expected 7",
        ),
        (json!({"sliding_window":8, "layer_types":"full"}), "layer_types", "a list of strings"),
        (json!({"sliding_window":8, "sliding_window_pattern":0}), "sliding_window_pattern", "is 0"),
    ];
    for (change, key, says) in cases {
        let error = sized(&change).manifest().unwrap().estimate(16, 1, None).expect_err(key);
        assert_says(key, &error, "config.json", &[key, says]);
    }
    let manifest = sized(&json!({})).manifest().unwrap();
    assert!(matches!(
        manifest.estimate(0, 1, None),
        Err(Error::InvalidOption { option: "context_length", .. })
    ));
    assert!(matches!(manifest.estimate(1, 0, None), Err(Error::InvalidOption { option: "batch", .. })));
    assert!(matches!(manifest.estimate(usize::MAX, 2, None), Err(Error::InvalidOption { .. })));

    let estimate = manifest.estimate(100, 1, None).unwrap();
    estimate.check(estimate.total_bytes()).unwrap();
    let text = message(&estimate.check(1000).unwrap_err());
    assert!(text.contains(&estimate.total_bytes().to_string()) && text.contains("1000"), "{text}");
}
