//! Products of up to four rows of `x`: a vector of the matrix is multiplied with a vector of each row, and sums lie across lanes.

use std::{arch::x86_64::*, marker::PhantomData};

use half::bf16;

use super::{
    rows::Bf16Rows,
    unpack::{BF16_BLOCK, Bf16Dot, MAX_BF16_BLOCK_BYTES, dot, group_size},
};
use crate::{
    gemv::PREFETCH_BYTES,
    operand::Matrices,
    scales::{RowScales, element_bytes},
    simd::{Simd as _, avx512::Avx512},
};

/// Rows of the matrix whose scales are converted at once.
const SCALE_ROWS: usize = 8;

/// The products of up to four rows of `x` with some rows of a matrix.
pub(crate) struct Bf16Gemv<'a, P> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row of the matrix, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a Bf16Rows,
    /// The rows of `x` to multiply.
    pub(crate) rows: &'a [usize],
    /// `[rows, outputs]`. Its length says how many rows of the matrix to multiply.
    pub(crate) out: &'a mut [f32],
    pub(crate) storage: PhantomData<P>,
}

impl<P: Bf16Dot> Bf16Gemv<'_, P> {
    /// # Safety
    /// The machine has AVX-512 bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn run(self) {
        let group_size = group_size(self.w);
        match group_size / BF16_BLOCK {
            0 => self.rows::<0>(group_size),
            1 => self.rows::<1>(group_size),
            _ => self.rows::<2>(group_size),
        }
    }

    /// `SPAN` blocks share a group; 0 if a block has several groups.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn rows<const SPAN: usize>(self, group_size: usize) {
        match self.rows.len() {
            0 => {}
            1 => self.outputs::<1, SPAN>(group_size),
            2 => self.outputs::<2, SPAN>(group_size),
            _ => self.outputs::<4, SPAN>(group_size),
        }
    }

    /// Multiplies one row of the matrix after the other, in the order of memory, which reads fastest. Each meets `M` rows of `x`.
    /// With fewer rows of `x`, the last is repeated.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn outputs<const M: usize, const SPAN: usize>(self, group_size: usize) {
        let count = self.out.len() / self.rows.len();
        let row_bytes = self.w.inputs * P::BITS / 8;
        let bytes = element_bytes(&self.w.weights);
        let row = |m: usize| self.rows[m.min(self.rows.len() - 1)];
        let x: [&[bf16]; M] =
            std::array::from_fn(|m| &self.x.elements[row(m) * self.x.width..][..self.x.width]);
        let sums: [&[f32]; M] =
            std::array::from_fn(|m| &self.x.sums[row(m) * self.x.sums_width..][..self.x.sums_width]);
        let mut scales = RowScales::with_rows::<P, Avx512>(self.w, SCALE_ROWS);
        // A lane sums four elements.
        let lane_groups: [i32; 16] = std::array::from_fn(|lane| (lane * 4 / group_size) as i32);
        // SAFETY: all sixteen are there.
        let lane_groups = unsafe { _mm512_loadu_si512(lane_groups.as_ptr().cast()) };
        for output in 0..count {
            if output.is_multiple_of(SCALE_ROWS) {
                scales.fill::<Avx512>(self.w, self.first + output, SCALE_ROWS.min(count - output));
            }
            RowScales::prefetch::<Avx512>(self.w, self.first + output + SCALE_ROWS);
            let mut row = RowProduct::<M, SPAN> {
                x: x.map(<[_]>::as_ptr),
                scales: scales.scales(output % SCALE_ROWS).as_ptr(),
                lane_groups,
                // The group size is a power of two.
                group_bits: group_size.trailing_zeros(),
                totals: [[_mm512_setzero_ps(); 2]; M],
            };
            let from = &bytes[(self.first + output) * row_bytes..][..row_bytes];
            // SAFETY: the machine has AVX-512 bf16. `x`, the sums and the scales belong to a row of this matrix.
            unsafe {
                if scales.biased {
                    row.add_biases::<P>(scales.biases(output % SCALE_ROWS), &sums);
                }
                row.add_blocks::<P>(from);
            }
            for (m, [even, odd]) in row.totals.into_iter().enumerate().take(self.rows.len()) {
                self.out[m * count + output] = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
            }
        }
    }
}

