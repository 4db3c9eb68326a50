//! Products of many rows of `x` in tiles: blocks of 16 × 32 numbers of type bf16, which are multiplied 16 × 32 by 32 × 16 and
//! summed in single precision, by AMX or by the products of pairs that AVX-512 has.

mod amx;
mod exact;
mod limbs;
mod pairs;

pub(crate) use amx::is_available;
pub(crate) use exact::Exact;
pub(crate) use limbs::{InLimbs, Limbs};

use std::arch::x86_64::*;

use crate::{Floats, Matrices, element::Shared, simd::avx512::transpose};

/// Rows of a tile.
pub(crate) const EDGE: usize = 16;
/// Numbers in a row of a tile.
const DEPTH: usize = 32;

/// A tile, as it lies in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile([u16; EDGE * DEPTH]);

const ZERO: Tile = Tile([0; EDGE * DEPTH]);

/// 2 × 2 tiles of sums, row by row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([f32; 4 * EDGE * EDGE]);

/// How rows of `x` and of a matrix become tiles that are multiplied with each other.
pub(crate) trait Packing: Copy + Send + Sync {
    /// What they are taken apart into.
    fn limbs(self) -> Limbs;
    /// Numbers of a row in tiles, zeros behind its end included, over 32.
    fn steps(self, inputs: usize) -> usize;
    /// Groups of a row whose products are scaled once they are summed.
    fn groups(self, inputs: usize) -> usize;

    /// Writes up to 16 of the rows of `x`, `inputs` wide, into the rows of tiles, those of each step next to each other, and
    /// the sums of their groups.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn pack(
        self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[usize],
        tiles: &mut [Tile],
        sums: &mut [[f32; EDGE]],
    );

    /// Unpacks `count` rows of a matrix from row `first` on, counted through all matrices.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn unpack(self, w: &Matrices<'_>, first: usize, count: usize) -> Panel;
}

/// Rows of a matrix: for each 16 rows, each 32 elements and each limb a tile.
pub(crate) struct Panel {
    tiles: Vec<Tile>,
    groups: Option<Groups>,
}

/// What the sums of groups are scaled with.
struct Groups {
    /// Steps of a group.
    steps: usize,
    /// For each group those of all rows, whole tiles of them; biases are for the sums of `x`.
    scales: Vec<f32>,
    biases: Vec<f32>,
    /// Rows, in whole pairs of tiles.
    width: usize,
}

/// Rows of `x`, ready to be multiplied: for each 16 of them, each 32 elements and each limb a tile, in which pairs of elements
/// are rows.
pub(crate) struct PackedRows<K> {
    packing: K,
    tiles: Vec<Tile>,
    /// Tiles that all elements of a row take.
    steps: usize,
    /// For each block and each group of elements.
    sums: Vec<[f32; EDGE]>,
    groups: usize,
}

impl<K: Packing> PackedRows<K> {
    /// Room for blocks of 16 rows.
    pub(crate) fn new(packing: K, blocks: usize, inputs: usize) -> Self {
        let (steps, groups) = (packing.steps(inputs), packing.groups(inputs));
        let tiles = vec![ZERO; blocks * steps * packing.limbs().x];
        Self { packing, tiles, steps, sums: vec![[0.0; EDGE]; blocks * groups], groups }
    }

    /// Fills all blocks with rows of `x`, `inputs` wide, as `run` calls the function for each of them, at once or in turn.
    ///
    /// # Safety
    /// The machine has the instructions.
    pub(crate) unsafe fn fill(
        &mut self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[&[usize]],
        run: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
    ) {
        let (len, groups, packing) = (self.block_len(), self.groups, self.packing);
        let (tiles, sums) = (Shared::new(&mut self.tiles), Shared::new(&mut self.sums));
        run(rows.len(), &|block| {
            // SAFETY: each call has a block of its own; the machine has the instructions.
            unsafe {
                let tiles = tiles.part(block * len, len);
                packing.pack(x, inputs, rows[block], tiles, sums.part(block * groups, groups));
                turn(tiles);
            }
        });
    }

