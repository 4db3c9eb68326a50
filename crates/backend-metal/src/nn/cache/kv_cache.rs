//! One row's KV cache.

use std::{
    cell::{RefCell, RefMut},
    ops::Range,
    rc::Rc,
};

use mlx_rs::{Array, Dtype, error::Result, ops, transforms};

use super::{
    shelf::{Buffers, Layer, STEP, Shelf},
    span::{Gap, Span},
};
use crate::{
    mlx::{Scheme, slice},
    nn::cpu::KvSlot,
};

/// One row's cache. Cloning is cheap: both share the memory until one of them goes on.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    /// One for each layer.
    pub(super) spans: Vec<Span>,
    /// How keys and values are quantised.
    pub(super) scheme: Option<Scheme>,
    /// Tokens held.
    pub(super) len: usize,
    /// The length of the whole text, where it was told.
    expected: usize,
    /// The tokens, where they were remembered.
    text: Vec<Array>,
    /// How a text goes on past what the layers hold.
    rotation: Option<Rotation>,
    /// Where keys and values are, perhaps together with those of other rows.
    pub(super) shelf: Rc<RefCell<Shelf>>,
    /// Which of the shelf's rows it is.
    pub(super) row: usize,
}

/// What layers hold of a text that outgrows them: its beginning, and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rotation {
    /// Positions at the beginning.
    pub(crate) keep: usize,
    /// Positions in all.
    pub(crate) size: usize,
}

impl KvCache {
    /// An empty cache with one layer for each of `windows`: `None` keeps every position, `Some(w)` the last `w`.
    #[must_use]
    pub(crate) fn new(windows: impl IntoIterator<Item = Option<usize>>) -> Self {
        let spans: Vec<_> = windows.into_iter().map(|window| Span { window, keep: 0 }).collect();
        Self {
            shelf: Rc::new(RefCell::new(Shelf::new(spans.len()))),
            row: 0,
            spans,
            scheme: None,
            len: 0,
            expected: 0,
            text: Vec::new(),
            rotation: None,
        }
    }

    /// The same with layers that hold `size` positions at most: the first `keep` and the last ones. Layers that hold fewer stay
    /// as they are.
    #[must_use]
    pub(crate) fn rotating(mut self, rotation: Rotation) -> Self {
        for span in &mut self.spans {
            if span.window.is_none_or(|window| window > rotation.size) {
                *span = Span { window: Some(rotation.size), keep: rotation.keep };
            }
        }
        self.rotation = Some(rotation);
        self
    }

    /// The same with keys and values quantised, whose width the scheme's groups divide.
    #[must_use]
    pub(crate) fn quantized(mut self, scheme: Option<Scheme>) -> Self {
        self.scheme = scheme;
        self
    }

    /// An empty one that keeps as much in the same way.
    pub(crate) fn empty_like(&self) -> Self {
        let shelf = Rc::new(RefCell::new(Shelf::new(self.spans.len())));
        Self { shelf, row: 0, len: 0, expected: 0, text: Vec::new(), ..self.clone() }
    }

    /// How a text goes on past what the layers hold: caches that differ in it do not stand in for each other.
    #[must_use]
    pub(crate) fn rotation(&self) -> Option<Rotation> {
        self.rotation
    }