/// The products of a row of a matrix with `M` rows of `x`.
struct RowProduct<const M: usize, const SPAN: usize> {
    x: [*const bf16; M],
    scales: *const f32,
    /// The group of each lane, relative to the group of the first lane.
    lane_groups: __m512i,
    /// The base-2 logarithm of the group size.
    group_bits: u32,
    /// Two sums for each row of `x`, so that an addition does not wait for the one before it.
    totals: [[__m512; 2]; M],
}

impl<const M: usize, const SPAN: usize> RowProduct<M, SPAN> {
    /// Adds the products of the biases with the sums of groups.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16. `sums` have one length, a multiple of 16, and the biases and scales are at least as long.
    #[inline(always)]
    unsafe fn add_biases<P: Bf16Dot>(&mut self, biases: &[f32], sums: &[&[f32]; M]) {
        for (m, sums) in sums.iter().enumerate() {
            for (index, sums) in sums.chunks_exact(16).enumerate() {
                // SAFETY: the caller's.
                unsafe {
                    let scales = _mm512_loadu_ps(self.scales.add(16 * index));
                    let biases = _mm512_loadu_ps(biases.as_ptr().add(16 * index));
                    let biases = _mm512_fnmadd_ps(scales, _mm512_set1_ps(P::OFFSET), biases);
                    let sums = _mm512_loadu_ps(sums.as_ptr());
                    self.totals[m][0] = _mm512_fmadd_ps(biases, sums, self.totals[m][0]);
                }
            }
        }
    }

    /// Adds the products of all blocks of a row.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16. Rows of `x` have as many blocks, the last padded, and scales have padding behind the last.
    #[inline(always)]
    unsafe fn add_blocks<P: Bf16Dot>(&mut self, row: &[u8]) {
        let (whole, rest) = (row.len() / P::BLOCK_BYTES, row.len() % P::BLOCK_BYTES);
        // SAFETY: the caller's. Blocks up to `whole` lie within the row. Any address may be prefetched.
        unsafe {
            let block = |index: usize| row.as_ptr().wrapping_add(index * P::BLOCK_BYTES);
            for index in (0..whole & !1).step_by(2) {
                for line in (0..2 * P::BLOCK_BYTES).step_by(64) {
                    Avx512::prefetch(block(index).wrapping_add(PREFETCH_BYTES + line));
                }
                self.add_block::<P>(index, block(index), 0);
                self.add_block::<P>(index + 1, block(index + 1), 1);
            }
            if !whole.is_multiple_of(2) {
                self.add_block::<P>(whole - 1, block(whole - 1), 0);
            }
            if rest > 0 {
                // A part of a block is copied to where zeros follow it.
                let mut copy = [0_u8; MAX_BF16_BLOCK_BYTES];
                copy[..rest].copy_from_slice(&row[whole * P::BLOCK_BYTES..]);
                self.add_block::<P>(whole, copy.as_ptr(), 0);
            }
        }
    }

    /// Adds the products of block `index` to the totals of this parity.
    ///
    /// # Safety
    /// As for [`add_blocks`](Self::add_blocks); the block is whole.
    #[inline(always)]
    unsafe fn add_block<P: Bf16Dot>(&mut self, index: usize, from: *const u8, parity: usize) {
        // SAFETY: the caller's.
        unsafe {
            let values = P::unpack(from);
            let scale = match SPAN {
                _ if !P::SCALED => _mm512_setzero_ps(),
                0 => {
                    let group = self.scales.add((index * BF16_BLOCK) >> self.group_bits);
                    _mm512_permutexvar_ps(self.lane_groups, _mm512_loadu_ps(group))
                }
                _ => _mm512_set1_ps(*self.scales.add(index / SPAN)),
            };
            for m in 0..M {
                let x = self.x[m].add(index * BF16_BLOCK);
                let totals = &mut self.totals[m];
                if P::SCALED {
                    let sum = dot(dot(_mm512_setzero_ps(), values[0], x), values[1], x.add(32));
                    totals[parity] = _mm512_fmadd_ps(sum, scale, totals[parity]);
                } else {
                    *totals = [dot(totals[0], values[0], x), dot(totals[1], values[1], x.add(32))];
                }
            }
        }
    }
}