    /// Tiles of a block.
    fn block_len(&self) -> usize {
        self.steps * self.packing.limbs().x
    }

    fn block(&self, index: usize) -> *const u8 {
        self.tiles[index * self.block_len()..][..self.block_len()].as_ptr().cast()
    }

    fn sums(&self, block: usize, group: usize) -> &[f32; EDGE] {
        &self.sums[block * self.groups + group]
    }
}

/// Makes rows of pairs the columns of each tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn turn(tiles: &mut [Tile]) {
    for tile in tiles {
        // SAFETY: a tile is 16 rows of 16 words; the machine has the instructions.
        unsafe {
            let rows = std::array::from_fn(|i| _mm512_load_si512(tile.0.as_ptr().add(i * DEPTH).cast()));
            for (i, row) in transpose(rows).into_iter().enumerate() {
                _mm512_store_si512(tile.0.as_mut_ptr().add(i * DEPTH).cast(), row);
            }
        }
    }
}

/// The products of many rows of `x` with a part of a matrix.
pub(crate) struct TileGemm<'a, K> {
    pub(crate) panel: &'a Panel,
    /// Rows of the part.
    pub(crate) count: usize,
    pub(crate) x: &'a PackedRows<K>,
    /// The first block of 16 rows of `x`.
    pub(crate) block: usize,
    /// Rows of `x`.
    pub(crate) rows: usize,
    /// Whether tiles are multiplied with AMX.
    pub(crate) amx: bool,
}

