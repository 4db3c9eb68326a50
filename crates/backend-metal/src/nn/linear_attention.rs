//! Linear attention with decay: instead of keys and values, a matrix S for each head.
//!
//! For each token t, with decay g, and k, v, q: the gated delta rule (Yang et al. 2024, arXiv 2412.06464) is
//! `S = exp(g) S; S = S + k ⊗ β (v - Sᵀk); o = Sᵀq`. Without β it is `S = exp(g) S + k ⊗ v; o = Sᵀq`, of which the state space model of
//! Mamba 2 (Dao and Gu 2024, arXiv 2405.21060) is a case.
//!
//! | mode | tokens | computed by |
//! |---|---|---|
//! | `CpuKernels` | any | `cpu::recurrent_layer`, token by token, with all that lies between the projections of a layer |
//! | any other | 1 | MLX, as written above |
//! | any other | T | MLX, in chunks: products within a chunk, and S from chunk to chunk |

use mlx_rs::{Array, Dtype, error::Result, ops};

use super::forward_pass::RecurrentInput;
use crate::mlx::slice;

/// Tokens of a chunk, a power of two.
const CHUNK: i32 = 64;

/// The inputs of linear attention, in single precision.
#[derive(Debug, Clone)]
pub(crate) struct LinearAttention {
    /// `[B, T, key_heads, key_dim]`; each head of queries and keys serves as many neighbouring heads of values.
    pub(crate) queries: Array,
    /// `[B, T, key_heads, key_dim]`
    pub(crate) keys: Array,
    /// `[B, T, heads, value_dim]`
    pub(crate) values: Array,
    /// Logarithms of what is left of the state, `[B, T, heads]`.
    pub(crate) decay: Array,
    /// β of the delta rule, `[B, T, heads]`; without it, values are added as they are.
    pub(crate) beta: Option<Array>,
}

impl LinearAttention {
    /// The output `[B, T, heads, value_dim]`, and the state after the tokens, `[B, heads, key_dim, value_dim]`.
    pub(crate) fn forward(mut self, input: &RecurrentInput, state: Option<&Array>) -> Result<[Array; 2]> {
        let &[batch, tokens, heads, value_dim] = self.values.shape() else { return Err(shape()) };
        let key_dim = self.keys.dim(-1);
        let state = match state {
            Some(state) => state.clone(),
            None => ops::zeros_dtype(&[batch, heads, key_dim, value_dim], Dtype::Float32)?,
        };
        if let Some(lengths) = &input.lengths {
            self.without_padding(lengths)?;
        }
        // Heads first, and those of keys repeated.
        let group = heads / self.keys.dim(2);
        let spread = |x: &Array| {
            let x = x.swap_axes(1, 2)?;
            if group == 1 {
                return Ok(x);
            }
            let x = ops::broadcast_to(x.expand_dims(2)?, &[batch, heads / group, group, tokens, key_dim])?;
            x.reshape(&[batch, heads, tokens, key_dim])
        };
        let (queries, keys) = (spread(&self.queries)?, spread(&self.keys)?);
        let values = self.values.swap_axes(1, 2)?;
        let decay = self.decay.swap_axes(1, 2)?;
        let beta = self.beta.map(|beta| beta.swap_axes(1, 2)).transpose()?;
        let inputs = Heads { queries, keys, values, decay, beta };
        let [output, state] = if tokens == 1 { inputs.step(&state)? } else { inputs.chunked(state)? };
        Ok([output.swap_axes(1, 2)?, state])
    }

    /// Padding neither lets the state decay nor adds to it.
    fn without_padding(&mut self, lengths: &Array) -> Result<()> {
        let tokens = ops::arange::<_, i32>(0, self.values.dim(1), None)?.expand_dims(0)?;
        let is_token = tokens.lt(lengths.expand_dims(1)?)?.expand_dims(2)?.as_dtype(Dtype::Float32)?;
        self.decay = self.decay.multiply(&is_token)?;
        match &mut self.beta {
            Some(beta) => *beta = beta.multiply(&is_token)?,
            None => self.values = self.values.multiply(is_token.expand_dims(3)?)?,
        }
        Ok(())
    }
}

fn shape() -> mlx_rs::error::Exception {
    mlx_rs::error::Exception::custom("values must be [B, T, heads, value_dim]")
}

/// The same with heads first: `[B, heads, T, ..]`.
struct Heads {
    queries: Array,
    keys: Array,
    values: Array,
    decay: Array,
    beta: Option<Array>,
}

