//! The scales and biases of quantised rows, and the memory of matrix elements.

use std::slice;

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
    /// `[rows, groups]`, and padding behind the last row: a vector that begins at a group of any row lies within the memory.
    scales: Scratch,
    /// As the scales; empty if the encoding has no biases.
    biases: Scratch,
    groups: usize,
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
                groups: 0,
                lanes_per_group: 1,
                biased: false,
            };
        };
        let groups = w.inputs / quantization.group_size;
        let (biased, len) = (matches!(scales, Scales::Affine { .. }), count * groups + S::LANES);
        Self {
            scales: Scratch::zeroed(len),
            biases: Scratch::zeroed(if biased { len } else { 0 }),
            groups,
            lanes_per_group: quantization.group_size / T::VALUES,
            biased,
        }
    }

    /// Reads those of `count` rows from row `first` on. `with_rows` made room for as many.
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(&mut self, w: &Matrices<'_>, first: usize, count: usize) {
        let Weights::Quantized { quantization, scales, .. } = &w.weights else { return };
        let range = first * self.groups..(first + count) * self.groups;
        match scales {
            Scales::Affine { scales, biases } => {
                for (floats, out) in [(scales, &mut self.scales), (biases, &mut self.biases)] {
                    with_slice!(floats, Floats, floats => {
                        widen::<_, S>(&floats[range.clone()], &mut out[..range.len()]);
                    });
                }
            }
            Scales::Bytes(bytes) => {
                let scales = self.scales.iter_mut().zip(&bytes[range]);
                // A loop for each, so that both are vectors.
                if quantization.mode == QuantMode::Nvfp4 {
                    scales.for_each(|(out, byte)| *out = e4m3(*byte));
                } else {
                    scales.for_each(|(out, byte)| *out = e8m0(*byte));
                }
            }
        }
    }

    /// Prefetches those of `count` rows, which may lie beyond the end, for a later [`fill`](Self::fill).
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(&self, w: &Matrices<'_>, first: usize, count: usize) {
        let Weights::Quantized { scales, .. } = &w.weights else { return };
        let (first, count) = (first * self.groups, count * self.groups);
        match scales {
            Scales::Affine { scales, biases } => {
                for floats in [scales, biases] {
                    with_slice!(floats, Floats, floats => prefetch::<_, S>(floats, first, count));
                }
            }
            Scales::Bytes(bytes) => prefetch::<_, S>(bytes, first, count),
        }
    }

    /// The group of each lane of block `block`, relative to the group of the first lane. Lanes behind the end of a row, which count for
    /// nothing, have the last group of the row: a scale of the next row, which may be infinite, would count.
    #[inline(always)]
    pub(crate) fn lane_groups<S: Simd>(&self, block: usize) -> Vec<u32> {
        let last = self.groups.saturating_sub(1 + self.first_group::<S>(block));
        (0..S::LANES).map(|lane| (lane / self.lanes_per_group).min(last) as u32).collect()
    }

    /// The group of the first lane of a block.
    #[inline(always)]
    pub(crate) fn first_group<S: Simd>(&self, block: usize) -> usize {
        block * S::LANES / self.lanes_per_group
    }

    /// Groups of a row.
    #[inline(always)]
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// Where the scales and the biases of a row begin. Nobody reads either where there are none.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> [*const f32; 2] {
        let start = row * self.groups;
        [self.scales.as_ptr().wrapping_add(start), self.biases.as_ptr().wrapping_add(start)]
    }

    #[inline(always)]
    pub(crate) fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.groups..][..self.groups]
    }

    #[inline(always)]
    pub(crate) fn biases(&self, row: usize) -> &[f32] {
        &self.biases[row * self.groups..][..self.groups]
    }
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

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch<T, S: Simd>(slice: &[T], first: usize, count: usize) {
    let start = slice.as_ptr().wrapping_add(first).cast::<u8>();
    for line in (0..count * size_of::<T>()).step_by(64) {
        // SAFETY: see `Isa::run`; any address may be prefetched.
        unsafe { S::prefetch(start.wrapping_add(line)) };
    }
}
