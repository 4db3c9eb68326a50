//! One row's cache: keys and values, and recurrent states.

use std::{
    cell::{RefCell, RefMut},
    ops::Range,
    rc::Rc,
};

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops, transforms,
};

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
    tokens: Vec<Array>,
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

    /// Bytes of the buffers and states.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        let buffer = self.buffer.borrow();
        let arrays = buffer.layers.iter().flat_map(|layer| &layer.arrays);
        arrays.map(|array| array.nbytes() as u64).sum::<u64>() / buffer.rows as u64 + self.recurrent.bytes()
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
        let left = &mut buffer.layers[asked..];
        if !self.can_rewind_to(len) || left.iter().any(|layer| !layer.writable) {
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
        transforms::async_eval(&self.recurrent.detach()?)?;
        self.detach_buffer()
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

    /// Sets the first tokens of an empty layer: keys and values `[1, kv_heads, T, head_dim]`, which may be views of a batch.
    pub(crate) fn fill(&mut self, layer: usize, new: [&Array; 2]) -> Result<()> {
        debug_assert_eq!(self.len, 0, "the cache is not empty");
        self.layer(&mut self.buffer.borrow_mut(), layer).fill(new)
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

    /// Whether keys and values may be lent: there are some, as they were computed, each in the slot of its position or of its position
    /// modulo the window.
    pub(crate) fn can_lend(&self) -> bool {
        self.len > 0 && self.scheme.is_none() && self.rotation.is_none() && self.tokens.is_empty()
    }

    /// Makes room for one token more, and lends the memory to whoever computes beside MLX: keys and values of each layer,
    /// `[1, kv_heads, capacity, head_dim]`. Who borrows writes in place, and counts tokens with [`advance`](Self::advance). MLX may
    /// read or write them again once those writes are done and the arrays that are returned are dropped.
    pub(crate) fn lend(&mut self) -> Result<Vec<[Array; 2]>> {
        debug_assert!(self.can_lend(), "such a cache is not lent");
        self.make_unique()?;
        let mut buffer = self.buffer.borrow_mut();
        let mut lent = Vec::with_capacity(self.windows.len());
        for index in 0..self.windows.len() {
            let like = buffer.layers[index].arrays.clone();
            let mut layer = self.layer(&mut buffer, index);
            layer.make_room(self.len, 1, &like, true)?;
            match layer.buffers.arrays.as_slice() {
                [keys, values] => lent.push([keys.clone(), values.clone()]),
                _ => return Err(Exception::custom("a layer has no keys and values to lend")),
            }
        }
        Ok(lent)
    }

    /// Tokens that the buffers have room for.
    pub(crate) fn room(&self) -> usize {
        let buffer = self.buffer.borrow();
        let layers = buffer.layers.iter().zip(&self.windows);
        // A window's buffer is used again and again once it holds the window.
        let room = layers.filter(|(layer, window)| window.size.is_none_or(|size| size > layer.capacity()));
        room.map(|(layer, _)| layer.capacity()).min().unwrap_or(usize::MAX)
    }

    /// Records that `written` is computed after the write to the layer's [`slot`](Self::slot).
    pub(crate) fn mark_written(&mut self, layer: usize, written: Rc<Array>) {
        self.buffer.borrow_mut().layers[self.attention(layer)].written = Some(written);
    }

    fn layer<'a>(&self, buffer: &'a mut RefMut<'_, KvBuffer>, layer: usize) -> Layer<'a> {
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
mod tests {
    use mlx_rs::{Device, random};

    use super::*;
    use crate::mlx::QuantizationMode;

    /// Keys that say which position they are of; values that are their negatives.
    fn tokens(positions: Range<usize>) -> [Array; 2] {
        let numbers: Vec<f32> = positions.clone().map(|position| position as f32).collect();
        let keys = Array::from_slice(&numbers, &[1, 1, positions.len() as i32, 1]);
        let values = keys.negative().unwrap();
        [keys, values]
    }

    /// The positions that a layer shows to the tokens of each step.
    fn seen(window: Option<usize>, steps: &[usize]) -> Vec<Vec<usize>> {
        Device::set_default(&Device::cpu());
        let mut cache = KvCache::new([window]);
        let mut at = 0;
        let mut shown = Vec::new();
        for step in steps {
            let [keys, values] = tokens(at..at + step);
            let [keys, values] = cache.update(0, [&keys, &values], *step).unwrap();
            cache.advance(*step);
            assert!(values.eq_values(keys.negative().unwrap()).unwrap());
            let keys = keys.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
            shown.push(keys.into_iter().map(|key| key as usize).collect());
            at += step;
        }
        shown
    }

    #[test]
    fn without_a_window_everything_is_seen_in_order() {
        let shown = seen(None, &[3, 1, 300, 1]);
        assert_eq!(shown[1], (0..4).collect::<Vec<_>>());
        assert_eq!(shown[3], (0..305).collect::<Vec<_>>());
    }

    #[test]
    fn single_tokens_go_round_a_window() {
        let shown = seen(Some(4), &[1; 11]);
        for (position, mut shown) in shown.into_iter().enumerate() {
            shown.sort_unstable();
            assert_eq!(shown, (position.saturating_sub(3)..=position).collect::<Vec<_>>());
        }
    }

    #[test]
    fn chunks_see_the_window_before_them_in_order() {
        for steps in
            [vec![3, 3, 3, 3], vec![9, 2, 7], vec![1, 1, 5, 1, 4, 1], vec![4, 4, 1, 3], vec![2, 300, 5]]
        {
            let shown = seen(Some(4), &steps);
            let mut at = 0_usize;
            for (step, mut shown) in steps.iter().zip(shown) {
                let first = at.saturating_sub(3);
                if *step == 1 {
                    shown.sort_unstable();
                }
                let expected: Vec<_> = (first..at + step).collect();
                assert_eq!(
                    shown[shown.len() - expected.len().min(shown.len())..],
                    expected[..],
                    "{steps:?} at {at}"
                );
                at += step;
            }
        }
    }

    /// Padding behind a row's tokens leaves what the tokens alone leave, in a window, around it and without one.
    #[test]
    fn padding_is_not_kept() {
        Device::set_default(&Device::cpu());
        let empty = || {
            let windowed = KvCache::new([Some(4)]);
            [KvCache::new([None]), windowed, KvCache::new([None]).rotating(Rotation { keep: 2, size: 6 })]
        };
        for steps in
            [vec![3, 3, 3, 3], vec![9, 2, 7], vec![1, 1, 5, 1, 4, 1], vec![2, 2, 1, 1], vec![5, 300, 5]]
        {
            for (mut alone, mut padded) in empty().into_iter().zip(empty()) {
                let mut at = 0;
                for step in &steps {
                    let [keys, values] = tokens(at..at + step);
                    alone.update(0, [&keys, &values], *step).unwrap();
                    let [keys, values] = tokens(at..at + step + 3);
                    padded.update(0, [&keys, &values], *step).unwrap();
                    [&mut alone, &mut padded].into_iter().for_each(|cache| cache.advance(*step));
                    at += step;
                    let [alone, padded] = [&alone, &padded].map(|cache| cache.export().unwrap().concat());
                    for (alone, padded) in alone.iter().zip(&padded) {
                        assert!(
                            alone.eq_values(padded).unwrap(),
                            "{steps:?}, {at} tokens: {alone:?}, {padded:?}"
                        );
                    }
                }
            }
        }
    }

    /// Each token of every chunk sees the kept positions and the last ones, as it does where it comes alone.
    #[test]
    fn a_rotating_cache_keeps_the_beginning() {
        Device::set_default(&Device::cpu());
        for steps in
            [vec![1; 15], vec![3, 3, 3, 3], vec![9, 2, 7, 1, 1], vec![1, 1, 5, 1, 4, 1], vec![2, 30, 5, 1]]
        {
            let mut cache = KvCache::new([None]).rotating(Rotation { keep: 2, size: 6 });
            let mut at = 0_usize;
            for step in steps {
                let [keys, values] = tokens(at..at + step);
                let sink_mask = cache.sink_mask(0, step);
                let [keys, _] = cache.update(0, [&keys, &values], step).unwrap();
                cache.advance(step);
                let keys = keys.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
                let keys: Vec<usize> = keys.into_iter().map(|key| key as usize).collect();
                let visible = sink_mask.map(|sink_mask| {
                    assert_eq!(sink_mask.seen, keys);
                    sink_mask.mask(step).to_vec_exact::<bool>().unwrap()
                });
                for (row, query) in (at..at + step).enumerate() {
                    let sees = |(column, key): (usize, &usize)| match &visible {
                        Some(mask) => mask[row * keys.len() + column],
                        None => *key <= query,
                    };
                    let mut seen: Vec<_> =
                        keys.iter().enumerate().filter(|(c, k)| sees((*c, k))).map(|(_, k)| *k).collect();
                    seen.sort_unstable();
                    let expected: Vec<_> = (0..=query).filter(|key| *key < 2 || key + 4 > query).collect();
                    assert_eq!(seen, expected, "{query}, of {step} from {at}");
                }
                at += step;
            }
        }
    }

    #[test]
    fn a_text_can_be_cut_short_until_a_window_has_let_go_of_it() {
        Device::set_default(&Device::cpu());
        let mut cache = KvCache::new([None, Some(4)]);
        for position in 0..4 {
            let [keys, values] = tokens(position..position + 1);
            for layer in 0..2 {
                cache.update(layer, [&keys, &values], 1).unwrap();
            }
            cache.advance(1);
        }
        assert!(cache.can_rewind_to(2) && !cache.can_rewind_to(5));
        cache.rewind(2);
        assert_eq!(cache.len(), 2);
        cache.advance(3);
        assert!(cache.can_rewind_to(5) && !cache.can_rewind_to(2));
        // Room for 256 positions and for 4, of one float each.
        assert_eq!(cache.bytes(), 2 * (256 + 4) * 4);
    }

    #[test]
    fn quantised_ones_are_as_near_as_their_bits_and_as_small() {
        Device::set_default(&Device::cpu());
        for (bits, share) in [(8, (64 + 4) as f64 / 128.0), (4, (32 + 4) as f64 / 128.0)] {
            let scheme = QuantizationScheme { mode: QuantizationMode::Affine, bits, group_size: 64 };
            // All in order, in a window that is filled, wrapped by chunks and gone round one by one.
            for window in [None, Some(20)] {
                let mut plain = KvCache::new([window]);
                let mut quantised = KvCache::new([window]).quantized(Some(scheme));
                for tokens in [7, 1, 30, 1, 1] {
                    let [keys, values] = [0, 1].map(|part| {
                        let key = random::key(plain.len() as u64 * 2 + part).unwrap();
                        let new = random::uniform::<f32, f32>(-1.0, 1.0, &[1, 2, tokens, 64], &key).unwrap();
                        new.as_dtype(Dtype::Float16).unwrap()
                    });
                    let exact = plain.update(0, [&keys, &values], tokens as usize).unwrap();
                    let near = quantised.update(0, [&keys, &values], tokens as usize).unwrap();
                    for (exact, near) in exact.iter().zip(&near) {
                        let off = exact.subtract(near).unwrap().abs().unwrap().max(false).unwrap();
                        let off = off.as_dtype(Dtype::Float32).unwrap().item_exact::<f32>();
                        // Half of a step of a group from -1 to 1, and a step for the scale's and the bias's roundings.
                        let step = 2.0 / ((1 << bits) - 1) as f32;
                        assert!(off > 0.0 && off <= 1.5 * step, "{bits} bits: {off}, a step is {step}");
                    }
                    plain.advance(tokens as usize);
                    quantised.advance(tokens as usize);
                }
                let found = quantised.bytes() as f64 / plain.bytes() as f64;
                assert!((found - share).abs() < 1e-9, "{bits} bits: {found} of the bytes, expected {share}");
                assert_ne!(quantised.format_id(), plain.format_id());
            }
        }
    }
}
