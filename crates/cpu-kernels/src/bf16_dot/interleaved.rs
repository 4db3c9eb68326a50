//! Products of five to eight rows of `x`: a vector holds a few elements of four rows side by side, so each block of the matrix is
//! unpacked once for all rows.

use std::{arch::x86_64::*, marker::PhantomData, mem::transmute};

use half::bf16;

use super::{
    rows::Bf16Rows,
    unpack::{BF16_BLOCK, Bf16Dot, MAX_BF16_BLOCK_BYTES, group_size},
};
use crate::{
    gemv::PREFETCH_BYTES,
    operand::Matrices,
    scales::{RowScales, element_bytes},
    simd::{Simd as _, avx512::Avx512},
};

/// Vectors for all rows of `x`.
const VECTORS: usize = 2;
/// Rows of `x` in a vector.
const VECTOR_ROWS: usize = 4;
/// Lanes of a row in a vector. Each holds a pair of elements.
const ROW_LANES: usize = 4;
/// Elements of a row in a vector.
const CHUNK: usize = 2 * ROW_LANES;
/// Chunks of a block.
const BLOCK_CHUNKS: usize = BF16_BLOCK / CHUNK;
/// Rows of the matrix that are multiplied at once.
const OUTPUTS: usize = 4;

/// Up to eight rows of `x`, interleaved.
pub(crate) struct InterleavedRows {
    /// For each chunk of elements, the chunks of all rows.
    chunks: Vec<[__m512i; VECTORS]>,
    /// For each group, the sums of all rows, in the first lane of each row. The biases are multiplied with them.
    sums: Vec<[__m512; VECTORS]>,
    rows: usize,
}

impl InterleavedRows {
    /// Interleaves these rows of `x`.
    pub(crate) fn new(x: &Bf16Rows, rows: &[usize]) -> Self {
        let mut chunks = vec![[[[bf16::ZERO; CHUNK]; VECTOR_ROWS]; VECTORS]; x.width / CHUNK];
        let mut sums = vec![[[[0.0; ROW_LANES]; VECTOR_ROWS]; VECTORS]; x.sums_width];
        for (place, row) in rows.iter().enumerate() {
            let (vector, place) = (place / VECTOR_ROWS, place % VECTOR_ROWS);
            let elements = x.elements[row * x.width..][..x.width].chunks_exact(CHUNK);
            for (to, chunk) in chunks.iter_mut().zip(elements) {
                to[vector][place].copy_from_slice(chunk);
            }
            for (to, sum) in sums.iter_mut().zip(&x.sums[row * x.sums_width..]) {
                to[vector][place][0] = *sum;
            }
        }
        // SAFETY: all types are plain numbers, 512 bits for each vector.
        unsafe {
            Self {
                chunks: chunks.into_iter().map(|of| transmute::<_, [__m512i; VECTORS]>(of)).collect(),
                sums: sums
                    .into_iter()
                    .map(|of| transmute::<[[[f32; ROW_LANES]; VECTOR_ROWS]; VECTORS], _>(of))
                    .collect(),
                rows: rows.len(),
            }
        }
    }
}

/// The products of interleaved rows of `x` with some rows of a matrix.
pub(crate) struct Bf16InterleavedGemv<'a, P> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row of the matrix, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a InterleavedRows,
    /// `[rows, outputs]`. Its length says how many rows of the matrix to multiply.
    pub(crate) out: &'a mut [f32],
    pub(crate) storage: PhantomData<P>,
}

/// A block of each of [`OUTPUTS`] rows of a matrix.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct UnpackedBlock([[[bf16; CHUNK]; BLOCK_CHUNKS]; OUTPUTS]);

/// Sums of [`OUTPUTS`] rows of the matrix with all rows of `x`.
type Sums = [[__m512; VECTORS]; OUTPUTS];

