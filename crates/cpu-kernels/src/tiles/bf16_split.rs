//! Packing of numbers with more digits than bf16: each is split into two or three bf16 numbers, the largest first (BF16x2, BF16x3).
//! Products of parts that are too small to matter are left out.

use std::{arch::x86_64::*, marker::PhantomData};

use super::{
    packing::{TilePacking, TilePanel},
    tile::{TILE_COLUMNS, TILE_ROWS, Tile},
};
use crate::{
    element::widen,
    gemm::RowUnpacker,
    matmul_kernel::SplitBf16,
    operand::{Floats, Matrices, with_slice},
    simd::avx512::Avx512,
    storage::{Storage, padded_len, permute_row},
};

/// Elements that are unpacked to `f32` and split.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SplitPacking<T> {
    pub(crate) split: SplitBf16,
    pub(crate) storage: PhantomData<T>,
}

impl<T: Storage> TilePacking for SplitPacking<T> {
    fn split(self) -> SplitBf16 {
        self.split
    }

    fn steps(self, inputs: usize) -> usize {
        padded_len::<T, Avx512>(inputs).div_ceil(TILE_COLUMNS)
    }

    fn groups(self, _: usize) -> usize {
        0
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack(
        self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[usize],
        tiles: &mut [Tile],
        _: &mut [[f32; TILE_ROWS]],
    ) {
        let width = padded_len::<T, Avx512>(inputs);
        let (steps, parts) = (self.steps(inputs), self.split.x);
        let mut row = vec![0.0; width];
        let mut permuted = vec![0.0; steps * TILE_COLUMNS];
        for (index, from) in rows.iter().enumerate() {
            with_slice!(x, Floats, x => widen::<_, Avx512>(&x[from * inputs..][..inputs], &mut row[..inputs]));
            permute_row::<T, Avx512>(&row, &mut permuted[..width]);
            for (step, tiles) in tiles.chunks_exact_mut(parts).enumerate() {
                // SAFETY: the caller's; the step lies within the row.
                unsafe { store_parts(permuted.as_ptr().add(step * TILE_COLUMNS), tiles, index) };
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn unpack(self, w: &Matrices<'_>, first: usize, count: usize) -> TilePanel {
        let (steps, parts) = (self.steps(w.inputs), self.split.w);
        let mut tiles = vec![Tile::ZERO; count.div_ceil(TILE_ROWS) * steps * parts];
        let unpacker = RowUnpacker::<T, Avx512>::new(w, first, count);
        let width = padded_len::<T, Avx512>(w.inputs);
        let mut row = vec![0.0; steps * TILE_COLUMNS];
        for output in 0..count {
            unpacker.row(output, &mut row[..width]);
            for step in 0..steps {
                let at = (output / TILE_ROWS * steps + step) * parts;
                // SAFETY: the caller's; the step lies within the row.
                unsafe {
                    store_parts(
                        row.as_ptr().add(step * TILE_COLUMNS),
                        &mut tiles[at..at + parts],
                        output % TILE_ROWS,
                    );
                };
            }
        }
        TilePanel { tiles, scales: None }
    }
}

/// Splits 32 numbers into a row of several tiles, one for each part.
///
/// # Safety
/// The machine has AVX-512 bf16, and `from` is valid for 32 numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn store_parts(from: *const f32, tiles: &mut [Tile], row: usize) {
    // SAFETY: the caller's; both types are 512 bits, and a row of a tile is 32 numbers.
    unsafe {
        let mut rest = [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))];
        for tile in tiles {
            let part: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(rest[1], rest[0]));
            _mm512_store_si512(tile.0[row * TILE_COLUMNS..][..TILE_COLUMNS].as_mut_ptr().cast(), part);
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(part));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(part));
            let wide = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half));
            rest = [_mm512_sub_ps(rest[0], wide(low)), _mm512_sub_ps(rest[1], wide(high))];
        }
    }
}
