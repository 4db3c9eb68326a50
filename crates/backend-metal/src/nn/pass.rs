//! One forward pass: which rows it computes, at which positions, and what they may attend to.

use std::{
    collections::{HashMap, hash_map::Entry},
    ptr,
    rc::Rc,
};

use mlx_rs::{
    Array,
    error::{Exception, Result},
    fast::{self, ScaledDotProductAttentionMask as Mask},
    ops,
};

use super::{
    cache::{self, KvCache, Rows, Slots, Span},
    custom::{is_tracing, native},
    native::{self, Turns},
    ops::{scalar, slice},
    parameter::Parameter,
    rope::{Offsets, Rope},
};

/// The rows of a forward pass, shared by all its layers.
pub(crate) struct Pass<'a> {
    rows: Rows<'a>,
    tokens: usize,
    offsets: Offsets,
    lengths: Vec<usize>,
    /// How many of the rows' caches lie together, in their order.
    groups: Vec<usize>,
    masks: Masks,
    /// By a group's first row and what its layers keep.
    slots: HashMap<(usize, Span), Slots>,
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

    /// Whether MLX's fused attention cannot compute it: it caps no scores, and on GPUs has no gradient where there are sinks.
    fn is_stepwise(&self) -> bool {
        self.softcap.is_some() || self.sinks.is_some() && is_tracing()
    }
}

impl<'a> Pass<'a> {
    /// The pass that computes `tokens` `[B, T]`.
    ///
    /// # Errors
    /// Rows and tokens do not go together: see [`Rows`].
    pub(crate) fn new(tokens: &Array, mut rows: Rows<'a>) -> Result<Self> {
        let &[batch, count] = tokens.shape() else {
            return Err(Exception::custom(format!(
                "tokens have the shape {:?}, expected [B, T]",
                tokens.shape()
            )));
        };
        let (offsets, lengths) = match &rows {
            Rows::Uncached => (Offsets::Same(0), vec![count as usize; batch as usize]),
            Rows::Fresh { after, .. } => {
                (Offsets::Same(after.len()), vec![after.len() + count as usize; batch as usize])
            }
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
        let groups = match &mut rows {
            Rows::Cached(caches) => cache::gather(caches, !native())?,
            Rows::Uncached | Rows::Fresh { .. } => Vec::new(),
        };
        Ok(Self {
            rows,
            tokens: count as usize,
            offsets,
            lengths,
            groups,
            masks: Masks::default(),
            slots: HashMap::new(),
            turns: Vec::new(),
        })
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
        let tokens = self.tokens;
        let caches = match &mut self.rows {
            Rows::Cached(caches) => caches,
            Rows::Uncached => return self.masks.mix([queries, keys, values], attend),
            Rows::Fresh { after, kept } => {
                let seen = after.followed_by(layer, [keys, values])?;
                let mixed = self.masks.mix([queries, &seen[0], &seen[1]], attend);
                kept.iter_mut().for_each(|kept| kept.push(seen.clone()));
                return mixed;
            }
        };
        if native()
            && caches.iter().all(|cache| cache.is_straight(layer, tokens))
            && let Some(mixed) = attend_in_place(caches, layer, [queries, keys, values], attend)?
        {
            return Ok(mixed);
        }
        let mut mixed = Vec::with_capacity(self.groups.len());
        let (mut start, mut rest) = (0, &mut caches[..]);
        for size in &self.groups {
            let (group, others) = rest.split_at_mut(*size);
            let end = start + group.len();
            let part = |x: &Array| match others {
                [] if start == 0 => Ok(x.clone()),
                _ => slice(x, 0, start as i32, end as i32),
            };
            let (queries, keys, values) = (part(queries)?, part(keys)?, part(values)?);
            mixed.push(match group {
                [row] => {
                    let gap = row.gap(layer, tokens);
                    let [keys, values] = row.update(layer, [&keys, &values])?;
                    match gap {
                        None => self.masks.mix([&queries, &keys, &values], attend)?,
                        Some(gap) => {
                            flat(&masked(&queries, &keys, &values, attend, Some(&gap.mask(tokens)))?)?
                        }
                    }
                }
                rows => {
                    let slots = match self.slots.entry((start, rows[0].span(layer))) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(unknown) => unknown.insert(Slots::new(rows, layer)?),
                    };
                    let [keys, values] = cache::update(rows, layer, slots, [&keys, &values])?;
                    flat(&masked(&queries, &keys, &values, attend, slots.mask.as_ref())?)?
                }
            });
            (start, rest) = (end, others);
        }
        if let [whole] = &mixed[..] { Ok(whole.clone()) } else { ops::concatenate(&mixed, 0) }
    }

