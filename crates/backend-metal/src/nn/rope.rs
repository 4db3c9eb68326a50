//! Rotary positions, with every scaling that config.json knows.

use std::{f64::consts::PI, path::PathBuf};

use inference_core::{Error, Result as LoadResult};
use mlx_rs::{
    Array,
    error::{Exception, Result},
    fast, ops,
};
use serde_json::{Map, Value};

use super::{cpu::RotaryTable, weights::Weights};

/// Where the tokens of each row begin.
#[derive(Debug, Clone)]
pub(crate) enum Offsets {
    /// All rows at the same position.
    Same(usize),
    /// One position for each row, `[B]` (i32).
    Each(Array),
}

/// What rope needs to know of a model besides its own settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeShape {
    /// The width of one head.
    pub(crate) head_dim: usize,
    /// `max_position_embeddings`
    pub(crate) max_positions: usize,
}

/// The rotation of queries and keys by their positions.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Leading elements of a head that are rotated; the others stay as they are.
    dims: i32,
    periods: Periods,
    /// Positions are multiplied by this.
    scale: f32,
    /// What queries and keys are multiplied by besides, `[head_dim]`.
    magnitude: Option<Array>,
}

#[derive(Debug)]
enum Periods {
    /// Powers of this base.
    Base(f32),
    /// As listed, `[dims / 2]`.
    Listed(Array),
    /// By the length of the text: up to `original` tokens, and beyond.
    Long { original: usize, short: Array, long: Array },
    /// By the length of the text: beyond `original` tokens the base grows with it.
    Dynamic { original: usize, base: f64, factor: f64 },
}

impl Rope {
    /// The rope of a model, for the layers of one type where config.json tells types apart. Reads the settings in the style of
    /// transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). `theta` is the base where they name none.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the setting that is missing or makes no sense.
    pub(crate) fn load(
        weights: &Weights<'_>,
        config: &Value,
        layer_type: Option<&str>,
        shape: RopeShape,
        theta: f64,
    ) -> LoadResult<Self> {
        let settings = Settings::find(weights, config, layer_type);
        let theta = settings.number("rope_theta")?.unwrap_or(theta);
        Self::build(&settings, shape, theta)
    }

    /// Whether positions are rotated by the length of their text.
    pub(crate) fn depends_on_length(&self) -> bool {
        matches!(self.periods, Periods::Long { .. } | Periods::Dynamic { .. })
    }

    /// The length beyond which all positions of a text are rotated another way.
    pub(crate) fn switch(&self) -> Option<usize> {
        match self.periods {
            Periods::Long { original, .. } => Some(original),
            _ => None,
        }
    }

    /// Rotates `[B, H, T, head_dim]`; row b is part of a text of `lengths[b]` tokens.
    pub(crate) fn forward(&self, x: &Array, offsets: &Offsets, lengths: &[usize]) -> Result<Array> {
        let scaled = match &self.magnitude {
            Some(magnitude) => &x.multiply(magnitude.as_dtype(x.dtype())?)?,
            None => x,
        };
        match &self.periods {
            Periods::Base(base) => self.rotate(scaled, Some(*base), offsets, None),
            Periods::Listed(periods) => self.rotate(scaled, None, offsets, Some(periods)),
            Periods::Long { .. } | Periods::Dynamic { .. } => {
                let alike = lengths.windows(2).all(|pair| pair[0] == pair[1]);
                if let (true, Some(length)) = (alike, lengths.first()) {
                    return self.rotate_at_length(scaled, offsets, *length);
                }
                let rows = scaled.split_equal(lengths.len() as i32, 0)?;
                let offsets: Vec<_> = match offsets {
                    Offsets::Same(_) => vec![offsets.clone(); lengths.len()],
                    Offsets::Each(each) => {
                        each.split_equal(lengths.len() as i32, 0)?.into_iter().map(Offsets::Each).collect()
                    }
                };
                let rotated = rows.iter().zip(&offsets).zip(lengths);
                let rotated: Vec<_> = rotated
                    .map(|((row, offset), length)| self.rotate_at_length(row, offset, *length))
                    .collect::<Result<_>>()?;
                ops::concatenate(&rotated, 0)
            }
        }
    }

