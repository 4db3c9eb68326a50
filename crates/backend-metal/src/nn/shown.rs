//! What a layer shows to the rows of a forward pass, of what it keeps of their texts.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

use mlx_rs::{Array, error::Result};

use super::cache::{self, BatchSlots, KvCache, Window};
use crate::mlx::slice;

/// What some rows of a pass see in a layer that keeps something of every position.
pub(crate) struct Seen<'a> {
    /// Which rows.
    pub(crate) rows: Range<i32>,
    /// What the layer keeps of the positions seen, `[rows, heads, S, ..]` each.
    pub(crate) kept: &'a [Array; 2],
    /// Which of them a token sees.
    pub(crate) visible: Visible<'a>,
}

/// Which of the positions that a layer shows a token sees.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Visible<'a> {
    /// The tokens are the last ones; each sees itself and those before it, in the layer's window.
    Causal,
    /// Where the mask is true, `[T, S]` or `[rows, 1, T, S]`; without one, all.
    Masked(Option<&'a Array>),
}

/// What a layer shows to the rows of a group.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) kept: [Array; 2],
    /// Several rows, or sinks before a window: which of it they see.
    mask: Option<Array>,
    causal: bool,
}

impl Shown {
    pub(super) fn visible(&self) -> Visible<'_> {
        if self.causal { Visible::Causal } else { Visible::Masked(self.mask.as_ref()) }
    }
}

/// Adds the new tokens of a group, which begins with row `start`, to a layer: what it shows then. `counts` says how many of each row's
/// tokens are not padding.
pub(super) fn show(
    slots: &mut HashMap<(usize, Window), BatchSlots>,
    group: &mut [&mut KvCache],
    (start, layer): (usize, usize),
    new: &[Array; 2],
    counts: &[usize],
) -> Result<Shown> {
    let tokens = new[0].dim(2) as usize;
    if let [row] = group {
        let mask = row.sink_mask(layer, tokens).map(|sink_mask| sink_mask.mask(tokens));
        let kept = row.update(layer, [&new[0], &new[1]], counts[0])?;
        return Ok(Shown { kept, causal: mask.is_none(), mask });
    }
    if group[0].len() == 0 {
        cache::fill_batch(group, layer, new, counts)?;
        return Ok(Shown { kept: new.clone(), mask: None, causal: true });
    }
    let slots = match slots.entry((start, group[0].window(layer))) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => unknown.insert(BatchSlots::new(group, layer, tokens)?),
    };
    let kept = cache::update_batch(group, layer, slots, [&new[0], &new[1]])?;
    Ok(Shown { kept, mask: slots.mask.clone(), causal: false })
}

/// Some rows of an array `[B, ..]`.
pub(crate) fn of_rows(x: &Array, rows: Range<i32>) -> Result<Array> {
    if rows == (0..x.dim(0)) { Ok(x.clone()) } else { slice(x, 0, rows.start, rows.end) }
}