    /// Counts the tokens in the rows' caches, once every layer has taken them.
    pub(crate) fn finish(self) {
        if let Rows::Cached(caches) = self.rows {
            for cache in caches {
                cache.advance(self.tokens);
            }
        }
    }
}

/// What the new tokens of a row see, the same in all layers that hold as many positions.
#[derive(Debug, Default)]
struct Masks {
    /// By the positions held and the window.
    known: HashMap<(i32, i32, Option<usize>), Array>,
}

impl Masks {
    /// Attention of the last T positions to all of them, `[B, kv_heads, S, head_dim]` → `[B, T, heads · head_dim]`.
    fn mix(&mut self, [queries, keys, values]: [&Array; 3], attend: &Attend) -> Result<Array> {
        match native::attend([queries, keys, values], attend) {
            Some(mixed) => mixed,
            None => flat(&self.attend([queries, keys, values], attend)?),
        }
    }

    /// The same with MLX's operations, → `[B, heads, T, head_dim]`.
    fn attend(&mut self, [queries, keys, values]: [&Array; 3], attend: &Attend) -> Result<Array> {
        let (tokens, seen) = (queries.dim(2), keys.dim(2));
        let window = attend.window.filter(|window| (*window as i32) < seen);
        if tokens > 1 && window.is_none() && !attend.is_stepwise() {
            let sinks = attend.sinks.as_ref().map(Parameter::get).transpose()?;
            let (mask, sinks) = (Some(Mask::Causal), sinks.as_ref());
            return fast::scaled_dot_product_attention(queries, keys, values, attend.scale, mask, sinks);
        }
        let needed = tokens > 1 || window.is_some();
        let mask = needed.then(|| self.mask(tokens, seen, window)).transpose()?;
        masked(queries, keys, values, attend, mask.as_ref())
    }

    /// What the last T of `seen` positions see: `[T, seen]`, true where they do.
    fn mask(&mut self, tokens: i32, seen: i32, window: Option<usize>) -> Result<Array> {
        if let Some(mask) = self.known.get(&(tokens, seen, window)) {
            return Ok(mask.clone());
        }
        let keys = ops::arange::<_, i32>(0, seen, None)?.expand_dims(0)?;
        let queries = ops::arange::<_, i32>(seen - tokens, seen, None)?.expand_dims(1)?;
        let mut mask = keys.le(&queries)?;
        if let Some(window) = window {
            mask = mask.logical_and(keys.gt(queries.subtract(Array::from_int(window as i32))?)?)?;
        }
        self.known.insert((tokens, seen, window), mask.clone());
        Ok(mask)
    }
}

/// Attention of new tokens that go straight into the slots of their caches, as one operation of the graph for all rows, →
/// `[B, T, heads · head_dim]`; `None` where the kernels do not know the types.
fn attend_in_place(
    caches: &mut [&mut KvCache],
    layer: usize,
    [queries, keys, values]: [&Array; 3],
    attend: &Attend,
) -> Result<Option<Array>> {
    let (tokens, scheme) = (queries.dim(2) as usize, caches[0].scheme());
    let new = cache::pack([keys, values], scheme)?;
    let places =
        caches.iter_mut().map(|cache| cache.place(layer, tokens, &new)).collect::<Result<Vec<_>>>()?;
    let Some(done) = native::attend_in_place(queries, &new, scheme, &places, attend) else {
        return Ok(None);
    };
    let [mixed, written] = done?;
    let written = Rc::new(written);
    caches.iter_mut().for_each(|cache| cache.placed(layer, written.clone()));
    Ok(Some(mixed))
}

/// `[B, heads, T, head_dim]` → `[B, T, heads · head_dim]`
fn flat(mixed: &Array) -> Result<Array> {
    let mixed = mixed.swap_axes(1, 2)?;
    mixed.reshape(&[mixed.dim(0), mixed.dim(1), -1])
}

