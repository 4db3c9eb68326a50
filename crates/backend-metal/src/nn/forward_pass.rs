//! One forward pass: which rows it computes, at which positions, and how they attend.
//!
//! [`ForwardPass::attend`] chooses the attention of a layer. [`ForwardPass::extend`] does the same for layers that compute their
//! attention themselves: of these the column "attention" says what they are given. [`ForwardPass::recur`] steps a recurrent state, of all
//! rows at once.
//!
//! Cached rows have a position, where their tokens begin, and a length, how many of the T tokens are theirs; padding lies behind those.
//! Products, norms and rotary embeddings take all rows as one array, and attention sees padding as tokens that come later, which nobody
//! asks for. What a row keeps, keys and values as well as recurrent states, is that of its own tokens.
//!
//! A pass of few tokens may be [recorded](super::cpu::Recording) on the CPU: then [`ForwardPass::slots`] gives the places of its keys and values.
//!
//! | rows | tokens | mode | cache write | attention |
//! |---|---|---|---|---|
//! | `Uncached`, `Prefixed` | B × T | any | none | `attention` |
//! | `Packed` | N × 1, the tokens of all texts | any | none | `packed::attend` |
//! | `Cached` | B × T that fit the window contiguously | `CpuKernels` | in place | `cpu::attend_in_place` |
//! | `Cached`, one row in its group | 1 × T | any other case | `KvCache::update` | `attention`; `sdpa::masked` with a sink mask |
//! | `Cached`, a group of empty rows | B × T | any other case | `cache::fill_batch` | `attention` to the tokens themselves |
//! | `Cached`, a group of rows | B × T that fit the windows contiguously | not `CpuKernels` | `cache::update_batch` | `sdpa::masked` with the mask of slots |
//!
//! `attention` is the CPU's kernel in the modes with CPU kernels, if it knows the types, and otherwise MLX's: the fused one, or
//! operation by operation where that has no soft cap or no gradient ([`AttentionParams::needs_manual`]).

use std::{collections::HashMap, ptr, rc::Rc};

use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops,
};

use super::{
    attention_params::AttentionParams,
    cache::{self, BatchSlots, KvCache, Window},
    cpu::{self, KvSlot, RotaryTable},
    exec::ExecMode,
    packed::{self, PackedTokens},
    rope::{Offsets, Rope},
    sdpa::{Masks, flatten_heads, masked},
    shared_prefix::SharedPrefix,
    shown::{Seen, Shown, Visible, of_rows, show},
};
use crate::mlx::slice;

/// The rows of one forward pass.
#[derive(Debug)]
pub(crate) enum Rows<'a> {
    /// Row `b` of the tokens continues the text of cache `b`, which takes these tokens too. Neighbours of equal
    /// [`KvCache::capacity_bucket`] are fastest.
    Cached {
        caches: &'a mut [&'a mut KvCache],
        /// How many tokens of each row are not padding, which is on the right; `None` is all.
        lengths: Option<&'a [usize]>,
    },
    /// Every row begins at position 0 and no cache is kept. Shorter rows are padded on the right: padding cannot affect earlier
    /// positions.
    Uncached,
    /// Every row continues a prefix that all rows share. Rows may be padded on the right, as in `Uncached`.
    Prefixed {
        /// The prefix: of one row, or of as many rows as there are.
        prefix: &'a SharedPrefix,
        /// Takes what the layers keep of prefix and tokens, of rows without padding.
        store: Option<&'a mut SharedPrefix>,
    },
    /// Every token is a row, `[N, 1]`: whole texts one after the other, without padding. No cache is kept.
    Packed(&'a PackedTokens),
}

impl<'a> Rows<'a> {
    /// Rows without padding: see [`Cached`](Self::Cached).
    pub(crate) fn cached(caches: &'a mut [&'a mut KvCache]) -> Self {
        Self::Cached { caches, lengths: None }
    }
}

