//! Rope scaling: the settings in config.json, and the frequencies that they ask for.

use std::{f64::consts::PI, path::PathBuf};

use inference_core::{Error, Result as LoadResult};
use serde_json::{Map, Value};

use super::weights::Weights;

/// Llama 3: long waves are stretched, short ones are not, and those between are stretched in part.
pub(super) fn llama3(settings: &Settings<'_>, powers: &[f64], max_positions: usize) -> LoadResult<Vec<f64>> {
    let factor = settings.positive("factor")?;
    let (low, high) = (settings.positive("low_freq_factor")?, settings.positive("high_freq_factor")?);
    let original = settings.original_positions(max_positions)? as f64;
    let freqs = powers.iter().map(|power| {
        let wave = 2.0 * PI * power;
        if wave < original / high {
            *power
        } else if wave > original / low {
            power * factor
        } else {
            let smooth = (original / wave - low) / (high - low);
            power / ((1.0 - smooth) / factor + smooth)
        }
    });
    Ok(freqs.collect())
}

/// YaRN (Peng et al. 2023, arXiv 2309.00071): between two dimensions, found from how often they turn over the original length, the
/// frequencies go over from plain to stretched. Returns them and the attention factor.
pub(super) fn yarn(
    settings: &Settings<'_>,
    powers: &[f64],
    theta: f64,
    max_positions: usize,
) -> LoadResult<(Vec<f64>, f64)> {
    let original = settings.original_positions(max_positions)? as f64;
    let factor = settings.number("factor")?.unwrap_or(max_positions as f64 / original);
    if !(factor.is_finite() && factor > 0.0) {
        return Err(settings.invalid("factor", format!("{factor}, expected a positive number")));
    }
    let mscale = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    let attention_factor = match settings.number("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None => match (settings.number("mscale")?, settings.number("mscale_all_dim")?) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(factor, one) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        },
    };
    let nonzero = |value: Option<f64>, default| value.filter(|value| *value != 0.0).unwrap_or(default);
    let (fast, slow) =
        (nonzero(settings.number("beta_fast")?, 32.0), nonzero(settings.number("beta_slow")?, 1.0));
    let dims = 2.0 * powers.len() as f64;
    let turning = |turns: f64| dims * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (turning(fast), turning(slow));
    if settings.flag("truncate").unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
    if low >= high {
        high = low + 0.001;
    }
    let freqs = powers.iter().enumerate().map(|(i, power)| {
        let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        power / (stretched / factor + 1.0 - stretched)
    });
    Ok((freqs.collect(), attention_factor))
}

/// What longrope asks for.
pub(super) struct LongRope {
    /// The length up to which `short` is used.
    pub(super) original: usize,
    pub(super) short: Vec<f64>,
    pub(super) long: Vec<f64>,
    /// Factors of queries and keys, of short texts and of long ones.
    pub(super) attention_factors: [f64; 2],
}

/// LongRoPE (Ding et al. 2024, arXiv 2402.13753): listed factors, one list for short texts and one for long ones.
pub(super) fn longrope(
    settings: &Settings<'_>,
    powers: &[f64],
    max_positions: usize,
) -> LoadResult<LongRope> {
    let original = settings.original_positions(max_positions)?;
    let stretched = |key| {
        let factors = settings.numbers(key, powers.len())?;
        LoadResult::Ok(factors.iter().zip(powers).map(|(factor, power)| factor * power).collect())
    };
    let factor = settings.number("factor")?.unwrap_or(max_positions as f64 / original as f64);
    let attention_factor = match settings.number("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None if factor <= 1.0 || original < 2 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let [short, long] = ["short_mscale", "long_mscale"].map(|key| settings.number(key));
    let attention_factors = [short?.unwrap_or(attention_factor), long?.unwrap_or(attention_factor)];
    Ok(LongRope {
        original,
        short: stretched("short_factor")?,
        long: stretched("long_factor")?,
        attention_factors,
    })
}

/// The rope settings of a config, in the style of transformers 4 or 5.
pub(super) struct Settings<'a> {
    path: PathBuf,
    section: String,
    own: Option<&'a Map<String, Value>>,
    config: &'a Value,
}

impl<'a> Settings<'a> {
    pub(super) fn find(weights: &Weights<'_>, config: &'a Value, layer_type: Option<&str>) -> Self {
        let path = weights.manifest().config_path();
        for key in ["rope_parameters", "rope_scaling"] {
            let Some(Value::Object(all)) = config.get(key) else { continue };
            if let Some((name, Value::Object(own))) = layer_type.and_then(|name| Some((name, all.get(name)?)))
            {
                return Self { path: path.clone(), section: format!("{key}.{name}"), own: Some(own), config };
            }
            if !all.is_empty() {
                return Self { path: path.clone(), section: key.to_owned(), own: Some(all), config };
            }
        }
        Self { path, section: "rope_parameters".to_owned(), own: None, config }
    }

    /// The setting, from the section of its own or from the config at large.
    fn get(&self, key: &str) -> Option<&'a Value> {
        let own = self.own.and_then(|own| own.get(key));
        own.filter(|value| !value.is_null())
            .or_else(|| if key == "factor" || key == "type" { None } else { self.config.get(key) })
            .filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.own.and_then(|own| own.get(key)).and_then(Value::as_str)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }

    pub(super) fn number(&self, key: &str) -> LoadResult<Option<f64>> {
        self.get(key)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|number| number.is_finite())
                    .ok_or_else(|| self.invalid(key, format!("{value}, expected a number")))
            })
            .transpose()
    }

    pub(super) fn positive(&self, key: &str) -> LoadResult<f64> {
        match self.number(key)? {
            Some(number) if number > 0.0 => Ok(number),
            Some(number) => Err(self.invalid(key, format!("{number}, expected a positive number"))),
            None => Err(self.invalid(key, "is missing")),
        }
    }

    /// The length that the model was trained at before its positions were scaled.
    fn original_positions(&self, max_positions: usize) -> LoadResult<usize> {
        const KEY: &str = "original_max_position_embeddings";
        // Where both have it, the config at large is the one that is meant.
        let value = self.config.get(KEY).filter(|value| !value.is_null()).or_else(|| self.get(KEY));
        match value.map(Value::as_u64) {
            None if max_positions > 0 => Ok(max_positions),
            Some(Some(original)) if original > 0 => Ok(original as usize),
            _ => Err(self.invalid(KEY, "is not a positive whole number")),
        }
    }

    pub(super) fn numbers(&self, key: &str, len: usize) -> LoadResult<Vec<f64>> {
        let list =
            self.get(key).and_then(Value::as_array).ok_or_else(|| self.invalid(key, "is not a list"))?;
        let numbers: Option<Vec<f64>> =
            list.iter().map(|value| value.as_f64().filter(|n| n.is_finite() && *n > 0.0)).collect();
        numbers.filter(|numbers| numbers.len() == len).ok_or_else(|| {
            self.invalid(key, format!("has {} entries, expected {len} positive numbers", list.len()))
        })
    }

    pub(super) fn invalid(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::invalid_key(&self.path, format!("{}.{key}", self.section), reason)
    }
}
