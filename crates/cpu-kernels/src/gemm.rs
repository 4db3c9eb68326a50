//! Products of many rows of `x`: parts of a matrix are unpacked once and multiplied with all of them.

use std::marker::PhantomData;

use crate::{
    Matrices,
    gemv::{Groups, elements},
    isa::Kernel,
    simd::Simd,
    storage::{LARGEST, Storage, arranged_len, block_bytes},
};

/// Bytes of an unpacked part of a matrix, which should stay in a core's second cache.
pub(crate) const PANEL_BYTES: usize = 512 << 10;
/// Rows of a panel are a multiple of this, the widest strip.
pub(crate) const STRIP: usize = 64;

/// Rows of `x` that are multiplied at once.
const ROWS: usize = 6;
/// Elements whose products are summed before they join the sum of all: so rounding adds up more slowly.
const DEPTH: usize = 256;

/// Vectors of outputs that are multiplied at once: with `ROWS` rows of `x` they fill most registers.
pub(crate) const fn vectors<S: Simd>() -> usize {
    if S::REGISTERS >= 32 { 4 } else { 2 }
}

/// Rows of a matrix, unpacked to be multiplied: in strips as wide as a few vectors, the elements of all rows of a strip next
/// to each other.
pub(crate) struct Panel<'a, T> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row of the part, counted through all matrices.
    pub(crate) first: usize,
    /// Rows of the part.
    pub(crate) count: usize,
    pub(crate) storage: PhantomData<T>,
}

impl<T: Storage> Kernel for Panel<'_, T> {
    type Output = Vec<f32>;

    /// `[strips, inputs, strip]`, in whole blocks.
    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let (width, strip) = (arranged_len::<T, S>(self.w.inputs), vectors::<S>() * S::LANES);
        let mut panel = vec![0.0_f32; self.count.div_ceil(strip) * width * strip];
        let mut rows = vec![0.0_f32; S::LANES * width];
        let unpacker = Unpacker::<T, S>::new(self.w, self.first, self.count);
        for (index, panel) in panel.chunks_exact_mut(width * strip).enumerate() {
            for first in (0..strip).step_by(S::LANES) {
                let left = self.count.saturating_sub(index * strip + first).min(S::LANES);
                for (r, row) in rows.chunks_exact_mut(width).enumerate().take(left) {
                    unpacker.row(index * strip + first + r, row);
                }
                for block in (0..width).step_by(S::LANES * T::VALUES) {
                    for j in 0..T::VALUES {
                        // SAFETY: the machine has the instructions, or this were not run. A vector of the block is there for
                        // each lane's row, and there is room for its elements, which are `VALUES` apart.
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

/// The products of many rows of `x` with a [`Panel`].
pub(crate) struct Gemm<'a> {
    pub(crate) panel: &'a [f32],
    /// Rows of the panel.
    pub(crate) count: usize,
    /// All rows, `inputs` wide.
    pub(crate) x: &'a [f32],
    pub(crate) inputs: usize,
    /// Which rows of `x`.
    pub(crate) rows: &'a [usize],
    /// Is handed `[up to `ROWS`, count]` products at a time, with the place in `rows` of the first.
    pub(crate) emit: &'a mut dyn FnMut(usize, &mut [f32]),
}

impl Kernel for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        if vectors::<S>() == 4 { self.strips::<S, 4>() } else { self.strips::<S, 2>() }
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn strips<S: Simd, const V: usize>(self) {
        let strip = V * S::LANES;
        let stride = self.panel.len() / self.count.div_ceil(strip);
        assert!(stride >= self.inputs * strip, "a strip of all inputs");
        let mut products = vec![0.0_f32; ROWS * self.count];
        let mut padded = vec![0.0_f32; ROWS * strip];
        for (block, rows) in self.rows.chunks(ROWS).enumerate() {
            let x: [&[f32]; ROWS] =
                std::array::from_fn(|m| &self.x[rows[m.min(rows.len() - 1)] * self.inputs..][..self.inputs]);
            for (panel, first) in self.panel.chunks_exact(stride).zip((0..self.count).step_by(strip)) {
                // SAFETY: the machine has the instructions, or this were not run; the strip is as long as rows of `x`, by the
                // assertion, and there is room for all products.
                unsafe { multiply::<S, V>(panel, x, &mut padded) };
                let width = strip.min(self.count - first);
                for (m, padded) in padded.chunks_exact(strip).enumerate() {
                    products[m * self.count + first..][..width].copy_from_slice(&padded[..width]);
                }
            }
            (self.emit)(block * ROWS, &mut products[..rows.len() * self.count]);
        }
    }
}

/// Products of rows of `x` with a strip of a panel: `[ROWS, strip]`.
///
/// # Safety
/// The machine has the instructions. The strip is as long as the rows, which are equally long, and there is room for all.
#[inline(always)]
unsafe fn multiply<S: Simd, const V: usize>(strip: &[f32], x: [&[f32]; ROWS], out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe {
        let (mut at, width) = (strip.as_ptr(), V * S::LANES);
        for start in (0..x[0].len()).step_by(DEPTH) {
            let mut sums = [[S::splat(0.0); V]; ROWS];
            let depth = DEPTH.min(x[0].len() - start);
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
                    let to = out.as_mut_ptr().add(m * width + v * S::LANES);
                    let before = if start == 0 { S::splat(0.0) } else { S::load(to) };
                    S::store(to, S::add(before, sum));
                }
            }
        }
    }
}