impl<K: Packing> TileGemm<'_, K> {
    /// Hands `[up to 32, count]` products at a time, with the number of the first row, to `emit`.
    ///
    /// # Safety
    /// The machine has the instructions, and those of AMX where they are asked for.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn each(&self, emit: &mut dyn FnMut(usize, &mut [f32])) {
        let Limbs { x: x_limbs, w: w_limbs, order } = self.x.packing.limbs();
        let steps = self.x.steps;
        let blocks = self.count.div_ceil(EDGE);
        let block = |index: usize| -> *const u8 {
            let index = index.min(blocks - 1);
            self.panel.tiles[index * steps * w_limbs..][..steps * w_limbs].as_ptr().cast()
        };
        // The part of two blocks of `x` that is multiplied with the whole panel should stay in the first cache; or what
        // is summed before it is scaled.
        let part = self.panel.groups.as_ref().map_or(16 / x_limbs, |groups| groups.steps);
        let pairs =
            (0..x_limbs).flat_map(|i| (0..w_limbs).map(move |j| (i, j))).filter(|(i, j)| i + j < order);
        let pairs: Vec<_> = pairs.collect();
        let offset = |tile: usize| (tile * size_of::<Tile>()) as u32;
        let plan: Vec<[u32; 2]> = (0..part.min(steps))
            .flat_map(|step| pairs.iter().map(move |(i, j)| [step * w_limbs + j, step * x_limbs + i]))
            .map(|pair| pair.map(offset))
            .collect();
        let mut sums = vec![Sums([0.0; 4 * EDGE * EDGE]); blocks.div_ceil(2)];
        let mut products = vec![0.0; 2 * EDGE * self.count];
        for first in (0..self.rows).step_by(2 * EDGE) {
            sums.fill(Sums([0.0; 4 * EDGE * EDGE]));
            let last = self.rows.div_ceil(EDGE) - 1;
            let x_blocks = [0, 1].map(|i| self.block + (first / EDGE + i).min(last));
            let x = x_blocks.map(|block| self.x.block(block));
            for step in (0..steps).step_by(part) {
                let plan = &plan[..part.min(steps - step) * pairs.len()];
                for (index, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: all offsets of the plan lie within blocks of tiles; the caller's.
                    unsafe {
                        let w = [0, 1].map(|i| block(2 * index + i).add(step * w_limbs * size_of::<Tile>()));
                        let x = x.map(|x| x.add(step * x_limbs * size_of::<Tile>()));
                        if self.amx {
                            amx::multiply(sums, w, x, plan);
                            continue;
                        }
                        let scaling = self.panel.groups.as_ref().map(|groups| {
                            let at = step / part * groups.width + index * 2 * EDGE;
                            let of = |values: &[f32]| values[at..][..2 * EDGE].as_ptr();
                            pairs::Scaling {
                                scales: of(&groups.scales),
                                biases: of(&groups.biases),
                                sums: x_blocks.map(|block| self.x.sums(block, step / part).as_ptr()),
                            }
                        });
                        let used =
                            [(blocks - 2 * index).min(2), if x_blocks[0] == x_blocks[1] { 1 } else { 2 }];
                        pairs::multiply(sums, w, x, plan, used, scaling);
                    }
                }
            }
            let rows = (self.rows - first).min(2 * EDGE);
            for (index, sums) in sums.iter().enumerate() {
                // SAFETY: the machine has the instructions.
                unsafe { self.turn(sums, index * 2 * EDGE, rows, &mut products) };
            }
            emit(first, &mut products[..rows * self.count]);
        }
    }

    /// Writes sums, one row for each row of the matrix, as products, one row for each of `rows` rows of `x`.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn turn(&self, sums: &Sums, output: usize, rows: usize, products: &mut [f32]) {
        for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let output = output + down * EDGE;
            if output >= self.count || right * EDGE >= rows {
                continue;
            }
            // SAFETY: the tile is 16 rows of 16, of 32 in a row; writes are masked to the products there are.
            unsafe {
                let from = sums.0.as_ptr().add(down * 2 * EDGE * EDGE + right * EDGE);
                let tile = std::array::from_fn(|i| _mm512_loadu_si512(from.add(i * 2 * EDGE).cast()));
                let mask = (1_u32 << (self.count - output).min(EDGE)) - 1;
                for (i, row) in transpose(tile).into_iter().enumerate().take(rows - right * EDGE) {
                    let to = products[(right * EDGE + i) * self.count + output..].as_mut_ptr();
                    _mm512_mask_storeu_epi32(to.cast(), mask as u16, row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;
    use crate::{Isa, Weights, storage::Dense};

    /// Whatever multiplies tiles, they are packed alike.
    #[test]
    fn limbs_together_are_the_numbers() {
        if !Isa::Avx512Bf16.is_available() {
            return;
        }
        let (rows, outputs, inputs) = (37, 45, 83);
        let number = |i: usize| ((i * 7919 + 13) % 10_007) as f32 / 5_003.5 - 1.0;
        let x: Vec<f32> = (0..rows * inputs).map(number).collect();
        let w: Vec<f32> = (0..outputs * inputs).map(|i| number(i + 5)).collect();
        let weights = Weights::Dense(Floats::F32(&w));
        let matrix = Matrices { count: 1, outputs, inputs, weights };
        let picked: Vec<_> = (0..rows).rev().collect();
        let blocks: Vec<_> = picked.chunks(EDGE).collect();
        for precise in [true, false] {
            let limbs = Limbs::new(&Floats::F32(&x), &weights, precise);
            let packing = InLimbs::<Dense<f32>> { limbs, storage: PhantomData };
            let mut packed = PackedRows::new(packing, blocks.len(), inputs);
            let mut seen = 0;
            // SAFETY: the machine has the instructions.
            unsafe {
                packed.fill(Floats::F32(&x), inputs, &blocks, |tasks, work| (0..tasks).for_each(work));
                let panel = &packing.unpack(&matrix, 0, outputs);
                let gemm = TileGemm { panel, count: outputs, x: &packed, block: 0, rows, amx: false };
                gemm.each(&mut |first, products| {
                    for (index, product) in products.iter().enumerate() {
                        let (row, output) = (picked[first + index / outputs], index % outputs);
                        let factors = x[row * inputs..][..inputs].iter().zip(&w[output * inputs..][..inputs]);
                        let terms = factors.map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let (sum, size) =
                            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                        let tolerance = size * if precise { 2e-6 } else { 2_f64.powi(-16) };
                        assert!(
                            (f64::from(*product) - sum).abs() <= tolerance,
                            "{product} for {sum} ± {tolerance}"
                        );
                        seen += 1;
                    }
                });
            }
            assert_eq!(seen, rows * outputs);
        }
    }
}
