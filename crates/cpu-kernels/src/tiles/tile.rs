//! Tiles: blocks of bf16 numbers that are multiplied 16 × 32 by 32 × 16.

use std::arch::x86_64::*;

use crate::simd::avx512::transpose;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Numbers in a row of a tile.
pub(super) const TILE_COLUMNS: usize = 32;

/// A tile in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(super) [u16; TILE_ROWS * TILE_COLUMNS]);

impl Tile {
    pub(super) const ZERO: Self = Self([0; TILE_ROWS * TILE_COLUMNS]);
}

/// The sums of 2 × 2 products of tiles, row by row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct TileSums(pub(super) [f32; 4 * TILE_ROWS * TILE_ROWS]);

impl TileSums {
    pub(super) const ZERO: Self = Self([0.0; 4 * TILE_ROWS * TILE_ROWS]);
}

/// Transposes each tile as a matrix of pairs, so that rows of pairs become columns.
///
/// # Safety
/// The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn transpose_tiles(tiles: &mut [Tile]) {
    for tile in tiles {
        // SAFETY: the caller's; a tile is 16 rows of 16 pairs.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); TILE_ROWS];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_load_si512(tile.0.as_ptr().add(i * TILE_COLUMNS).cast());
            }
            for (i, row) in transpose(rows).into_iter().enumerate() {
                _mm512_store_si512(tile.0.as_mut_ptr().add(i * TILE_COLUMNS).cast(), row);
            }
        }
    }
}
