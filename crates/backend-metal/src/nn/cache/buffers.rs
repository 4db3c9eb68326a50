//! The memory of keys and values: of one row, or of several rows in one batch.

use std::rc::Rc;

use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops, transforms,
};

use super::window::Window;
use crate::mlx::{QuantizationScheme, QuantizedMatrix, dequantize, quantize, slice, slice_update};

/// Buffers grow by this many positions, so that one growth serves many tokens.
pub(super) const STEP: usize = 256;

/// The keys and values of one row or of a batch of rows.
#[derive(Debug, Clone)]
pub(super) struct KvBuffer {
    /// How many rows.
    pub(super) rows: usize,
    /// One for each layer.
    pub(super) layers: Vec<LayerBuffers>,
}

/// The keys and values of one layer.
#[derive(Debug, Clone, Default)]
pub(super) struct LayerBuffers {
    /// Keys, then values, each in as many arrays as [`quantize_kv`] makes: `[rows, kv_heads, capacity, ..]`. Empty before the
    /// first token.
    pub(super) arrays: Vec<Array>,
    /// Whether the arrays may be written in place: they are row-major and nothing else refers to their memory. Only
    /// [`fresh`](Self::fresh) sets it. Any other array may be a view: MLX returns the update itself from a `slice_update`
    /// of a whole array, and a single part from a `concatenate`.
    pub(super) writable: bool,
    /// An array that is computed after the last write in place.
    pub(super) written: Option<Rc<Array>>,
}

/// Keys and values `[.., head_dim]` in the form in which they are kept: as they are, or quantised into elements, scales and biases.
pub(crate) fn quantize_kv(new: [&Array; 2], scheme: Option<QuantizationScheme>) -> Result<Vec<Array>> {
    let Some(scheme) = scheme else { return Ok(new.map(Array::clone).into()) };
    let mut arrays = Vec::with_capacity(6);
    for array in new {
        let QuantizedMatrix { weight, scales, biases, .. } = quantize(array, scheme)?;
        arrays.extend([weight, scales].into_iter().chain(biases));
    }
    Ok(arrays)
}

/// The keys and values that [`quantize_kv`] made these arrays of.
pub(super) fn dequantize_kv(arrays: &[Array], scheme: Option<QuantizationScheme>) -> Result<[Array; 2]> {
    match (arrays, scheme) {
        ([keys, values], None) => Ok([keys.clone(), values.clone()]),
        ([keys @ .., _, _, _], Some(scheme)) if keys.len() == 3 => {
            let whole = |part: &[Array]| {
                let (weight, scales) = (part[0].clone(), part[1].clone());
                let dtype = scales.dtype();
                dequantize(&QuantizedMatrix { weight, scales, biases: Some(part[2].clone()), scheme }, dtype)
            };
            Ok([whole(keys)?, whole(&arrays[3..])?])
        }
        _ => Err(unwritten()),
    }
}

fn unwritten() -> Exception {
    Exception::custom("the cache was read before it was written")
}

impl KvBuffer {
    /// An empty buffer of one row.
    pub(super) fn new(layers: usize) -> Self {
        Self { rows: 1, layers: vec![LayerBuffers::default(); layers] }
    }

    /// Gives another owner the same keys and values. Both copy them before they write in place: a graph of the other one may
    /// read them much later.
    pub(super) fn share(&mut self) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.writable = false);
        self.clone()
    }
}

impl LayerBuffers {
    /// Buffers of arrays that may be views of others.
    pub(super) fn from_views(arrays: Vec<Array>) -> Self {
        Self { arrays, writable: false, written: None }
    }

    /// New buffers of `capacity` positions that begin with these arrays, `[1, kv_heads, held, ..]`. There is always room for one
    /// position more: a concatenation of two parts has memory of its own.
    pub(super) fn fresh(first: &[Array], capacity: usize) -> Result<Self> {
        let fill = |array: &Array| {
            let room = (capacity as i32).max(array.dim(2) + 1) - array.dim(2);
            let room = [array.dim(0), array.dim(1), room, array.dim(3)];
            ops::concatenate(&[array, &ops::zeros_dtype(&room, array.dtype())?], 2)
        };
        let arrays = first.iter().map(fill).collect::<Result<_>>()?;
        Ok(Self { arrays, writable: true, written: None })
    }

