//! How config.json says that the weights are quantised.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::config::{Config, Found, shown};
use crate::Result;

/// How weights are quantised, by default; single layers may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct Quantization {
    /// Bits of one weight; 0 where config.json does not say.
    pub bits: u32,
    /// Weights that share a scale; 0 where config.json does not say.
    pub group_size: u32,
    /// The method.
    pub mode: QuantMode,
}

impl Quantization {
    /// A quantisation.
    #[must_use]
    pub fn new(bits: u32, group_size: u32, mode: QuantMode) -> Self {
        Self { bits, group_size, mode }
    }
}

/// A method of quantisation. The first four are MLX's; others are `quant_method` of `quantization_config`, as transformers
/// writes it. Which of them it can read is for a backend to say, in [`Backend::supports`](crate::backend::Backend::supports).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantMode {
    /// Whole numbers with a scale and a bias for each group: MLX's default.
    #[default]
    Affine,
    /// 4-bit floats (e2m1) with a power of two for 32 of them, as the Open Compute Project has it.
    Mxfp4,
    /// 4-bit floats (e2m1) with an 8-bit float for 16 of them, as NVIDIA has it.
    Nvfp4,
    /// 8-bit floats (e4m3) with a power of two for 32 of them.
    Mxfp8,
    /// GPTQ.
    Gptq,
    /// AWQ.
    Awq,
    /// 8-bit floats, as DeepSeek and others publish them.
    Fp8,
    /// bitsandbytes.
    BitsAndBytes,
    /// compressed-tensors.
    CompressedTensors,
    /// Any other: [`ModelManifest::quant_method`](crate::ModelManifest::quant_method) has its name.
    Other,
}

impl QuantMode {
    /// Its name in config.json.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Fp8 => "fp8",
            Self::BitsAndBytes => "bitsandbytes",
            Self::CompressedTensors => "compressed-tensors",
            Self::Other => "other",
        }
    }

    /// Whether MLX computes with it.
    #[must_use]
    pub const fn is_mlx(self) -> bool {
        matches!(self, Self::Affine | Self::Mxfp4 | Self::Nvfp4 | Self::Mxfp8)
    }

    fn named(name: &str) -> Self {
        const NAMED: [QuantMode; 9] = [
            QuantMode::Affine,
            QuantMode::Mxfp4,
            QuantMode::Nvfp4,
            QuantMode::Mxfp8,
            QuantMode::Gptq,
            QuantMode::Awq,
            QuantMode::Fp8,
            QuantMode::BitsAndBytes,
            QuantMode::CompressedTensors,
        ];
        NAMED.into_iter().find(|mode| mode.name() == name).unwrap_or(Self::Other)
    }
}

impl fmt::Display for QuantMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for QuantMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Reads the name of a mode of MLX.
impl FromStr for QuantMode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Some(Self::named(name))
            .filter(|mode| mode.is_mlx())
            .ok_or_else(|| format!("{name:?}, expected {MODES}"))
    }
}

/// The default, and the layers that differ.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The key of config.json that they stand under.
    pub(super) key: String,
    pub(super) default: Quantization,
    /// `quant_method`, where there is one.
    pub(super) method: Option<String>,
    /// By a layer's full name; `None` is not quantised.
    pub(super) layers: BTreeMap<String, Option<Quantization>>,
}

/// Reads MLX's `quantization`, or `quantization_config`, which is MLX's own or names a method.
pub(super) fn read(config: &Config<'_>) -> Result<Option<Settings>> {
    let Some(Found { key, value }) = config.find(&["quantization", "quantization_config"]) else {
        return Ok(None);
    };
    let Value::Object(fields) = value else {
        return Err(config.wrong(key, value, "an object with bits and group_size"));
    };
    match fields.get("quant_method") {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) => {
            let (default, method) = (method(name, fields), Some(name.clone()));
            return Ok(Some(Settings { key, default, method, layers: BTreeMap::new() }));
        }
        Some(other) => {
            return Err(config.wrong(format!("{key}.quant_method"), other, "the name of a method"));
        }
    }
    let default = setting(config, &key, fields)?;
    let mut layers = BTreeMap::new();
    for (name, value) in fields {
        let own = match value {
            Value::Bool(false) => None,
            Value::Bool(true) => Some(default),
            Value::Object(fields) => Some(setting(config, &format!("{key}.{name}"), fields)?),
            // bits, group_size and mode, read above, and metadata of the tool that wrote them.
            _ => continue,
        };
        layers.insert(name.clone(), own);
    }
    Ok(Some(Settings { key, default, method: None, layers }))
}

/// A method that transformers names. Its fields are the business of the backend that reads it.
fn method(name: &str, fields: &Map<String, Value>) -> Quantization {
    let number = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| fields.get(*name)?.as_u64());
        found.and_then(|number| u32::try_from(number).ok())
    };
    let mode = QuantMode::named(name);
    let (bits, group_size) = match mode {
        QuantMode::Mxfp4 => return Quantization::new(4, 32, mode),
        QuantMode::Fp8 => (8, 0),
        _ => (0, 0),
    };
    let bits = number(["bits", "w_bit"]).unwrap_or(bits);
    Quantization::new(bits, number(["group_size", "q_group_size"]).unwrap_or(group_size), mode)
}

/// One `{bits, group_size, mode}` of MLX. What it leaves out is its mode's own default, not what the default setting says: so
/// MLX reads it.
fn setting(config: &Config<'_>, key: &str, fields: &Map<String, Value>) -> Result<Quantization> {
    let get = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let number = |name: &str| match get(name) {
        None => Ok(None),
        Some(value) => {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
            let wrong = || config.wrong(format!("{key}.{name}"), value, "a whole number from 1");
            number.map(Some).ok_or_else(wrong)
        }
    };
    let (bits, group_size) = (number("bits")?, number("group_size")?);
    let mode = match get("mode") {
        None => QuantMode::Affine,
        Some(Value::String(name)) => name.parse().map_err(|_| {
            config.invalid(
                format!("{key}.mode"),
                format!("is {}, expected {MODES}", shown(&Value::from(name.as_str()))),
            )
        })?,
        Some(value) => return Err(config.wrong(format!("{key}.mode"), value, MODES)),
    };
    let fixed = match mode {
        QuantMode::Nvfp4 => Quantization::new(4, 16, mode),
        QuantMode::Mxfp8 => Quantization::new(8, 32, mode),
        QuantMode::Mxfp4 => Quantization::new(4, 32, mode),
        _ => {
            let bits = bits.unwrap_or(4);
            if !matches!(bits, 2..=6 | 8) {
                let reason = format!("is {bits}, expected 2, 3, 4, 5, 6 or 8");
                return Err(config.invalid(format!("{key}.bits"), reason));
            }
            return Ok(Quantization::new(bits, group_size.unwrap_or(64), mode));
        }
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
