//! Products of five to eight rows: each has four lanes of a vector, and the matrix is unpacked once for all of them.

use std::{arch::x86_64::*, marker::PhantomData, mem::transmute};

use half::bf16;

use super::{BLOCK, LARGEST, PairedRows, Pairs, group_size};
use crate::{
    Matrices,
    gemv::{AHEAD, Groups, elements},
    simd::{Simd as _, avx512::Avx512},
    storage::Storage,
};

/// Vectors for all rows of `x`.
const VECTORS: usize = 2;
/// Rows of `x` in a vector.
const ROWS: usize = 4;
/// Lanes of a row, each for a pair.
const LANES: usize = 4;
/// Elements of a row in a vector.
const EIGHT: usize = 2 * LANES;
/// Such elements in a block.
const EIGHTS: usize = BLOCK / EIGHT;
/// Rows of the matrix that are multiplied at once.
const OUTPUTS: usize = 4;

/// Up to eight rows of `x` side by side.
pub(crate) struct Lanes {
    /// Eight elements of each row, block by block.
    eights: Vec<[__m512i; VECTORS]>,
    /// Of each group of elements, for the biases: in the first lane of each row.
    sums: Vec<[__m512; VECTORS]>,
    rows: usize,
}

impl Lanes {
    /// Of these rows.
    pub(crate) fn new(x: &PairedRows, rows: &[usize]) -> Self {
        let mut eights = vec![[[[bf16::ZERO; EIGHT]; ROWS]; VECTORS]; x.width / EIGHT];
        let mut sums = vec![[[[0.0; LANES]; ROWS]; VECTORS]; x.sums_width];
        for (place, row) in rows.iter().enumerate() {
            let (vector, place) = (place / ROWS, place % ROWS);
            let elements = x.elements[row * x.width..][..x.width].chunks_exact(EIGHT);
            for (to, eight) in eights.iter_mut().zip(elements) {
                to[vector][place].copy_from_slice(eight);
            }
            for (to, sum) in sums.iter_mut().zip(&x.sums[row * x.sums_width..]) {
                to[vector][place][0] = *sum;
            }
        }
        // SAFETY: all these are plain numbers of 512 bits in each vector.
        unsafe {
            Self {
                eights: eights.into_iter().map(|of| transmute::<_, [__m512i; VECTORS]>(of)).collect(),
                sums: sums
                    .into_iter()
                    .map(|of| transmute::<[[[f32; LANES]; ROWS]; VECTORS], _>(of))
                    .collect(),
                rows: rows.len(),
            }
        }
    }
}

/// The products of rows of `x`, side by side, with rows of a matrix.
pub(crate) struct LaneGemv<'a, P> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a Lanes,
    /// `[rows, outputs]`, of as many rows of the matrix as there is room for.
    pub(crate) out: &'a mut [f32],
    pub(crate) pairs: PhantomData<P>,
}

/// A block of each of the rows of a matrix that are multiplied at once.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Unpacked([[[bf16; EIGHT]; EIGHTS]; OUTPUTS]);

/// Sums of rows of the matrix with all rows of `x`.
type Sums = [[__m512; VECTORS]; OUTPUTS];