    /// The rotations of `tokens` tokens in each row, where row b is part of a text of `lengths[b]` tokens.
    pub(crate) fn turns(&self, offsets: &Offsets, tokens: usize, lengths: &[usize]) -> Result<RotaryTable> {
        let pairs = self.dims as usize / 2;
        let magnitude = self.magnitude.as_ref().map(Array::to_vec_exact::<f32>).transpose();
        let magnitude = magnitude.map_err(host)?.map_or(1.0, |magnitude| magnitude[0]);
        let starts = match offsets {
            Offsets::Same(start) => vec![*start as i32; lengths.len()],
            Offsets::Each(starts) => starts.to_vec_exact::<i32>().map_err(host)?,
        };
        let powers =
            |base: f64| (0..pairs).map(|i| base.powf(2.0 * i as f64 / f64::from(self.dims)) as f32).collect();
        let mut turns = vec![0.0; lengths.len() * tokens * 2 * pairs];
        let mut rows = turns.chunks_exact_mut((tokens * 2 * pairs).max(1));
        for ((row, start), length) in rows.by_ref().zip(starts).zip(lengths) {
            let periods: Vec<f32> = match &self.periods {
                Periods::Base(base) => powers(f64::from(*base)),
                Periods::Dynamic { original, base, factor } => {
                    powers(self.dynamic_base(*original, *base, *factor, *length))
                }
                Periods::Listed(periods) => periods.to_vec_exact().map_err(host)?,
                Periods::Long { original, short, long } => {
                    (if length > original { long } else { short }).to_vec_exact().map_err(host)?
                }
            };
            for (token, turns) in row.chunks_exact_mut(2 * pairs).enumerate() {
                let position = (start as f32 + token as f32) * self.scale;
                let (cosines, sines) = turns.split_at_mut(pairs);
                for ((cosine, sine), period) in cosines.iter_mut().zip(sines).zip(&periods) {
                    let (sin, cos) = (position * (1.0 / period)).sin_cos();
                    (*cosine, *sine) = (cos * magnitude, sin * magnitude);
                }
            }
        }
        Ok(RotaryTable { pairs, cos_sin: turns.into() })
    }

    /// The base for a text of this length.
    fn dynamic_base(&self, original: usize, base: f64, factor: f64, length: usize) -> f64 {
        let (length, dims) = (length.max(original) as f64, f64::from(self.dims));
        let growth = factor * length / original as f64 - (factor - 1.0);
        base * growth.powf(dims / (dims - 2.0))
    }

    fn rotate_at_length(&self, x: &Array, offsets: &Offsets, length: usize) -> Result<Array> {
        match &self.periods {
            Periods::Long { original, short, long } => {
                let periods = if length > *original { long } else { short };
                self.rotate(x, None, offsets, Some(periods))
            }
            Periods::Dynamic { original, base, factor } => {
                let base = self.dynamic_base(*original, *base, *factor, length);
                self.rotate(x, Some(base as f32), offsets, None)
            }
            Periods::Base(base) => self.rotate(x, Some(*base), offsets, None),
            Periods::Listed(periods) => self.rotate(x, None, offsets, Some(periods)),
        }
    }

    fn rotate(
        &self,
        x: &Array,
        base: Option<f32>,
        offsets: &Offsets,
        periods: Option<&Array>,
    ) -> Result<Array> {
        match offsets {
            Offsets::Same(offset) => {
                fast::rope(x, self.dims, false, base, self.scale, *offset as i32, periods)
            }
            Offsets::Each(each) => fast::rope_dynamic(x, self.dims, false, base, self.scale, each, periods),
        }
    }

