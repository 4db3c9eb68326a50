//! Activations of single elements: those of feed-forward blocks without gates.

use crate::{
    element::Element,
    error::Result,
    glu::{gelu, sigmoid},
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// Elements that one call of a kernel computes.
const ROW: usize = 1 << 10;

/// A function of single elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ElementActivation {
    /// x · Φ(x), with the error function.
    Gelu,
    /// x · Φ(x), with the tanh approximation.
    GeluTanh,
    /// x · σ(x)
    Silu,
    /// max(x, 0)
    Relu,
    /// max(x, 0)²
    Relu2,
    /// x, cut to ± this.
    Clip(f32),
}

impl Kernels {
    /// Applies a function to each element of `x` → `out`.
    ///
    /// # Errors
    /// `out` is not as long as `x`.
    pub fn activate(&self, x: Floats<'_>, activation: ElementActivation, out: FloatsMut<'_>) -> Result<()> {
        length("out", out.len(), x.len())?;
        let rows = x.len().div_ceil(ROW);
        with_slice!(x, Floats, x => with_slice!(out, FloatsMut, out => {
            let all = out.len();
            let out = SharedSlice::new(out);
            self.for_each_row(rows, ROW, &|row| {
                let (start, end) = (row * ROW, all.min((row + 1) * ROW));
                // SAFETY: each row belongs to one task.
                let out = unsafe { out.part(start, end - start) };
                self.isa.run(Elements { x: &x[start..end], activation, out });
            });
        }));
        Ok(())
    }
}

struct Elements<'a, X, O> {
    x: &'a [X],
    activation: ElementActivation,
    out: &'a mut [O],
}

impl<X: Element, O: Element> Kernel for Elements<'_, X, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match self.activation {
            ElementActivation::Gelu => {
                self.each(gelu);
            }
            // (1 + tanh(z)) / 2 is σ(2z).
            ElementActivation::GeluTanh => {
                self.each(|x| x * sigmoid(2.0 * 0.797_884_6 * x * (1.0 + 0.044_715 * x * x)));
            }
            ElementActivation::Silu => self.each(|x| x * sigmoid(x)),
            // What is no number stays what it is.
            ElementActivation::Relu => self.each(|x| if x < 0.0 { 0.0 } else { x }),
            ElementActivation::Relu2 => self.each(|x| if x < 0.0 { 0.0 } else { x * x }),
            ElementActivation::Clip(limit) => self.each(|x| {
                if x > limit {
                    limit
                } else if x < -limit {
                    -limit
                } else {
                    x
                }
            }),
        }
    }
}

impl<X: Element, O: Element> Elements<'_, X, O> {
    #[inline(always)]
    fn each(self, of: impl Fn(f32) -> f32) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = O::round(of(x.widen()));
        }
    }
}
