//! The memory of keys and values: of one row, or of several that lie together.

use std::rc::Rc;

use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops, transforms,
};

use super::span::Span;
use crate::mlx::{Packed, Scheme, dequantize, quantize, slice, slice_update};

/// Buffers grow by this many positions, so that one growth serves many tokens.
pub(super) const STEP: usize = 256;

/// Keys and values of rows that lie together.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    /// How many rows.
    pub(super) rows: usize,
    /// One for each layer.
    pub(super) layers: Vec<Buffers>,
}

/// Keys and values of one layer.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers {
    /// Keys, then values, each in as many arrays as [`pack`] makes of them: `[rows, kv_heads, capacity, ..]`. None before the
    /// first token.
    pub(super) arrays: Vec<Array>,
    /// Whether another cache may have the same arrays: they are copied before they are written in place.
    pub(super) borrowed: bool,
    /// Computed once what was written in place last is there.
    pub(super) written: Option<Rc<Array>>,
}

/// Keys and values `[.., head_dim]` as they are kept: as they are, or quantised: elements, scales and biases of each.
pub(crate) fn pack(new: [&Array; 2], scheme: Option<Scheme>) -> Result<Vec<Array>> {
    let Some(scheme) = scheme else { return Ok(new.map(Array::clone).into()) };
    let mut arrays = Vec::with_capacity(6);
    for array in new {
        let Packed { weight, scales, biases, .. } = quantize(array, scheme)?;
        arrays.extend([weight, scales].into_iter().chain(biases));
    }
    Ok(arrays)
}

/// What was [`pack`]ed.
pub(super) fn unpack(arrays: &[Array], scheme: Option<Scheme>) -> Result<[Array; 2]> {
    match (arrays, scheme) {
        ([keys, values], None) => Ok([keys.clone(), values.clone()]),
        ([keys @ .., _, _, _], Some(scheme)) if keys.len() == 3 => {
            let whole = |part: &[Array]| {
                let (weight, scales) = (part[0].clone(), part[1].clone());
                let dtype = scales.dtype();
                dequantize(&Packed { weight, scales, biases: Some(part[2].clone()), scheme }, dtype)
            };
            Ok([whole(keys)?, whole(&arrays[3..])?])
        }
        _ => Err(Exception::custom("the cache was read before it was written")),
    }
}

impl Shelf {
    /// An empty one of one row.
    pub(super) fn new(layers: usize) -> Self {
        Self { rows: 1, layers: vec![Buffers::default(); layers] }
    }

    /// What another cache may have too.
    pub(super) fn borrowed(&self) -> Self {
        let layers = self.layers.iter();
        let layers = layers.map(|buffers| Buffers { borrowed: true, ..buffers.clone() }).collect();
        Self { layers, rows: self.rows }
    }
}

impl Buffers {
    /// Positions that there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.arrays.first().map_or(0, |array| array.dim(2) as usize)
    }

    /// The arrays, once all that is to be written in place is on its way: what reads them comes later on the same stream.
    pub(super) fn settled(&self) -> Result<&[Array]> {
        if let Some(written) = &self.written {
            transforms::async_eval([&**written])?;
        }
        Ok(&self.arrays)
    }

    /// The positions `start..end`, as they are kept.
    pub(super) fn read(&self, start: usize, end: usize) -> Result<Vec<Array>> {
        if self.arrays.is_empty() {
            return Err(Exception::custom("the cache was read before it was written"));
        }
        self.settled()?.iter().map(|array| slice(array, 2, start as i32, end as i32)).collect()
    }

    /// Of one row its first `held` positions, in buffers of `capacity`, which must be more.
    pub(super) fn copy(&self, row: usize, held: usize, capacity: usize) -> Result<Vec<Array>> {
        let copy = |array: &Array| {
            let held = held.min(array.dim(2) as usize) as i32;
            let kept = slice(&slice(array, 0, row as i32, row as i32 + 1)?, 2, 0, held)?;
            let room = [1, array.dim(1), capacity as i32 - held, array.dim(3)];
            ops::concatenate(&[kept, ops::zeros_dtype(&room, array.dtype())?], 2)
        };
        self.settled()?.iter().map(copy).collect()
    }

    /// Makes room in the buffers of one row for `capacity` positions, of which the first `held` are in use. `like` says what is
    /// kept. Buffers that are written in place (`ours`) are afterwards this cache's alone.
    pub(super) fn reserve(&mut self, held: usize, capacity: usize, like: &[Array], ours: bool) -> Result<()> {
        let current = self.capacity();
        if current >= capacity && !(ours && self.borrowed) {
            return Ok(());
        }
        let room = |array: &Array, capacity| {
            ops::zeros_dtype(&[1, array.dim(1), capacity as i32, array.dim(3)], array.dtype())
        };
        let held = held.min(current);
        self.arrays = if held == 0 {
            like.iter().map(|array| room(array, capacity)).collect::<Result<_>>()?
        } else {
            self.copy(0, held, capacity.max(held + 1))?
        };
        if self.borrowed {
            // At once, before the other cache goes on in what was copied.
            transforms::async_eval(&self.arrays)?;
        }
        (self.borrowed, self.written) = (false, None);
        Ok(())
    }

    /// Puts what several tokens of one row are kept as in the slots from `slot` on.
    pub(super) fn write(&mut self, slot: usize, new: &[Array]) -> Result<()> {
        // Taken out first: a buffer with a single owner is written in place.
        let arrays = std::mem::take(&mut self.arrays).into_iter().zip(new);
        self.arrays =
            arrays.map(|(array, new)| slice_update(array, new, 2, slot as i32)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Puts what one token of each row is kept as in the slot of `slots` `[rows, 1, 1, 1]` (i32).
    pub(super) fn scatter(&mut self, slots: &Array, new: &[Array]) -> Result<()> {
        let arrays = std::mem::take(&mut self.arrays).into_iter().zip(new);
        self.arrays =
            arrays.map(|(array, new)| array.put_along_axis(slots, new, 2)).collect::<Result<_>>()?;
        Ok(())
    }
}

/// One layer of one row, computed with MLX's operations.
pub(super) struct Layer<'a> {
    pub(super) span: Span,
    pub(super) scheme: Option<Scheme>,
    pub(super) buffers: &'a mut Buffers,
}

