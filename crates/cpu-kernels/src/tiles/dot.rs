//! Products of tiles by the bf16 dot products of AVX-512 (`VDPBF16PS`).

use std::arch::x86_64::*;

use super::tile::{TILE_ROWS, TileSums};

/// Pairs of numbers in a row of a tile.
const PAIRS: usize = 16;

/// The scales and biases of a group, and the sums that the biases are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct GroupScales {
    /// For 32 rows of the matrix.
    pub(super) scales: *const f32,
    /// For 32 rows of the matrix.
    pub(super) biases: *const f32,
    /// For two blocks of 16 rows of `x`.
    pub(super) sums: [*const f32; 2],
}

/// Adds the products of two tiles of the matrix with two of `x`, for each pair of offsets. `used` says how many tiles of either
/// count.
///
/// # Safety
/// The machine has AVX-512 bf16. Tiles begin at all offsets. Scales and sums are as many as documented.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn multiply(
    sums: &mut TileSums,
    w: [*const u8; 2],
    x: [*const u8; 2],
    pairs: &[[u32; 2]],
    used: [usize; 2],
    scales: Option<GroupScales>,
) {
    for (down, w) in w.into_iter().enumerate().take(used[0]) {
        // SAFETY: the caller's.
        unsafe {
            if used[1] == 1 {
                multiply_rows::<16, 1>(sums, w, x, pairs, down * TILE_ROWS, scales);
            } else {
                multiply_rows::<8, 2>(sums, w, x, pairs, down * TILE_ROWS, scales);
                multiply_rows::<8, 2>(sums, w, x, pairs, down * TILE_ROWS + 8, scales);
            }
        }
    }
}

/// Multiplies `O` rows of the matrix, from row `first` of the sums on, with `N` tiles of `x`.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply_rows<const O: usize, const N: usize>(
    sums: &mut TileSums,
    w: *const u8,
    x: [*const u8; 2],
    pairs: &[[u32; 2]],
    first: usize,
    scales: Option<GroupScales>,
) {
    // SAFETY: the caller's; both types are 512 bits.
    unsafe {
        let at = |o: usize, n: usize| (first + o) * 2 * TILE_ROWS + n * TILE_ROWS;
        let mut parts = [[_mm512_setzero_ps(); N]; O];
        if scales.is_none() {
            for (o, parts) in parts.iter_mut().enumerate() {
                for (n, part) in parts.iter_mut().enumerate() {
                    *part = _mm512_load_ps(sums.0.as_ptr().add(at(o, n)));
                }
            }
        }
        for [w_offset, x_offset] in pairs {
            let w: *const i32 = w.add(*w_offset as usize + first % TILE_ROWS * 4 * PAIRS).cast();
            for pair in 0..PAIRS {
                let mut columns = [_mm512_setzero_si512(); N];
                for n in 0..N {
                    columns[n] = _mm512_load_si512(x[n].add(*x_offset as usize + pair * 64).cast());
                }
                for (o, parts) in parts.iter_mut().enumerate() {
                    let w = _mm512_set1_epi32(*w.add(o * PAIRS + pair));
                    for (part, column) in parts.iter_mut().zip(columns) {
                        *part = _mm512_dpbf16_ps(
                            *part,
                            std::mem::transmute::<__m512i, __m512bh>(column),
                            std::mem::transmute::<__m512i, __m512bh>(w),
                        );
                    }
                }
            }
        }
        for (o, parts) in parts.into_iter().enumerate() {
            for (n, mut part) in parts.into_iter().enumerate() {
                let to = sums.0.as_mut_ptr().add(at(o, n));
                if let Some(GroupScales { scales, biases, sums }) = scales {
                    let total =
                        _mm512_fmadd_ps(part, _mm512_set1_ps(*scales.add(first + o)), _mm512_load_ps(to));
                    let bias = _mm512_set1_ps(*biases.add(first + o));
                    part = _mm512_fmadd_ps(bias, _mm512_loadu_ps(sums[n]), total);
                }
                _mm512_store_ps(to, part);
            }
        }
    }
}
