//! Products of a few rows of `x` with many rows of a matrix: each element of the matrix is read once, and unpacked in
//! registers.

use std::{marker::PhantomData, ops::Range, slice};

use crate::{
    Floats, Matrices, QuantMode, Scales, Weights,
    element::widen,
    isa::Kernel,
    operand::with_slice,
    simd::Simd,
    storage::{LARGEST, Storage, arrange, arranged_len, block_bytes},
    unpack::{e4m3, e8m0},
};

/// Rows of `x` that are multiplied at once, at most.
pub(crate) const ROWS: usize = 8;

/// Bytes of a matrix ahead of those in use that are fetched into the second cache. One thread of an EPYC (Zen 4) reads 1152 × 6912 in 4
/// bits with 18.6 GB/s so, and with 14.1 where 2 KiB ahead are fetched into the first.
pub(crate) const AHEAD: usize = 8 << 10;

/// Rows of `x` in the order in which their elements meet those of a matrix.
pub(crate) struct Arranged {
    /// Row by row, in whole blocks.
    elements: Vec<f32>,
    width: usize,
    /// Of each group of elements, for the biases; row by row, with zeros behind.
    sums: Vec<f32>,
    sums_width: usize,
}

impl Arranged {
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.elements[row * self.width..][..self.width]
    }

    #[inline(always)]
    fn sums(&self, row: usize) -> &[f32] {
        &self.sums[row * self.sums_width..][..self.sums_width]
    }
}

/// Makes an [`Arranged`] of rows with `inputs` elements, for matrices like `w`.
pub(crate) struct Arrange<'a, T> {
    x: Floats<'a>,
    w: &'a Matrices<'a>,
    storage: PhantomData<T>,
}

impl<'a, T: Storage> Arrange<'a, T> {
    pub(crate) fn new(x: Floats<'a>, w: &'a Matrices<'a>) -> Self {
        Self { x, w, storage: PhantomData }
    }
}

impl<T: Storage> Kernel for Arrange<'_, T> {
    type Output = Arranged;

    #[inline(always)]
    fn run<S: Simd>(self) -> Arranged {
        let inputs = self.w.inputs;
        let rows = self.x.len().checked_div(inputs).unwrap_or(0);
        let group_size = match self.w.weights {
            Weights::Quantized { quantization, .. } if quantization.mode == QuantMode::Affine => {
                quantization.group_size
            }
            _ => 0,
        };
        let width = arranged_len::<T, S>(inputs);
        let sums_width = padded::<S>(inputs.checked_div(group_size).unwrap_or(0));
        let mut elements = vec![0.0; rows * width];
        let mut sums = vec![0.0; rows * sums_width];
        let mut row_elements = vec![0.0; width];
        for row in 0..rows {
            with_slice!(self.x, Floats, x => widen::<_, S>(&x[row * inputs..][..inputs], &mut row_elements[..inputs]));
            arrange::<T, S>(&row_elements, &mut elements[row * width..][..width]);
            if group_size > 0 {
                let groups = row_elements[..inputs].chunks_exact(group_size);
                for (sum, group) in sums[row * sums_width..].iter_mut().zip(groups) {
                    *sum = group.iter().sum();
                }
            }
        }
        Arranged { elements, width, sums, sums_width }
    }
}

/// The products of up to [`ROWS`] rows of `x` with rows of a matrix.
pub(crate) struct Gemv<'a, T> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a Arranged,
    /// Which rows of `x`.
    pub(crate) rows: &'a [usize],
    /// `[rows, outputs]`, of as many rows of the matrix as there is room for.
    pub(crate) out: &'a mut [f32],
    pub(crate) storage: PhantomData<T>,
}

impl<T: Storage> Kernel for Gemv<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match self.rows.len() {
            0 => {}
            1 => self.outputs::<S, 4, 1>(),
            2..=4 => self.outputs::<S, 4, 4>(),
            _ => self.outputs::<S, 2, 8>(),
        }
    }
}

impl<T: Storage> Gemv<'_, T> {
    /// `R` rows of the matrix at a time, with `M` rows of `x`, the last of them more than once where there are fewer.
    #[inline(always)]
    fn outputs<S: Simd, const R: usize, const M: usize>(self) {
        let count = self.out.len() / self.rows.len();
        let row_bytes = self.w.inputs * T::BITS / 8;
        let bytes = elements(&self.w.weights);
        let row = |m: usize| self.rows[m.min(self.rows.len() - 1)];
        let x: [&[f32]; M] = std::array::from_fn(|m| self.x.row(row(m)));
        let sums: [&[f32]; M] = std::array::from_fn(|m| self.x.sums(row(m)));
        let groups = Groups::read::<T, S>(self.w, self.first, count);
        let lanes = groups.lanes::<S>();
        for first in (0..count).step_by(R) {
            let output = |r: usize| (first + r).min(count - 1);
            let rows: [&[u8]; R] =
                std::array::from_fn(|r| &bytes[(self.first + output(r)) * row_bytes..][..row_bytes]);
            let scales = std::array::from_fn(|r| groups.scales(output(r)));
            // SAFETY: the machine has the instructions, or this were not run; `lanes` has all lanes; rows, arranged rows
            // and groups are as long as the matrix's `inputs` ask for.
            let mut products = unsafe {
                let lanes = S::load_u(lanes.as_ptr());
                tile::<T, S, R, M>(rows, x, &Scaling { scales, lanes, group: groups.lanes })
            };
            if groups.biased {
                for (r, products) in products.iter_mut().enumerate() {
                    for (product, sums) in products.iter_mut().zip(sums) {
                        // SAFETY: the machine has the instructions.
                        *product += unsafe { dot::<S>(groups.biases(output(r)), sums) };
                    }
                }
            }
            for (r, products) in products.iter().enumerate().take(count - first) {
                for (m, product) in products.iter().enumerate().take(self.rows.len()) {
                    self.out[m * count + first + r] = *product;
                }
            }
        }
    }
}

