//! Matrix products of many rows of `x` (GEMM) in `f32`: a panel of the matrix is unpacked once and multiplied with all of them.

use std::marker::PhantomData;

use crate::{
    operand::Matrices,
    scales::{RowScales, element_bytes},
    scratch::Scratch,
    simd::{Kernel, Simd},
    storage::{MAX_BLOCK_BYTES, Storage, block_bytes, padded_len},
};

/// Bytes of an unpacked panel, which should stay in the second-level cache of a core.
const PANEL_BYTES: usize = 512 << 10;
/// Rows of the widest strip. Rows of a panel are a multiple of it.
pub(crate) const MAX_STRIP: usize = 64;

/// Rows of `x` that are multiplied at once.
const BLOCK_ROWS: usize = 6;
/// Elements whose products are summed before they are added to the total, which keeps rounding errors small.
const BLOCK_INPUTS: usize = 256;

/// Vectors of a strip. With `BLOCK_ROWS` rows of `x` they fill most registers.
pub(crate) const fn strip_vectors<S: Simd>() -> usize {
    if S::REGISTERS >= 32 { 4 } else { 2 }
}

/// Unpacks some rows of a matrix, a panel, for [`Gemm`]. A panel consists of strips, each a few vectors wide: for each input, the
/// elements of all rows of the strip are neighbours.
pub(crate) struct UnpackPanel<'a, T> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row, counted through all matrices.
    pub(crate) first: usize,
    /// Rows of the panel.
    pub(crate) count: usize,
    pub(crate) storage: PhantomData<T>,
}

impl<T: Storage> Kernel for UnpackPanel<'_, T> {
    type Output = Scratch;

    /// `[strips, inputs, strip]`, with the inputs padded to whole blocks.
    #[inline(always)]
    fn run<S: Simd>(self) -> Scratch {
        let (width, strip) = (padded_len::<T, S>(self.w.inputs), strip_vectors::<S>() * S::LANES);
        let mut panel = Scratch::new(self.count.div_ceil(strip) * width * strip);
        let mut rows = Scratch::new(S::LANES * width);
        let unpacker = RowUnpacker::<T, S>::new(self.w, self.first, self.count);
        for (index, panel) in panel.chunks_exact_mut(width * strip).enumerate() {
            for first in (0..strip).step_by(S::LANES) {
                let left = self.count.saturating_sub(index * strip + first).min(S::LANES);
                for (r, row) in rows.chunks_exact_mut(width).enumerate().take(left) {
                    unpacker.row(index * strip + first + r, row);
                }
                for block in (0..width).step_by(S::LANES * T::VALUES) {
                    for j in 0..T::VALUES {
                        // SAFETY: see `Isa::run`. The block has a vector for each lane's row. Its elements go to places
                        // `VALUES` apart, within the strip.
                        unsafe {
                            let from = rows.as_ptr().add(block + j * S::LANES);
                            let to = panel.as_mut_ptr().add((block + j) * strip + first);
                            S::transpose(from, width, to, T::VALUES * strip);
                        }
                    }
                }
            }
        }
        panel
    }
}

/// The products of many rows of `x` with a panel.
pub(crate) struct Gemm<'a> {
    pub(crate) panel: &'a [f32],
    /// Rows of the panel.
    pub(crate) count: usize,
    /// All rows of `x`, `inputs` wide.
    pub(crate) x: &'a [f32],
    pub(crate) inputs: usize,
    /// The rows of `x` to multiply.
    pub(crate) rows: &'a [usize],
    /// Receives `[up to BLOCK_ROWS, count]` products at a time, with the index in `rows` of the first.
    pub(crate) write: &'a mut dyn FnMut(usize, &mut [f32]),
}

impl Kernel for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        if strip_vectors::<S>() == 4 { self.strips::<S, 4>() } else { self.strips::<S, 2>() }
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn strips<S: Simd, const V: usize>(self) {
        let strip = V * S::LANES;
        let stride = self.panel.len() / self.count.div_ceil(strip);
        assert!(stride >= self.inputs * strip, "a strip of all inputs");
        let mut products = Scratch::new(BLOCK_ROWS * self.count);
        let mut padded = Scratch::new(BLOCK_ROWS * strip);
        for (block, rows) in self.rows.chunks(BLOCK_ROWS).enumerate() {
            let x: [&[f32]; BLOCK_ROWS] =
                std::array::from_fn(|m| &self.x[rows[m.min(rows.len() - 1)] * self.inputs..][..self.inputs]);
            for (panel, first) in self.panel.chunks_exact(stride).zip((0..self.count).step_by(strip)) {
                let width = self.count - first;
                // SAFETY: see `Isa::run`. The strip is as long as rows of `x`, by the assertion. Both buffers have room for the
                // products: `BLOCK_ROWS` rows of a whole strip.
                unsafe {
                    if width >= strip {
                        multiply::<S, V>(panel, x, products[first..].as_mut_ptr(), self.count);
                        continue;
                    }
                    multiply::<S, V>(panel, x, padded.as_mut_ptr(), strip);
                }
                for (m, padded) in padded.chunks_exact(strip).enumerate() {
                    products[m * self.count + first..][..width].copy_from_slice(&padded[..width]);
                }
            }
            (self.write)(block * BLOCK_ROWS, &mut products[..rows.len() * self.count]);
        }
    }
}

