//! One forward pass: which rows it computes, at which positions, and what they may attend to.

use std::collections::HashMap;

use mlx_rs::{
    Array,
    error::{Exception, Result},
    fast::{self, ScaledDotProductAttentionMask as Mask},
    ops,
};

use super::{cache::Rows, ops::scalar, rope::Offsets};

/// The rows of a forward pass, shared by all its layers.
pub(crate) struct Pass<'a> {
    rows: Rows<'a>,
    tokens: usize,
    offsets: Offsets,
    lengths: Vec<usize>,
    masks: HashMap<(i32, Option<usize>), Array>,
}

/// How a layer attends.
#[derive(Debug, Clone)]
pub(crate) struct Attend {
    /// What the products of queries and keys are multiplied by.
    pub(crate) scale: f32,
    /// Positions that a query sees, its own included; `None` is all before it.
    pub(crate) window: Option<usize>,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub(crate) softcap: Option<f32>,
    /// For each head a score that takes part in the softmax and has no value, `[heads]`.
    pub(crate) sinks: Option<Array>,
}

impl Attend {
    /// Attention to all positions before, and nothing more.
    pub(crate) fn all(scale: f32) -> Self {
        Self { scale, window: None, softcap: None, sinks: None }
    }
}

impl<'a> Pass<'a> {
    /// The pass that computes `tokens` `[B, T]`.
    ///
    /// # Errors
    /// Rows and tokens do not go together: see [`Rows`].
    pub(crate) fn new(tokens: &Array, rows: Rows<'a>) -> Result<Self> {
        let &[batch, count] = tokens.shape() else {
            return Err(Exception::custom(format!(
                "tokens have the shape {:?}, expected [B, T]",
                tokens.shape()
            )));
        };
        let (offsets, lengths) = match &rows {
            Rows::Uncached => (Offsets::Same(0), vec![count as usize; batch as usize]),
            Rows::Cached(caches) => {
                if caches.len() != batch as usize || batch == 0 || (batch > 1 && count != 1) {
                    let caches = caches.len();
                    let reason = format!(
                        "{caches} caches for tokens [{batch}, {count}]: several rows take one token each"
                    );
                    return Err(Exception::custom(reason));
                }
                let starts: Vec<_> = caches.iter().map(|cache| cache.len() as i32).collect();
                let offsets = if starts.iter().all(|start| *start == starts[0]) {
                    Offsets::Same(starts[0] as usize)
                } else {
                    Offsets::Each(Array::from_slice(&starts, &[batch]))
                };
                (offsets, caches.iter().map(|cache| cache.length_with(count as usize)).collect())
            }
        };
        Ok(Self { rows, tokens: count as usize, offsets, lengths, masks: HashMap::new() })
    }

    /// Where the tokens of each row begin.
    pub(crate) fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// The length of the text that each row is part of.
    pub(crate) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Attention of one layer: queries `[B, heads, T, head_dim]`, keys and values `[B, kv_heads, T, head_dim]`, which are
    /// added to the rows' caches, → `[B, heads, T, head_dim]`.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        [queries, keys, values]: [&Array; 3],
        attend: &Attend,
    ) -> Result<Array> {
        let mut updated = Vec::new();
        match &mut self.rows {
            Rows::Uncached => return self.attend_row(queries, keys, values, attend),
            Rows::Cached(caches) => {
                let rows = caches.len() as i32;
                let split = |array: &Array| {
                    if rows == 1 { Ok(vec![array.clone()]) } else { array.split_equal(rows, 0) }
                };
                let (keys, values) = (split(keys)?, split(values)?);
                for (cache, (keys, values)) in caches.iter_mut().zip(keys.iter().zip(&values)) {
                    let (cache, position) = cache.layer(layer);
                    updated.push(cache.update(position, keys, values)?);
                }
            }
        }
        if let [[keys, values]] = updated.as_slice() {
            return self.attend_row(queries, keys, values, attend);
        }
        let queries = queries.split_equal(updated.len() as i32, 0)?;
        let rows = queries.iter().zip(&updated);
        let rows: Vec<_> = rows
            .map(|(queries, [keys, values])| self.attend_row(queries, keys, values, attend))
            .collect::<Result<_>>()?;
        ops::concatenate(&rows, 0)
    }

    /// Counts the tokens in the rows' caches, once every layer has taken them.
    pub(crate) fn finish(self) {
        if let Rows::Cached(caches) = self.rows {
            for cache in caches {
                cache.advance(self.tokens);
            }
        }
    }

    fn attend_row(
        &mut self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        attend: &Attend,
    ) -> Result<Array> {
        let (tokens, seen) = (queries.dim(2), keys.dim(2));
        let window = attend.window.filter(|window| (*window as i32) < seen);
        if let Some(cap) = attend.softcap {
            let mask = if tokens == 1 && window.is_none() { None } else { Some(self.mask(seen, window)?) };
            return capped(queries, keys, values, attend.scale, cap, mask.as_ref());
        }
        let windowed = window.map(|_| self.mask(seen, window)).transpose()?;
        let mask = match &windowed {
            Some(mask) => Some(Mask::Array(mask)),
            None => (tokens > 1).then_some(Mask::Causal),
        };
        fast::scaled_dot_product_attention(queries, keys, values, attend.scale, mask, attend.sinks.as_ref())
    }

    /// What the last T of `seen` positions see: `[T, seen]`, true where they do.
    fn mask(&mut self, seen: i32, window: Option<usize>) -> Result<Array> {
        if let Some(mask) = self.masks.get(&(seen, window)) {
            return Ok(mask.clone());
        }
        let keys = ops::arange::<_, i32>(0, seen, None)?.expand_dims(0)?;
        let queries = ops::arange::<_, i32>(seen - self.tokens as i32, seen, None)?.expand_dims(1)?;
        let mut mask = keys.le(&queries)?;
        if let Some(window) = window {
            mask = mask.logical_and(keys.gt(queries.subtract(Array::from_int(window as i32))?)?)?;
        }
        self.masks.insert((seen, window), mask.clone());
        Ok(mask)
    }
}

/// Attention whose scores are capped before the softmax.
fn capped(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    cap: f32,
    mask: Option<&Array>,
) -> Result<Array> {
    let &[batch, heads, tokens, head_dim] = queries.shape() else {
        return Err(Exception::custom("queries must be [B, heads, T, head_dim]"));
    };
    let kv_heads = keys.dim(1);
    let number = |value| scalar(value, queries.dtype());
    // Heads that share keys and values lie next to each other.
    let queries =
        queries.multiply(number(scale)?)?.reshape(&[batch, kv_heads, heads / kv_heads, tokens, head_dim])?;
    let (keys, values) = (keys.expand_dims(2)?, values.expand_dims(2)?);
    let scores = queries.matmul(keys.swap_axes(-1, -2)?)?;
    let scores = ops::tanh(scores.divide(number(cap)?)?)?.multiply(number(cap)?)?;
    let scores = match mask {
        Some(mask) => ops::select(mask, &scores, number(f32::NEG_INFINITY)?)?,
        None => scores,
    };
    let weights = ops::softmax_axis(&scores, -1, true)?;
    weights.matmul(values)?.reshape(&[batch, heads, tokens, head_dim])
}
