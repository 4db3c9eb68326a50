//! Keys and values of the tokens that a row has seen.

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops,
};

use super::ops::{slice, slice_update};

/// Buffers grow by this many positions, so that one growth serves many tokens.
const STEP: usize = 256;

/// The rows of one forward pass.
#[derive(Debug)]
pub(crate) enum Rows<'a> {
    /// Row `b` of the tokens continues the text of cache `b`, which then holds these tokens too. Either one row with any
    /// number of tokens, or any number of rows with one token each.
    Cached(&'a mut [&'a mut KvCache]),
    /// Every row begins at position 0 and nothing is kept. Shorter rows are padded on the right: padding never reaches the
    /// positions before it.
    Uncached,
}

/// One row's cache: a [`LayerCache`] for each layer. Cloning is cheap: both share the buffers until one of them grows.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    /// Tokens held.
    len: usize,
    /// The length of the whole text, where it was told.
    expected: usize,
    /// The tokens, where they were remembered.
    text: Vec<Array>,
    /// How a text goes on past what the layers hold.
    rotation: Option<Rotation>,
}

/// What layers hold of a text that outgrows them: its beginning, and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        Self {
            layers: windows.into_iter().map(LayerCache::new).collect(),
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
        for layer in &mut self.layers {
            if layer.window.is_none_or(|window| window > rotation.size) {
                (layer.window, layer.keep) = (Some(rotation.size), rotation.keep);
            }
        }
        self.rotation = Some(rotation);
        self
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
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }

    /// Whether a text that begins with the first `len` tokens can go on from here, once [`truncate`](Self::truncate)d: a layer
    /// with a window lets go of positions that would be needed again, and positions may depend on the whole text's length,
    /// for which it is remembered.
    #[must_use]
    pub(crate) fn reaches(&self, len: usize) -> bool {
        let whole = |layer: &LayerCache| layer.window.is_none_or(|window| self.len <= window);
        self.text.is_empty() && (len == self.len || (len < self.len && self.layers.iter().all(whole)))
    }

    /// Forgets the tokens from position `len` on, which must be one that it [`reaches`](Self::reaches).
    pub(crate) fn truncate(&mut self, len: usize) {
        debug_assert!(self.reaches(len), "cannot cut {} tokens to {len}", self.len);
        self.len = len;
    }

    /// Says how long the text is that is about to be computed in chunks, for models whose positions depend on it
    /// (`ModelConfig::length_dependent`): without it, chunks could differ from the whole.
    pub(crate) fn expect(&mut self, len: usize) {
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

    /// Keeps the tokens `[1, T]` that were added last, for [`text`](Self::text).
    pub(crate) fn remember(&mut self, tokens: Array) {
        self.text.push(tokens);
    }

    /// The tokens held, `[1, len]`, where they were all remembered.
    pub(crate) fn text(&self) -> Result<Array> {
        let text = ops::concatenate(&self.text, 1)?;
        slice(&text, 1, 0, self.len as i32)
    }

    /// How keys and values are kept, in words: of caches that say the same, one can go on with what another exported.
    pub(crate) fn layout(&self) -> String {
        let windows =
            self.layers.iter().map(|layer| layer.window.map_or("all".to_owned(), |w| w.to_string()));
        windows.collect::<Vec<_>>().join(" ")
    }

    /// For each layer its keys and values, without room for more: `[1, kv_heads, S, head_dim]`. A layer with a window has its
    /// positions in the order of its slots.
    pub(crate) fn export(&self) -> Result<Vec<Vec<Array>>> {
        let layer = |layer: &LayerCache| Ok(layer.read(0, layer.held(self.len))?.into());
        self.layers.iter().map(layer).collect()
    }

    /// The type and shape of each array that a cache like this one would [`export`](Self::export) of `len` tokens. This one
    /// has some.
    pub(crate) fn export_like(&self, len: usize) -> Vec<Vec<(Dtype, Vec<i32>)>> {
        let like = |layer: &LayerCache, array: &Array| {
            let mut shape = array.shape().to_vec();
            if let Some(positions) = shape.get_mut(2) {
                *positions = layer.held(len) as i32;
            }
            (array.dtype(), shape)
        };
        let layers = self.layers.iter();
        layers.map(|layer| layer.buffers.iter().flatten().map(|array| like(layer, array)).collect()).collect()
    }

    /// Begins with the exported keys and values of `len` tokens.
    pub(crate) fn import(&mut self, layers: Vec<Vec<Array>>, len: usize) {
        for (layer, arrays) in self.layers.iter_mut().zip(layers) {
            layer.buffers = arrays.try_into().ok();
        }
        self.len = len;
    }

    /// The buffers, to evaluate them together with the logits.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers
            .iter()
            .filter_map(|layer| layer.buffers.as_ref())
            .flat_map(|[keys, values]| [keys, values])
    }

    /// The cache of one layer, and the position at which new tokens begin.
    pub(crate) fn layer(&mut self, index: usize) -> (&mut LayerCache, usize) {
        (&mut self.layers[index], self.len)
    }

    /// Counts `tokens` more, once every layer has taken them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

