//! Matrix products of up to eight rows of `x` (GEMV): each element of the matrix is read once and unpacked in registers.

use std::marker::PhantomData;

use crate::{
    element::widen,
    operand::{Floats, Matrices, Weights, with_slice},
    quantization::QuantMode,
    scales::{RowScales, element_bytes},
    simd::{Kernel, Simd},
    storage::{MAX_BLOCK_BYTES, Storage, block_bytes, padded_len, permute_row},
};

/// Rows of `x` of one GEMV, at most.
pub(crate) const GEMV_ROWS: usize = 8;

/// How many bytes ahead of those in use the matrix is prefetched, into the second-level cache. One thread of an EPYC (Zen 4) reads a
/// 4-bit matrix of 1152 × 6912 with 18.6 GB/s this way, and with 14.1 GB/s from 2 KiB ahead in the first level.
pub(crate) const PREFETCH_BYTES: usize = 8 << 10;

/// Rows of `x`, reordered to match the unpacked vectors of a storage.
pub(crate) struct PermutedRows {
    /// `[rows, width]`, in whole blocks.
    elements: Vec<f32>,
    width: usize,
    /// The sum of each group of elements, which the biases are multiplied with: `[rows, groups]`.
    sums: Vec<f32>,
    groups: usize,
}

impl PermutedRows {
    #[inline(always)]
    fn row(&self, row: usize) -> &[f32] {
        &self.elements[row * self.width..][..self.width]
    }

    #[inline(always)]
    fn sums(&self, row: usize) -> &[f32] {
        &self.sums[row * self.groups..][..self.groups]
    }
}

/// Makes [`PermutedRows`] of all rows of `x`, for matrices like `w`.
pub(crate) struct PermuteRows<'a, T> {
    x: Floats<'a>,
    w: &'a Matrices<'a>,
    storage: PhantomData<T>,
}

impl<'a, T: Storage> PermuteRows<'a, T> {
    pub(crate) fn new(x: Floats<'a>, w: &'a Matrices<'a>) -> Self {
        Self { x, w, storage: PhantomData }
    }
}

impl<T: Storage> Kernel for PermuteRows<'_, T> {
    type Output = PermutedRows;

    #[inline(always)]
    fn run<S: Simd>(self) -> PermutedRows {
        let inputs = self.w.inputs;
        let rows = self.x.len().checked_div(inputs).unwrap_or(0);
        let group_size = match self.w.weights {
            Weights::Quantized { quantization, .. } if quantization.mode == QuantMode::Affine => {
                quantization.group_size
            }
            _ => 0,
        };
        let width = padded_len::<T, S>(inputs);
        let groups = inputs.checked_div(group_size).unwrap_or(0);
        let mut elements = vec![0.0; rows * width];
        let mut sums = vec![0.0; rows * groups];
        let mut row_elements = vec![0.0; width];
        for row in 0..rows {
            with_slice!(self.x, Floats, x => widen::<_, S>(&x[row * inputs..][..inputs], &mut row_elements[..inputs]));
            permute_row::<T, S>(&row_elements, &mut elements[row * width..][..width]);
            if group_size > 0 {
                let parts = row_elements[..inputs].chunks_exact(group_size);
                for (sum, group) in sums[row * groups..].iter_mut().zip(parts) {
                    *sum = group.iter().sum();
                }
            }
        }
        PermutedRows { elements, width, sums, groups }
    }
}

