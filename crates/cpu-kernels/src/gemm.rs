//! Products of many rows of `x`: parts of a matrix are unpacked once and multiplied with all of them.

use std::marker::PhantomData;

use crate::{
    Matrices,
    gemv::{Arranged, Groups, elements, tile},
    isa::Kernel,
    simd::Simd,
    storage::{Dense, LARGEST, Storage, arranged_len, block_bytes},
};

/// Bytes of an unpacked part of a matrix, which should stay in a core's second cache.
pub(crate) const PANEL_BYTES: usize = 512 << 10;

/// A part of a matrix in full: its rows as arranged rows of `x` are.
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

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let width = arranged_len::<T, S>(self.w.inputs);
        let mut panel = vec![0.0_f32; self.count * width];
        let mut unpacker = Unpacker::<T, S>::new(self.w);
        for (index, row) in panel.chunks_exact_mut(width).enumerate() {
            unpacker.row(self.first + index, row);
        }
        panel
    }
}

/// The products of many rows of `x` with a [`Panel`].
pub(crate) struct Gemm<'a> {
    pub(crate) panel: &'a [f32],
    /// Rows of the panel.
    pub(crate) count: usize,
    pub(crate) x: &'a Arranged,
    /// Which rows of `x`.
    pub(crate) rows: &'a [usize],
    /// Is handed `[up to `ROWS`, count]` products at a time, with the place in `rows` of the first.
    pub(crate) emit: &'a mut dyn FnMut(usize, &mut [f32]),
}

/// Rows of x and of the matrix in a tile: together they fill most registers, and neither is read much oftener than the other.
const ROWS: usize = 8;
const OUTPUTS: usize = 3;

impl Kernel for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // Fewer rows where there are fewer registers.
        if S::REGISTERS >= 32 { self.tiles::<S, OUTPUTS, ROWS>() } else { self.tiles::<S, 2, 4>() }
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const OUTPUTS: usize, const ROWS: usize>(self) {
        let width = self.panel.len() / self.count;
        let groups = Groups::none();
        let mut products = vec![0.0_f32; ROWS * self.count];
        for (block, rows) in self.rows.chunks(ROWS).enumerate() {
            let x: [&[f32]; ROWS] = std::array::from_fn(|m| self.x.row(rows[m.min(rows.len() - 1)]));
            for first in (0..self.count).step_by(OUTPUTS) {
                let outputs = std::array::from_fn(|r| {
                    let output = (first + r).min(self.count - 1);
                    bytes(&self.panel[output * width..][..width])
                });
                // SAFETY: the machine has the instructions, or this were not run; both sides are arranged and equally wide.
                let tile =
                    unsafe { tile::<Dense<f32>, S, OUTPUTS, ROWS>(outputs, x, &groups, S::splat_u(0)) };
                for (r, tile) in tile.iter().enumerate().take(self.count - first) {
                    for (m, product) in tile.iter().enumerate() {
                        products[m * self.count + first + r] = *product;
                    }
                }
            }
            (self.emit)(block * ROWS, &mut products[..rows.len() * self.count]);
        }
    }
}

/// Writes rows of a matrix out in full, arranged.
pub(crate) struct Unpacker<'a, T, S> {
    w: &'a Matrices<'a>,
    groups: Groups,
    lanes: Vec<u32>,
    types: PhantomData<(T, S)>,
}

impl<'a, T: Storage, S: Simd> Unpacker<'a, T, S> {
    #[inline(always)]
    pub(crate) fn new(w: &'a Matrices<'a>) -> Self {
        let groups = Groups::new::<T, S>(w, 1);
        let lanes = groups.lanes::<S>();
        Self { w, groups, lanes, types: PhantomData }
    }

    /// Row `row`, counted through all matrices. `out` is as wide as arranged rows are.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize, out: &mut [f32]) {
        let row_bytes = self.w.inputs * T::BITS / 8;
        let bytes = &elements(&self.w.weights)[row * row_bytes..][..row_bytes];
        self.groups.read::<S, 1>(&self.w.weights, [row]);
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
                let scale_and_bias = T::SCALED.then(|| {
                    let group = block * S::LANES / self.groups.lanes;
                    let spread = |values: &[f32]| S::permute(S::load(values.as_ptr().add(group)), lanes);
                    let bias = if self.groups.biased { spread(self.groups.biases(0)) } else { S::splat(0.0) };
                    (spread(self.groups.scales(0)), bias)
                });
                for j in 0..T::VALUES {
                    let mut value = T::value::<S>(loaded, tables, j);
                    if let Some((scale, bias)) = scale_and_bias {
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

fn bytes(values: &[f32]) -> &[u8] {
    // SAFETY: floats are plain numbers, and the bytes are those of the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