/// Keys and values of one layer of one row, in buffers `[1, kv_heads, capacity, head_dim]`.
#[derive(Debug, Clone)]
pub(crate) struct LayerCache {
    /// Positions kept; `None` is all of them.
    window: Option<usize>,
    /// Of those, the first ones of the text; the others are its last.
    keep: usize,
    buffers: Option<[Array; 2]>,
}

impl LayerCache {
    fn new(window: Option<usize>) -> Self {
        Self { window, keep: 0, buffers: None }
    }

    /// Adds keys and values `[1, kv_heads, T, head_dim]` at `position` and returns all that their queries may see, oldest
    /// first: `[1, kv_heads, S, head_dim]` with S ≥ T, the last T of them the new ones.
    ///
    /// A layer with a window `w` returns at most the `w - 1` positions before the first new one, of which the first are those
    /// that it always keeps. For T = 1 their order is
    /// not that of the text, which attention does not mind: positions are part of the keys.
    ///
    /// # Errors
    /// MLX's own.
    pub(crate) fn update(&mut self, position: usize, keys: &Array, values: &Array) -> Result<[Array; 2]> {
        match self.window {
            None => self.append(position, [keys, values]),
            Some(window) => self.rotate(position, window, [keys, values]),
        }
    }

    /// Of a text of `len` tokens, the positions that are held.
    fn held(&self, len: usize) -> usize {
        self.window.map_or(len, |window| len.min(window))
    }

    fn append(&mut self, position: usize, new: [&Array; 2]) -> Result<[Array; 2]> {
        let end = position + new[0].dim(2) as usize;
        self.reserve(position, end.next_multiple_of(STEP), new)?;
        self.write(position, new)?;
        self.read(0, end)
    }

    /// The positions that [`update`](Self::update) shows to several new tokens at `position`, where they are not one after the
    /// other, and how many queries see behind the kept ones, their own included.
    pub(crate) fn gap(&self, position: usize, tokens: usize) -> Option<Gap> {
        let window =
            self.window.filter(|window| self.keep > 0 && tokens > 1 && position + tokens > *window)?;
        let before = self.before(position, window);
        let seen = (0..self.keep.min(position)).chain(position - before..position + tokens);
        Some(Gap { seen: seen.collect(), keep: self.keep, window: window - self.keep })
    }

    /// Positions before `position`, behind the kept ones, that its token sees.
    fn before(&self, position: usize, window: usize) -> usize {
        (position - self.keep.min(position)).min(window - self.keep - 1)
    }

    /// Position `p` lies in slot `p` of a buffer of `window` slots while there is room; after that the slots behind the kept ones
    /// are used in turn.
    fn slot(&self, position: usize, window: usize) -> usize {
        if position < window { position } else { self.keep + (position - self.keep) % (window - self.keep) }
    }

    fn rotate(&mut self, position: usize, window: usize, new: [&Array; 2]) -> Result<[Array; 2]> {
        let tokens = new[0].dim(2) as usize;
        let end = position + tokens;
        if tokens == 1 || end <= window {
            self.reserve(position.min(window), end.next_multiple_of(STEP).min(window), new)?;
            self.write(self.slot(position, window), new)?;
            return self.read(0, end.min(window));
        }
        // Several tokens that wrap round: what they see is laid out in order first, and then its end kept.
        let (kept, before) = (self.keep.min(position), self.before(position, window));
        let mut seen = new.map(Array::clone);
        if before > 0 {
            let first = self.slot(position - before, window);
            let held = position.min(window);
            let old = if first + before <= held {
                self.read(first, first + before)?
            } else {
                join(&self.read(first, held)?, &self.read(self.keep, self.keep + first + before - held)?)?
            };
            seen = join(&old, &seen)?;
        }
        if kept > 0 {
            seen = join(&self.read(0, kept)?, &seen)?;
        }
        let total = seen[0].dim(2);
        // The last positions, turned so that each lies in its slot, behind the kept ones.
        let turning = window - self.keep;
        let start = ((end - window) % turning) as i32;
        let split = total - start;
        let (from, keep) = (total - turning as i32, self.keep as i32);
        let mut buffers = Vec::with_capacity(2);
        for array in &seen {
            let parts = [(0, keep), (split, total), (from, split)];
            let parts = parts.into_iter().filter(|(start, end)| start < end);
            let parts = parts.map(|(start, end)| slice(array, 2, start, end)).collect::<Result<Vec<_>>>()?;
            buffers.push(if let [whole] = &parts[..] { whole.clone() } else { ops::concatenate(&parts, 2)? });
        }
        self.buffers = buffers.try_into().ok();
        Ok(seen)
    }

