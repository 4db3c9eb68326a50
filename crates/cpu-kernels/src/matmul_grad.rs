//! The gradient of a matrix product by its input: `g · w`.

use std::marker::PhantomData;

use crate::{
    element::Element,
    error::Result,
    gemm::{MAX_STRIP, UnpackPanel, strip_vectors},
    kernels::Kernels,
    operand::{Floats, FloatsMut, Matrices, Weights, length, product, row_count, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
    storage::{Storage, padded_len, with_storage},
};

/// Elements of a matrix that are transposed at a time.
const TRANSPOSED_ELEMENTS: usize = 32 << 20;

impl Kernels {
    /// The gradient of [`matmul`](Self::matmul) by `x`, `g · w`: `g` `[rows, outputs]`, one matrix → `out` `[rows, inputs]`.
    ///
    /// # Errors
    /// As for [`matmul`](Self::matmul).
    pub fn matmul_grad(&self, g: Floats<'_>, w: &Matrices<'_>, out: FloatsMut<'_>) -> Result<()> {
        w.check_single()?;
        let rows = row_count(w.inputs, out.len(), "out")?;
        length("g", g.len(), product("g", &[rows, w.outputs])?)?;
        with_slice!(out, FloatsMut, out => self.matmul_grad_in_parts(g, w, out, TRANSPOSED_ELEMENTS))
    }

    /// The same with so many elements transposed at a time.
    fn matmul_grad_in_parts<E: Element>(
        &self,
        g: Floats<'_>,
        w: &Matrices<'_>,
        out: &mut [E],
        elements: usize,
    ) -> Result<()> {
        let columns = (elements / w.outputs.max(1)).clamp(1, w.inputs.max(1));
        let rows = out.len().checked_div(w.inputs).unwrap_or(0);
        for first in (0..w.inputs).step_by(columns) {
            let count = columns.min(w.inputs - first);
            let mut transposed = vec![0.0; count * w.outputs];
            self.transpose(w, first, &mut transposed);
            let weights = Weights::Dense(Floats::F32(&transposed));
            let transposed = Matrices { count: 1, outputs: count, inputs: w.outputs, weights };
            let mut products = vec![0.0_f32; rows * count];
            self.matmul(g, &transposed, None, FloatsMut::F32(&mut products))?;
            for (out, products) in out.chunks_exact_mut(w.inputs).zip(products.chunks_exact(count)) {
                for (out, product) in out[first..].iter_mut().zip(products) {
                    *out = E::round(*product);
                }
            }
        }
        Ok(())
    }

    /// Writes columns of the matrix, from `first` on, as rows of `transposed`, as many as it has room for.
    fn transpose(&self, w: &Matrices<'_>, first: usize, transposed: &mut [f32]) {
        let to = &SharedSlice::new(transposed);
        let columns = transposed.len().checked_div(w.outputs).unwrap_or(0);
        self.pool.run(w.outputs.div_ceil(MAX_STRIP), &|task| {
            let row = task * MAX_STRIP;
            let count = MAX_STRIP.min(w.outputs - row);
            with_storage!(w.weights, T => {
                let panel = UnpackPanel::<T> { w, first: row, count, storage: PhantomData };
                self.isa.run(TransposePanel { panel, first, columns, to });
            });
        });
    }
}

/// Writes columns of a panel as a part of each row of `to`.
struct TransposePanel<'a, T> {
    panel: UnpackPanel<'a, T>,
    first: usize,
    columns: usize,
    to: &'a SharedSlice<f32>,
}

impl<T: Storage> Kernel for TransposePanel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { panel, first, columns, to } = self;
        let (outputs, row, count) = (panel.w.outputs, panel.first, panel.count);
        let width = padded_len::<T, S>(panel.w.inputs);
        let strip = strip_vectors::<S>() * S::LANES;
        for (index, elements) in panel.run::<S>().chunks_exact(width * strip).enumerate() {
            let count = strip.min(count - index * strip);
            for column in 0..columns {
                // SAFETY: each task has a part of its own of each row.
                let to = unsafe { to.part(column * outputs + row + index * strip, count) };
                to.copy_from_slice(&elements[(first + column) * strip..][..count]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_any_size_give_the_same_gradient() {
        let kernels = Kernels::new().unwrap();
        let numbers = |count: usize| (0..count).map(|n| (n * 37 % 101) as f32 - 50.0).collect::<Vec<_>>();
        let (weights, g) = (numbers(40 * 70), numbers(3 * 40));
        let w =
            Matrices { count: 1, outputs: 40, inputs: 70, weights: Weights::Dense(Floats::F32(&weights)) };
        let by = |elements| {
            let mut out = vec![0.0_f32; 3 * 70];
            kernels.matmul_grad_in_parts(Floats::F32(&g), &w, &mut out, elements).unwrap();
            out
        };
        let expected: Vec<f32> = (0..3 * 70)
            .map(|n| (0..40).map(|o| g[n / 70 * 40 + o] * weights[o * 70 + n % 70]).sum())
            .collect();
        // Integers, whose sums are exact.
        for elements in [1, 40 * 16, 40 * 33, 40 * 70, TRANSPOSED_ELEMENTS] {
            assert_eq!(by(elements), expected);
        }
    }
}