/// The scales of `R` rows of a matrix.
struct Scaling<'a, S: Simd, const R: usize> {
    scales: [&'a [f32]; R],
    /// The group of each lane, counted from that of the first.
    lanes: S::U,
    /// Lanes that share a group.
    group: usize,
}

/// Products of each of `R` rows of a matrix with each of `M` rows of `x`, biases aside.
///
/// # Safety
/// The machine has the instructions. Rows have the same whole number of elements; rows of `x` are arranged and hold as many;
/// scales are of these rows.
#[inline(always)]
unsafe fn tile<T: Storage, S: Simd, const R: usize, const M: usize>(
    rows: [&[u8]; R],
    x: [&[f32]; M],
    scaling: &Scaling<'_, S, R>,
) -> [[f32; M]; R] {
    let block_bytes = block_bytes::<T, S>();
    let whole = rows[0].len() / block_bytes;
    // SAFETY: the caller's, and see at the pointers.
    unsafe {
        let tables = T::tables::<S>();
        let mut sums = [[S::splat(0.0); M]; R];
        for block in 0..whole {
            // Whole blocks lie within their row.
            let from = std::array::from_fn(|r| rows[r].as_ptr().add(block * block_bytes));
            step::<T, S, R, M>(&mut sums, from, x, block, scaling, tables);
        }
        let rest = rows[0].len() % block_bytes;
        if rest > 0 {
            // What remains is copied to where zeros follow it.
            let mut copies = [[0_u32; LARGEST / 4]; R];
            for (copy, row) in copies.iter_mut().zip(rows) {
                let end = row.as_ptr().add(whole * block_bytes);
                std::ptr::copy_nonoverlapping(end, copy.as_mut_ptr().cast(), rest);
            }
            let from = std::array::from_fn(|r| copies[r].as_ptr().cast());
            step::<T, S, R, M>(&mut sums, from, x, whole, scaling, tables);
        }
        // By hand: a closure would be a function of its own, without the instructions.
        let mut products = [[0.0; M]; R];
        for r in 0..R {
            for m in 0..M {
                products[r][m] = S::sum(sums[r][m]);
            }
        }
        products
    }
}

