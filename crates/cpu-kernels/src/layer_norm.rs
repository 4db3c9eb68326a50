//! Norms by mean and variance, and the residual additions before them.

use crate::{
    element::{Element, to_f32_vec},
    error::Result,
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// Sums that are accumulated side by side, so that the compiler keeps them in vectors.
const LANES: usize = 16;

/// A norm by mean and variance: `(x − mean) / √(variance + eps) · weight + bias`.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// The factors of the normalised elements.
    pub weight: Floats<'a>,
    /// What is added to them.
    pub bias: Option<Floats<'a>>,
    /// The epsilon that is added to the variance.
    pub eps: f32,
}

impl Kernels {
    /// Normalises the rows of `x`, or of `x + y`: `[rows, size]`, where `size` is the number of weights → `out` `[rows, size]`. The
    /// sum is not rounded before.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn layer_norm(
        &self,
        x: Floats<'_>,
        y: Option<Floats<'_>>,
        norm: &LayerNorm<'_>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        let size = norm.weight.len();
        let rows = x.len().checked_div(size).unwrap_or(0);
        length("x", x.len(), rows * size)?;
        length("out", out.len(), x.len())?;
        if let Some(y) = &y {
            length("y", y.len(), x.len())?;
        }
        if let Some(bias) = &norm.bias {
            length("bias", bias.len(), size)?;
        }
        let (weight, bias) = (to_f32_vec(norm.weight), norm.bias.map(to_f32_vec));
        let (weight, bias, eps) = (weight.as_slice(), bias.as_deref(), norm.eps);
        with_slice!(x, Floats, x => with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            match y {
                None => self.for_each_row(rows, size, &|row| {
                    // SAFETY: each row belongs to one task.
                    let out = unsafe { out.part(row * size, size) };
                    self.isa.run(Row { x: &x[row * size..][..size], y: None::<&[f32]>, weight, bias, eps, out });
                }),
                Some(y) => with_slice!(y, Floats, y => self.for_each_row(rows, size, &|row| {
                    // SAFETY: each row belongs to one task.
                    let out = unsafe { out.part(row * size, size) };
                    let y = Some(&y[row * size..][..size]);
                    self.isa.run(Row { x: &x[row * size..][..size], y, weight, bias, eps, out });
                })),
            }
        }));
        Ok(())
    }
}

struct Row<'a, X, Y, O> {
    x: &'a [X],
    y: Option<&'a [Y]>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [O],
}

impl<X: Element, Y: Element, O: Element> Kernel for Row<'_, X, Y, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, y, weight, bias, eps, out } = self;
        let mut sums: Vec<f32> = x.iter().map(|x| x.widen()).collect();
        if let Some(y) = y {
            for (sum, y) in sums.iter_mut().zip(y) {
                *sum += y.widen();
            }
        }
        let count = sums.len() as f32;
        let mean = total(&sums, |x| x) / count;
        let variance = total(&sums, |x| (x - mean) * (x - mean)) / count;
        let scale = 1.0 / (variance + eps).sqrt();
        let normalised = out.iter_mut().zip(&sums).zip(weight);
        match bias {
            None => normalised.for_each(|((out, x), weight)| *out = O::round((x - mean) * scale * weight)),
            Some(bias) => normalised.zip(bias).for_each(|(((out, x), weight), bias)| {
                *out = O::round((x - mean) * scale * weight + bias);
            }),
        }
    }
}

/// The sum of what each element gives.
#[inline(always)]
fn total(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += of(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}