    /// Tokens held, which is the position of the next one.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the buffers.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        let shelf = self.shelf.borrow();
        let arrays = shelf.layers.iter().flat_map(|buffers| &buffers.arrays);
        arrays.map(|array| array.nbytes() as u64).sum::<u64>() / shelf.rows as u64
    }

    /// Whether a text that begins with the first `len` tokens can go on from here, once [`rewind`](Self::rewind)d: a layer
    /// with a window lets go of positions that would be needed again, and positions may depend on the whole text's length,
    /// for which it is remembered.
    #[must_use]
    pub(crate) fn can_rewind_to(&self, len: usize) -> bool {
        let whole = |span: &Span| span.window.is_none_or(|window| self.len <= window);
        self.text.is_empty() && (len == self.len || (len < self.len && self.spans.iter().all(whole)))
    }

    /// Forgets the tokens from position `len` on, which must be one that it [`can_rewind_to`](Self::can_rewind_to).
    pub(crate) fn rewind(&mut self, len: usize) {
        debug_assert!(self.can_rewind_to(len), "cannot cut {} tokens to {len}", self.len);
        self.len = len;
    }

    /// Says how long the text is that is about to be computed in chunks, for models whose positions depend on it
    /// (`ModelConfig::length_dependent`): without it, chunks could differ from the whole.
    pub(crate) fn set_expected_len(&mut self, len: usize) {
        self.expected = len;
    }

    /// The length of the text once `tokens` more are computed, or the expected one.
    pub(crate) fn length_with(&self, tokens: usize) -> usize {
        self.expected.max(self.len + tokens)
    }

    /// The length of the text that the positions held were computed for.
    pub(crate) fn length(&self) -> usize {
        self.length_with(0)
    }

    /// Keeps the tokens `[1, T]` that were added last, for [`tokens`](Self::tokens).
    pub(crate) fn push_tokens(&mut self, tokens: Array) {
        self.text.push(tokens);
    }

    /// The tokens held, `[1, len]`, where they were all remembered.
    pub(crate) fn tokens(&self) -> Result<Array> {
        let text = ops::concatenate(&self.text, 1)?;
        slice(&text, 1, 0, self.len as i32)
    }

    /// How keys and values are kept, in words: of caches that say the same, one can go on with what another exported.
    pub(crate) fn format_id(&self) -> String {
        let windows = self.spans.iter().map(|span| span.window.map_or("all".to_owned(), |w| w.to_string()));
        let windows = windows.collect::<Vec<_>>().join(" ");
        match self.scheme {
            None => windows,
            Some(Scheme { bits, group_size, .. }) => format!("{windows}, {bits} bits by {group_size}"),
        }
    }

    /// For each layer its keys and values as they are kept, without room for more: `[1, kv_heads, S, ..]`. A layer with a
    /// window has its positions in the order of its slots.
    pub(crate) fn export(&self) -> Result<Vec<Vec<Array>>> {
        let shelf = self.shelf.borrow();
        let row = |array: &Array| slice(array, 0, self.row as i32, self.row as i32 + 1);
        let layer = |(buffers, span): (&Buffers, &Span)| {
            buffers.read(0, span.held(self.len))?.iter().map(row).collect()
        };
        shelf.layers.iter().zip(&self.spans).map(layer).collect()
    }

    /// The type and shape of each array that a cache like this one would [`export`](Self::export) of `len` tokens. This one
    /// has some.
    pub(crate) fn export_like(&self, len: usize) -> Vec<Vec<(Dtype, Vec<i32>)>> {
        let shelf = self.shelf.borrow();
        let like = |span: &Span, array: &Array| {
            (array.dtype(), vec![1, array.dim(1), span.held(len) as i32, array.dim(3)])
        };
        let layers = shelf.layers.iter().zip(&self.spans);
        layers.map(|(buffers, span)| buffers.arrays.iter().map(|array| like(span, array)).collect()).collect()
    }

    /// Begins with the exported keys and values of `len` tokens.
    pub(crate) fn import(&mut self, layers: Vec<Vec<Array>>, len: usize) {
        let layers = layers.into_iter();
        let layers = layers.map(|arrays| Buffers { arrays, borrowed: true, written: None }).collect();
        (self.shelf, self.row) = (Rc::new(RefCell::new(Shelf { rows: 1, layers })), 0);
        self.len = len;
    }

    /// All that it holds, to have it computed.
    pub(crate) fn arrays(&self) -> Vec<Array> {
        let shelf = self.shelf.borrow();
        let written = shelf.layers.iter().filter_map(|buffers| buffers.written.as_deref());
        shelf.layers.iter().flat_map(|buffers| &buffers.arrays).chain(written).cloned().collect()
    }

    /// What these layers hold, to have it computed.
    pub(crate) fn layer_arrays(&self, layers: Range<usize>) -> Vec<Array> {
        let shelf = self.shelf.borrow();
        let layers = &shelf.layers[layers.start.min(shelf.layers.len())..layers.end.min(shelf.layers.len())];
        let written = layers.iter().filter_map(|buffers| buffers.written.as_deref());
        layers.iter().flat_map(|buffers| &buffers.arrays).chain(written).cloned().collect()
    }

    /// Waits until all that it holds is computed.
    pub(crate) fn evaluate(&self) -> Result<()> {
        transforms::eval(&self.arrays())
    }

    /// Whether keys and values are kept in fewer bits than they are computed in.
    pub(crate) fn is_quantized(&self) -> bool {
        self.scheme.is_some()
    }

    /// Positions that its largest layers have room for where rows lie together: a power of two. Rows of one class, whose
    /// `rotation` is the same too, can lie together.
    pub(crate) fn capacity_bucket(&self) -> usize {
        let held = self.spans.iter().map(|span| span.held(self.len + 1)).max().unwrap_or(0);
        held.next_power_of_two().max(STEP)
    }

    /// Takes its keys and values out of memory that it shares with other rows.
    pub(crate) fn detach(&mut self) -> Result<()> {
        if self.shelf.borrow().rows == 1 {
            return Ok(());
        }
        let mut shelf = Shelf::new(self.spans.len());
        {
            let shared = self.shelf.borrow();
            for ((buffers, span), own) in shared.layers.iter().zip(&self.spans).zip(&mut shelf.layers) {
                let held = span.held(self.len);
                let capacity = span.held((self.len + 1).next_multiple_of(STEP)).max(held + 1);
                own.arrays = buffers.copy(self.row, held, capacity)?;
            }
        }
        // At once: what is only planned would keep the others from writing in place.
        transforms::async_eval(shelf.layers.iter().flat_map(|buffers| &buffers.arrays))?;
        (self.shelf, self.row) = (Rc::new(RefCell::new(shelf)), 0);
        Ok(())
    }

    /// What a layer keeps.
    pub(crate) fn span(&self, layer: usize) -> Span {
        self.spans[layer]
    }

    /// What several new tokens of this row see in a layer, where that is not all before them.
    pub(crate) fn gap(&self, layer: usize, tokens: usize) -> Option<Gap> {
        self.spans[layer].gap(self.len, tokens)
    }

    /// Whether `tokens` more go straight into a layer's slots.
    pub(crate) fn is_straight(&self, layer: usize, tokens: usize) -> bool {
        self.spans[layer].is_straight(self.len, tokens)
    }

    /// Adds keys and values `[1, kv_heads, T, head_dim]` to a layer and returns what their queries may see, the new ones last:
    /// `[1, kv_heads, S, head_dim]`. Where T is 1 the order is another.
    pub(crate) fn update(&mut self, layer: usize, new: [&Array; 2]) -> Result<[Array; 2]> {
        let position = self.len;
        self.layer(&mut self.shelf.borrow_mut(), layer).update(position, new)
    }

    /// How keys and values are quantised.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// Makes room for `tokens` that go [straight](Self::is_straight) into a layer's slots, and says where they go, for an
    /// operation that puts them there. `new` are keys and values of any rows, as they are [packed](super::shelf::pack).
    pub(crate) fn place(&mut self, layer: usize, tokens: usize, new: &[Array]) -> Result<KvSlot> {
        let mut shelf = self.shelf.borrow_mut();
        let mut layer = self.layer(&mut shelf, layer);
        layer.make_room(self.len, tokens, new, true)?;
        let Layer { span, buffers, .. } = layer;
        let (slot, held) = (span.slot(self.len), span.held(self.len + tokens));
        Ok(KvSlot { arrays: buffers.arrays.clone(), after: buffers.written.clone(), slot, held })
    }

    /// Says that `written` is computed once what went to a [`place`](Self::place) of the layer is there.
    pub(crate) fn mark_written(&mut self, layer: usize, written: Rc<Array>) {
        self.shelf.borrow_mut().layers[layer].written = Some(written);
    }

    fn layer<'a>(&self, shelf: &'a mut RefMut<'_, Shelf>, layer: usize) -> Layer<'a> {
        Layer { span: self.spans[layer], scheme: self.scheme, buffers: &mut shelf.layers[layer] }
    }

    /// Counts `tokens` more, once every layer has taken them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, random};

    use super::*;
    use crate::mlx::Mode;

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
            let [keys, values] = cache.update(0, [&keys, &values]).unwrap();
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
                let gap = cache.gap(0, step);
                let [keys, _] = cache.update(0, [&keys, &values]).unwrap();
                cache.advance(step);
                let keys = keys.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
                let keys: Vec<usize> = keys.into_iter().map(|key| key as usize).collect();
                let visible = gap.map(|gap| {
                    assert_eq!(gap.seen, keys);
                    gap.mask(step).to_vec_exact::<bool>().unwrap()
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
                cache.update(layer, [&keys, &values]).unwrap();
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
            let scheme = Scheme { mode: Mode::Affine, bits, group_size: 64 };
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
                    let exact = plain.update(0, [&keys, &values]).unwrap();
                    let near = quantised.update(0, [&keys, &values]).unwrap();
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