/// Attention to what the mask, `[T, S]` or `[B, 1, 1, S]`, lets through, or to all.
fn masked(
    queries: &Array,
    keys: &Array,
    values: &Array,
    attend: &Attend,
    mask: Option<&Array>,
) -> Result<Array> {
    if attend.is_stepwise() {
        return stepwise(queries, keys, values, attend, mask);
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

/// The same, operation by operation: see [`Attend::is_stepwise`].
fn stepwise(
    queries: &Array,
    keys: &Array,
    values: &Array,
    attend: &Attend,
    mask: Option<&Array>,
) -> Result<Array> {
    let &[batch, heads, tokens, head_dim] = queries.shape() else {
        return Err(Exception::custom("queries must be [B, heads, T, head_dim]"));
    };
    let kv_heads = keys.dim(1);
    let shared = heads / kv_heads;
    let number = |value| scalar(value, queries.dtype());
    // Heads that share keys and values lie next to each other.
    let queries =
        queries.multiply(number(attend.scale)?)?.reshape(&[batch, kv_heads, shared, tokens, head_dim])?;
    let (keys, values) = (keys.expand_dims(2)?, values.expand_dims(2)?);
    let mut scores = queries.matmul(keys.swap_axes(-1, -2)?)?;
    if let Some(cap) = attend.softcap {
        scores = ops::tanh(scores.divide(number(cap)?)?)?.multiply(number(cap)?)?;
    }
    let hidden = number(f32::NEG_INFINITY)?;
    scores = match mask {
        Some(mask) if mask.ndim() == 4 => ops::select(&mask.expand_dims(1)?, &scores, hidden)?,
        Some(mask) => ops::select(mask, &scores, hidden)?,
        None => scores,
    };
    let seen = scores.dim(-1);
    if let Some(sinks) = &attend.sinks {
        let sinks = sinks.get()?.as_dtype(scores.dtype())?.reshape(&[kv_heads, shared, 1, 1])?;
        let sinks = ops::broadcast_to(&sinks, &[batch, kv_heads, shared, tokens, 1])?;
        scores = ops::concatenate(&[scores, sinks], -1)?;
    }
    let weights = ops::softmax_axis(&scores, -1, true)?;
    slice(&weights, 4, 0, seen)?.matmul(values)?.reshape(&[batch, heads, tokens, head_dim])
}

/// What MLX makes of one row, `[1, T, heads · head_dim]`.
#[cfg(test)]
pub(super) fn plain(x: [&Array; 3], attend: &Attend) -> Result<Array> {
    flat(&Masks::default().attend(x, attend)?)
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, random, transforms, with_device};

    use super::*;
    use crate::nn::custom::tracing;

    #[test]
    fn sinks_while_gradients_are_traced_are_those_of_the_fused_attention() {
        with_device(Device::cpu(), || {
            let drawn = |seed, shape: &[i32]| {
                random::uniform::<f32, f32>(-1.0, 1.0, shape, &random::key(seed).unwrap()).unwrap()
            };
            let (tokens, heads, kv_heads) = (9, 6, 2);
            let x: Vec<_> = [(1, heads), (2, kv_heads), (3, kv_heads)]
                .map(|(seed, heads)| drawn(seed, &[2, heads, tokens, 8]))
                .into_iter()
                .chain([drawn(4, &[heads])])
                .collect();
            let g = drawn(5, &[2, tokens, heads * 8]);
            for window in [None, Some(4)] {
                let by_each = |mix: &dyn Fn(&[Array]) -> Result<Array>| {
                    let loss = |x: &[Array]| Ok::<_, Exception>(vec![mix(x)?.multiply(&g)?.sum(false)?]);
                    let mut by_each = transforms::value_and_grad_with_argnums(loss, [0, 1, 2, 3].as_slice());
                    let (mut values, gradients) = by_each(&x).unwrap();
                    values.extend(gradients);
                    values
                };
                let how = |x: &[Array]| Attend {
                    window,
                    sinks: Some(Parameter::from(x[3].clone())),
                    ..Attend::all(0.25)
                };
                let ours = by_each(&|x| tracing(|| plain([&x[0], &x[1], &x[2]], &how(x))));
                let fused = by_each(&|x| plain([&x[0], &x[1], &x[2]], &how(x)));
                for (ours, fused) in ours.iter().zip(&fused) {
                    assert_eq!(ours.shape(), fused.shape());
                    let far = ours.subtract(fused).unwrap().abs().unwrap().max(false).unwrap();
                    assert!(far.item_exact::<f32>() < 1e-5, "window {window:?}: {far:?}");
                }
            }
        });
    }
}