    /// New buffers of zeros like these arrays, for `capacity` positions.
    fn zeros(like: &[Array], capacity: usize) -> Result<Self> {
        let zeros = |array: &Array| {
            ops::zeros_dtype(&[1, array.dim(1), capacity as i32, array.dim(3)], array.dtype())
        };
        Ok(Self { arrays: like.iter().map(zeros).collect::<Result<_>>()?, writable: true, written: None })
    }

    /// How many positions there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.arrays.first().map_or(0, |array| array.dim(2) as usize)
    }

    /// The arrays, after all writes in place were submitted: what reads them runs later on the same stream.
    pub(super) fn ready(&self) -> Result<&[Array]> {
        if let Some(written) = &self.written {
            transforms::async_eval([&**written])?;
        }
        Ok(&self.arrays)
    }

    /// The positions `start..end`, in the form in which they are kept.
    pub(super) fn read(&self, start: usize, end: usize) -> Result<Vec<Array>> {
        if self.arrays.is_empty() {
            return Err(unwritten());
        }
        self.ready()?.iter().map(|array| slice(array, 2, start as i32, end as i32)).collect()
    }

    /// A copy of the first `held` positions of one row, with room for `capacity`.
    pub(super) fn copy_row(&self, row: usize, held: usize, capacity: usize) -> Result<Self> {
        let first = |array: &Array| {
            let held = held.min(array.dim(2) as usize) as i32;
            slice(&slice(array, 0, row as i32, row as i32 + 1)?, 2, 0, held)
        };
        let first = self.ready()?.iter().map(first).collect::<Result<Vec<_>>>()?;
        Self::fresh(&first, capacity)
    }

    /// Makes room for `capacity` positions in the buffers of one row, which hold `held`. `like` has the types and sizes to keep.
    /// `in_place` says that they are written in place next.
    fn reserve(&mut self, held: usize, capacity: usize, like: &[Array], in_place: bool) -> Result<()> {
        let current = self.capacity();
        if current >= capacity && (self.writable || !in_place) {
            return Ok(());
        }
        let held = held.min(current);
        if held == 0 {
            *self = Self::zeros(like, capacity)?;
            return Ok(());
        }
        let copied = self.copy_row(0, held, capacity)?;
        if !self.writable {
            // Another owner of the memory may write to it: copy it first.
            transforms::async_eval(&copied.arrays)?;
        }
        *self = copied;
        Ok(())
    }

    /// Writes several tokens of one row to the slots from `slot` on, with MLX's operations.
    fn write(&mut self, slot: usize, new: &[Array]) -> Result<()> {
        // Taken out first: MLX reuses the memory of a buffer that has one owner.
        let arrays = std::mem::take(&mut self.arrays).into_iter().zip(new);
        let updated = arrays.map(|(array, new)| slice_update(array, new, 2, slot as i32));
        *self = Self::from_views(updated.collect::<Result<_>>()?);
        Ok(())
    }

    /// Writes the tokens of each row to the slots of `slots` `[rows, 1, T, 1]` (i32).
    pub(super) fn scatter(&mut self, slots: &Array, new: &[Array]) -> Result<()> {
        let arrays = std::mem::take(&mut self.arrays).into_iter().zip(new);
        let updated = arrays.map(|(array, new)| array.put_along_axis(slots, new, 2));
        *self = Self::from_views(updated.collect::<Result<_>>()?);
        Ok(())
    }
}

/// One layer of one row.
pub(super) struct Layer<'a> {
    pub(super) window: Window,
    pub(super) scheme: Option<QuantizationScheme>,
    pub(super) buffers: &'a mut LayerBuffers,
}

