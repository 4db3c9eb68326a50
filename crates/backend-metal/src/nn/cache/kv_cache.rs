//! One row's cache: keys and values, and recurrent states.

use std::{
    cell::{RefCell, RefMut},
    ops::Range,
    rc::Rc,
};

use mlx_rs::{Array, Dtype, error::Result, ops, transforms};

use super::{
    buffers::{KvBuffer, Layer, LayerBuffers, STEP},
    layer_state::LayerState,
    recurrent::{self, RecurrentStates},
    window::{SinkMask, Window},
};
use crate::{
    mlx::{QuantizationScheme, slice},
    nn::cpu::KvSlot,
};

/// The cache of one row: what each layer keeps of the tokens that it has seen. A clone is cheap: both share the memory until one
/// of them continues.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    /// Where each layer's part is.
    parts: Rc<[LayerParts]>,
    /// One for each layer with attention.
    pub(super) windows: Vec<Window>,
    /// How keys and values are quantised.
    pub(super) scheme: Option<QuantizationScheme>,
    /// How many tokens are held.
    pub(super) len: usize,
    /// The length of the whole text, if it was announced.
    expected_len: usize,
    /// The tokens held, if they were pushed.
    pub(super) tokens: Vec<Array>,
    rotation: Option<Rotation>,
    recurrent: RecurrentStates,
    /// The memory of keys and values. Rows of one batch share it, and so do clones.
    pub(super) buffer: Rc<RefCell<KvBuffer>>,
    /// This row's index in the buffer.
    pub(super) row: usize,
}

/// Where a layer's keys and values are among those of all layers, and its recurrent state.
#[derive(Debug, Clone, Copy)]
struct LayerParts {
    attention: Option<usize>,
    recurrent: Option<usize>,
}

/// A rotating cache: it keeps the first `keep` positions and the most recent ones, `size` in total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rotation {
    /// Positions at the beginning.
    pub(crate) keep: usize,
    /// Positions in total.
    pub(crate) size: usize,
}

impl KvCache {
    /// An empty cache of layers with attention, one for each of `windows`: `None` keeps every position, `Some(w)` the last `w`.
    #[must_use]
    pub(crate) fn new(windows: impl IntoIterator<Item = Option<usize>>) -> Self {
        let layers: Vec<_> = windows.into_iter().map(|window| LayerState::attention(window, 0)).collect();
        Self::for_layers(&layers)
    }

    /// An empty cache of these layers.
    #[must_use]
    pub(crate) fn for_layers(layers: &[LayerState]) -> Self {
        let (mut windows, mut recurrent) = (Vec::new(), 0);
        let parts = layers.iter().map(|layer| LayerParts {
            attention: layer.attention.map(|attention| {
                windows.push(Window { size: attention.window, keep: 0 });
                windows.len() - 1
            }),
            recurrent: layer.recurrent.map(|_| {
                recurrent += 1;
                recurrent - 1
            }),
        });
        Self {
            parts: parts.collect(),
            buffer: Rc::new(RefCell::new(KvBuffer::new(windows.len()))),
            row: 0,
            windows,
            scheme: None,
            len: 0,
            expected_len: 0,
            tokens: Vec::new(),
            rotation: None,
            recurrent: RecurrentStates::new(recurrent),
        }
    }

    /// The same as a rotating cache. Layers with a smaller window stay as they are.
    #[must_use]
    pub(crate) fn rotating(mut self, rotation: Rotation) -> Self {
        for window in &mut self.windows {
            if window.size.is_none_or(|size| size > rotation.size) {
                *window = Window { size: Some(rotation.size), keep: rotation.keep };
            }
        }
        self.rotation = Some(rotation);
        self
    }

    /// The same with quantised keys and values. The group size divides the width of a head.
    #[must_use]
    pub(crate) fn quantized(mut self, scheme: Option<QuantizationScheme>) -> Self {
        self.scheme = scheme;
        self
    }

    /// An empty cache of the same kind.
    pub(crate) fn empty_like(&self) -> Self {
        let buffer = Rc::new(RefCell::new(KvBuffer::new(self.windows.len())));
        let recurrent = self.recurrent.empty_like();
        Self { buffer, row: 0, len: 0, expected_len: 0, tokens: Vec::new(), recurrent, ..self.clone() }
    }

    /// How the cache rotates. Caches that differ in it cannot replace each other.
    #[must_use]
    pub(crate) fn rotation(&self) -> Option<Rotation> {
        self.rotation
    }

