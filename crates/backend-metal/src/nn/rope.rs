//! Rotary position embeddings (rope), with every scaling that config.json can ask for.

use std::cell::OnceCell;

use inference_core::Result as LoadResult;
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops,
};
use serde_json::Value;

use super::{
    cpu::RotaryTable,
    rope_scaling::{LongRope, Settings, llama3, longrope, yarn},
    weights::Weights,
};
use crate::mlx::fast::{self, Rotation};

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
    freqs: RopeFreqs,
    /// Whether the pairs that are rotated are neighbours, and not halves of the head.
    interleaved: bool,
    /// Factor of the positions.
    scale: f32,
    /// Factor of queries and keys, `[head_dim]`: of any text, and of those past the length of longrope.
    attention_factors: [Option<Array>; 2],
    /// What [`rotation`](Self::rotation) gives, once it was asked.
    known_rotation: OnceCell<Option<(Array, f32)>>,
}

/// The `freqs` of MLX's rope, `base^(2i / dims)`: the reciprocals of transformers' `inv_freq`.
#[derive(Debug)]
enum RopeFreqs {
    /// Powers of this base.
    Base(f32),
    /// As listed, `[dims / 2]`.
    Listed(Array),
    /// Longrope: `short` for texts up to `original` tokens, `long` beyond.
    Long { original: usize, short: Array, long: Array },
    /// Dynamic NTK: beyond `original` tokens the base grows with the length of the text.
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

    /// The same, of pairs that are neighbours.
    pub(crate) fn interleaved(self) -> Self {
        Self { interleaved: true, ..self }
    }

    /// Whether the pairs that are rotated are neighbours.
    pub(crate) fn is_interleaved(&self) -> bool {
        self.interleaved
    }

    /// Whether positions are rotated by the length of their text.
    pub(crate) fn depends_on_length(&self) -> bool {
        matches!(self.freqs, RopeFreqs::Long { .. } | RopeFreqs::Dynamic { .. })
    }

    /// The length beyond which all positions of a text are rotated another way.
    pub(crate) fn switch(&self) -> Option<usize> {
        match self.freqs {
            RopeFreqs::Long { original, .. } => Some(original),
            _ => None,
        }
    }