impl Layer<'_> {
    /// Adds keys and values `[1, kv_heads, T, head_dim]` at `position` and returns all that their queries may see, oldest
    /// first: `[1, kv_heads, S, head_dim]` with S ≥ T, the last T of them the new ones.
    ///
    /// A layer with a window `w` returns at most the `w - 1` positions before the first new one, of which the first are those
    /// that it always keeps. For T = 1 their order is
    /// not that of the text, which attention does not mind: positions are part of the keys.
    ///
    /// # Errors
    /// MLX's own.
    pub(super) fn update(&mut self, position: usize, new: [&Array; 2]) -> Result<[Array; 2]> {
        let tokens = new[0].dim(2) as usize;
        let new = pack(new, self.scheme)?;
        let seen = match self.span.window {
            Some(window) if !self.span.is_straight(position, tokens) => self.wrap(position, window, new)?,
            _ => {
                self.make_room(position, tokens, &new, false)?;
                self.buffers.settled()?;
                self.buffers.write(self.span.slot(position), &new)?;
                self.buffers.read(0, self.span.held(position + tokens))?
            }
        };
        unpack(&seen, self.scheme)
    }

    /// Makes room for `tokens` that go straight into their slots.
    pub(super) fn make_room(
        &mut self,
        position: usize,
        tokens: usize,
        like: &[Array],
        ours: bool,
    ) -> Result<()> {
        let capacity = self.span.held((position + tokens).next_multiple_of(STEP));
        self.buffers.reserve(self.span.held(position), capacity, like, ours)
    }

    /// Several tokens that wrap round: what they see is laid out in order first, and then its end kept.
    fn wrap(&mut self, position: usize, window: usize, new: Vec<Array>) -> Result<Vec<Array>> {
        let Span { keep, .. } = self.span;
        let end = position + new[0].dim(2) as usize;
        let (kept, before) = (keep.min(position), self.span.before(position, window));
        let mut seen = new;
        if before > 0 {
            let first = self.span.slot(position - before);
            let held = position.min(window);
            let old = if first + before <= held {
                self.buffers.read(first, first + before)?
            } else {
                let turned = self.buffers.read(keep, keep + first + before - held)?;
                join(&self.buffers.read(first, held)?, &turned)?
            };
            seen = join(&old, &seen)?;
        }
        if kept > 0 {
            seen = join(&self.buffers.read(0, kept)?, &seen)?;
        }
        let total = seen[0].dim(2);
        // The last positions, turned so that each lies in its slot, behind the kept ones.
        let turning = window - keep;
        let start = ((end - window) % turning) as i32;
        let split = total - start;
        let (from, keep) = (total - turning as i32, keep as i32);
        let turned = |array: &Array| {
            let parts = [(0, keep), (split, total), (from, split)];
            let parts = parts.into_iter().filter(|(start, end)| start < end);
            let parts = parts.map(|(start, end)| slice(array, 2, start, end)).collect::<Result<Vec<_>>>()?;
            if let [whole] = &parts[..] { Ok(whole.clone()) } else { ops::concatenate(&parts, 2) }
        };
        let arrays = seen.iter().map(turned).collect::<Result<_>>()?;
        // Where nothing was turned they are what the tokens see.
        *self.buffers = Buffers { arrays, borrowed: true, written: None };
        Ok(seen)
    }
}

fn join(a: &[Array], b: &[Array]) -> Result<Vec<Array>> {
    a.iter().zip(b).map(|(a, b)| ops::concatenate(&[a, b], 2)).collect()
}
