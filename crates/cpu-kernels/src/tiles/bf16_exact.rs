//! Packing of bf16 rows, and of matrices whose elements bf16 holds exactly before they are scaled: the sums of groups are scaled.

use std::{arch::x86_64::*, marker::PhantomData};

use half::bf16;

use super::{
    packing::{PanelScales, TilePacking, TilePanel},
    tile::{TILE_COLUMNS, TILE_ROWS, Tile},
};
use crate::{
    bf16_dot::{BF16_BLOCK, Bf16Dot, MAX_BF16_BLOCK_BYTES, permute_bf16_row, sum_groups},
    matmul_kernel::SplitBf16,
    operand::{Floats, Matrices},
    scales::{RowScales, element_bytes},
    simd::{Simd as _, avx512::Avx512},
};

/// Tiles that a block of elements fills a row of.
const BLOCK_TILES: usize = BF16_BLOCK / TILE_COLUMNS;

/// Elements as [`Bf16Dot`] unpacks them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bf16Exact<P> {
    /// Elements of a group, if they have a scale.
    group_size: Option<usize>,
    storage: PhantomData<P>,
}

impl<P: Bf16Dot> Bf16Exact<P> {
    /// For matrices whose groups, if the sums of groups are scaled, have this many elements: a multiple of a block.
    pub(crate) fn new(group_size: Option<usize>) -> Self {
        debug_assert!(group_size.is_none_or(|size| size.is_multiple_of(BF16_BLOCK)));
        Self { group_size, storage: PhantomData }
    }

    /// The scales and biases of `count` rows, which are in `rows`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn panel_scales(rows: &RowScales, count: usize, group_size: usize) -> PanelScales {
        let (width, groups) = (count.next_multiple_of(2 * TILE_ROWS), rows.groups());
        // What is transposed ends with whole vectors.
        let mut scales = vec![0.0; groups.next_multiple_of(TILE_ROWS) * width];
        let mut biases = scales.clone();
        for first in (0..count).step_by(TILE_ROWS) {
            let whole = if count - first < TILE_ROWS { 0 } else { groups / TILE_ROWS * TILE_ROWS };
            for group in (0..whole).step_by(TILE_ROWS) {
                let (at, to) = (first * groups + group, group * width + first);
                let [from_scales, from_biases] = rows.row(0).map(|from| from.wrapping_add(at));
                // SAFETY: sixteen groups of sixteen rows, there and here.
                unsafe {
                    Avx512::transpose(from_scales, groups, scales[to..].as_mut_ptr(), width);
                    Avx512::transpose(from_biases, groups, biases[to..].as_mut_ptr(), width);
                }
            }
            for output in first..count.min(first + TILE_ROWS) {
                for group in whole..groups {
                    scales[group * width + output] = rows.scales(output)[group];
                    biases[group * width + output] = rows.biases(output)[group];
                }
            }
        }
        for (bias, scale) in biases.iter_mut().zip(&scales) {
            *bias -= P::OFFSET * scale;
        }
        PanelScales { steps: group_size / TILE_COLUMNS, scales, biases, width }
    }
}

impl<P: Bf16Dot> TilePacking for Bf16Exact<P> {
    fn split(self) -> SplitBf16 {
        SplitBf16::NONE
    }

    fn steps(self, inputs: usize) -> usize {
        inputs.div_ceil(BF16_BLOCK) * BLOCK_TILES
    }

    fn groups(self, inputs: usize) -> usize {
        self.group_size.map_or(0, |size| inputs / size)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack(
        self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[usize],
        tiles: &mut [Tile],
        sums: &mut [[f32; TILE_ROWS]],
    ) {
        let Floats::Bf16(x) = x else { return };
        let mut permuted = vec![bf16::ZERO; self.steps(inputs) * TILE_COLUMNS];
        let mut groups = vec![0.0; sums.len()];
        for (index, row) in rows.iter().enumerate() {
            let x = &x[row * inputs..][..inputs];
            // SAFETY: the caller's.
            unsafe { permute_bf16_row::<P>(x, &mut permuted) };
            for (tile, numbers) in tiles.iter_mut().zip(permuted.chunks_exact(TILE_COLUMNS)) {
                // SAFETY: the caller's; a row of a tile is 32 numbers.
                unsafe {
                    let numbers = _mm512_loadu_si512(numbers.as_ptr().cast());
                    _mm512_store_si512(
                        tile.0[index * TILE_COLUMNS..][..TILE_COLUMNS].as_mut_ptr().cast(),
                        numbers,
                    );
                }
            }
            if let Some(size) = self.group_size {
                // SAFETY: the caller's.
                unsafe { sum_groups(x, size, &mut groups) };
                sums.iter_mut().zip(&groups).for_each(|(sums, group)| sums[index] = *group);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn unpack(self, w: &Matrices<'_>, first: usize, count: usize) -> TilePanel {
        let steps = self.steps(w.inputs);
        let mut tiles = vec![Tile::ZERO; count.div_ceil(TILE_ROWS) * steps];
        let row_bytes = w.inputs * P::BITS / 8;
        let bytes = element_bytes(&w.weights);
        let scales = self.group_size.map(|size| (size, RowScales::with_rows::<P, Avx512>(w, count)));
        if let Some((_, scales)) = &scales {
            scales.prefetch::<Avx512>(w, first, count);
        }
        for output in 0..count {
            let row = &bytes[(first + output) * row_bytes..][..row_bytes];
            let tiles = &mut tiles[output / TILE_ROWS * steps..][..steps];
            for (from, tiles) in row.chunks(P::BLOCK_BYTES).zip(tiles.chunks_exact_mut(BLOCK_TILES)) {
                let mut rest = [0; MAX_BF16_BLOCK_BYTES];
                let from = if from.len() == P::BLOCK_BYTES {
                    from
                } else {
                    rest[..from.len()].copy_from_slice(from);
                    &rest
                };
                // SAFETY: the caller's; the block is whole, and a row of a tile is 32 numbers.
                unsafe {
                    for (tile, numbers) in tiles.iter_mut().zip(P::unpack(from.as_ptr())) {
                        let to = tile.0[output % TILE_ROWS * TILE_COLUMNS..][..TILE_COLUMNS].as_mut_ptr();
                        _mm512_store_si512(to.cast(), numbers);
                    }
                }
            }
        }
        let scales = scales.map(|(size, mut scales)| {
            scales.fill::<Avx512>(w, first, count);
            Self::panel_scales(&scales, count, size)
        });
        TilePanel { tiles, scales }
    }
}