    /// Rotates `[B, H, T, head_dim]`; row b is part of a text of `lengths[b]` tokens.
    pub(crate) fn forward(&self, x: &Array, offsets: &Offsets, lengths: &[usize]) -> Result<Array> {
        match &self.freqs {
            RopeFreqs::Base(_) | RopeFreqs::Listed(_) => self.rotate_at_length(x, offsets, 0),
            RopeFreqs::Long { .. } | RopeFreqs::Dynamic { .. } => {
                let alike = lengths.windows(2).all(|pair| pair[0] == pair[1]);
                if let (true, Some(length)) = (alike, lengths.first()) {
                    return self.rotate_at_length(x, offsets, *length);
                }
                let rows = x.split_equal(lengths.len() as i32, 0)?;
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

    /// The radians for each position of each pair of rotated elements, and the factor of queries and keys. `None` if they depend on
    /// the length of the text.
    ///
    /// # Errors
    /// MLX's own.
    pub(crate) fn frequencies(&self) -> Result<Option<(Vec<f32>, f32)>> {
        let pairs = self.dims as usize / 2;
        let frequencies: Vec<f64> = match &self.freqs {
            RopeFreqs::Base(base) => {
                let power = |i: usize| f64::from(*base).powf(-2.0 * i as f64 / f64::from(self.dims));
                (0..pairs).map(power).collect()
            }
            RopeFreqs::Listed(freqs) => {
                let freqs = freqs.to_vec_exact::<f32>().map_err(host)?;
                freqs.into_iter().map(|freq| 1.0 / f64::from(freq)).collect()
            }
            RopeFreqs::Long { .. } | RopeFreqs::Dynamic { .. } => return Ok(None),
        };
        let scaled = frequencies.into_iter().map(|frequency| (frequency * f64::from(self.scale)) as f32);
        Ok(Some((scaled.collect(), self.factor(0)?)))
    }

    /// The [frequencies](Self::frequencies) as an array, `[pairs]`, and the factor of queries and keys.
    ///
    /// # Errors
    /// MLX's own.
    pub(crate) fn rotation(&self) -> Result<Option<&(Array, f32)>> {
        if self.known_rotation.get().is_none() {
            let found = self.frequencies()?.map(|(frequencies, factor)| {
                (Array::from_slice(&frequencies, &[frequencies.len() as i32]), factor)
            });
            // Nobody else can have set it meanwhile.
            let _ = self.known_rotation.set(found);
        }
        Ok(self.known_rotation.get().and_then(Option::as_ref))
    }

    /// The factor of queries and keys of a text of this length, as it is multiplied.
    fn factors(&self, length: usize) -> Option<&Array> {
        let is_long = matches!(self.freqs, RopeFreqs::Long { original, .. } if length > original);
        self.attention_factors[usize::from(is_long)].as_ref()
    }

    /// The factor of queries and keys of a text of this length.
    fn factor(&self, length: usize) -> Result<f32> {
        let factor = self.factors(length).map(Array::to_vec_exact::<f32>).transpose();
        Ok(factor.map_err(host)?.map_or(1.0, |factor| factor[0]))
    }

    /// The rotary table of `tokens` tokens in each row, where row b is part of a text of `lengths[b]` tokens.
    pub(crate) fn table(&self, offsets: &Offsets, tokens: usize, lengths: &[usize]) -> Result<RotaryTable> {
        let pairs = self.dims as usize / 2;
        let starts = match offsets {
            Offsets::Same(start) => vec![*start as i32; lengths.len()],
            Offsets::Each(starts) => starts.to_vec_exact::<i32>().map_err(host)?,
        };
        let powers =
            |base: f64| (0..pairs).map(|i| base.powf(2.0 * i as f64 / f64::from(self.dims)) as f32).collect();
        let mut cos_sin = vec![0.0; lengths.len() * tokens * 2 * pairs];
        let mut rows = cos_sin.chunks_exact_mut((tokens * 2 * pairs).max(1));
        for ((row, start), length) in rows.by_ref().zip(starts).zip(lengths) {
            let freqs: Vec<f32> = match &self.freqs {
                RopeFreqs::Base(base) => powers(f64::from(*base)),
                RopeFreqs::Dynamic { original, base, factor } => {
                    powers(self.dynamic_base(*original, *base, *factor, *length))
                }
                RopeFreqs::Listed(freqs) => freqs.to_vec_exact().map_err(host)?,
                RopeFreqs::Long { original, short, long } => {
                    (if length > original { long } else { short }).to_vec_exact().map_err(host)?
                }
            };
            let attention_factor = self.factor(*length)?;
            for (token, cos_sin) in row.chunks_exact_mut(2 * pairs).enumerate() {
                let position = (start as f32 + token as f32) * self.scale;
                let (cosines, sines) = cos_sin.split_at_mut(pairs);
                for ((cosine, sine), freq) in cosines.iter_mut().zip(sines).zip(&freqs) {
                    let (sin, cos) = (position * (1.0 / freq)).sin_cos();
                    (*cosine, *sine) = (cos * attention_factor, sin * attention_factor);
                }
            }
        }
        Ok(RotaryTable { pairs, cos_sin: cos_sin.into(), interleaved: self.is_interleaved() })
    }

    /// The base for a text of this length.
    fn dynamic_base(&self, original: usize, base: f64, factor: f64, length: usize) -> f64 {
        let (length, dims) = (length.max(original) as f64, f64::from(self.dims));
        let growth = factor * length / original as f64 - (factor - 1.0);
        base * growth.powf(dims / (dims - 2.0))
    }

    fn rotate_at_length(&self, x: &Array, offsets: &Offsets, length: usize) -> Result<Array> {
        let x = match self.factors(length) {
            Some(factors) => &x.multiply(factors.as_dtype(x.dtype())?)?,
            None => x,
        };
        match &self.freqs {
            RopeFreqs::Long { original, short, long } => {
                let freqs = if length > *original { long } else { short };
                self.rotate(x, None, offsets, Some(freqs))
            }
            RopeFreqs::Dynamic { original, base, factor } => {
                let base = self.dynamic_base(*original, *base, *factor, length);
                self.rotate(x, Some(base as f32), offsets, None)
            }
            RopeFreqs::Base(base) => self.rotate(x, Some(*base), offsets, None),
            RopeFreqs::Listed(freqs) => self.rotate(x, None, offsets, Some(freqs)),
        }
    }

    fn rotate(
        &self,
        x: &Array,
        base: Option<f32>,
        offsets: &Offsets,
        freqs: Option<&Array>,
    ) -> Result<Array> {
        let how = Rotation { dims: self.dims, interleaved: self.interleaved, base, scale: self.scale, freqs };
        match offsets {
            Offsets::Same(offset) => fast::rope(x, how, *offset as i32),
            Offsets::Each(each) => fast::rope_each(x, how, each),
        }
    }

    fn build(settings: &Settings<'_>, shape: RopeShape, theta: f64) -> LoadResult<Self> {
        let RopeShape { head_dim, max_positions } = shape;
        if !(theta.is_finite() && theta > 1.0) {
            return Err(settings.invalid("rope_theta", format!("{theta}, expected a number above 1")));
        }
        let kind = settings.text("rope_type").or_else(|| settings.text("type")).unwrap_or("default");
        let rotated = rotated_dims(settings, head_dim)?;
        let dims = if kind == "proportional" { head_dim } else { rotated };
        let powers: Vec<f64> = (0..dims / 2).map(|i| theta.powf(2.0 * i as f64 / dims as f64)).collect();
        let (mut freqs, mut scale, mut factors) = (RopeFreqs::Base(theta as f32), 1.0, [1.0; 2]);
        match kind {
            // For text alone, mrope's separate positions for image and text are the same.
            "default" | "mrope" => {}
            // A part of the pairs, as if all were rotated: the others turn infinitely slowly.
            "proportional" => {
                let factor = settings.number("factor")?.unwrap_or(1.0);
                let pairs = powers.iter().enumerate();
                let slow =
                    pairs.map(|(i, power)| if 2 * i < rotated { power * factor } else { f64::INFINITY });
                freqs = RopeFreqs::Listed(listed(&slow.collect::<Vec<_>>()));
            }
            "linear" => scale = (1.0 / settings.positive("factor")?) as f32,
            "dynamic" => {
                let factor = settings.positive("factor")?;
                if dims < 4 || max_positions == 0 {
                    let reason = "dynamic needs a head_dim above 2 and max_position_embeddings";
                    return Err(settings.invalid("rope_type", reason));
                }
                freqs = RopeFreqs::Dynamic { original: max_positions, base: theta, factor };
            }
            "llama3" => freqs = RopeFreqs::Listed(listed(&llama3(settings, &powers, max_positions)?)),
            "yarn" => {
                let (scaled, attention_factor) = yarn(settings, &powers, theta, max_positions)?;
                (freqs, factors) = (RopeFreqs::Listed(listed(&scaled)), [attention_factor; 2]);
            }
            "longrope" | "su" => {
                let LongRope { original, short, long, attention_factors } =
                    longrope(settings, &powers, max_positions)?;
                (freqs, factors) = (
                    RopeFreqs::Long { original, short: listed(&short), long: listed(&long) },
                    attention_factors,
                );
            }
            other => {
                let known = "default, linear, proportional, dynamic, llama3, yarn, longrope";
                return Err(settings.invalid("rope_type", format!("{other:?}, expected one of {known}")));
            }
        }
        Ok(Self {
            dims: dims as i32,
            freqs,
            interleaved: false,
            scale,
            attention_factors: factors.map(|factor| leading(factor, dims, head_dim)),
            known_rotation: OnceCell::new(),
        })
    }
}

/// How many elements of a head are rotated.
fn rotated_dims(settings: &Settings<'_>, head_dim: usize) -> LoadResult<usize> {
    let partial = settings.number("partial_rotary_factor")?.unwrap_or(1.0);
    let dims = (head_dim as f64 * partial) as usize;
    if !(0.0..=1.0).contains(&partial) || dims == 0 || !dims.is_multiple_of(2) {
        let reason =
            format!("leaves {dims} of {head_dim} elements to rotate, expected a positive even number");
        return Err(settings.invalid("partial_rotary_factor", reason));
    }
    Ok(dims)
}

fn host(error: impl std::fmt::Display) -> Exception {
    Exception::custom(error.to_string())
}

fn listed(freqs: &[f64]) -> Array {
    let freqs: Vec<f32> = freqs.iter().map(|freq| *freq as f32).collect();
    Array::from_slice(&freqs, &[freqs.len() as i32])
}

/// `attention_factor` for the elements that are rotated and 1 for the others.
fn leading(attention_factor: f64, dims: usize, head_dim: usize) -> Option<Array> {
    #[expect(
        clippy::float_cmp,
        reason = "exactly 1 is what the formulas give where there is nothing to multiply"
    )]
    (attention_factor != 1.0).then(|| {
        listed(&(0..head_dim).map(|i| if i < dims { attention_factor } else { 1.0 }).collect::<Vec<_>>())
    })
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, random, with_device};