/// Writes rows of a matrix out in full, arranged.
pub(crate) struct Unpacker<'a, T, S> {
    w: &'a Matrices<'a>,
    first: usize,
    groups: Groups,
    lanes: Vec<u32>,
    types: PhantomData<(T, S)>,
}

impl<'a, T: Storage, S: Simd> Unpacker<'a, T, S> {
    /// Of `count` rows from row `first` on, counted through all matrices.
    #[inline(always)]
    pub(crate) fn new(w: &'a Matrices<'a>, first: usize, count: usize) -> Self {
        let groups = Groups::read::<T, S>(w, first, count);
        let lanes = groups.lanes::<S>();
        Self { w, first, groups, lanes, types: PhantomData }
    }

    /// Row `row` of these. `out` is as wide as arranged rows are.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let row_bytes = self.w.inputs * T::BITS / 8;
        let bytes = &elements(&self.w.weights)[(self.first + row) * row_bytes..][..row_bytes];
        let block_bytes = block_bytes::<T, S>();
        let vectors = S::LANES * T::VALUES;
        assert_eq!(out.len(), arranged_len::<T, S>(self.w.inputs), "an arranged row");
        for (block, out) in out.chunks_exact_mut(vectors).enumerate() {
            let from = &bytes[block * block_bytes..];
            let mut copy = [0_u32; LARGEST / 4];
            // SAFETY: the machine has the instructions; a part of a block is copied to where zeros follow it; groups have
            // padding behind the last.
            unsafe {
                let from = if from.len() < block_bytes {
                    std::ptr::copy_nonoverlapping(from.as_ptr(), copy.as_mut_ptr().cast(), from.len());
                    copy.as_ptr().cast()
                } else {
                    from.as_ptr()
                };
                let tables = T::tables::<S>();
                let loaded = T::load::<S>(from);
                let lanes = S::load_u(self.lanes.as_ptr());
                // By hand: a closure would be a function of its own, without the instructions.
                let (mut scale, mut bias) = (S::splat(1.0), S::splat(0.0));
                if T::SCALED {
                    let group = block * S::LANES / self.groups.lanes;
                    scale = S::permute(S::load(self.groups.scales(row).as_ptr().add(group)), lanes);
                    if self.groups.biased {
                        bias = S::permute(S::load(self.groups.biases(row).as_ptr().add(group)), lanes);
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

/// Rows of a part of a matrix: a multiple of `step` that leaves work for all threads.
pub(crate) fn panel(outputs: usize, row_bytes: usize, step: usize, threads: usize) -> usize {
    let fits = PANEL_BYTES / row_bytes.max(1);
    let even = outputs.div_ceil(2 * threads);
    (fits.min(even) / step * step).clamp(step, 8 * step)
}