impl Heads {
    /// One token.
    fn step(&self, state: &Array) -> Result<[Array; 2]> {
        let state = state.multiply(ops::exp(&self.decay)?.expand_dims(3)?)?;
        let values = match &self.beta {
            Some(beta) => self.values.subtract(self.keys.matmul(&state)?)?.multiply(beta.expand_dims(3)?)?,
            None => self.values.clone(),
        };
        let state = state.add(self.keys.swap_axes(2, 3)?.multiply(&values)?)?;
        Ok([self.queries.matmul(&state)?, state])
    }

    /// Many tokens. Within a chunk, with the sums G of the decay and D = exp(Gᵢ - Gⱼ) for j ≤ i, the values that the delta rule adds
    /// solve (I + N) u = β (v - exp(G) k S), where N is β k kᵀ D below the diagonal.
    fn chunked(self, mut state: Array) -> Result<[Array; 2]> {
        let tokens = self.values.dim(2);
        let size = (tokens as u32).next_power_of_two().min(CHUNK as u32) as i32;
        let Self { queries, keys, values, decay, beta } = self.in_chunks(size)?;
        let sums = ops::cumsum(&decay, 3, None, None)?;
        let at_place = |x: &Array| x.expand_dims(4);
        let row = ops::arange::<_, i32>(0, size, None)?.expand_dims(1)?;
        let column = ops::arange::<_, i32>(0, size, None)?.expand_dims(0)?;
        let mask = |places: Array| places.as_dtype(Dtype::Float32);
        let below = mask(column.lt(&row)?)?;
        // Gᵢ - Gⱼ, summed up: the difference of two sums is less exact.
        let between = ops::exp(ops::cumsum(at_place(&decay)?.multiply(&below)?, 3, None, None)?)?;
        let to_end = slice(&between, 3, size - 1, size)?.swap_axes(3, 4)?;
        let between = between.multiply(mask(column.le(&row)?)?)?;
        let (added, removed) = match &beta {
            None => (values, None),
            Some(beta) => {
                let scaled = keys.multiply(at_place(beta)?)?;
                let n = scaled.matmul(keys.swap_axes(3, 4)?)?.multiply(&between)?.multiply(&below)?;
                let solved = unit_lower_inverse(&n, size)?;
                let removed = solved.matmul(scaled.multiply(at_place(&ops::exp(&sums)?)?)?)?;
                (solved.matmul(values.multiply(at_place(beta)?)?)?, Some(removed))
            }
        };
        let weights = queries.matmul(keys.swap_axes(3, 4)?)?.multiply(&between)?;
        let from_state = queries.multiply(at_place(&ops::exp(&sums)?)?)?;
        let to_state = keys.multiply(to_end)?.swap_axes(3, 4)?;
        let kept = ops::exp(slice(&sums, 3, size - 1, size)?)?;
        let mut outputs = Vec::new();
        for n in 0..weights.dim(2) {
            let chunk = |x: &Array| slice(x, 2, n, n + 1)?.squeeze_axes(&[2]);
            let mut added = chunk(&added)?;
            if let Some(removed) = &removed {
                added = added.subtract(chunk(removed)?.matmul(&state)?)?;
            }
            outputs.push(chunk(&from_state)?.matmul(&state)?.add(chunk(&weights)?.matmul(&added)?)?);
            state = state.multiply(chunk(&kept)?.expand_dims(3)?)?.add(chunk(&to_state)?.matmul(&added)?)?;
        }
        let output = if let [one] = &outputs[..] { one.clone() } else { ops::concatenate(&outputs, 2)? };
        Ok([slice(&output, 2, 0, tokens)?, state])
    }

    /// Padded to whole chunks: `[B, heads, chunks, size, ..]`.
    fn in_chunks(self, size: i32) -> Result<Self> {
        let cut = |x: Array| {
            let (tokens, mut shape) = (x.dim(2), x.shape().to_vec());
            let padding = (size - tokens % size) % size;
            let x = if padding == 0 {
                x
            } else {
                shape[2] = padding;
                ops::concatenate(&[x, ops::zeros_dtype(&shape, Dtype::Float32)?], 2)?
            };
            let whole = [&shape[..2], &[(tokens + padding) / size, size], &shape[3..]].concat();
            x.reshape(&whole)
        };
        Ok(Self {
            queries: cut(self.queries)?,
            keys: cut(self.keys)?,
            values: cut(self.values)?,
            decay: cut(self.decay)?,
            beta: self.beta.map(cut).transpose()?,
        })
    }
}

