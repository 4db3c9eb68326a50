//! The products of tiles with the products of pairs that AVX-512 has.

use std::arch::x86_64::*;

use super::{EDGE, Sums};

/// Words of a row of a tile, each a pair of numbers.
const WORDS: usize = 16;

/// What sums are scaled with, and what is added to them.
#[derive(Clone, Copy)]
pub(super) struct Scaling {
    /// Of 32 rows of the matrix.
    pub(super) scales: *const f32,
    /// As the scales, of the sums.
    pub(super) biases: *const f32,
    /// Of 16 rows of `x` each.
    pub(super) sums: [*const f32; 2],
}

/// Adds to sums the products of two blocks of the matrix with two of `x`, for each pair of offsets of the plan. `used` says how
/// many of either are wanted.
///
/// # Safety
/// The machine has the instructions. Tiles begin at all offsets; scales and sums are as many as there are said to be.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn multiply(
    sums: &mut Sums,
    w: [*const u8; 2],
    x: [*const u8; 2],
    plan: &[[u32; 2]],
    used: [usize; 2],
    scaling: Option<Scaling>,
) {
    for (down, w) in w.into_iter().enumerate().take(used[0]) {
        // SAFETY: the caller's.
        unsafe {
            if used[1] == 1 {
                part::<16, 1>(sums, w, x, plan, down * EDGE, scaling);
            } else {
                part::<8, 2>(sums, w, x, plan, down * EDGE, scaling);
                part::<8, 2>(sums, w, x, plan, down * EDGE + 8, scaling);
            }
        }
    }
}

/// `O` rows of the matrix from row `first` of the sums on, with `N` blocks of `x`.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn part<const O: usize, const N: usize>(
    sums: &mut Sums,
    w: *const u8,
    x: [*const u8; 2],
    plan: &[[u32; 2]],
    first: usize,
    scaling: Option<Scaling>,
) {
    // SAFETY: the caller's; both types are 512 bits.
    unsafe {
        let at = |o: usize, n: usize| (first + o) * 2 * EDGE + n * EDGE;
        let mut parts = [[_mm512_setzero_ps(); N]; O];
        if scaling.is_none() {
            for (o, parts) in parts.iter_mut().enumerate() {
                for (n, part) in parts.iter_mut().enumerate() {
                    *part = _mm512_load_ps(sums.0.as_ptr().add(at(o, n)));
                }
            }
        }
        for [of_w, of_x] in plan {
            let w: *const i32 = w.add(*of_w as usize + first % EDGE * 4 * WORDS).cast();
            for word in 0..WORDS {
                let mut columns = [_mm512_setzero_si512(); N];
                for n in 0..N {
                    columns[n] = _mm512_load_si512(x[n].add(*of_x as usize + word * 64).cast());
                }
                for (o, parts) in parts.iter_mut().enumerate() {
                    let pair = _mm512_set1_epi32(*w.add(o * WORDS + word));
                    for (part, column) in parts.iter_mut().zip(columns) {
                        *part = _mm512_dpbf16_ps(
                            *part,
                            std::mem::transmute::<__m512i, __m512bh>(column),
                            std::mem::transmute::<__m512i, __m512bh>(pair),
                        );
                    }
                }
            }
        }
        for (o, parts) in parts.into_iter().enumerate() {
            for (n, mut part) in parts.into_iter().enumerate() {
                let to = sums.0.as_mut_ptr().add(at(o, n));
                if let Some(Scaling { scales, biases, sums }) = scaling {
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