impl<P: Pairs> LaneGemv<'_, P> {
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn run(self) {
        let group_size = group_size(self.w);
        // Of a block, the elements of a group; half of them are in the second of the vectors that it is unpacked to.
        let span = group_size.min(BLOCK);
        let half = span / EIGHT / 2;
        let zero = [[_mm512_setzero_ps(); VECTORS]; OUTPUTS];
        let count = self.out.len() / self.x.rows;
        let row_bytes = self.w.inputs * P::Storage::BITS / 8;
        let bytes = elements(&self.w.weights);
        let mut groups = Groups::new::<P::Storage, Avx512>(self.w, OUTPUTS);
        let mut block = Unpacked([[[bf16::ZERO; EIGHT]; EIGHTS]; OUTPUTS]);
        // The last block of a row where that is not whole, with zeros behind.
        let mut rest = [[0_u8; LARGEST]; OUTPUTS];
        let (whole, left) = (row_bytes / P::BYTES, row_bytes % P::BYTES);
        for first in (0..count).step_by(OUTPUTS) {
            let outputs = OUTPUTS.min(count - first);
            groups.fill::<Avx512>(self.w, self.first + first, outputs);
            let mut rows = [bytes; OUTPUTS];
            for o in 0..OUTPUTS {
                rows[o] = &bytes[(self.first + first + o.min(outputs - 1)) * row_bytes..][..row_bytes];
                rest[o][..left].copy_from_slice(&rows[o][row_bytes - left..]);
                Groups::fetch::<Avx512>(self.w, self.first + first + OUTPUTS + o);
            }
            let mut totals = zero;
            if groups.biased {
                for (group, sums) in self.x.sums.iter().enumerate() {
                    for (o, totals) in totals.iter_mut().enumerate() {
                        let bias = groups.biases(o)[group] - P::EXCESS * groups.scales(o)[group];
                        for (total, sum) in totals.iter_mut().zip(sums) {
                            *total = _mm512_fmadd_ps(_mm512_set1_ps(bias), *sum, *total);
                        }
                    }
                }
            }
            for (index, x) in self.x.eights.chunks_exact(EIGHTS).enumerate() {
                for o in 0..OUTPUTS {
                    let at = rows[o].as_ptr().wrapping_add(index * P::BYTES);
                    let from = if index < whole { at } else { rest[o].as_ptr() };
                    // SAFETY: the block is whole, and as many elements as are written. A fetch may be of any address.
                    unsafe {
                        for line in (0..P::BYTES).step_by(64) {
                            Avx512::prefetch(at.wrapping_add(AHEAD + line));
                        }
                        let to = block.0[o].as_mut_ptr().cast::<__m512i>();
                        let [first, second] = P::values(from);
                        to.write(first);
                        to.add(1).write(second);
                    }
                }
                for group in 0..BLOCK / span {
                    let mut sums = zero;
                    for start in [group * half, EIGHTS / 2 + group * half] {
                        for (x, eighth) in x[start..][..half].iter().zip(start..) {
                            multiply(&mut sums, &block, x, eighth);
                        }
                    }
                    let group = (index * BLOCK + group * span) / group_size;
                    for o in 0..OUTPUTS {
                        for vector in 0..VECTORS {
                            let (sum, total) = (sums[o][vector], &mut totals[o][vector]);
                            *total = if P::SCALED {
                                _mm512_fmadd_ps(sum, _mm512_set1_ps(groups.scales(o)[group]), *total)
                            } else {
                                _mm512_add_ps(sum, *total)
                            };
                        }
                    }
                }
            }
            for (o, totals) in totals.into_iter().enumerate().take(outputs) {
                // SAFETY: both are as many plain numbers.
                let lanes: [[f32; LANES]; VECTORS * ROWS] = unsafe { transmute(totals) };
                for (row, lanes) in lanes.iter().enumerate().take(self.x.rows) {
                    self.out[row * count + first + o] = lanes.iter().sum();
                }
            }
        }
    }
}

/// Adds the products of eight elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn multiply(sums: &mut Sums, block: &Unpacked, x: &[__m512i; VECTORS], eighth: usize) {
    for (sums, row) in sums.iter_mut().zip(&block.0) {
        // SAFETY: eight elements are a vector of 128 bits; the types of the others are 512 bits each.
        unsafe {
            let w = _mm512_broadcast_i32x4(_mm_load_si128(row[eighth].as_ptr().cast()));
            for (sum, x) in sums.iter_mut().zip(x) {
                let x = transmute::<__m512i, __m512bh>(*x);
                *sum = _mm512_dpbf16_ps(*sum, x, transmute::<__m512i, __m512bh>(w));
            }
        }
    }
}
