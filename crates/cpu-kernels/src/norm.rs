//! RMS norms, and the residual additions around them.

use crate::{
    element::{Element, to_f32_vec},
    error::{Error, Result},
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// Sums that are accumulated side by side, so that the compiler keeps them in vectors.
const LANES: usize = 16;

/// A root mean square norm.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// The factors of the normalised elements.
    pub weight: Floats<'a>,
    /// The epsilon that is added to the mean of squares.
    pub eps: f32,
}

impl Kernels {
    /// Normalises the rows of `x` `[rows, size]`, where `size` is the number of weights → `out` `[rows, size]`.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn rms_norm(&self, x: Floats<'_>, norm: &RmsNorm<'_>, out: FloatsMut<'_>) -> Result<()> {
        let size = norm.weight.len();
        let rows = x.len().checked_div(size).unwrap_or(0);
        length("x", x.len(), rows * size)?;
        length("out", out.len(), x.len())?;
        let weight = to_f32_vec(norm.weight);
        with_slice!(x, Floats, x => with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            self.for_each_row(rows, size, &|row| {
                // SAFETY: each row belongs to one task.
                let out = unsafe { out.part(row * size, size) };
                self.isa.run(NormRow { x: &x[row * size..][..size], weight: &weight, eps: norm.eps, out });
            });
        }));
        Ok(())
    }

    /// A residual addition between two norms, either of which may be absent: `x + before(y)` → `sum`, and `after(sum)` → the output
    /// that comes with `after`. All are `[rows, size]` of one type. `before(y)` is rounded to it.
    ///
    /// # Errors
    /// Operands whose sizes or types do not match.
    pub fn add_rms_norm(
        &self,
        [x, y]: [Floats<'_>; 2],
        size: usize,
        before: Option<&RmsNorm<'_>>,
        sum: FloatsMut<'_>,
        after: Option<(&RmsNorm<'_>, FloatsMut<'_>)>,
    ) -> Result<()> {
        let rows = x.len().checked_div(size).unwrap_or(0);
        length("x", x.len(), rows * size)?;
        for (operand, found) in [("y", y.len()), ("sum", sum.len())] {
            length(operand, found, x.len())?;
        }
        if let Some((_, out)) = &after {
            length("out", out.len(), x.len())?;
        }
        for norm in before.into_iter().chain(after.as_ref().map(|(norm, _)| *norm)) {
            length("weight", norm.weight.len(), size)?;
        }
        let weighted = |norm: &RmsNorm<'_>| (to_f32_vec(norm.weight), norm.eps);
        let (before, (after, out)) =
            (before.map(weighted), after.map(|(norm, out)| (weighted(norm), out)).unzip());
        let norms = [before, after];
        macro_rules! match_types {
            ($($kind:ident),*) => {
                match (x, y, sum, out) {
                    $((Floats::$kind(x), Floats::$kind(y), FloatsMut::$kind(sum), None) => {
                        self.add_rms_norm_of_type([x, y], size, &norms, sum, None);
                    }
                    (Floats::$kind(x), Floats::$kind(y), FloatsMut::$kind(sum), Some(FloatsMut::$kind(out))) => {
                        self.add_rms_norm_of_type([x, y], size, &norms, sum, Some(out));
                    })*
                    _ => return Err(Error::Invalid { name: "the number of types", found: 2, expected: "1".into() }),
                }
            };
        }
        match_types!(F32, F16, Bf16);
        Ok(())
    }

    fn add_rms_norm_of_type<E: Element>(
        &self,
        [x, y]: [&[E]; 2],
        size: usize,
        [before, after]: &[Option<(Vec<f32>, f32)>; 2],
        sum: &mut [E],
        out: Option<&mut [E]>,
    ) {
        let rows = x.len() / size.max(1);
        let (sum, out) = (SharedSlice::new(sum), out.map(SharedSlice::new));
        self.for_each_row(rows, size, &|row| {
            // SAFETY: each row belongs to one task.
            let (sum, out) =
                unsafe { (sum.part(row * size, size), out.as_ref().map(|out| out.part(row * size, size))) };
            let after = after.as_ref().zip(out);
            self.isa.run(AddRow {
                x: &x[row * size..][..size],
                y: &y[row * size..][..size],
                before: before.as_ref().map(|(weight, eps)| (weight.as_slice(), *eps)),
                sum,
                after: after.map(|((weight, eps), out)| (weight.as_slice(), *eps, out)),
            });
        });
    }
}

struct NormRow<'a, X, O> {
    x: &'a [X],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [O],
}

impl<X: Element, O: Element> Kernel for NormRow<'_, X, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let scale = inverse_rms(self.x, self.eps);
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = O::round(x.widen() * scale * weight);
        }
    }
}

struct AddRow<'a, E> {
    x: &'a [E],
    y: &'a [E],
    before: Option<(&'a [f32], f32)>,
    sum: &'a mut [E],
    after: Option<(&'a [f32], f32, &'a mut [E])>,
}

impl<E: Element> Kernel for AddRow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, y, before, sum, after } = self;
        let terms = sum.iter_mut().zip(x).zip(y);
        if let Some((weight, eps)) = before {
            let scale = inverse_rms(y, eps);
            for (((sum, x), y), weight) in terms.zip(weight) {
                *sum = E::round(x.widen() + E::round(y.widen() * scale * weight).widen());
            }
        } else {
            for ((sum, x), y) in terms {
                *sum = E::round(x.widen() + y.widen());
            }
        }
        if let Some((weight, eps, out)) = after {
            NormRow { x: sum, weight, eps, out }.run::<S>();
        }
    }
}

/// 1 / √(mean of squares + eps)
#[inline(always)]
pub(crate) fn inverse_rms<X: Element>(x: &[X], eps: f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|x| x.widen() * x.widen()).sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x.widen() * x.widen();
        }
    }
    1.0 / ((sums.iter().sum::<f32>() + rest) / x.len() as f32 + eps).sqrt()
}