/// One block of each row.
///
/// # Safety
/// As for [`tile`]; `from` point to whole blocks.
#[inline(always)]
unsafe fn step<T: Storage, S: Simd, const R: usize, const M: usize>(
    sums: &mut [[S::F; M]; R],
    from: [*const u8; R],
    x: [&[f32]; M],
    block: usize,
    scaling: &Scaling<'_, S, R>,
    tables: T::Tables<S>,
) {
    // SAFETY: the caller's; arranged rows have `VALUES` vectors for each block, and groups padding behind the last.
    unsafe {
        let blocks = from.map(|from| {
            S::prefetch(from.wrapping_add(AHEAD));
            T::load::<S>(from)
        });
        let scales: [S::F; R] = if T::SCALED {
            let group = block * S::LANES / scaling.group;
            scaling.scales.map(|scales| S::permute(S::load(scales.as_ptr().add(group)), scaling.lanes))
        } else {
            [S::splat(1.0); R]
        };
        // The sum of a block is scaled where that is less work than to scale each element.
        let late = T::SCALED && M == 1;
        let mut parts = if late { [[S::splat(0.0); M]; R] } else { *sums };
        for j in 0..T::VALUES {
            let x: [S::F; M] =
                std::array::from_fn(|m| S::load(x[m].as_ptr().add((block * T::VALUES + j) * S::LANES)));
            for r in 0..R {
                let mut value = T::value::<S>(blocks[r], tables, j);
                if T::SCALED && !late {
                    value = S::mul(value, scales[r]);
                }
                for m in 0..M {
                    parts[r][m] = S::fma(value, x[m], parts[r][m]);
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                sums[r][m] = if late { S::fma(parts[r][m], scales[r], sums[r][m]) } else { parts[r][m] };
            }
        }
    }
}

/// Scales and biases of rows of a matrix, in single precision.
pub(crate) struct Groups {
    /// `[rows, width]` each, with zeros behind the groups of a row.
    scales: Vec<f32>,
    biases: Vec<f32>,
    width: usize,
    /// Lanes of a block that share a group.
    pub(crate) lanes: usize,
    pub(crate) biased: bool,
}

impl Groups {
    /// Those of `count` rows from row `first` on, counted through all matrices.
    #[inline(always)]
    pub(crate) fn read<T: Storage, S: Simd>(w: &Matrices<'_>, first: usize, count: usize) -> Self {
        let mut groups = Self::new::<T, S>(w, count);
        groups.fill::<S>(w, first, count);
        groups
    }

    /// Room for those of `count` rows.
    #[inline(always)]
    pub(crate) fn new<T: Storage, S: Simd>(w: &Matrices<'_>, count: usize) -> Self {
        let Weights::Quantized { quantization, scales, .. } = &w.weights else {
            return Self { scales: Vec::new(), biases: Vec::new(), width: 0, lanes: 1, biased: false };
        };
        let width = padded::<S>(w.inputs / quantization.group_size);
        let biased = matches!(scales, Scales::Affine { .. });
        Self {
            scales: vec![0.0; count * width],
            biases: vec![0.0; if biased { count * width } else { 0 }],
            width,
            lanes: quantization.group_size / T::VALUES,
            biased,
        }
    }

    /// Reads those of `count` rows, for which there is room, from row `first` on.
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(&mut self, w: &Matrices<'_>, first: usize, count: usize) {
        let Weights::Quantized { quantization, scales, .. } = &w.weights else { return };
        let groups = w.inputs / quantization.group_size;
        let all = first * groups..(first + count) * groups;
        match scales {
            Scales::Affine { scales, biases } => {
                spread::<S>(scales, all.clone(), groups, self.width, &mut self.scales);
                spread::<S>(biases, all, groups, self.width, &mut self.biases);
            }
            Scales::Bytes(bytes) => {
                let value = if quantization.mode == QuantMode::Nvfp4 { e4m3 } else { e8m0 };
                let rows = self.scales.chunks_exact_mut(self.width);
                for (out, row) in rows.zip(bytes[all].chunks_exact(groups.max(1))) {
                    out.iter_mut().zip(row).for_each(|(out, byte)| *out = value(*byte));
                }
            }
        }
    }

    /// Fetches those of a row, if there is one, for a later [`fill`](Self::fill).
    #[inline(always)]
    pub(crate) fn fetch<S: Simd>(w: &Matrices<'_>, row: usize) {
        let Weights::Quantized { quantization, scales, .. } = &w.weights else { return };
        let groups = w.inputs / quantization.group_size;
        match scales {
            Scales::Affine { scales, biases } => {
                for floats in [scales, biases] {
                    with_slice!(floats, Floats, floats => fetch::<_, S>(floats, row * groups, groups));
                }
            }
            Scales::Bytes(bytes) => fetch::<_, S>(bytes, row * groups, groups),
        }
    }

    /// The group of each lane, counted from that of the first.
    #[inline(always)]
    pub(crate) fn lanes<S: Simd>(&self) -> Vec<u32> {
        (0..S::LANES).map(|lane| (lane / self.lanes) as u32).collect()
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

/// Rows of as many groups, `width` apart.
#[inline(always)]
fn spread<S: Simd>(floats: &Floats<'_>, all: Range<usize>, groups: usize, width: usize, out: &mut [f32]) {
    with_slice!(floats, Floats, floats => {
        for (out, row) in out.chunks_exact_mut(width).zip(floats[all].chunks_exact(groups.max(1))) {
            widen::<_, S>(row, &mut out[..groups]);
        }
    });
}

/// Fetches elements, if they are there.
#[inline(always)]
fn fetch<T, S: Simd>(slice: &[T], first: usize, count: usize) {
    let start = slice.as_ptr().wrapping_add(first).cast::<u8>();
    for line in (0..count * size_of::<T>()).step_by(64) {
        // SAFETY: the machine has the instructions; a fetch may be of any address.
        unsafe { S::prefetch(start.wrapping_add(line)) };
    }
}

/// The memory of a matrix's elements.
pub(crate) fn elements<'a>(weights: &Weights<'a>) -> &'a [u8] {
    fn bytes<T>(slice: &[T]) -> &[u8] {
        // SAFETY: all element types are plain numbers, and the bytes are those of the slice.
        unsafe { slice::from_raw_parts(slice.as_ptr().cast(), size_of_val(slice)) }
    }
    match weights {
        Weights::Dense(floats) => with_slice!(floats, Floats, floats => bytes(floats)),
        Weights::Quantized { words, .. } => bytes(words),
    }
}

/// So many groups, and behind them a vector, for reads that begin at the last.
fn padded<S: Simd>(groups: usize) -> usize {
    (groups + S::LANES).next_multiple_of(S::LANES)
}

/// The sum of products; both are as long, a multiple of the lanes.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    assert!(a.len() == b.len() && a.len().is_multiple_of(S::LANES), "whole vectors");
    // SAFETY: whole vectors lie within both.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..a.len()).step_by(S::LANES) {
            sum = S::fma(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)), sum);
        }
        S::sum(sum)
    }
}
