//! How many tokens a model was made for, with its rope scaling.

use serde_json::Value;

use super::config::{Config, Found};
use crate::Result;

/// The keys of config.json that say how many positions the model was trained on.
const LENGTHS: [&str; 6] =
    ["max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"];

/// The most tokens of any context.
const LONGEST: usize = i32::MAX as usize;

/// The positions that the model was trained on, times what `rope_scaling` (transformers 5: `rope_parameters`) stretches them by.
pub(super) fn length(config: &Config<'_>, model_type: &str) -> Result<Option<usize>> {
    let Some(trained) = config.count(&LENGTHS)? else { return Ok(None) };
    // Its `max_position_embeddings` counts the scaled positions.
    if model_type.starts_with("gemma3") {
        return Ok(Some(trained));
    }
    let scaling = config.find(&["rope_scaling", "rope_parameters"]);
    let Some(Found { value: Value::Object(scaling), .. }) = scaling else { return Ok(Some(trained)) };
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
    let factor =
        scaling.get("factor").and_then(Value::as_f64).filter(|factor| factor.is_finite() && *factor >= 1.0);
    let original = scaling.get("original_max_position_embeddings").and_then(Value::as_u64);
    let original = original.and_then(|original| usize::try_from(original).ok()).filter(|n| *n > 0);
    let stretched = |positions: usize| match factor {
        Some(factor) => ((positions as f64 * factor) as usize).clamp(positions, LONGEST.max(positions)),
        None => positions,
    };
    Ok(Some(match kind {
        Some("linear" | "dynamic") => stretched(trained),
        Some("yarn") => stretched(original.unwrap_or(trained)).max(trained),
        // llama3, longrope, su, mrope: config.json counts the scaled positions.
        _ => trained,
    }))
}
