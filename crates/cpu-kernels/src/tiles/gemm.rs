//! The products of many rows of `x` with a panel of a matrix, in tiles.

use std::arch::x86_64::*;

use super::{
    amx, dot,
    packing::{PackedRows, TilePacking, TilePanel},
    tile::{TILE_ROWS, Tile, TileSums},
};
use crate::{
    matmul_kernel::SplitBf16,
    simd::{
        Simd as _,
        avx512::{Avx512, transpose},
    },
};

/// The products of many rows of `x` with a panel.
pub(crate) struct TileGemm<'a, K> {
    pub(crate) panel: &'a TilePanel,
    /// Rows of the panel.
    pub(crate) count: usize,
    pub(crate) x: &'a PackedRows<K>,
    /// The first block of 16 rows of `x`.
    pub(crate) block: usize,
    /// Rows of `x`.
    pub(crate) rows: usize,
    /// What of the matrix is unpacked next: it is fetched meanwhile.
    pub(crate) next: &'a [u8],
    /// Whether AMX multiplies the tiles, or the dot products of AVX-512.
    pub(crate) amx: bool,
}

/// The offsets, in bytes, of a tile of the matrix and of the tile of `x` that it is multiplied with.
type TilePair = [u32; 2];

impl<K: TilePacking> TileGemm<'_, K> {
    /// Passes `[up to 32, count]` products at a time to `write`, with the index of the first row.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16, and AMX if that is asked for.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn run(&self, write: &mut dyn FnMut(usize, &mut [f32])) {
        let SplitBf16 { x: x_parts, w: w_parts, .. } = self.x.packing.split();
        let steps = self.x.steps;
        // A part of two blocks of `x` meets the whole panel, and should stay in the first-level cache. If sums are scaled, it is
        // a group.
        let part = self.panel.scales.as_ref().map_or(16 / x_parts, |scales| scales.steps);
        let pairs = self.tile_pairs(part.min(steps));
        let pairs_per_step = pairs.len() / part.min(steps).max(1);
        let mut sums = vec![TileSums::ZERO; self.count.div_ceil(2 * TILE_ROWS)];
        let mut products = vec![0.0; 2 * TILE_ROWS * self.count];
        let last = self.rows.div_ceil(TILE_ROWS).saturating_sub(1);
        let parts = (steps.div_ceil(part.max(1)) * sums.len()).max(1);
        let mut next = self.next.chunks(self.next.len().div_ceil(parts).next_multiple_of(64).max(64));
        for first in (0..self.rows).step_by(2 * TILE_ROWS) {
            sums.fill(TileSums::ZERO);
            let blocks = [0, 1].map(|i| self.block + (first / TILE_ROWS + i).min(last));
            let x = blocks.map(|block| self.x.block(block));
            for step in (0..steps).step_by(part) {
                let pairs = &pairs[..part.min(steps - step) * pairs_per_step];
                for (index, sums) in sums.iter_mut().enumerate() {
                    for line in next.next().unwrap_or_default().chunks(64) {
                        // SAFETY: any address may be prefetched.
                        unsafe { Avx512::prefetch(line.as_ptr()) };
                    }
                    // SAFETY: the caller's. All offsets of the pairs lie within blocks of tiles.
                    unsafe {
                        let w = [0, 1].map(|i| self.panel_block(2 * index + i, w_parts));
                        let w = w.map(|w| w.add(step * w_parts * size_of::<Tile>()));
                        let x = x.map(|x| x.add(step * x_parts * size_of::<Tile>()));
                        if self.amx {
                            amx::multiply(sums, w, x, pairs);
                        } else {
                            let used = [
                                (self.count.div_ceil(TILE_ROWS) - 2 * index).min(2),
                                if blocks[0] == blocks[1] { 1 } else { 2 },
                            ];
                            dot::multiply(
                                sums,
                                w,
                                x,
                                pairs,
                                used,
                                self.group_scales(index, step / part, blocks),
                            );
                        }
                    }
                }
            }
            let rows = (self.rows - first).min(2 * TILE_ROWS);
            for (index, sums) in sums.iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { self.read_sums(sums, index * 2 * TILE_ROWS, rows, &mut products) };
            }
            write(first, &mut products[..rows * self.count]);
        }
    }

    /// The pairs of tiles of the first `steps` steps that are multiplied with each other.
    fn tile_pairs(&self, steps: usize) -> Vec<TilePair> {
        let SplitBf16 { x, w, order } = self.x.packing.split();
        let parts = (0..x).flat_map(|i| (0..w).map(move |j| (i, j))).filter(|(i, j)| i + j < order);
        let parts: Vec<_> = parts.collect();
        let offset = |tile: usize| (tile * size_of::<Tile>()) as u32;
        (0..steps)
            .flat_map(|step| parts.iter().map(move |(i, j)| [step * w + j, step * x + i]))
            .map(|pair| pair.map(offset))
            .collect()
    }

    /// The tiles of 16 rows of the panel. Beyond the end, those of the last rows.
    #[inline(always)]
    fn panel_block(&self, index: usize, parts: usize) -> *const u8 {
        let (blocks, len) = (self.count.div_ceil(TILE_ROWS), self.x.steps * parts);
        self.panel.tiles[index.min(blocks - 1) * len..][..len].as_ptr().cast()
    }

    /// The scales of a group for 32 rows of the panel, from `32 · index` on.
    #[inline(always)]
    fn group_scales(&self, index: usize, group: usize, blocks: [usize; 2]) -> Option<dot::GroupScales> {
        let scales = self.panel.scales.as_ref()?;
        let at = group * scales.width + index * 2 * TILE_ROWS;
        let from = |values: &[f32]| values[at..][..2 * TILE_ROWS].as_ptr();
        Some(dot::GroupScales {
            scales: from(&scales.scales),
            biases: from(&scales.biases),
            sums: blocks.map(|block| self.x.sums(block, group).as_ptr()),
        })
    }

    /// Transposes sums, a row for each row of the matrix, to products, a row for each of `rows` rows of `x`.
    ///
    /// # Safety
    /// The machine has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn read_sums(&self, sums: &TileSums, output: usize, rows: usize, products: &mut [f32]) {
        for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let output = output + down * TILE_ROWS;
            if output >= self.count || right * TILE_ROWS >= rows {
                continue;
            }
            // SAFETY: the caller's. The tile is 16 rows of 16 sums, of 32 in a row. Writes are masked to the existing products.
            unsafe {
                let from = sums.0.as_ptr().add(down * 2 * TILE_ROWS * TILE_ROWS + right * TILE_ROWS);
                let mut tile = [_mm512_setzero_si512(); TILE_ROWS];
                for (i, row) in tile.iter_mut().enumerate() {
                    *row = _mm512_loadu_si512(from.add(i * 2 * TILE_ROWS).cast());
                }
                let mask = (1_u32 << (self.count - output).min(TILE_ROWS)) - 1;
                for (i, row) in transpose(tile).into_iter().enumerate().take(rows - right * TILE_ROWS) {
                    let to = products[(right * TILE_ROWS + i) * self.count + output..].as_mut_ptr();
                    _mm512_mask_storeu_epi32(to.cast(), mask as u16, row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::{super::bf16_split::SplitPacking, *};
    use crate::{
        cpu_features,
        operand::{Floats, Matrices, Weights},
        storage::Dense,
    };

    /// Packing does not depend on what multiplies the tiles.
    #[test]
    fn the_parts_of_a_number_add_up_to_it() {
        if !cpu_features::avx512_bf16() {
            return;
        }
        let (rows, outputs, inputs) = (37, 45, 83);
        let number = |i: usize| ((i * 7919 + 13) % 10_007) as f32 / 5_003.5 - 1.0;
        let x: Vec<f32> = (0..rows * inputs).map(number).collect();
        let w: Vec<f32> = (0..outputs * inputs).map(|i| number(i + 5)).collect();
        let weights = Weights::Dense(Floats::F32(&w));
        let matrix = Matrices { count: 1, outputs, inputs, weights };
        let picked: Vec<_> = (0..rows).rev().collect();
        let blocks: Vec<_> = picked.chunks(TILE_ROWS).collect();
        for precise in [true, false] {
            let parts = if precise { 3 } else { 2 };
            let split = SplitBf16 { x: parts, w: parts, order: parts };
            let packing = SplitPacking::<Dense<f32>> { split, storage: PhantomData };
            let mut packed = PackedRows::new(packing, blocks.len(), inputs);
            let mut seen = 0;
            // SAFETY: the machine has AVX-512 bf16.
            unsafe {
                packed.fill(Floats::F32(&x), inputs, &blocks, |tasks, work| (0..tasks).for_each(work));
                let panel = &packing.unpack(&matrix, 0, outputs);
                let gemm =
                    TileGemm { panel, count: outputs, x: &packed, block: 0, rows, next: &[], amx: false };
                gemm.run(&mut |first, products| {
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
