//! Norms by mean and variance, and the residual additions before them.

use crate::{
    element::{Element, add_to, narrow, to_f32_vec, widen},
    error::Result,
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, with_slice},
    scratch::Scratch,
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

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
        let mut sums = Scratch::new(x.len());
        widen::<X, S>(x, &mut sums);
        if let Some(y) = y {
            add_to::<Y, S>(y, &mut sums);
        }
        let count = sums.len() as f32;
        let mean = total::<S>(&sums, 0.0, false) / count;
        let variance = total::<S>(&sums, mean, true) / count;
        let scale = 1.0 / (variance + eps).sqrt();
        normalize::<S>(&mut sums, [mean, scale], weight, bias);
        narrow::<O, S>(&sums, out);
    }
}

/// The sum of `x − mean`, or of its squares.
#[inline(always)]
fn total<S: Simd>(x: &[f32], mean: f32, squares: bool) -> f32 {
    let (step, term) = (4 * S::LANES, |x: f32| if squares { (x - mean) * (x - mean) } else { x - mean });
    let whole = x.len() - x.len() % step;
    // SAFETY: see `Isa::run`; four vectors begin here.
    let sum = unsafe {
        let (mean, mut sums) = (S::splat(mean), [S::splat(0.0); 4]);
        for i in (0..whole).step_by(step) {
            for (j, sum) in sums.iter_mut().enumerate() {
                let x = S::sub(S::load(x.as_ptr().add(i + j * S::LANES)), mean);
                *sum = if squares { S::fma(x, x, *sum) } else { S::add(*sum, x) };
            }
        }
        S::reduce_add(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    };
    sum + x[whole..].iter().map(|x| term(*x)).sum::<f32>()
}

/// Makes each x `(x − mean) · scale · weight + bias`.
#[inline(always)]
fn normalize<S: Simd>(x: &mut [f32], [mean, scale]: [f32; 2], weight: &[f32], bias: Option<&[f32]>) {
    let len = x.len();
    assert!(weight.len() == len && bias.is_none_or(|bias| bias.len() == len), "operands of one length");
    let whole = len - len % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: see `Isa::run`; `LANES` elements begin here in all slices.
        unsafe {
            let at = x.as_mut_ptr().add(i);
            let value = S::mul(S::sub(S::load(at), S::splat(mean)), S::splat(scale));
            let weight = S::load(weight.as_ptr().add(i));
            S::store(
                at,
                match bias {
                    Some(bias) => S::fma(value, weight, S::load(bias.as_ptr().add(i))),
                    None => S::mul(value, weight),
                },
            );
        }
    }
    for i in whole..len {
        x[i] = (x[i] - mean) * scale * weight[i] + bias.map_or(0.0, |bias| bias[i]);
    }
}
