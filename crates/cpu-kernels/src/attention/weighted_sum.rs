//! Weighted sums of vectors.

use crate::{element::Element, simd::Simd};

/// Sums of vectors, weighted for each query.
pub(super) struct WeightedSum<'a, B> {
    /// `[queries, weights_stride]`
    pub(super) weights: &'a [f32],
    pub(super) weights_stride: usize,
    /// `[count or more, width]`, each vector `stride` behind the one before it.
    pub(super) vectors: &'a [B],
    pub(super) stride: usize,
    /// Elements of a vector: pairs of SIMD vectors.
    pub(super) width: usize,
    /// Vectors to sum.
    pub(super) count: usize,
}

impl<B: Element> WeightedSum<'_, B> {
    /// Adds them to `sums` `[queries, width]`.
    #[inline(always)]
    pub(super) fn add_to<S: Simd>(&self, sums: &mut [f32]) {
        let queries = self.weights.len().div_ceil(self.weights_stride);
        let last = self.count.saturating_sub(1) * self.stride;
        assert!(
            self.count <= self.weights_stride && last + self.width <= self.vectors.len(),
            "vectors for all weights"
        );
        assert!(
            (queries - 1) * self.weights_stride + self.count <= self.weights.len(),
            "weights of all queries"
        );
        assert!(
            sums.len() == queries * self.width && self.width.is_multiple_of(2 * S::LANES),
            "sums of all queries"
        );
        let mut query = 0;
        // SAFETY: see `Isa::run`; queries lie within the weights and the sums, by the assertions.
        unsafe {
            while S::REGISTERS >= 32 && query + 8 <= queries {
                self.add_rows::<S, 8, 2>(sums, query);
                query += 8;
            }
            while query + 4 <= queries {
                self.add_rows::<S, 4, 2>(sums, query);
                query += 4;
            }
            while query + 2 <= queries {
                self.add_rows::<S, 2, 4>(sums, query);
                query += 2;
            }
            if query < queries {
                self.add_rows::<S, 1, 4>(sums, query);
            }
        }
    }

    /// Adds the sums of `M` queries, `N` SIMD vectors at a time, and two if fewer are left.
    ///
    /// # Safety
    /// The machine has the instruction set. The queries lie within the weights and the sums.
    #[inline(always)]
    unsafe fn add_rows<S: Simd, const M: usize, const N: usize>(&self, sums: &mut [f32], query: usize) {
        let mut column = 0;
        // SAFETY: the caller's; columns lie within the width.
        unsafe {
            while column + N * S::LANES <= self.width {
                self.add_tile::<S, M, N>(sums, query, column);
                column += N * S::LANES;
            }
            while column < self.width {
                self.add_tile::<S, M, 2>(sums, query, column);
                column += 2 * S::LANES;
            }
        }
    }

    /// Adds the sums of `M` queries and `N` SIMD vectors.
    ///
    /// # Safety
    /// The machine has the instruction set. The queries and columns lie within the weights, the vectors and the sums.
    #[inline(always)]
    unsafe fn add_tile<S: Simd, const M: usize, const N: usize>(
        &self,
        sums: &mut [f32],
        query: usize,
        column: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let at = |m: usize, i: usize| (query + m) * self.width + column + i * S::LANES;
            let mut parts = [[S::splat(0.0); N]; M];
            for (m, parts) in parts.iter_mut().enumerate() {
                for (i, part) in parts.iter_mut().enumerate() {
                    *part = S::load(sums.as_ptr().add(at(m, i)));
                }
            }
            let weights = self.weights.as_ptr().add(query * self.weights_stride);
            let mut vector = self.vectors.as_ptr().add(column);
            for k in 0..self.count {
                let mut row = [S::splat(0.0); N];
                for (i, part) in row.iter_mut().enumerate() {
                    *part = B::load::<S>(vector.add(i * S::LANES));
                }
                for (m, parts) in parts.iter_mut().enumerate() {
                    let factor = S::splat(*weights.add(m * self.weights_stride + k));
                    for (part, row) in parts.iter_mut().zip(row) {
                        *part = S::fma(factor, row, *part);
                    }
                }
                vector = vector.wrapping_add(self.stride);
            }
            for (m, parts) in parts.into_iter().enumerate() {
                for (i, part) in parts.into_iter().enumerate() {
                    S::store(sums.as_mut_ptr().add(at(m, i)), part);
                }
            }
        }
    }
}