    fn build(settings: &Settings<'_>, shape: RopeShape, theta: f64) -> LoadResult<Self> {
        let RopeShape { head_dim, max_positions } = shape;
        if !(theta.is_finite() && theta > 1.0) {
            return Err(settings.invalid("rope_theta", format!("{theta}, expected a number above 1")));
        }
        let partial = settings.number("partial_rotary_factor")?.unwrap_or(1.0);
        let dims = (head_dim as f64 * partial) as usize;
        if !(0.0..=1.0).contains(&partial) || dims == 0 || !dims.is_multiple_of(2) {
            let reason =
                format!("leaves {dims} of {head_dim} elements to rotate, expected a positive even number");
            return Err(settings.invalid("partial_rotary_factor", reason));
        }
        let powers: Vec<f64> = (0..dims / 2).map(|i| theta.powf(2.0 * i as f64 / dims as f64)).collect();
        let kind = settings.text("rope_type").or_else(|| settings.text("type")).unwrap_or("default");
        let mut rope =
            Self { dims: dims as i32, periods: Periods::Base(theta as f32), scale: 1.0, magnitude: None };
        match kind {
            // Sections of positions apart for image and text are one and the same for text alone.
            "default" | "mrope" => {}
            "linear" => rope.scale = (1.0 / settings.positive("factor")?) as f32,
            "dynamic" => {
                let factor = settings.positive("factor")?;
                if dims < 4 || max_positions == 0 {
                    return Err(settings.invalid(
                        "rope_type",
                        "dynamic needs a head_dim above 2 and max_position_embeddings",
                    ));
                }
                rope.periods = Periods::Dynamic { original: max_positions, base: theta, factor };
            }
            "llama3" => rope.periods = Periods::Listed(listed(&llama3(settings, &powers, max_positions)?)),
            "yarn" => {
                let (periods, magnitude) = yarn(settings, &powers, theta, max_positions)?;
                rope.periods = Periods::Listed(listed(&periods));
                rope.magnitude = leading(magnitude, dims, head_dim);
            }
            "longrope" | "su" => {
                let original = settings.original_positions(max_positions)?;
                let stretched = |key| {
                    let factors = settings.numbers(key, dims / 2)?;
                    LoadResult::Ok(listed(
                        &factors.iter().zip(&powers).map(|(f, p)| f * p).collect::<Vec<_>>(),
                    ))
                };
                let factor = settings.number("factor")?.unwrap_or(max_positions as f64 / original as f64);
                let magnitude = match settings.number("attention_factor")? {
                    Some(magnitude) => magnitude,
                    None if factor <= 1.0 || original < 2 => 1.0,
                    None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
                };
                rope.periods = Periods::Long {
                    original,
                    short: stretched("short_factor")?,
                    long: stretched("long_factor")?,
                };
                rope.magnitude = leading(magnitude, dims, head_dim);
            }
            other => {
                let known = "default, linear, dynamic, llama3, yarn, longrope";
                return Err(settings.invalid("rope_type", format!("{other:?}, expected one of {known}")));
            }
        }
        Ok(rope)
    }
}

fn host(error: impl std::fmt::Display) -> Exception {
    Exception::custom(error.to_string())
}

fn listed(periods: &[f64]) -> Array {
    let periods: Vec<f32> = periods.iter().map(|period| *period as f32).collect();
    Array::from_slice(&periods, &[periods.len() as i32])
}

/// `magnitude` for the elements that are rotated and 1 for the others.
fn leading(magnitude: f64, dims: usize, head_dim: usize) -> Option<Array> {
    #[expect(
        clippy::float_cmp,
        reason = "exactly 1 is what the formulas give where there is nothing to multiply"
    )]
    (magnitude != 1.0)
        .then(|| listed(&(0..head_dim).map(|i| if i < dims { magnitude } else { 1.0 }).collect::<Vec<_>>()))
}