    /// Makes room for `capacity` positions, of which the first `held` are in use.
    fn reserve(&mut self, held: usize, capacity: usize, like: [&Array; 2]) -> Result<()> {
        let current = self.buffers.as_ref().map_or(0, |[keys, _]| keys.dim(2) as usize);
        if current >= capacity {
            return Ok(());
        }
        let mut grown = Vec::with_capacity(2);
        for (index, new) in like.into_iter().enumerate() {
            let old = self.buffers.as_ref().map(|buffers| &buffers[index]);
            let kept = old.map_or(0, |_| held.min(current));
            let room = [1, new.dim(1), (capacity - kept) as i32, new.dim(3)];
            let room = ops::zeros_dtype(&room, new.dtype())?;
            grown.push(match old {
                Some(old) if kept > 0 => ops::concatenate(&[slice(old, 2, 0, kept as i32)?, room], 2)?,
                _ => room,
            });
        }
        self.buffers = grown.try_into().ok();
        Ok(())
    }

    fn write(&mut self, slot: usize, new: [&Array; 2]) -> Result<()> {
        // Taken out first: a buffer with a single owner is written in place.
        let Some([keys, values]) = self.buffers.take() else {
            return Ok(());
        };
        self.buffers = Some([
            slice_update(keys, new[0], 2, slot as i32)?,
            slice_update(values, new[1], 2, slot as i32)?,
        ]);
        Ok(())
    }

    fn read(&self, start: usize, end: usize) -> Result<[Array; 2]> {
        let Some([keys, values]) = &self.buffers else {
            return Err(Exception::custom("the cache was read before it was written"));
        };
        let (start, end) = (start as i32, end as i32);
        Ok([slice(keys, 2, start, end)?, slice(values, 2, start, end)?])
    }
}

/// What several tokens see of a text whose middle is forgotten.
#[derive(Debug)]
pub(crate) struct Gap {
    /// The positions, in order.
    seen: Vec<usize>,
    /// Those below this are always seen.
    keep: usize,
    /// Of the others, as many as this, up to the query's own.
    window: usize,
}

impl Gap {
    /// What the last `tokens` of the positions see: `[tokens, seen]`, true where they do.
    pub(crate) fn mask(&self, tokens: usize) -> Array {
        let queries = &self.seen[self.seen.len() - tokens..];
        let sees = |query: usize, key: usize| key <= query && (key < self.keep || key + self.window > query);
        let mask: Vec<bool> =
            queries.iter().flat_map(|query| self.seen.iter().map(move |key| sees(*query, *key))).collect();
        Array::from_slice(&mask, &[tokens as i32, self.seen.len() as i32])
    }
}

fn join(a: &[Array; 2], b: &[Array; 2]) -> Result<[Array; 2]> {
    Ok([ops::concatenate(&[&a[0], &b[0]], 2)?, ops::concatenate(&[&a[1], &b[1]], 2)?])
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;

    use super::*;

    /// Keys that say which position they are of; values that are their negatives.
    fn tokens(positions: std::ops::Range<usize>) -> [Array; 2] {
        let numbers: Vec<f32> = positions.clone().map(|position| position as f32).collect();
        let keys = Array::from_slice(&numbers, &[1, 1, positions.len() as i32, 1]);
        let values = keys.negative().unwrap();
        [keys, values]
    }

    /// The positions that a layer shows to the tokens of each step.
    fn seen(window: Option<usize>, steps: &[usize]) -> Vec<Vec<usize>> {
        Device::set_default(&Device::cpu());
        let mut layer = LayerCache::new(window);
        let mut at = 0;
        let mut shown = Vec::new();
        for step in steps {
            let [keys, values] = tokens(at..at + step);
            let [keys, values] = layer.update(at, &keys, &values).unwrap();
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
            let mut layer = LayerCache { keep: 2, ..LayerCache::new(Some(6)) };
            let mut at = 0_usize;
            for step in steps {
                let [keys, values] = tokens(at..at + step);
                let gap = layer.gap(at, step);
                let [keys, _] = layer.update(at, &keys, &values).unwrap();
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
            for index in 0..2 {
                let (layer, at) = cache.layer(index);
                layer.update(at, &keys, &values).unwrap();
            }
            cache.advance(1);
        }
        assert!(cache.reaches(2) && !cache.reaches(5));
        cache.truncate(2);
        assert_eq!(cache.len(), 2);
        cache.advance(3);
        assert!(cache.reaches(5) && !cache.reaches(2));
        assert_eq!(cache.arrays().count(), 4);
    }
}