impl Layer<'_> {
    /// Adds keys and values `[1, kv_heads, T, head_dim]` at `position` and returns what their queries attend to, oldest first:
    /// `[1, kv_heads, S, head_dim]` with S ≥ T, the last T of them the new ones.
    ///
    /// A layer with a window of `w` positions returns at most `w - 1` positions before the first new one, sinks first. For T = 1
    /// they are in the order of their slots, which attention ignores: keys carry their positions.
    ///
    /// The first `count` of the T tokens are the row's. Padding behind them pushes nothing out of a window.
    ///
    /// # Errors
    /// MLX's own.
    pub(super) fn update(&mut self, position: usize, new: [&Array; 2], count: usize) -> Result<[Array; 2]> {
        let tokens = new[0].dim(2) as usize;
        let new = quantize_kv(new, self.scheme)?;
        let seen = match self.window.size {
            Some(size) if !self.window.fits_contiguously(position, tokens) => {
                self.wrap(position, size, new, count)?
            }
            _ => {
                self.make_room(position, tokens, &new, false)?;
                self.buffers.ready()?;
                self.buffers.write(self.window.slot(position), &new)?;
                self.buffers.read(0, self.window.held(position + tokens))?
            }
        };
        dequantize_kv(&seen, self.scheme)
    }

    /// Sets the first tokens of an empty layer: keys and values `[1, kv_heads, T, head_dim]`, which may be views.
    ///
    /// # Errors
    /// MLX's own.
    pub(super) fn fill(&mut self, new: [&Array; 2]) -> Result<()> {
        let tokens = new[0].dim(2) as usize;
        let new = quantize_kv(new, self.scheme)?;
        match self.window.size {
            Some(size) if !self.window.fits_contiguously(0, tokens) => {
                self.wrap(0, size, new, tokens)?;
            }
            _ => *self.buffers = LayerBuffers::fresh(&new, self.capacity_for(tokens))?,
        }
        Ok(())
    }

    /// Makes room for `tokens` at `position` that fit contiguously. `in_place` says that they are written in place.
    pub(super) fn make_room(
        &mut self,
        position: usize,
        tokens: usize,
        like: &[Array],
        in_place: bool,
    ) -> Result<()> {
        let capacity = self.capacity_for(position + tokens);
        self.buffers.reserve(self.window.held(position), capacity, like, in_place)
    }

    /// The capacity of a buffer that holds `len` tokens.
    fn capacity_for(&self, len: usize) -> usize {
        self.window.held(len.next_multiple_of(STEP))
    }

    /// Adds several tokens that wrap around the window: returns what they attend to in order, and keeps the end of it, without the
    /// padding behind the first `count`.
    fn wrap(&mut self, position: usize, size: usize, new: Vec<Array>, count: usize) -> Result<Vec<Array>> {
        let Window { keep, .. } = self.window;
        let (end, padding) = (position + count, new[0].dim(2) - count as i32);
        let (sinks, before) = (keep.min(position), self.window.before(position, size));
        let mut seen = new;
        if before > 0 {
            let first = self.window.slot(position - before);
            let held = position.min(size);
            let old = if first + before <= held {
                self.buffers.read(first, first + before)?
            } else {
                let wrapped = self.buffers.read(keep, keep + first + before - held)?;
                append(&self.buffers.read(first, held)?, &wrapped)?
            };
            seen = append(&old, &seen)?;
        }
        if sinks > 0 {
            seen = append(&self.buffers.read(0, sinks)?, &seen)?;
        }
        let total = seen[0].dim(2) - padding;
        // The last positions, rotated so that each lies in its slot, behind the sinks.
        let ring = size - keep;
        let start = (end.saturating_sub(size) % ring) as i32;
        let (split, keep) = (total - start, total.min(keep as i32));
        let from = keep.max(total - ring as i32);
        let rotated = |array: &Array| {
            let parts = [(0, keep), (split, total), (from, split)];
            let parts = parts.into_iter().filter(|(start, end)| start < end);
            let parts = parts.map(|(start, end)| slice(array, 2, start, end)).collect::<Result<Vec<_>>>()?;
            ops::concatenate(&parts, 2)
        };
        *self.buffers = LayerBuffers::from_views(seen.iter().map(rotated).collect::<Result<_>>()?);
        Ok(seen)
    }
}

fn append(a: &[Array], b: &[Array]) -> Result<Vec<Array>> {
    a.iter().zip(b).map(|(a, b)| ops::concatenate(&[a, b], 2)).collect()
}