/// Long waves are stretched, short ones are not, and those between are stretched in part.
fn llama3(settings: &Settings<'_>, powers: &[f64], max_positions: usize) -> LoadResult<Vec<f64>> {
    let factor = settings.positive("factor")?;
    let (low, high) = (settings.positive("low_freq_factor")?, settings.positive("high_freq_factor")?);
    let original = settings.original_positions(max_positions)? as f64;
    let periods = powers.iter().map(|power| {
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
    Ok(periods.collect())
}

/// Between two dimensions, found from how often they turn over the original length, periods go over from plain to stretched.
fn yarn(
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
    let magnitude = match settings.number("attention_factor")? {
        Some(magnitude) => magnitude,
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
    let periods = powers.iter().enumerate().map(|(i, power)| {
        let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        power / (stretched / factor + 1.0 - stretched)
    });
    Ok((periods.collect(), magnitude))
}

/// The settings of rope in a config, wherever its style puts them.
struct Settings<'a> {
    path: PathBuf,
    section: String,
    own: Option<&'a Map<String, Value>>,
    config: &'a Value,
}

impl<'a> Settings<'a> {
    fn find(weights: &Weights<'_>, config: &'a Value, layer_type: Option<&str>) -> Self {
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

    fn text(&self, key: &str) -> Option<&'a str> {
        self.own.and_then(|own| own.get(key)).and_then(Value::as_str)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }

    fn number(&self, key: &str) -> LoadResult<Option<f64>> {
        self.get(key)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|number| number.is_finite())
                    .ok_or_else(|| self.invalid(key, format!("{value}, expected a number")))
            })
            .transpose()
    }

    fn positive(&self, key: &str) -> LoadResult<f64> {
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

    fn numbers(&self, key: &str, len: usize) -> LoadResult<Vec<f64>> {
        let list =
            self.get(key).and_then(Value::as_array).ok_or_else(|| self.invalid(key, "is not a list"))?;
        let numbers: Option<Vec<f64>> =
            list.iter().map(|value| value.as_f64().filter(|n| n.is_finite() && *n > 0.0)).collect();
        numbers.filter(|numbers| numbers.len() == len).ok_or_else(|| {
            self.invalid(key, format!("has {} entries, expected {len} positive numbers", list.len()))
        })
    }

    fn invalid(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::invalid_key(&self.path, format!("{}.{key}", self.section), reason)
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, random, with_device};

    use super::*;
    use crate::{
        mlx::slice,
        nn::cpu::{Arrangement, arrange},
    };

    const HEADS: [i32; 3] = [4, 2, 24];

    /// One of each kind, which rotates 16 of 24 elements.
    fn ropes() -> impl Iterator<Item = Rope> {
        let powers = |base: f64| listed(&(0..8).map(|i| base.powf(f64::from(i) / 8.0)).collect::<Vec<_>>());
        let rope = |periods, scale, magnitude| Rope {
            dims: 16,
            periods,
            scale,
            magnitude: leading(magnitude, 16, HEADS[2] as usize),
        };
        [
            rope(Periods::Base(10_000.0), 1.0, 1.0),
            rope(Periods::Base(1e6), 0.25, 1.0),
            rope(Periods::Listed(powers(5e5)), 1.0, 1.2),
            rope(Periods::Long { original: 300, short: powers(1e4), long: powers(3e4) }, 1.0, 1.1),
            rope(Periods::Dynamic { original: 300, base: 1e4, factor: 4.0 }, 1.0, 1.0),
        ]
        .into_iter()
    }

    #[test]
    fn queries_and_keys_are_rotated_as_mlx_does() {
        with_device(Device::cpu(), || {
            let (tokens, [heads, kv_heads, head_dim]) = (5, HEADS);
            let all = heads + 2 * kv_heads;
            let key = random::key(1).unwrap();
            let qkv = random::uniform::<f32, f32>(-1.0, 1.0, &[2, tokens, all * head_dim], &key).unwrap();
            let still = qkv.reshape(&[2, tokens, all, head_dim]).unwrap().swap_axes(1, 2).unwrap();
            let part = |start, end| slice(&still, 1, start, end).unwrap();
            for rope in ropes() {
                for starts in [[0, 0], [1000, 1000], [295, 3], [7, 4000]] {
                    let lengths = starts.map(|start| (start + tokens) as usize);
                    let offsets = if starts[0] == starts[1] {
                        Offsets::Same(starts[0] as usize)
                    } else {
                        Offsets::Each(Array::from_slice(&starts, &[2]))
                    };
                    let turns = rope.turns(&offsets, tokens as usize, &lengths).unwrap();
                    let how = Arrangement { heads: HEADS, norms: None, turns: Some(&turns) };
                    let ours = arrange(&qkv, &how).unwrap().unwrap();
                    let rotate = |x: Array| rope.forward(&x, &offsets, &lengths).unwrap();
                    let mlx = [
                        rotate(part(0, heads)),
                        rotate(part(heads, heads + kv_heads)),
                        part(heads + kv_heads, all),
                    ];
                    // Both round angles as large as the position to single precision, and then their functions.
                    let tolerance = 2e-6 + 2.5e-7 * lengths[0].max(lengths[1]) as f32;
                    for (ours, mlx) in ours.iter().zip(&mlx) {
                        assert_eq!(ours.shape(), mlx.shape());
                        let far = ours.subtract(mlx).unwrap().abs().unwrap().max(false).unwrap();
                        let far = far.item_exact::<f32>();
                        assert!(far <= tolerance, "{rope:?} from {starts:?}: {far}");
                    }
                }
            }
        });
    }
}
