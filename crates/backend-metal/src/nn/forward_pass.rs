//! One forward pass: which rows it computes, at which positions, and how they attend.
//!
//! [`ForwardPass::attend`] chooses the attention of a layer:
//!
//! | rows | tokens | mode | cache write | attention |
//! |---|---|---|---|---|
//! | `Uncached`, `Prefixed` | B × T | any | none | `attention` |
//! | `Cached` | B × 1, or 1 × T that fit the window contiguously | `CpuKernels` | in place | `cpu::attend_in_place` |
//! | `Cached`, one row in its group | 1 × T | any other case | `KvCache::update` | `attention`; `sdpa::masked` with a sink mask |
//! | `Cached`, a group of rows | B × 1 | not `CpuKernels` | `cache::update_batch` | `sdpa::masked` with the mask of slots |
//!
//! `attention` is the CPU's kernel in the modes with CPU kernels, if it knows the types, and otherwise MLX's: the fused one, or
//! operation by operation where that has no soft cap or no gradient ([`AttentionParams::needs_manual`]).

use std::{
    collections::{HashMap, hash_map::Entry},
    ptr,
    rc::Rc,
};

use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops,
};

use super::{
    attention_params::AttentionParams,
    cache::{self, BatchSlots, KvCache, Window},
    cpu::{self, RotaryTable},
    exec::ExecMode,
    rope::{Offsets, Rope},
    sdpa::{Masks, flatten_heads, masked},
    shared_prefix::SharedPrefix,
};
use crate::mlx::slice;

/// The rows of one forward pass.
#[derive(Debug)]
pub(crate) enum Rows<'a> {
    /// Row `b` of the tokens continues the text of cache `b`, which takes these tokens too. Either one row with any number of
    /// tokens, or any number of rows with one token each. Neighbours of equal [`KvCache::capacity_bucket`] are fastest.
    Cached(&'a mut [&'a mut KvCache]),
    /// Every row begins at position 0 and no cache is kept. Shorter rows are padded on the right: padding cannot affect earlier
    /// positions.
    Uncached,
    /// Every row continues a prefix that all rows share. What is stored does not tell padding from tokens.
    Prefixed {
        /// The prefix: of one row, or of as many rows as there are.
        prefix: &'a SharedPrefix,
        /// Takes the keys and values of prefix and tokens.
        store: Option<&'a mut SharedPrefix>,
    },
}

/// The rows of a forward pass, shared by all its layers.
pub(crate) struct ForwardPass<'a> {
    mode: ExecMode,
    rows: Rows<'a>,
    tokens: usize,
    offsets: Offsets,
    lengths: Vec<usize>,
    /// The sizes of the groups of rows that share a buffer, in the rows' order.
    groups: Vec<usize>,
    masks: Masks,
    /// By a group's first row and the layer's window.
    slots: HashMap<(usize, Window), BatchSlots>,
    /// By the address of their rope, which outlives the pass.
    rotary_tables: Vec<(*const Rope, RotaryTable)>,
}