/// The products of up to [`GEMV_ROWS`] rows of `x` with some rows of a matrix.
pub(crate) struct Gemv<'a, T> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row of the matrix, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a PermutedRows,
    /// The rows of `x` to multiply.
    pub(crate) rows: &'a [usize],
    /// `[rows, outputs]`. Its length says how many rows of the matrix to multiply.
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
    /// Multiplies `R` rows of the matrix at a time with `M` rows of `x`. With fewer rows of `x`, the last is repeated.
    #[inline(always)]
    fn outputs<S: Simd, const R: usize, const M: usize>(self) {
        let count = self.out.len() / self.rows.len();
        let row_bytes = self.w.inputs * T::BITS / 8;
        let bytes = element_bytes(&self.w.weights);
        let row = |m: usize| self.rows[m.min(self.rows.len() - 1)];
        let x: [&[f32]; M] = std::array::from_fn(|m| self.x.row(row(m)));
        let sums: [&[f32]; M] = std::array::from_fn(|m| self.x.sums(row(m)));
        let scales = RowScales::read::<T, S>(self.w, self.first, count);
        let whole = row_bytes / block_bytes::<T, S>();
        let lane_groups = [0, whole].map(|block| scales.lane_groups::<S>(block));
        for first in (0..count).step_by(R) {
            let output = |r: usize| (first + r).min(count - 1);
            let rows: [&[u8]; R] =
                std::array::from_fn(|r| &bytes[(self.first + output(r)) * row_bytes..][..row_bytes]);
            let row_scales = std::array::from_fn(|r| scales.scales(output(r)));
            // SAFETY: see `Isa::run`. `lane_groups` has all lanes; rows of the matrix, permuted rows and scales are as long as
            // the matrix's `inputs` require.
            let mut products = unsafe {
                let lane_groups = [S::load_u(lane_groups[0].as_ptr()), S::load_u(lane_groups[1].as_ptr())];
                let scales =
                    TileScales { rows: row_scales, lane_groups, lanes_per_group: scales.lanes_per_group };
                tile::<T, S, R, M>(rows, x, &scales)
            };
            if scales.biased {
                for (r, products) in products.iter_mut().enumerate() {
                    for (product, sums) in products.iter_mut().zip(sums) {
                        // SAFETY: see `Isa::run`.
                        *product += unsafe { dot::<S>(scales.biases(output(r)), sums) };
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
struct TileScales<'a, S: Simd, const R: usize> {
    rows: [&'a [f32]; R],
    /// The group of each lane, relative to the group of the first lane: of whole blocks, and of what is left behind them.
    lane_groups: [S::U; 2],
    lanes_per_group: usize,
}

/// The products of `R` rows of a matrix with `M` rows of `x`, without the biases.
///
/// # Safety
/// The machine has the instruction set. Rows of the matrix have the same whole number of elements. Rows of `x` are permuted and
/// hold as many. Scales belong to these rows.
#[inline(always)]
unsafe fn tile<T: Storage, S: Simd, const R: usize, const M: usize>(
    rows: [&[u8]; R],
    x: [&[f32]; M],
    scales: &TileScales<'_, S, R>,
) -> [[f32; M]; R] {
    let block_bytes = block_bytes::<T, S>();
    let whole = rows[0].len() / block_bytes;
    // SAFETY: the caller's. Whole blocks lie within their row; a part of a block is copied to where zeros follow it.
    unsafe {
        let tables = T::tables::<S>();
        let mut sums = [[S::splat(0.0); M]; R];
        for block in 0..whole {
            let from = std::array::from_fn(|r| rows[r].as_ptr().add(block * block_bytes));
            step::<T, S, R, M>(&mut sums, from, x, (block, scales.lane_groups[0]), scales, tables);
        }
        let rest = rows[0].len() % block_bytes;
        if rest > 0 {
            let mut copies = [[0_u32; MAX_BLOCK_BYTES / 4]; R];
            for (copy, row) in copies.iter_mut().zip(rows) {
                let end = row.as_ptr().add(whole * block_bytes);
                std::ptr::copy_nonoverlapping(end, copy.as_mut_ptr().cast(), rest);
            }
            let from = std::array::from_fn(|r| copies[r].as_ptr().cast());
            step::<T, S, R, M>(&mut sums, from, x, (whole, scales.lane_groups[1]), scales, tables);
        }
        let mut products = [[0.0; M]; R];
        for r in 0..R {
            for m in 0..M {
                products[r][m] = S::reduce_add(sums[r][m]);
            }
        }
        products
    }
}

/// Adds the products of one block of each row, whose lanes belong to these groups.
///
/// # Safety
/// As for [`tile`]. `from` point to whole blocks.
#[inline(always)]
unsafe fn step<T: Storage, S: Simd, const R: usize, const M: usize>(
    sums: &mut [[S::F; M]; R],
    from: [*const u8; R],
    x: [&[f32]; M],
    (block, lane_groups): (usize, S::U),
    scales: &TileScales<'_, S, R>,
    tables: T::Tables<S>,
) {
    // SAFETY: the caller's. Permuted rows have `VALUES` vectors for each block, and scales have padding behind the last.
    unsafe {
        for from in from {
            S::prefetch(from.wrapping_add(PREFETCH_BYTES));
        }
        let mut blocks = [T::load::<S>(from[0]); R];
        for r in 1..R {
            blocks[r] = T::load::<S>(from[r]);
        }
        let mut factors = [S::splat(1.0); R];
        if T::SCALED {
            let group = block * S::LANES / scales.lanes_per_group;
            for (factor, row) in factors.iter_mut().zip(scales.rows) {
                *factor = S::permute(S::load(row.as_ptr().add(group)), lane_groups);
            }
        }
        // For one row of `x`, scaling the sum of a block is less work than scaling each element.
        let scale_sums = T::SCALED && M == 1;
        let mut parts = if scale_sums { [[S::splat(0.0); M]; R] } else { *sums };
        for j in 0..T::VALUES {
            let mut vectors = [S::splat(0.0); M];
            for m in 0..M {
                vectors[m] = S::load(x[m].as_ptr().add((block * T::VALUES + j) * S::LANES));
            }
            for r in 0..R {
                let mut value = T::value::<S>(blocks[r], tables, j);
                if T::SCALED && !scale_sums {
                    value = S::mul(value, factors[r]);
                }
                for m in 0..M {
                    parts[r][m] = S::fma(value, vectors[m], parts[r][m]);
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                sums[r][m] =
                    if scale_sums { S::fma(parts[r][m], factors[r], sums[r][m]) } else { parts[r][m] };
            }
        }
    }
}

/// The dot product of two slices of one length.
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "operands of one length");
    let whole = a.len() - a.len() % S::LANES;
    // SAFETY: the caller's; whole vectors lie within both slices.
    let sum = unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            sum = S::fma(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)), sum);
        }
        S::reduce_add(sum)
    };
    a[whole..].iter().zip(&b[whole..]).fold(sum, |sum, (a, b)| a.mul_add(*b, sum))
}
