//! The settings of rope: base, scaling, and factors that files have as tensors.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use super::config::{Fields, single};
use crate::{Error, Result, Tensor};

/// The most factors of rope: one for two elements of a head.
const MOST_FACTORS: usize = 1 << 12;

/// Adds the settings of rope to config.json.
pub(super) fn add(
    fields: &Fields<'_>,
    config: &mut Map<String, Value>,
    read: &mut dyn FnMut(&Tensor) -> Result<Vec<f32>>,
) -> Result<()> {
    if fields.heads == 0 {
        return Ok(());
    }
    if fields.family.architecture == "gemma4" {
        return by_type(fields, config, read);
    }
    let base = fields.number("rope.freq_base")?.unwrap_or(10_000.0);
    config.insert("rope_theta".to_owned(), single(base));
    let rotated = fields.count("rope.dimension_count")?.unwrap_or(fields.head_dim);
    // Also where it is all of a head: families differ in what they take for granted.
    if fields.head_dim > 0 {
        let share = rotated as f64 / fields.head_dim as f64;
        config.insert("partial_rotary_factor".to_owned(), json!(share));
    }
    let mut factors = |name: &str| fields.tensor(name).map(|tensor| factors(tensor, read)).transpose();
    let scaling = if let Some(freqs) = factors("rope_freqs.weight")? {
        let positions = fields.needed("context_length")?;
        llama3(&freqs, base, rotated).unwrap_or_else(|| listed(&freqs, &freqs, positions, Some(1.0)))
    } else if let (Some(long), Some(short)) =
        (factors("rope_factors_long.weight")?, factors("rope_factors_short.weight")?)
    {
        let original = fields.needed("rope.scaling.original_context_length")?;
        config.insert("original_max_position_embeddings".to_owned(), json!(original));
        listed(&short, &long, original, fields.number("rope.scaling.attn_factor")?)
    } else {
        match scaled(fields)? {
            Some(scaling) => scaling,
            None => {
                // Where config.json says nothing, the family has a scaling.
                if fields.family.architecture == "apertus" {
                    let plain = json!({"rope_type": "default", "rope_theta": single(base)});
                    config.insert("rope_parameters".to_owned(), plain);
                }
                return Ok(());
            }
        }
    };
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(())
}

/// Settings for the layers with a window and for those that see all, of which the first pairs turn alone: the factors of the others
/// are without measure.
fn by_type(
    fields: &Fields<'_>,
    config: &mut Map<String, Value>,
    read: &mut dyn FnMut(&Tensor) -> Result<Vec<f32>>,
) -> Result<()> {
    const FREQS: &str = "rope_freqs.weight";
    let freqs = fields.tensor(FREQS).ok_or_else(|| Error::at(FREQS, "is missing"))?;
    let freqs = factors(freqs, read)?;
    let turned = freqs.iter().take_while(|factor| **factor == 1.0).count();
    if freqs[turned..].iter().any(|factor| *factor < 1e20) {
        let reason = "has other factors than those of pairs that turn, or do not";
        return Err(Error::at(FREQS, reason));
    }
    let mut sliding = Map::from_iter([("rope_type".to_owned(), json!("default"))]);
    sliding.insert("rope_theta".to_owned(), single(fields.number("rope.freq_base_swa")?.unwrap_or(10_000.0)));
    let width = fields.needed("attention.key_length_swa")?;
    if let Some(rotated) = fields.count("rope.dimension_count_swa")?.filter(|rotated| *rotated != width) {
        sliding.insert("partial_rotary_factor".to_owned(), json!(rotated as f64 / width as f64));
    }
    let full = json!({
        "rope_type": "proportional",
        "rope_theta": single(fields.number("rope.freq_base")?.unwrap_or(1e6)),
        "partial_rotary_factor": turned as f64 / freqs.len().max(1) as f64,
    });
    let types = json!({"sliding_attention": sliding, "full_attention": full});
    config.insert("rope_parameters".to_owned(), types);
    Ok(())
}

