//! Products with a matrix from its other side: `g · w`, what [`matmul`](Kernels::matmul) does to gradients.

use std::marker::PhantomData;

use crate::{
    Floats, FloatsMut, Kernels, Matrices, Result, Weights,
    element::{Element, Shared},
    gemm::{Panel, STRIP, vectors},
    isa::Kernel,
    operand::{length, product, with_slice},
    product::{rows, single},
    simd::Simd,
    storage::{Storage, arranged_len, with_storage},
};

/// Elements of a matrix that are turned at a time.
const TURNED: usize = 32 << 20;

impl Kernels {
    /// `g · w`: `g` `[rows, outputs]`, one matrix → `out` `[rows, inputs]`: what [`matmul`](Self::matmul) does to
    /// gradients.
    ///
    /// # Errors
    /// As for [`matmul`](Self::matmul).
    pub fn matmul_grad(&self, g: Floats<'_>, w: &Matrices<'_>, out: FloatsMut<'_>) -> Result<()> {
        single(w)?;
        let rows = rows(w.inputs, out.len(), "out")?;
        length("g", g.len(), product("g", &[rows, w.outputs])?)?;
        with_slice!(out, FloatsMut, out => self.back_by(g, w, out, TURNED))
    }

    /// The same with so many elements turned at a time.
    fn back_by<E: Element>(
        &self,
        g: Floats<'_>,
        w: &Matrices<'_>,
        out: &mut [E],
        turned: usize,
    ) -> Result<()> {
        let columns = (turned / w.outputs.max(1)).clamp(1, w.inputs.max(1));
        let rows = out.len().checked_div(w.inputs).unwrap_or(0);
        for first in (0..w.inputs).step_by(columns) {
            let count = columns.min(w.inputs - first);
            let mut turned = vec![0.0; count * w.outputs];
            self.turn(w, first, &mut turned);
            let weights = Weights::Dense(Floats::F32(&turned));
            let turned = Matrices { count: 1, outputs: count, inputs: w.outputs, weights };
            let mut products = vec![0.0_f32; rows * count];
            self.matmul(g, &turned, None, FloatsMut::F32(&mut products))?;
            for (out, products) in out.chunks_exact_mut(w.inputs).zip(products.chunks_exact(count)) {
                for (out, product) in out[first..].iter_mut().zip(products) {
                    *out = E::round(*product);
                }
            }
        }
        Ok(())
    }

    /// The columns of the matrix from `first` on, as many as there is room for, as the rows of `turned`.
    fn turn(&self, w: &Matrices<'_>, first: usize, turned: &mut [f32]) {
        let to = &Shared::new(turned);
        let columns = turned.len().checked_div(w.outputs).unwrap_or(0);
        self.pool.run(w.outputs.div_ceil(STRIP), &|task| {
            let row = task * STRIP;
            let count = STRIP.min(w.outputs - row);
            with_storage!(w.weights, T => {
                let panel = Panel::<T> { w, first: row, count, storage: PhantomData };
                self.isa.run(Turn { panel, first, columns, to });
            });
        });
    }
}

/// Writes columns of a panel as rows, into the places that are its own in each.
struct Turn<'a, T> {
    panel: Panel<'a, T>,
    first: usize,
    columns: usize,
    to: &'a Shared<f32>,
}

impl<T: Storage> Kernel for Turn<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { panel, first, columns, to } = self;
        let (outputs, row, count) = (panel.w.outputs, panel.first, panel.count);
        let width = arranged_len::<T, S>(panel.w.inputs);
        let strip = vectors::<S>() * S::LANES;
        for (index, strip_of) in panel.run::<S>().chunks_exact(width * strip).enumerate() {
            let count = strip.min(count - index * strip);
            for column in 0..columns {
                // SAFETY: each task has places of its own in each row.
                let to = unsafe { to.part(column * outputs + row + index * strip, count) };
                to.copy_from_slice(&strip_of[(first + column) * strip..][..count]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_are_turned_apart_come_to_the_same() {
        let kernels = Kernels::new().unwrap();
        let numbers = |count: usize| (0..count).map(|n| (n * 37 % 101) as f32 - 50.0).collect::<Vec<_>>();
        let (weights, g) = (numbers(40 * 70), numbers(3 * 40));
        let w =
            Matrices { count: 1, outputs: 40, inputs: 70, weights: Weights::Dense(Floats::F32(&weights)) };
        let by = |turned| {
            let mut out = vec![0.0_f32; 3 * 70];
            kernels.back_by(Floats::F32(&g), &w, &mut out, turned).unwrap();
            out
        };
        let expected: Vec<f32> = (0..3 * 70)
            .map(|n| (0..40).map(|o| g[n / 70 * 40 + o] * weights[o * 70 + n % 70]).sum())
            .collect();
        // Whole numbers, whose sums are exact.
        for turned in [1, 40 * 16, 40 * 33, 40 * 70, TURNED] {
            assert_eq!(by(turned), expected);
        }
    }
}
