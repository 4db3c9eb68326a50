//! One forward pass: which rows it computes, at which positions, and what they may attend to.

use std::{collections::HashMap, ptr};

use mlx_rs::{
    Array,
    error::{Exception, Result},
    fast::{self, ScaledDotProductAttentionMask as Mask},
    ops,
};

use super::{
    cache::Rows,
    native::{self, Turns},
    ops::scalar,
    parameter::Parameter,
    rope::{Offsets, Rope},
};

/// The rows of a forward pass, shared by all its layers.
pub(crate) struct Pass<'a> {
    rows: Rows<'a>,
    tokens: usize,
    offsets: Offsets,
    lengths: Vec<usize>,
    masks: HashMap<(i32, Option<usize>), Array>,
    /// By the address of their rope, which outlives the pass.
    turns: Vec<(*const Rope, Turns)>,
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
    pub(crate) sinks: Option<Parameter>,
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
        Ok(Self { rows, tokens: count as usize, offsets, lengths, masks: HashMap::new(), turns: Vec::new() })
    }

    /// Where the tokens of each row begin.
    pub(crate) fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// The length of the text that each row is part of.
    pub(crate) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// How this rope rotates the tokens: computed for the first layer that has it.
    pub(super) fn turns(&mut self, rope: &Rope) -> Result<Turns> {
        if let Some((_, turns)) = self.turns.iter().find(|(known, _)| ptr::eq(*known, rope)) {
            return Ok(turns.clone());
        }
        let turns = rope.turns(&self.offsets, self.tokens, &self.lengths)?;
        self.turns.push((rope, turns.clone()));
        Ok(turns)
    }

    /// Attention of one layer: queries `[B, heads, T, head_dim]`, keys and values `[B, kv_heads, T, head_dim]`, which are
    /// added to the rows' caches, → `[B, T, heads · head_dim]`.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        [queries, keys, values]: [&Array; 3],
        attend: &Attend,
    ) -> Result<Array> {
        let mut updated = Vec::new();
        let mut gap = None;
        match &mut self.rows {
            Rows::Uncached => updated.push([keys.clone(), values.clone()]),
            Rows::Cached(caches) => {
                let rows = caches.len() as i32;
                let split = |array: &Array| {
                    if rows == 1 { Ok(vec![array.clone()]) } else { array.split_equal(rows, 0) }
                };
                let (keys, values) = (split(keys)?, split(values)?);
                for (cache, (keys, values)) in caches.iter_mut().zip(keys.iter().zip(&values)) {
                    let (cache, position) = cache.layer(layer);
                    gap = cache.gap(position, self.tokens);
                    updated.push(cache.update(position, keys, values)?);
                }
            }
        }
        if let (Some(gap), [[keys, values]]) = (gap, &updated[..]) {
            let mask = gap.mask(self.tokens);
            let mixed = masked(queries, keys, values, attend, Some(&mask))?.swap_axes(1, 2)?;
            return mixed.reshape(&[mixed.dim(0), mixed.dim(1), -1]);
        }
        let rows: Vec<_> = updated.iter().map(|[keys, values]| [keys, values]).collect();
        if let Some(mixed) = native::attend(queries, &rows, attend) {
            return mixed;
        }
        let mixed = self.attend_rows(queries, &updated, attend)?.swap_axes(1, 2)?;
        mixed.reshape(&[mixed.dim(0), mixed.dim(1), -1])
    }

    /// The same with MLX's operations, of rows with these keys and values, → `[B, heads, T, head_dim]`.
    fn attend_rows(&mut self, queries: &Array, updated: &[[Array; 2]], attend: &Attend) -> Result<Array> {
        if let [[keys, values]] = updated {
            return self.attend_row(queries, keys, values, attend);
        }
        let queries = queries.split_equal(updated.len() as i32, 0)?;
        let rows = queries.iter().zip(updated);
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
        let causal = tokens > 1 && window.is_none() && attend.softcap.is_none();
        if causal {
            let sinks = attend.sinks.as_ref().map(Parameter::get).transpose()?;
            let (mask, sinks) = (Some(Mask::Causal), sinks.as_ref());
            return fast::scaled_dot_product_attention(queries, keys, values, attend.scale, mask, sinks);
        }
        let needed = tokens > 1 || window.is_some();
        let mask = needed.then(|| self.mask(seen, window)).transpose()?;
        masked(queries, keys, values, attend, mask.as_ref())
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

/// Attention to what the mask `[T, S]` lets through, or to all.
fn masked(
    queries: &Array,
    keys: &Array,
    values: &Array,
    attend: &Attend,
    mask: Option<&Array>,
) -> Result<Array> {
    if let Some(cap) = attend.softcap {
        return capped(queries, keys, values, attend.scale, cap, mask);
    }
    let sinks = attend.sinks.as_ref().map(Parameter::get).transpose()?;
    fast::scaled_dot_product_attention(
        queries,
        keys,
        values,
        attend.scale,
        mask.map(Mask::Array),
        sinks.as_ref(),
    )
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

/// What MLX makes of one row, `[1, T, heads · head_dim]`.
#[cfg(test)]
pub(super) fn plain([queries, keys, values]: [&Array; 3], attend: &Attend) -> Result<Array> {
    let tokens = Array::from_slice(&vec![0_u32; queries.dim(2) as usize], &[1, queries.dim(2)]);
    let mut pass = Pass::new(&tokens, Rows::Uncached)?;
    let mixed = pass.attend_row(queries, keys, values, attend)?.swap_axes(1, 2)?;
    mixed.reshape(&[1, queries.dim(2), -1])
}