/// The products of rows of `x` with a strip of a panel: `[BLOCK_ROWS, strip]`, with rows of `out` this many elements apart.
///
/// # Safety
/// The machine has the instruction set. Rows have one length, the strip is as long, and `out` has room for the products.
#[inline(always)]
unsafe fn multiply<S: Simd, const V: usize>(
    strip: &[f32],
    x: [&[f32]; BLOCK_ROWS],
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let (mut at, width) = (strip.as_ptr(), V * S::LANES);
        for start in (0..x[0].len()).step_by(BLOCK_INPUTS) {
            let mut sums = [[S::splat(0.0); V]; BLOCK_ROWS];
            let depth = BLOCK_INPUTS.min(x[0].len() - start);
            let x = x.map(|x| x.as_ptr().add(start));
            for k in 0..depth {
                let mut columns = [S::splat(0.0); V];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = S::load(at.add(v * S::LANES));
                }
                for (sums, x) in sums.iter_mut().zip(x) {
                    let factor = S::splat(*x.add(k));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = S::fma(factor, column, *sum);
                    }
                }
                at = at.add(width);
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let to = out.add(m * stride + v * S::LANES);
                    let before = if start == 0 { S::splat(0.0) } else { S::load(to) };
                    S::store(to, S::add(before, sum));
                }
            }
        }
    }
}

/// Unpacks rows of a matrix to `f32`, in the order of [`permute_row`](crate::storage::permute_row).
pub(crate) struct RowUnpacker<'a, T, S> {
    w: &'a Matrices<'a>,
    first: usize,
    scales: RowScales,
    /// Of the lanes of whole blocks, and of the last block.
    lane_groups: [Vec<u32>; 2],
    types: PhantomData<(T, S)>,
}

impl<'a, T: Storage, S: Simd> RowUnpacker<'a, T, S> {
    /// For `count` rows from row `first` on, counted through all matrices.
    #[inline(always)]
    pub(crate) fn new(w: &'a Matrices<'a>, first: usize, count: usize) -> Self {
        let scales = RowScales::read::<T, S>(w, first, count);
        let last = padded_len::<T, S>(w.inputs) / (S::LANES * T::VALUES);
        let lane_groups = [0, last.saturating_sub(1)].map(|block| scales.lane_groups::<S>(block));
        Self { w, first, scales, lane_groups, types: PhantomData }
    }

    /// Unpacks row `row` of these into `out`, which has [`padded_len`] elements.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let row_bytes = self.w.inputs * T::BITS / 8;
        let bytes = &element_bytes(&self.w.weights)[(self.first + row) * row_bytes..][..row_bytes];
        let block_bytes = block_bytes::<T, S>();
        let vectors = S::LANES * T::VALUES;
        assert_eq!(out.len(), padded_len::<T, S>(self.w.inputs), "a padded row");
        let blocks = out.len() / vectors;
        for (block, out) in out.chunks_exact_mut(vectors).enumerate() {
            let from = &bytes[block * block_bytes..];
            let mut copy = [0_u32; MAX_BLOCK_BYTES / 4];
            // SAFETY: see `Isa::run`. A part of a block is copied to where zeros follow it. Scales have padding behind the
            // last.
            unsafe {
                let from = if from.len() < block_bytes {
                    std::ptr::copy_nonoverlapping(from.as_ptr(), copy.as_mut_ptr().cast(), from.len());
                    copy.as_ptr().cast()
                } else {
                    from.as_ptr()
                };
                let tables = T::tables::<S>();
                let loaded = T::load::<S>(from);
                let lanes = S::load_u(self.lane_groups[usize::from(block + 1 == blocks)].as_ptr());
                let (mut scale, mut bias) = (S::splat(1.0), S::splat(0.0));
                if T::SCALED {
                    let group = self.scales.first_group::<S>(block);
                    scale = S::permute(S::load(self.scales.scales(row).as_ptr().add(group)), lanes);
                    if self.scales.biased {
                        bias = S::permute(S::load(self.scales.biases(row).as_ptr().add(group)), lanes);
                    }
                }
                for j in 0..T::VALUES {
                    let mut value = T::value::<S>(loaded, tables, j);
                    if T::SCALED {
                        value = S::fma(value, scale, bias);
                    }
                    S::store(out.as_mut_ptr().add(j * S::LANES), value);
                }
            }
        }
    }
}

/// Rows of a panel: a multiple of `step` that fits the cache and gives all threads as many panels.
pub(crate) fn panel_rows(outputs: usize, row_bytes: usize, step: usize, threads: usize) -> usize {
    let fits = (PANEL_BYTES / row_bytes.max(1) / step * step).clamp(step, 8 * step);
    // At least two for each thread: they are not equally fast.
    let panels = outputs.div_ceil(fits).max(2 * threads).next_multiple_of(threads);
    outputs.div_ceil(panels).next_multiple_of(step).min(fits)
}