fn factors(tensor: &Tensor, read: &mut dyn FnMut(&Tensor) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    if tensor.shape.len() != 1 || tensor.shape[0] > MOST_FACTORS {
        let reason = format!("has the extents {:?}, expected up to {MOST_FACTORS} numbers", tensor.shape);
        return Err(Error::at(&tensor.name, reason));
    }
    read(tensor)
}

/// The scaling that metadata names.
fn scaled(fields: &Fields<'_>) -> Result<Option<Value>> {
    let key = fields.key("rope.scaling.type");
    let factor = match fields.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // Files of the first version had the inverse.
        None => fields.number("rope.scale_linear")?,
    };
    let kind = match fields.metadata.text(&key)? {
        None if factor.is_some_and(|factor| factor != 1.0) => "linear",
        None | Some("none") => return Ok(None),
        Some(kind) => kind,
    };
    let Some(factor) = factor else {
        return Err(Error::at(fields.key("rope.scaling.factor"), "is missing, as there is a scaling"));
    };
    let mut scaling = Map::new();
    scaling.insert("rope_type".to_owned(), json!(kind));
    scaling.insert("factor".to_owned(), single(factor));
    match kind {
        "linear" => {}
        "yarn" => {
            if let Some(original) = fields.count("rope.scaling.original_context_length")? {
                scaling.insert("original_max_position_embeddings".to_owned(), json!(original));
            }
            fields.set(&mut scaling, "beta_fast", "rope.scaling.yarn_beta_fast")?;
            fields.set(&mut scaling, "beta_slow", "rope.scaling.yarn_beta_slow")?;
            match fields.family.architecture {
                "gpt-oss" => drop(scaling.insert("truncate".to_owned(), json!(false))),
                // The factor of scores alone is in the file, a tenth of it: both are the same in published models.
                "deepseek2" => match fields.number("rope.scaling.yarn_log_multiplier")? {
                    Some(factor) if factor != 0.0 => {
                        for key in ["mscale", "mscale_all_dim"] {
                            scaling.insert(key.to_owned(), single(10.0 * factor));
                        }
                    }
                    _ => drop(scaling.insert("attention_factor".to_owned(), json!(1.0))),
                },
                _ => {}
            }
        }
        other => return Err(Error::at(key, format!("is {other:?}, expected none, linear or yarn"))),
    }
    Ok(Some(Value::Object(scaling)))
}

/// Factors of short and long texts.
fn listed(short: &[f32], long: &[f32], original: u64, attention_factor: Option<f64>) -> Value {
    let numbers = |factors: &[f32]| factors.iter().map(|n| single((*n).into())).collect::<Vec<_>>();
    json!({
        "rope_type": "longrope",
        "short_factor": numbers(short),
        "long_factor": numbers(long),
        "original_max_position_embeddings": original,
        "attention_factor": attention_factor.map(single),
    })
}

/// Llama 3's scaling, where it gives these factors with the settings of every published Llama 3: then config.json says so instead of
/// listing them.
fn llama3(factors: &[f32], base: f64, rotated: u64) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: f64 = 8192.0;
    let largest = f64::from(factors.iter().copied().fold(0.0, f32::max));
    let expected = |i: usize| {
        let wave = 2.0 * PI * base.powf(2.0 * i as f64 / rotated as f64);
        if wave < ORIGINAL / HIGH {
            1.0
        } else if wave > ORIGINAL / LOW {
            largest
        } else {
            let smooth = (ORIGINAL / wave - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / largest + smooth)
        }
    };
    let same = |(i, factor): (usize, &f32)| (f64::from(*factor) / expected(i) - 1.0).abs() < 1e-5;
    (largest > 1.0 && factors.iter().enumerate().all(same)).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": single(largest),
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as u64,
        })
    })
}