    use super::*;
    use crate::{
        mlx::slice,
        nn::cpu::{QkNormRope, qk_norm_rope},
    };

    const HEADS: [i32; 3] = [4, 2, 24];

    /// One of each kind, which rotates 16 of 24 elements.
    fn ropes() -> impl Iterator<Item = Rope> {
        let powers = |base: f64| listed(&(0..8).map(|i| base.powf(f64::from(i) / 8.0)).collect::<Vec<_>>());
        let rope = |freqs, scale, attention_factor| Rope {
            dims: 16,
            freqs,
            interleaved: false,
            scale,
            attention_factors: [attention_factor; 2].map(|factor| leading(factor, 16, HEADS[2] as usize)),
            known_rotation: OnceCell::new(),
        };
        [
            rope(RopeFreqs::Base(10_000.0), 1.0, 1.0),
            rope(RopeFreqs::Base(1e6), 0.25, 1.0),
            rope(RopeFreqs::Listed(powers(5e5)), 1.0, 1.2),
            rope(RopeFreqs::Long { original: 300, short: powers(1e4), long: powers(3e4) }, 1.0, 1.1),
            rope(RopeFreqs::Dynamic { original: 300, base: 1e4, factor: 4.0 }, 1.0, 1.0),
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
                    let table = rope.table(&offsets, tokens as usize, &lengths).unwrap();
                    let how = QkNormRope { heads: HEADS, norms: None, rotary: Some(&table), gated: false };
                    let ours = qk_norm_rope(&qkv, &how).unwrap().unwrap();
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
