//! What layers keep of tokens that several rows begin with.

use mlx_rs::{Array, error::Result, ops};

/// What each layer keeps of the first S tokens of B rows.
#[derive(Debug, Default)]
pub(crate) struct SharedPrefix {
    len: usize,
    layers: Vec<PrefixLayer>,
}

/// What one layer keeps.
#[derive(Debug, Clone, Default)]
struct PrefixLayer {
    /// Keys and values `[B, kv_heads, S, head_dim]`.
    kept: Option<[Array; 2]>,
    /// A recurrent state, `[B, ..]` each.
    states: Vec<Array>,
}

impl SharedPrefix {
    /// How many tokens are held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All arrays, to evaluate them.
    pub(crate) fn arrays(&self) -> Vec<Array> {
        self.layers
            .iter()
            .flat_map(|layer| layer.kept.iter().flatten().chain(&layer.states))
            .cloned()
            .collect()
    }

    /// Sets how many tokens are held, once every layer has them.
    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Sets the keys and values of a layer.
    pub(super) fn set_kept(&mut self, layer: usize, kept: [Array; 2]) {
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
}

/// Repeats a single row.
fn repeated(array: &Array, rows: i32) -> Result<Array> {
    let mut shape = array.shape().to_vec();
    shape[0] = rows;
    ops::broadcast_to(array, &shape)
}
