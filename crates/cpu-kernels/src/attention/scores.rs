//! The products of queries and keys.

use std::ops::Range;

use crate::{element::Element, kv::Ahead, simd::Simd};

/// Keys of a block, if there are as many.
pub(super) const KEY_BLOCK: usize = 64;

/// The products of each query with each key, `width` elements each, as scores `[queries, block]` at these
/// places.
#[inline(always)]
pub(super) fn score<S: Simd, E: Element>(
    queries: &[f32],
    width: usize,
    (keys, stride): (&[E], usize),
    (scores, block): (&mut [f32], usize),
    places: Range<usize>,
    ahead: &[Ahead],
) {
    let last = places.len().saturating_sub(1) * stride;
    assert!(last + width <= keys.len() && width.is_multiple_of(2 * S::LANES), "whole vectors");
    assert!(places.end <= block && queries.len() / width * block == scores.len(), "scores of all queries");
    for (pair, (queries, scores)) in queries.chunks(2 * width).zip(scores.chunks_mut(2 * block)).enumerate() {
        for (index, place) in places.clone().enumerate() {
            for ahead in ahead.iter().filter(|_| pair == 0) {
                ahead.fetch::<S>(index);
            }
            // SAFETY: see `Isa::run`; keys and queries are whole vectors, `width` long.
            unsafe {
                let key = keys.as_ptr().add(index * stride);
                if queries.len() == width {
                    [scores[place]] = products::<S, E, 1>(queries.as_ptr(), key, width);
                } else {
                    [scores[place], scores[block + place]] =
                        products::<S, E, 2>(queries.as_ptr(), key, width);
                }
            }
        }
    }
}

/// The products of `M` queries with a key, each `width` long.
///
/// # Safety
/// The machine has the instruction set. The width is a multiple of two vectors, and the pointers are valid for it.
#[inline(always)]
unsafe fn products<S: Simd, E: Element, const M: usize>(
    queries: *const f32,
    key: *const E,
    width: usize,
) -> [f32; M] {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; M];
        for i in (0..width).step_by(2 * S::LANES) {
            let key = [E::load::<S>(key.add(i)), E::load::<S>(key.add(i + S::LANES))];
            for (m, sums) in sums.iter_mut().enumerate() {
                let query = queries.add(m * width + i);
                *sums = [
                    S::fma(S::load(query), key[0], sums[0]),
                    S::fma(S::load(query.add(S::LANES)), key[1], sums[1]),
                ];
            }
        }
        let mut products = [0.0; M];
        for (product, sums) in products.iter_mut().zip(sums) {
            *product = S::reduce_add(S::add(sums[0], sums[1]));
        }
        products
    }
}

/// Transposes keys `[block, width]` to `[width, block]`.
#[inline(always)]
pub(super) fn transpose_keys<S: Simd>(keys: &[f32], width: usize, out: &mut [f32], block: usize) {
    assert!(keys.len() == block * width && out.len() == keys.len(), "operands of one length");
    assert!(width.is_multiple_of(S::LANES) && block.is_multiple_of(S::LANES), "whole vectors");
    for first in (0..block).step_by(S::LANES) {
        for i in (0..width).step_by(S::LANES) {
            let (from, to) = (&keys[first * width + i..], &mut out[i * block + first..]);
            // SAFETY: see `Isa::run`; at least `LANES` keys and elements are left, by the assertions.
            unsafe { S::transpose(from.as_ptr(), width, to.as_mut_ptr(), block) };
        }
    }
}