/// The rows of a forward pass, shared by all its layers.
pub(crate) struct ForwardPass<'a> {
    mode: ExecMode,
    rows: Rows<'a>,
    tokens: usize,
    /// How many tokens of each row are not padding; empty where caches are not kept.
    counts: Vec<usize>,
    offsets: Offsets,
    lengths: Vec<usize>,
    /// The sizes of the groups of rows that share a buffer, in the rows' order.
    groups: Vec<usize>,
    masks: Masks,
    /// By a group's first row and the layer's window.
    slots: HashMap<(usize, Window), BatchSlots>,
    /// By layer, the new keys and values of those that later layers share.
    shared: HashMap<usize, [Array; 2]>,
    /// By layer and a group's first row, what those show.
    shown: HashMap<(usize, usize), Shown>,
    /// What each layer gets besides the residual stream: `[B, T, layers, width]`.
    layer_inputs: Option<Array>,
    /// By the address of their rope, which outlives the pass.
    rotary_tables: Vec<(*const Rope, RotaryTable)>,
    /// What [`starts`](Self::starts) gives, once it was asked.
    known_starts: Option<Array>,
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
        let (mode, tokens) = (ExecMode::current(), count as usize);
        let (mut counts, mut groups) = (Vec::new(), Vec::new());
        let (offsets, lengths) = match &mut rows {
            Rows::Uncached => (Offsets::Same(0), vec![tokens; batch as usize]),
            Rows::Prefixed { prefix, .. } => {
                (Offsets::Same(prefix.len()), vec![prefix.len() + tokens; batch as usize])
            }
            Rows::Packed(texts) => (texts.offsets(batch, count)?, texts.row_lengths()),
            Rows::Cached { caches, lengths } => {
                counts = lengths.map_or_else(|| vec![tokens; caches.len()], <[usize]>::to_vec);
                let fit = counts.iter().all(|count| (1..=tokens).contains(count));
                if batch == 0 || [caches.len(), counts.len()] != [batch as usize; 2] || !fit {
                    let caches = caches.len();
                    let reason =
                        format!("{caches} caches, {counts:?} tokens each, for tokens [{batch}, {count}]");
                    return Err(Exception::custom(reason));
                }
                if tokens > 1 {
                    caches.iter_mut().for_each(|cache| cache.snapshot());
                }
                groups = cache::regroup(caches, tokens, mode != ExecMode::CpuKernels)?;
                let lengths = caches.iter().zip(&counts).map(|(cache, count)| cache.length_with(*count));
                (offsets_of(caches), lengths.collect())
            }
        };
        Ok(Self {
            mode,
            rows,
            tokens,
            counts,
            offsets,
            lengths,
            groups,
            masks: Masks::default(),
            slots: HashMap::new(),
            shared: HashMap::new(),
            shown: HashMap::new(),
            layer_inputs: None,
            rotary_tables: Vec::new(),
            known_starts: None,
        })
    }

    /// Whether whole texts lie one after the other: see [`Rows::Packed`].
    pub(crate) fn is_packed(&self) -> bool {
        matches!(self.rows, Rows::Packed(_))
    }

    /// Where the tokens of each row begin.
    pub(crate) fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// Where the tokens of each row begin, `[B]` (i32).
    pub(crate) fn starts(&mut self) -> Array {
        let (offsets, rows) = (&self.offsets, self.lengths.len());
        let starts = self.known_starts.get_or_insert_with(|| match offsets {
            Offsets::Same(start) => Array::from_slice(&vec![*start as i32; rows], &[rows as i32]),
            Offsets::Each(starts) => starts.clone(),
        });
        starts.clone()
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
        if let Rows::Packed(texts) = &self.rows {
            return packed::attend(texts, [queries, keys, values], params);
        }
        if params.both_ways || params.bias.is_some() {
            return Err(Exception::custom("attention to later positions needs whole texts"));
        }
        if let Some(chunk) = params.chunk
            && self.outgrows(chunk, layer)
        {
            return self.attend_in_chunk(layer, [queries, keys, values], params, chunk);
        }
        if let Rows::Cached { caches, .. } = &mut self.rows
            && self.mode == ExecMode::CpuKernels
            && caches.iter().all(|cache| cache.fits_contiguously(layer, tokens))
            && let Some(output) = attend_in_place(caches, layer, [queries, keys, values], params)?
        {
            return Ok(output);
        }
        self.extend(layer, [keys, values], |masks, Seen { rows, kept: [keys, values], visible }| {
            let queries = of_rows(queries, rows)?;
            match visible {
                Visible::Causal => attention(masks, [&queries, keys, values], params),
                Visible::Masked(mask) => flatten_heads(&masked(&queries, keys, values, params, mask)?),
            }
        })
    }

    /// Whether a text is longer than a chunk. What a rotating cache keeps is seen whatever the chunks are.
    fn outgrows(&self, chunk: usize, layer: usize) -> bool {
        if let Rows::Cached { caches, .. } = &self.rows
            && caches.iter().any(|cache| cache.window(layer).is_limited())
        {
            return false;
        }
        self.lengths.iter().any(|length| *length > chunk)
    }

    /// Attention of queries to the positions of their own chunks.
    fn attend_in_chunk(
        &mut self,
        layer: usize,
        [queries, keys, values]: [&Array; 3],
        params: &AttentionParams,
        chunk: usize,
    ) -> Result<Array> {
        let tokens = ops::arange::<_, i32>(0, self.tokens as i32, None)?;
        let positions =
            self.starts().expand_dims(1)?.add(tokens.expand_dims(0)?)?.expand_dims_axes(&[1, 3])?;
        let size = Array::from_int(chunk as i32);
        let first = positions.floor_divide(&size)?.multiply(&size)?;
        self.extend(layer, [keys, values], |_, Seen { rows, kept: [keys, values], .. }| {
            // All positions are kept, each at its place.
            let places = ops::arange::<_, i32>(0, keys.dim(2), None)?;
            let (positions, first) = (of_rows(&positions, rows.clone())?, of_rows(&first, rows.clone())?);
            let mask = places.le(&positions)?.logical_and(places.ge(&first)?)?;
            flatten_heads(&masked(&of_rows(queries, rows)?, keys, values, params, Some(&mask))?)
        })
    }

    /// Where keys and values of the new tokens go in a layer, for each row; `None` where nothing was kept as floats before, or the tokens do
    /// not fit contiguously.
    pub(super) fn slots(&mut self, layer: usize) -> Option<Result<Vec<KvSlot>>> {
        let (Rows::Cached { caches, .. }, tokens) = (&mut self.rows, self.tokens) else { return None };
        caches.iter_mut().map(|cache| cache.next_slot(layer, tokens).transpose()).collect()
    }

    /// Where each token of the rows is in its text.
    pub(super) fn positions(&self) -> Result<Vec<usize>> {
        let starts = match &self.offsets {
            Offsets::Same(start) => vec![*start as i32; self.lengths.len()],
            Offsets::Each(starts) => {
                starts.to_vec_exact::<i32>().map_err(|error| Exception::custom(error.to_string()))?
            }
        };
        let tokens = |start: i32| (0..self.tokens).map(move |token| start as usize + token);
        Ok(starts.into_iter().flat_map(tokens).collect())
    }

    /// The states of a recurrent layer, `[B, ..]` each, if the rows have caches; `None` in them before the first token.
    pub(super) fn states(&mut self, layer: usize) -> Option<Result<Option<Vec<Array>>>> {
        let Rows::Cached { caches, .. } = &self.rows else { return None };
        Some(KvCache::states(caches, layer))
    }

    /// Keeps the states of a recurrent layer after the tokens.
    pub(super) fn set_states(&mut self, layer: usize, states: Vec<Array>) {
        if let Rows::Cached { caches, .. } = &mut self.rows {
            KvCache::set_states(caches, layer, states);
        }
    }

    /// How many tokens of each row are not padding, where any are.
    pub(super) fn padded_counts(&self) -> Option<Vec<i32>> {
        let is_padded = self.counts.iter().any(|count| *count < self.tokens);
        is_padded.then(|| self.counts.iter().map(|count| *count as i32).collect())
    }

    /// Records that `written` is computed after the writes to a layer's [`slots`](Self::slots).
    pub(super) fn mark_written(&mut self, layer: usize, written: &Rc<Array>) {
        if let Rows::Cached { caches, .. } = &mut self.rows {
            caches.iter_mut().for_each(|cache| cache.mark_written(layer, written.clone()));
        }
    }

    /// As [`attend`](Self::attend), and later layers may share the keys and values.
    pub(crate) fn attend_and_share(
        &mut self,
        layer: usize,
        [queries, keys, values]: [&Array; 3],
        params: &AttentionParams,
    ) -> Result<Array> {
        self.shared.insert(layer, [keys.clone(), values.clone()]);
        self.attend(layer, [queries, keys, values], params)
    }

    /// Attention to the keys and values of an earlier layer.
    pub(crate) fn attend_shared(
        &mut self,
        layer: usize,
        queries: &Array,
        params: &AttentionParams,
    ) -> Result<Array> {
        let Some([keys, values]) = self.shared.get(&layer).cloned() else {
            return Err(Exception::custom(format!("layer {layer} shares no keys and values in this pass")));
        };
        // They are written once more, to where they are.
        self.attend(layer, [queries, &keys, &values], params)
    }

    /// Sets what each layer gets besides the residual stream: `[B, T, layers, width]`.
    pub(crate) fn set_layer_inputs(&mut self, inputs: Array) {
        self.layer_inputs = Some(inputs);
    }

    /// What this layer gets besides the residual stream: `[B, T, width]`.
    pub(crate) fn layer_input(&self, layer: usize) -> Result<Option<Array>> {
        let layer = layer as i32;
        let own = |inputs: &Array| slice(inputs, 2, layer, layer + 1)?.squeeze_axes(&[2]);
        self.layer_inputs.as_ref().map(own).transpose()
    }

    /// Adds to the rows' caches what a layer keeps of the new tokens: two arrays `[B, heads, T, ..]`, keys and values or what
    /// stands for them. `attend` computes the attention of some of the rows, and is called until all have theirs.
    pub(crate) fn extend(
        &mut self,
        layer: usize,
        new: [&Array; 2],
        mut attend: impl FnMut(&mut Masks, Seen<'_>) -> Result<Array>,
    ) -> Result<Array> {
        let all = 0..new[0].dim(0);
        let caches = match &mut self.rows {
            Rows::Cached { caches, .. } => caches,
            Rows::Packed(_) => return Err(Exception::custom(NOT_PACKED)),
            Rows::Uncached => {
                let kept = new.map(Array::clone);
                return attend(&mut self.masks, Seen { rows: all, kept: &kept, visible: Visible::Causal });
            }
            Rows::Prefixed { prefix, store } => {
                let kept = prefix.followed_by(layer, new)?;
                let output =
                    attend(&mut self.masks, Seen { rows: all, kept: &kept, visible: Visible::Causal });
                store.iter_mut().for_each(|store| store.set_kept(layer, kept.clone()));
                return output;
            }
        };
        let mut outputs = Vec::with_capacity(self.groups.len());
        let (mut start, mut rest) = (0, &mut caches[..]);
        for size in &self.groups {
            let (group, others) = rest.split_at_mut(*size);
            let end = start + group.len();
            let rows = start as i32..end as i32;
            let new = [of_rows(new[0], rows.clone())?, of_rows(new[1], rows.clone())?];
            let shown = match self.shown.get(&(layer, start)) {
                Some(shown) => shown.clone(),
                None => show(&mut self.slots, group, (start, layer), &new, &self.counts[start..end])?,
            };
            outputs
                .push(attend(&mut self.masks, Seen { rows, kept: &shown.kept, visible: shown.visible() })?);
            if self.shared.contains_key(&layer) {
                self.shown.insert((layer, start), shown);
            }
            (start, rest) = (end, others);
        }
        if let [whole] = &outputs[..] { Ok(whole.clone()) } else { ops::concatenate(&outputs, 0) }
    }

    /// One step of a recurrent layer. `step` gets the state before the tokens, `[B, ..]` each or `None` before the first token, and
    /// gives its output and the state after the tokens.
    pub(crate) fn recur(
        &mut self,
        layer: usize,
        step: impl FnOnce(RecurrentInput) -> Result<Step>,
    ) -> Result<Array> {
        let padded = self.padded_counts();
        match &mut self.rows {
            Rows::Packed(_) => Err(Exception::custom(NOT_PACKED)),
            Rows::Uncached => Ok(step(RecurrentInput { states: None, lengths: None })?.0),
            Rows::Cached { caches, .. } => {
                let states = KvCache::states(caches, layer)?;
                let lengths = padded.map(|counts| Array::from_slice(&counts, &[counts.len() as i32]));
                let (output, states) = step(RecurrentInput { states, lengths })?;
                KvCache::set_states(caches, layer, states);
                Ok(output)
            }
            Rows::Prefixed { prefix, store } => {
                let states = prefix.states(layer, self.lengths.len() as i32)?;
                let (output, states) = step(RecurrentInput { states, lengths: None })?;
                store.iter_mut().for_each(|store| store.set_states(layer, states.clone()));
                Ok(output)
            }
        }
    }

    /// Counts the tokens in the rows' caches, once every layer has taken them.
    pub(crate) fn finish(self) {
        match self.rows {
            Rows::Cached { caches, .. } => {
                for (cache, count) in caches.iter_mut().zip(self.counts) {
                    cache.advance(count);
                    if self.tokens > 1 {
                        cache.snapshot();
                    }
                }
            }
            Rows::Prefixed { prefix, store: Some(store) } => store.set_len(prefix.len() + self.tokens),
            Rows::Prefixed { .. } | Rows::Uncached | Rows::Packed(_) => {}
        }
    }
}

/// Where the next tokens of these rows begin.
fn offsets_of(caches: &[&mut KvCache]) -> Offsets {
    let starts: Vec<_> = caches.iter().map(|cache| cache.len() as i32).collect();
    if starts.iter().all(|start| *start == starts[0]) {
        Offsets::Same(starts[0] as usize)
    } else {
        Offsets::Each(Array::from_slice(&starts, &[starts.len() as i32]))
    }
}

const NOT_PACKED: &str = "layers of this kind need rows of their own, not texts one after the other";

/// What a recurrent layer computes: its output, and the state after the tokens.
pub(crate) type Step = (Array, Vec<Array>);

/// What a recurrent layer computes a step from.
#[derive(Debug)]
pub(crate) struct RecurrentInput {
    /// The state before the tokens.
    pub(crate) states: Option<Vec<Array>>,
    /// How many tokens of each row are not padding, `[B]` (i32); `None` is all. Padding must not change the state.
    pub(crate) lengths: Option<Array>,
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

/// Writes new keys and values to the rows' caches in place, padding behind each row's own, and attends, as one operation for all rows, →
/// `[B, T, heads · head_dim]`.
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
