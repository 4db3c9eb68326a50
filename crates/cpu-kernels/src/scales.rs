//! The scales and biases of quantised rows, and the memory of matrix elements.

use std::{ops::Range, slice};

use crate::{
    element::widen,
    minifloat::{e4m3, e8m0},
    operand::{Floats, Matrices, Scales, Weights, with_slice},
    quantization::QuantMode,
    scratch::Scratch,
    simd::Simd,
    storage::Storage,
};

/// The scales and biases of some rows of a matrix, in single precision.
pub(crate) struct RowScales {
    /// `[rows, width]`, with zeros behind the groups of a row.
    scales: Scratch,
    /// As the scales; empty if the encoding has no biases.
    biases: Scratch,
    width: usize,
    /// Lanes of a block that share a group.
    pub(crate) lanes_per_group: usize,
    pub(crate) biased: bool,
}

impl RowScales {
    /// Reads those of `count` rows from row `first` on, counted through all matrices.
    #[inline(always)]
    pub(crate) fn read<T: Storage, S: Simd>(w: &Matrices<'_>, first: usize, count: usize) -> Self {
        let mut scales = Self::with_rows::<T, S>(w, count);
        scales.fill::<S>(w, first, count);
        scales
    }

    /// Room for those of `count` rows.
    #[inline(always)]
    pub(crate) fn with_rows<T: Storage, S: Simd>(w: &Matrices<'_>, count: usize) -> Self {
        let Weights::Quantized { quantization, scales, .. } = &w.weights else {
            return Self {
                scales: Scratch::new(0),
                biases: Scratch::new(0),
                width: 0,
                lanes_per_group: 1,
                biased: false,
            };
        };
        let width = padded_groups::<S>(w.inputs / quantization.group_size);
        let biased = matches!(scales, Scales::Affine { .. });
        Self {
            scales: Scratch::zeroed(count * width),
            biases: Scratch::zeroed(if biased { count * width } else { 0 }),
            width,
            lanes_per_group: quantization.group_size / T::VALUES,
            biased,
        }
    }

    /// Reads those of `count` rows from row `first` on. `with_rows` made room for as many.
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(&mut self, w: &Matrices<'_>, first: usize, count: usize) {
        let Weights::Quantized { quantization, scales, .. } = &w.weights else { return };
        let groups = w.inputs / quantization.group_size;
        let range = first * groups..(first + count) * groups;
        match scales {
            Scales::Affine { scales, biases } => {
                widen_rows::<S>(scales, range.clone(), groups, self.width, &mut self.scales);
                widen_rows::<S>(biases, range, groups, self.width, &mut self.biases);
            }
            Scales::Bytes(bytes) => {
                let value = if quantization.mode == QuantMode::Nvfp4 { e4m3 } else { e8m0 };
                let rows = self.scales.chunks_exact_mut(self.width);
                for (out, row) in rows.zip(bytes[range].chunks_exact(groups.max(1))) {
                    out.iter_mut().zip(row).for_each(|(out, byte)| *out = value(*byte));
                }
            }
        }
    }

    /// Prefetches those of a row, which may lie beyond the end, for a later [`fill`](Self::fill).
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(w: &Matrices<'_>, row: usize) {
        let Weights::Quantized { quantization, scales, .. } = &w.weights else { return };
        let groups = w.inputs / quantization.group_size;
        match scales {
            Scales::Affine { scales, biases } => {
                for floats in [scales, biases] {
                    with_slice!(floats, Floats, floats => prefetch::<_, S>(floats, row * groups, groups));
                }
            }
            Scales::Bytes(bytes) => prefetch::<_, S>(bytes, row * groups, groups),
        }
    }

    /// The group of each lane of a vector, relative to the group of the first lane.
    #[inline(always)]
    pub(crate) fn lane_groups<S: Simd>(&self) -> Vec<u32> {
        (0..S::LANES).map(|lane| (lane / self.lanes_per_group) as u32).collect()
    }

    #[inline(always)]
    pub(crate) fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.width..][..self.width]
    }

    #[inline(always)]
    pub(crate) fn biases(&self, row: usize) -> &[f32] {
        &self.biases[row * self.width..][..self.width]
    }
}

/// The number of groups, plus padding: a vector read from the last group on stays within the row.
#[inline(always)]
pub(crate) fn padded_groups<S: Simd>(groups: usize) -> usize {
    (groups + S::LANES).next_multiple_of(S::LANES)
}

/// The memory of a matrix's elements.
pub(crate) fn element_bytes<'a>(weights: &Weights<'a>) -> &'a [u8] {
    fn bytes<T>(slice: &[T]) -> &[u8] {
        // SAFETY: element types are plain numbers, and the bytes are those of the slice.
        unsafe { slice::from_raw_parts(slice.as_ptr().cast(), size_of_val(slice)) }
    }
    match weights {
        Weights::Dense(floats) => with_slice!(floats, Floats, floats => bytes(floats)),
        Weights::Quantized { words, .. } => bytes(words),
    }
}

/// Converts rows of `groups` floats to `f32` rows that are `width` apart.
#[inline(always)]
fn widen_rows<S: Simd>(
    floats: &Floats<'_>,
    range: Range<usize>,
    groups: usize,
    width: usize,
    out: &mut [f32],
) {
    with_slice!(floats, Floats, floats => {
        for (out, row) in out.chunks_exact_mut(width).zip(floats[range].chunks_exact(groups.max(1))) {
            widen::<_, S>(row, &mut out[..groups]);
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch<T, S: Simd>(slice: &[T], first: usize, count: usize) {
    let start = slice.as_ptr().wrapping_add(first).cast::<u8>();
    for line in (0..count * size_of::<T>()).step_by(64) {
        // SAFETY: see `Isa::run`; any address may be prefetched.
        unsafe { S::prefetch(start.wrapping_add(line)) };
    }
}
