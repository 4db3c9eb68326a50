//! What each of a model's layers remembers of a text.

use serde_json::Value;

use super::config::{Config, Found};
use crate::Result;

/// What a layer remembers of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerKind {
    /// Keys and values of every position.
    FullAttention,
    /// Keys and values of the latest positions, as many as the window has.
    SlidingAttention {
        /// The window, in positions.
        window: usize,
    },
    /// A state of fixed size: linear attention, a recurrence.
    Recurrent,
}

/// The kind of each of `layers` layers: by `layer_types`, by `full_attention_interval` or `full_attn_idxs` (the others are recurrent), or
/// by `sliding_window_pattern` (every n-th layer has full attention). A window without any counts as full attention. A state without
/// heads of attention is all that a model of state spaces remembers.
pub(super) fn kinds(config: &Config<'_>, layers: usize) -> Result<Vec<LayerKind>> {
    if config.count(&["state_size"])?.is_some() && config.count(&["num_attention_heads"])?.is_none() {
        return Ok(vec![LayerKind::Recurrent; layers]);
    }
    let off = config.find(&["use_sliding_window"]).is_some_and(|found| *found.value == Value::Bool(false));
    let window = if off { None } else { config.count(&["sliding_window"])? };
    let sliding = window.map_or(LayerKind::FullAttention, |window| LayerKind::SlidingAttention { window });
    if let Some(Found { key, value }) = config.find(&["layer_types"]) {
        let Value::Array(types) = value else { return Err(config.wrong(key, value, "a list of strings")) };
        if types.len() != layers {
            let reason = format!("has {} entries, expected {layers}, one for each layer", types.len());
            return Err(config.invalid(key, reason));
        }
        let kind = |name: &Value| match name.as_str() {
            Some("sliding_attention") => sliding,
            Some("linear_attention" | "recurrent" | "mamba" | "conv") => LayerKind::Recurrent,
            _ => LayerKind::FullAttention,
        };
        return Ok(types.iter().map(kind).collect());
    }
    // Every n-th layer has attention, or those that are listed.
    if let Some(interval) = config.count(&["full_attention_interval"])? {
        let kind = |layer: usize| match (layer + 1).is_multiple_of(interval) {
            true => LayerKind::FullAttention,
            false => LayerKind::Recurrent,
        };
        return Ok((0..layers).map(kind).collect());
    }
    if let Some(Found { key, value }) = config.find(&["full_attn_idxs"]) {
        let Value::Array(listed) = value else {
            return Err(config.wrong(key, value, "a list of the layers with attention"));
        };
        let kind = |layer: usize| match listed.iter().any(|index| index.as_u64() == Some(layer as u64)) {
            true => LayerKind::FullAttention,
            false => LayerKind::Recurrent,
        };
        return Ok((0..layers).map(kind).collect());
    }
    // Some publishers write the pattern in letters, and the types of the layers besides.
    let pattern = config.find(&["sliding_window_pattern"]).is_some_and(|found| found.value.is_string());
    let pattern = if pattern { None } else { config.count(&["sliding_window_pattern"])? };
    let kind = |layer: usize| match pattern {
        Some(pattern) if !(layer + 1).is_multiple_of(pattern) => sliding,
        _ => LayerKind::FullAttention,
    };
    Ok((0..layers).map(kind).collect())
}
