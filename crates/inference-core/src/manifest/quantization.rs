//! How config.json says that the weights are quantised.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config::{Config, Found, shown};
use crate::{Quantization, Result};

/// The default, and the layers that differ.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The key of config.json that they stand under.
    pub(super) key: String,
    pub(super) default: Quantization,
    /// By a layer's full name; `None` is not quantised.
    pub(super) layers: BTreeMap<String, Option<Quantization>>,
}

/// Reads MLX's `quantization`, or `quantization_config` where that is MLX's own or names a scheme that MLX has.
pub(super) fn read(config: &Config<'_>) -> Result<Option<Settings>> {
    let Some(Found { key, value }) = config.find(&["quantization", "quantization_config"]) else {
        return Ok(None);
    };
    let Value::Object(fields) = value else {
        return Err(config.wrong(key, value, "an object with bits and group_size"));
    };
    if let Some(method) = fields.get("quant_method").filter(|method| !method.is_null()) {
        if method == "mxfp4" {
            return Ok(Some(Settings { key, default: scheme("mxfp4", 4, 32), layers: BTreeMap::new() }));
        }
        let reason = format!(
            "is {}, which cannot be read; use weights that are not quantised, or MLX's quantisation of them",
            shown(method)
        );
        return Err(config.invalid(format!("{key}.quant_method"), reason));
    }
    let default = setting(config, &key, fields)?;
    let mut layers = BTreeMap::new();
    for (name, value) in fields {
        let own = match value {
            Value::Bool(false) => None,
            Value::Bool(true) => Some(default.clone()),
            Value::Object(fields) => Some(setting(config, &format!("{key}.{name}"), fields)?),
            // bits, group_size and mode, read above, and remarks of the tool that wrote them.
            _ => continue,
        };
        layers.insert(name.clone(), own);
    }
    Ok(Some(Settings { key, default, layers }))
}

/// One `{bits, group_size, mode}`. What it leaves out is its mode's own default, not what the default setting says: so MLX
/// reads it.
fn setting(config: &Config<'_>, key: &str, fields: &Map<String, Value>) -> Result<Quantization> {
    let of = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let number = |name: &str| match of(name) {
        None => Ok(None),
        Some(value) => {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
            let wrong = || config.wrong(format!("{key}.{name}"), value, "a whole number from 1");
            number.map(Some).ok_or_else(wrong)
        }
    };
    let (bits, group_size) = (number("bits")?, number("group_size")?);
    let mode = match of("mode") {
        None => "affine",
        Some(Value::String(mode)) => mode,
        Some(value) => return Err(config.wrong(format!("{key}.mode"), value, MODES)),
    };
    let fixed = match mode {
        "affine" => {
            let bits = bits.unwrap_or(4);
            if !matches!(bits, 2..=6 | 8) {
                let reason = format!("is {bits}, expected 2, 3, 4, 5, 6 or 8");
                return Err(config.invalid(format!("{key}.bits"), reason));
            }
            return Ok(scheme(mode, bits, group_size.unwrap_or(64)));
        }
        "mxfp4" => scheme(mode, 4, 32),
        "nvfp4" => scheme(mode, 4, 16),
        "mxfp8" => scheme(mode, 8, 32),
        _ => return Err(config.invalid(format!("{key}.mode"), format!("is {mode:?}, expected {MODES}"))),
    };
    for (name, found, expected) in [("bits", bits, fixed.bits), ("group_size", group_size, fixed.group_size)]
    {
        if let Some(found) = found.filter(|found| *found != expected) {
            let reason = format!("is {found}, expected {expected} for {mode}");
            return Err(config.invalid(format!("{key}.{name}"), reason));
        }
    }
    Ok(fixed)
}

const MODES: &str = "affine, mxfp4, nvfp4 or mxfp8";

fn scheme(mode: &str, bits: u32, group_size: u32) -> Quantization {
    Quantization::new(bits, group_size, mode)
}
