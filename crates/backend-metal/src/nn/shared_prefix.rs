//! Keys and values of tokens that several rows begin with.

use mlx_rs::{Array, error::Result, ops};

use super::cache::KvCache;
use crate::mlx::slice;

/// The keys and values of the first S tokens of B rows: for each layer `[B, kv_heads, S, head_dim]`.
#[derive(Debug, Default)]
pub(crate) struct SharedPrefix {
    layers: Vec<[Array; 2]>,
}

impl SharedPrefix {
    /// Tokens of each row.
    pub(crate) fn len(&self) -> usize {
        self.layers.first().map_or(0, |[keys, _]| keys.dim(2) as usize)
    }

    /// The arrays, to evaluate them.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flatten()
    }

    /// Adds the keys and values of the next layer.
    pub(crate) fn push(&mut self, layer: [Array; 2]) {
        self.layers.push(layer);
    }

    /// The keys and values of one layer, followed by those of new tokens. A single row is repeated for all new rows.
    pub(super) fn followed_by(&self, layer: usize, new: [&Array; 2]) -> Result<[Array; 2]> {
        let [Some(keys), Some(values)] = [0, 1].map(|part| self.layers.get(layer).map(|layer| &layer[part]))
        else {
            return Ok(new.map(Array::clone));
        };
        let join = |old: &Array, new: &Array| {
            let mut shape = old.shape().to_vec();
            shape[0] = new.dim(0);
            ops::concatenate(&[&ops::broadcast_to(old, &shape)?, new], 2)
        };
        Ok([join(keys, new[0])?, join(values, new[1])?])
    }

    /// Copies the first `len` tokens of a row to an empty cache.
    pub(crate) fn copy_row(&self, row: usize, len: usize, cache: &mut KvCache) -> Result<()> {
        let (row, end) = (row as i32, len as i32);
        for (index, layer) in self.layers.iter().enumerate() {
            let cut = |x: &Array| slice(&slice(x, 0, row, row + 1)?, 2, 0, end);
            let (keys, values) = (cut(&layer[0])?, cut(&layer[1])?);
            cache.fill(index, [&keys, &values])?;
        }
        cache.advance(len);
        Ok(())
    }
}