impl<'a> ForwardPass<'a> {
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
            Rows::Prefixed { prefix, .. } => {
                (Offsets::Same(prefix.len()), vec![prefix.len() + count as usize; batch as usize])
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
        let mode = ExecMode::current();
        let groups = match &mut rows {
            Rows::Cached(caches) => cache::regroup(caches, mode != ExecMode::CpuKernels)?,
            Rows::Uncached | Rows::Prefixed { .. } => Vec::new(),
        };
        Ok(Self {
            mode,
            rows,
            tokens: count as usize,
            offsets,
            lengths,
            groups,
            masks: Masks::default(),
            slots: HashMap::new(),
            rotary_tables: Vec::new(),
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

    /// The rotary table of the tokens, computed once for all layers with this rope.
    pub(super) fn rotary_table(&mut self, rope: &Rope) -> Result<RotaryTable> {
        if let Some((_, table)) = self.rotary_tables.iter().find(|(known, _)| ptr::eq(*known, rope)) {
            return Ok(table.clone());
        }
        let table = rope.table(&self.offsets, self.tokens, &self.lengths)?;
        self.rotary_tables.push((rope, table.clone()));
        Ok(table)
    }

    /// Attention of one layer: queries `[B, heads, T, head_dim]`, keys and values `[B, kv_heads, T, head_dim]`, which are
    /// added to the rows' caches, → `[B, T, heads · head_dim]`.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        [queries, keys, values]: [&Array; 3],
        params: &AttentionParams,
    ) -> Result<Array> {
        let tokens = self.tokens;
        let caches = match &mut self.rows {
            Rows::Cached(caches) => caches,
            Rows::Uncached => return attention(&mut self.masks, [queries, keys, values], params),
            Rows::Prefixed { prefix, store } => {
                let seen = prefix.followed_by(layer, [keys, values])?;
                let output = attention(&mut self.masks, [queries, &seen[0], &seen[1]], params);
                store.iter_mut().for_each(|store| store.push(seen.clone()));
                return output;
            }
        };
        if self.mode == ExecMode::CpuKernels
            && caches.iter().all(|cache| cache.fits_contiguously(layer, tokens))
            && let Some(output) = attend_in_place(caches, layer, [queries, keys, values], params)?
        {
            return Ok(output);
        }
        let mut outputs = Vec::with_capacity(self.groups.len());
        let (mut start, mut rest) = (0, &mut caches[..]);
        for size in &self.groups {
            let (group, others) = rest.split_at_mut(*size);
            let end = start + group.len();
            let of_group = |x: &Array| match others {
                [] if start == 0 => Ok(x.clone()),
                _ => slice(x, 0, start as i32, end as i32),
            };
            let (queries, keys, values) = (of_group(queries)?, of_group(keys)?, of_group(values)?);
            outputs.push(match group {
                [row] => {
                    let sink_mask = row.sink_mask(layer, tokens);
                    let [keys, values] = row.update(layer, [&keys, &values])?;
                    match sink_mask {
                        None => attention(&mut self.masks, [&queries, &keys, &values], params)?,
                        Some(sink_mask) => flatten_heads(&masked(
                            &queries,
                            &keys,
                            &values,
                            params,
                            Some(&sink_mask.mask(tokens)),
                        )?)?,
                    }
                }
                rows => {
                    let slots = match self.slots.entry((start, rows[0].window(layer))) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(unknown) => unknown.insert(BatchSlots::new(rows, layer)?),
                    };
                    let [keys, values] = cache::update_batch(rows, layer, slots, [&keys, &values])?;
                    flatten_heads(&masked(&queries, &keys, &values, params, slots.mask.as_ref())?)?
                }
            });
            (start, rest) = (end, others);
        }
        if let [whole] = &outputs[..] { Ok(whole.clone()) } else { ops::concatenate(&outputs, 0) }
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

/// Attention of the last T positions to all of them, `[B, kv_heads, S, head_dim]` → `[B, T, heads · head_dim]`.
fn attention(
    masks: &mut Masks,
    [queries, keys, values]: [&Array; 3],
    params: &AttentionParams,
) -> Result<Array> {
    match cpu::attention([queries, keys, values], params) {
        Some(output) => output,
        None => flatten_heads(&masks.attend([queries, keys, values], params)?),
    }
}

/// Writes new keys and values to the rows' caches in place and attends, as one operation for all rows, → `[B, T, heads · head_dim]`.
/// `None` if the kernels do not know the types.
fn attend_in_place(
    caches: &mut [&mut KvCache],
    layer: usize,
    [queries, keys, values]: [&Array; 3],
    params: &AttentionParams,
) -> Result<Option<Array>> {
    let (tokens, scheme) = (queries.dim(2) as usize, caches[0].scheme());
    let new = cache::quantize_kv([keys, values], scheme)?;
    let slots = caches.iter_mut().map(|cache| cache.slot(layer, tokens, &new)).collect::<Result<Vec<_>>>()?;
    let Some(computed) = cpu::attend_in_place(queries, &new, scheme, &slots, params) else {
        return Ok(None);
    };
    let [output, written] = computed?;
    let written = Rc::new(written);
    caches.iter_mut().for_each(|cache| cache.mark_written(layer, written.clone()));
    Ok(Some(output))
}