    /// How many tokens are held, which is the position of the next one.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the buffers and states. The owners of a batch share its bytes.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        let buffer = self.buffer.borrow();
        let arrays = buffer.layers.iter().flat_map(|layer| &layer.arrays);
        arrays.map(|array| array.nbytes() as u64).sum::<u64>() / self.owners() as u64 + self.recurrent.bytes()
    }

    /// Whether the cache can be rewound to its first `len` tokens. It cannot once a window has dropped positions, or if positions
    /// depend on the length of the whole text. Recurrent states go back to their [snapshots](Self::snapshot) alone.
    #[must_use]
    pub(crate) fn can_rewind_to(&self, len: usize) -> bool {
        let whole = |window: &Window| window.size.is_none_or(|size| self.len <= size);
        self.tokens.is_empty()
            && (len == self.len || (len < self.len && self.windows.iter().all(whole)))
            && self.recurrent.reach(self.len, len) == len
    }

    /// The greatest length up to `len` that the cache [can be rewound to](Self::can_rewind_to); 0 where there is none.
    #[must_use]
    pub(crate) fn reach(&self, len: usize) -> usize {
        let reach = self.recurrent.reach(self.len, len);
        if self.can_rewind_to(reach) { reach } else { 0 }
    }

    /// Drops the tokens from position `len` on: see [`can_rewind_to`](Self::can_rewind_to).
    pub(crate) fn rewind(&mut self, len: usize) {
        debug_assert!(self.can_rewind_to(len), "cannot rewind {} tokens to {len}", self.len);
        if len < self.len {
            self.recurrent.rewind(len);
        }
        self.len = len;
    }

    /// Keeps the recurrent states as they are now, so that the cache can be rewound to here.
    pub(crate) fn snapshot(&mut self) {
        self.recurrent.snapshot(self.len);
    }

    /// Goes back to the first `len` tokens from a forward pass of which only the first `layers` layers were asked for. `false`,
    /// and nothing changed, where the other layers cannot go back: a window has dropped positions, or MLX's operations have
    /// made new arrays, which compute the whole pass.
    pub(crate) fn abandon_pass(&mut self, len: usize, layers: usize) -> bool {
        let mut buffer = self.buffer.borrow_mut();
        // Layers without attention have no buffers.
        let asked = self.parts.iter().take(layers).filter(|parts| parts.attention.is_some()).count();
        let shared = buffer.rows > 1;
        let left = &mut buffer.layers[asked..];
        if shared || !self.can_rewind_to(len) || left.iter().any(|layer| !layer.writable) {
            return false;
        }
        for (layer, window) in left.iter_mut().zip(&self.windows[asked..]) {
            // What is written in place and not asked for is never written; or, where other rows ask for it, behind what is copied here.
            if layer.written.take().is_some_and(|written| Rc::strong_count(&written) > 1) {
                let (held, room) = (window.held(len), window.held((len + 1).next_multiple_of(STEP)));
                let Ok(copied) = layer.copy_row(0, held, room) else { return false };
                *layer = copied;
            }
        }
        drop(buffer);
        self.rewind(len);
        true
    }

    /// Announces the length of a text that is computed in chunks. Models whose positions depend on it
    /// (`ModelConfig::length_dependent`) need it: without it, chunks could differ from the whole.
    pub(crate) fn set_expected_len(&mut self, len: usize) {
        self.expected_len = len;
    }

    /// The length of the text with `tokens` more, or the announced one if that is larger.
    pub(crate) fn length_with(&self, tokens: usize) -> usize {
        self.expected_len.max(self.len + tokens)
    }

    /// The length of the text that the held positions were computed for.
    pub(crate) fn length(&self) -> usize {
        self.length_with(0)
    }

    /// Remembers the tokens `[1, T]` that were added last, for [`tokens`](Self::tokens).
    pub(crate) fn push_tokens(&mut self, tokens: Array) {
        self.tokens.push(tokens);
    }

    /// The tokens held, `[1, len]`. All of them must have been pushed.
    pub(crate) fn tokens(&self) -> Result<Array> {
        let tokens = ops::concatenate(&self.tokens, 1)?;
        slice(&tokens, 1, 0, self.len as i32)
    }

    /// The format of keys and values, as text. A cache can import what another one of the same format exported.
    pub(crate) fn format_id(&self) -> String {
        let windows =
            self.windows.iter().map(|window| window.size.map_or("all".to_owned(), |w| w.to_string()));
        let mut format = windows.collect::<Vec<_>>().join(" ");
        if let Some(QuantizationScheme { bits, group_size, .. }) = self.scheme {
            format += &format!(", {bits} bits by {group_size}");
        }
        match self.recurrent.layers() {
            0 => format,
            layers => format!("{format}, {layers} recurrent"),
        }
    }

    /// For each layer its keys and values as they are kept, without spare room, `[1, kv_heads, S, ..]`, and its recurrent state,
    /// `[1, ..]`. Positions in a window are in the order of its slots.
    pub(crate) fn export(&self) -> Result<Vec<Vec<Array>>> {
        let buffer = self.buffer.borrow();
        let row = |array: &Array| slice(array, 0, self.row as i32, self.row as i32 + 1);
        let layer = |parts: &LayerParts| {
            let mut arrays = Vec::new();
            if let Some(attention) = parts.attention {
                let kept = buffer.layers[attention].read(0, self.windows[attention].held(self.len))?;
                arrays = kept.iter().map(row).collect::<Result<_>>()?;
            }
            if let Some(recurrent) = parts.recurrent {
                arrays.extend(self.recurrent.export(recurrent)?);
            }
            Ok(arrays)
        };
        self.parts.iter().map(layer).collect()
    }

    /// The type and shape of each array that a cache like this one would [`export`](Self::export) for `len` tokens. This one
    /// must not be empty.
    pub(crate) fn export_like(&self, len: usize) -> Vec<Vec<(Dtype, Vec<i32>)>> {
        let buffer = self.buffer.borrow();
        let layer = |parts: &LayerParts| {
            let kept = parts.attention.iter().flat_map(|attention| {
                let held = self.windows[*attention].held(len) as i32;
                let like = move |array: &Array| (array.dtype(), vec![1, array.dim(1), held, array.dim(3)]);
                buffer.layers[*attention].arrays.iter().map(like)
            });
            let states = parts.recurrent.iter().flat_map(|recurrent| self.recurrent.layer_arrays(*recurrent));
            let like = |array: &Array| (array.dtype(), [&[1], &array.shape()[1..]].concat());
            kept.chain(states.map(like)).collect()
        };
        self.parts.iter().map(layer).collect()
    }

    /// Takes over what was exported of `len` tokens.
    pub(crate) fn import(&mut self, layers: Vec<Vec<Array>>, len: usize) {
        // Keys and values, or of each elements, scales and biases.
        let kept = if self.scheme.is_some() { 6 } else { 2 };
        let mut buffers = Vec::with_capacity(self.windows.len());
        self.recurrent = self.recurrent.empty_like();
        for (parts, mut arrays) in self.parts.iter().zip(layers) {
            let states = arrays.split_off(if parts.attention.is_some() { kept.min(arrays.len()) } else { 0 });
            if parts.attention.is_some() {
                buffers.push(LayerBuffers::from_views(arrays));
            }
            if let Some(recurrent) = parts.recurrent {
                self.recurrent.set(recurrent, states);
            }
        }
        (self.buffer, self.row) = (Rc::new(RefCell::new(KvBuffer { rows: 1, layers: buffers })), 0);
        self.len = len;
    }

    /// All arrays that it holds, to evaluate them.
    pub(crate) fn arrays(&self) -> Vec<Array> {
        self.layer_arrays(0..self.parts.len())
    }

    /// The arrays of these layers, to evaluate them.
    pub(crate) fn layer_arrays(&self, layers: Range<usize>) -> Vec<Array> {
        let buffer = self.buffer.borrow();
        let last = self.parts.len();
        let mut arrays = Vec::new();
        for parts in &self.parts[layers.start.min(last)..layers.end.min(last)] {
            if let Some(attention) = parts.attention {
                let layer = &buffer.layers[attention];
                arrays.extend(layer.arrays.iter().chain(layer.written.as_deref()).cloned());
            }
            if let Some(recurrent) = parts.recurrent {
                arrays.extend(self.recurrent.layer_arrays(recurrent).iter().cloned());
            }
        }
        arrays
    }

    /// Waits until all that it holds is computed.
    pub(crate) fn evaluate(&self) -> Result<()> {
        transforms::eval(&self.arrays())
    }

    /// The capacity that this row needs in a batched buffer for `tokens` more, a power of two. Only rows of equal capacity and
    /// [`rotation`](Self::rotation) are batched.
    pub(crate) fn capacity_bucket(&self, tokens: usize) -> usize {
        let held = self.windows.iter().map(|window| window.held(self.len + tokens)).max().unwrap_or(0);
        held.next_power_of_two().max(STEP)
    }

    /// Copies what this row has out of a batch into memory of its own.
    pub(crate) fn detach(&mut self) -> Result<()> {
        self.detach_states()?;
        self.detach_buffer()
    }

    /// The same, but keys and values stay in a batch of whose rows at least half are left.
    pub(crate) fn leave_sparse_batch(&mut self) -> Result<()> {
        self.detach_states()?;
        if self.is_in_sparse_batch() { self.detach_buffer() } else { Ok(()) }
    }

    fn detach_states(&mut self) -> Result<()> {
        transforms::async_eval(&self.recurrent.detach()?)
    }

    /// Copies this row's keys and values out of a batch into a buffer of its own.
    pub(super) fn detach_buffer(&mut self) -> Result<()> {
        if self.buffer.borrow().rows == 1 {
            return Ok(());
        }
        let mut layers = Vec::with_capacity(self.windows.len());
        {
            let batch = self.buffer.borrow();
            for (layer, window) in batch.layers.iter().zip(&self.windows) {
                let capacity = window.held((self.len + 1).next_multiple_of(STEP));
                layers.push(layer.copy_row(self.row, window.held(self.len), capacity)?);
            }
        }
        // Now: a copy that is only planned would keep the batch from reusing its memory.
        transforms::async_eval(layers.iter().flat_map(|layer| &layer.arrays))?;
        (self.buffer, self.row) = (Rc::new(RefCell::new(KvBuffer { rows: 1, layers })), 0);
        Ok(())
    }

    /// The window of a layer.
    pub(crate) fn window(&self, layer: usize) -> Window {
        self.windows[self.attention(layer)]
    }

    /// The mask of several new tokens of this row in a layer, where sinks and window do not adjoin.
    pub(crate) fn sink_mask(&self, layer: usize, tokens: usize) -> Option<SinkMask> {
        self.window(layer).sink_mask(self.len, tokens)
    }

    /// Whether writing `tokens` more tokens does not wrap around a layer's window.
    pub(crate) fn fits_contiguously(&self, layer: usize, tokens: usize) -> bool {
        self.window(layer).fits_contiguously(self.len, tokens)
    }

    /// Adds keys and values `[1, kv_heads, T, head_dim]` to a layer, of which the first `count` are not padding, and returns what their
    /// queries attend to, the new ones last: `[1, kv_heads, S, head_dim]`. For T = 1 they are in the order of the slots.
    pub(crate) fn update(&mut self, layer: usize, new: [&Array; 2], count: usize) -> Result<[Array; 2]> {
        let position = self.len;
        self.layer(&mut self.buffer.borrow_mut(), layer).update(position, new, count)
    }

    /// How keys and values are quantised.
    pub(crate) fn scheme(&self) -> Option<QuantizationScheme> {
        self.scheme
    }

    /// Makes room for `tokens` that [fit contiguously](Self::fits_contiguously), and says where an operation writes them. `new`
    /// has the types and sizes to keep.
    pub(crate) fn slot(&mut self, layer: usize, tokens: usize, new: &[Array]) -> Result<KvSlot> {
        let mut buffer = self.buffer.borrow_mut();
        let mut layer = self.layer(&mut buffer, layer);
        layer.make_room(self.len, tokens, new, true)?;
        let Layer { window, buffers, .. } = layer;
        let (slot, held) = (window.slot(self.len), window.held(self.len + tokens));
        Ok(KvSlot { arrays: buffers.arrays.clone(), after: buffers.written.clone(), slot, held })
    }

    /// The same where keys and values like the ones that are held are to be kept, if those are floats and the tokens fit contiguously.
    pub(crate) fn next_slot(&mut self, layer: usize, tokens: usize) -> Result<Option<KvSlot>> {
        let held = self.buffer.borrow().layers[self.attention(layer)].arrays.clone();
        if held.is_empty() || self.scheme.is_some() || !self.fits_contiguously(layer, tokens) {
            return Ok(None);
        }
        self.slot(layer, tokens, &held).map(Some)
    }

    /// Records that `written` is computed after the write to the layer's [`slot`](Self::slot).
    pub(crate) fn mark_written(&mut self, layer: usize, written: Rc<Array>) {
        self.buffer.borrow_mut().layers[self.attention(layer)].written = Some(written);
    }

    pub(super) fn layer<'a>(&self, buffer: &'a mut RefMut<'_, KvBuffer>, layer: usize) -> Layer<'a> {
        let layer = self.attention(layer);
        Layer { window: self.windows[layer], scheme: self.scheme, buffers: &mut buffer.layers[layer] }
    }

    /// The place of a layer's keys and values among those of all layers.
    pub(super) fn attention(&self, layer: usize) -> usize {
        self.parts[layer].attention.expect("a layer that attends says so by its state")
    }

    /// The states of a recurrent layer for these rows: `[rows, ..]` each. `None` before the first token.
    pub(crate) fn states(rows: &[&mut Self], layer: usize) -> Result<Option<Vec<Array>>> {
        let place = rows[0].recurrent_place(layer);
        recurrent::gather(&rows.iter().map(|row| &row.recurrent).collect::<Vec<_>>(), place)
    }

    /// Gives these rows their new states of a recurrent layer: `[rows, ..]` each.
    pub(crate) fn set_states(rows: &mut [&mut Self], layer: usize, states: Vec<Array>) {
        let place = rows[0].recurrent_place(layer);
        recurrent::scatter(rows.iter_mut().map(|row| &mut row.recurrent), place, states);
    }

    fn recurrent_place(&self, layer: usize) -> usize {
        self.parts[layer].recurrent.expect("a layer that is recurrent says so by its state")
    }

    /// Counts `tokens` more, after every layer has taken them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

#[cfg(test)]
mod tests;
