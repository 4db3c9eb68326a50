//! What the families of Gemma need beyond the sizes that all have.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use super::config::{Fields, single};
use crate::{Error, Result};

/// Layers of the variants of Gemma that divide attention scores by the root of `hidden_size / heads`, not of `head_dim`. The files do
/// not say; llama.cpp goes by the layers, too.
const GEMMA2_27B_LAYERS: u64 = 46;
const GEMMA3_27B_LAYERS: u64 = 62;

/// Adds the settings of a Gemma to config.json.
///
/// # Errors
/// [`Error::Invalid`] names the key that is missing or makes no sense.
pub(super) fn add(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    fields.set(config, "final_logit_softcapping", "final_logit_softcapping")?;
    fields.window(config)?;
    match fields.family.architecture {
        "gemma2" => {
            fields.set(config, "attn_logit_softcapping", "attn_logit_softcapping")?;
            query_scale(fields, config, GEMMA2_27B_LAYERS);
            Ok(())
        }
        "gemma3" => {
            query_scale(fields, config, GEMMA3_27B_LAYERS);
            local_base(fields, config)?;
            fields.layer_types(config, 6)
        }
        "gemma3n" => {
            local_base(fields, config)?;
            fields.layer_types(config, 5)?;
            gemma3n(fields, config)
        }
        _ => {
            fields.layer_types(config, 6)?;
            gemma4(fields, config)
        }
    }
}

fn query_scale(fields: &Fields<'_>, config: &mut Map<String, Value>, wide: u64) {
    let by_width = fields.layers == wide && fields.heads > 0;
    let scalar = if by_width { fields.hidden_size / fields.heads as u64 } else { fields.head_dim };
    config.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
}

/// The base of rope on layers with a window.
fn local_base(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let local = fields.number("rope.freq_base_swa")?;
    config.insert("rope_local_base_freq".to_owned(), single(local.unwrap_or(10_000.0)));
    Ok(())
}

fn gemma3n(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("hidden_size_per_layer_input", json!(fields.needed("embedding_length_per_layer_input")?));
    put("vocab_size_per_layer_input", json!(fields.rows("per_layer_token_embd.weight")?));
    put("altup_num_inputs", json!(fields.needed("altup.num_inputs")?));
    put("altup_active_idx", json!(fields.count("altup.active_idx")?.unwrap_or(0)));
    put("altup_correct_scale", json!(true));
    put("laurel_rank", json!(fields.rows("blk.0.laurel_l.weight")?));
    put("num_kv_shared_layers", json!(fields.count("attention.shared_kv_layers")?.unwrap_or(0)));
    if let Some(deviations) = fields.metadata.floats(&fields.key("activation_sparsity_scale"))? {
        let part = |deviations: &f32| single(normal_distribution((*deviations).into()));
        put("activation_sparsity_pattern", deviations.iter().map(part).collect());
    }
    Ok(())
}

/// The part of a normal distribution that is below so many standard deviations from its mean (Marsaglia 2004, Evaluating the Normal
/// Distribution).
fn normal_distribution(deviations: f64) -> f64 {
    // Beyond these, the sum has too many terms, and single precision no other number.
    const MOST: f64 = 8.0;
    if deviations.is_nan() || deviations < -MOST {
        return 0.0;
    }
    let x = deviations.min(MOST);
    let (mut sum, mut term, mut divisor) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        divisor += 2.0;
        term *= x * x / divisor;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * PI).sqrt()
}

fn gemma4(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let sliding = fields.needed("attention.key_length_swa")?;
    let slides: Vec<bool> = config["layer_types"]
        .as_array()
        .map(|types| types.iter().map(|name| name == "sliding_attention").collect())
        .unwrap_or_default();
    let [of_windows, of_all] = kv_heads(fields, &slides)?;
    let layers = fields.layers;
    let reused = fields.count("attention.shared_kv_layers")?.unwrap_or(0);
    let values = fields.layers_with("attn_v.weight");
    // Layers that see all, have keys of their own, and have no values.
    let same = (0..layers.saturating_sub(reused).min(slides.len() as u64))
        .any(|layer| !slides[layer as usize] && values.binary_search(&layer).is_err());
    if of_all != of_windows && !same {
        let key = fields.key("attention.head_count_kv");
        return Err(Error::at(
            key,
            "differs between layers, which is not supported with values of their own",
        ));
    }
    let widths = fields.metadata.integers(&fields.key("feed_forward_length")).ok().flatten();
    let wide = widths.is_some_and(|widths| widths.first() != widths.last());
    let inputs = fields.count("embedding_length_per_layer_input")?.unwrap_or(0);
    let vocabulary = if inputs > 0 { "per_layer_token_embd.weight" } else { "token_embd.weight" };
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("head_dim", json!(sliding));
    put("global_head_dim", json!(fields.head_dim));
    put("num_key_value_heads", json!(of_windows));
    put("attention_k_eq_v", json!(same));
    put("num_global_key_value_heads", if same { json!(of_all) } else { Value::Null });
    put("num_kv_shared_layers", json!(reused));
    put("use_double_wide_mlp", json!(wide));
    put("hidden_size_per_layer_input", json!(inputs));
    put("vocab_size_per_layer_input", json!(fields.rows(vocabulary)?));
    Ok(())
}

/// Heads of keys and values on layers with a window, and on those that see all.
fn kv_heads(fields: &Fields<'_>, slides: &[bool]) -> Result<[i64; 2]> {
    const KEY: &str = "attention.head_count_kv";
    let key = fields.key(KEY);
    let Ok(Some(listed)) = fields.metadata.integers(&key) else {
        return Ok([fields.needed(KEY)? as i64; 2]);
    };
    let of = |kind: bool| {
        let mut heads =
            listed.iter().zip(slides).filter(|(_, slides)| **slides == kind).map(|(heads, _)| *heads);
        let first = heads.next();
        if heads.any(|heads| Some(heads) != first) {
            return Err(Error::at(&key, "differs between layers of one kind, which is not supported"));
        }
        Ok(first)
    };
    let (of_windows, of_all) = (of(true)?, of(false)?);
    match (of_windows.or(of_all), of_all.or(of_windows)) {
        (Some(of_windows), Some(of_all)) => Ok([of_windows, of_all]),
        _ => Err(Error::at(key, "is empty, expected a number for each layer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_normal_distribution() {
        // Quantiles in single precision, as converters write them.
        for (deviations, part) in
            [(f32::NEG_INFINITY, 0.0), (0.0, 0.5), (1.644_853_6, 0.95), (-1.281_551_6, 0.1), (9.0, 1.0)]
        {
            // Which single precision rounds.
            let found = normal_distribution(deviations.into());
            assert!((found - part).abs() < 1e-8, "{deviations}: {found}");
        }
        assert_eq!(normal_distribution(f64::NAN), 0.0);
    }
}
