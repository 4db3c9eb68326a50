//! Products of up to four rows: sums lie across the lanes.

use std::{arch::x86_64::*, marker::PhantomData};

use half::bf16;

use super::{BLOCK, LARGEST, PairedRows, Pairs, dot, group_size};
use crate::{
    Matrices,
    gemv::{AHEAD, Groups, elements},
    simd::{Simd as _, avx512::Avx512},
    storage::Storage,
};

/// Rows of `x` that are multiplied so, at most. More take longer than [`LaneGemv`](super::LaneGemv) does.
pub(crate) const MOST: usize = 4;
/// Rows of the matrix whose scales are widened at once.
const AT_ONCE: usize = 8;

/// The products of up to four rows of `x` with rows of a matrix.
pub(crate) struct PairGemv<'a, P> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a PairedRows,
    /// Which rows of `x`.
    pub(crate) rows: &'a [usize],
    /// `[rows, outputs]`, of as many rows of the matrix as there is room for.
    pub(crate) out: &'a mut [f32],
    pub(crate) pairs: PhantomData<P>,
}

impl<P: Pairs> PairGemv<'_, P> {
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn run(self) {
        let group_size = group_size(self.w);
        match group_size / BLOCK {
            0 => self.groups::<0>(group_size),
            1 => self.groups::<1>(group_size),
            _ => self.groups::<2>(group_size),
        }
    }

    /// `SPAN` blocks are of one group, or 0 where a block is of several.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn groups<const SPAN: usize>(self, group_size: usize) {
        match self.rows.len() {
            0 => {}
            1 => self.outputs::<1, SPAN>(group_size),
            2 => self.outputs::<2, SPAN>(group_size),
            _ => self.outputs::<4, SPAN>(group_size),
        }
    }

    /// One row of the matrix after the other, as they lie in memory, which is read fastest so: each with `M` rows of `x`, the
    /// last of them more than once where there are fewer.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn outputs<const M: usize, const SPAN: usize>(self, group_size: usize) {
        let count = self.out.len() / self.rows.len();
        let row_bytes = self.w.inputs * P::Storage::BITS / 8;
        let bytes = elements(&self.w.weights);
        let row = |m: usize| self.rows[m.min(self.rows.len() - 1)];
        let x: [&[bf16]; M] =
            std::array::from_fn(|m| &self.x.elements[row(m) * self.x.width..][..self.x.width]);
        let sums: [&[f32]; M] =
            std::array::from_fn(|m| &self.x.sums[row(m) * self.x.sums_width..][..self.x.sums_width]);
        let mut groups = Groups::new::<P::Storage, Avx512>(self.w, AT_ONCE);
        // A lane sums four elements.
        let lanes: [i32; 16] = std::array::from_fn(|lane| (lane * 4 / group_size) as i32);
        // SAFETY: all sixteen are there.
        let lanes = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        for output in 0..count {
            if output.is_multiple_of(AT_ONCE) {
                groups.fill::<Avx512>(self.w, self.first + output, AT_ONCE.min(count - output));
            }
            Groups::fetch::<Avx512>(self.w, self.first + output + AT_ONCE);
            let scales = groups.scales(output % AT_ONCE);
            let from = &bytes[(self.first + output) * row_bytes..][..row_bytes];
            let mut step = Step::<M, SPAN> {
                x: x.map(<[_]>::as_ptr),
                scales: scales.as_ptr(),
                lanes,
                // It is a power of two.
                group_bits: group_size.trailing_zeros(),
                totals: [[_mm512_setzero_ps(); 2]; M],
            };
            if groups.biased {
                let biases = groups.biases(output % AT_ONCE);
                for (m, sums) in sums.iter().enumerate() {
                    for (index, sums) in sums.chunks_exact(16).enumerate() {
                        // SAFETY: groups have padding to whole vectors.
                        unsafe {
                            let scales = _mm512_loadu_ps(scales.as_ptr().add(16 * index));
                            let biases = _mm512_loadu_ps(biases.as_ptr().add(16 * index));
                            let biases = _mm512_fnmadd_ps(scales, _mm512_set1_ps(P::EXCESS), biases);
                            let sums = _mm512_loadu_ps(sums.as_ptr());
                            step.totals[m][0] = _mm512_fmadd_ps(biases, sums, step.totals[m][0]);
                        }
                    }
                }
            }
            let whole = row_bytes / P::BYTES;
            // SAFETY: blocks up to this number are whole and within the row; rows of x have as many, and groups padding behind
            // the last. A fetch may be of any address.
            unsafe {
                let block = |index: usize| from.as_ptr().wrapping_add(index * P::BYTES);
                for index in (0..whole & !1).step_by(2) {
                    for line in (0..2 * P::BYTES).step_by(64) {
                        Avx512::prefetch(block(index).wrapping_add(AHEAD + line));
                    }
                    step.add::<P>(index, block(index), 0);
                    step.add::<P>(index + 1, block(index + 1), 1);
                }
                if !whole.is_multiple_of(2) {
                    step.add::<P>(whole - 1, block(whole - 1), 0);
                }
                if !row_bytes.is_multiple_of(P::BYTES) {
                    // What remains is copied to where zeros follow it.
                    let mut rest = [0_u8; LARGEST];
                    rest[..row_bytes % P::BYTES].copy_from_slice(&from[whole * P::BYTES..]);
                    step.add::<P>(whole, rest.as_ptr(), 0);
                }
            }
            for (m, [even, odd]) in step.totals.into_iter().enumerate().take(self.rows.len()) {
                self.out[m * count + output] = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
            }
        }
    }
}

/// Products of a block of a row of a matrix with `M` rows of `x`.
struct Step<const M: usize, const SPAN: usize> {
    x: [*const bf16; M],
    scales: *const f32,
    /// The group of each lane, counted from that of the first.
    lanes: __m512i,
    /// Elements of a group are this power of two.
    group_bits: u32,
    /// Two for each row of `x`, so that a sum does not wait for the one before it.
    totals: [[__m512; 2]; M],
}

impl<const M: usize, const SPAN: usize> Step<M, SPAN> {
    /// Adds those of block `index` to the totals of this parity.
    ///
    /// # Safety
    /// The machine has the instructions; the block is whole, rows of `x` have as many, and groups padding behind the last.
    #[inline(always)]
    unsafe fn add<P: Pairs>(&mut self, index: usize, from: *const u8, parity: usize) {
        // SAFETY: the caller's.
        unsafe {
            let values = P::values(from);
            let scale = match SPAN {
                _ if !P::SCALED => _mm512_setzero_ps(),
                0 => {
                    let group = self.scales.add((index * BLOCK) >> self.group_bits);
                    _mm512_permutexvar_ps(self.lanes, _mm512_loadu_ps(group))
                }
                _ => _mm512_set1_ps(*self.scales.add(index / SPAN)),
            };
            for m in 0..M {
                let x = self.x[m].add(index * BLOCK);
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