impl<P: Bf16Dot> Bf16InterleavedGemv<'_, P> {
    /// # Safety
    /// The machine has AVX-512 bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn run(self) {
        let count = self.out.len() / self.x.rows;
        let row_bytes = self.w.inputs * P::BITS / 8;
        let bytes = element_bytes(&self.w.weights);
        let mut scales = RowScales::with_rows::<P, Avx512>(self.w, OUTPUTS);
        // The last block of a row, if it is not whole, with zeros behind.
        let mut rest = [[0_u8; MAX_BF16_BLOCK_BYTES]; OUTPUTS];
        let left = row_bytes % P::BLOCK_BYTES;
        for first in (0..count).step_by(OUTPUTS) {
            let outputs = OUTPUTS.min(count - first);
            scales.fill::<Avx512>(self.w, self.first + first, outputs);
            let mut rows = [bytes; OUTPUTS];
            for o in 0..OUTPUTS {
                rows[o] = &bytes[(self.first + first + o.min(outputs - 1)) * row_bytes..][..row_bytes];
                rest[o][..left].copy_from_slice(&rows[o][row_bytes - left..]);
            }
            scales.prefetch::<Avx512>(self.w, self.first + first + OUTPUTS, OUTPUTS);
            // SAFETY: the machine has AVX-512 bf16. The rows, what is left of them, and the scales belong to this matrix.
            let totals = unsafe { self.products(rows, &rest, &scales) };
            for (o, totals) in totals.into_iter().enumerate().take(outputs) {
                // SAFETY: both types are as many plain numbers.
                let lanes: [[f32; ROW_LANES]; VECTORS * VECTOR_ROWS] = unsafe { transmute(totals) };
                for (row, lanes) in lanes.iter().enumerate().take(self.x.rows) {
                    self.out[row * count + first + o] = lanes.iter().sum();
                }
            }
        }
    }

    /// The products of [`OUTPUTS`] rows of the matrix with all rows of `x`. `rest` holds the last block of each, if it is not
    /// whole.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16. The rows have as many blocks as rows of `x`. The scales are those of the rows.
    #[inline(always)]
    unsafe fn products(
        &self,
        rows: [&[u8]; OUTPUTS],
        rest: &[[u8; MAX_BF16_BLOCK_BYTES]; OUTPUTS],
        scales: &RowScales,
    ) -> Sums {
        let group_size = group_size(self.w);
        // Elements of a block that share a group. Half of their chunks are in the second vector that a block unpacks to.
        let span = group_size.min(BF16_BLOCK);
        let half = span / CHUNK / 2;
        let whole = rows[0].len() / P::BLOCK_BYTES;
        let mut block = UnpackedBlock([[[bf16::ZERO; CHUNK]; BLOCK_CHUNKS]; OUTPUTS]);
        // SAFETY: the caller's.
        unsafe {
            let zero = [[_mm512_setzero_ps(); VECTORS]; OUTPUTS];
            let mut totals = if scales.biased { self.bias_products(scales) } else { zero };
            for (index, x) in self.x.chunks.chunks_exact(BLOCK_CHUNKS).enumerate() {
                for o in 0..OUTPUTS {
                    let at = rows[o].as_ptr().wrapping_add(index * P::BLOCK_BYTES);
                    let from = if index < whole { at } else { rest[o].as_ptr() };
                    // Any address may be prefetched.
                    for line in (0..P::BLOCK_BYTES).step_by(64) {
                        Avx512::prefetch(at.wrapping_add(PREFETCH_BYTES + line));
                    }
                    let to = block.0[o].as_mut_ptr().cast::<__m512i>();
                    let [first, second] = P::unpack(from);
                    to.write(first);
                    to.add(1).write(second);
                }
                for group in 0..BF16_BLOCK / span {
                    let mut sums = zero;
                    for start in [group * half, BLOCK_CHUNKS / 2 + group * half] {
                        for (x, chunk) in x[start..][..half].iter().zip(start..) {
                            multiply_chunk(&mut sums, &block, x, chunk);
                        }
                    }
                    let group = (index * BF16_BLOCK + group * span) / group_size;
                    for o in 0..OUTPUTS {
                        // A block that is not whole has groups of zeros.
                        let scale = scales.scales(o).get(group).copied().unwrap_or_default();
                        for vector in 0..VECTORS {
                            let (sum, total) = (sums[o][vector], &mut totals[o][vector]);
                            *total = if P::SCALED {
                                _mm512_fmadd_ps(sum, _mm512_set1_ps(scale), *total)
                            } else {
                                _mm512_add_ps(sum, *total)
                            };
                        }
                    }
                }
            }
            totals
        }
    }

    /// The products of the biases with the sums of groups.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16.
    #[inline(always)]
    unsafe fn bias_products(&self, scales: &RowScales) -> Sums {
        // SAFETY: the caller's.
        unsafe {
            let mut totals = [[_mm512_setzero_ps(); VECTORS]; OUTPUTS];
            // Sums are padded.
            for (group, sums) in self.x.sums.iter().enumerate().take(scales.groups()) {
                for (o, totals) in totals.iter_mut().enumerate() {
                    let bias = scales.biases(o)[group] - P::OFFSET * scales.scales(o)[group];
                    for (total, sum) in totals.iter_mut().zip(sums) {
                        *total = _mm512_fmadd_ps(_mm512_set1_ps(bias), *sum, *total);
                    }
                }
            }
            totals
        }
    }
}

/// Adds the products of one chunk of elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn multiply_chunk(sums: &mut Sums, block: &UnpackedBlock, x: &[__m512i; VECTORS], chunk: usize) {
    for (sums, row) in sums.iter_mut().zip(&block.0) {
        // SAFETY: a chunk is 128 bits; the other types are 512 bits each.
        unsafe {
            let w = _mm512_broadcast_i32x4(_mm_load_si128(row[chunk].as_ptr().cast()));
            for (sum, x) in sums.iter_mut().zip(x) {
                let x = transmute::<__m512i, __m512bh>(*x);
                *sum = _mm512_dpbf16_ps(*sum, x, transmute::<__m512i, __m512bh>(w));
            }
        }
    }
}
