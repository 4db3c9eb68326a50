//! Every field of a config has its say: where one is changed, the logits change, or the load says why they cannot.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use super::{
    fixtures::{Variant, device},
    golden::whole,
};

/// Fields that change no logit, by the end of their path.
const SILENT: &[&str] = &[
    // What ends a text, and how long it may be, is not the forward pass's.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "max_position_embeddings",
    // Of other parts: images, and tokens that are predicted ahead.
    "image_token_index",
    "mm_tokens_per_image",
    "mrope_interleaved",
    "mrope_section",
    "num_nextn_predict_layers",
    "spatial_merge_size",
    "vision_feature_layer",
    // An output matrix in the file is used, whatever this says.
    "tie_word_embeddings",
    // How, not what, is computed.
    "chunk_size",
    "residual_in_fp32",
];

/// Those of single families, which the references do not use either.
const SILENT_IN: &[(&str, &[&str])] = &[
    // Their epsilon has another name.
    ("rms_norm_eps", &["cohere2", "lfm2", "lfm2_moe", "nemotron", "nemotron_h", "stablelm", "starcoder2"]),
    // `layer_types` and `block_ff_dim` decide.
    ("full_attn_idxs", &["lfm2"]),
    ("intermediate_size", &["lfm2", "qwen3_5_moe"]),
    // `alpha` alone scales.
    ("beta_fast", &["hunyuan_v1_dense"]),
    ("beta_slow", &["hunyuan_v1_dense"]),
    ("factor", &["hunyuan_v1_dense"]),
    ("mscale", &["hunyuan_v1_dense"]),
    ("mscale_all_dim", &["hunyuan_v1_dense"]),
    // The one outside of `rope_scaling` is used.
    ("original_max_position_embeddings", &["phimoe"]),
    // There is no window to use.
    ("use_sliding_window", &["qwen2_5_vl"]),
];

fn may_be_silent(family: &str, field: &str) -> bool {
    let name = field.rsplit('/').next().unwrap_or(field);
    SILENT.contains(&name)
        || SILENT_IN.iter().any(|(silent, families)| *silent == name && families.contains(&family))
}

/// Other values of the kind that a field has; none where it is a name.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(is) => vec![json!(!is)],
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            // One more may be rounded away.
            (Some(whole), _) => vec![json!(whole + 1), json!(2 * whole + 1), json!(whole / 4)],
            (None, Some(float)) => vec![json!(float * 1.5 + 0.01), json!(float * 0.2)],
            (None, None) => Vec::new(),
        },
        Value::Array(items) => match items.iter().position(|item| Some(item) != items.first()) {
            // Kinds of layers: two change places.
            Some(place) if !items[0].is_f64() => {
                let mut swapped = items.clone();
                swapped.swap(0, place);
                vec![json!(swapped)]
            }
            _ => vec![json!(items.iter().flat_map(|item| others(item).pop()).collect::<Vec<_>>())],
        },
        _ => Vec::new(),
    }
}

/// The paths of all values in a config that are no objects.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                leaves(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        _ => found.push(at.to_owned()),
    }
}

#[test]
fn every_field_of_a_config_has_its_say() {
    device();
    // Whether a field of a family has its say in one of the family's variants.
    let mut heard: BTreeMap<(String, String), bool> = BTreeMap::new();
    for variant in Variant::all().iter().filter(|variant| !variant.name.contains('+')) {
        let file = variant.folder.path().join("config.json");
        let original: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let family = original["model_type"].as_str().unwrap().to_owned();
        let prompt = &variant.golden.prompt;
        let as_written = whole(&*variant.load(), prompt);
        let mut fields = Vec::new();
        leaves(&original, "", &mut fields);
        for field in fields.iter().filter(|field| !field.contains("vision_config")) {
            let others = others(original.pointer(field).unwrap());
            let heard = heard.entry((family.clone(), field.clone())).or_insert(others.is_empty());
            *heard = *heard
                || others.into_iter().any(|other| {
                    let mut config = original.clone();
                    *config.pointer_mut(field).unwrap() = other;
                    fs::write(&file, config.to_string()).unwrap();
                    !variant.try_load().is_ok_and(|model| whole(&*model, prompt) == as_written)
                });
        }
    }
    let unheard = heard.into_iter().filter(|(_, heard)| !heard).map(|(field, _)| field);
    let unheard: Vec<_> = unheard.filter(|(family, field)| !may_be_silent(family, field)).collect();
    assert!(unheard.is_empty(), "{unheard:#?}");
}
