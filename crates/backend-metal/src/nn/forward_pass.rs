//! One forward pass: which rows it computes, at which positions, and what they may attend to.

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
    cache::{self, KvCache, Slots, Span},
    cpu::{self, RotaryTable},
    exec::native,
    rope::{Offsets, Rope},
    sdpa::{Masks, flat, masked},
    shared_prefix::SharedPrefix,
};
use crate::mlx::slice;

/// The rows of one forward pass.
#[derive(Debug)]
pub(crate) enum Rows<'a> {
    /// Row `b` of the tokens continues the text of cache `b`, which then holds these tokens too. Either one row with any
    /// number of tokens, or any number of rows with one token each. Neighbours of one [`KvCache::capacity_bucket`] are the fastest.
    Cached(&'a mut [&'a mut KvCache]),
    /// Every row begins at position 0 and nothing is kept. Shorter rows are padded on the right: padding never reaches the
    /// positions before it.
    Uncached,
    /// The same from the end of a text on that all rows begin with. Padding cannot be told from tokens in what is kept.
    Prefixed {
        /// The text: of one row, or of as many as there are.
        prefix: &'a SharedPrefix,
        /// Takes the keys and values, those of the text first.
        store: Option<&'a mut SharedPrefix>,
    },
}

/// The rows of a forward pass, shared by all its layers.
pub(crate) struct ForwardPass<'a> {
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
    turns: Vec<(*const Rope, RotaryTable)>,
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
        let groups = match &mut rows {
            Rows::Cached(caches) => cache::gather(caches, !native())?,
            Rows::Uncached | Rows::Prefixed { .. } => Vec::new(),
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
    pub(super) fn turns(&mut self, rope: &Rope) -> Result<RotaryTable> {
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
        attend: &AttentionParams,
    ) -> Result<Array> {
        let tokens = self.tokens;
        let caches = match &mut self.rows {
            Rows::Cached(caches) => caches,
            Rows::Uncached => return mix(&mut self.masks, [queries, keys, values], attend),
            Rows::Prefixed { prefix, store } => {
                let seen = prefix.followed_by(layer, [keys, values])?;
                let mixed = mix(&mut self.masks, [queries, &seen[0], &seen[1]], attend);
                store.iter_mut().for_each(|store| store.push(seen.clone()));
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
                        None => mix(&mut self.masks, [&queries, &keys, &values], attend)?,
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

/// Attention of the last T positions to all of them, `[B, kv_heads, S, head_dim]` → `[B, T, heads · head_dim]`.
fn mix(masks: &mut Masks, [queries, keys, values]: [&Array; 3], attend: &AttentionParams) -> Result<Array> {
    match cpu::attend([queries, keys, values], attend) {
        Some(mixed) => mixed,
        None => flat(&masks.attend([queries, keys, values], attend)?),
    }
}

/// Attention of new tokens that go straight into the slots of their caches, as one operation of the graph for all rows, →
/// `[B, T, heads · head_dim]`; `None` where the kernels do not know the types.
fn attend_in_place(
    caches: &mut [&mut KvCache],
    layer: usize,
    [queries, keys, values]: [&Array; 3],
    attend: &AttentionParams,
) -> Result<Option<Array>> {
    let (tokens, scheme) = (queries.dim(2) as usize, caches[0].scheme());
    let new = cache::pack([keys, values], scheme)?;
    let places =
        caches.iter_mut().map(|cache| cache.place(layer, tokens, &new)).collect::<Result<Vec<_>>>()?;
    let Some(done) = cpu::attend_in_place(queries, &new, scheme, &places, attend) else {
        return Ok(None);
    };
    let [mixed, written] = done?;
    let written = Rc::new(written);
    caches.iter_mut().for_each(|cache| cache.mark_written(layer, written.clone()));
    Ok(Some(mixed))
}
