//! What layers keep of tokens that several rows begin with.

use mlx_rs::{Array, error::Result, ops};

use super::cache::KvCache;
use crate::mlx::{scalar, slice};

/// What each layer keeps of the first S tokens of B rows.
#[derive(Debug, Default)]
pub(crate) struct SharedPrefix {
    len: usize,
    /// The tokens of each row that are not padding; empty where no row has padding.
    lengths: Vec<usize>,
    layers: Vec<PrefixLayer>,
}

/// What one layer keeps.
#[derive(Debug, Clone, Default)]
struct PrefixLayer {
    /// Keys and values `[B, kv_heads, S, head_dim]`.
    kept: Option<[Array; 2]>,
    /// A recurrent state, `[B, ..]` each: that of each row's own length.
    states: Vec<Array>,
}

impl SharedPrefix {
    /// An empty one for rows of these lengths, padded on the right.
    pub(crate) fn of_lengths(lengths: Vec<usize>) -> Self {
        Self { lengths, ..Self::default() }
    }

    /// Tokens of each row, padding included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The tokens of each row that are not padding, where they differ.
    pub(super) fn lengths(&self) -> Option<&[usize]> {
        Some(&self.lengths[..]).filter(|lengths| !lengths.is_empty())
    }

    /// The arrays of these layers, to evaluate them.
    pub(crate) fn arrays(&self, layers: std::ops::Range<usize>) -> Vec<Array> {
        let layers = self.layers.iter().take(layers.end).skip(layers.start);
        layers.flat_map(|layer| layer.kept.iter().flatten().chain(&layer.states)).cloned().collect()
    }

    /// Sets how many tokens are held, once every layer has them.
    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Sets the keys and values of a layer.
    pub(crate) fn set_kept(&mut self, layer: usize, kept: [Array; 2]) {
        self.layer(layer).kept = Some(kept);
    }

    /// Sets the recurrent state of a layer.
    pub(super) fn set_states(&mut self, layer: usize, states: Vec<Array>) {
        self.layer(layer).states = states;
    }

    fn layer(&mut self, layer: usize) -> &mut PrefixLayer {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, PrefixLayer::default());
        }
        &mut self.layers[layer]
    }

    /// The keys and values of one layer, followed by those of new tokens. A single row is repeated for all new rows.
    pub(super) fn followed_by(&self, layer: usize, new: [&Array; 2]) -> Result<[Array; 2]> {
        let Some([keys, values]) = self.layers.get(layer).and_then(|layer| layer.kept.as_ref()) else {
            return Ok(new.map(Array::clone));
        };
        let join = |old: &Array, new: &Array| ops::concatenate(&[&repeated(old, new.dim(0))?, new], 2);
        Ok([join(keys, new[0])?, join(values, new[1])?])
    }

    /// The recurrent state of one layer for so many rows. A single row is repeated. `None` before the first token.
    pub(super) fn states(&self, layer: usize, rows: i32) -> Result<Option<Vec<Array>>> {
        match self.layers.get(layer) {
            Some(layer) if !layer.states.is_empty() => {
                layer.states.iter().map(|state| repeated(state, rows)).collect::<Result<_>>().map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Copies the first `len` tokens of a row to an empty cache. With recurrent states, `len` is the row's whole length.
    pub(crate) fn copy_row(&self, row: usize, len: usize, cache: &mut KvCache) -> Result<()> {
        let (row, end) = (row as i32, len as i32);
        for (index, layer) in self.layers.iter().enumerate() {
            let own = |x: &Array| slice(x, 0, row, row + 1);
            if let Some([keys, values]) = &layer.kept {
                let cut = |x: &Array| slice(&own(x)?, 2, 0, end);
                cache.fill(index, [&cut(keys)?, &cut(values)?])?;
            }
            if !layer.states.is_empty() {
                // A slice would keep the other rows.
                let copy = |x: &Array| own(x)?.multiply(scalar(1.0, x.dtype())?);
                let states = layer.states.iter().map(copy).collect::<Result<_>>()?;
                KvCache::set_states(&mut [&mut *cache], index, states);
            }
        }
        cache.advance(len);
        cache.snapshot();
        Ok(())
    }
}

/// Repeats a single row.
fn repeated(array: &Array, rows: i32) -> Result<Array> {
    let mut shape = array.shape().to_vec();
    shape[0] = rows;
    ops::broadcast_to(array, &shape)
}