/// The inverse of I + N, where N `[.., size, size]` has nothing on and above its diagonal: blocks on the diagonal are inverted, and two
/// neighbours make one of twice the size.
fn unit_lower_inverse(n: &Array, size: i32) -> Result<Array> {
    let place = ops::arange::<_, i32>(0, size, None)?;
    let block = |of: i32| place.floor_divide(Array::from_int(of));
    let same = |of: i32| block(of)?.expand_dims(1)?.eq(block(of)?.expand_dims(0)?);
    let mut inverse = same(1)?.as_dtype(Dtype::Float32)?;
    let mut of = 1;
    while of < size {
        let corner = same(2 * of)?.logical_and(same(of)?.logical_not()?)?.as_dtype(Dtype::Float32)?;
        let corner = n.multiply(corner)?;
        let moved = inverse.matmul(corner.matmul(&inverse)?)?;
        inverse = inverse.subtract(moved)?;
        of *= 2;
    }
    Ok(inverse)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use mlx_rs::{Device, random, with_device};

    use super::*;

    fn float(seed: u64, shape: &[i32]) -> Array {
        random::uniform::<f32, f32>(-1.0, 1.0, shape, &random::key(seed).unwrap()).unwrap()
    }

    /// Token by token, in chunks, and with padding.
    #[test]
    fn chunks_are_the_same_as_tokens_one_by_one() {
        with_device(Device::cpu(), || {
            for (tokens, delta, heads) in [(1, true, 4), (150, true, 4), (70, false, 6), (1, false, 2)] {
                let number = Array::from_f32;
                let keys = float(1, &[2, tokens, 2, 16]).multiply(number(0.25)).unwrap();
                let inputs = LinearAttention {
                    queries: float(2, &[2, tokens, 2, 16]),
                    keys,
                    values: float(3, &[2, tokens, heads, 8]),
                    decay: float(4, &[2, tokens, heads]).subtract(number(1.0)).unwrap(),
                    beta: delta.then(|| float(5, &[2, tokens, heads]).abs().unwrap()),
                };
                let state = float(6, &[2, heads, 16, 8]);
                let whole = RecurrentInput { states: None, lengths: None };
                let cut = |x: &Array, rows: Range<i32>, tokens: Range<i32>| {
                    slice(&slice(x, 0, rows.start, rows.end).unwrap(), 1, tokens.start, tokens.end).unwrap()
                };
                let part = |rows: Range<i32>, tokens: Range<i32>| LinearAttention {
                    queries: cut(&inputs.queries, rows.clone(), tokens.clone()),
                    keys: cut(&inputs.keys, rows.clone(), tokens.clone()),
                    values: cut(&inputs.values, rows.clone(), tokens.clone()),
                    decay: cut(&inputs.decay, rows.clone(), tokens.clone()),
                    beta: inputs.beta.as_ref().map(|beta| cut(beta, rows, tokens)),
                };
                let near = |found: &Array, expected: &Array, what: &str| {
                    let far = found.subtract(expected).unwrap().abs().unwrap().max(false).unwrap();
                    assert!(
                        far.item_exact::<f32>() < 1e-5,
                        "{what}: {tokens} tokens, delta {delta}: {far:?}"
                    );
                };
                let [chunked, after] = inputs.clone().forward(&whole, Some(&state)).unwrap();
                let (mut outputs, mut last) = (Vec::new(), state.clone());
                for token in 0..tokens {
                    let [output, next] = part(0..2, token..token + 1).forward(&whole, Some(&last)).unwrap();
                    outputs.push(output);
                    last = next;
                }
                near(&chunked, &ops::concatenate(&outputs, 1).unwrap(), "outputs");
                near(&after, &last, "states");
                // Padding on the right changes neither state nor what comes before it.
                let lengths = Some(Array::from_slice(&[tokens, tokens / 2], &[2]));
                let padded = RecurrentInput { states: None, lengths };
                let half = tokens / 2;
                if half == 0 {
                    continue;
                }
                let own = slice(&state, 0, 1, 2).unwrap();
                let [_, all] = inputs.clone().forward(&padded, Some(&state)).unwrap();
                let [_, short] = part(1..2, 0..half).forward(&whole, Some(&own)).unwrap();
                near(&slice(&all, 0, 1, 2).unwrap(), &short, "padded");
            }
        });
    }
}
